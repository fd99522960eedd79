//! One member of the group: what its parts share, and what they do for the peers that call.

use std::collections::BTreeSet;
use std::sync::Mutex;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError as OpenraftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{Instant as _, ReadPolicy};
use skep_proto::wire::raft as pb;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::config::Timing;
use super::leadership::Leader;
use super::log::LogStore;
use super::machine::StateMachine;
use super::network::Links;
use super::snapshot::SnapshotStore;
use super::types::{Payload, Peer, RaftId, TypeConfig, Vote};

type Forward = ForwardToLeader<TypeConfig>;

/// What the parts of a member share.
pub(crate) struct Shared {
    pub id: RaftId,
    pub cluster: [u8; 16],
    pub timing: Timing,
    pub raft: openraft::Raft<TypeConfig, StateMachine>,
    pub log: LogStore,
    pub snapshots: SnapshotStore,
    pub links: Links,
    pub runtime: tokio::runtime::Handle,
    pub applied: watch::Receiver<Option<u64>>,
    pub leader: watch::Receiver<Option<Leader>>,
    /// Term of the leader that called last, and when.
    pub heard: Mutex<Option<(u64, Instant)>>,
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// In the log at `index`, applied by the leader with this reply.
    Applied { index: u64, reply: Bytes },
    /// Not in the log and never will be.
    NotLeader(Option<(RaftId, Peer)>),
    /// In the log or not: leadership changed while it was in flight.
    Unknown,
}

/// An entry handed to the log.
pub(crate) enum Submitted {
    Waiting(tokio::sync::oneshot::Receiver<ClientWriteResult<TypeConfig>>),
    Stopped,
}

impl Submitted {
    /// Waits for the log's answer, for as long as it takes.
    pub(crate) async fn outcome(self) -> Outcome {
        let Self::Waiting(answer) = self else { return Outcome::NotLeader(None) };
        match answer.await {
            Ok(Ok(written)) => Outcome::Applied { index: written.log_id.index, reply: written.data.0 },
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Outcome::NotLeader(hint(forward)),
            // The others cannot come from a plain write; if they ever do, nothing is known of it.
            Ok(Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ))
            | Err(_) => Outcome::Unknown,
        }
    }
}

/// Who leads instead, if the refusal says so.
pub(crate) fn hint(forward: Forward) -> Option<(RaftId, Peer)> {
    forward.leader_id.zip(forward.leader_node)
}

fn not_leader(hint: Option<(RaftId, Peer)>) -> pb::NotLeader {
    let (id, peer) = hint.unwrap_or_default();
    pb::NotLeader { id, address: peer.address }
}

impl From<Outcome> for pb::propose_response::Result {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Applied { index, reply } => Self::Applied(pb::propose_response::Applied { index, reply }),
            Outcome::NotLeader(hint) => Self::NotLeader(not_leader(hint)),
            Outcome::Unknown => Self::Unknown(true),
        }
    }
}

impl Shared {
    /// Hands an entry to the log if this member leads. Entries are taken in the order of the calls.
    pub(crate) async fn submit(&self, entry: Bytes) -> Submitted {
        let (responder, answer) = ProgressResponder::complete_only();
        match self.raft.client_write_ff(Payload(entry), Some(responder)).await {
            Ok(()) => Submitted::Waiting(answer),
            Err(_) => Submitted::Stopped,
        }
    }

    /// The index that a linearizable read waits for, confirmed by a majority after this call began.
    pub(crate) async fn read_index(&self) -> Result<u64, Option<(RaftId, Peer)>> {
        // Confirmation by a majority, not by the lease: clocks may run at different speeds.
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(OpenraftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(hint(forward)),
            Err(OpenraftError::APIError(LinearizableReadError::QuorumNotEnough(_)) | OpenraftError::Fatal(_)) => {
                Err(None)
            }
        }
    }

    pub(crate) async fn answer_read_index(&self) -> Result<pb::read_index_response::Result, Status> {
        use pb::read_index_response::Result as R;
        Ok(match self.read_index().await {
            Ok(index) => R::Index(index),
            Err(hint) => R::NotLeader(not_leader(hint)),
        })
    }

    /// Notes that the leader of this vote called.
    pub(crate) fn heard_from(&self, vote: &Vote) {
        if vote.committed {
            let mut heard = self.heard.lock().expect("no one panics while holding the time");
            if heard.is_none_or(|(term, _)| term <= vote.leader_id.term) {
                *heard = Some((vote.leader_id.term, Instant::now()));
            }
        }
    }

    /// When the leader of `term` called last.
    pub(crate) fn last_heard(&self, term: u64) -> Option<Instant> {
        let heard = self.heard.lock().expect("no one panics while holding the time");
        heard.filter(|(heard, _)| *heard == term).map(|(_, at)| at)
    }

    /// The members that answered this leader within its lease, itself included. Empty if it does not lead.
    pub(crate) fn reachable(&self) -> BTreeSet<RaftId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(heartbeat) = &metrics.heartbeat else { return BTreeSet::new() };
        let lease = self.timing.election_max;
        let fresh = heartbeat.iter().filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < lease));
        fresh.map(|(id, _)| *id).chain([self.id]).collect()
    }
}
