//! Messages between an agent and the managers, independent of their transport.
//!
//! The agent opens the session and says [`AgentMessage::Hello`]; the manager answers [`ManagerMessage::Welcome`] and then
//! sends what the node should have as [`Assignments`]. Statuses and heartbeats go the other way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::secret::SecretData;
use super::service::PortConfig;
use super::task::NetworkAttachment;
use super::view::{EndpointView, OverlayNetwork, Peer, ServiceView};
use super::{
    ConfigId, ContainerId, Labels, NetworkId, NodeDescription, NodeId, NodeRole, SecretId, ServiceId, TaskId, TaskSpec,
    TaskState, TaskStatus,
};

/// From the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    /// First message of a session.
    Hello(Hello),
    /// The node lives. Sent every [`Welcome::heartbeat`].
    Heartbeat,
    /// States that changed, only the last of each task.
    Statuses(Vec<StatusReport>),
    /// The node's description changed.
    Describe(NodeDescription),
    /// The node leaves the cluster of its own will: its tasks may be replaced at once.
    Leaving,
    /// The node's network is as the first so many sets of assignments of this session say, or later ones.
    Applied {
        /// Number of sets, counted from the session's begin.
        sets: u64,
    },
}

/// First message of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// What the node tells of itself.
    pub description: NodeDescription,
    /// The last assignment index that the agent holds durably; a manager that is behind it must not serve this agent.
    pub last_index: u64,
}

/// A task's observed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusReport {
    /// The task.
    pub task: TaskId,
    /// Goes through Raft.
    pub status: TaskStatus,
    /// Stays with the manager that holds the session.
    pub vitals: TaskVitals,
    /// Address on the node's task bridge, for the routing mesh.
    pub mesh: Option<IpAddr>,
    /// It runs and wants no new connections now: a readiness probe fails. Stays with the manager that holds the session.
    pub unready: bool,
}

/// The volatile part of what is observed of a task. It never enters Raft.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskVitals {
    /// Pid of the first container's init, in the node's pid namespace; 0 when it has none.
    pub pid: u32,
    /// The first container.
    pub container: Option<ContainerId>,
    /// Last health output, cut to 4 KiB.
    pub health: String,
}

/// From a manager.
#[derive(Debug, Clone, PartialEq)]
pub enum ManagerMessage {
    /// Answer to the hello.
    Welcome(Welcome),
    /// What the node should have.
    Assignments(Assignments),
    /// The managers of the cluster, for reconnecting. Sent first after the welcome and on every change.
    Managers(Vec<ManagerPeer>),
    /// Open a stream to that manager.
    OpenStream(OpenStream),
    /// Role or certificate changed: fetch a new certificate. The agent's process tells the rest of the daemon.
    RenewCertificate {
        /// Role that the new certificate will carry.
        role: NodeRole,
    },
    /// Go to another manager: this one lost its leadership or stops.
    Redirect {
        /// Where, when known.
        to: Option<SocketAddr>,
    },
    /// The other nodes know the public key that this node announced as its next: it may use it.
    KeyKnown {
        /// The key.
        key: [u8; 32],
    },
}

/// Answer to the hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Names the session; a newer session of the same node ends this one.
    pub session: u64,
    /// Heartbeats are expected this often.
    pub heartbeat: Duration,
    /// The node's central index.
    pub index: u16,
    /// UDP port of VXLAN and, later, of its encryption.
    pub data_path_port: u16,
    /// The operator removed the routing mesh, and made no other.
    pub mesh_removed: bool,
}

/// A manager as agents know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerPeer {
    /// The node.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A step, or a whole new set, of what a node should have.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignments {
    /// Raft index that the sender had applied. An agent never accepts a lower one than it has seen.
    pub index: u64,
    /// This is everything: what it does not name is to be removed.
    pub complete: bool,
    /// Values put or removed.
    pub changes: Vec<AssignmentChange>,
}

/// One value put or removed.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentChange {
    /// A spec that assigned tasks refer to; sent before them, once per session.
    PutSpec(Arc<AssignedSpec>),
    /// A task, new or changed.
    PutTask(AssignedTask),
    /// A task that this node shall forget once it has stopped it.
    RemoveTask(TaskId),
    /// A node of the cluster.
    PutPeer(Peer),
    /// A node that left.
    RemovePeer(NodeId),
    /// A network that tasks of this node use.
    PutNetwork(OverlayNetwork),
    /// A network that they no longer use.
    RemoveNetwork(NetworkId),
    /// A service that this node must resolve or publish.
    PutService(ServiceView),
    /// A service that it need not know any more.
    RemoveService(ServiceId),
    /// A task that gets traffic.
    PutEndpoint(EndpointView),
    /// A task that no longer gets traffic.
    RemoveEndpoint(TaskId),
    /// A secret or config that live tasks of this node use. It is not kept on disk.
    PutFile(AssignedFile),
    /// One that they use no longer.
    RemoveFile(FileId),
}

/// A secret or a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
}

/// A secret or config as a node gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedFile {
    /// Which.
    pub id: FileId,
    /// What is in it; `None` when tasks refer to one that is not there any more.
    pub content: Option<FileContent>,
}

/// What is in a secret or config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// As the operator gave it.
    pub data: SecretData,
    /// The data is a template of the `golang` driver, which the node expands for each task.
    pub template: bool,
}

/// Names a spec: the service and its `spec_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecKey {
    /// The service.
    pub service: ServiceId,
    /// Its `spec_version`.
    pub version: u64,
}

/// A spec with what tasks made from it need of their service.
#[derive(Debug, Clone, PartialEq)]
pub struct AssignedSpec {
    /// Its name.
    pub key: SpecKey,
    /// The service's name.
    pub service_name: String,
    /// The service's labels.
    pub service_labels: Labels,
    /// What tasks are made from.
    pub task: TaskSpec,
    /// The service's resolved ports.
    pub ports: Vec<PortConfig>,
}

/// A task given to a node.
#[derive(Debug, Clone, PartialEq)]
pub struct AssignedTask {
    /// The task.
    pub id: TaskId,
    /// What it is made from.
    pub spec: SpecKey,
    /// Slot of a replicated service; 0 for a global one.
    pub slot: u32,
    /// Wanted: ready, running, shutdown or remove.
    pub desired: TaskState,
    /// The state that the managers know; the agent reports again what is newer.
    pub observed: TaskState,
    /// Addresses.
    pub attachments: Vec<NetworkAttachment>,
}

/// Asks the agent to dial a manager and serve its engine on that connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenStream {
    /// The manager that wants the stream.
    pub manager: SocketAddr,
    /// Random; presented on the new stream, good once and for this node only.
    pub nonce: [u8; 16],
}
