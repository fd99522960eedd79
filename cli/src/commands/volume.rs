//! `skep volume`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{inspect_each, remove_each, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::table::Table;

/// Make, look at and remove volumes of this node
#[derive(Debug, Args)]
pub struct VolumeCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a volume
    Create {
        /// Its name; a random one when none is given
        #[arg(default_value = "")]
        name: String,
    },
    /// List volumes
    #[command(alias = "list")]
    Ls {
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
        /// Print only names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show volumes in full, as JSON
    Inspect {
        /// The volumes
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove volumes
    #[command(alias = "remove")]
    Rm {
        /// The volumes
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(command: VolumeCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Create { name } => {
            let made: Value = serde_json::from_slice(&client.post("/volumes/create", &json!({"Name": name})).await?)?;
            println!("{}", text(&made["Name"]));
        }
        Action::Ls { format, quiet } => {
            let found: Value = client.get("/volumes").await?;
            let volumes = found["Volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
            if quiet {
                volumes.iter().for_each(|volume| println!("{}", text(&volume["Name"])));
                return Ok(());
            }
            let mut table = Table::new(&["DRIVER", "VOLUME NAME"]);
            for volume in volumes {
                table.row([text(&volume["Driver"]), text(&volume["Name"])]);
            }
            table.print_as(format.as_deref().map(Format::parse).transpose()?.as_ref())?;
        }
        Action::Inspect { volumes } => inspect_each(client, "/volumes", &volumes).await?,
        Action::Rm { volumes } => remove_each(client, "/volumes", &volumes).await?,
    }
    Ok(())
}
