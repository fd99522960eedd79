//! `skep lab`: a whole cluster on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::lab::{Lab, UpOptions};

/// A whole cluster on this machine: one network namespace a node, real daemons in them.
#[derive(Debug, Args)]
pub struct LabCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Args)]
struct Place {
    /// Directory that holds the lab: sockets, state, logs
    #[arg(long, env = "SKEP_LAB", default_value = "/var/lib/skep-lab")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make nodes, start their daemons, form the cluster, wait until all are ready
    Up {
        #[command(flatten)]
        place: Place,
        /// Managers, an odd number
        #[arg(long, default_value_t = 3)]
        managers: u16,
        /// Workers
        #[arg(long, default_value_t = 0)]
        workers: u16,
        /// Registry that the nodes may speak to without TLS, HOST:PORT, or subnet of such; may be repeated
        #[arg(long)]
        insecure_registry: Vec<String>,
        /// Further argument of every daemon, --daemon-arg=--label=KEY=VALUE; may be repeated
        #[arg(long)]
        daemon_arg: Vec<String>,
        /// Start the daemons only; do not form a cluster
        #[arg(long)]
        no_cluster: bool,
        /// UDP port of networks that are not encrypted, 1024 to 49151; 4789 unless given
        #[arg(long, default_value_t = 0, hide_default_value = true, conflicts_with = "no_cluster")]
        data_path_port: u16,
    },
    /// Kill the daemon of a node with SIGKILL; its containers go on
    Kill {
        /// The node
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// Cut the power of a node: all its processes, mounts and links are gone, its files stay. `start` boots it
    PowerOff {
        /// The node
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// Start the daemon of a node again
    Start {
        /// The node
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// Cut a node off from all others, or the pair A B from each other
    Cut {
        /// The node
        a: String,
        /// The other end, to cut only this pair
        b: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Undo a cut
    Heal {
        /// The node
        a: String,
        /// The other end of the pair
        b: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Run a command on a node: in its network namespace, with its DOCKER_HOST
    Exec {
        #[command(flatten)]
        place: Place,
        /// The node
        node: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the nodes
    Status {
        #[command(flatten)]
        place: Place,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop everything and remove every trace
    Down {
        #[command(flatten)]
        place: Place,
    },
}

/// Runs the command.
pub fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        Action::Up { place, managers, workers, insecure_registry, daemon_arg, no_cluster, data_path_port } => {
            let options = UpOptions {
                managers,
                workers,
                insecure_registries: insecure_registry,
                daemon_args: daemon_arg,
                form_cluster: !no_cluster,
                data_path_port,
            };
            let lab = Lab::up(&place.dir, &options)?;
            lab.print_summary();
        }
        Action::Kill { node, place } => Lab::open(&place.dir)?.kill(&node)?,
        Action::PowerOff { node, place } => Lab::open(&place.dir)?.power_off(&node)?,
        Action::Start { node, place } => Lab::open(&place.dir)?.start(&node)?,
        Action::Cut { a, b, place } => Lab::open(&place.dir)?.set_cut(&a, b.as_deref(), true)?,
        Action::Heal { a, b, place } => Lab::open(&place.dir)?.set_cut(&a, b.as_deref(), false)?,
        Action::Exec { place, node, command } => return Err(Lab::open(&place.dir)?.exec(&node, &command)),
        Action::Status { place, json } => Lab::open(&place.dir)?.print_status(json)?,
        Action::Down { place } => Lab::down(&place.dir)?,
    }
    Ok(ExitCode::SUCCESS)
}
