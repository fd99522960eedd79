//! The command line: one file a noun.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use http::Method;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::client::{Client, encode};
use crate::output::format::Format;
use crate::output::human::{ago, short_id};
use crate::output::table::Table;

mod apply;
mod backup_file;
mod cluster;
mod connection;
mod container;
mod doctor;
mod events;
mod file;
mod file_reference;
mod image;
mod inspect;
mod lab;
mod network;
mod node;
mod registry;
mod service;
mod stack;
mod swarm;
mod swarm_settings;
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
    Cluster(cluster::ClusterCommand),
    Volume(volume::VolumeCommand),
    /// Make, look at and remove secrets: content that tasks get in memory and nobody is shown
    Secret(file::FileCommand),
    /// Make, look at and remove configs: small files that tasks get
    Config(file::FileCommand),
    Container(container::ContainerCommand),
    #[command(flatten)]
    ContainerVerb(container::Verb),
    Events(events::EventsCommand),
    Image(image::ImageCommand),
    #[command(flatten)]
    ImageVerb(image::Verb),
    /// Show any object in full, as JSON
    Inspect(inspect::InspectFlags),
    Login(registry::LoginFlags),
    Logout(registry::LogoutFlags),
    /// Show versions of client and daemon
    Version(system::FormatFlags),
    /// Show what the daemon and its node are
    Info(system::FormatFlags),
    Doctor(doctor::DoctorFlags),
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
        Command::Cluster(command) => block_on(cluster::run(command, client))?,
        Command::Volume(command) => block_on(volume::run(command, &client()?))?,
        Command::Secret(command) => block_on(file::run(file::Kind::Secret, command, &client()?))?,
        Command::Config(command) => block_on(file::run(file::Kind::Config, command, &client()?))?,
        Command::Container(command) => return block_on(container::run(command, &client()?)),
        Command::ContainerVerb(verb) => return block_on(container::run_verb(verb, &client()?)),
        Command::Image(command) => return block_on(image::run(command, &client()?)),
        Command::ImageVerb(verb) => block_on(image::run_verb(verb, &client()?))?,
        Command::Inspect(flags) => return block_on(inspect::run(flags, &client()?)),
        Command::Events(command) => block_on(events::run(command, &client()?))?,
        Command::Login(flags) => block_on(registry::login(flags, &client()?))?,
        Command::Logout(flags) => registry::logout(&flags)?,
        Command::Doctor(flags) => return block_on(doctor::run(flags, &client()?)),
        Command::Version(flags) => block_on(system::version(flags, &client()?))?,
        Command::Info(flags) => block_on(system::info(flags, &client()?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A text of an answer; empty for anything else.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Filters in the Engine API's form, encoded for a query. A key that is given twice has the values of both.
fn filters<K: AsRef<str>, V: AsRef<[String]>>(parts: &[(K, V)]) -> String {
    let mut map: BTreeMap<&str, BTreeMap<&String, bool>> = BTreeMap::new();
    for (key, values) in parts {
        map.entry(key.as_ref()).or_default().extend(values.as_ref().iter().map(|v| (v, true)));
    }
    encode(&json!(map).to_string())
}

/// `KEY=VALUE` of `--filter`.
fn filter_pairs(given: &[String]) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let read = |text: &String| {
        let (key, value) = text.split_once('=').with_context(|| format!("invalid filter {text:?}: write KEY=VALUE"))?;
        Ok((key.trim().to_lowercase(), vec![value.trim().to_owned()]))
    };
    given.iter().map(read).collect()
}

/// Does something to each of several objects. Those that fail do not stop the others; all are told at the end.
async fn each(names: &[String], mut act: impl AsyncFnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for name in names {
        if let Err(error) = act(name).await {
            failures.push(crate::output::chain(&error));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Removes objects of a kind, and prints each that went.
async fn remove_each(client: &Client, root: &str, names: &[String]) -> anyhow::Result<()> {
    let remove = async |name: &str| {
        client.call(Method::DELETE, &format!("{root}/{}", encode(name)), None).await?;
        println!("{name}");
        Ok(())
    };
    each(names, remove).await
}

/// Prints objects of a kind as one JSON list: those that are found, though others are not.
async fn inspect_each(client: &Client, root: &str, names: &[String]) -> anyhow::Result<()> {
    inspect_each_with(client, root, "", names).await
}

/// The same, with a query.
async fn inspect_each_with(client: &Client, root: &str, query: &str, names: &[String]) -> anyhow::Result<()> {
    let mut found: Vec<Value> = Vec::new();
    let result = each(names, async |name: &str| {
        found.push(client.get(&format!("{root}/{}{query}", encode(name))).await?);
        Ok(())
    });
    let result = result.await;
    println!("{}", serde_json::to_string_pretty(&found)?);
    result
}

/// Asks before something is lost.
fn confirm(warning: &str) -> anyhow::Result<bool> {
    let answer = crate::terminal::ask(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    Ok(["y", "yes"].contains(&answer.to_ascii_lowercase().as_str()))
}

/// Lines of files, without those that are empty or comments.
fn text_lines(files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("open {}", file.display()))?;
        let wanted = text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#'));
        lines.extend(wanted.map(str::to_owned));
    }
    Ok(lines)
}

/// Names of objects by id: of services under `Spec`, of nodes under `Description`.
fn names(objects: &[Value], part: &str) -> BTreeMap<String, String> {
    let name = |o: &Value| if part == "Spec" { text(&o[part]["Name"]) } else { text(&o[part]["Hostname"]) };
    objects.iter().map(|o| (text(&o["ID"]), name(o))).collect()
}

/// How lists of tasks are printed.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
struct TaskFlags {
    /// Only some, KEY=VALUE; may be repeated
    #[arg(short, long)]
    filter: Vec<String>,
    /// json, or a text with fields such as {{.Name}}
    #[arg(long)]
    format: Option<String>,
    /// Print ids of services and nodes, not names
    #[arg(long)]
    no_resolve: bool,
    /// Print whole ids and errors
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
}

impl TaskFlags {
    /// Prints the tasks of services or nodes: those whose `key` is one of `ids`.
    async fn print(&self, client: &Client, key: &str, ids: Vec<String>) -> anyhow::Result<()> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut wanted = filter_pairs(&self.filter)?;
        wanted.push((key.to_owned(), ids));
        let tasks: Vec<Value> = client.get(&format!("/tasks?filters={}", filters(&wanted))).await?;
        if self.quiet {
            tasks.iter().for_each(|t| println!("{}", text(&t["ID"])));
            return Ok(());
        }
        let (services, nodes) = match self.no_resolve {
            true => (BTreeMap::new(), BTreeMap::new()),
            false => {
                let services: Vec<Value> = client.get("/services").await?;
                let nodes: Vec<Value> = client.get("/nodes").await?;
                (names(&services, "Spec"), names(&nodes, "Description"))
            }
        };
        task_table(&tasks, &services, &nodes, self.no_trunc, format.is_none()).print_as(format.as_ref())
    }
}

/// The table of `service ps`, `node ps` and `stack ps`: newest attempt of each slot first, older ones below, indented if
/// `indented`. What has no name is shown by its id.
fn task_table(
    tasks: &[Value],
    services: &BTreeMap<String, String>,
    nodes: &BTreeMap<String, String>,
    whole: bool,
    indented: bool,
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
        let shown = if indented && name == above { format!(" \\_ {name}") } else { name.clone() };
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
            nodes.get(&text(&task["NodeID"])).cloned().unwrap_or_else(|| text(&task["NodeID"])),
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

/// An object of texts as `KEY=VALUE,…`.
fn pairs_text(object: &Value) -> String {
    let pairs = object.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// Lines `KEY=VALUE` as an object; a line without `=` is a key without a value.
fn pairs(lines: &[String]) -> Map<String, Value> {
    lines.iter().map(|line| line.split_once('=').unwrap_or((line, ""))).map(|(k, v)| (k.to_owned(), json!(v))).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_flags_of_a_command_have_the_same_name() {
        Cli::command().debug_assert();
    }

    #[test]
    fn older_attempts_stand_below_the_newest_of_their_slot() {
        let task = |id: &str, slot: u64, at: &str| json!({"ID": id, "ServiceID": "s", "Slot": slot, "CreatedAt": at});
        let tasks = [task("a", 1, "2026-01-01T00:00:00Z"), task("b", 1, "2026-01-02T00:00:00Z")];
        let names = BTreeMap::from([("s".to_owned(), "web".to_owned())]);
        let rendered = format!("{:?}", task_table(&tasks, &names, &BTreeMap::new(), true, true));
        assert!(rendered.find("\"b\"").unwrap() < rendered.find("\"a\"").unwrap());
        assert!(rendered.contains(" \\\\_ web.1"));
    }

    #[test]
    fn filters_are_encoded_for_a_query() {
        assert_eq!(filters(&[("id", &["a b".to_owned()])]), "%7B%22id%22%3A%7B%22a%20b%22%3Atrue%7D%7D");
    }
}
