//! The one way into the log for this manager's changes: gathers what is proposed at the same time into bounded entries.
//!
//! ```text
//! faces, reconcilers ──group──► queue ──gather──► entry ──► own log, if this member leads
//!        ▲                                          └─────► one stream to the leader, if another does
//!        └──outcome, once this member's state has applied the entry──┘
//! ```
//! A thousand callers cost what sixteen do, and whoever proposed reads its own write here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::facade::Raft;
use super::forward::Forwarder;
use super::node::{Outcome, Shared};

/// Groups that may wait to be gathered. Further callers wait for room.
const QUEUE: usize = 4096;
/// Entries in flight above which an entry that is not full waits and grows.
const EAGER: usize = 2;
/// Time between two tries to find a leader.
const RETRY: Duration = Duration::from_millis(10);

/// How groups become an entry, and its reply their outcomes. The state machine's side of the contract.
pub trait EntryCodec: Send + Sync + 'static {
    /// One entry of these groups, in order. `at_ms` is the proposer's clock in milliseconds since 1970.
    fn encode(&self, at_ms: u64, groups: &[Bytes]) -> Bytes;

    /// The outcome of each of the `groups` groups, in order, from the reply of the state machine. `None`: the reply does
    /// not parse.
    fn split(&self, reply: &Bytes, groups: usize) -> Option<Vec<Bytes>>;
}

/// The clock that stamps entries, in milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Changes that are applied or refused together.
#[derive(Debug, Clone)]
pub struct Group {
    /// Encoded for [`EntryCodec`].
    pub bytes: Bytes,
    /// How many changes it has: a part of what bounds an entry.
    pub changes: usize,
}

/// A group's way through the log has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Index of the entry.
    pub index: u64,
    /// What the state machine said to this group: applied, or refused with a reason.
    pub outcome: Bytes,
}

/// A group did not get through the log, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It is in no log. May be proposed again as it is.
    #[error("the cluster has had no leader for {0:?}; nothing was changed")]
    NoLeader(Duration),
    /// It may have been applied or may be yet. Before proposing again look, or use the same request id.
    #[error("the cluster did not confirm the change in time; it may or may not be made: check before trying again")]
    Timeout,
    /// It can never get through.
    #[error("{0}")]
    Refused(String),
}

/// What bounds entries.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes in one entry.
    pub changes: usize,
    /// Bytes of the groups in one entry, if there is more than one.
    pub bytes: usize,
    /// Bytes of one group. A larger one is refused.
    pub group_bytes: usize,
    /// Entries in flight.
    pub in_flight: usize,
    /// How long a group may take, from being queued to being applied here.
    pub within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { changes: 500, bytes: 256 << 10, group_bytes: 1 << 20, in_flight: 16, within: Duration::from_secs(5) }
    }
}

type Answer = oneshot::Sender<Result<Applied, ProposeError>>;

struct Waiting {
    group: Group,
    since: Instant,
    answer: Answer,
}

/// Puts groups into the log. Clones share one queue.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    limits: Limits,
}

impl Proposer {
    /// Starts the queue of a manager, on the runtime of its member. It ends when its last handle is dropped.
    pub fn start(raft: &Raft, codec: Arc<dyn EntryCodec>, clock: Clock, limits: Limits) -> Self {
        let (queue, rx) = mpsc::channel(QUEUE);
        let gatherer = Gatherer {
            path: Arc::new(Path {
                forwarder: Forwarder::new(Arc::clone(&raft.shared)),
                shared: Arc::clone(&raft.shared),
                codec,
                clock,
                within: limits.within,
            }),
            limits,
            batch: Vec::new(),
            changes: 0,
            bytes: 0,
        };
        raft.shared.runtime.spawn(gatherer.run(rx));
        Self { queue, limits }
    }

    /// Puts `group` into the log and waits until this member's state has applied it.
    ///
    /// # Errors
    /// [`ProposeError`] says whether it may be proposed again. A refusal by the state machine is not an error here but an
    /// outcome.
    ///
    /// # Cancel safety
    /// The group may be applied all the same.
    pub async fn propose(&self, group: Group) -> Result<Applied, ProposeError> {
        if group.bytes.len() > self.limits.group_bytes {
            let (length, limit) = (group.bytes.len(), self.limits.group_bytes);
            return Err(ProposeError::Refused(format!("the change has {length} bytes, the limit is {limit}")));
        }
        let (answer, rx) = oneshot::channel();
        let waiting = Waiting { group, since: Instant::now(), answer };
        let stopped = || ProposeError::Refused("this manager is shutting down".into());
        self.queue.send(waiting).await.map_err(|_| stopped())?;
        rx.await.unwrap_or_else(|_| Err(stopped()))
    }
}

struct Gatherer {
    path: Arc<Path>,
    limits: Limits,
    batch: Vec<Waiting>,
    changes: usize,
    bytes: usize,
}

impl Gatherer {
    async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        let mut in_flight: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        let mut next = None;
        loop {
            // Take what is there, up to one full entry.
            while next.is_none() {
                let Ok(waiting) = queue.try_recv() else { break };
                next = self.add(waiting);
            }
            let full = next.is_some() || self.is_full();
            let room = if full { self.limits.in_flight } else { EAGER.min(self.limits.in_flight) };
            if !self.batch.is_empty() && in_flight.len() < room {
                in_flight.push(Box::pin(Arc::clone(&self.path).carry(self.take())));
                if let Some(waiting) = next.take() {
                    next = self.add(waiting);
                }
                continue;
            }
            tokio::select! {
                biased;
                Some(()) = in_flight.next() => {}
                waiting = queue.recv(), if !full => match waiting {
                    Some(waiting) => next = self.add(waiting),
                    None if in_flight.is_empty() && self.batch.is_empty() => return,
                    // Closed: what is left is carried as entries come back.
                    None => drop(in_flight.next().await),
                },
            }
        }
    }

    /// Adds a group to the entry, or gives it back if the entry would be too large.
    fn add(&mut self, waiting: Waiting) -> Option<Waiting> {
        let (changes, bytes) = (waiting.group.changes, waiting.group.bytes.len());
        let fits = self.changes + changes <= self.limits.changes && self.bytes + bytes <= self.limits.bytes;
        if !fits && !self.batch.is_empty() {
            return Some(waiting);
        }
        self.changes += changes;
        self.bytes += bytes;
        self.batch.push(waiting);
        None
    }

    fn is_full(&self) -> bool {
        self.changes >= self.limits.changes || self.bytes >= self.limits.bytes
    }

    fn take(&mut self) -> Vec<Waiting> {
        (self.changes, self.bytes) = (0, 0);
        std::mem::take(&mut self.batch)
    }
}

/// The way of an entry to the leader and back.
struct Path {
    shared: Arc<Shared>,
    forwarder: Forwarder,
    codec: Arc<dyn EntryCodec>,
    clock: Clock,
    within: Duration,
}

impl Path {
    async fn carry(self: Arc<Self>, batch: Vec<Waiting>) {
        let Some(oldest) = batch.first().map(|waiting| waiting.since) else { return };
        let groups: Vec<Bytes> = batch.iter().map(|waiting| waiting.group.bytes.clone()).collect();
        let entry = self.codec.encode((self.clock)(), &groups);
        let result = self.commit(entry, oldest + self.within).await;
        let outcomes = result.and_then(|(index, reply)| {
            let outcomes = self.codec.split(&reply, batch.len()).filter(|outcomes| outcomes.len() == batch.len());
            // Applied, and nobody can say with what outcome: the managers run different releases.
            outcomes.map(|outcomes| (index, outcomes)).ok_or(ProposeError::Timeout)
        });
        match outcomes {
            Ok((index, outcomes)) => {
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    // Who no longer waits does not need to know.
                    let _ = waiting.answer.send(Ok(Applied { index, outcome }));
                }
            }
            Err(error) => {
                for waiting in batch {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Puts the entry into the log once. Only what certainly is in no log is tried again.
    async fn commit(&self, entry: Bytes, deadline: Instant) -> Result<(u64, Bytes), ProposeError> {
        loop {
            let leader = self.shared.leader.borrow().clone();
            let outcome = match leader {
                None => Outcome::NotLeader(None),
                Some(leader) if leader.id == self.shared.id => {
                    let submitted = self.shared.submit(entry.clone()).await;
                    tokio::time::timeout_at(deadline, submitted.outcome()).await.unwrap_or(Outcome::Unknown)
                }
                Some(leader) => self.forwarder.forward(&leader, entry.clone(), deadline).await,
            };
            match outcome {
                Outcome::Applied { index, reply } => {
                    let mut applied = self.shared.applied.clone();
                    let here = applied.wait_for(|applied| *applied >= Some(index));
                    return match tokio::time::timeout_at(deadline, here).await {
                        Ok(Ok(_)) => Ok((index, reply)),
                        Ok(Err(_)) | Err(_) => Err(ProposeError::Timeout),
                    };
                }
                Outcome::Unknown => return Err(ProposeError::Timeout),
                Outcome::NotLeader(_) if Instant::now() + RETRY >= deadline => {
                    return Err(ProposeError::NoLeader(self.within));
                }
                Outcome::NotLeader(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}
