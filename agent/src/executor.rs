//! What the agent asks of the node for one task: the border between deciding and doing.
//!
//! Every operation may be asked again after it succeeded, failed, or was lost with the process: it brings the node to the
//! state it names and finds out by itself what is left to do. Operations of one task never overlap; those of different
//! tasks do.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use skep_proto::model::service::PortConfig;
use skep_proto::model::session::{AssignedSpec, AssignedTask};
use skep_proto::model::{ContainerId, HealthStatus, Labels, NodeId, TaskId};

#[cfg(test)]
pub(crate) mod fake;
pub mod files;
pub mod node;

/// A task with what it is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskUnit {
    /// The task.
    pub task: AssignedTask,
    /// Its spec.
    pub spec: Arc<AssignedSpec>,
}

impl TaskUnit {
    /// Name of the task and its first container, as Swarm makes it: `SERVICE.SLOT.TASKID`, for a global service
    /// `SERVICE.NODEID.TASKID`.
    pub fn name(&self, node: NodeId) -> String {
        let service = &self.spec.service_name;
        match self.task.slot {
            0 => format!("{service}.{node}.{}", self.task.id),
            slot => format!("{service}.{slot}.{}", self.task.id),
        }
    }

    /// The id of its container number `index`.
    pub fn container_id(&self, index: usize) -> ContainerId {
        ContainerId::of_task(self.task.id, index)
    }

    /// The labels that Docker puts on a task's container, which win over the spec's own.
    pub fn swarm_labels(&self, node: NodeId) -> Labels {
        [
            ("com.docker.swarm.node.id", node.to_string()),
            ("com.docker.swarm.service.id", self.task.spec.service.to_string()),
            ("com.docker.swarm.service.name", self.spec.service_name.clone()),
            ("com.docker.swarm.task", String::new()),
            ("com.docker.swarm.task.id", self.task.id.to_string()),
            ("com.docker.swarm.task.name", self.name(node)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

/// The containers of a task, as the node shows them. Together they are one: they run from the first one's start, and have
/// ended when one has that decides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Containers {
    /// There are none.
    Absent,
    /// They exist and were never started.
    Created,
    /// They run.
    Running(Running),
    /// They have run, or could not be brought to it, and never will again.
    Ended(Exit),
}

/// What is known of running containers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Running {
    /// Pid of the first container's init, in the node's pid namespace.
    pub pid: u32,
    /// Address on the node's task bridge, where the routing mesh reaches the task.
    pub mesh: Option<IpAddr>,
    /// Ports published in host mode, with the numbers that were taken.
    pub host_ports: Vec<PortConfig>,
    /// The worst health among the containers that have a health check or probes. It is [`HealthStatus::Starting`] while
    /// containers are still to be started.
    pub health: Option<HealthStatus>,
    /// A readiness probe fails: the task wants no new connections.
    pub unready: bool,
    /// Some of its containers have their turn later. Preparing the task must have come before they can start.
    pub unfinished: bool,
}

impl Running {
    /// What [`Executor::wait`] waits for a change of.
    pub fn seen(&self) -> Seen {
        Seen { health: self.health, unready: self.unready }
    }
}

/// What was last seen of running containers, as far as it changes while they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// See [`Running::health`].
    pub health: Option<HealthStatus>,
    /// See [`Running::unready`].
    pub unready: bool,
}

/// How containers ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code of the container that ended first; signal + 128 when one killed it.
    pub code: i32,
    /// What went wrong besides, for people (`out of memory`, `shim died`); empty when nothing did.
    pub error: String,
    /// It was unhealthy before it ended.
    pub unhealthy: bool,
}

/// The node, as far as tasks are concerned.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Every task of which anything is left on this node: containers, sandbox, leases.
    async fn tasks(&self) -> Result<Vec<TaskId>, ExecutorError>;

    /// The containers of a task, taken over if they run: a later [`Self::wait`] sees their end.
    async fn observe(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError>;

    /// Fetches what the task needs before its containers can exist: images, sandbox, addresses, volumes. Dropping the
    /// future is allowed.
    async fn prepare(&self, unit: &TaskUnit) -> Result<(), ExecutorError>;

    /// Makes the containers without starting them.
    async fn create(&self, unit: &TaskUnit) -> Result<(), ExecutorError>;

    /// Starts the containers whose turn it is and returns once they run. Those that come after an init container are
    /// started by [`Self::wait`].
    async fn start(&self, unit: &TaskUnit) -> Result<Running, ExecutorError>;

    /// Returns when the running containers have ended, or show something else than `seen`: what they are then. Starts
    /// those whose turn comes meanwhile. Dropping the future is allowed.
    async fn wait(&self, unit: &TaskUnit, seen: Seen) -> Result<Containers, ExecutorError>;

    /// Ends running containers: stop signal, grace, SIGKILL. Returns when they have ended.
    async fn stop(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError>;

    /// Gives back what only a live task needs (sandbox, addresses, mounts) and keeps what people still look at: the dead
    /// containers and their logs.
    async fn release(&self, task: TaskId) -> Result<(), ExecutorError>;

    /// Removes everything of the task, by force where it still runs.
    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError>;

    /// Removes images that no task in `keep` names and that were not used for long. Called from time to time.
    async fn collect(&self, keep: &[TaskUnit]) -> Result<(), ExecutorError>;
}

/// Why an operation did not succeed. The text is what `docker service ps` shows.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// It may succeed when it is tried again.
    #[error("{0}")]
    Temporary(String),
    /// It will not.
    #[error("{0}")]
    Permanent(String),
}

impl ExecutorError {
    /// The operation may succeed when it is tried again.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Temporary(_) => true,
            Self::Permanent(_) => false,
        }
    }
}
