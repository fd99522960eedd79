//! Going on with what one manager has, without the others: `swarm init --force-new-cluster`, and a restored backup.

use std::path::Path;
use std::sync::Arc;

use skep_proto::model::node::ManagerMembership;
use skep_proto::model::{NodeId, NodeRole, Timestamp};

use crate::manager::{Config, ManagerError};
use crate::raft::anew;
use crate::raft::disk::{Disk, Folder};
use crate::raft::keys::DataKeys;
use crate::raft::machine::Machine;
use crate::raft::types::Peer;
use crate::store::{Change, Entry, Group, Replica, State, Store};

/// A manager that is dropped: its id and host name.
pub type Dropped = (NodeId, String);

/// Writes into the empty folder `to` what the folder of `config` holds, as the state of a cluster whose only manager is
/// this one. The records of the other managers are removed, which also has their certificates refused. The manager must not
/// run; the caller puts the new folder in the place of the old.
///
/// # Errors
/// When the folder cannot be read or written, or holds no cluster that this node manages.
pub async fn begin_anew(config: &Config, to: &Path, now: Timestamp) -> Result<Vec<Dropped>, ManagerError> {
    let from: Arc<dyn Disk> = Arc::new(open(&config.dir)?);
    let keys = DataKeys::open(&*from, config.unlock.as_ref())?;
    let (mut replica, store) = Replica::new();
    let sealer = Arc::new(keys.sealer());
    let index = anew::read_last(&from, config.cluster.0.to_be_bytes(), &sealer, &mut replica)?;
    replica.publish();
    let disk = Arc::new(open(to)?);
    keys.save(&*disk, config.unlock.as_ref())?;
    let (changes, dropped) = changes(&store.view(), config)?;
    write(config, disk, sealer, (&mut replica, &store), index, changes, now).await?;
    Ok(dropped)
}

fn open(dir: &Path) -> Result<Folder, ManagerError> {
    Folder::open(dir).map_err(|source| ManagerError::Directory { dir: dir.to_owned(), source })
}

/// What makes this node the only manager.
fn changes(state: &State, config: &Config) -> Result<(Vec<Change>, Vec<Dropped>), ManagerError> {
    let own = state.nodes().get(config.node).filter(|_| state.cluster().is_some());
    let mut own = (**own.ok_or(ManagerError::NoState)?).clone();
    own.manager = Some(ManagerMembership { raft_id: config.raft_id, address: config.advertise });
    own.spec.role = NodeRole::Manager;
    let is_manager = |role, membership: &Option<ManagerMembership>| role == NodeRole::Manager || membership.is_some();
    let others = state.nodes().values().filter(|n| n.id != config.node && is_manager(n.spec.role, &n.manager));
    let others: Vec<_> = others.collect();
    let dropped = others.iter().map(|node| (node.id, node.description.hostname.clone())).collect();
    let deletes = others.iter().map(|node| Change::delete(&***node));
    Ok(([Change::update(&own)].into_iter().chain(deletes).collect(), dropped))
}

async fn write(
    config: &Config,
    disk: Arc<Folder>,
    sealer: Arc<crate::raft::seal::Sealer>,
    (replica, store): (&mut Replica, &Store),
    index: u64,
    changes: Vec<Change>,
    now: Timestamp,
) -> Result<(), ManagerError> {
    let entry = Entry { at_ms: now.0, proposer: config.node, groups: vec![Group::from(changes)] };
    replica.apply(index + 1, &entry.encode()).map_err(|halt| ManagerError::Birth(halt.0))?;
    replica.publish();
    let is_alone = store.view().nodes().values().filter(|n| n.manager.is_some()).count() == 1;
    if !is_alone {
        return Err(ManagerError::Birth("the other managers could not be removed from the state".into()));
    }
    let me = (config.raft_id, Peer { address: config.advertise.to_string(), node_id: config.node.to_string() });
    let cluster = config.cluster.0.to_be_bytes();
    let written = anew::found(disk, cluster, sealer, replica.snapshot(), index + 1, me).await;
    written.map_err(|source| ManagerError::Directory { dir: config.dir.clone(), source })
}
