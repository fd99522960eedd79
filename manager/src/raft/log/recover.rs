//! Reads the log back when the manager starts, and tells a write that a crash tore from a file that was damaged.
//!
//! A batch is written only after the one before it was flushed. So bytes that are no batch, with nothing valid after
//! them, at the end of the last segment, are a write that was never acknowledged: they are cut off. The same bytes with a
//! valid batch behind them, or in an earlier segment, were acknowledged and have changed since: the node must not guess
//! what it promised, and refuses to start.

use std::collections::VecDeque;
use std::io;

use super::super::disk::{Disk, DiskFile};
use super::super::types::{Entry, LogId, Vote};
use super::record::{self, DecodeError, Record, Seal};
use super::segment;

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The disk refused.
    #[error("cannot read the raft log {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Bytes that were acknowledged have changed.
    #[error(
        "the raft log is damaged: {file} at byte {offset}: {what}. Acknowledged writes may be lost on this manager, so it \
         does not start. Rebuild it from its peers: remove it on another manager (`skep node demote NODE`, `skep node rm \
         NODE`), empty its raft folder, and join it again. If no other manager is left, restore a backup"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where the damage begins, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Whole, and not readable with these keys or by this release.
    #[error("cannot read the raft log {file} at byte {offset}: {source}")]
    Decode {
        /// The file.
        file: String,
        /// Where the record is, in bytes.
        offset: u64,
        /// Why.
        source: DecodeError,
    },
}

/// What the log says: the replay of all records so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// Consecutive, all after `purged`.
    pub entries: VecDeque<Entry>,
    /// Bytes of the payloads in `entries`.
    pub bytes: u64,
}

impl State {
    /// Index of the last entry, purged or not.
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.back().map(|e| e.log_id).or(self.purged)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    pub(super) fn truncate_after(&mut self, last: Option<&LogId>) {
        while let Some(entry) = self.entries.back()
            && last.is_none_or(|last| entry.log_id.index > last.index)
        {
            self.bytes -= weight(entry);
            self.entries.pop_back();
        }
    }

    pub(super) fn purge(&mut self, upto: &LogId) {
        if self.purged.as_ref().is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(*upto);
        }
        while let Some(entry) = self.entries.front()
            && entry.log_id.index <= upto.index
        {
            self.bytes -= weight(entry);
            self.entries.pop_front();
        }
    }

    fn replay(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Checkpoint { vote, committed, purged } => {
                self.vote = vote;
                self.committed = committed;
                if let Some(purged) = purged {
                    self.purge(&purged);
                }
            }
            Record::Entry(entry) => {
                let index = entry.log_id.index;
                match self.entries.back() {
                    Some(last) if index <= last.log_id.index => {
                        return Err(format!("entry {index} follows entry {}", last.log_id.index));
                    }
                    // What lies before a gap was purged: the record that says so comes later.
                    Some(last) if index > last.log_id.index + 1 => self.truncate_after(None),
                    _ => {}
                }
                self.push(entry);
            }
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(committed) => self.committed = committed,
            Record::Truncate(last) => self.truncate_after(last.as_ref()),
            Record::Purge(upto) => self.purge(&upto),
        }
        Ok(())
    }
}

/// Bytes that an entry counts for in limits.
pub(super) fn weight(entry: &Entry) -> u64 {
    use super::super::types::EntryPayload;
    const FIXED: u64 = 64;
    match &entry.payload {
        EntryPayload::Normal(payload) => FIXED + payload.0.len() as u64,
        EntryPayload::Blank | EntryPayload::Membership(_) => FIXED,
    }
}

/// A segment that is full and was flushed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Full {
    pub number: u64,
    /// The highest index among its entries. `None`: it holds none.
    pub last_index: Option<u64>,
}

/// Where the next batch goes.
pub(super) struct Tail {
    pub number: u64,
    pub file: Box<dyn DiskFile>,
    pub position: u64,
    pub last_index: Option<u64>,
}

pub(super) struct Recovered {
    pub state: State,
    pub full: Vec<Full>,
    /// `None`: there is no segment yet.
    pub tail: Option<Tail>,
    pub next_sequence: u64,
    /// Bytes of a torn write that were cut off.
    pub cut: u64,
}

pub(super) fn recover(disk: &dyn Disk, seal: &Seal) -> Result<Recovered, RecoverError> {
    let names = disk.list().map_err(|source| RecoverError::Io { file: "folder".into(), source })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();

    let mut out = Recovered { state: State::default(), full: Vec::new(), tail: None, next_sequence: 0, cut: 0 };
    for (i, &number) in numbers.iter().enumerate() {
        if number != numbers[0] + i as u64 {
            let what = format!("the segment before it, {}, is missing", segment::name(number - 1));
            return Err(RecoverError::Damaged { file: segment::name(number), offset: 0, what });
        }
        read_segment(disk, seal, number, i == 0, i + 1 == numbers.len(), &mut out)?;
    }
    check_whole(&out, &numbers)?;
    Ok(out)
}

fn read_segment(
    disk: &dyn Disk,
    seal: &Seal,
    number: u64,
    is_first: bool,
    is_last: bool,
    out: &mut Recovered,
) -> Result<(), RecoverError> {
    let file_name = segment::name(number);
    let io = |source| RecoverError::Io { file: file_name.clone(), source };
    let damaged =
        |offset: usize, what: String| RecoverError::Damaged { file: file_name.clone(), offset: offset as u64, what };

    let mut file = disk.open(&file_name).map_err(io)?;
    let length = usize::try_from(file.len().map_err(io)?).map_err(|e| io(io::Error::other(e)))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).map_err(io)?;

    let (mut at, mut last_index) = (0, None);
    while let Some(batch) = record::read_batch(&bytes[at.min(length)..]) {
        if is_first && at == 0 {
            out.next_sequence = batch.sequence;
        }
        if batch.sequence != out.next_sequence {
            let what = format!("batch {} where batch {} belongs", batch.sequence, out.next_sequence);
            return Err(damaged(at, what));
        }
        let mut records = batch.records;
        while !records.is_empty() {
            let decode = |source| RecoverError::Decode { file: file_name.clone(), offset: at as u64, source };
            let record = record::read_record(&mut records, seal).map_err(decode)?;
            if let Record::Entry(entry) = &record {
                last_index = last_index.max(Some(entry.log_id.index));
            }
            out.state.replay(record).map_err(|what| damaged(at, what))?;
        }
        out.next_sequence += 1;
        at += batch.span;
    }

    let rest = &bytes[at.min(length)..];
    if let Some(end) = rest.iter().rposition(|b| *b != 0).map(|last| last + 1) {
        if !is_last {
            return Err(damaged(at, "bytes that are no batch, in a segment that was completed".into()));
        }
        if let Some(found) = (8..end).step_by(8).find(|i| record::read_batch(&rest[*i..]).is_some()) {
            return Err(damaged(
                at,
                format!("bytes that are no batch, with a valid one behind them at byte {}", at + found),
            ));
        }
        // Torn: never acknowledged. Zeroed, so that nothing of it is ever read as part of a later batch.
        file.write_all_at(&vec![0; end], at as u64).map_err(io)?;
        file.sync().map_err(io)?;
        out.cut = end as u64;
    }
    if is_last {
        out.tail = Some(Tail { number, file, position: at as u64, last_index });
    } else {
        out.full.push(Full { number, last_index });
    }
    Ok(())
}

/// Entries that were never purged must be there from the first one on.
fn check_whole(out: &Recovered, numbers: &[u64]) -> Result<(), RecoverError> {
    let missing = match (out.state.entries.front(), &out.state.purged) {
        (Some(front), Some(purged)) => front.log_id.index > purged.index + 1,
        (Some(_), None) => numbers[0] != 0,
        (None, _) => false,
    };
    if missing {
        let what = "entries before this segment are missing and were not purged".into();
        return Err(RecoverError::Damaged { file: segment::name(numbers[0]), offset: 0, what });
    }
    Ok(())
}
