//! Decides when a snapshot is written and how much of the log stays behind it.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::node::Shared;

/// Time between two looks. At 200 MB/s of log this overshoots the limit by 50 MB.
const LOOK: Duration = Duration::from_millis(250);

/// Whether a snapshot is due: the log has grown by the larger of `limit` and the last snapshot's size, in bytes. So
/// writing snapshots never costs more than writing the log.
pub(super) fn is_due(grown: u64, limit: u64, last_snapshot: u64) -> bool {
    grown >= limit.max(last_snapshot)
}

/// Triggers snapshots and purges until stopped.
pub(super) async fn keep(shared: Arc<Shared>, after_bytes: u64, keep_bytes: u64, stop: CancellationToken) {
    let mut at_last = 0;
    let mut last_seen = None;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let snapshot = shared.raft.metrics().borrow_watched().snapshot.as_ref().map(|id| id.index);
        if let Some(index) = snapshot.filter(|index| last_seen < Some(*index)) {
            last_seen = Some(index);
            if let Some(point) = shared.log.purge_point(keep_bytes, index) {
                // A member that has stopped says so elsewhere.
                let _ = shared.raft.trigger().purge_log(point).await;
            }
        }
        let size = shared.snapshots.current().map_or(0, |(_, file)| file.length);
        let appended = shared.log.appended_bytes();
        if is_due(appended - at_last, after_bytes, size) {
            at_last = appended;
            let _ = shared.raft.trigger().snapshot().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_due;

    #[test]
    fn a_snapshot_is_due_by_bytes_and_never_for_less_than_it_costs() {
        assert!(!is_due(99, 100, 0));
        assert!(is_due(100, 100, 0));
        assert!(!is_due(100, 100, 500));
        assert!(is_due(500, 100, 500));
    }
}
