//! Makes the files of a manager of a backup: the only one of a cluster with the same ids, root, keys and tokens.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use rand::SeedableRng;
use skep_identity::Disk;
use skep_manager::anew::Backup;
use skep_manager::{Config, ca};

use super::node::now;
use super::swarm::addresses;
use super::swarm::saved::Saved;

/// Where the manager is made.
pub struct Target {
    /// The daemon's root.
    pub root: PathBuf,
    /// Where others reach it.
    pub advertise: SocketAddr,
}

/// Makes them. Returns what the operator should know.
///
/// # Errors
/// When the state is damaged, or the root belongs to a node already.
pub async fn run(state: &[u8], target: Target) -> anyhow::Result<String> {
    let Target { root, advertise } = target;
    let backup = Backup::read(state).context("the backup's state cannot be read")?;
    for used in ["raft", "ca/node.pem", "state/swarm.json"] {
        anyhow::ensure!(!root.join(used).exists(), "{} belongs to a node already: choose another root", root.display());
    }
    std::fs::create_dir_all(root.join("state")).with_context(|| format!("making {}", root.display()))?;
    let (cluster, at) = (backup.cluster(), now());
    let credentials = ca::first_manager(cluster, at, &mut rand::rngs::StdRng::from_os_rng())?;
    let identity = credentials.identity;
    let unlock = cluster.unlock.as_ref().and_then(|unlock| unlock.key.parse().ok());
    let locked =
        if unlock.is_some() { " It is locked: `skep swarm unlock` with the cluster's unlock key." } else { "" };
    let raft_id = 1;
    let dir = root.join("raft");
    let config = Config { node: identity.node, cluster: identity.cluster, raft_id, dir, advertise, unlock };
    let dropped = backup.write(&config, at).await?;
    Disk::new(root.join("ca")).save(&credentials)?;
    let any = addresses::reached_by(SocketAddr::from(([0, 0, 0, 0], advertise.port())), advertise.ip());
    // Last: with it the root belongs to a node.
    Saved::new(any, advertise, advertise.ip(), Some(raft_id), vec![advertise]).save(&root)?;
    let names: Vec<String> = dropped.iter().map(|(node, name)| format!("{name} ({node})")).collect();
    Ok(format!(
        "Restored cluster {} with node {} as its only manager.{locked}\nFormer managers, which have to leave with --force and join again: {}.",
        identity.cluster,
        identity.node,
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    ))
}
