//! Puts the agent together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use skep_proto::model::session::ManagerPeer;
use skep_proto::model::{NodeDescription, NodeId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::executor::Executor;
use crate::executor::files::Files;
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
use skep_identity::Clock;

/// How long the last writes may take when the agent stops.
const FLUSH: Duration = Duration::from_secs(5);

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
    /// Where secrets and configs are put for the executor, which holds the same.
    pub files: Files,
}

/// A running agent. Containers go on when it ends.
pub struct Agent {
    status: watch::Receiver<SessionStatus>,
    desired: Arc<Desired>,
    leaving: watch::Sender<bool>,
    cancel: CancellationToken,
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
        let AgentDeps { executor, network, transport, streams, description, clock, rng, files } = deps;
        let writer = tokio::spawn(writer.run());
        let reports = Arc::new(Reports::new(state.clone(), loaded.statuses.values().cloned()));
        let desired = Arc::new(Desired::new(Held::from(&loaded), state, Arc::clone(&reports), files));

        let worker_deps =
            task::worker::Deps { node, executor: Arc::clone(&executor), clock, reports: Arc::clone(&reports) };
        let tasks = Tasks::new(Arc::new(worker_deps), Arc::clone(&desired), loaded.statuses.into_values());
        let (status, status_receiver) = watch::channel(SessionStatus::default());
        let (leaving, left) = watch::channel(false);
        let session_deps = session::Deps {
            transport,
            streams,
            desired: Arc::clone(&desired),
            reports,
            description,
            status,
            leaving: left,
        };
        let session = Session::new(session_deps, loaded.managers, seeds, rng);

        let mut parts = JoinSet::new();
        parts.spawn(tasks.run(cancel.clone()));
        parts.spawn(network::run(network, Arc::clone(&desired), cancel.clone()));
        parts.spawn(collect::run(executor, Arc::clone(&desired), cancel.clone()));
        parts.spawn(session.run(cancel.clone()));
        Self { status: status_receiver, desired, leaving, cancel, parts, writer }
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

    /// Leaves the cluster: tells a manager, if one answers, removes every task, and stops. What is not done after
    /// `patience` is left to the next agent on this node, whose managers assign none of it. The caller then removes the
    /// file of the local state.
    pub async fn leave(self, patience: Duration) {
        self.leaving.send_replace(true);
        let mut status = self.status.clone();
        let told = async {
            // Without a session there is nobody to tell.
            let told = status.wait_for(|status| status.left || status.manager.is_none()).await;
            drop(told);
        };
        let removed = async {
            if let Err(error) = self.desired.abandon().await {
                warn!(error = %crate::chain(&error), "cannot write that the node leaves the cluster");
            }
            self.desired.emptied().await;
        };
        if tokio::time::timeout(patience, async { tokio::join!(told, removed) }).await.is_err() {
            warn!("left the cluster before every task was removed");
        }
        self.cancel.cancel();
        self.stopped().await;
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
        // It ends with the last handle on the state; whoever keeps one must not keep the daemon.
        match tokio::time::timeout(FLUSH, self.writer).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => error!(error = %panic, "the writer of the local state has died"),
            Err(_) => warn!("the local state is still being written"),
        }
    }
}
