//! What exists while this manager leads: sessions, deadlines, statuses under way. It holds nothing that cannot be
//! rebuilt, and is dropped with the leadership.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_proto::model::session::{Assignments, OpenStream, TaskVitals};
use skep_proto::model::{Node, NodeDescription, NodeId, NodeState, TaskId};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::dirty::{Cell, Routes};
use super::keys::Keys;
use super::liveness::Deadlines;
use super::ports::{
    Changes, ClusterStore, ClusterView, ClusterWatch, NodeChange, ProposeError, StatusUpdate, Touched, TouchedTask,
};
use super::readiness::Unready;
use super::routing::{Released, Routing};
use super::status::{BATCH, GATHER, Gathered};
use super::{Clock, Timing, chain};

/// Text of a node that was not heard of (Docker's words).
const LOST: &str = "heartbeat failure";

/// A key that others wait for is looked at so many times in the longest wait.
const KEY_LOOKS: u32 = 100;

/// State of one leadership.
pub struct Reign {
    pub(super) store: Arc<dyn ClusterStore>,
    pub(super) timing: Timing,
    clock: Clock,
    /// Ends all sessions.
    pub(super) over: CancellationToken,
    pub(super) routes: Mutex<Routes>,
    pub(super) routing: Mutex<Routing>,
    pub(super) keys: Mutex<Keys>,
    sessions: Mutex<HashMap<NodeId, Session>>,
    deadlines: Mutex<Deadlines>,
    deadlines_changed: Notify,
    gathered: Mutex<Gathered>,
    gathered_changed: Notify,
    pub(super) unready: Arc<Unready>,
}

/// A node's current session, as others in this manager see it.
struct Session {
    id: u64,
    end: CancellationToken,
    streams: mpsc::Sender<OpenStream>,
    vitals: HashMap<TaskId, TaskVitals>,
    /// Between two heartbeats, as the node was told.
    heartbeat: Duration,
}

/// A node has no session here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSession {
    /// It is not connected.
    #[error("node {0} has no session: it is down, or reconnecting")]
    NotConnected(NodeId),
    /// Too many requests wait for it.
    #[error("node {0} is too busy to open another stream")]
    Busy(NodeId),
}

/// Places of a new session.
pub(super) struct Registered {
    pub(super) cell: Arc<Cell>,
    pub(super) end: CancellationToken,
    pub(super) streams: mpsc::Receiver<OpenStream>,
}

impl Reign {
    pub(super) fn new(store: Arc<dyn ClusterStore>, timing: Timing, clock: Clock, over: CancellationToken) -> Self {
        Self {
            store,
            timing,
            clock,
            over,
            routes: Mutex::default(),
            routing: Mutex::default(),
            keys: Mutex::default(),
            sessions: Mutex::default(),
            deadlines: Mutex::default(),
            deadlines_changed: Notify::new(),
            gathered: Mutex::default(),
            gathered_changed: Notify::new(),
            unready: Arc::default(),
        }
    }

    /// Runs the parts that all sessions share, until the leadership is over.
    ///
    /// `changes` was made before the first session could begin, so that none is missed.
    pub(super) async fn run(&self, changes: Box<dyn ClusterWatch>) {
        let work =
            async { tokio::join!(self.route(changes), self.watch_nodes(), self.watch_keys(), self.propose_statuses()) };
        tokio::select! {
            () = self.over.cancelled() => {}
            _ = work => {}
        }
    }

    /// Registers a session; an older one of the node ends.
    pub(super) fn begin(&self, node: NodeId, id: u64) -> Registered {
        let (sender, streams) = mpsc::channel(64);
        let (cell, end) = (Arc::new(Cell::default()), self.over.child_token());
        let heartbeat = self.heartbeat();
        let session = Session { id, end: end.clone(), streams: sender, vitals: HashMap::new(), heartbeat };
        if let Some(older) = lock(&self.sessions).insert(node, session) {
            older.end.cancel();
        }
        lock(&self.routing).begin(node, id);
        lock(&self.keys).begin(node, id);
        lock(&self.routes).insert(node, Arc::clone(&cell));
        self.heard_of(node);
        cell.mark(|dirty| dirty.all = true);
        Registered { cell, end, streams }
    }

    /// Forgets a session, unless a newer one has taken its place.
    pub(super) fn end(&self, node: NodeId, id: u64, cell: &Arc<Cell>) {
        let mut sessions = lock(&self.sessions);
        if sessions.get(&node).is_some_and(|session| session.id == id) {
            sessions.remove(&node);
        }
        drop(sessions);
        let mut routes = lock(&self.routes);
        if routes.is_current(node, cell) {
            routes.remove(node);
        }
    }

    /// The node has applied so many sets of its session.
    pub(super) fn applied(&self, node: NodeId, session: u64, sets: u64) {
        let released = lock(&self.routing).applied(node, session, sets);
        self.wake(released);
        let subjects = lock(&self.keys).applied(node, session, sets);
        if !subjects.is_empty() {
            let routes = lock(&self.routes);
            subjects.into_iter().for_each(|subject| routes.mark_node(subject));
        }
    }

    /// A set is about to be sent to the node.
    pub(super) fn sending(&self, node: NodeId, session: u64, set: &Assignments) {
        lock(&self.routing).sending(node, session, set);
        lock(&self.keys).sending(node, session, set);
    }

    /// Nobody waits any more for the node to lead to tasks no longer.
    fn forget_routing(&self, node: NodeId) {
        lock(&self.keys).lost(node);
        let released = lock(&self.routing).forget(node);
        self.wake(released);
    }

    fn wake(&self, released: Vec<Released>) {
        if !released.is_empty() {
            let routes = lock(&self.routes);
            released.into_iter().for_each(|(node, handle)| routes.mark_own(node, [handle]));
        }
    }

    /// Whether a node that should be there has no session: what an earlier leader told it is not known here.
    pub(super) fn misses_nodes(&self) -> bool {
        let (view, sessions) = (self.store.view(), lock(&self.sessions));
        view.nodes().iter().any(|node| node.state == NodeState::Ready && !sessions.contains_key(&node.id))
    }

    /// The node lives.
    pub(super) fn heard_of(&self, node: NodeId) {
        let told = lock(&self.sessions).get(&node).map(|session| session.heartbeat);
        let until = Instant::now() + self.timing.patience(told.unwrap_or_else(|| self.heartbeat()));
        let mut deadlines = lock(&self.deadlines);
        let is_waited_for = deadlines.next().is_some_and(|next| next <= until);
        deadlines.set(node, until);
        drop(deadlines);
        if !is_waited_for {
            self.deadlines_changed.notify_one();
        }
    }

    /// The node has said that it goes.
    pub(super) fn forget(&self, node: NodeId) {
        lock(&self.deadlines).remove(node);
    }

    /// Time between two heartbeats.
    pub(super) fn heartbeat(&self) -> Duration {
        self.store.view().cluster().map_or(self.timing.heartbeat, |cluster| cluster.spec.heartbeat_period)
    }

    /// The node is told another time between heartbeats, and has until three of them have passed.
    pub(super) fn set_heartbeat(&self, node: NodeId, session: u64, heartbeat: Duration) {
        if let Some(session) = lock(&self.sessions).get_mut(&node).filter(|s| s.id == session) {
            session.heartbeat = session.heartbeat.max(heartbeat);
        }
        self.heard_of(node);
        if let Some(session) = lock(&self.sessions).get_mut(&node).filter(|s| s.id == session) {
            session.heartbeat = heartbeat;
        }
    }

    /// Takes a status in.
    pub(super) fn report(&self, update: StatusUpdate) {
        lock(&self.gathered).push(update, Instant::now());
        self.gathered_changed.notify_one();
    }

    pub(super) fn set_vitals(&self, node: NodeId, session: u64, task: TaskId, vitals: TaskVitals) {
        if let Some(session) = lock(&self.sessions).get_mut(&node).filter(|s| s.id == session) {
            session.vitals.insert(task, vitals);
        }
    }

    /// Takes in whether a task wants new connections; whoever leads to it is told when that is news.
    pub(super) fn set_ready(&self, view: &dyn ClusterView, task: TaskId, ready: bool) {
        if !self.unready.set(task, !ready) {
            return;
        }
        let Some(task) = view.task(task) else { return };
        let touched = TouchedTask { handle: task.handle, service: task.service, old_node: None, new_node: task.node };
        lock(&self.routes).route(&Changes::Some(Touched { tasks: vec![touched], ..Touched::default() }));
    }

    pub(super) fn drop_vitals(&self, node: NodeId, session: u64, gone: &[TaskId]) {
        self.unready.forget(gone);
        if let Some(session) = lock(&self.sessions).get_mut(&node).filter(|s| s.id == session) {
            gone.iter().for_each(|task| {
                session.vitals.remove(task);
            });
        }
    }

    pub(super) fn vitals(&self, node: NodeId, task: TaskId) -> Option<TaskVitals> {
        lock(&self.sessions).get(&node)?.vitals.get(&task).cloned()
    }

    pub(super) fn connected(&self) -> Vec<NodeId> {
        lock(&self.sessions).keys().copied().collect()
    }

    /// Asks the node to open a stream.
    pub(super) fn ask_stream(&self, node: NodeId, open: OpenStream) -> Result<(), NoSession> {
        let sessions = lock(&self.sessions);
        let session = sessions.get(&node).ok_or(NoSession::NotConnected(node))?;
        session.streams.try_send(open).map_err(|_| NoSession::Busy(node))
    }

    /// Hands each change to the sessions that it concerns.
    async fn route(&self, mut changes: Box<dyn ClusterWatch>) {
        while let Some(changes) = changes.next().await {
            let nodes_changed = match &changes {
                Changes::All => true,
                Changes::Some(touched) => !touched.nodes.is_empty(),
            };
            if nodes_changed {
                self.drop_removed_nodes();
            }
            lock(&self.routes).route(&changes);
        }
    }

    /// A node that was removed has no session any more.
    fn drop_removed_nodes(&self) {
        let view = self.store.view();
        let mut removed = Vec::new();
        for (node, session) in lock(&self.sessions).iter() {
            if view.node(*node).is_none() {
                session.end.cancel();
                removed.push(*node);
            }
        }
        removed.into_iter().for_each(|node| self.forget_routing(node));
        lock(&self.keys).retain(|node| view.node(node).is_some());
    }

    /// Whether all nodes that count know `key` as the next one of `node`.
    pub(super) fn is_key_known(&self, view: &dyn ClusterView, node: NodeId, key: &[u8; 32]) -> bool {
        let nodes = view.nodes();
        let nodes = nodes.iter().map(|node| &**node);
        lock(&self.keys).is_known(node, key, nodes, self.clock.now(), self.timing.down_counts)
    }

    /// Has sessions look again whether their node's next key is known: that others are not waited for any more is no event.
    async fn watch_keys(&self) {
        loop {
            sleep(self.timing.down_counts / KEY_LOOKS).await;
            let view = self.store.view();
            let changing = |node: &Arc<Node>| node.description.wireguard.as_ref().is_some_and(|own| own.next.is_some());
            let routes = lock(&self.routes);
            view.nodes().iter().filter(|node| changing(node)).for_each(|node| routes.mark_node(node.id));
        }
    }

    /// Marks nodes down that were not heard of. A new leader has heard of nobody and waits longer at first.
    async fn watch_nodes(&self) {
        let first = Instant::now() + self.timing.grace + self.timing.patience(self.heartbeat());
        for node in self.store.view().nodes() {
            if matches!(node.state, NodeState::Ready | NodeState::Unknown) {
                lock(&self.deadlines).set_if_absent(node.id, first);
            }
        }
        loop {
            let next = lock(&self.deadlines).next();
            tokio::select! {
                () = self.deadlines_changed.notified() => {}
                () = sleep_until_or_never(next) => {}
            }
            let expired = lock(&self.deadlines).take_expired(Instant::now());
            for node in expired {
                // One that came back meanwhile has a new deadline.
                if !lock(&self.deadlines).contains(node) {
                    self.mark_down(node, LOST, false).await;
                }
            }
        }
    }

    pub(super) async fn mark_down(&self, node: NodeId, message: &str, has_left: bool) {
        if let Some(session) = lock(&self.sessions).get(&node) {
            session.end.cancel();
        }
        self.forget_routing(node);
        let Some(own) = self.store.view().node(node).filter(|own| own.state != NodeState::Down) else { return };
        // One that left speaks to nobody any more, and nobody to it. One that is lost may well go on.
        let description = has_left.then(|| NodeDescription { wireguard: None, ..own.description.clone() });
        let change =
            NodeChange { node, state: NodeState::Down, message: message.to_owned(), description, address: None };
        tracing::info!(node.id = %node, "node is down: {message}");
        if let Err(error) = self.store.change_node(change).await {
            tracing::warn!(node.id = %node, error = %chain(&error), "cannot mark the node down");
            lock(&self.deadlines).set_if_absent(node, Instant::now() + self.timing.retry);
            self.deadlines_changed.notify_one();
        }
    }

    /// Proposes statuses in batches, one at a time; those that come meanwhile gather.
    async fn propose_statuses(&self) {
        loop {
            let next = {
                let mut gathered = lock(&self.gathered);
                if gathered.is_due(Instant::now()) { None } else { Some(gathered.next()) }
            };
            if let Some(next) = next {
                tokio::select! {
                    () = self.gathered_changed.notified() => {}
                    () = sleep_until_or_never(next) => {}
                }
                continue;
            }
            if lock(&self.gathered).len() < BATCH {
                sleep(GATHER).await;
            }
            let batch = lock(&self.gathered).take(Instant::now());
            if let Err(error) = self.store.report(batch.clone()).await {
                tracing::warn!(statuses = batch.len(), error = %chain(&error), "statuses not recorded");
                lock(&self.gathered).put_back(batch);
                match error {
                    ProposeError::NotLeader => return self.over.cancelled().await,
                    ProposeError::Unavailable { .. } => sleep(self.timing.retry).await,
                }
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn sleep_until_or_never(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
