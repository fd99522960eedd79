//! Settings of one member of the group.

use std::time::Duration;

use super::log::{SegmentSizes, Workers};
use super::types::RaftId;

/// How fast a lost leader is replaced, and how much delay is borne before one counts as lost.
///
/// A follower stands for election when it heard nothing for `election_max` and a random time between `election_min` and
/// `election_max` more: with the defaults 0.9 to 1.2 s after the leader died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// Shortest additional wait before an election.
    pub election_min: Duration,
    /// Longest additional wait, and the lease: a leader that no majority answered for so long leads no more.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
        }
    }
}

/// Settings of one member. The defaults suit machines on one network.
#[derive(Debug, Clone)]
pub struct Config {
    /// This member's number. Given by the leader when the node joins as a manager, 1 for the first.
    pub id: RaftId,
    /// The cluster, as 16 bytes. Logs, snapshots and calls of another cluster are refused.
    pub cluster: [u8; 16],
    /// Heartbeats and elections.
    pub timing: Timing,
    /// Sizes of the log's files.
    pub segments: SegmentSizes,
    /// Bytes of log after which a snapshot is written, or the size of the last snapshot if that is larger.
    pub snapshot_after_bytes: u64,
    /// Bytes of entries that a snapshot covers and that are kept all the same, so that a follower which was away for a
    /// while is served from the log.
    pub keep_log_bytes: u64,
    /// Entries, in number, that are kept at most when a snapshot covers them.
    pub keep_log_entries: u64,
    /// Where blocking work runs.
    pub workers: Workers,
}

impl Config {
    /// The defaults for member `id` of `cluster`.
    pub fn new(id: RaftId, cluster: [u8; 16]) -> Self {
        Self {
            id,
            cluster,
            timing: Timing::default(),
            segments: SegmentSizes::default(),
            snapshot_after_bytes: 64 << 20,
            keep_log_bytes: 64 << 20,
            keep_log_entries: 10_000,
            workers: Workers::Threads,
        }
    }

    pub(super) fn for_openraft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: hex::encode(self.cluster),
            heartbeat_interval: ms(self.timing.heartbeat),
            election_timeout_min: ms(self.timing.election_min),
            election_timeout_max: ms(self.timing.election_max),
            // A node that was cut off asks before it disturbs a leader that works (raft dissertation, section 9.6).
            enable_pre_vote: Some(true),
            // A leader sends entries to followers before its own flush. One that lost such an entry in a crash and led on in
            // the same term would write another at its place: two entries of one index and term, each with a majority.
            enable_leader_restore: Some(false),
            // Must be at least twice the lease; it mutes the heartbeats of a leader without a majority from time to time.
            quorum_loss_probe_interval: Some(2 * ms(self.timing.election_max)),
            // The built-in policy counts entries; ours differ in size by a factor of a thousand.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.keep_log_entries,
            purge_batch_size: 1_000.min(self.keep_log_entries.max(1)),
            // Bytes are what bounds a message, see `LogStore::limited_get_log_entries`.
            max_payload_entries: 1_024,
            // For the whole transfer and installation. A dead link shows by keepalive, long before.
            install_snapshot_timeout: 600_000,
            backoff: "100ms".into(),
            ..openraft::Config::default()
        };
        config.validate()
    }
}
