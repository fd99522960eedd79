//! Decides when a snapshot is written and how much of the log stays behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::node::Shared;
use super::types::LogId;

/// Time between two looks. At 200 MB/s of log this overshoots the limit by 50 MB.
const LOOK: Duration = Duration::from_millis(250);

/// What the operator may set of snapshots while the member runs.
#[derive(Debug)]
pub struct Retention {
    /// Entries after which a snapshot is due.
    pub(super) interval: AtomicU64,
    /// Snapshots that stay besides the newest.
    pub(super) older: AtomicUsize,
}

impl Retention {
    /// A snapshot each `interval` entries; `older` ones stay besides the newest, from the next one on.
    pub fn set(&self, interval: u64, older: u64) {
        self.interval.store(interval, Ordering::Relaxed);
        self.older.store(usize::try_from(older).unwrap_or(usize::MAX), Ordering::Relaxed);
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { interval: AtomicU64::new(10_000), older: AtomicUsize::new(0) }
    }
}

/// How much the log has grown since a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    pub bytes: u64,
    pub entries: u64,
}

/// Whether a snapshot is due: the log has grown by one of the limits, and in bytes by the last snapshot's size. So writing
/// snapshots never costs more than writing the log.
pub(super) fn is_due(grown: Growth, limit: Growth, last_snapshot: u64) -> bool {
    (grown.bytes >= limit.bytes || grown.entries >= limit.entries) && grown.bytes >= last_snapshot
}

/// Triggers snapshots and purges until stopped.
pub(super) async fn keep(shared: Arc<Shared>, after_bytes: u64, keep_bytes: u64, stop: CancellationToken) {
    let mut at_last = 0;
    let mut last_seen = None;
    // Index at which the last snapshot was asked for.
    let mut asked = 0;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (snapshot, applied) = {
            let metrics = shared.raft.metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: &Option<LogId>| id.as_ref().map(|id| id.index);
            (index(&metrics.snapshot), index(&metrics.last_applied).unwrap_or_default())
        };
        if let Some(index) = snapshot.filter(|index| last_seen < Some(*index)) {
            last_seen = Some(index);
            if let Some(point) = shared.log.purge_point(keep_bytes, index) {
                // A member that has stopped says so elsewhere.
                let _ = shared.raft.trigger().purge_log(point).await;
            }
        }
        let size = shared.snapshots.current().map_or(0, |(_, file)| file.length);
        let appended = shared.log.appended_bytes();
        let interval = shared.snapshots.retention().interval.load(Ordering::Relaxed).max(1);
        let since = applied.saturating_sub(snapshot.unwrap_or_default().max(asked));
        let grown = Growth { bytes: appended - at_last, entries: since };
        if is_due(grown, Growth { bytes: after_bytes, entries: interval }, size) {
            asked = applied;
            at_last = appended;
            let _ = shared.raft.trigger().snapshot().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Growth, is_due};

    #[test]
    fn a_snapshot_is_due_by_bytes_or_entries_and_never_for_less_than_it_costs() {
        let limit = Growth { bytes: 100, entries: 10 };
        let is_due = |bytes, entries, last| is_due(Growth { bytes, entries }, limit, last);
        assert!(!is_due(99, 9, 0));
        assert!(is_due(100, 1, 0));
        assert!(!is_due(100, 10, 500));
        assert!(is_due(500, 1, 500));
        assert!(is_due(50, 10, 50));
    }
}
