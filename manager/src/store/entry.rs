//! What the Raft log carries: entries of groups of changes, and what becomes of each group.
//!
//! The encoding is a format byte and postcard. Postcard does not describe itself, so **variants of [`Change`] are only
//! ever appended and never altered**; whole objects travel as protobuf inside [`Change::Put`], because they grow with
//! every release. An entry that this build cannot read stops the node: skipping it would let replicas diverge.

use std::net::{IpAddr, Ipv6Addr};

use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skep_proto::model::{NodeId, TaskId, TaskState};

use super::refs::{NetworkRef, NodeRef, ServiceRef, TaskRef};
use super::row::{Attached, HostPort};
use super::table::{Object, RawId};

/// The newest entry format of this build.
pub const FORMAT: u8 = 1;

/// Bytes that an encoded entry should stay below: a proposer starts the next one here.
pub const MAX_ENTRY_BYTES: usize = 256 * 1024;

/// Changes that an entry should hold at most.
pub const MAX_ENTRY_CHANGES: usize = 500;

/// A bounded batch of changes: the unit of replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Proposer's clock, milliseconds since the epoch. `apply` never lets time go back.
    pub at_ms: u64,
    /// The manager that proposed it; all zero before the first node exists.
    pub proposer: NodeId,
    /// Applied in this order, each as a whole or not at all.
    pub groups: Vec<Group>,
}

/// Changes that are applied together or refused together. A refused group does not spoil its entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Group {
    /// Names a request of a client: proposed again within ten minutes, it is answered, not repeated.
    pub request: Option<u128>,
    /// Applied in this order.
    pub changes: Vec<Change>,
}

impl Group {
    /// A group of one change.
    pub fn of(change: Change) -> Self {
        Self { request: None, changes: vec![change] }
    }
}

impl From<Vec<Change>> for Group {
    fn from(changes: Vec<Change>) -> Self {
        Self { request: None, changes }
    }
}

/// Name of the routing mesh that every cluster has from the beginning.
pub const INGRESS: &str = "ingress";

/// Kinds of whole objects. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The cluster's own record.
    Cluster,
    /// A node.
    Node,
    /// A service.
    Service,
    /// A network.
    Network,
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl Kind {
    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Service => "service",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// One change of the state. Append only; see the module's docs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Makes a task of a service.
    CreateTask {
        /// Its id, drawn by the proposer.
        id: TaskId,
        /// Its service.
        service: ServiceRef,
        /// The service's spec it is made from: the current one or the previous one.
        spec_version: u64,
        /// Slot from 1; 0 for a task of a global service.
        slot: u32,
        /// The node of a task of a global service; `None` leaves the choice to the scheduler.
        node: Option<NodeRef>,
        /// Ready or running.
        desired: TaskState,
        /// With desired ready: when it becomes running; 0 for "not by time".
        start_ms: u64,
        /// Restarts that count against the policy's limit, oldest first.
        restarts: Vec<u64>,
        /// The newest task of its place that the proposer saw. Refused when there is a newer one.
        after: Option<TaskRef>,
    },
    /// Gives a new task its addresses: new becomes pending.
    Allocate {
        /// The task.
        task: TaskRef,
        /// Its version as read.
        if_version: u64,
        /// Addresses with prefix length, by network, in the order of the spec.
        addresses: Vec<(NetworkRef, Vec<IpNet>)>,
    },
    /// Gives a pending task its node. Refused when it no longer fits there.
    Assign {
        /// The task.
        task: TaskRef,
        /// Its version as read.
        if_version: u64,
        /// The node.
        node: NodeRef,
    },
    /// An observed state without text. Only forward: a late one is dropped, not refused.
    Status {
        /// The task.
        task: TaskRef,
        /// The state.
        state: TaskState,
        /// When, by the node's clock.
        at_ms: u64,
        /// Exit code, when it ended.
        exit: Option<i32>,
    },
    /// An observed state with text or ports. Only forward.
    Report {
        /// The task.
        task: TaskRef,
        /// The state.
        state: TaskState,
        /// When, by the node's clock.
        at_ms: u64,
        /// Exit code, when it ended.
        exit: Option<i32>,
        /// What is going on; empty for the usual text.
        message: String,
        /// What went wrong.
        error: String,
        /// Ports taken on the node.
        host_ports: Vec<HostPort>,
    },
    /// Changes what is wanted of a task. Only forward.
    Desire {
        /// The task.
        task: TaskRef,
        /// Its version as read.
        if_version: u64,
        /// Running, shutdown or remove.
        to: TaskState,
    },
    /// Forgets a dead task.
    DeleteTask {
        /// The task.
        task: TaskRef,
        /// Its version as read.
        if_version: u64,
    },
    /// Why tasks wait: shown as the error of every pending task of that spec. Empty text clears it.
    Explain {
        /// The service.
        service: ServiceRef,
        /// Its `spec_version`.
        spec_version: u64,
        /// For people.
        text: String,
    },
    /// Why this one task waits (a task bound to a node). Empty text clears it.
    ExplainTask {
        /// The task.
        task: TaskRef,
        /// Its version as read.
        if_version: u64,
        /// For people.
        text: String,
    },
    /// Makes or changes a whole object. `apply` sets version, times, `spec_version` and a new node's `index`.
    Put {
        /// Its kind.
        kind: Kind,
        /// Its id.
        id: u128,
        /// Version as read; 0 to make a new one.
        if_version: u64,
        /// The object, in protobuf.
        #[serde(with = "raw_bytes")]
        bytes: Bytes,
    },
    /// Removes a whole object.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its id.
        id: u128,
        /// Version as read; 0 for "whatever it is".
        if_version: u64,
    },
    /// Where a task is reached on its node's task bridge. Ignored once the task has ended.
    Mesh {
        /// The task.
        task: TaskRef,
        /// The address.
        address: Option<IpAddr>,
    },
    /// Makes a task without a service, which stands for a plain container on a network. The allocator gives it its
    /// address, and with that it runs: there is nothing to schedule and nothing to start.
    Attach {
        /// Its id, drawn by the proposer.
        id: TaskId,
        /// The container's node.
        node: NodeRef,
        /// Network, container, names.
        attached: Attached,
    },
    /// Gives a place of a plain container other names: the container was renamed. Ignored once the place is gone.
    RenameAttached {
        /// The place.
        task: TaskRef,
        /// The container's name.
        name: String,
        /// Further names.
        aliases: Vec<String>,
    },
    /// As [`Change::Attach`], for a container that asks for an IPv6 address. Refused as a whole or made as a whole.
    AttachAt {
        /// Its id, drawn by the proposer.
        id: TaskId,
        /// The container's node.
        node: NodeRef,
        /// Network, container, names, and the IPv4 address asked for.
        attached: Attached,
        /// The IPv6 address asked for.
        address6: Ipv6Addr,
    },
}

impl Change {
    /// Makes a new object.
    pub fn create<T: Object>(object: &T) -> Self {
        let RawId(id) = object.id().into();
        Self::Put { kind: T::KIND, id, if_version: 0, bytes: object.encode() }
    }

    /// Changes an object; refused when it is no longer at the version that `object` was read at.
    pub fn update<T: Object>(object: &T) -> Self {
        let RawId(id) = object.id().into();
        Self::Put { kind: T::KIND, id, if_version: object.meta().version.0, bytes: object.encode() }
    }

    /// Removes an object; refused when it is no longer at the version that `object` was read at.
    pub fn delete<T: Object>(object: &T) -> Self {
        let RawId(id) = object.id().into();
        Self::Delete { kind: T::KIND, id, if_version: object.meta().version.0 }
    }
}

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every change was made.
    Applied {
        /// The entry's index: the version of all that the group changed.
        version: u64,
        /// The tasks made, in order.
        created: Vec<TaskRef>,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a group was refused: all that a face needs to word Docker's error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Another object of the kind has the name.
    #[error("{} {name} already exists", kind.as_str())]
    NameConflict {
        /// The kind.
        kind: Kind,
        /// The name.
        name: String,
        /// Who has it.
        id: u128,
    },
    /// An object of that id exists.
    #[error("a {} with this id already exists", kind.as_str())]
    Exists {
        /// The kind.
        kind: Kind,
        /// The id.
        id: u128,
    },
    /// The object changed since it was read.
    #[error("update out of sequence: the {} is at version {current}, the request names {given}", kind.as_str())]
    OutOfSequence {
        /// The kind.
        kind: Kind,
        /// The object.
        id: u128,
        /// Its version.
        current: u64,
        /// The version that the request read.
        given: u64,
    },
    /// No such object.
    #[error("{} {} not found", kind.as_str(), skep_proto::model::ServiceId(*id))]
    NotFound {
        /// The kind.
        kind: Kind,
        /// The id.
        id: u128,
    },
    /// The object is referred to.
    #[error("{} {name} is in use by {}", kind.as_str(), by.join(", "))]
    InUse {
        /// The kind.
        kind: Kind,
        /// The object's name.
        name: String,
        /// Names of services, or ids of tasks, that use it.
        by: Vec<String>,
    },
    /// A published port belongs to another service.
    #[error("port '{port}' is already in use by service '{service}' ({}) as {}",
        skep_proto::model::ServiceId(*id), if *ingress { "an ingress port" } else { "a host-published port" })]
    PortInUse {
        /// The port.
        port: u16,
        /// Name of the service that has it.
        service: String,
        /// Id of that service.
        id: u128,
        /// Whether it has it in the routing mesh, or on the nodes of its tasks.
        ingress: bool,
    },
    /// An address belongs to another task or service.
    #[error("address {address} of network {network} is in use")]
    AddressInUse {
        /// The network's name.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// A subnet overlaps another network's.
    #[error("subnet {subnet} overlaps {with} of network {network}")]
    SubnetOverlap {
        /// The subnet given.
        subnet: IpNet,
        /// The subnet in use.
        with: IpNet,
        /// Its network's name.
        network: String,
    },
    /// Another network has this VXLAN identifier.
    #[error("VXLAN identifier {vni} is in use by network {network}")]
    VniInUse {
        /// The identifier.
        vni: u32,
        /// Its network's name.
        network: String,
    },
    /// The task is gone.
    #[error("the task is gone")]
    TaskGone,
    /// The task changed since it was read, or is not in a state that allows the change.
    #[error("the task changed since it was read (version {current})")]
    TaskChanged {
        /// Its version.
        current: u64,
    },
    /// Another task was made in this place since it was read.
    #[error("a newer task exists in slot {slot}")]
    SlotTaken {
        /// The slot; 0 for a global service.
        slot: u32,
    },
    /// The service, or the spec version, that a task names is not there.
    #[error("the service has no such spec any more")]
    SpecGone,
    /// The node cannot take the task.
    #[error("the node cannot take the task: {reason}")]
    NodeRefuses {
        /// Why.
        reason: NodeReason,
    },
    /// The change contradicts itself or the object; a defect of the proposer.
    #[error("the change is not valid: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// The only manager cannot be demoted (swarmkit's words).
    #[error("attempting to demote the last manager of the swarm")]
    LastManager,
    /// A port is to be published in the routing mesh, which was removed (swarmkit's words).
    #[error("service needs ingress network, but no ingress network is present")]
    NoIngress,
}

/// Why a node cannot take a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NodeReason {
    /// It left.
    #[error("it is gone")]
    Gone,
    /// It is not ready, or not active.
    #[error("it is not available")]
    Unavailable,
    /// CPU, memory or a generic resource is used up.
    #[error("insufficient resources")]
    Resources,
    /// A port that the task publishes on the host is taken.
    #[error("host-mode port already in use")]
    HostPort,
}

/// An entry cannot be read. The node must stop: its software is older than the cluster's format.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The entry is empty.
    #[error("the log entry is empty")]
    Empty,
    /// Written by a newer release.
    #[error("the log entry has format {found}, this release reads up to {FORMAT}: upgrade this manager")]
    Format {
        /// The entry's format.
        found: u8,
    },
    /// Not what the format says.
    #[error("the log entry cannot be decoded")]
    Malformed(#[from] postcard::Error),
}

impl Entry {
    /// The entry as the log carries it.
    pub fn encode(&self) -> Bytes {
        let out = vec![FORMAT];
        postcard::to_extend(self, out).expect("writing to memory cannot fail and every type has a known length").into()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// When it has another format or is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match bytes.split_first() {
            None => Err(DecodeError::Empty),
            Some((&FORMAT, rest)) => Ok(postcard::from_bytes(rest)?),
            Some((&found, _)) => Err(DecodeError::Format { found }),
        }
    }
}

/// `Bytes` as one run of bytes: the crate's own serde support is a feature that nobody else here needs.
mod raw_bytes {
    use std::fmt;

    use bytes::Bytes;
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Raw;
        impl Visitor<'_> for Raw {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Raw)
    }
}
