//! The one writer of the state, driven by Raft.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;

use super::entry::Entry;
use super::snapshot;
use super::state::State;
use super::touched::Touched;
use super::view::Store;
use crate::raft::machine::{Halt, Machine, SnapshotSource};

/// Applies entries to the state and publishes versions of it.
#[derive(Default)]
pub struct Replica {
    state: State,
    touched: Touched,
    store: Arc<Store>,
}

impl Replica {
    /// An empty state, and the store that shows it.
    pub fn new() -> (Self, Arc<Store>) {
        let replica = Self::default();
        let store = Arc::clone(&replica.store);
        (replica, store)
    }
}

impl Machine for Replica {
    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<Bytes, Halt> {
        let entry = Entry::decode(payload).map_err(|error| Halt(error.to_string()))?;
        self.touched.index = index;
        let outcomes = self.state.apply(index, &entry, &mut self.touched);
        let reply =
            postcard::to_stdvec(&outcomes).expect("writing to memory cannot fail and every type has a known length");
        Ok(reply.into())
    }

    fn publish(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        self.store.publish(self.state.clone(), Some(touched));
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Version(self.state.clone()))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.state = snapshot::read(from)?;
        self.touched = Touched::default();
        self.store.publish(self.state.clone(), None);
        Ok(())
    }
}

struct Version(State);

impl SnapshotSource for Version {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        snapshot::write(&self.0, out)
    }
}
