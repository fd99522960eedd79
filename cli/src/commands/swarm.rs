//! `skep swarm`: making, joining and leaving a cluster.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::swarm_settings::SwarmSettings;
use super::text;
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
        /// UDP port of the data path (1024 - 49151); 0 for 4789
        #[arg(long, default_value_t = 0)]
        data_path_port: u32,
        /// Go on as the only manager, with what this one has; the others are dropped
        #[arg(long)]
        force_new_cluster: bool,
        /// Managers need an unlock key when they start again
        #[arg(long)]
        autolock: bool,
        #[command(flatten)]
        settings: SwarmSettings,
    },
    /// Change the cluster's settings
    Update {
        /// Managers need an unlock key when they start again: true or false
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        autolock: Option<bool>,
        #[command(flatten)]
        settings: SwarmSettings,
    },
    /// Unlock a manager that was started again; the key is read from the terminal or the standard input
    Unlock,
    /// Show or rotate the key that unlocks managers
    UnlockKey {
        /// Print only the key
        #[arg(short, long)]
        quiet: bool,
        /// Replace the key
        #[arg(long)]
        rotate: bool,
    },
    /// Show or rotate the certificate of the cluster's root
    Ca {
        /// Replace the root by a new one
        #[arg(long)]
        rotate: bool,
        /// Do not wait until every node has followed
        #[arg(short, long, requires = "rotate")]
        detach: bool,
        /// Do not tell of the progress
        #[arg(short, long, requires = "rotate")]
        quiet: bool,
        /// Life of node certificates from now on (ns|us|ms|s|m|h)
        #[arg(long, requires = "rotate", value_parser = super::swarm_settings::duration)]
        cert_expiry: Option<Duration>,
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
        Action::Init {
            addresses,
            default_addr_pool,
            default_addr_pool_mask_length,
            data_path_port,
            force_new_cluster,
            autolock,
            settings,
        } => {
            let mut spec = json!({"EncryptionConfig": {"AutoLockManagers": autolock}});
            settings.put_into(&mut spec)?;
            if force_new_cluster {
                print_dropped(client).await?;
            }
            let request = json!({
                "ListenAddr": addresses.listen_addr, "AdvertiseAddr": addresses.advertise_addr,
                "DataPathAddr": addresses.data_path_addr, "Availability": addresses.availability, "Spec": spec,
                "DataPathPort": data_path_port, "ForceNewCluster": force_new_cluster, "AutoLockManagers": autolock,
                "DefaultAddrPool": default_addr_pool, "SubnetSize": default_addr_pool_mask_length,
            });
            let answer = client.post("/swarm/init", &request).await?;
            let node: String = serde_json::from_slice(&answer).context("the daemon's answer is no node id")?;
            println!("Swarm initialized: current node ({node}) is now a manager.\n");
            print_join_command(client, "worker").await?;
            println!(
                "To add a manager to this swarm, run 'skep swarm join-token manager' and follow the instructions.\n"
            );
            if autolock {
                print_unlock_key(client, false).await?;
            }
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
        Action::Update { autolock, settings } => update(client, autolock, &settings).await?,
        Action::Unlock => unlock(client).await?,
        Action::UnlockKey { quiet, rotate } => unlock_key(client, quiet, rotate).await?,
        Action::Ca { rotate, detach, quiet, cert_expiry } => {
            if rotate {
                rotate_root(client, cert_expiry, detach, quiet).await?;
            }
            if !detach {
                let swarm: Value = client.get("/swarm").await?;
                let root = swarm["TLSInfo"]["TrustRoot"].as_str().filter(|root| !root.is_empty());
                println!("{}", root.context("No CA information available")?.trim_end());
            }
        }
        Action::Leave { force } => {
            client.post(&format!("/swarm/leave?force={force}"), &json!({})).await?;
            println!("Node left the swarm.");
        }
    }
    Ok(())
}

/// Changes settings.
async fn update(client: &Client, autolock: Option<bool>, settings: &SwarmSettings) -> anyhow::Result<()> {
    let swarm: Value = client.get("/swarm").await?;
    let mut spec = swarm["Spec"].clone();
    let was_locked = spec["EncryptionConfig"]["AutoLockManagers"] == true;
    if let Some(autolock) = autolock {
        spec["EncryptionConfig"]["AutoLockManagers"] = json!(autolock);
    }
    settings.put_into(&mut spec)?;
    anyhow::ensure!(spec != swarm["Spec"], "nothing to change: name a setting (see skep swarm update --help)");
    client.post(&format!("/swarm/update?version={}", swarm["Version"]["Index"]), &spec).await?;
    println!("Swarm updated.");
    if autolock == Some(true) && !was_locked {
        print_unlock_key(client, false).await?;
    }
    Ok(())
}

/// Unlocks this manager.
async fn unlock(client: &Client) -> anyhow::Result<()> {
    let info: Value = client.get("/info").await?;
    match info["Swarm"]["LocalNodeState"].as_str() {
        Some("inactive") => anyhow::bail!("this node is not part of a swarm"),
        Some("locked") => {}
        _ => anyhow::bail!("swarm is not locked"),
    }
    client.post("/swarm/unlock", &json!({"UnlockKey": read_key()?})).await?;
    Ok(())
}

/// Shows the unlock key, a new one when `rotate`.
async fn unlock_key(client: &Client, quiet: bool, rotate: bool) -> anyhow::Result<()> {
    if rotate {
        let swarm: Value = client.get("/swarm").await?;
        let is_locked = swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] == true;
        anyhow::ensure!(is_locked, "cannot rotate because autolock is not turned on");
        let path = format!("/swarm/update?version={}&rotateManagerUnlockKey=true", swarm["Version"]["Index"]);
        client.post(&path, &swarm["Spec"]).await?;
        if !quiet {
            println!("Successfully rotated manager unlock key.\n");
        }
    }
    print_unlock_key(client, quiet).await
}

/// Says who is dropped by `--force-new-cluster`.
async fn print_dropped(client: &Client) -> anyhow::Result<()> {
    let info: Value = client.get("/info").await?;
    let own = &info["Swarm"]["NodeID"];
    for manager in info["Swarm"]["RemoteManagers"].as_array().into_iter().flatten().filter(|m| m["NodeID"] != *own) {
        println!(
            "Dropping manager {} at {}: have it leave with --force, and join again.",
            text(&manager["NodeID"]),
            text(&manager["Addr"])
        );
    }
    Ok(())
}

/// Asks for a new root, and waits until every node trusts it alone and has a certificate of it.
async fn rotate_root(client: &Client, expiry: Option<Duration>, detach: bool, quiet: bool) -> anyhow::Result<()> {
    let swarm: Value = client.get("/swarm").await?;
    let mut spec = swarm["Spec"].clone();
    spec["CAConfig"]["ForceRotate"] = json!(spec["CAConfig"]["ForceRotate"].as_u64().unwrap_or_default() + 1);
    if let Some(expiry) = expiry {
        spec["CAConfig"]["NodeCertExpiry"] = json!(u64::try_from(expiry.as_nanos())?);
    }
    client.post(&format!("/swarm/update?version={}", swarm["Version"]["Index"]), &spec).await?;
    let mut told = String::new();
    if detach {
        return Ok(());
    }
    loop {
        let swarm: Value = client.get("/swarm").await?;
        let nodes: Vec<Value> = client.get("/nodes").await?;
        let same = |node: &Value, key: &str| node["Description"]["TLSInfo"][key] == swarm["TLSInfo"][key];
        let signed = nodes.iter().filter(|node| same(node, "CertIssuerPublicKey")).count();
        let trusting = nodes.iter().filter(|node| same(node, "TrustRoot")).count();
        let is_over = swarm["RootRotationInProgress"] == false;
        let trusting = if is_over { trusting } else { 0 };
        let text =
            format!("{signed}/{0} nodes have new certificates, {trusting}/{0} trust the new root alone", nodes.len());
        if !quiet && text != told {
            eprintln!("{text}");
            told = text;
        }
        if is_over && signed == nodes.len() && trusting == nodes.len() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The unlock key, from the terminal or the standard input.
fn read_key() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        eprint!("Enter unlock key: ");
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("reading the unlock key")?;
    Ok(line.trim().to_owned())
}

async fn print_unlock_key(client: &Client, quiet: bool) -> anyhow::Result<()> {
    let answer: Value = client.get("/swarm/unlockkey").await?;
    let key = answer["UnlockKey"].as_str().filter(|key| !key.is_empty()).context("no unlock key is set")?;
    if quiet {
        println!("{key}");
        return Ok(());
    }
    println!(
        "To unlock a swarm manager after it restarts, run the `skep swarm unlock`\ncommand and provide the following key:\n\n    \
         {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able to restart the manager."
    );
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
