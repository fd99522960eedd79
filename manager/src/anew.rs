//! Going on with what one manager has, without the others: `swarm init --force-new-cluster`, and a restored backup.

use std::path::Path;
use std::sync::Arc;

use skep_proto::model::node::ManagerMembership;
use skep_proto::model::{
    Annotations, Availability, Cluster, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, Timestamp,
};

use crate::manager::{Config, ManagerError};
use crate::raft::anew;
use crate::raft::disk::{Disk, Folder};
use crate::raft::keys::DataKeys;
use crate::raft::machine::Machine;
use crate::raft::seal::Sealer;
use crate::raft::types::Peer;
use crate::store::{Change, Entry, Group, Outcome, Replica, State};

/// Nodes may have seen entries of the lost group that are not in this state, and refuse a state that is older than what they
/// saw: the new one counts on from well beyond it.
const GAP: u64 = 1 << 20;

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
    write(config, disk, sealer, &mut replica, index, changes, now).await?;
    Ok(dropped)
}

/// A backup that was read and found whole.
pub struct Backup {
    replica: Replica,
    state: Arc<State>,
    cluster: Arc<Cluster>,
}

impl Backup {
    /// Reads what [`State::write_to`] wrote, and checks its digest.
    ///
    /// # Errors
    /// When it is damaged, or holds no cluster.
    pub fn read(mut bytes: &[u8]) -> std::io::Result<Self> {
        let (mut replica, store) = Replica::new();
        replica.restore(&mut bytes)?;
        let state = store.view();
        let cluster = state.cluster().cloned().ok_or_else(|| std::io::Error::other("it holds no cluster"))?;
        Ok(Self { replica, state, cluster })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Writes it into the empty folder of `config`, as the state of a cluster whose only manager is a new node. The
    /// records of the managers of then are removed.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub async fn write(mut self, config: &Config, now: Timestamp) -> Result<Vec<Dropped>, ManagerError> {
        let disk = Arc::new(open(&config.dir)?);
        let keys = DataKeys::open(&*disk, config.unlock.as_ref())?;
        let own = Node {
            id: config.node,
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations::default(),
                role: NodeRole::Manager,
                availability: Availability::Active,
            },
            index: 0,
            description: NodeDescription::default(),
            state: NodeState::Unknown,
            message: String::new(),
            address: Some(config.advertise.ip()),
            manager: Some(membership(config)),
        };
        let (others, dropped) = others(&self.state, config);
        let changes = [Change::create(&own)].into_iter().chain(others).collect();
        write(config, disk, Arc::new(keys.sealer()), &mut self.replica, self.state.index(), changes, now).await?;
        Ok(dropped)
    }
}

fn open(dir: &Path) -> Result<Folder, ManagerError> {
    Folder::open(dir).map_err(|source| ManagerError::Directory { dir: dir.to_owned(), source })
}

fn membership(config: &Config) -> ManagerMembership {
    ManagerMembership { raft_id: config.raft_id, address: config.advertise }
}

/// What makes this node, which has a record, the only manager.
fn changes(state: &State, config: &Config) -> Result<(Vec<Change>, Vec<Dropped>), ManagerError> {
    let own = state.nodes().get(config.node).filter(|_| state.cluster().is_some());
    let mut own = (**own.ok_or(ManagerError::NoState)?).clone();
    own.manager = Some(membership(config));
    own.spec.role = NodeRole::Manager;
    let (others, dropped) = others(state, config);
    Ok(([Change::update(&own)].into_iter().chain(others).collect(), dropped))
}

/// Removes the other managers.
fn others(state: &State, config: &Config) -> (Vec<Change>, Vec<Dropped>) {
    let is_manager = |node: &Node| node.spec.role == NodeRole::Manager || node.manager.is_some();
    let others = state.nodes().values().filter(|node| node.id != config.node && is_manager(node));
    others.map(|node| (Change::delete(&**node), (node.id, node.description.hostname.clone()))).unzip()
}

async fn write(
    config: &Config,
    disk: Arc<Folder>,
    sealer: Arc<Sealer>,
    replica: &mut Replica,
    index: u64,
    changes: Vec<Change>,
    now: Timestamp,
) -> Result<(), ManagerError> {
    let index = index + GAP;
    let entry = Entry { at_ms: now.0, proposer: config.node, groups: vec![Group::from(changes)] };
    let reply = replica.apply(index, &entry.encode()).map_err(|halt| ManagerError::Birth(halt.0))?;
    let outcomes: Vec<Outcome> = postcard::from_bytes(&reply).map_err(|e| ManagerError::Birth(e.to_string()))?;
    if let Some(Outcome::Refused(refusal)) = outcomes.into_iter().next() {
        return Err(ManagerError::Birth(refusal.to_string()));
    }
    let me = (config.raft_id, Peer { address: config.advertise.to_string(), node_id: config.node.to_string() });
    let cluster = config.cluster.0.to_be_bytes();
    let written = anew::found(disk, cluster, sealer, replica.snapshot(), index, me).await;
    written.map_err(|source| ManagerError::Directory { dir: config.dir.clone(), source })
}
