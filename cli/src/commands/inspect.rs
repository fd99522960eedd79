//! `skep inspect`: any object in full.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::client::{Client, encode, is_not_found};
use crate::output::format::Format;

/// Kinds of objects, in the order in which a name is looked for (docker/cli, `system/inspect.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A container
    Container,
    /// An image
    Image,
    /// A network
    Network,
    /// A volume
    Volume,
    /// A service
    Service,
    /// A task
    Task,
    /// A node
    Node,
    /// A secret
    Secret,
    /// A config
    Config,
}

impl Kind {
    fn path(self, name: &str) -> String {
        let escaped = encode(name);
        match self {
            Self::Container => format!("/containers/{escaped}/json"),
            // Slashes are part of an image's name.
            Self::Image => format!("/images/{}/json", escaped.replace("%2F", "/").replace("%3A", ":")),
            Self::Network => format!("/networks/{escaped}"),
            Self::Volume => format!("/volumes/{escaped}"),
            Self::Service => format!("/services/{escaped}"),
            Self::Task => format!("/tasks/{escaped}"),
            Self::Node => format!("/nodes/{escaped}"),
            Self::Secret => format!("/secrets/{escaped}"),
            Self::Config => format!("/configs/{escaped}"),
        }
    }

    /// Whether only a cluster has such objects.
    fn is_of_cluster(self) -> bool {
        matches!(self, Self::Service | Self::Task | Self::Node | Self::Secret | Self::Config)
    }

    fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// Show objects in full, as JSON
#[derive(Debug, Args)]
pub struct InspectFlags {
    /// Only objects of this kind
    #[arg(long = "type")]
    kind: Option<Kind>,
    #[command(flatten)]
    flags: KindFlags,
}

/// Flags where the kind is clear.
#[derive(Debug, Args)]
pub struct KindFlags {
    /// json, or a text with fields such as {{.State.Status}}
    #[arg(short, long)]
    format: Option<String>,
    /// With the sizes of containers
    #[arg(short, long)]
    size: bool,
    /// The objects, by name or id
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs `inspect`.
pub async fn run(flags: InspectFlags, client: &Client) -> anyhow::Result<ExitCode> {
    show(flags.kind.as_ref().map_or(Kind::value_variants(), std::slice::from_ref), flags.flags, client).await
}

/// Runs `inspect` of one kind.
pub async fn run_kind(kind: Kind, flags: KindFlags, client: &Client) -> anyhow::Result<ExitCode> {
    show(&[kind], flags, client).await
}

/// Prints what is found, and then what is not.
async fn show(kinds: &[Kind], flags: KindFlags, client: &Client) -> anyhow::Result<ExitCode> {
    let format = flags.format.as_deref().map(Format::parse).transpose()?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in &flags.names {
        match find(kinds, name, flags.size, client).await {
            Ok(object) => found.push(object),
            Err(error) => missing.push(crate::output::chain(&error)),
        }
    }
    match format {
        Some(format) => {
            for object in &found {
                println!("{}", format.render(object)?);
            }
        }
        None => println!("{}", serde_json::to_string_pretty(&found)?),
    }
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(kinds: &[Kind], name: &str, size: bool, client: &Client) -> anyhow::Result<Value> {
    for kind in kinds {
        let path = kind.path(name);
        let path = if size && *kind == Kind::Container { format!("{path}?size=1") } else { path };
        match client.get(&path).await {
            Ok(object) => return Ok(object),
            Err(error) if is_not_found(&error) => {}
            // A node that is no manager knows nothing of the cluster; nor does one for which the kind is not built.
            Err(_) if kinds.len() > 1 && kind.is_of_cluster() => {}
            Err(error) => return Err(error),
        }
    }
    match kinds {
        [kind] => bail!("No such {}: {name}", kind.word()),
        _ => bail!("No such object: {name}"),
    }
}
