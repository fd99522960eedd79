//! Gives each node what it should have, and takes what it reports.
//!
//! It works while this manager leads; otherwise agents are sent to the leader. Sessions speak their own messages
//! ([`skep_proto::model::session`]) over [`transport`]; [`grpc`] is one carrier of them. What to tell a node is decided in
//! pure modules ([`derive`], [`outlook`], [`status`], [`liveness`]); [`reign`] and [`session`] are the shells.
//!
//! ```text
//! store --changes--> route --marks--> cell (dirty keys of a node) --wakes--> session --view, differences--> agent
//! store <--batches-- gathered statuses <------------------------------------ session <--reports, beats----- agent
//! ```
//!
//! A task that is to stop gets no new connections first: its node is told to stop it when every node that led to it has
//! applied that ([`routing`], [`drain`]).
//!
//! A change names a key, the view says what is true of it. Heartbeats and vitals stay in memory and never enter Raft.

pub mod byte_stream;
pub mod derive;
pub mod dirty;
mod drain;
#[cfg(test)]
pub(crate) mod fake;
mod files;
pub mod grpc;
mod keys;
pub mod leader;
pub mod liveness;
pub mod outlook;
pub mod over_store;
pub mod ports;
pub mod readiness;
mod reign;
pub mod relay;
mod routing;
mod session;
pub mod status;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod transport;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skep_identity::Identity;
use skep_proto::model::session::{ManagerMessage, OpenStream, TaskVitals};
use skep_proto::model::{NodeId, TaskId, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use over_store::Replicated;
pub use ports::{ClusterStore, ClusterView, Leadership};
pub use reign::NoSession;
pub use relay::Relay;
pub use streams::{StreamError, Streams};
pub use transport::{Inbound, Outbound, Transport, TransportError};

use reign::Reign;
use session::{AgentSession, log_end};

/// Periods of the dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats, until the cluster's record says otherwise.
    pub heartbeat: Duration,
    /// Heartbeats that may be missed.
    pub missed: u32,
    /// Added to the first deadline of every node when this manager becomes leader.
    pub grace: Duration,
    /// For the agent's first message.
    pub hello: Duration,
    /// For an agent to take a message.
    pub send: Duration,
    /// Changes gather this long before a node is told.
    pub debounce: Duration,
    /// How long a task that is to stop waits at most for the nodes that lead to it.
    pub drain: Duration,
    /// Pause after a proposal that failed.
    pub retry: Duration,
    /// How long others wait with their next WireGuard key for a node that is down.
    pub down_counts: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            missed: 3,
            grace: Duration::from_secs(5),
            hello: Duration::from_secs(5),
            send: Duration::from_secs(10),
            debounce: Duration::from_millis(10),
            drain: Duration::from_secs(3),
            retry: Duration::from_millis(500),
            down_counts: keys::DOWN_COUNTS,
        }
    }
}

impl Timing {
    /// How long a node may be silent.
    fn patience(&self, heartbeat: Duration) -> Duration {
        heartbeat * self.missed
    }
}

/// The dispatcher of one manager.
pub struct Dispatcher {
    store: Arc<dyn ClusterStore>,
    leadership: watch::Receiver<Leadership>,
    timing: Timing,
    reign: watch::Sender<Option<Arc<Reign>>>,
    next_session: AtomicU64,
    clock: Clock,
    sessions: TaskTracker,
}

/// The time of day, without asking the system for it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Timestamp,
    at: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        self.began.after(self.at.elapsed())
    }
}

impl Dispatcher {
    /// Works while `leadership` says so. `now` is the time of day; numbers of sessions start at its milliseconds, so that
    /// they differ from those before a restart.
    pub fn new(
        store: Arc<dyn ClusterStore>,
        leadership: watch::Receiver<Leadership>,
        timing: Timing,
        now: Timestamp,
    ) -> Self {
        let next_session = AtomicU64::new(now.0);
        let clock = Clock { began: now, at: Instant::now() };
        let (reign, sessions) = (watch::Sender::new(None), TaskTracker::new());
        Self { store, leadership, timing, reign, next_session, clock, sessions }
    }

    /// Follows the leadership until `stop`. Sessions end with it; they get a moment to say where to go.
    pub async fn run(&self, stop: CancellationToken) {
        self.follow(stop).await;
        self.sessions.close();
        if tokio::time::timeout(self.timing.send, self.sessions.wait()).await.is_err() {
            tracing::debug!(open = self.sessions.len(), "sessions did not end in time");
        }
    }

    async fn follow(&self, stop: CancellationToken) {
        let mut leadership = self.leadership.clone();
        loop {
            let now = *leadership.borrow_and_update();
            let changed = async {
                // Following one leader or another makes no difference here; another term of ours does.
                let same = |next: &Leadership| match now {
                    Leadership::Leading { .. } => *next == now,
                    Leadership::Following { .. } => matches!(next, Leadership::Following { .. }),
                };
                leadership.wait_for(|next| !same(next)).await.is_ok()
            };
            let goes_on = match now {
                Leadership::Leading { term } => {
                    let over = CancellationToken::new();
                    let changes = self.store.watch();
                    let reign = Arc::new(Reign::new(Arc::clone(&self.store), self.timing, self.clock, over.clone()));
                    self.reign.send_replace(Some(Arc::clone(&reign)));
                    tracing::info!(term, "dispatching");
                    let goes_on = tokio::select! {
                        () = stop.cancelled() => false,
                        goes_on = changed => goes_on,
                        () = reign.run(changes) => true,
                    };
                    self.reign.send_replace(None);
                    over.cancel();
                    goes_on
                }
                Leadership::Following { .. } => tokio::select! {
                    () = stop.cancelled() => false,
                    goes_on = changed => goes_on,
                },
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Like [`Self::serve`], on a task of the dispatcher's own.
    pub fn spawn(self: &Arc<Self>, peer: Identity, address: IpAddr, transport: Transport) {
        let dispatcher = Arc::clone(self);
        self.sessions.spawn(async move { dispatcher.serve(peer, address, transport).await });
    }

    /// Serves one session of the node `peer`, which connected from `address`, to its end.
    pub async fn serve(&self, peer: Identity, address: IpAddr, mut transport: Transport) {
        let Some(reign) = self.reign() else {
            let redirect = ManagerMessage::Redirect { to: self.leader() };
            if let Ok(Err(error)) = tokio::time::timeout(self.timing.send, transport.outbound.send(redirect)).await {
                tracing::debug!(node.id = %peer.node, error = %chain(&error), "cannot redirect an agent");
            }
            return;
        };
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let leadership = self.leadership.clone();
        let session = AgentSession { reign, id, peer, address, leadership };
        log_end(peer.node, id, &session.run(transport).await);
    }

    /// Volatile facts of a task, when its node has a session here.
    pub fn vitals(&self, task: TaskId) -> Option<TaskVitals> {
        let node = self.store.view().task(task)?.node?;
        self.reign()?.vitals(node, task)
    }

    /// Nodes that have a session here.
    pub fn connected(&self) -> Vec<NodeId> {
        self.reign().map(|reign| reign.connected()).unwrap_or_default()
    }

    /// Asks a node that has a session here to open a stream.
    ///
    /// # Errors
    /// When it has none, or takes no more.
    pub fn ask_stream(&self, node: NodeId, open: OpenStream) -> Result<(), NoSession> {
        self.reign().ok_or(NoSession::NotConnected(node))?.ask_stream(node, open)
    }

    /// Whether sessions are held here.
    pub fn is_leading(&self) -> bool {
        self.reign.borrow().is_some()
    }

    fn reign(&self) -> Option<Arc<Reign>> {
        self.reign.borrow().clone()
    }

    fn leader(&self) -> Option<std::net::SocketAddr> {
        leader(&self.leadership)
    }
}

fn leader(leadership: &watch::Receiver<Leadership>) -> Option<std::net::SocketAddr> {
    match *leadership.borrow() {
        Leadership::Leading { .. } => None,
        Leadership::Following { leader } => leader,
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
