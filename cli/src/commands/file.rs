//! `skep secret` and `skep config`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{inspect_each, pairs, remove_each, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::human::ago;
use crate::output::table::Table;

/// Bytes of content that are read at most: more than the cluster takes, so that it is the one to refuse.
const MOST_BYTES: u64 = 2 * 1024 * 1024;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Content that nobody is shown.
    Secret,
    /// Content that may be shown.
    Config,
}

impl Kind {
    /// Where the API has them.
    pub fn path(self) -> &'static str {
        match self {
            Self::Secret => "/secrets",
            Self::Config => "/configs",
        }
    }

    /// The word for one.
    pub fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// The command.
#[derive(Debug, Args)]
pub struct FileCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make one from a file
    Create {
        /// Its name
        name: String,
        /// The file; - for standard input
        file: PathBuf,
        /// Label, KEY=VALUE; may be repeated
        #[arg(short, long)]
        label: Vec<String>,
        /// golang: placeholders are expanded for each task
        #[arg(long)]
        template_driver: Option<String>,
    },
    /// List them
    #[command(alias = "list")]
    Ls {
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
        /// Ids only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show them in full, as JSON
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove them
    #[command(alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(kind: Kind, command: FileCommand, client: &Client) -> anyhow::Result<()> {
    let root = kind.path();
    match command.action {
        Action::Create { name, file, label, template_driver } => {
            let request = json!({
                "Name": name, "Labels": pairs(&label), "Data": BASE64_STANDARD.encode(content(&file)?),
                "Templating": template_driver.map(|driver| json!({"Name": driver})),
            });
            let made: Value = serde_json::from_slice(&client.post(&format!("{root}/create"), &request).await?)?;
            println!("{}", text(&made["ID"]));
        }
        Action::Ls { format, quiet } => {
            let mut found: Vec<Value> = client.get(root).await?;
            found.sort_by_key(|file| text(&file["Spec"]["Name"]));
            if quiet {
                found.iter().for_each(|file| println!("{}", text(&file["ID"])));
                return Ok(());
            }
            let now = Timestamp::now();
            let mut table = Table::new(&["ID", "NAME", "CREATED", "UPDATED"]);
            for file in &found {
                let (created, updated) = (ago(&text(&file["CreatedAt"]), now), ago(&text(&file["UpdatedAt"]), now));
                table.row([text(&file["ID"]), text(&file["Spec"]["Name"]), created, updated]);
            }
            table.print_as(format.as_deref().map(Format::parse).transpose()?.as_ref())?;
        }
        Action::Inspect { names } => inspect_each(client, root, &names).await?,
        Action::Rm { names } => remove_each(client, root, &names).await?,
    }
    Ok(())
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(MOST_BYTES).read_to_end(&mut content).context("reading standard input")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
        opened.take(MOST_BYTES).read_to_end(&mut content).with_context(|| format!("reading {}", file.display()))?;
    }
    if content.is_empty() {
        bail!("{} is empty: there is nothing to keep", file.display());
    }
    Ok(content)
}
