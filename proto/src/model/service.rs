//! Services: what should run, how often, reachable how.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::pod::PortRedirect;
use super::{Annotations, Meta, NetworkId, ServiceId, TaskSpec, Timestamp};

/// The desired state of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// What each task is made from.
    pub task: TaskSpec,
    /// How many tasks, and whether they end.
    pub mode: ServiceMode,
    /// How a new task spec is rolled out; `None` for the defaults.
    pub update: Option<UpdateConfig>,
    /// How a rollback is rolled out; `None` for the defaults.
    pub rollback: Option<UpdateConfig>,
    /// How clients reach the service; `None` for the defaults (a VIP, no published port).
    pub endpoint: Option<EndpointSpec>,
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceMode {
    /// A number of tasks, each in a slot of its own.
    Replicated {
        /// Tasks wanted.
        replicas: u64,
    },
    /// One task on each node that fits.
    Global,
    /// A number of tasks that run to completion.
    ReplicatedJob {
        /// Tasks that run at a time.
        max_concurrent: u64,
        /// Tasks that must complete.
        total_completions: u64,
    },
    /// One task that runs to completion on each node that fits.
    GlobalJob,
}

impl ServiceMode {
    /// Its tasks run to completion.
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }
}

/// How an update or a rollback proceeds.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateConfig {
    /// Tasks changed at a time; 0 for all at once.
    pub parallelism: u64,
    /// Pause between two groups.
    pub delay: Duration,
    /// What a failed task leads to.
    pub failure_action: FailureAction,
    /// How long after its start a task that ends counts as failed.
    pub monitor: Duration,
    /// Share of tasks, 0 to 1, that may fail before `failure_action` is taken.
    pub max_failure_ratio: f32,
    /// Whether the new task starts before or after the old one stops.
    pub order: UpdateOrder,
}

// A NaN is refused where specs are read, so equality is total.
impl Eq for UpdateConfig {}

impl Default for UpdateConfig {
    /// Docker's defaults: one at a time, no delay, pause on failure, monitor for 5 s, stop-first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// What a failed update leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureAction {
    /// Stop updating and wait for the operator.
    Pause,
    /// Go on.
    Continue,
    /// Return to the previous spec.
    Rollback,
}

/// Whether the new task starts before or after the old one stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOrder {
    /// The old task stops, then the new one starts.
    StopFirst,
    /// The new task runs before the old one stops.
    StartFirst,
}

/// How clients reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointSpec {
    /// By one virtual address, or by the addresses of the tasks.
    pub mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<PortConfig>,
    /// Ports of the virtual address that lead to other ports of the tasks.
    pub redirects: Vec<PortRedirect>,
}

/// What a service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointMode {
    /// One virtual address, balanced over the tasks.
    #[default]
    Vip,
    /// The addresses of the tasks.
    DnsRoundRobin,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortConfig {
    /// Free text.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the container.
    pub target: u16,
    /// Port of the nodes; `None` until one is chosen.
    pub published: Option<u16>,
    /// On every node, or only where a task runs.
    pub mode: PublishMode,
}

/// Protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Where a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublishMode {
    /// On every node, through the routing mesh.
    Ingress,
    /// On the node of each task.
    Host,
}

/// A service as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// Wanted.
    pub spec: ServiceSpec,
    /// Raft index at which the task spec became what it is: tasks carry it, and differ from it while an update runs.
    pub spec_version: u64,
    /// What was wanted before the last change, for rollback.
    pub previous: Option<Box<PreviousSpec>>,
    /// Resolved ports and virtual addresses, written by the allocator.
    pub endpoint: Endpoint,
    /// Progress of the running or last update.
    pub update_status: Option<UpdateStatus>,
    /// Removal was asked for; the record goes when the tasks are gone.
    pub pending_delete: bool,
    /// What became of the schedule of a job that has one ([`super::schedule`]); `None` for every other service.
    pub runs: Option<ScheduledRuns>,
}

impl Service {
    /// The spec version whose tasks make up a job's present iteration; 0 for a job whose schedule has not run it yet. Of other
    /// services it is the spec in force.
    pub fn iteration(&self) -> u64 {
        self.runs.map_or(self.spec_version, |runs| runs.iteration)
    }
}

/// The runs of a job that has a schedule, as far as they are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledRuns {
    /// No time up to and including this one leads to a run any more: it did, it was left out, or it was before the schedule. It
    /// only grows.
    pub decided_at: Timestamp,
    /// The scheduled time of the last run; `None` before the first.
    pub last_at: Option<Timestamp>,
    /// The spec version of the last run's tasks; 0 before the first. The service may have another spec by now: the run goes on
    /// with its own.
    pub iteration: u64,
}

/// A former spec of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousSpec {
    /// The spec.
    pub spec: ServiceSpec,
    /// Its `spec_version`.
    pub spec_version: u64,
}

/// What the allocator gave a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// The endpoint spec this was resolved from.
    pub spec: Option<EndpointSpec>,
    /// Ports with their published numbers.
    pub ports: Vec<PortConfig>,
    /// Virtual address on each network.
    pub virtual_ips: Vec<VirtualIp>,
}

/// A service's address on a network, one entry per address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualIp {
    /// The network.
    pub network: NetworkId,
    /// Address with the network's prefix length.
    pub address: IpNet,
}

/// Progress of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateStatus {
    /// Where it stands.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// For people.
    pub message: String,
}

/// Where an update stands (Engine API, `UpdateStatus.State`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateState {
    /// In progress.
    Updating,
    /// Stopped by a failure.
    Paused,
    /// Done.
    Completed,
    /// Returning to the previous spec.
    RollbackStarted,
    /// The rollback was stopped by a failure.
    RollbackPaused,
    /// Returned.
    RollbackCompleted,
}
