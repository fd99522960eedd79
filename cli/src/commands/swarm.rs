//! `skep swarm`: making, joining and leaving a cluster.

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;

/// Make, join and leave a cluster
#[derive(Debug, Args)]
pub struct SwarmCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Args)]
struct Addresses {
    /// Advertised address (format: <ip|interface>[:port])
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Listen address (format: <ip|interface>[:port])
    #[arg(long, default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address of the data path (format: <ip|interface>)
    #[arg(long, default_value = "")]
    data_path_addr: String,
    /// Availability of the node: active, pause, drain
    #[arg(long, default_value = "active")]
    availability: String,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a cluster with this node as its manager
    Init {
        #[command(flatten)]
        addresses: Addresses,
        /// Pool that networks take their subnets from, CIDR; may be repeated
        #[arg(long)]
        default_addr_pool: Vec<String>,
        /// Prefix length of those subnets
        #[arg(long, default_value_t = 24)]
        default_addr_pool_mask_length: u8,
    },
    /// Join a cluster as a worker or a manager, as the token says
    Join {
        /// A manager, HOST[:PORT]
        remote: String,
        /// Token that admits the node
        #[arg(long)]
        token: String,
        #[command(flatten)]
        addresses: Addresses,
    },
    /// Show or rotate the token with which nodes join
    JoinToken {
        /// worker or manager
        role: String,
        /// Print only the token
        #[arg(short, long)]
        quiet: bool,
        /// Replace the token; the old one admits nobody from then on
        #[arg(long)]
        rotate: bool,
    },
    /// Leave the cluster
    Leave {
        /// Leave even where that ends the cluster
        #[arg(short, long)]
        force: bool,
    },
}

/// Runs the command.
pub async fn run(command: SwarmCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Init { addresses, default_addr_pool, default_addr_pool_mask_length } => {
            let request = json!({
                "ListenAddr": addresses.listen_addr, "AdvertiseAddr": addresses.advertise_addr,
                "DataPathAddr": addresses.data_path_addr, "Availability": addresses.availability, "Spec": {},
                "DefaultAddrPool": default_addr_pool, "SubnetSize": default_addr_pool_mask_length,
            });
            let answer = client.post("/swarm/init", &request).await?;
            let node: String = serde_json::from_slice(&answer).context("the daemon's answer is no node id")?;
            println!("Swarm initialized: current node ({node}) is now a manager.\n");
            print_join_command(client, "worker").await?;
            println!(
                "To add a manager to this swarm, run 'skep swarm join-token manager' and follow the instructions.\n"
            );
        }
        Action::Join { remote, token, addresses } => {
            let request = json!({
                "ListenAddr": addresses.listen_addr, "AdvertiseAddr": addresses.advertise_addr,
                "DataPathAddr": addresses.data_path_addr, "Availability": addresses.availability,
                "RemoteAddrs": [remote], "JoinToken": token,
            });
            client.post("/swarm/join", &request).await?;
            let info: Value = client.get("/info").await?;
            let role = if info["Swarm"]["ControlAvailable"] == true { "manager" } else { "worker" };
            println!("This node joined a swarm as a {role}.");
        }
        Action::JoinToken { role, quiet, rotate } => {
            let key = role_key(&role)?;
            if rotate {
                let swarm: Value = client.get("/swarm").await?;
                let path = format!("/swarm/update?version={}&rotate{key}Token=true", swarm["Version"]["Index"]);
                client.post(&path, &swarm["Spec"]).await?;
                if !quiet {
                    println!("Successfully rotated {role} join token.\n");
                }
            }
            if quiet {
                let swarm: Value = client.get("/swarm").await?;
                println!("{}", swarm["JoinTokens"][key].as_str().unwrap_or_default());
            } else {
                print_join_command(client, &role).await?;
            }
        }
        Action::Leave { force } => {
            client.post(&format!("/swarm/leave?force={force}"), &json!({})).await?;
            println!("Node left the swarm.");
        }
    }
    Ok(())
}

fn role_key(role: &str) -> anyhow::Result<&'static str> {
    match role {
        "worker" => Ok("Worker"),
        "manager" => Ok("Manager"),
        _ => anyhow::bail!("the role is worker or manager, not {role:?}"),
    }
}

async fn print_join_command(client: &Client, role: &str) -> anyhow::Result<()> {
    let swarm: Value = client.get("/swarm").await?;
    let info: Value = client.get("/info").await?;
    let node: Value = client.get(&format!("/nodes/{}", info["Swarm"]["NodeID"].as_str().unwrap_or_default())).await?;
    let token = swarm["JoinTokens"][role_key(role)?].as_str().context("the daemon gave no join token")?;
    let address = node["ManagerStatus"]["Addr"].as_str().context("this manager has no address yet")?;
    println!(
        "To add a {role} to this swarm, run the following command:\n\n    skep swarm join --token {token} {address}\n"
    );
    Ok(())
}
