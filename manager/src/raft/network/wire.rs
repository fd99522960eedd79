//! Wire messages to openraft's types and back. A message that lacks a part is an error of the sender, never a panic.

use skep_proto::wire::raft as wire;
use tonic::Status;

use super::super::types::{
    Entry, EntryPayload, LogId, Membership, Payload, SnapshotMeta, TypeConfig, Vote, log_id, vote,
};

type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
type StreamAppendResult = openraft::raft::StreamAppendResult<TypeConfig>;
type StreamAppendError = openraft::raft::StreamAppendError<TypeConfig>;
type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
type TransferResponse = openraft::raft::TransferLeaderResponse<TypeConfig>;
type TransferError = openraft::raft::TransferLeaderError<TypeConfig>;

fn need<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("the message lacks {field}")))
}

pub(super) fn id_out(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(super) fn id_in(id: wire::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(super) fn vote_out(vote: &Vote) -> wire::VoteState {
    wire::VoteState { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn vote_in(state: Option<wire::VoteState>) -> Result<Vote, Status> {
    let state = need(state, "vote")?;
    Ok(vote(state.term, state.voted_for, state.committed))
}

fn entry_out(entry: Entry) -> wire::Entry {
    use wire::entry::Payload as P;
    let payload = match entry.payload {
        EntryPayload::Blank => P::Blank(true),
        EntryPayload::Normal(payload) => P::Normal(payload.0),
        EntryPayload::Membership(membership) => {
            let bytes = postcard::to_stdvec(&membership).expect("a membership holds only what postcard can write");
            P::Membership(bytes.into())
        }
    };
    wire::Entry { id: Some(id_out(&entry.log_id)), payload: Some(payload) }
}

fn entry_in(entry: wire::Entry) -> Result<Entry, Status> {
    use wire::entry::Payload as P;
    let log_id = id_in(need(entry.id, "entry.id")?);
    let payload = match need(entry.payload, "entry.payload")? {
        P::Blank(_) => EntryPayload::Blank,
        P::Normal(bytes) => EntryPayload::Normal(Payload(bytes)),
        P::Membership(bytes) => {
            let membership: Membership = postcard::from_bytes(&bytes)
                .map_err(|e| Status::invalid_argument(format!("entry.membership cannot be read: {e}")))?;
            EntryPayload::Membership(membership)
        }
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn append_out(request: AppendRequest) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.as_ref().map(id_out),
        entries: request.entries.into_iter().map(entry_out).collect(),
        leader_commit: request.leader_commit.as_ref().map(id_out),
    }
}

pub(super) fn append_in(request: wire::AppendRequest) -> Result<AppendRequest, Status> {
    Ok(AppendRequest {
        vote: vote_in(request.vote)?,
        prev_log_id: request.previous.map(id_in),
        entries: request.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.map(id_in),
    })
}

pub(super) fn appended_out(result: StreamAppendResult) -> wire::AppendResponse {
    use wire::append_response::{Matched, Result as R};
    let result = match result {
        Ok(id) => R::Matched(Matched { id: id.as_ref().map(id_out) }),
        Err(StreamAppendError::Conflict(id)) => R::Conflict(id_out(&id)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(vote_out(&vote)),
    };
    wire::AppendResponse { result: Some(result) }
}

pub(super) fn appended_in(response: wire::AppendResponse) -> Result<StreamAppendResult, Status> {
    use wire::append_response::Result as R;
    Ok(match need(response.result, "result")? {
        R::Matched(matched) => Ok(matched.id.map(id_in)),
        R::Conflict(id) => Err(StreamAppendError::Conflict(id_in(id))),
        R::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_in(Some(vote))?)),
    })
}

pub(super) fn ask_out(request: &VoteRequest) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn ask_in(request: wire::VoteRequest) -> Result<VoteRequest, Status> {
    Ok(VoteRequest {
        vote: vote_in(request.vote)?,
        last_log_id: request.last_log_id.map(id_in),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(super) fn answer_out(response: &VoteResponse) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(id_out),
    }
}

pub(super) fn answer_in(response: wire::VoteResponse) -> Result<VoteResponse, Status> {
    Ok(VoteResponse {
        vote: vote_in(response.vote)?,
        vote_granted: response.granted,
        last_log_id: response.last_log_id.map(id_in),
    })
}

pub(super) fn head_out(vote: &Vote, meta: &SnapshotMeta) -> wire::SnapshotHead {
    let meta = postcard::to_stdvec(meta).expect("a snapshot's head holds only what postcard can write");
    wire::SnapshotHead { vote: Some(vote_out(vote)), meta: meta.into() }
}

pub(super) fn head_in(head: wire::SnapshotHead) -> Result<(Vote, SnapshotMeta), Status> {
    let meta = postcard::from_bytes(&head.meta)
        .map_err(|e| Status::invalid_argument(format!("the snapshot's head cannot be read: {e}")))?;
    Ok((vote_in(head.vote)?, meta))
}

pub(super) fn transfer_out(request: &TransferRequest) -> wire::TransferLeaderRequest {
    wire::TransferLeaderRequest {
        from_leader: Some(vote_out(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(id_out),
    }
}

pub(super) fn transfer_in(request: wire::TransferLeaderRequest) -> Result<TransferRequest, Status> {
    Ok(TransferRequest::new(vote_in(request.from_leader)?, request.to, request.last_log_id.map(id_in)))
}

pub(super) fn transferred_out(response: TransferResponse) -> wire::TransferLeaderResponse {
    use wire::transfer_leader_response::{NotFlushed, Result as R, VoteChanged};
    let result = match response {
        Ok(()) => R::Accepted(true),
        Err(TransferError::VoteChanged { expected, actual }) => {
            R::VoteChanged(VoteChanged { expected: Some(vote_out(&expected)), actual: Some(vote_out(&actual)) })
        }
        Err(TransferError::LogNotFlushed { expected, actual }) => {
            R::NotFlushed(NotFlushed { expected: expected.as_ref().map(id_out), actual: actual.as_ref().map(id_out) })
        }
    };
    wire::TransferLeaderResponse { result: Some(result) }
}

pub(super) fn transferred_in(response: wire::TransferLeaderResponse) -> Result<TransferResponse, Status> {
    use wire::transfer_leader_response::Result as R;
    Ok(match need(response.result, "result")? {
        R::Accepted(_) => Ok(()),
        R::VoteChanged(changed) => {
            Err(TransferError::VoteChanged { expected: vote_in(changed.expected)?, actual: vote_in(changed.actual)? })
        }
        R::NotFlushed(ids) => {
            Err(TransferError::LogNotFlushed { expected: ids.expected.map(id_in), actual: ids.actual.map(id_in) })
        }
    })
}
