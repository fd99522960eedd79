//! What handlers share.

use std::sync::Arc;

use skep_proto::model::{ContainerId, NodeId, Timestamp};
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::proxy::Remote;
use crate::ports::{ControlPlane, Engine, Swarm};

/// Facts of this daemon, and its clock and source of ids.
#[derive(Clone)]
pub struct Host {
    /// Version of skep.
    pub version: String,
    /// Commit that it was built from.
    pub git_commit: String,
    /// When it was built, RFC 3339.
    pub build_time: String,
    /// The current time.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Draws the id of a plain container.
    pub draw_id: Arc<dyn Fn() -> ContainerId + Send + Sync>,
}

/// What the router calls.
#[derive(Clone)]
pub struct Ports {
    /// The cluster.
    pub swarm: Arc<dyn Swarm>,
    /// This node's containers.
    pub engine: Arc<dyn Engine>,
    /// Facts of this daemon.
    pub host: Host,
}

/// State of the routes that any node answers about its own containers.
#[derive(Clone)]
pub(crate) struct Local {
    pub engine: Arc<dyn Engine>,
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Owns the tasks that move bytes of hijacked connections.
    pub pumps: TaskTracker,
}

/// State of all other routes.
#[derive(Clone)]
pub(crate) struct App {
    pub swarm: Arc<dyn Swarm>,
    pub local: Local,
    pub host: Host,
    pub remote: Remote,
}

impl App {
    /// The control plane, when this node is a manager.
    pub(crate) fn control(&self) -> Result<Arc<dyn ControlPlane>, ApiError> {
        Ok(self.swarm.control()?)
    }

    /// This node, when it is in a cluster.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.swarm.status().node
    }

    /// This node's engine.
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.local.engine
    }
}
