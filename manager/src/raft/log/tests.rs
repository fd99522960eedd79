//! What the log promises, on a disk that can be cut, changed and made to fail.

use std::sync::Arc;

use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use proptest::prelude::*;

use super::super::disk::memory::Memory;
use super::super::machine::{Halt, Machine, SnapshotSource, StateMachine};
use super::super::seal::{Sealer, SecretKey};
use super::super::snapshot::SnapshotStore;
use super::super::types::{EntryPayload, Payload, log_id, vote};
use super::*;

const SIZES: SegmentSizes = SegmentSizes { first: 4096, largest: 4096 };

fn seal() -> Seal {
    let sealer = Sealer::new(&[(1, SecretKey::from_bytes([1; 32]))], rand::random());
    Seal { cluster: [9; 16], sealer: Arc::new(sealer) }
}

fn open(disk: &Memory) -> Result<LogStore, RecoverError> {
    LogStore::open(Arc::new(disk.clone()), seal(), SIZES, Workers::Threads)
}

fn entry(term: u64, index: u64, length: usize) -> Entry {
    let bytes: Vec<u8> = (0..length).map(|i| (index as usize + i) as u8).collect();
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Payload(bytes.into())) }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (tx, rx) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await?;
    rx.await.unwrap()
}

fn contents(log: &LogStore) -> State {
    log.state().clone()
}

/// Closes a log and waits for its writer, so that the disk is quiet.
async fn close(log: LogStore) {
    let mut failed = log.failed();
    drop(log);
    // The writer drops its end when it is done.
    while failed.changed().await.is_ok() {}
}

/// A log of three batches in one segment; the bytes of the file, where the last batch begins, and the states before and
/// after it.
async fn three_batches() -> (Memory, usize, State, State) {
    let disk = Memory::default();
    let mut log = open(&disk).unwrap();
    log.save_vote(&vote(3, 1, true)).await.unwrap();
    append(&mut log, vec![entry(3, 1, 100), entry(3, 2, 10)]).await.unwrap();
    let before = contents(&log);
    let start = used(&disk.read("00000000.log").unwrap());
    append(&mut log, vec![entry(3, 3, 50), entry(3, 4, 0)]).await.unwrap();
    let after = contents(&log);
    close(log).await;
    (disk, start, before, after)
}

/// Bytes up to the last that is not zero, rounded as batches are.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1).next_multiple_of(8)
}

#[tokio::test]
async fn a_file_cut_anywhere_in_the_last_batch_loses_that_batch_and_no_more() {
    let (disk, start, before, after) = three_batches().await;
    let bytes = disk.read("00000000.log").unwrap();
    let end = used(&bytes);
    for cut in start..end {
        for filled in [false, true] {
            let torn = disk.copy();
            let mut left = bytes[..cut].to_vec();
            if filled {
                left.resize(bytes.len(), 0);
            }
            torn.write("00000000.log", &left);
            let mut log = open(&torn).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let found = contents(&log);
            // The padding behind a batch may be missing: the batch is whole all the same.
            assert!(found == before || (found == after && end - cut < 8), "cut at {cut}");
            // And the log goes on from there.
            append(&mut log, vec![entry(4, found.last().unwrap().index + 1, 300)]).await.unwrap();
            let went_on = contents(&log);
            close(log).await;
            assert_eq!(contents(&open(&torn).unwrap()), went_on, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_byte_changed_in_an_acknowledged_batch_is_found_and_never_read_as_truth() {
    let (disk, start, before, after) = three_batches().await;
    let bytes = disk.read("00000000.log").unwrap();
    for at in 0..used(&bytes) {
        let changed = disk.copy();
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x40;
        changed.write("00000000.log", &bytes);
        match open(&changed) {
            Err(RecoverError::Damaged { .. }) => assert!(at < start, "byte {at}"),
            Err(other) => panic!("byte {at}: {other}"),
            // The last batch cannot be told from a torn one; padding carries nothing.
            Ok(log) => {
                let found = contents(&log);
                assert!(found == after || (at >= start && found == before), "byte {at}");
            }
        }
    }
}

#[tokio::test]
async fn the_refusal_of_a_damaged_log_says_what_to_do() {
    let (disk, ..) = three_batches().await;
    let mut bytes = disk.read("00000000.log").unwrap();
    bytes[40] ^= 1;
    disk.write("00000000.log", &bytes);
    let text = open(&disk).err().unwrap().to_string();
    assert!(text.contains("00000000.log at byte 0") && text.contains("skep node rm"), "{text}");
}

#[tokio::test]
async fn a_missing_segment_is_found() {
    let disk = Memory::default();
    let mut log = open(&disk).unwrap();
    for index in 1..40 {
        append(&mut log, vec![entry(1, index, 500)]).await.unwrap();
    }
    close(log).await;
    for missing in ["00000000.log", "00000002.log"] {
        let hole = disk.copy();
        hole.remove(missing).unwrap();
        assert!(matches!(open(&hole), Err(RecoverError::Damaged { .. })), "{missing}");
    }
}

#[tokio::test]
async fn a_log_of_another_cluster_or_key_does_not_open() {
    let (disk, ..) = three_batches().await;
    let other = Seal { cluster: [8; 16], ..seal() };
    let opened = LogStore::open(Arc::new(disk.copy()), other, SIZES, Workers::Threads);
    assert!(matches!(opened, Err(RecoverError::Decode { .. })));
}

#[tokio::test]
async fn no_payload_is_on_disk_in_the_clear() {
    let disk = Memory::default();
    let mut log = open(&disk).unwrap();
    let payload = EntryPayload::Normal(Payload(bytes::Bytes::from_static(b"a secret that must not be seen")));
    append(&mut log, vec![Entry { log_id: log_id(1, 1), payload }]).await.unwrap();
    let bytes = disk.read("00000000.log").unwrap();
    assert!(!bytes.windows(8).any(|window| window == b"a secret"));
}

#[tokio::test]
async fn a_disk_error_is_final_and_reaches_everyone_who_waits() {
    for (after, kind) in [(0, io::ErrorKind::StorageFull), (1, io::ErrorKind::Other)] {
        let disk = Memory::default();
        let mut log = open(&disk).unwrap();
        append(&mut log, vec![entry(1, 1, 10)]).await.unwrap();
        // `after` 0 fails the write, 1 the flush behind it.
        disk.fail(after, kind);
        assert!(append(&mut log, vec![entry(1, 2, 10)]).await.is_err());
        disk.repair();
        // A flush that worked now would say nothing about what the failed one lost.
        assert!(append(&mut log, vec![entry(1, 3, 10)]).await.is_err());
        assert!(log.save_vote(&vote(2, 2, false)).await.is_err());
        assert!(log.failed().borrow().is_some());
        drop(log);
        let found = contents(&open(&disk).unwrap());
        assert_eq!(found.entries[0], entry(1, 1, 10));
    }
}

#[tokio::test]
async fn purged_segments_are_unlinked_and_the_vote_survives_them() {
    let disk = Memory::default();
    let mut log = open(&disk).unwrap();
    log.save_vote(&vote(7, 2, true)).await.unwrap();
    for index in 1..=40 {
        append(&mut log, vec![entry(7, index, 500)]).await.unwrap();
    }
    log.purge(log_id(7, 30)).await.unwrap();
    log.flush().await.unwrap();
    assert!(disk.read("00000000.log").is_err(), "the first segment is gone");
    let state = contents(&log);
    close(log).await;
    assert_eq!(contents(&open(&disk).unwrap()), state);
    assert_eq!((state.vote, state.purged, state.entries.len()), (Some(vote(7, 2, true)), Some(log_id(7, 30)), 10));
}

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, length: usize },
    Truncate { back: u64 },
    Purge { upto: u64 },
    Vote,
    Committed,
    Reopen,
    Crash { seed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u64..6, 0usize..900).prop_map(|(count, length)| Step::Append { count, length }),
        2 => (0u64..5).prop_map(|back| Step::Truncate { back }),
        2 => (0u64..8).prop_map(|upto| Step::Purge { upto }),
        2 => Just(Step::Vote),
        2 => Just(Step::Committed),
        1 => Just(Step::Reopen),
        2 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
    ]
}

async fn run(steps: Vec<Step>) {
    let disk = Memory::default();
    let mut log = open(&disk).unwrap();
    let mut term = 1;
    for step in steps {
        let last = contents(&log).last().map_or(0, |id| id.index);
        let first = contents(&log).purged.map_or(0, |id| id.index);
        match step {
            Step::Append { count, length } => {
                let entries = (1..=count).map(|i| entry(term, last + i, length)).collect();
                append(&mut log, entries).await.unwrap();
            }
            Step::Truncate { back } => {
                let keep = last.saturating_sub(back).max(first);
                log.truncate_after(
                    contents(&log)
                        .entries
                        .iter()
                        .map(|e| e.log_id)
                        .find(|id| id.index == keep)
                        .or(contents(&log).purged),
                )
                .await
                .unwrap();
                term += 1;
            }
            Step::Purge { upto } => {
                let upto = (first + upto).min(last);
                let id = contents(&log).entries.iter().map(|e| e.log_id).find(|id| id.index == upto);
                if let Some(id) = id {
                    log.purge(id).await.unwrap();
                }
            }
            Step::Vote => {
                term += 1;
                log.save_vote(&vote(term, term % 3, true)).await.unwrap();
            }
            Step::Committed => log.save_committed(contents(&log).last()).await.unwrap(),
            Step::Reopen => {
                let state = contents(&log);
                close(log).await;
                log = open(&disk).unwrap();
                assert_eq!(contents(&log), state);
            }
            Step::Crash { seed } => {
                // Everything but the committed index is acknowledged only when it is flushed.
                log.flush().await.unwrap();
                let state = contents(&log);
                // In flight when the power goes: may survive whole or not at all.
                let in_flight = vec![entry(term, state.last().map_or(0, |id| id.index) + 1, 700)];
                let (tx, _rx) = TypeConfig::oneshot();
                log.append(in_flight, IOFlushed::signal(tx)).await.unwrap();
                let with = contents(&log);
                disk.crash(seed);
                close(log).await;
                log = open(&disk).unwrap();
                let mut found = contents(&log);
                found.committed.clone_from(&state.committed);
                assert!(found == state || found == with, "{found:?} is neither {state:?} nor one entry more");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whatever_was_acknowledged_is_found_again(steps in prop::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}

/// A state machine that counts.
struct Count(u64);

impl Machine for Count {
    fn apply(&mut self, _index: u64, _payload: &[u8]) -> Result<bytes::Bytes, Halt> {
        self.0 += 1;
        Ok(bytes::Bytes::new())
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Held(self.0))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

struct Held(u64);

impl SnapshotSource for Held {
    fn write_to(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, ()> for Builder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<TypeConfig>> {
        let disk = Memory::default();
        let log = open(&disk).unwrap();
        let snapshots = SnapshotStore::open(Arc::new(disk), seal(), Workers::Threads).unwrap();
        Ok(((), log, StateMachine::new(Box::new(Count(0)), snapshots, watch::channel(None).0)))
    }
}

#[tokio::test]
async fn log_and_state_machine_pass_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
