//! The command line: one file a noun.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod lab;

/// One cluster behind one Docker-compatible socket.
#[derive(Debug, Parser)]
#[command(name = "skep", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node
    Daemon(Box<crate::daemon::config::Flags>),
    /// Serve names of this node's containers; started by the daemon and outlives it
    #[command(hide = true)]
    Net(crate::daemon::net::NetFlags),
    /// A whole cluster on this machine, for trying things out and for tests
    Lab(lab::LabCommand),
}

/// Runs the command.
///
/// # Errors
/// Whatever went wrong, worded for the person at the terminal.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Daemon(flags) => crate::daemon::run(*flags),
        Command::Net(flags) => crate::daemon::net::run(flags),
        Command::Lab(command) => lab::run(command),
    }
}
