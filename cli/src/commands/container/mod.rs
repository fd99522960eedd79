//! Plain containers of this node, and those of tasks on any: Docker's verbs, bare and as `skep container …`.

mod attach;
mod exec;
mod flags;
mod lifecycle;
mod list;
mod logs;
mod ports;
mod run;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::inspect;
use crate::client::Client;

pub use logs::LogFlags;

/// Run and look at containers
#[derive(Debug, Args)]
pub struct ContainerCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Verb(Verb),
    /// List containers of this node
    #[command(visible_alias = "list")]
    Ls(list::PsCommand),
    /// Show containers in full, as JSON
    Inspect(inspect::KindFlags),
    /// Remove all containers that do not run
    Prune(lifecycle::PruneFlags),
}

/// Verbs that Docker also has without a noun.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a container and run it
    #[command(disable_help_flag = true)]
    Run(Box<run::RunFlags>),
    /// Make a container
    #[command(disable_help_flag = true)]
    Create(Box<flags::ContainerFlags>),
    /// Run a further command in a container
    Exec(exec::ExecFlags),
    /// Start containers
    Start(attach::StartFlags),
    /// Stop containers
    Stop(lifecycle::StopFlags),
    /// Restart containers
    Restart(lifecycle::StopFlags),
    /// Send containers a signal
    Kill(lifecycle::KillFlags),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(lifecycle::RmFlags),
    /// Freeze containers
    Pause(lifecycle::Names),
    /// Let frozen containers go on
    Unpause(lifecycle::Names),
    /// Wait until containers end, and print their exit codes
    Wait(lifecycle::Names),
    /// Connect to a container's input and output
    Attach(attach::AttachFlags),
    /// Print a container's log
    Logs(logs::LogsCommand),
    /// List a container's processes
    Top(show::TopFlags),
    /// Give a container another name
    Rename(lifecycle::RenameFlags),
    /// List a container's published ports
    Port(show::PortFlags),
    /// List containers of this node
    Ps(list::PsCommand),
}

/// Runs a command of `skep container`.
pub async fn run(command: ContainerCommand, client: &Client) -> anyhow::Result<ExitCode> {
    match command.action {
        Action::Verb(verb) => return run_verb(verb, client).await,
        Action::Ls(command) => list::list(command, client).await?,
        Action::Inspect(flags) => return inspect::run_kind(inspect::Kind::Container, flags, client).await,
        Action::Prune(flags) => lifecycle::prune(flags, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a verb.
pub async fn run_verb(verb: Verb, client: &Client) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Run(flags) => return run::run(*flags, client).await,
        Verb::Create(flags) => run::create_only(*flags, client).await?,
        Verb::Exec(flags) => return exec::run(flags, client).await,
        Verb::Start(flags) => return attach::start(flags, client).await,
        Verb::Attach(flags) => return attach::run(flags, client).await,
        Verb::Stop(flags) => lifecycle::stop(flags, "stop", client).await?,
        Verb::Restart(flags) => lifecycle::stop(flags, "restart", client).await?,
        Verb::Kill(flags) => lifecycle::kill(flags, client).await?,
        Verb::Rm(flags) => lifecycle::rm(flags, client).await?,
        Verb::Pause(names) => lifecycle::plain(names, "pause", client).await?,
        Verb::Unpause(names) => lifecycle::plain(names, "unpause", client).await?,
        Verb::Wait(names) => lifecycle::wait(names, client).await?,
        Verb::Logs(command) => logs::run(command, client).await?,
        Verb::Top(flags) => show::top(flags, client).await?,
        Verb::Rename(flags) => lifecycle::rename(flags, client).await?,
        Verb::Port(flags) => show::port(flags, client).await?,
        Verb::Ps(command) => list::list(command, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}
