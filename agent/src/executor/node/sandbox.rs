//! Sandboxes, as tasks need them: the border to the network layer.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use skep_proto::model::container::DnsConfig;
use skep_proto::model::service::PortConfig;
use skep_proto::model::task::NetworkAttachment;
use skep_proto::model::{NetworkId, TaskId};

/// The sandbox that a task needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRequest {
    /// The task.
    pub task: TaskId,
    /// Its name, to which its networks resolve at once.
    pub name: String,
    /// Networks of the cluster, with addresses.
    pub attachments: Vec<NetworkAttachment>,
    /// It joins the default bridge.
    pub bridge: bool,
    /// It has a task link.
    pub mesh: bool,
    /// Ports that this node publishes for it.
    pub host_ports: Vec<PortConfig>,
    /// Resolver settings.
    pub dns: DnsConfig,
}

/// A sandbox as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The file that keeps its namespace.
    pub netns: PathBuf,
    /// Addresses that its name stands for in `/etc/hosts`, the first network's first.
    pub addresses: Vec<IpAddr>,
    /// Address on the task link.
    pub mesh: Option<IpAddr>,
    /// Ports as they were taken.
    pub host_ports: Vec<PortConfig>,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// A sandbox cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SandboxError {
    /// For people.
    pub message: String,
    /// Trying again may succeed.
    pub temporary: bool,
}

/// Sandboxes of this node's tasks. Every call may be repeated.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Makes the sandbox, or gives the one that is there.
    ///
    /// # Cancel safety
    /// A dropped call may have made it; [`Self::remove`] takes it away.
    async fn ensure(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError>;

    /// The sandbox of a task.
    async fn find(&self, task: TaskId) -> Result<Option<Sandbox>, SandboxError>;

    /// Takes it away, if it is there.
    async fn remove(&self, task: TaskId) -> Result<(), SandboxError>;

    /// Tasks that have one. Sandboxes of plain containers are not among them, even where a task gave them an address: what
    /// is listed here and not assigned is removed.
    async fn tasks(&self) -> Result<Vec<TaskId>, SandboxError>;

    /// Whether the network has no way out. A network that is not known yet may have one.
    fn is_internal(&self, network: NetworkId) -> bool;
}
