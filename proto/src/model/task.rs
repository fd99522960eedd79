//! Tasks: one attempt to run a service's containers on one node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::container::Driver;
use super::service::PortConfig;
use super::{ContainerSpec, Labels, Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp};

/// What a task is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskSpec {
    /// The containers, which share one sandbox. The Docker face makes and shows exactly one.
    pub containers: Vec<ContainerSpec>,
    /// Limits and reservations of the whole task.
    pub resources: Resources,
    /// When and how often a finished task is replaced; `None` for the defaults.
    pub restart: Option<RestartPolicy>,
    /// Where it may run.
    pub placement: Placement,
    /// Networks of the sandbox; empty for the node's default bridge.
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Log driver; `None` for the node's.
    pub log_driver: Option<Driver>,
    /// Raised to replace every task though nothing else changed.
    pub force_update: u64,
}

/// Limits and reservations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Enforced by cgroups.
    pub limits: Option<Limits>,
    /// Counted by the scheduler.
    pub reservations: Option<Reservations>,
}

/// What the kernel enforces. Zero means none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CPU in nano-CPUs.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Processes and threads.
    pub pids: i64,
}

/// What the scheduler counts. Zero means none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservations {
    /// CPU in nano-CPUs.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Generic resources by kind.
    pub generic: BTreeMap<String, u64>,
}

/// When a finished task is replaced. Absent fields take Docker's defaults, and are shown as absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestartPolicy {
    /// After which ends.
    pub condition: RestartCondition,
    /// Pause before the replacement starts; default 5 s.
    pub delay: Option<Duration>,
    /// Replacements at most within the window; default unlimited, as is 0.
    pub max_attempts: Option<u64>,
    /// Span in which attempts are counted; default, as is 0: the whole life of the service.
    pub window: Option<Duration>,
}

impl RestartPolicy {
    /// Docker's default delay.
    pub const DEFAULT_DELAY: Duration = Duration::from_secs(5);
}

/// After which ends a task is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartCondition {
    /// Never.
    None,
    /// After a failure.
    OnFailure,
    /// After every end.
    #[default]
    Any,
}

/// Where a task may run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Expressions like `node.role==worker`; all must hold.
    pub constraints: Vec<String>,
    /// Spread over the values of these node labels (`node.labels.zone`), outermost first.
    pub preferences: Vec<String>,
    /// Tasks of the service on one node at most; 0 for no limit.
    pub max_replicas: u64,
    /// Platforms the image exists for; empty for any.
    pub platforms: Vec<Platform>,
}

/// An operating system and an architecture. Empty text means any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Platform {
    /// `amd64`, `arm64`; also in uname's form (`x86_64`, `aarch64`).
    pub architecture: String,
    /// `linux`.
    pub os: String,
}

/// A wish to join a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkAttachmentSpec {
    /// Id of a cluster network, or the name of a node-local one (`host`, `bridge`).
    pub target: String,
    /// Further names of the service on that network.
    pub aliases: Vec<String>,
    /// Driver options.
    pub driver_options: BTreeMap<String, String>,
}

/// Where a task stands. States are passed in this order and never backwards.
///
/// | from | to | who may do it |
/// |---|---|---|
/// | - | new | orchestrator |
/// | new | pending | allocator |
/// | pending | assigned | scheduler |
/// | new | running | allocator, for a task without a service: a container's place on a network |
/// | assigned … running | the next ones, and every end | the agent of its node |
/// | any | orphaned | node liveness, when its node is lost for good |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Made by an orchestrator.
    New,
    /// Has its addresses; waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node knows it.
    Accepted,
    /// The node fetches what it needs.
    Preparing,
    /// Could start at once.
    Ready,
    /// Is being started.
    Starting,
    /// Runs (and is healthy, where a health check exists).
    Running,
    /// Ended by itself with exit code 0.
    Complete,
    /// Ended because that was wanted.
    Shutdown,
    /// Ended by itself with an error.
    Failed,
    /// Could not be started on its node.
    Rejected,
    /// As a desired state: stop, then forget.
    Remove,
    /// Its node is lost.
    Orphaned,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// The task will never run again.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What was last observed of a task, and is replicated. Pids, container ids, health output and progress are not part
/// of it: they are [`super::session::TaskVitals`] and stay with the manager that holds the node's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    /// Where it stands.
    pub state: TaskState,
    /// When it got there, by the clock of its writer.
    pub at: Timestamp,
    /// For people: what is going on.
    pub message: String,
    /// For people: what went wrong; empty when nothing did.
    pub error: String,
    /// Exit code of the first container, when it has ended by itself or was stopped.
    pub exit_code: Option<i32>,
    /// Ports published in host mode, with the numbers that were taken.
    pub host_ports: Vec<PortConfig>,
}

/// A task, as faces and sessions see it. The store holds it in a denser form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// Its service; `None` for a task that attaches a plain container to a network.
    pub service: Option<ServiceId>,
    /// The service's name when the task was made, for container names.
    pub service_name: String,
    /// The service's labels, for container labels.
    pub service_labels: Labels,
    /// Slot of a replicated service; 0 for a global one.
    pub slot: u32,
    /// Its node.
    pub node: Option<NodeId>,
    /// What it is made from.
    pub spec: Arc<TaskSpec>,
    /// The service's `spec_version` that it was made from.
    pub spec_version: u64,
    /// Wanted.
    pub desired: TaskState,
    /// Observed.
    pub status: TaskStatus,
    /// Addresses, written by the allocator.
    pub attachments: Vec<NetworkAttachment>,
    /// The service's resolved ports.
    pub ports: Vec<PortConfig>,
}

/// One task on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAttachment {
    /// The network.
    pub network: NetworkId,
    /// Addresses with prefix length, at most one per family.
    pub addresses: Vec<IpNet>,
    /// Further names.
    pub aliases: Vec<String>,
}
