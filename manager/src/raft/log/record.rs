//! How the log lies on disk: batches of records.
//!
//! ```text
//! batch:   magic u32 | length u32 | crc32 u32 | sequence u64 | records ... | zeros to the next multiple of 8
//! record:  kind u8 | length u32 | body
//! ```
//! Integers are little-endian. A batch is what one write and one flush put on disk, so it is also what a crash tears:
//! `length` counts the bytes of the records, the checksum covers sequence, length and records. `sequence` goes up by one
//! from batch to batch over all segments, so that a missing segment shows.

use super::super::seal::{OpenError, Sealer};
use super::super::types::{Entry, EntryPayload, LogId, Membership, Payload, Vote, log_id};

pub(super) const BATCH_HEADER: usize = 20;
const MAGIC: u32 = 0x4c_52_4b_53; // "SKRL"
const RECORD_HEADER: usize = 5;

/// What a log is sealed with and to whom it belongs.
#[derive(Debug, Clone)]
pub struct Seal {
    /// The cluster: a log of another one does not open.
    pub cluster: [u8; 16],
    /// Seals and opens.
    pub sealer: std::sync::Arc<Sealer>,
}

/// Bytes that passed the checksum and still make no sense: another format, another cluster, or a wrong key.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A record ends before its body does.
    #[error("a record is cut short")]
    Short,
    /// Written by a newer release.
    #[error("record kind {0} is not known to this release; run the release that wrote it, or a newer one")]
    UnknownKind(u8),
    /// Not to be opened.
    #[error("log entry {index} cannot be opened: {source}")]
    Sealed {
        /// Index of the entry.
        index: u64,
        /// Why.
        source: OpenError,
    },
    /// A membership that does not parse.
    #[error("the membership in log entry {index} cannot be read: {source}")]
    Membership {
        /// Index of the entry.
        index: u64,
        /// Why.
        source: postcard::Error,
    },
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// First record of each segment: all that earlier segments say besides entries, so that they can be unlinked.
    Checkpoint {
        vote: Option<Vote>,
        committed: Option<LogId>,
        purged: Option<LogId>,
    },
    Entry(Entry),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Entries after this one are void.
    Truncate(Option<LogId>),
    /// Entries up to this one, inclusive, are in a snapshot.
    Purge(LogId),
}

const CHECKPOINT: u8 = 1;
const ENTRY_BLANK: u8 = 2;
const ENTRY_NORMAL: u8 = 3;
const ENTRY_MEMBERSHIP: u8 = 4;
const VOTE: u8 = 5;
const COMMITTED: u8 = 6;
const TRUNCATE: u8 = 7;
const PURGE: u8 = 8;

/// Starts a batch in `out`; close it with [`finish_batch`] and the returned position.
pub(super) fn begin_batch(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + BATCH_HEADER, 0);
    start
}

/// Fills in the header of the batch that starts at `start`.
pub(super) fn finish_batch(out: &mut Vec<u8>, start: usize, sequence: u64) {
    let length = u32::try_from(out.len() - start - BATCH_HEADER).expect("batches are bounded far below 4 GiB");
    out[start..start + 4].copy_from_slice(&MAGIC.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out[start + 12..start + 20].copy_from_slice(&sequence.to_le_bytes());
    let crc = checksum(length, &out[start + 12..]);
    out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
}

/// `rest` starts with the sequence number.
fn checksum(length: u32, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

/// A batch found in a segment.
#[derive(Debug, PartialEq)]
pub(super) struct Batch<'a> {
    pub sequence: u64,
    pub records: &'a [u8],
    /// Bytes up to where the next batch begins.
    pub span: usize,
}

/// The batch that begins `bytes`, if a whole and unchanged one does.
pub(super) fn read_batch(bytes: &[u8]) -> Option<Batch<'_>> {
    let header = bytes.get(..BATCH_HEADER)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if word(0) != MAGIC {
        return None;
    }
    let length = word(4);
    let end = BATCH_HEADER.checked_add(length as usize)?;
    let covered = bytes.get(12..end)?;
    if checksum(length, covered) != word(8) {
        return None;
    }
    let sequence = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    Some(Batch { sequence, records: &bytes[BATCH_HEADER..end], span: end.next_multiple_of(8) })
}

/// Appends `record` to the batch being built in `out`.
pub(super) fn write_record(record: &Record, seal: &Seal, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + RECORD_HEADER, 0);
    let kind = match record {
        Record::Checkpoint { vote, committed, purged } => {
            put_option(out, vote.as_ref(), put_vote);
            put_option(out, committed.as_ref(), put_log_id);
            put_option(out, purged.as_ref(), put_log_id);
            CHECKPOINT
        }
        Record::Entry(entry) => write_entry(entry, seal, out),
        Record::Vote(vote) => {
            put_vote(out, vote);
            VOTE
        }
        Record::Committed(id) => {
            put_option(out, id.as_ref(), put_log_id);
            COMMITTED
        }
        Record::Truncate(id) => {
            put_option(out, id.as_ref(), put_log_id);
            TRUNCATE
        }
        Record::Purge(id) => {
            put_log_id(out, id);
            PURGE
        }
    };
    let length = u32::try_from(out.len() - start - RECORD_HEADER).expect("records are bounded far below 4 GiB");
    out[start] = kind;
    out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
}

fn write_entry(entry: &Entry, seal: &Seal, out: &mut Vec<u8>) -> u8 {
    put_log_id(out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => ENTRY_BLANK,
        EntryPayload::Normal(payload) => {
            seal.sealer.seal(&place(seal, ENTRY_NORMAL, &entry.log_id), &payload.0, out);
            ENTRY_NORMAL
        }
        EntryPayload::Membership(membership) => {
            let plain = postcard::to_stdvec(membership).expect("a membership holds only what postcard can write");
            seal.sealer.seal(&place(seal, ENTRY_MEMBERSHIP, &entry.log_id), &plain, out);
            ENTRY_MEMBERSHIP
        }
    }
}

fn place(seal: &Seal, kind: u8, id: &LogId) -> [u8; 33] {
    let mut place = [0; 33];
    place[0] = kind;
    place[1..17].copy_from_slice(&seal.cluster);
    place[17..25].copy_from_slice(&id.leader_id.term.to_le_bytes());
    place[25..].copy_from_slice(&id.index.to_le_bytes());
    place
}

/// Takes the first record off `bytes`, the records of a [`Batch`].
pub(super) fn read_record(bytes: &mut &[u8], seal: &Seal) -> Result<Record, DecodeError> {
    let header = take(bytes, RECORD_HEADER)?;
    let length = u32::from_le_bytes(header[1..5].try_into().expect("four bytes")) as usize;
    let mut body = take(bytes, length)?;
    let body = &mut body;
    Ok(match header[0] {
        CHECKPOINT => Record::Checkpoint {
            vote: get_option(body, get_vote)?,
            committed: get_option(body, get_log_id)?,
            purged: get_option(body, get_log_id)?,
        },
        kind @ (ENTRY_BLANK | ENTRY_NORMAL | ENTRY_MEMBERSHIP) => Record::Entry(read_entry(kind, body, seal)?),
        VOTE => Record::Vote(get_vote(body)?),
        COMMITTED => Record::Committed(get_option(body, get_log_id)?),
        TRUNCATE => Record::Truncate(get_option(body, get_log_id)?),
        PURGE => Record::Purge(get_log_id(body)?),
        unknown => return Err(DecodeError::UnknownKind(unknown)),
    })
}

fn read_entry(kind: u8, body: &mut &[u8], seal: &Seal) -> Result<Entry, DecodeError> {
    let id = get_log_id(body)?;
    let index = id.index;
    let open = |sealed: &[u8]| {
        seal.sealer.open(&place(seal, kind, &id), sealed).map_err(|source| DecodeError::Sealed { index, source })
    };
    let payload = match kind {
        ENTRY_BLANK => EntryPayload::Blank,
        ENTRY_NORMAL => EntryPayload::Normal(Payload(open(body)?.into())),
        _ => {
            let membership: Membership =
                postcard::from_bytes(&open(body)?).map_err(|source| DecodeError::Membership { index, source })?;
            EntryPayload::Membership(membership)
        }
    };
    Ok(Entry { log_id: id, payload })
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or(DecodeError::Short)?;
    *bytes = rest;
    Ok(taken)
}

fn get_u64(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    Ok(u64::from_le_bytes(take(bytes, 8)?.try_into().expect("eight bytes")))
}

fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

fn get_log_id(bytes: &mut &[u8]) -> Result<LogId, DecodeError> {
    Ok(log_id(get_u64(bytes)?, get_u64(bytes)?))
}

fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    out.push(vote.committed.into());
}

fn get_vote(bytes: &mut &[u8]) -> Result<Vote, DecodeError> {
    let (term, voted_for) = (get_u64(bytes)?, get_u64(bytes)?);
    let committed = take(bytes, 1)?[0] != 0;
    Ok(super::super::types::vote(term, voted_for, committed))
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: fn(&mut Vec<u8>, &T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        put(out, value);
    }
}

fn get_option<T>(bytes: &mut &[u8], get: fn(&mut &[u8]) -> Result<T, DecodeError>) -> Result<Option<T>, DecodeError> {
    if take(bytes, 1)?[0] == 0 { Ok(None) } else { get(bytes).map(Some) }
}
