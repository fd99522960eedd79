//! Makes one cluster of a lab's daemons, over their sockets, as a user would.

use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::state::{LabState, NodeState};
use crate::client::Client;

/// How long a daemon may take to answer, and a cluster to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Waits until every daemon answers.
pub async fn wait_for_sockets(state: &LabState) -> anyhow::Result<()> {
    for node in &state.nodes {
        wait_for_socket(node).await?;
    }
    Ok(())
}

/// Waits until one daemon answers.
pub async fn wait_for_socket(node: &NodeState) -> anyhow::Result<()> {
    let client = Client::new(&node.socket);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.call(Method::GET, "/_ping", None).await {
            Ok(_) => return Ok(()),
            Err(error) if !super::daemons::is_running(node) => {
                return Err(error.context(format!("the daemon of {} has ended", node.name)));
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("the daemon of {} does not answer", node.name)));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// `swarm init` on the first node, `swarm join` on the others, then waits until all are ready.
pub async fn form(state: &LabState, data_path_port: u16) -> anyhow::Result<()> {
    let (first, others) = state.nodes.split_first().context("a lab has nodes")?;
    let client = Client::new(&first.socket);
    let listen = |node: &NodeState| format!("{}:2377", node.address);
    client
        .post(
            "/swarm/init",
            &json!({
                "ListenAddr": listen(first), "AdvertiseAddr": first.address.to_string(),
                "DataPathPort": data_path_port, "Spec": {},
            }),
        )
        .await
        .with_context(|| format!("making a cluster on {}", first.name))?;
    let swarm: Value = client.get("/swarm").await?;
    for node in others {
        let token =
            swarm["JoinTokens"][if node.manager { "Manager" } else { "Worker" }].as_str().context("no join token")?;
        let request = json!({
            "ListenAddr": listen(node), "AdvertiseAddr": node.address.to_string(),
            "RemoteAddrs": [listen(first)], "JoinToken": token,
        });
        Client::new(&node.socket)
            .post("/swarm/join", &request)
            .await
            .with_context(|| format!("joining {}", node.name))?;
    }
    wait_until_ready(&client, state).await
}

async fn wait_until_ready(client: &Client, state: &LabState) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let nodes: anyhow::Result<Vec<Value>> = client.get("/nodes").await;
        let missing: Vec<&str> = match &nodes {
            Ok(nodes) => {
                let is_ready = |wanted: &NodeState| {
                    nodes.iter().any(|n| {
                        n["Description"]["Hostname"] == wanted.name.as_str()
                            && n["Status"]["State"] == "ready"
                            && (!wanted.manager || n["ManagerStatus"]["Reachability"] == "reachable")
                    })
                };
                state.nodes.iter().filter(|n| !is_ready(n)).map(|n| n.name.as_str()).collect()
            }
            Err(_) => vec!["all"],
        };
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not ready after {} s: {} ({nodes:?})", PATIENCE.as_secs(), missing.join(", "));
        }
        tokio::time::sleep(POLL).await;
    }
}
