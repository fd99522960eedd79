//! The replicated log on disk: segment files, one writer, and all entries since the last purge in memory.
//!
//! ```text
//! openraft ──append, vote, purge──► LogStore ──queue──► appender thread ──one write, one flush a batch──► segment
//!    ▲                                 │ entries are readable at once                   │
//!    └──────── reads: memory only ◄────┘          flushed: callback ◄──────────────────┘
//! ```
//! Invariants: entries in memory are consecutive; a callback runs only after its bytes are flushed; a disk error is final.

mod appender;
mod record;
mod recover;
mod segment;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot, watch};

use super::disk::Disk;
use super::types::{Entry, LogId, TypeConfig, Vote};
use appender::{Appender, Op};
use recover::State;

pub use record::{DecodeError, Seal};
pub use recover::RecoverError;
pub use segment::SegmentSizes;

/// Appends that may wait for the disk. openraft itself bounds what it has in flight far below.
const QUEUE: usize = 1024;
/// Payload bytes in one message to a follower; one entry more may go over it.
const READ_BYTES: u64 = 1 << 20;

/// Where blocking work runs.
#[derive(Debug, Clone, Copy)]
pub enum Workers {
    /// On threads of their own.
    Threads,
    /// Inside the runtime that called: for simulations, which must own all time and order.
    Local {
        /// How long a flush takes.
        flush: Duration,
    },
}

impl Workers {
    /// Runs something that blocks on the disk.
    pub(crate) async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Self::Local { flush } => {
                tokio::time::sleep(flush).await;
                Ok(work())
            }
        }
    }
}

/// The entries of a log that no member uses, oldest first.
///
/// # Errors
/// When it cannot be read, or is damaged.
pub(crate) fn read_entries(disk: &dyn Disk, seal: &Seal) -> Result<Vec<Entry>, RecoverError> {
    Ok(recover::recover(disk, seal)?.state.entries.into_iter().collect())
}

/// The log of one manager. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    state: Arc<Mutex<State>>,
    appended: Arc<std::sync::atomic::AtomicU64>,
    queue: mpsc::Sender<Op>,
    failed: watch::Receiver<Option<String>>,
}

impl LogStore {
    /// Reads the log back and starts its writer. Blocks for as long as that takes.
    pub fn open(disk: Arc<dyn Disk>, seal: Seal, sizes: SegmentSizes, workers: Workers) -> Result<Self, RecoverError> {
        let io = |source| RecoverError::Io { file: "folder".into(), source };
        let mut recovered = recover::recover(&*disk, &seal)?;
        if recovered.cut > 0 {
            tracing::info!(
                bytes = recovered.cut,
                "cut a write off the raft log that a crash tore; it was never acknowledged"
            );
        }
        let (failed_tx, failed) = watch::channel(None);
        let in_background = matches!(workers, Workers::Threads);
        let appender = Appender::new(disk, seal, sizes, in_background, &mut recovered, failed_tx).map_err(io)?;
        let (queue, rx) = mpsc::channel(QUEUE);
        match workers {
            Workers::Threads => {
                std::thread::Builder::new().name("raft-log".into()).spawn(move || appender.run(rx)).map_err(io)?;
            }
            Workers::Local { flush } => {
                tokio::spawn(appender.run_local(rx, flush));
            }
        }
        let appended = Arc::new(recovered.state.bytes.into());
        Ok(Self { state: Arc::new(Mutex::new(recovered.state)), appended, queue, failed })
    }

    /// The text of the disk error that ended the log, once there is one.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Payload bytes ever appended since the log was opened, those found on disk included. Only grows.
    pub fn appended_bytes(&self) -> u64 {
        self.appended.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The highest index to purge so that the entries that stay have at most `bytes`, but never above `limit`.
    pub fn purge_point(&self, bytes: u64, limit: u64) -> Option<u64> {
        let state = self.state();
        let mut kept = state.bytes;
        let mut point = None;
        for entry in state.entries.iter().take_while(|e| e.log_id.index <= limit) {
            if kept <= bytes {
                break;
            }
            kept -= recover::weight(entry);
            point = Some(entry.log_id.index);
        }
        point
    }

    /// Whether the entry at `index` was purged.
    pub(crate) fn is_purged(&self, index: u64) -> bool {
        self.state().purged.is_some_and(|purged| index <= purged.index)
    }

    /// All entries since the last purge.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.read(.., u64::MAX)
    }

    /// Waits until everything appended so far is on disk.
    pub async fn flush(&self) -> io::Result<()> {
        let (done, rx) = oneshot::channel();
        self.send(Op::Barrier(done)).await?;
        rx.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics while holding the log's state")
    }

    async fn send(&self, op: Op) -> io::Result<()> {
        self.queue.send(op).await.map_err(|_| self.stopped())
    }

    fn stopped(&self) -> io::Error {
        let reason = self.failed.borrow().clone().unwrap_or_else(|| "it was closed".into());
        io::Error::other(format!("the raft log no longer takes writes: {reason}"))
    }

    fn read(&self, range: impl RangeBounds<u64>, bytes: u64) -> Vec<Entry> {
        let state = self.state();
        let Some(front) = state.entries.front().map(|e| e.log_id.index) else { return Vec::new() };
        let start = match range.start_bound() {
            Bound::Included(&i) => i,
            Bound::Excluded(&i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&i) => i.saturating_add(1),
            Bound::Excluded(&i) => i,
            Bound::Unbounded => u64::MAX,
        };
        let skip = usize::try_from(start.saturating_sub(front)).unwrap_or(usize::MAX);
        let mut budget = bytes;
        state
            .entries
            .iter()
            .skip(skip)
            .take_while(|e| e.log_id.index < end)
            .take_while(|e| {
                let more = budget > 0;
                budget = budget.saturating_sub(recover::weight(e));
                more
            })
            .cloned()
            .collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.read(range, u64::MAX))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // A replication stream may ask for what was purged under it. Entries from further on would leave a hole in the
        // follower's log; with none the link sees that the stream cannot go on, see `network::client`.
        if self.is_purged(start) {
            return Ok(Vec::new());
        }
        Ok(self.read(start..end, READ_BYTES))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, rx) = oneshot::channel();
        self.send(Op::Vote { vote: *vote, done }).await?;
        rx.await.unwrap_or_else(|_| Err(self.stopped()))?;
        self.state().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.state().committed.clone_from(&committed);
        self.send(Op::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut state = self.state();
            let mut next = state.last().map(|last| last.index + 1);
            for entry in &entries {
                let index = entry.log_id.index;
                if next.is_some_and(|next| next != index) {
                    // Raft looks at the last entry only: a hole would never be found again.
                    return Err(io::Error::other(format!("entry {index} does not follow the log's last entry")));
                }
                next = Some(index + 1);
            }
            let before = state.bytes;
            for entry in &entries {
                state.push(entry.clone());
            }
            self.appended.fetch_add(state.bytes - before, std::sync::atomic::Ordering::Relaxed);
        }
        self.send(Op::Append { entries, flushed }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.state().truncate_after(last.as_ref());
        self.send(Op::Truncate(last)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.state().purge(&upto);
        self.send(Op::Purge(upto)).await
    }
}
