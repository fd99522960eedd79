//! The service that answers other managers.

use std::sync::Arc;

use futures_util::StreamExt;
use skep_proto::wire::raft as pb;
use skep_proto::wire::raft::raft_server;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::node::Shared;
use super::super::types::RaftId;
use super::{Replies, check_addressee, wire};

type Snapshot = openraft::alias::SnapshotOf<super::super::types::TypeConfig, super::super::snapshot::SnapshotFile>;

/// Answers waiting to be sent on one stream.
const ANSWERS: usize = 64;
/// Forwarded entries of one stream that may be in flight: the proposers' own limit.
const FORWARDED: usize = 16;

/// Answers for one member.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    cluster: Arc<str>,
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let cluster = hex::encode(shared.cluster).into();
        Self { shared, cluster }
    }

    fn check<T>(&self, request: &Request<T>) -> Result<RaftId, Status> {
        check_addressee(request.metadata(), self.shared.id, &self.cluster)
    }
}

/// The member stopped: its peers treat it as unreachable.
fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this manager's raft member has stopped: {error}"))
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    type AppendStream = Replies<pb::AppendResponse>;
    type ProposeStream = Replies<pb::ProposeResponse>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.check(&request)?;
        let shared = Arc::clone(&self.shared);
        let requests = request.into_inner().scan((), |(), request| {
            // A broken stream and a message that makes no sense end it alike: the leader opens another.
            let request = request.and_then(wire::append_in);
            std::future::ready(request.inspect_err(|status| tracing::debug!(%status, "append stream ended")).ok())
        });
        let heard = Arc::clone(&shared);
        let requests = requests.inspect(move |request| heard.heard_from(&request.vote));
        // Driven on the consensus runtime: what else this server does must not delay a heartbeat.
        let (tx, rx) = tokio::sync::mpsc::channel(ANSWERS);
        shared.clone().runtime.spawn(async move {
            let answers = shared.raft.stream_append(requests);
            let mut answers = std::pin::pin!(answers);
            loop {
                // Until the caller goes away, too: a stream with nothing to say must not outlive its connection.
                let answer = tokio::select! {
                    biased;
                    answer = answers.next() => answer,
                    () = tx.closed() => None,
                };
                let Some(answer) = answer else { return };
                let answer = answer.map(wire::appended_out).map_err(stopped);
                if tx.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        self.check(&request)?;
        let answer = self.shared.raft.vote(wire::ask_in(request.into_inner())?).await.map_err(stopped)?;
        Ok(Response::new(wire::answer_out(&answer)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        self.check(&request)?;
        let answer = self.shared.raft.pre_vote(wire::ask_in(request.into_inner())?).await.map_err(stopped)?;
        Ok(Response::new(wire::answer_out(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        self.check(&request)?;
        let mut parts = request.into_inner();
        let Some(pb::SnapshotPart { part: Some(pb::snapshot_part::Part::Head(head)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let (vote, meta) = wire::head_in(head)?;
        let snapshot = self.receive(meta, parts).await?;
        let file = snapshot.snapshot.clone();
        let answer = self.shared.raft.install_full_snapshot(vote, snapshot).await;
        file.discard_unless_kept();
        let answer = answer.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(wire::vote_out(&answer.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        self.check(&request)?;
        let request = wire::transfer_in(request.into_inner())?;
        let answer = self.shared.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        Ok(Response::new(wire::transferred_out(answer)))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        self.check(&request)?;
        let result = self.shared.answer_read_index().await?;
        Ok(Response::new(pb::ReadIndexResponse { result: Some(result) }))
    }

    async fn propose(
        &self,
        request: Request<Streaming<pb::ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        self.check(&request)?;
        let shared = Arc::clone(&self.shared);
        let answers = request
            .into_inner()
            .then(move |request| {
                // The entry is handed to the log here, in the order of the stream; its answer is awaited below.
                let shared = Arc::clone(&shared);
                async move {
                    let request = request?;
                    let submitted = shared.submit(request.entry).await;
                    Ok::<_, Status>((request.request, submitted))
                }
            })
            .map(|submitted| async move {
                let (request, submitted) = submitted?;
                let result = submitted.outcome().await.into();
                Ok(pb::ProposeResponse { request, result: Some(result) })
            })
            .buffered(FORWARDED);
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Service {
    /// Streams a snapshot to a file beside the running state.
    async fn receive(
        &self,
        meta: super::super::types::SnapshotMeta,
        mut parts: Streaming<pb::SnapshotPart>,
    ) -> Result<Snapshot, Status> {
        let failed = |error: std::io::Error| Status::internal(format!("cannot store the snapshot: {error}"));
        let snapshots = self.shared.snapshots.clone();
        let workers = snapshots.workers();
        let head = meta.clone();
        let mut writer = workers.run(move || snapshots.begin(&head)).await.and_then(|begun| begun).map_err(failed)?;
        while let Some(part) = parts.message().await? {
            let Some(pb::snapshot_part::Part::Chunk(chunk)) = part.part else {
                return Err(Status::invalid_argument("a snapshot has one head"));
            };
            let chunk = super::super::snapshot::Chunk { sequence: chunk.sequence, last: chunk.last, data: chunk.data };
            writer = workers
                .run(move || writer.put(&chunk).map(|()| writer))
                .await
                .and_then(|written| written)
                .map_err(failed)?;
        }
        if !writer.is_complete() {
            return Err(Status::aborted("the snapshot ended before its last chunk"));
        }
        let file = workers.run(move || writer.finish()).await.and_then(|done| done).map_err(failed)?;
        Ok(Snapshot { meta, snapshot: file })
    }
}
