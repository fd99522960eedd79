//! The way of groups into the log: how they become entries, and how their outcomes come back.

use async_trait::async_trait;
use bytes::Bytes;
use skep_proto::model::NodeId;

use super::entry::{FORMAT, Group, Outcome};
use crate::control::{Propose, ProposeError};
use crate::raft::{self, EntryCodec, Proposer};

/// Makes entries of encoded groups, and outcomes of replies.
#[derive(Debug, Clone, Copy)]
pub struct Codec {
    /// The manager that proposes.
    pub proposer: NodeId,
}

impl EntryCodec for Codec {
    /// Groups are encoded once, by their proposer: an entry is its head followed by them, as postcard writes a struct.
    fn encode(&self, at_ms: u64, groups: &[Bytes]) -> Bytes {
        let out = vec![FORMAT];
        let out = postcard::to_extend(&(at_ms, self.proposer, groups.len()), out);
        let mut out = out.expect("writing to memory cannot fail and every type has a known length");
        groups.iter().for_each(|group| out.extend_from_slice(group));
        out.into()
    }

    fn split(&self, reply: &Bytes, groups: usize) -> Option<Vec<Bytes>> {
        let outcomes: Vec<Outcome> = postcard::from_bytes(reply).ok()?;
        if outcomes.len() != groups {
            return None;
        }
        outcomes.iter().map(|outcome| postcard::to_stdvec(outcome).ok().map(Bytes::from)).collect()
    }
}

/// Proposes groups of the store through Raft.
#[derive(Clone)]
pub struct Proposals(pub Proposer);

#[async_trait]
impl Propose for Proposals {
    async fn propose(&self, group: Group) -> Result<Outcome, ProposeError> {
        let bytes =
            postcard::to_stdvec(&group).expect("writing to memory cannot fail and every type has a known length");
        let group = raft::Group { bytes: bytes.into(), changes: group.changes.len() };
        match self.0.propose(group).await {
            Ok(applied) => postcard::from_bytes(&applied.outcome).map_err(|_| ProposeError::Timeout),
            Err(raft::ProposeError::NoLeader(_)) => Err(ProposeError::NoLeader),
            Err(raft::ProposeError::Timeout) => Err(ProposeError::Timeout),
            Err(raft::ProposeError::Refused(reason)) => Err(ProposeError::Refused(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;

    #[test]
    fn an_entry_of_encoded_groups_is_the_entry_of_the_groups() {
        let groups = vec![Group { request: Some(7), changes: Vec::new() }, Group::default()];
        let encoded: Vec<Bytes> = groups.iter().map(|g| postcard::to_stdvec(g).unwrap().into()).collect();
        let proposer = NodeId(5);
        let entry = Entry { at_ms: 123_456, proposer, groups };
        assert_eq!(Codec { proposer }.encode(123_456, &encoded), entry.encode());
    }
}
