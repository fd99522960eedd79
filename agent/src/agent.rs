//! Puts the agent together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rand::rngs::StdRng;
use skep_proto::model::session::ManagerPeer;
use skep_proto::model::{NodeDescription, NodeId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clock::Clock;
use crate::executor::Executor;
use crate::network::Network;
use crate::reports::Reports;
use crate::session::streams::StreamService;
use crate::session::transport::Transport;
use crate::session::{Session, SessionStatus};
use crate::state::desired::Desired;
use crate::state::held::Held;
use crate::state::{self, LocalState, StateError};
use crate::task::Tasks;
use crate::{collect, network, session, task};

/// What the agent is told.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// This node.
    pub node: NodeId,
    /// File of the local state; its folder must exist.
    pub state: PathBuf,
    /// Managers to ask while none is known, as the operator gave them.
    pub managers: Vec<SocketAddr>,
}

/// What the agent uses.
pub struct AgentDeps {
    /// Runs tasks.
    pub executor: Arc<dyn Executor>,
    /// The node's network.
    pub network: Arc<dyn Network>,
    /// How managers are reached.
    pub transport: Arc<dyn Transport>,
    /// Answers on streams that managers ask for.
    pub streams: Arc<dyn StreamService>,
    /// What the node tells of itself; changes are sent.
    pub description: watch::Receiver<NodeDescription>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Draws the pauses between attempts to reach a manager.
    pub rng: StdRng,
}

/// A running agent. Containers go on when it ends.
pub struct Agent {
    status: watch::Receiver<SessionStatus>,
    desired: Arc<Desired>,
    parts: JoinSet<()>,
    writer: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// Reads the local state and starts to act on it, with or without managers. Ends with `cancel`; await [`Self::stopped`].
    ///
    /// # Errors
    /// When the local state cannot be read.
    pub fn start(config: AgentConfig, deps: AgentDeps, cancel: CancellationToken) -> Result<Self, StateError> {
        let opened = state::open(&config.state)?;
        Ok(Self::start_with(config.node, config.managers, opened, deps, cancel))
    }

    /// The same with a local state that is open already.
    pub fn start_with(
        node: NodeId,
        seeds: Vec<SocketAddr>,
        (state, loaded, writer): (LocalState, state::Loaded, state::Writer),
        deps: AgentDeps,
        cancel: CancellationToken,
    ) -> Self {
        let AgentDeps { executor, network, transport, streams, description, clock, rng } = deps;
        let writer = tokio::spawn(writer.run());
        let reports = Arc::new(Reports::new(state.clone(), loaded.statuses.values().cloned()));
        let desired = Arc::new(Desired::new(Held::from(&loaded), state, Arc::clone(&reports)));

        let worker_deps =
            task::worker::Deps { node, executor: Arc::clone(&executor), clock, reports: Arc::clone(&reports) };
        let tasks = Tasks::new(Arc::new(worker_deps), Arc::clone(&desired), loaded.statuses.into_values());
        let (status, status_receiver) = watch::channel(SessionStatus::default());
        let session_deps =
            session::Deps { transport, streams, desired: Arc::clone(&desired), reports, description, status };
        let session = Session::new(session_deps, loaded.managers, seeds, rng);

        let mut parts = JoinSet::new();
        parts.spawn(tasks.run(cancel.clone()));
        parts.spawn(network::run(network, Arc::clone(&desired), cancel.clone()));
        parts.spawn(collect::run(executor, Arc::clone(&desired), cancel.clone()));
        parts.spawn(session.run(cancel));
        Self { status: status_receiver, desired, parts, writer }
    }

    /// The session with the managers.
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// Managers known now.
    pub fn managers(&self) -> Vec<ManagerPeer> {
        self.status.borrow().managers.clone()
    }

    /// The assignments.
    pub fn desired(&self) -> &Arc<Desired> {
        &self.desired
    }

    /// Ends the agent as SIGKILL would.
    #[cfg(test)]
    pub(crate) async fn kill(mut self) {
        self.writer.abort();
        self.parts.shutdown().await;
        // Workers are dropped when they would run next.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    /// Resolves when the agent has stopped and its state is on disk. A part that dies of a bug also ends it: the daemon
    /// then starts it anew, which goes on from the disk.
    pub async fn stopped(mut self) {
        while let Some(part) = self.parts.join_next().await {
            if let Err(panic) = part {
                error!(error = %panic, "a part of the agent has died");
                self.parts.abort_all();
            }
        }
        drop(self.desired);
        if let Err(panic) = self.writer.await {
            error!(error = %panic, "the writer of the local state has died");
        }
    }
}
