//! The types that openraft is instantiated with, and the names the rest of this folder uses for them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::runtime::Runtime;

/// Number of a member of the Raft group. Never reused in one cluster; the member's [`Peer`] names the node.
pub type RaftId = u64;

/// Where a member of the group is reached, and which node it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `host:port` of the cluster gRPC.
    pub address: String,
    /// Text form of the node's id.
    pub node_id: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.node_id)
    }
}

/// An encoded entry of the state machine. Opaque here; clones share the buffer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    // Payloads can hold secrets and be large: only the length is ever printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = Deserialize::deserialize(deserializer)?;
        Ok(Self(bytes.into()))
    }
}

openraft::declare_raft_types!(
    /// One leader per term (raft dissertation, section 3.4), opaque entries, opaque replies.
    pub TypeConfig:
        D = Payload,
        R = Payload,
        NodeId = RaftId,
        Node = Peer,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, RaftId>,
        AsyncRuntime = Runtime,
);

pub(crate) type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub(crate) type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type EntryPayload = openraft::EntryPayload<Payload, RaftId, Peer>;
pub(crate) type Membership = openraft::Membership<RaftId, Peer>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// The log id of an entry that the leader of `term` wrote at `index`.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderId { term }, index }
}

/// A vote of `term` for `voted_for`; `committed` when a quorum granted it.
pub(crate) fn vote(term: u64, voted_for: RaftId, committed: bool) -> Vote {
    Vote { leader_id: LeaderId { term, voted_for }, committed }
}
