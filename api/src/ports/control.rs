//! The cluster as faces see it.
//!
//! [`Swarm`] answers on every daemon: is there a cluster, make one, join one, leave it. [`ControlPlane`] answers on
//! managers only. Every read is linearizable and every write is on disk on a majority before it returns, whichever
//! manager is asked: forwarding to the leader happens behind these calls.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use skep_proto::model::session::TaskVitals;
use skep_proto::model::{
    Availability, Cluster, ClusterSpec, Config, ConfigId, ConfigSpec, ContainerId, Network, NetworkId, NetworkSpec,
    Node, NodeId, NodeSpec, Secret, SecretId, SecretSpec, Service, ServiceId, ServiceSpec, Task, TaskState, Timestamp,
    Version,
};

use super::BoxDuplex;
use super::events::EventFeed;
use super::usage::NetworkUsage;

/// Life of the cluster on this node.
#[async_trait]
pub trait Swarm: Send + Sync + 'static {
    /// What this node knows of its cluster. Never fails, never waits for others.
    fn status(&self) -> SwarmStatus;

    /// The control plane, when this node is a manager.
    ///
    /// # Errors
    /// [`ControlError::NotInSwarm`], [`ControlError::NotManager`], [`ControlError::Locked`].
    fn control(&self) -> Result<Arc<dyn ControlPlane>, ControlError>;

    /// Makes a cluster with this node as its only manager.
    ///
    /// # Errors
    /// [`ControlError::AlreadyInSwarm`], [`ControlError::InvalidArgument`] for addresses that this node does not have.
    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError>;

    /// Joins a cluster. Whether as worker or manager is the token's to say.
    ///
    /// # Errors
    /// [`ControlError::AlreadyInSwarm`], [`ControlError::JoinRefused`].
    async fn join(&self, request: JoinRequest) -> Result<(), ControlError>;

    /// Gives the unlock key to a manager that is locked.
    ///
    /// # Errors
    /// [`ControlError::Unsupported`] where managers cannot be locked, [`ControlError::InvalidArgument`] for a wrong key.
    async fn unlock(&self, _key: &str) -> Result<(), ControlError> {
        Err(ControlError::Unsupported("unlocking a manager".into()))
    }

    /// Leaves the cluster and forgets it: certificates, Raft state, tasks.
    ///
    /// # Errors
    /// Without `force`, a manager whose leaving is unsafe is refused with [`ControlError::FailedPrecondition`].
    async fn leave(&self, force: bool) -> Result<(), ControlError>;
}

/// What this node knows of its cluster (Engine API, `SwarmInfo`).
#[derive(Debug, Clone, PartialEq)]
pub struct SwarmStatus {
    /// Whether there is one.
    pub state: LocalState,
    /// This node.
    pub node: Option<NodeId>,
    /// The address that others know it by.
    pub address: Option<IpAddr>,
    /// It is a manager that answers.
    pub is_manager: bool,
    /// Why it is not active, for people.
    pub error: String,
    /// The managers that it knows.
    pub managers: Vec<(NodeId, SocketAddr)>,
    /// Nodes and managers counted, and the cluster, on a manager that has a leader.
    pub counts: Option<ClusterCounts>,
}

/// Counts that `docker info` shows.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterCounts {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its nodes.
    pub nodes: u64,
    /// Its managers.
    pub managers: u64,
}

/// Where a node stands towards a cluster (Engine API, `LocalNodeState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalState {
    /// In none.
    Inactive,
    /// Joining one.
    Pending,
    /// In one.
    Active,
    /// Cannot go on; the status says why.
    Error,
    /// Needs the unlock key.
    Locked,
}

/// How to make a cluster. Absent addresses are found where the choice is clear.
#[derive(Debug, Clone, PartialEq)]
pub struct InitRequest {
    /// `ADDRESS[:PORT]` or `INTERFACE[:PORT]` to listen on.
    pub listen_addr: String,
    /// The same for what others are told; empty to find it.
    pub advertise_addr: String,
    /// The same for the data path; empty for the advertised one.
    pub data_path_addr: String,
    /// UDP port of the data path; 0 for 4789.
    pub data_path_port: u16,
    /// Go on from this node's state as the only manager.
    pub force_new_cluster: bool,
    /// What is wanted of the cluster.
    pub spec: ClusterSpec,
    /// What is wanted of this node.
    pub availability: Availability,
    /// Pools for networks; empty for 10.0.0.0/8.
    pub address_pools: Vec<IpNet>,
    /// Prefix length of their subnets; 0 for 24.
    pub subnet_size: u8,
}

/// How to join a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinRequest {
    /// As at init.
    pub listen_addr: String,
    /// As at init.
    pub advertise_addr: String,
    /// As at init.
    pub data_path_addr: String,
    /// Managers to ask, `HOST[:PORT]`.
    pub remotes: Vec<String>,
    /// The token.
    pub token: String,
    /// What is wanted of this node.
    pub availability: Availability,
}

/// Names an object as people do: id, unique prefix of an id, or name.
pub type Reference = str;

/// The cluster.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// The cluster.
    async fn cluster(&self) -> Result<Arc<Cluster>, ControlError>;
    /// Changes what is wanted of it, and what is to be rotated.
    async fn update_cluster(&self, at: Version, spec: ClusterSpec, rotate: Rotations) -> Result<(), ControlError>;

    /// The key that unlocks managers, `SWMKEY-1-…`.
    async fn unlock_key(&self) -> Result<String, ControlError> {
        Err(ControlError::Unsupported("the unlock key".into()))
    }

    /// The cluster's whole state, with every key, for `skep cluster restore`.
    async fn backup(&self) -> Result<Vec<u8>, ControlError> {
        Err(ControlError::Unsupported("a backup of the cluster".into()))
    }

    /// The nodes, by id.
    async fn nodes(&self) -> Result<Vec<NodeStatus>, ControlError>;
    /// One node.
    async fn node(&self, reference: &Reference) -> Result<NodeStatus, ControlError>;
    /// Changes what is wanted of it.
    async fn update_node(&self, id: NodeId, at: Version, spec: NodeSpec) -> Result<(), ControlError>;
    /// Removes a node that is down, or with `force` one that is not. Refused where quorum would be lost.
    async fn remove_node(&self, reference: &Reference, force: bool) -> Result<(), ControlError>;

    /// Services that match, by id.
    async fn services(&self, filter: &ObjectFilter) -> Result<Vec<ServiceStatus>, ControlError>;
    /// One service.
    async fn service(&self, reference: &Reference) -> Result<ServiceStatus, ControlError>;
    /// Makes a service.
    async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError>;
    /// Changes what is wanted of it.
    async fn update_service(&self, reference: &Reference, update: ServiceUpdate) -> Result<(), ControlError>;
    /// Removes it; its tasks stop afterwards.
    async fn remove_service(&self, reference: &Reference) -> Result<(), ControlError>;

    /// Evens out a replicated service over the nodes, once: tasks move one by one, each runs in its new place first.
    ///
    /// # Errors
    /// [`ControlError::InvalidArgument`] for a service of another mode.
    async fn rebalance_service(&self, _reference: &Reference) -> Result<(), ControlError> {
        Err(ControlError::Unsupported("rebalancing a service".into()))
    }

    /// Tasks that match, by id.
    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, ControlError>;
    /// Every task of a service that has a container, then each that gets one, once; without their vitals.
    fn started_tasks(&self, service: ServiceId) -> BoxStream<'static, TaskView>;
    /// One task.
    async fn task(&self, reference: &Reference) -> Result<TaskView, ControlError>;

    /// Networks that match, by id.
    async fn networks(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Network>>, ControlError>;
    /// One network.
    async fn network(&self, reference: &Reference) -> Result<Arc<Network>, ControlError>;
    /// Who uses a network.
    async fn network_usage(&self, reference: &Reference) -> Result<NetworkUsage, ControlError>;
    /// Makes a network; returns when it has its subnets.
    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError>;
    /// Removes it, unless it is used.
    async fn remove_network(&self, reference: &Reference) -> Result<(), ControlError>;

    /// Secrets that match, by id, without their content.
    async fn secrets(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Secret>>, ControlError>;
    /// One secret, without its content.
    async fn secret(&self, reference: &Reference) -> Result<Arc<Secret>, ControlError>;
    /// Makes a secret.
    async fn create_secret(&self, spec: SecretSpec) -> Result<SecretId, ControlError>;
    /// Changes its labels.
    async fn update_secret(&self, reference: &Reference, at: Version, spec: SecretSpec) -> Result<(), ControlError>;
    /// Removes it, unless it is used.
    async fn remove_secret(&self, reference: &Reference) -> Result<(), ControlError>;

    /// Configs that match, by id.
    async fn configs(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Config>>, ControlError>;
    /// One config.
    async fn config(&self, reference: &Reference) -> Result<Arc<Config>, ControlError>;
    /// Makes a config.
    async fn create_config(&self, spec: ConfigSpec) -> Result<ConfigId, ControlError>;
    /// Changes its labels.
    async fn update_config(&self, reference: &Reference, at: Version, spec: ConfigSpec) -> Result<(), ControlError>;
    /// Removes it, unless it is used.
    async fn remove_config(&self, reference: &Reference) -> Result<(), ControlError>;

    /// Where a task's container lives. The reference is an id, a unique prefix of one, or a container name; `None` when
    /// no task has such a container, so that it can only be a plain one of the node that was asked.
    async fn locate_container(&self, reference: &Reference) -> Result<Option<ContainerLocation>, ControlError>;

    /// What happens to the cluster's objects.
    fn events(&self) -> EventFeed;

    /// A connection on which that node's own engine answers the Docker Engine API, for its containers only.
    async fn open_engine(&self, node: NodeId) -> Result<BoxDuplex, ControlError>;
}

/// What is to be rotated by an update of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rotations {
    /// The workers' join token.
    pub worker_token: bool,
    /// The managers' join token.
    pub manager_token: bool,
    /// The unlock key.
    pub unlock_key: bool,
}

/// A node, with what is known of its part in Raft.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// The node.
    pub node: Arc<Node>,
    /// Set for managers.
    pub manager: Option<ManagerStatus>,
    /// What its certificate rests on.
    pub tls: NodeTls,
}

/// What a node's certificate rests on (Engine API, `TLSInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeTls {
    /// The roots that it trusts, PEM.
    pub trust_root: String,
    /// The root that signed its certificate, PEM.
    pub issuer: String,
}

/// A manager as its peers see it (Engine API, `ManagerStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerStatus {
    /// It leads.
    pub leader: bool,
    /// It answers.
    pub reachable: bool,
    /// Where.
    pub address: SocketAddr,
}

/// A service with its counts (Engine API, `ServiceStatus`).
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceStatus {
    /// The service.
    pub service: Arc<Service>,
    /// Tasks that run.
    pub running: u64,
    /// Tasks wanted.
    pub desired: u64,
    /// Tasks of a job's present iteration that have completed.
    pub completed: u64,
    /// When a job's present iteration began; `None` for services that are no jobs, and for jobs that have not run yet.
    pub executed_at: Option<Timestamp>,
}

/// How a service is to change.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceUpdate {
    /// The version that was read.
    pub at: Version,
    /// What is wanted now; without a registry credential, that of the spec in force is kept.
    pub spec: ServiceSpec,
    /// Take the previous spec instead.
    pub rollback: bool,
    /// Take the registry credential of the previous spec, not of the one in force.
    pub auth_from_previous: bool,
}

/// A task with what only its node's session knows.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    /// The task.
    pub task: Arc<Task>,
    /// Its container, also once the task has ended.
    pub container: Option<ContainerId>,
    /// Volatile facts, when the node has a session.
    pub vitals: TaskVitals,
    /// Networks of its attachments.
    pub networks: Vec<Arc<Network>>,
    /// The iteration of a job that it belongs to: the spec version it was made from. `None` for other tasks.
    pub job_iteration: Option<u64>,
}

impl TaskView {
    /// What is wanted of the task: one of a job is to complete (Engine API, `DesiredState`).
    pub fn desired(&self) -> TaskState {
        match self.task.desired {
            TaskState::Running if self.job_iteration.is_some() => TaskState::Complete,
            other => other,
        }
    }
}

/// Where a task's container lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerLocation {
    /// The container.
    pub container: ContainerId,
    /// Its node.
    pub node: NodeId,
}

/// Which objects are wanted. Empty sets do not filter; within a set one match is enough.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectFilter {
    /// Prefixes of ids.
    pub ids: BTreeSet<String>,
    /// Prefixes of names.
    pub names: BTreeSet<String>,
    /// `key` or `key=value`; all must match.
    pub labels: BTreeSet<String>,
    /// Kinds of service: `replicated`, `global`, `replicated-job`, `global-job`.
    pub modes: BTreeSet<String>,
}

/// Which tasks are wanted. Empty sets do not filter; within a set one match is enough.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskFilter {
    /// Prefixes of ids.
    pub ids: BTreeSet<String>,
    /// Prefixes of task names (`web.1.…`).
    pub names: BTreeSet<String>,
    /// `key` or `key=value`; all must match.
    pub labels: BTreeSet<String>,
    /// Services, by id, prefix or name.
    pub services: BTreeSet<String>,
    /// Nodes, by id, prefix or host name.
    pub nodes: BTreeSet<String>,
    /// Desired states.
    pub desired: BTreeSet<TaskState>,
    /// Only tasks made from their service's spec in force (the clients' `_up-to-date`).
    pub up_to_date: bool,
}

/// Why the cluster does not do what was asked. The texts are what clients show; Docker's words where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// This node is in no cluster.
    #[error(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
         swarm and try again."
    )]
    NotInSwarm,
    /// This node is a worker.
    #[error(
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this \
         command on a manager node or promote the current node to a manager."
    )]
    NotManager,
    /// This node is in a cluster already.
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
    )]
    AlreadyInSwarm,
    /// This manager needs the unlock key.
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
    )]
    Locked,
    /// Nothing is locked here.
    #[error("swarm is not locked")]
    NotLocked,
    /// The unlock key is not the one that this manager was locked with.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongUnlockKey,
    /// There is no leader, or this manager cannot reach it.
    #[error(
        "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."
    )]
    NoLeader,
    /// No answer in time; the change may have been made.
    #[error(
        "rpc error: code = DeadlineExceeded desc = the managers did not answer in time; the change may still take effect: look before you repeat it"
    )]
    Timeout,
    /// An object does not exist.
    #[error("{kind} {reference} not found")]
    NotFound {
        /// `node`, `service`, `task`, `network`, `secret`, `config`.
        kind: &'static str,
        /// As given.
        reference: String,
    },
    /// A prefix fits several objects.
    #[error("{kind} {reference} is ambiguous ({matches} matches found)")]
    Ambiguous {
        /// As in [`Self::NotFound`].
        kind: &'static str,
        /// As given.
        reference: String,
        /// How many fit.
        matches: usize,
    },
    /// A name is taken.
    #[error("rpc error: code = AlreadyExists desc = {0}")]
    NameConflict(String),
    /// The version that was read is not in force any more.
    #[error("rpc error: code = Unknown desc = update out of sequence")]
    OutOfSequence,
    /// The request makes no sense.
    #[error("rpc error: code = InvalidArgument desc = {0}")]
    InvalidArgument(String),
    /// The request makes sense, but not now.
    #[error("rpc error: code = FailedPrecondition desc = {0}")]
    FailedPrecondition(String),
    /// Not built yet; named, never pretended.
    #[error("{0} is not supported by skep yet")]
    Unsupported(String),
    /// The cluster did not let this node in.
    #[error("{0}")]
    JoinRefused(String),
    /// A node cannot be reached.
    #[error("node {node} cannot be reached: {reason}")]
    NodeUnreachable {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// Something broke on this side; the log has the chain.
    #[error("{context}")]
    Internal {
        /// What was being done.
        context: String,
        /// What broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
