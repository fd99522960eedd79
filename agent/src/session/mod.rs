//! The session with a manager: what the node should have comes in, what it observes goes out.
//!
//! One session at a time, to whichever manager answers. When it ends the next manager is tried, with a pause that grows
//! and is drawn at random, so that the nodes of a lost manager do not come back in one moment. Nothing on the node waits
//! for a session: tasks and network go on from what is held.

#[cfg(test)]
mod fake;
pub mod grpc;
pub mod rotation;
pub mod streams;
pub mod transport;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rand::rngs::StdRng;
use skep_proto::model::session::{
    AgentMessage, Assignments, Hello, ManagerMessage, ManagerPeer, OpenStream, StatusReport, Welcome,
};
use skep_proto::model::{NodeDescription, NodeRole};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::rotation::Rotation;
use self::streams::StreamService;
use self::transport::{Link, Transport, TransportError};
use crate::reports::Reports;
use crate::state::desired::{ApplyError, Desired};
use crate::state::held::RefusedSet;

/// How long a manager may take to answer the dial and the hello.
const OPENING: Duration = Duration::from_secs(5);
/// How long the connection may refuse a message before it counts as lost.
const SENDING: Duration = Duration::from_secs(5);
/// A session that lasted this long forgives earlier failures.
const STABLE: Duration = Duration::from_secs(10);
/// Streams served at a time; a manager that asks for more gets none until one ends.
const MAX_STREAMS: usize = 512;
/// Bounds of the heartbeat that a manager may ask for.
const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// What the rest of the daemon may know of the session.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionStatus {
    /// The manager, while there is a session.
    pub manager: Option<SocketAddr>,
    /// The last welcome.
    pub welcome: Option<Welcome>,
    /// Managers of the cluster.
    pub managers: Vec<ManagerPeer>,
    /// The manager was told that the node leaves.
    pub left: bool,
    /// A new certificate should be fetched, with this role. The count grows with each request.
    pub renew: (u64, Option<NodeRole>),
    /// The public key that the other nodes know as this node's next one.
    pub key_known: Option<[u8; 32]>,
    /// Why there is no session, for people; empty while there is one.
    pub error: String,
}

/// What the session uses.
pub struct Deps {
    /// How managers are reached.
    pub transport: Arc<dyn Transport>,
    /// Answers on streams that managers ask for.
    pub streams: Arc<dyn StreamService>,
    /// Takes assignments.
    pub desired: Arc<Desired>,
    /// Gives statuses.
    pub reports: Arc<Reports>,
    /// What the node tells of itself; changes are sent.
    pub description: watch::Receiver<NodeDescription>,
    /// Where the status is shown.
    pub status: watch::Sender<SessionStatus>,
    /// Becomes true when the node leaves the cluster of its own will.
    pub leaving: watch::Receiver<bool>,
}

/// Keeps a session with the managers.
pub struct Session {
    deps: Deps,
    rotation: Rotation,
    streams: JoinSet<()>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the manager did not answer within {} s", OPENING.as_secs())]
    Silent,
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager sent something before its welcome")]
    NoWelcome,
    #[error("the connection takes no more messages")]
    Stuck,
    #[error("the manager's assignments were not taken over")]
    Assignments(#[from] ApplyError),
    #[error("the manager sends its nodes elsewhere")]
    Redirect(Option<SocketAddr>),
}

impl Session {
    /// A session over `deps`, to the managers known so far. `rng` draws the pauses.
    pub fn new(deps: Deps, managers: Vec<ManagerPeer>, seeds: Vec<SocketAddr>, rng: StdRng) -> Self {
        deps.status.send_modify(|status| status.managers.clone_from(&managers));
        Self {
            deps,
            rotation: Rotation::new(managers.iter().map(|m| m.address).collect(), seeds, rng),
            streams: JoinSet::new(),
        }
    }

    /// Keeps a session until `cancel`.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            let (manager, pause) = self.rotation.take_next();
            let attempt = async {
                tokio::time::sleep(pause).await;
                match manager {
                    Some(manager) => Some(self.attempt(manager).await),
                    None => None,
                }
            };
            let ended = tokio::select! {
                () = cancel.cancelled() => break,
                ended = attempt => ended,
            };
            let (Some(manager), Some(ended)) = (manager, ended) else { continue };
            self.after(manager, &ended);
        }
        self.deps.status.send_modify(|status| status.manager = None);
        self.streams.shutdown().await;
    }

    fn after(&mut self, manager: SocketAddr, ended: &Ended) {
        let error = crate::chain(ended).to_string();
        match ended {
            Ended::Redirect(to) => {
                info!(%manager, to = ?to, "the manager sends this node elsewhere");
                self.rotation.redirected(*to);
            }
            ended => {
                warn!(%manager, %error, "session ended");
                if let Ended::Assignments(ApplyError::Refused(RefusedSet::UnknownSpec { .. } | RefusedSet::Part)) =
                    ended
                {
                    self.deps.desired.ask_for_everything();
                }
                self.rotation.failed();
            }
        }
        self.deps.status.send_modify(|status| {
            status.manager = None;
            status.error = error;
        });
    }

    /// Opens a session with `manager` and keeps it as long as it lasts.
    async fn attempt(&mut self, manager: SocketAddr) -> Ended {
        let opened = tokio::time::timeout(OPENING, self.open(manager)).await.unwrap_or(Err(Ended::Silent));
        match opened {
            Ok((link, welcome)) => {
                info!(%manager, session = welcome.session, "session opened");
                let began = Instant::now();
                let ended = self.serve(manager, link, welcome).await.map_or_else(|ended| ended, |never| match never {});
                if began.elapsed() >= STABLE {
                    self.rotation.succeeded();
                }
                ended
            }
            Err(ended) => ended,
        }
    }

    async fn open(&mut self, manager: SocketAddr) -> Result<(Link, Welcome), Ended> {
        let description = self.deps.description.borrow_and_update().clone();
        let hello = Hello { description, last_index: self.deps.desired.resume_index() };
        let mut link = self.deps.transport.session(manager, hello).await?;
        match link.from_manager.next().await {
            Some(Ok(ManagerMessage::Welcome(welcome))) => Ok((link, welcome)),
            Some(Ok(ManagerMessage::Redirect { to })) => Err(Ended::Redirect(to)),
            Some(Ok(_)) => Err(Ended::NoWelcome),
            Some(Err(error)) => Err(error.into()),
            None => Err(Ended::Closed),
        }
    }

    async fn serve(
        &mut self,
        manager: SocketAddr,
        link: Link,
        welcome: Welcome,
    ) -> Result<std::convert::Infallible, Ended> {
        let Link { to_manager, mut from_manager } = link;
        let mut heartbeat = beat(welcome.heartbeat);
        self.deps.status.send_modify(|status| {
            status.manager = Some(manager);
            status.welcome = Some(welcome);
            status.error.clear();
        });
        self.deps.desired.session_began();
        let mut in_network = self.deps.desired.in_network();
        let mut sets = Sets::default();
        loop {
            tokio::select! {
                message = from_manager.next() => match message.ok_or(Ended::Closed)?? {
                    // The cluster has other settings now.
                    ManagerMessage::Welcome(welcome) => {
                        heartbeat = beat(welcome.heartbeat);
                        self.deps.status.send_modify(|status| status.welcome = Some(welcome));
                    }
                    message => self.handle(message, &mut sets).await?,
                },
                Ok(()) = in_network.changed() => {
                    let revision = *in_network.borrow_and_update();
                    if let Some(sets) = sets.reached(revision) {
                        send(&to_manager, AgentMessage::Applied { sets }).await?;
                    }
                }
                reports = self.deps.reports.next() => send(&to_manager, statuses(reports)).await?,
                _ = heartbeat.tick() => send(&to_manager, AgentMessage::Heartbeat).await?,
                Ok(()) = self.deps.description.changed() => {
                    let description = self.deps.description.borrow_and_update().clone();
                    send(&to_manager, AgentMessage::Describe(description)).await?;
                }
                true = is_set(self.deps.leaving.clone()), if !self.deps.status.borrow().left => {
                    send(&to_manager, AgentMessage::Leaving).await?;
                    self.deps.status.send_modify(|status| status.left = true);
                }
                Some(_) = self.streams.join_next() => {}
            }
        }
    }

    async fn handle(&mut self, message: ManagerMessage, sets: &mut Sets) -> Result<(), Ended> {
        match message {
            ManagerMessage::Welcome(_) => debug!("a welcome is taken where messages are read"),
            ManagerMessage::Assignments(set) => sets.add(self.assign(set).await?),
            ManagerMessage::Managers(managers) => self.managers(managers),
            ManagerMessage::OpenStream(open) => self.open_stream(open),
            ManagerMessage::RenewCertificate { role } => {
                self.deps.status.send_modify(|status| status.renew = (status.renew.0 + 1, Some(role)));
            }
            ManagerMessage::Redirect { to } => return Err(Ended::Redirect(to)),
            ManagerMessage::KeyKnown { key } => {
                self.deps.status.send_modify(|status| status.key_known = Some(key));
            }
        }
        Ok(())
    }

    /// Takes a set over and gives its revision; `None` when the managers' word counts no more.
    async fn assign(&self, set: Assignments) -> Result<Option<u64>, ApplyError> {
        if *self.deps.leaving.borrow() {
            return Ok(None);
        }
        debug!(index = set.index, complete = set.complete, changes = set.changes.len(), "assignments");
        self.deps.desired.apply(set).await.map(Some)
    }

    fn managers(&mut self, managers: Vec<ManagerPeer>) {
        if managers.is_empty() {
            // A cluster without managers sends no messages: this would cut the node off for good.
            warn!("an empty list of managers is ignored");
            return;
        }
        self.rotation.replace(managers.iter().map(|manager| manager.address).collect());
        self.deps.desired.keep_managers(&managers);
        self.deps.status.send_modify(|status| status.managers = managers);
    }

    fn open_stream(&mut self, open: OpenStream) {
        if self.streams.len() >= MAX_STREAMS {
            warn!(manager = %open.manager, limit = MAX_STREAMS, "a stream is refused: too many are open");
            return;
        }
        let (transport, service) = (Arc::clone(&self.deps.transport), Arc::clone(&self.deps.streams));
        self.streams.spawn(streams::serve(transport, service, open));
    }
}

/// Ticks at once, and then each `period`.
fn beat(period: Duration) -> tokio::time::Interval {
    let mut heartbeat = tokio::time::interval(period.clamp(HEARTBEAT.0, HEARTBEAT.1));
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

/// The sets of one session that the node's network has not reached yet.
#[derive(Debug, Default)]
struct Sets {
    count: u64,
    /// Revision and number.
    waiting: VecDeque<(u64, u64)>,
}

impl Sets {
    /// Another set was taken over at that revision.
    fn add(&mut self, revision: Option<u64>) {
        self.count += 1;
        self.waiting.extend(revision.map(|revision| (revision, self.count)));
    }

    /// The network is at a revision. Gives the number of the last set in it, unless that was told before.
    fn reached(&mut self, revision: u64) -> Option<u64> {
        let reached = self.waiting.iter().take_while(|(of, _)| *of <= revision).count();
        self.waiting.drain(..reached).next_back().map(|(_, number)| number)
    }
}

/// Resolves with `true` once the flag is set, with `false` when it never will be.
async fn is_set(mut flag: watch::Receiver<bool>) -> bool {
    flag.wait_for(|set| *set).await.is_ok()
}

fn statuses(reports: Vec<StatusReport>) -> AgentMessage {
    AgentMessage::Statuses(reports)
}

async fn send(to_manager: &mpsc::Sender<AgentMessage>, message: AgentMessage) -> Result<(), Ended> {
    match tokio::time::timeout(SENDING, to_manager.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Ended::Closed),
        Err(_) => Err(Ended::Stuck),
    }
}

#[cfg(test)]
pub(crate) mod tests;
