//! `skep node`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use skep_proto::model::node::{ALLOW_LABEL, Allowance};

use super::{TaskFlags, capitalized, filter_pairs, filters, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::table::Table;

const POLL: Duration = Duration::from_millis(200);

/// Look at and change nodes
#[derive(Debug, Args)]
pub struct NodeCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List nodes
    #[command(alias = "list")]
    Ls {
        /// Only some, KEY=VALUE; may be repeated
        #[arg(short, long)]
        filter: Vec<String>,
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show nodes in full, as JSON
    Inspect {
        /// Nodes, by id or host name; self for this one
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// List the tasks of nodes
    Ps {
        /// Nodes; this one when none is named
        nodes: Vec<String>,
        #[command(flatten)]
        flags: TaskFlags,
    },
    /// Change a node
    Update {
        /// The node
        node: String,
        /// active, pause or drain
        #[arg(long)]
        availability: Option<String>,
        /// worker or manager
        #[arg(long)]
        role: Option<String>,
        /// Add or change a label, KEY=VALUE; may be repeated
        #[arg(long)]
        label_add: Vec<String>,
        /// Remove a label; may be repeated
        #[arg(long)]
        label_rm: Vec<String>,
    },
    /// Say what tasks of a node may be given besides what every node allows; without a flag, show it
    Policy {
        /// The node
        node: String,
        /// privileged, device; separated by commas
        #[arg(long, value_delimiter = ',')]
        allow: Vec<String>,
        /// Likewise, what is allowed no longer
        #[arg(long, value_delimiter = ',')]
        deny: Vec<String>,
    },
    /// Move the tasks of a node elsewhere and give it no new ones
    Drain {
        /// The node
        node: String,
        /// Wait until no task runs there any more
        #[arg(long)]
        wait: bool,
    },
    /// Let a node have tasks again
    Activate {
        /// The node
        node: String,
    },
    /// Make nodes managers
    Promote {
        /// The nodes
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        /// The nodes
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove nodes from the cluster
    #[command(alias = "remove")]
    Rm {
        /// The nodes
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Also when it is not down
        #[arg(short, long)]
        force: bool,
    },
}

/// Runs the command.
pub async fn run(command: NodeCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Ls { filter, format, quiet } => list(client, &filter, format.as_deref(), quiet).await?,
        Action::Inspect { nodes } => {
            let mut found = Vec::new();
            for node in &nodes {
                found.push(get(client, node).await?);
            }
            println!("{}", serde_json::to_string_pretty(&found)?);
        }
        Action::Ps { nodes, flags } => {
            let nodes = if nodes.is_empty() { vec!["self".to_owned()] } else { nodes };
            let mut ids = Vec::new();
            for node in &nodes {
                ids.push(text(&get(client, node).await?["ID"]));
            }
            flags.print(client, "node", ids).await?;
        }
        Action::Promote { nodes } => set_roles(client, &nodes, "manager").await?,
        Action::Demote { nodes } => set_roles(client, &nodes, "worker").await?,
        Action::Update { node, availability, role, label_add, label_rm } => {
            let found = get(client, &node).await?;
            let mut spec = found["Spec"].clone();
            if let Some(availability) = availability {
                spec["Availability"] = json!(availability);
            }
            if let Some(role) = role {
                spec["Role"] = json!(role);
            }
            let mut labels = spec["Labels"].as_object().cloned().unwrap_or_default();
            for label in &label_add {
                let (key, value) = label.split_once('=').unwrap_or((label, ""));
                labels.insert(key.to_owned(), json!(value));
            }
            for key in &label_rm {
                labels.remove(key).with_context(|| format!("key {key} doesn't exist in node's labels"))?;
            }
            spec["Labels"] = Value::Object(labels);
            let path = format!("/nodes/{}/update?version={}", text(&found["ID"]), found["Version"]["Index"]);
            client.post(&path, &spec).await?;
            println!("{node}");
        }
        Action::Policy { node, allow, deny } => policy(client, &node, &allow, &deny).await?,
        Action::Drain { node, wait } => {
            let id = set_availability(client, &node, "drain").await?;
            if wait {
                wait_until_empty(client, &node, &id).await?;
            }
            println!("{node}");
        }
        Action::Activate { node } => {
            set_availability(client, &node, "active").await?;
            println!("{node}");
        }
        Action::Rm { nodes, force } => {
            for node in &nodes {
                client.call(Method::DELETE, &format!("/nodes/{node}?force={force}"), None).await?;
                println!("{node}");
            }
        }
    }
    Ok(())
}

/// Changes and shows what the node allows. Tasks that run stay; the next ones are placed by it.
async fn policy(client: &Client, node: &str, allow: &[String], deny: &[String]) -> anyhow::Result<()> {
    let known = Allowance::ALL.map(Allowance::as_str);
    if let Some(wrong) = allow.iter().chain(deny).find(|word| !known.contains(&word.as_str())) {
        bail!("{wrong:?} is nothing that a node allows: {}", known.join(", "));
    }
    let found = get(client, node).await?;
    let before = text(&found["Spec"]["Labels"][ALLOW_LABEL]);
    let had = |word: &str| before.split(',').any(|known| known.trim() == word);
    let named = |list: &[String], word: &str| list.iter().any(|named| named == word);
    let now: Vec<&str> =
        known.into_iter().filter(|word| !named(deny, word) && (had(word) || named(allow, word))).collect();
    if !(allow.is_empty() && deny.is_empty()) {
        let mut spec = found["Spec"].clone();
        spec["Labels"][ALLOW_LABEL] = json!(now.join(","));
        let path = format!("/nodes/{}/update?version={}", text(&found["ID"]), found["Version"]["Index"]);
        client.post(&path, &spec).await?;
    }
    println!("{}", if now.is_empty() { "nothing more is allowed".to_owned() } else { now.join(",") });
    Ok(())
}

/// Says what becomes of each node in Docker's words.
async fn set_roles(client: &Client, nodes: &[String], role: &str) -> anyhow::Result<()> {
    for node in nodes {
        let found = get(client, node).await?;
        let mut spec = found["Spec"].clone();
        if spec["Role"] == role {
            println!("Node {node} is already a {role}.");
            continue;
        }
        spec["Role"] = json!(role);
        let path = format!("/nodes/{}/update?version={}", text(&found["ID"]), found["Version"]["Index"]);
        client.post(&path, &spec).await?;
        match role {
            "manager" => println!("Node {node} promoted to a manager in the swarm."),
            _ => println!("Manager {node} demoted in the swarm."),
        }
    }
    Ok(())
}

async fn get(client: &Client, node: &str) -> anyhow::Result<Value> {
    if node == "self" {
        let info: Value = client.get("/info").await?;
        return client.get(&format!("/nodes/{}", text(&info["Swarm"]["NodeID"]))).await;
    }
    client.get(&format!("/nodes/{node}")).await
}

/// Gives the node's id.
async fn set_availability(client: &Client, node: &str, availability: &str) -> anyhow::Result<String> {
    let found = get(client, node).await?;
    let id = text(&found["ID"]);
    let mut spec = found["Spec"].clone();
    spec["Availability"] = json!(availability);
    client.post(&format!("/nodes/{id}/update?version={}", found["Version"]["Index"]), &spec).await?;
    Ok(id)
}

/// Waits until every task of the node has ended.
async fn wait_until_empty(client: &Client, node: &str, id: &str) -> anyhow::Result<()> {
    let query = format!("/tasks?filters={}", filters(&[("node", [id.to_owned()])]));
    let mut told = usize::MAX;
    loop {
        let tasks: Vec<Value> = client.get(&query).await?;
        let is_over = |t: &&Value| {
            ["complete", "shutdown", "failed", "rejected", "remove", "orphaned"]
                .contains(&text(&t["Status"]["State"]).as_str())
        };
        let left = tasks.len() - tasks.iter().filter(is_over).count();
        if left == 0 {
            return Ok(());
        }
        if left != told {
            eprintln!("{node}: {left} tasks are still there");
            told = left;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn list(client: &Client, filter: &[String], format: Option<&str>, quiet: bool) -> anyhow::Result<()> {
    let format = format.map(Format::parse).transpose()?;
    let nodes: Vec<Value> = client.get(&format!("/nodes?filters={}", filters(&filter_pairs(filter)?))).await?;
    if quiet {
        nodes.iter().for_each(|n| println!("{}", text(&n["ID"])));
        return Ok(());
    }
    let info: Value = client.get("/info").await?;
    let own = text(&info["Swarm"]["NodeID"]);
    let mut table = Table::new(&["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"]);
    for node in &nodes {
        let id = text(&node["ID"]);
        let manager = &node["ManagerStatus"];
        let manager = match (manager["Leader"] == true, manager["Reachability"].as_str()) {
            (true, _) => "Leader".to_owned(),
            (false, reachability) => capitalized(reachability.unwrap_or_default()),
        };
        table.row([
            match (&format, id == own) {
                (Some(_), _) => id,
                (None, true) => format!("{id} *"),
                (None, false) => format!("{id}  "),
            },
            text(&node["Description"]["Hostname"]),
            capitalized(&text(&node["Status"]["State"])),
            capitalized(&text(&node["Spec"]["Availability"])),
            manager,
            text(&node["Description"]["Engine"]["EngineVersion"]),
        ]);
    }
    table.print_as(format.as_ref())
}
