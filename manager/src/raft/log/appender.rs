//! The one writer of the log: gathers what is queued into a batch, writes it, flushes it, then reports.
//!
//! An error of a write or a flush is final. After a failed flush the kernel may have dropped the dirty pages and report
//! success next time, so trying again would acknowledge what is not on disk: everything after it fails, and the node stops.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::disk::Disk;
use super::super::types::{Entry, LogId, TypeConfig, Vote};
use super::record::{self, Record, Seal};
use super::recover::{Full, Recovered, Tail};
use super::segment::{self, Maker, SegmentSizes};

/// A batch is closed when it has this many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// Something to be written.
pub(super) enum Op {
    Append {
        entries: Vec<Entry>,
        flushed: IOFlushed<TypeConfig>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Costs no flush of its own: it is written with the next batch.
    Committed(Option<LogId>),
    Truncate(Option<LogId>),
    Purge(LogId),
    /// Everything queued before is on disk when this answers.
    Barrier(oneshot::Sender<io::Result<()>>),
}

/// Who waits for a batch.
enum Waiter {
    Log(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn report(self, result: io::Result<()>) {
        match self {
            Self::Log(flushed) => flushed.io_completed(result),
            // Whoever no longer listens does not need to know.
            Self::Call(done) => drop(done.send(result)),
        }
    }
}

pub(super) struct Appender {
    disk: Arc<dyn Disk>,
    seal: Seal,
    maker: Maker,
    tail: Tail,
    tail_size: u64,
    full: VecDeque<Full>,
    sequence: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    committed_unwritten: bool,
    purged: Option<LogId>,
    /// A new segment begins with a checkpoint.
    checkpoint_due: bool,
    /// What is in the batch must reach the disk. Recovery relies on it: no batch is written before the last was flushed.
    flush_due: bool,
    buffer: Vec<u8>,
    batch: usize,
    batch_last_index: Option<u64>,
    waiting: Vec<Waiter>,
    failed: watch::Sender<Option<String>>,
}

impl Appender {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        seal: Seal,
        sizes: SegmentSizes,
        in_background: bool,
        recovered: &mut Recovered,
        failed: watch::Sender<Option<String>>,
    ) -> io::Result<Self> {
        let mut maker = Maker::new(Arc::clone(&disk), sizes, in_background);
        let tail = match recovered.tail.take() {
            Some(tail) => {
                maker.prepare(tail.number + 1)?;
                tail
            }
            None => Tail { number: 0, file: maker.take(0)?, position: 0, last_index: None },
        };
        let tail_size = tail.file.len()?;
        let mut appender = Self {
            disk,
            seal,
            maker,
            checkpoint_due: tail.position == 0,
            tail,
            tail_size,
            full: recovered.full.drain(..).collect(),
            sequence: recovered.next_sequence,
            vote: recovered.state.vote,
            committed: recovered.state.committed,
            committed_unwritten: false,
            purged: recovered.state.purged,
            buffer: Vec::new(),
            flush_due: false,
            batch: 0,
            batch_last_index: None,
            waiting: Vec::new(),
            failed,
        };
        appender.begin();
        Ok(appender)
    }

    /// Runs on a thread of its own until the queue is closed and empty, or the disk fails.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Op>) {
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(op) = next {
                self.take(op);
                next = if self.buffer.len() < BATCH_BYTES { queue.try_recv().ok() } else { None };
            }
            let result = self.write().and_then(|()| self.flush());
            if !self.report(result) {
                return Self::refuse_rest(&self.failed, &mut queue);
            }
        }
        self.last_words();
    }

    /// The same as [`Appender::run`] for a simulation: a task, with `pause` between write and flush for crashes to fall into.
    pub(super) async fn run_local(mut self, mut queue: mpsc::Receiver<Op>, pause: Duration) {
        while let Some(first) = queue.recv().await {
            let mut next = Some(first);
            while let Some(op) = next {
                self.take(op);
                next = if self.buffer.len() < BATCH_BYTES { queue.try_recv().ok() } else { None };
            }
            let mut result = self.write();
            if result.is_ok() && self.flush_due {
                tokio::time::sleep(pause).await;
                result = self.flush();
            }
            if !self.report(result) {
                return Self::refuse_rest(&self.failed, &mut queue);
            }
        }
        self.last_words();
    }

    /// Adds `op` to the batch.
    fn take(&mut self, op: Op) {
        self.flush_due |= !matches!(op, Op::Committed(_));
        match op {
            Op::Append { entries, flushed } => {
                for entry in entries {
                    self.batch_last_index = self.batch_last_index.max(Some(entry.log_id.index));
                    self.put(&Record::Entry(entry));
                }
                self.waiting.push(Waiter::Log(flushed));
            }
            Op::Vote { vote, done } => {
                self.vote = Some(vote);
                self.put(&Record::Vote(vote));
                self.waiting.push(Waiter::Call(done));
            }
            Op::Committed(committed) => {
                self.committed = committed;
                self.committed_unwritten = true;
            }
            Op::Truncate(last) => self.put(&Record::Truncate(last)),
            Op::Purge(upto) => {
                self.put(&Record::Purge(upto));
                self.purged = Some(upto);
            }
            Op::Barrier(done) => self.waiting.push(Waiter::Call(done)),
        }
    }

    fn put(&mut self, record: &Record) {
        record::write_record(record, &self.seal, &mut self.buffer);
    }

    fn begin(&mut self) {
        self.buffer.clear();
        self.batch = record::begin_batch(&mut self.buffer);
        self.batch_last_index = None;
    }

    /// Closes the batch and writes it, in a new segment if it does not fit this one.
    fn write(&mut self) -> io::Result<()> {
        if !self.flush_due {
            return Ok(());
        }
        if self.committed_unwritten {
            self.put(&Record::Committed(self.committed));
            self.committed_unwritten = false;
        }
        if self.buffer.len() == record::BATCH_HEADER {
            return Ok(());
        }
        let span = self.buffer.len() as u64 + 8;
        if self.tail.position > 0 && self.tail.position + span > self.tail_size {
            self.rotate()?;
        }
        if self.checkpoint_due {
            self.put_checkpoint_first();
        }
        record::finish_batch(&mut self.buffer, self.batch, self.sequence);
        self.tail.file.write_all_at(&self.buffer, self.tail.position)?;
        self.sequence += 1;
        self.tail.position += self.buffer.len() as u64;
        self.tail.last_index = self.tail.last_index.max(self.batch_last_index);
        self.begin();
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let number = self.tail.number + 1;
        let file = self.maker.take(number)?;
        self.tail_size = file.len()?;
        let old = std::mem::replace(&mut self.tail, Tail { number, file, position: 0, last_index: None });
        self.full.push_back(Full { number: old.number, last_index: old.last_index });
        self.checkpoint_due = true;
        Ok(())
    }

    /// The state may include what this batch says itself: replaying it twice changes nothing.
    fn put_checkpoint_first(&mut self) {
        let records = self.buffer.split_off(record::BATCH_HEADER);
        let checkpoint = Record::Checkpoint { vote: self.vote, committed: self.committed, purged: self.purged };
        self.put(&checkpoint);
        self.buffer.extend_from_slice(&records);
        self.checkpoint_due = false;
    }

    fn flush(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.flush_due) {
            return Ok(());
        }
        self.tail.file.sync()?;
        self.unlink_purged()
    }

    /// Segments go oldest first, so that what is left is always the end of the log.
    fn unlink_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.purged.as_ref().map(|id| id.index) else { return Ok(()) };
        let mut removed = false;
        while let Some(oldest) = self.full.front()
            && oldest.last_index.is_none_or(|last| last <= purged)
        {
            self.disk.remove(&segment::name(oldest.number))?;
            self.full.pop_front();
            removed = true;
        }
        if removed { self.disk.sync() } else { Ok(()) }
    }

    /// Tells everyone who waits. False: the disk failed.
    fn report(&mut self, result: io::Result<()>) -> bool {
        let error = result.err();
        if let Some(error) = &error {
            tracing::error!(%error, "the raft log cannot be written; this manager stops");
            self.failed.send_replace(Some(error.to_string()));
        }
        for waiter in self.waiting.drain(..) {
            waiter.report(error.as_ref().map_or(Ok(()), |e| Err(io::Error::new(e.kind(), e.to_string()))));
        }
        error.is_none()
    }

    fn refuse_rest(failed: &watch::Sender<Option<String>>, queue: &mut mpsc::Receiver<Op>) {
        let text = failed.borrow().clone().unwrap_or_default();
        queue.close();
        while let Ok(op) = queue.try_recv() {
            match op {
                Op::Append { flushed, .. } => Waiter::Log(flushed).report(Err(io::Error::other(text.clone()))),
                Op::Vote { done, .. } | Op::Barrier(done) => {
                    Waiter::Call(done).report(Err(io::Error::other(text.clone())))
                }
                Op::Committed(_) | Op::Truncate(_) | Op::Purge(_) => {}
            }
        }
    }

    /// A clean stop leaves the committed index on disk: the next start reaches the same state before it serves.
    fn last_words(&mut self) {
        if self.committed_unwritten {
            self.flush_due = true;
            if let Err(error) = self.write().and_then(|()| self.flush()) {
                tracing::warn!(%error, "cannot save the committed index; the next start applies less of the log before it serves");
            }
        }
    }
}
