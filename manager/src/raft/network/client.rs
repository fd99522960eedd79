//! The calls that openraft makes to one other manager.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory};
use skep_proto::wire::raft as pb;
use skep_proto::wire::raft::raft_client::RaftClient;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::super::log::{LogStore, Workers};
use super::super::snapshot::{SnapshotFile, SnapshotReader};
use super::super::types::{Peer, RaftId, TypeConfig, Vote};
use super::{ConnectError, Links, wire};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;
type Rpc = RPCError<TypeConfig>;

/// Makes a [`Link`] to each follower.
pub(crate) struct Network {
    pub links: Links,
    pub log: LogStore,
    pub workers: Workers,
    /// A request that waits longer than this for its answer ends the stream: one leader lease.
    pub patience: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: RaftId, peer: &Peer) -> Link {
        self.link(target, peer, Some(self.log.clone()))
    }

    async fn new_heartbeat_client(&mut self, target: RaftId, peer: &Peer) -> Link {
        self.link(target, peer, None)
    }
}

impl Network {
    fn link(&self, target: RaftId, peer: &Peer, log: Option<LogStore>) -> Link {
        let (links, workers, patience) = (self.links.clone(), self.workers, self.patience);
        Link { target, peer: peer.clone(), links, log, workers, patience }
    }
}

/// The way to one other manager.
pub(crate) struct Link {
    target: RaftId,
    peer: Peer,
    links: Links,
    /// The log that is replicated over this link. `None`: the link carries heartbeats.
    log: Option<LogStore>,
    workers: Workers,
    patience: Duration,
}

impl Link {
    fn client(&self) -> Result<RaftClient<Channel>, ConnectError> {
        self.links.client(self.target, &self.peer)
    }

    /// One call with one answer, within the time that openraft gives it.
    async fn call<Q, A>(
        &self,
        option: &RPCOption,
        message: Q,
        call: impl AsyncFnOnce(RaftClient<Channel>, tonic::Request<Q>) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, Rpc> {
        let client = self.client().map_err(|e| Rpc::Unreachable(Unreachable::new(&e)))?;
        let request = self.links.request(self.target, message);
        match tokio::time::timeout(option.soft_ttl(), call(client, request)).await {
            Ok(answer) => Ok(answer.map_err(|status| refused(&status))?.into_inner()),
            Err(_) => Err(Rpc::Network(NetworkError::from_string(format!(
                "manager {} at {} did not answer in {:?}",
                self.target,
                self.peer.address,
                option.soft_ttl()
            )))),
        }
    }
}

/// Unreachable makes openraft back off; other errors are retried at once.
fn refused(status: &Status) -> Rpc {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied => {
            Rpc::Unreachable(Unreachable::from_string(status.message()))
        }
        _ => Rpc::Network(NetworkError::from_string(status)),
    }
}

const PURGED: &str = "the entries that the follower needs next were purged; it needs a snapshot";

/// Whether this request is empty because the entries it was to carry were purged. openraft holds a purge back while a
/// stream runs, but not over the moment between two streams.
fn lacks_entries(request: &AppendEntriesRequest<TypeConfig>, log: &LogStore) -> bool {
    request.entries.is_empty() && log.is_purged(request.prev_log_id.map_or(0, |id| id.index + 1))
}

/// When the requests still without an answer were sent, oldest first.
type Unanswered = Arc<Mutex<VecDeque<Instant>>>;

fn oldest(unanswered: &Unanswered) -> Option<Instant> {
    unanswered.lock().expect("no one panics while holding the times").front().copied()
}

/// The answers to one stream of requests.
struct Answers {
    stream: tonic::Streaming<pb::AppendResponse>,
    unanswered: Unanswered,
    patience: Duration,
}

impl Answers {
    /// The next answer, unless the oldest request has waited for too long. A half-open connection shows in no other way.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, Rpc>> {
        loop {
            let since = oldest(&self.unanswered).unwrap_or_else(Instant::now);
            match tokio::time::timeout_at(since + self.patience, self.stream.message()).await {
                Ok(Ok(Some(answer))) => {
                    self.unanswered.lock().expect("no one panics while holding the times").pop_front();
                    return Some(wire::appended_in(answer).map_err(|status| refused(&status)));
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => return Some(Err(refused(&status))),
                // Nothing was sent, or what waited was answered meanwhile: a quiet stream is a healthy one.
                Err(_) if oldest(&self.unanswered).is_none_or(|since| since.elapsed() < self.patience) => {}
                Err(_) => {
                    let text = format!("a request was not answered in {:?}", self.patience);
                    return Some(Err(Rpc::Network(NetworkError::from_string(text))));
                }
            }
        }
    }
}

impl NetStreamAppend<TypeConfig> for Link {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // The first request is awaited before dialling: openraft delays it, and nothing else, while it backs off from a
            // member that cannot be reached. Dialling first would try again without a pause.
            let Some(first) = input.next().await else {
                let nothing: BoxStream<'s, _> = Box::pin(stream::empty());
                return Ok(nothing);
            };
            if let Some(log) = &self.log
                && lacks_entries(&first, log)
            {
                return Err(Rpc::Network(NetworkError::from_string(PURGED)));
            }
            let unanswered: Unanswered = Arc::default();
            let sent = Arc::clone(&unanswered);
            let log = self.log.clone();
            let requests = stream::iter([first]).chain(input).scan((), move |(), request| {
                if log.as_ref().is_some_and(|log| lacks_entries(&request, log)) {
                    // Ends the stream: openraft looks again at what this follower needs, and sends a snapshot.
                    return std::future::ready(None);
                }
                sent.lock().expect("no one panics while holding the times").push_back(Instant::now());
                std::future::ready(Some(wire::append_out(request)))
            });
            // The time allowed is for the set-up; the stream itself lives as long as the leader has something to say.
            let stream = self.call(&option, requests, async |mut client, request| client.append(request).await).await?;
            let answers = Answers { stream, unanswered, patience: self.patience };
            let out = stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                let answer = answers.next().await?;
                let more = answer.is_ok().then_some(answers);
                Some((answer, more))
            });
            let out: BoxStream<'s, _> = Box::pin(out);
            Ok(out)
        })
    }
}

impl NetVote<TypeConfig> for Link {
    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let answer =
            self.call(&option, wire::ask_out(&rpc), async |mut client, request| client.vote(request).await).await?;
        wire::answer_in(answer).map_err(|status| refused(&status))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let answer =
            self.call(&option, wire::ask_out(&rpc), async |mut client, request| client.pre_vote(request).await).await?;
        wire::answer_in(answer).map_err(|status| refused(&status))
    }
}

impl NetTransferLeader<TypeConfig> for Link {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let message = wire::transfer_out(&req);
        let answer =
            self.call(&option, message, async |mut client, request| client.transfer_leader(request).await).await?;
        wire::transferred_in(answer).map_err(|status| refused(&status))
    }
}

impl NetBackoff<TypeConfig> for Link {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

/// The error that ended the reading of a snapshot, if one did: a request stream has no way to carry it.
type ReadFailure = Arc<Mutex<Option<std::io::Error>>>;

fn parts(
    head: pb::SnapshotHead,
    reader: SnapshotReader,
    workers: Workers,
    failure: ReadFailure,
) -> impl Stream<Item = pb::SnapshotPart> + Send {
    let head = pb::SnapshotPart { part: Some(pb::snapshot_part::Part::Head(head)) };
    let chunks = stream::unfold(Some(reader), move |reader| {
        let failure = Arc::clone(&failure);
        async move {
            let mut reader = reader?;
            let read = workers.run(move || reader.next().map(|chunk| (chunk, reader))).await.and_then(|read| read);
            match read {
                Ok((chunk, reader)) => {
                    let chunk = chunk?;
                    let chunk = pb::SnapshotChunk { sequence: chunk.sequence, last: chunk.last, data: chunk.data };
                    Some((pb::SnapshotPart { part: Some(pb::snapshot_part::Part::Chunk(chunk)) }, Some(reader)))
                }
                Err(error) => {
                    // The stream ends without a last chunk: the receiver throws away what it has.
                    *failure.lock().expect("no one panics while holding the failure") = Some(error);
                    None
                }
            }
        }
    });
    stream::once(std::future::ready(head)).chain(chunks)
}

impl NetSnapshot<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreadable = |error: std::io::Error| StreamingError::Network(NetworkError::new(&error));
        let file = snapshot.snapshot;
        let reader = self.workers.run(move || file.open()).await.and_then(|opened| opened).map_err(unreadable)?;
        let failure = ReadFailure::default();
        let parts = parts(wire::head_out(&vote, &snapshot.meta), reader, self.workers, Arc::clone(&failure));
        let send = self.call(&option, parts, async |mut client, request| client.install_snapshot(request).await);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = send => sent,
        };
        if let Some(error) = failure.lock().expect("no one panics while holding the failure").take() {
            return Err(unreadable(error));
        }
        let vote = wire::vote_in(sent?.vote).map_err(|status| refused(&status))?;
        Ok(SnapshotResponse { vote })
    }
}
