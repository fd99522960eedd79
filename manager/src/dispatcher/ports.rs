//! What the dispatcher needs of the rest of a manager.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use skep_proto::model::session::{AssignedSpec, FileContent, FileId, SpecKey};
use skep_proto::model::task::NetworkAttachment;
use skep_proto::model::{
    Cluster, Network, NetworkId, Node, NodeDescription, NodeId, NodeState, Service, ServiceId, TaskId, TaskState,
    TaskStatus,
};

/// What sessions need of a task. Cheap to make: no text but aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFacts {
    /// Its position in the store, by which changes name it; reused after the task is gone.
    pub handle: u32,
    /// The task.
    pub id: TaskId,
    /// Its service; `None` for the attachment of a plain container.
    pub service: Option<ServiceId>,
    /// Its name when it has no service: the plain container's.
    pub name: Option<String>,
    /// Its node.
    pub node: Option<NodeId>,
    /// Slot of a replicated service; 0 for a global one.
    pub slot: u32,
    /// The service's `spec_version` that it was made from.
    pub spec_version: u64,
    /// Wanted.
    pub desired: TaskState,
    /// Observed.
    pub state: TaskState,
    /// Addresses.
    pub attachments: Vec<NetworkAttachment>,
    /// Address on its node's task bridge.
    pub mesh: Option<IpAddr>,
}

/// One version of the cluster. Nothing in it changes; reading it takes no lock.
pub trait ClusterView: Send + Sync {
    /// Raft index of the last entry in it.
    fn index(&self) -> u64;
    /// The cluster's record.
    fn cluster(&self) -> Option<Arc<Cluster>>;
    /// One node.
    fn node(&self, id: NodeId) -> Option<Arc<Node>>;
    /// All nodes.
    fn nodes(&self) -> Vec<Arc<Node>>;
    /// One service.
    fn service(&self, id: ServiceId) -> Option<Arc<Service>>;
    /// All services.
    fn services(&self) -> Vec<Arc<Service>>;
    /// One network.
    fn network(&self, id: NetworkId) -> Option<Arc<Network>>;
    /// The routing mesh, where the operator made one.
    fn ingress(&self) -> Option<NetworkId>;
    /// The task at a position.
    fn task_at(&self, handle: u32) -> Option<TaskFacts>;
    /// One task.
    fn task(&self, id: TaskId) -> Option<TaskFacts>;
    /// Tasks on a node, dead ones too.
    fn tasks_on_node(&self, node: NodeId) -> Vec<TaskFacts>;
    /// Tasks of a service, dead ones too.
    fn tasks_of_service(&self, service: ServiceId) -> Vec<TaskFacts>;
    /// Attachments of plain containers.
    fn tasks_without_service(&self) -> Vec<TaskFacts>;
    /// The spec that tasks of that name are made from.
    fn spec(&self, key: SpecKey) -> Option<Arc<AssignedSpec>>;
    /// What is in a secret or config; `None` when it is gone.
    fn file(&self, id: FileId) -> Option<FileContent>;
}

/// A task that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchedTask {
    /// Its position.
    pub handle: u32,
    /// Its service, also when the task is gone.
    pub service: Option<ServiceId>,
    /// Its node before.
    pub old_node: Option<NodeId>,
    /// Its node after.
    pub new_node: Option<NodeId>,
}

/// What changed. It names what to look at again; what is true of it, a view says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Tasks.
    pub tasks: Vec<TouchedTask>,
    /// Services.
    pub services: Vec<ServiceId>,
    /// Networks.
    pub networks: Vec<NetworkId>,
    /// Nodes.
    pub nodes: Vec<NodeId>,
    /// The cluster's own record.
    pub cluster: bool,
}

/// What changed after an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Exactly this.
    Some(Touched),
    /// The reader is too far behind: everything.
    All,
}

/// A status on its way into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusUpdate {
    /// The task.
    pub task: TaskId,
    /// The node that reported it; the store checks again that it is the task's.
    pub node: NodeId,
    /// Observed.
    pub status: TaskStatus,
    /// Address on the node's task bridge.
    pub mesh: Option<IpAddr>,
}

/// What becomes of a node. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeChange {
    /// The node.
    pub node: NodeId,
    /// Seen by the managers.
    pub state: NodeState,
    /// Why, for people; empty when ready.
    pub message: String,
    /// What it told.
    pub description: Option<NodeDescription>,
    /// Where its session comes from.
    pub address: Option<IpAddr>,
}

/// A change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This manager leads no more; whoever leads will see the same things.
    #[error("this manager is not the leader any more")]
    NotLeader,
    /// Worth another try.
    #[error("the cluster cannot decide now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// The store, as the dispatcher uses it.
#[async_trait]
pub trait ClusterStore: Send + Sync + 'static {
    /// The newest version.
    fn view(&self) -> Arc<dyn ClusterView>;

    /// Tells everything that changes after this call.
    fn watch(&self) -> Box<dyn ClusterWatch>;

    /// Commits statuses. Those that are late, or whose task is gone or elsewhere, are dropped: not an error.
    ///
    /// # Errors
    /// When nothing could be committed.
    async fn report(&self, batch: Vec<StatusUpdate>) -> Result<(), ProposeError>;

    /// Commits a change of a node. A node that is gone is not an error.
    ///
    /// # Errors
    /// When it could not be committed.
    async fn change_node(&self, change: NodeChange) -> Result<(), ProposeError>;
}

/// Tells what changed since it was asked last.
#[async_trait]
pub trait ClusterWatch: Send {
    /// Waits for a change. `None` when the store is gone.
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn next(&mut self) -> Option<Changes>;
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// This manager, and it has applied an entry of its own term.
    Leading {
        /// Raft's term.
        term: u64,
    },
    /// Another one, or nobody.
    Following {
        /// The leader's address, when there is one.
        leader: Option<SocketAddr>,
    },
}
