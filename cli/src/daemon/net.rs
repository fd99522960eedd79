//! `skep net`: serves names of this node's containers, and outlives the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use skep_network::netd::{self, NetdConfig};

/// How `skep net` is started by the daemon.
#[derive(Debug, Args)]
pub struct NetFlags {
    /// Directory of its control socket and records
    #[arg(long)]
    dir: PathBuf,
}

/// Runs it until it is told to go.
///
/// # Errors
/// When its directory or socket cannot be used.
pub fn run(flags: NetFlags) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    // Little work, and as little memory as can be: one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(netd::run(NetdConfig::new(flags.dir)))?;
    Ok(ExitCode::SUCCESS)
}
