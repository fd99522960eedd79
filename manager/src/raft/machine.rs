//! The border to the state that consensus replicates: what it must offer, and how openraft drives it.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;

use super::snapshot::{SnapshotFile, SnapshotStore};
use super::types::{EntryPayload, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// Entries applied before a version is published and their proposers are answered.
const APPLY_BATCH: usize = 64;

/// The state machine cannot go on: the entry was written by a newer release, or the state is broken. The node stops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Halt(pub String);

/// A replicated state. Every manager applies the same entries in the same order and must come to the same state and
/// the same replies: no clock, no random number, nothing from outside.
pub trait Machine: Send + 'static {
    /// Applies the entry at `index` and returns the reply for its proposer. A refusal of what the entry asks is a
    /// reply, not an error.
    ///
    /// # Errors
    /// [`Halt`] stops this manager.
    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<Bytes, Halt>;

    /// Makes all entries applied so far visible to readers. Called after some entries, before their replies go out, so
    /// that who proposed sees its own write.
    fn publish(&mut self) {}

    /// Takes hold of the present version. Must be quick: no entry is applied meanwhile.
    fn snapshot(&self) -> Box<dyn SnapshotSource>;

    /// Replaces the state by what [`SnapshotSource::write_to`] wrote, and publishes it.
    ///
    /// # Errors
    /// The bytes are not a state: this manager stops. The state may be in pieces then; it is not used again.
    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()>;
}

/// A version that is written out while the state goes on changing.
pub trait SnapshotSource: Send {
    /// Writes the whole version. Runs on a thread of its own and may block.
    ///
    /// # Errors
    /// Those of `out`.
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// Drives a [`Machine`] as openraft asks.
pub(crate) struct StateMachine {
    machine: Arc<Mutex<Box<dyn Machine>>>,
    snapshots: SnapshotStore,
    applied: Option<LogId>,
    membership: StoredMembership,
    applied_index: watch::Sender<Option<u64>>,
}

impl StateMachine {
    pub(crate) fn new(
        machine: Box<dyn Machine>,
        snapshots: SnapshotStore,
        applied_index: watch::Sender<Option<u64>>,
    ) -> Self {
        Self {
            machine: Arc::new(Mutex::new(machine)),
            snapshots,
            applied: None,
            membership: StoredMembership::default(),
            applied_index,
        }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// Applies entries, publishes once, then answers.
    fn apply_batch(&mut self, batch: &mut Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut replies = Vec::with_capacity(batch.len());
        {
            let mut machine = self.machine.lock().expect("no one panics while holding the machine");
            for (entry, responder) in batch.drain(..) {
                let reply = match entry.payload {
                    EntryPayload::Blank => Bytes::new(),
                    EntryPayload::Normal(payload) => {
                        machine.apply(entry.log_id.index, &payload.0).map_err(io::Error::other)?
                    }
                    EntryPayload::Membership(membership) => {
                        self.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Bytes::new()
                    }
                };
                self.applied = Some(entry.log_id);
                replies.extend(responder.map(|r| (r, reply)));
            }
            machine.publish();
        }
        // The index first: who is answered may read, and waits for it.
        self.applied_index.send_replace(self.applied.as_ref().map(|id| id.index));
        for (responder, reply) in replies {
            responder.send(Payload(reply));
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(first) = entries.next().await {
            batch.push(first?);
            while batch.len() < APPLY_BATCH
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                batch.push(next?);
            }
            self.apply_batch(&mut batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let source = self.machine.lock().expect("no one panics while holding the machine").snapshot();
        Builder { source: Mutex::new(Some(source)), meta: self.meta(), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let machine = Arc::clone(&self.machine);
        let file = snapshot.clone();
        self.snapshots
            .workers()
            .run(move || {
                let mut reader = file.open()?;
                machine.lock().expect("no one panics while holding the machine").restore(&mut reader)?;
                reader.finish()
            })
            .await??;
        self.snapshots.keep(meta.clone(), snapshot).await?;
        self.applied.clone_from(&meta.last_log_id);
        self.membership = meta.last_membership.clone();
        self.applied_index.send_replace(self.applied.as_ref().map(|id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.current().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes a held version to a file.
pub(crate) struct Builder {
    /// Taken once. In a mutex because openraft wants a builder that threads may share, which a source need not be.
    source: Mutex<Option<Box<dyn SnapshotSource>>>,
    meta: SnapshotMeta,
    snapshots: SnapshotStore,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let source = self.source.get_mut().expect("the lock is never held").take();
        let source = source.ok_or_else(|| io::Error::other("this version was already written out"))?;
        let (snapshots, meta) = (self.snapshots.clone(), self.meta.clone());
        let file = self
            .snapshots
            .workers()
            .run(move || {
                let mut writer = snapshots.begin(&meta)?;
                source.write_to(&mut writer)?;
                writer.finish()
            })
            .await??;
        let file = self.snapshots.keep(self.meta.clone(), file).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: file })
    }
}
