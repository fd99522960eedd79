//! What every named object carries: a name, labels, a version, times.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Labels, in the order of their keys.
pub type Labels = BTreeMap<String, String>;

/// Name and labels of an object. Names are unique within a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    /// The name; empty only where the kind allows it (nodes).
    pub name: String,
    /// The operator's labels.
    pub labels: Labels,
}

/// The Raft index of an object's last change. Every update names the version it read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version(pub u64);

/// Version and times, kept by the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Raft index of the last change.
    pub version: Version,
    /// Time of the entry that created the object.
    pub created_at: Timestamp,
    /// Time of the entry that changed it last.
    pub updated_at: Timestamp,
}
