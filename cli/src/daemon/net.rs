//! `skep net`: serves names of this node's containers, and outlives the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// How `skep net` is started by the daemon.
#[derive(Debug, Args)]
pub struct NetFlags {
    /// Directory of its control socket and state file
    #[arg(long)]
    dir: PathBuf,
}

/// Runs it until it is told to go.
pub fn run(flags: NetFlags) -> anyhow::Result<ExitCode> {
    let _ = flags.dir;
    anyhow::bail!("x")
}
