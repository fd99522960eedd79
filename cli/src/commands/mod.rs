//! The command line: one file a noun.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::output::human::{ago, short_id};
use crate::output::table::Table;

mod apply;
mod apply_files;
mod connection;
mod container;
mod file;
mod file_reference;
mod image;
mod lab;
mod network;
mod node;
mod service;
mod stack;
mod swarm;
mod system;
mod volume;

use connection::{Connection, block_on};

/// One cluster behind one Docker-compatible socket.
#[derive(Debug, Parser)]
#[command(name = "skep", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster match a Compose file
    Apply(apply::ApplyCommand),
    Swarm(swarm::SwarmCommand),
    Node(node::NodeCommand),
    Service(service::ServiceCommand),
    Stack(stack::StackCommand),
    Network(network::NetworkCommand),
    Volume(volume::VolumeCommand),
    /// Make, look at and remove secrets: content that tasks get in memory and nobody is shown
    Secret(file::FileCommand),
    /// Make, look at and remove configs: small files that tasks get
    Config(file::FileCommand),
    /// List images of this node
    Images(image::ImagesCommand),
    /// Fetch an image to this node
    Pull(image::PullCommand),
    /// List containers of this node
    Ps(container::PsCommand),
    /// Show versions of client and daemon
    Version,
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
    let client = || cli.connection.client();
    match cli.command {
        Command::Daemon(flags) => return crate::daemon::run(*flags),
        Command::Net(flags) => return crate::daemon::net::run(flags),
        Command::Lab(command) => return lab::run(command),
        Command::Apply(command) => block_on(apply::run(command, &client()?))?,
        Command::Swarm(command) => block_on(swarm::run(command, &client()?))?,
        Command::Node(command) => block_on(node::run(command, &client()?))?,
        Command::Service(command) => block_on(service::run(command, &client()?))?,
        Command::Stack(command) => block_on(stack::run(command, &client()?))?,
        Command::Network(command) => block_on(network::run(command, &client()?))?,
        Command::Volume(command) => block_on(volume::run(command, &client()?))?,
        Command::Secret(command) => block_on(file::run(file::Kind::Secret, command, &client()?))?,
        Command::Config(command) => block_on(file::run(file::Kind::Config, command, &client()?))?,
        Command::Images(command) => block_on(image::list(command, &client()?))?,
        Command::Pull(command) => block_on(image::pull(command, &client()?))?,
        Command::Ps(command) => block_on(container::list(command, &client()?))?,
        Command::Version => block_on(system::version(&client()?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A text of an answer; empty for anything else.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Filters in the Engine API's form, encoded for a query.
fn filters(parts: &[(&str, &[String])]) -> String {
    let map: BTreeMap<&str, BTreeMap<&String, bool>> =
        parts.iter().map(|(key, values)| (*key, values.iter().map(|v| (v, true)).collect())).collect();
    let mut out = String::new();
    for byte in json!(map).to_string().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Names of objects by id: of services under `Spec`, of nodes under `Description`.
fn names(objects: &[Value], part: &str) -> BTreeMap<String, String> {
    let name = |o: &Value| if part == "Spec" { text(&o[part]["Name"]) } else { text(&o[part]["Hostname"]) };
    objects.iter().map(|o| (text(&o["ID"]), name(o))).collect()
}

/// The table of `service ps`, `node ps` and `stack ps`: newest attempt of each slot first, older ones indented below.
fn task_table(
    tasks: &[Value],
    services: &BTreeMap<String, String>,
    nodes: &BTreeMap<String, String>,
    whole: bool,
) -> Table {
    let now = Timestamp::now();
    let name_of = |task: &Value| {
        let service = services.get(&text(&task["ServiceID"])).cloned().unwrap_or_else(|| text(&task["ServiceID"]));
        match task["Slot"].as_u64() {
            Some(slot) if slot > 0 => format!("{service}.{slot}"),
            _ => format!("{service}.{}", text(&task["NodeID"])),
        }
    };
    let mut rows: Vec<(String, &Value)> = tasks.iter().map(|t| (name_of(t), t)).collect();
    rows.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| text(&y["CreatedAt"]).cmp(&text(&x["CreatedAt"]))));
    let mut table = Table::new(&["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "PORTS"]);
    let mut above = String::new();
    for (name, task) in rows {
        let shown = if name == above { format!(" \\_ {name}") } else { name.clone() };
        let error = text(&task["Status"]["Err"]);
        let error = match (error.is_empty(), whole || error.chars().count() <= 30) {
            (true, _) => String::new(),
            (false, true) => format!("\"{error}\""),
            (false, false) => format!("\"{}…\"", error.chars().take(29).collect::<String>()),
        };
        let ports = task["Status"]["PortStatus"]["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ports =
            ports.iter().map(|p| format!("*:{}->{}/{}", p["PublishedPort"], p["TargetPort"], text(&p["Protocol"])));
        let image = text(&task["Spec"]["ContainerSpec"]["Image"]);
        table.row([
            short_id(&text(&task["ID"]), whole),
            shown,
            image.split('@').next().unwrap_or_default().to_owned(),
            nodes.get(&text(&task["NodeID"])).cloned().unwrap_or_default(),
            capitalized(&text(&task["DesiredState"])),
            format!(
                "{} {}",
                capitalized(&text(&task["Status"]["State"])),
                ago(&text(&task["Status"]["Timestamp"]), now)
            ),
            error,
            ports.collect::<Vec<_>>().join(","),
        ]);
        above = name;
    }
    table
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Lines `KEY=VALUE` as an object; a line without `=` is a key without a value.
fn pairs(lines: &[String]) -> Map<String, Value> {
    lines.iter().map(|line| line.split_once('=').unwrap_or((line, ""))).map(|(k, v)| (k.to_owned(), json!(v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_attempts_stand_below_the_newest_of_their_slot() {
        let task = |id: &str, slot: u64, at: &str| json!({"ID": id, "ServiceID": "s", "Slot": slot, "CreatedAt": at});
        let tasks = [task("a", 1, "2026-01-01T00:00:00Z"), task("b", 1, "2026-01-02T00:00:00Z")];
        let names = BTreeMap::from([("s".to_owned(), "web".to_owned())]);
        let rendered = format!("{:?}", task_table(&tasks, &names, &BTreeMap::new(), true));
        assert!(rendered.find("\"b\"").unwrap() < rendered.find("\"a\"").unwrap());
        assert!(rendered.contains(" \\\\_ web.1"));
    }

    #[test]
    fn filters_are_encoded_for_a_query() {
        assert_eq!(filters(&[("id", &["a b".to_owned()])]), "%7B%22id%22%3A%7B%22a%20b%22%3Atrue%7D%7D");
    }
}
