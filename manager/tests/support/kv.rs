//! A small replicated map: the state machine that these tests put under consensus.

#![allow(dead_code, clippy::unwrap_used)] // test code, shared by files that each use a part of it

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_manager::raft::EntryCodec;
use skep_manager::raft::machine::{Halt, Machine, SnapshotSource};

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Set {
        key: String,
        value: String,
    },
    /// Takes time and room, changes nothing.
    Fill(Vec<u8>),
}

impl Change {
    pub fn set(key: &str, value: &str) -> Self {
        Self::Set { key: key.into(), value: value.into() }
    }

    pub fn encode(&self) -> Bytes {
        postcard::to_stdvec(self).unwrap().into()
    }
}

/// Entries are a time and a list of groups; every group's outcome is the entry's index.
pub struct Codec;

impl EntryCodec for Codec {
    fn encode(&self, at_ms: u64, groups: &[Bytes]) -> Bytes {
        let groups: Vec<&[u8]> = groups.iter().map(|group| &group[..]).collect();
        postcard::to_stdvec(&(at_ms, groups)).unwrap().into()
    }

    fn split(&self, reply: &Bytes, groups: usize) -> Option<Vec<Bytes>> {
        Some(vec![reply.clone(); groups])
    }
}

/// The state, and a digest of all entries that made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub map: BTreeMap<String, String>,
    pub applied: u64,
    pub digest: [u8; 32],
}

/// The published state of one manager.
pub type View = Arc<Mutex<Arc<State>>>;

/// Applies entries to a [`State`] and publishes it.
#[derive(Default)]
pub struct Kv {
    state: State,
    view: View,
    /// Digest at each index, to be compared between managers.
    pub trace: Trace,
}

/// The digest after each applied entry.
pub type Trace = Arc<Mutex<BTreeMap<u64, [u8; 32]>>>;

impl Kv {
    pub fn new(view: View, trace: Trace) -> Self {
        Self { state: State::default(), view, trace }
    }
}

impl Machine for Kv {
    fn apply(&mut self, index: u64, payload: &[u8]) -> Result<Bytes, Halt> {
        assert!(index > self.state.applied || self.state.applied == 0, "entry {index} after {}", self.state.applied);
        let (_at_ms, groups): (u64, Vec<Vec<u8>>) = postcard::from_bytes(payload).map_err(|e| Halt(e.to_string()))?;
        for group in &groups {
            match postcard::from_bytes(group).map_err(|e| Halt(e.to_string()))? {
                Change::Set { key, value } => drop(self.state.map.insert(key, value)),
                Change::Fill(_) => {}
            }
        }
        self.state.applied = index;
        let mut hash = Sha256::new();
        hash.update(self.state.digest);
        hash.update(index.to_le_bytes());
        hash.update(payload);
        self.state.digest = hash.finalize().into();
        self.trace.lock().unwrap().insert(index, self.state.digest);
        Ok(Bytes::copy_from_slice(&index.to_le_bytes()))
    }

    fn publish(&mut self) {
        *self.view.lock().unwrap() = Arc::new(self.state.clone());
    }

    fn snapshot(&self) -> Box<dyn SnapshotSource> {
        Box::new(Held(self.state.clone()))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        self.state = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        self.trace.lock().unwrap().insert(self.state.applied, self.state.digest);
        self.publish();
        Ok(())
    }
}

struct Held(State);

impl SnapshotSource for Held {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&postcard::to_stdvec(&self.0).map_err(io::Error::other)?)
    }
}
