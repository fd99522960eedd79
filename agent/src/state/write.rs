//! Changes to the file.

use bytes::Bytes;
use redb::{Database, ReadableTable};
use skep_proto::convert::{WireForm, encode};
use skep_proto::model::session::{AssignedSpec, AssignedTask, ManagerPeer, SpecKey, StatusReport};
use skep_proto::model::view::{EndpointView, OverlayNetwork, Peer, ServiceView};
use skep_proto::model::{TaskId, TaskState};

use super::Rows;

/// A table of the file. Keys are ids; [`Table::Meta`] has words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Numbers: format, last index.
    Meta,
    /// Managers.
    Managers,
    /// Assigned tasks, with a byte in front: 1 when they are only kept until they are gone.
    Tasks,
    /// Specs that they refer to.
    Specs,
    /// Statuses that the managers do not have yet, with their state's rank in front.
    Statuses,
    /// Nodes.
    Peers,
    /// Networks.
    Networks,
    /// Services.
    Services,
    /// Tasks that get traffic.
    Endpoints,
}

impl Table {
    pub(super) fn rows(self) -> Rows {
        Rows::new(match self {
            Self::Meta => "meta",
            Self::Managers => "managers",
            Self::Tasks => "tasks",
            Self::Specs => "specs",
            Self::Statuses => "statuses",
            Self::Peers => "peers",
            Self::Networks => "networks",
            Self::Services => "services",
            Self::Endpoints => "endpoints",
        })
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a row.
    Put {
        /// Where.
        table: Table,
        /// Its key.
        key: Vec<u8>,
        /// Its content.
        value: Bytes,
    },
    /// Removes a row.
    Delete {
        /// Where.
        table: Table,
        /// Its key.
        key: Vec<u8>,
    },
    /// Removes all rows.
    Clear(Table),
    /// Removes a status that is not newer than the managers' knowledge. A newer one may have been written meanwhile.
    ForgetStatus {
        /// The task.
        task: TaskId,
        /// What they know.
        up_to: TaskState,
    },
}

impl Write {
    /// Sets a number.
    pub fn number(key: &str, value: u64) -> Self {
        Self::Put { table: Table::Meta, key: key.into(), value: Bytes::copy_from_slice(&value.to_be_bytes()) }
    }

    /// Keeps a status until the managers have it.
    pub fn status(report: &StatusReport) -> Self {
        let value = with_byte(rank(report.status.state), report);
        Self::Put { table: Table::Statuses, key: id(report.task.0), value }
    }

    /// Keeps a task; `gone`: until nothing of it is left.
    pub fn task(task: &AssignedTask, gone: bool) -> Self {
        Self::Put { table: Table::Tasks, key: id(task.id.0), value: with_byte(u8::from(gone), task) }
    }

    /// Keeps a spec.
    pub fn spec(spec: &AssignedSpec) -> Self {
        Self::Put { table: Table::Specs, key: spec_key(spec.key), value: encode(spec) }
    }

    /// Keeps a manager.
    pub fn manager(manager: &ManagerPeer) -> Self {
        Self::Put { table: Table::Managers, key: id(manager.node.0), value: encode(manager) }
    }

    /// Keeps a node.
    pub fn peer(peer: &Peer) -> Self {
        Self::Put { table: Table::Peers, key: id(peer.node.0), value: encode(peer) }
    }

    /// Keeps a network.
    pub fn network(network: &OverlayNetwork) -> Self {
        Self::Put { table: Table::Networks, key: id(network.id.0), value: encode(network) }
    }

    /// Keeps a service.
    pub fn service(service: &ServiceView) -> Self {
        Self::Put { table: Table::Services, key: id(service.id.0), value: encode(service) }
    }

    /// Keeps a task that gets traffic.
    pub fn endpoint(endpoint: &EndpointView) -> Self {
        Self::Put { table: Table::Endpoints, key: id(endpoint.task.0), value: encode(endpoint) }
    }

    /// Removes the row of an id.
    pub fn delete(table: Table, key: u128) -> Self {
        Self::Delete { table, key: id(key) }
    }

    /// Removes a spec.
    pub fn delete_spec(key: SpecKey) -> Self {
        Self::Delete { table: Table::Specs, key: spec_key(key) }
    }
}

fn id(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

fn spec_key(key: SpecKey) -> Vec<u8> {
    [&key.service.0.to_be_bytes()[..], &key.version.to_be_bytes()].concat()
}

fn with_byte<T: WireForm>(byte: u8, value: &T) -> Bytes {
    [&[byte][..], &encode(value)].concat().into()
}

/// Position of a state in the order of states; on disk, so it never changes.
fn rank(state: TaskState) -> u8 {
    TaskState::ALL.iter().position(|other| *other == state).and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
}

/// Applies `writes` in order, all or nothing.
pub(super) fn commit(database: &Database, writes: &[Write]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for write in writes {
        match write {
            Write::Put { table, key, value } => {
                transaction.open_table(table.rows())?.insert(&key[..], &value[..])?;
            }
            Write::Delete { table, key } => {
                transaction.open_table(table.rows())?.remove(&key[..])?;
            }
            Write::Clear(table) => {
                transaction.delete_table(table.rows())?;
            }
            Write::ForgetStatus { task, up_to } => {
                let mut rows = transaction.open_table(Table::Statuses.rows())?;
                let key = id(task.0);
                let known =
                    rows.get(&key[..])?.is_some_and(|row| row.value().first().is_none_or(|r| *r <= rank(*up_to)));
                if known {
                    rows.remove(&key[..])?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
