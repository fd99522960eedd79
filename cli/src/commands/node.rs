//! `skep node`.

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{capitalized, filters, names, task_table, text};
use crate::client::Client;
use crate::output::table::Table;

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
        /// Print whole ids and errors
        #[arg(long)]
        no_trunc: bool,
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
        Action::Ls { quiet } => list(client, quiet).await?,
        Action::Inspect { nodes } => {
            let mut found = Vec::new();
            for node in &nodes {
                found.push(get(client, node).await?);
            }
            println!("{}", serde_json::to_string_pretty(&found)?);
        }
        Action::Ps { nodes, no_trunc } => {
            let nodes = if nodes.is_empty() { vec!["self".to_owned()] } else { nodes };
            let mut ids = Vec::new();
            for node in &nodes {
                ids.push(text(&get(client, node).await?["ID"]));
            }
            let tasks: Vec<Value> = client.get(&format!("/tasks?filters={}", filters(&[("node", &ids)]))).await?;
            let nodes: Vec<Value> = client.get("/nodes").await?;
            let services: Vec<Value> = client.get("/services").await?;
            task_table(&tasks, &names(&services, "Spec"), &names(&nodes, "Description"), no_trunc).print();
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
        Action::Rm { nodes, force } => {
            for node in &nodes {
                client.call(Method::DELETE, &format!("/nodes/{node}?force={force}"), None).await?;
                println!("{node}");
            }
        }
    }
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

async fn list(client: &Client, quiet: bool) -> anyhow::Result<()> {
    let nodes: Vec<Value> = client.get("/nodes").await?;
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
            if id == own { format!("{id} *") } else { format!("{id}  ") },
            text(&node["Description"]["Hostname"]),
            capitalized(&text(&node["Status"]["State"])),
            capitalized(&text(&node["Spec"]["Availability"])),
            manager,
            text(&node["Description"]["Engine"]["EngineVersion"]),
        ]);
    }
    table.print();
    Ok(())
}
