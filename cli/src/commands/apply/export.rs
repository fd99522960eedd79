//! `skep stack export`: a stack of the cluster as a file.

use anyhow::{anyhow, ensure};
use clap::{Args, ValueEnum};
use skep_api::manifest::compose::export::{Export, export};
use skep_api::manifest::plan::Wanted;

use super::observe::observe;
use crate::client::Client;

/// What `skep stack export` takes
#[derive(Debug, Args)]
pub struct ExportFlags {
    /// The stack
    stack: String,
    /// The format
    #[arg(short, long, value_enum, default_value = "compose")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Compose file
    Compose,
}

/// Writes the file to standard output. Applied again, it changes nothing.
///
/// # Errors
/// What the format cannot say.
pub async fn run(flags: ExportFlags, client: &Client) -> anyhow::Result<()> {
    let Format::Compose = flags.output;
    let wanted = Wanted { name: flags.stack.clone(), ..Wanted::default() };
    let observed = observe(client, &wanted, &[]).await?.observed;
    ensure!(!observed.services.is_empty(), "nothing found in stack: {}", flags.stack);
    let from = Export {
        stack: &flags.stack,
        services: observed.services.into_iter().map(|(name, seen)| (name, seen.spec)).collect(),
        networks: observed.networks.into_iter().map(|(name, seen)| (name, seen.shown)).collect(),
    };
    print!(
        "{}",
        export(&from).map_err(|problems| anyhow!("the stack {} cannot be exported\n{problems}", flags.stack))?
    );
    Ok(())
}
