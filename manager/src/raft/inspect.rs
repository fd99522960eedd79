//! What a member's log holds, for diagnosis and for comparing managers.

use super::facade::Raft;
use super::types::EntryPayload;

/// One entry, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogSummary {
    /// Its index.
    pub index: u64,
    /// Term of the leader that wrote it.
    pub term: u64,
    /// CRC-32 of its payload: the same on every manager that has the entry.
    pub checksum: u32,
}

impl Raft {
    /// The entries in memory, oldest first: all since the last purge, applied or not.
    pub fn log(&self) -> Vec<LogSummary> {
        let entries = self.shared.log.entries();
        let summary = |entry: &super::types::Entry| LogSummary {
            index: entry.log_id.index,
            term: entry.log_id.leader_id.term,
            checksum: match &entry.payload {
                EntryPayload::Blank => 0,
                EntryPayload::Normal(payload) => crc32fast::hash(&payload.0),
                EntryPayload::Membership(membership) => crc32fast::hash(membership.to_string().as_bytes()),
            },
        };
        entries.iter().map(summary).collect()
    }
}
