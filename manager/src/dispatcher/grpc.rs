//! Sessions, streams and relayed requests over gRPC.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use skep_identity::Identity;
use skep_proto::convert::into_messages;
use skep_proto::model::session::{AgentMessage, ManagerMessage, OpenStream};
use skep_proto::model::{NodeId, TaskId};
use skep_proto::wire::dispatch as relay_wire;
use skep_proto::wire::dispatch::relay_server::{Relay as RelayRpc, RelayServer};
use skep_proto::wire::session as wire;
use skep_proto::wire::session::dispatcher_server::{Dispatcher as DispatcherRpc, DispatcherServer};
use skep_proto::wire::session::streams_server::{Streams as StreamsRpc, StreamsServer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::byte_stream::ByteStream;
use super::relay::{MAX_TASKS, id_bytes, id_of};
use super::transport::{Inbound, Outbound, Transport, TransportError};
use super::{Dispatcher, NoSession, Streams};
use crate::rpc::Peer;

/// Messages that wait for the connection; with more to come, the session waits.
const QUEUE: usize = 4;
/// For a node to say which stream it brings.
const FIRST_CHUNK: Duration = Duration::from_secs(5);

/// Answers `skep.session.Dispatcher`.
pub struct SessionService(pub Arc<Dispatcher>);

/// Answers `skep.session.Streams`.
pub struct StreamService(pub Streams);

/// Answers `skep.dispatch.Relay`.
pub struct RelayService(pub Arc<Dispatcher>);

impl SessionService {
    /// As a gRPC service.
    pub fn into_server(self) -> DispatcherServer<Self> {
        DispatcherServer::new(self)
    }
}

impl StreamService {
    /// As a gRPC service.
    pub fn into_server(self) -> StreamsServer<Self> {
        StreamsServer::new(self)
    }
}

impl RelayService {
    /// As a gRPC service.
    pub fn into_server(self) -> RelayServer<Self> {
        RelayServer::new(self)
    }
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl DispatcherRpc for SessionService {
    type SessionStream = Answer<wire::ManagerMessage>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (peer, identity) = caller(&request)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let transport = Transport {
            inbound: Box::new(GrpcInbound(request.into_inner())),
            outbound: Box::new(GrpcOutbound(sender)),
        };
        // Ends by itself when the call does: both halves of the transport then fail.
        self.0.spawn(identity, peer.address.ip(), transport);
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

#[async_trait]
impl StreamsRpc for StreamService {
    type AttachStream = Answer<wire::Chunk>;

    async fn attach(&self, request: Request<Streaming<wire::Chunk>>) -> Result<Response<Self::AttachStream>, Status> {
        let (_, Identity { node, .. }) = caller(&request)?;
        let mut inbound = request.into_inner();
        let first = timeout(FIRST_CHUNK, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first chunk did not come"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before its first chunk"))?;
        let nonce = first.nonce.as_deref().and_then(|nonce| nonce.try_into().ok());
        let nonce = nonce.ok_or_else(|| Status::invalid_argument("the first chunk must carry a nonce of 16 bytes"))?;
        if !first.data.is_empty() {
            return Err(Status::invalid_argument("the first chunk must carry no data"));
        }
        let give = self.0.claim(node, nonce).ok_or_else(|| {
            tracing::info!(node.id = %node, "refused a stream that nobody waits for");
            Status::permission_denied("no stream with this nonce is expected from this node")
        })?;
        let (stream, receiver) = ByteStream::new(inbound);
        give.send(Box::new(stream)).map_err(|_| Status::cancelled("nobody waits for this stream any more"))?;
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

#[async_trait]
impl RelayRpc for RelayService {
    async fn open_stream(
        &self,
        request: Request<relay_wire::OpenStreamRequest>,
    ) -> Result<Response<relay_wire::OpenStreamResponse>, Status> {
        let request = request.into_inner();
        let node = NodeId(id_of(&request.node).ok_or_else(|| Status::invalid_argument("node: not an id"))?);
        let open = request.open.ok_or_else(|| Status::invalid_argument("open: missing"))?;
        let open = OpenStream::try_from(open).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if !self.0.is_leading() {
            return Err(Status::failed_precondition("this manager does not lead"));
        }
        self.0.ask_stream(node, open).map_err(|error| match error {
            NoSession::NotConnected(_) => Status::not_found(error.to_string()),
            NoSession::Busy(_) => Status::resource_exhausted(error.to_string()),
        })?;
        Ok(Response::new(relay_wire::OpenStreamResponse {}))
    }

    async fn vitals(
        &self,
        request: Request<relay_wire::VitalsRequest>,
    ) -> Result<Response<relay_wire::VitalsResponse>, Status> {
        if !self.0.is_leading() {
            return Err(Status::failed_precondition("this manager does not lead"));
        }
        let tasks = request.into_inner().tasks;
        if tasks.len() > MAX_TASKS {
            return Err(Status::invalid_argument(format!("at most {MAX_TASKS} tasks may be asked for")));
        }
        let known = tasks.iter().filter_map(|task| {
            let task = TaskId(id_of(task)?);
            Some(relay_wire::Vitals { task: id_bytes(task.0), vitals: Some((&self.0.vitals(task)?).into()) })
        });
        Ok(Response::new(relay_wire::VitalsResponse { vitals: known.collect() }))
    }
}

/// Who calls. The door has put both there.
fn caller<T>(request: &Request<T>) -> Result<(Peer, Identity), Status> {
    let extensions = request.extensions();
    let both = extensions.get::<Peer>().copied().zip(extensions.get::<Identity>().copied());
    both.ok_or_else(|| Status::unauthenticated("a node certificate is needed"))
}

struct GrpcInbound(Streaming<wire::AgentMessage>);

#[async_trait]
impl Inbound for GrpcInbound {
    async fn recv(&mut self) -> Result<Option<AgentMessage>, TransportError> {
        match self.0.message().await {
            Ok(Some(message)) => Ok(Some(AgentMessage::try_from(message)?)),
            Ok(None) => Ok(None),
            Err(status) => Err(TransportError::Broken { reason: status.message().to_owned() }),
        }
    }
}

struct GrpcOutbound(mpsc::Sender<Result<wire::ManagerMessage, Status>>);

#[async_trait]
impl Outbound for GrpcOutbound {
    async fn send(&mut self, message: ManagerMessage) -> Result<(), TransportError> {
        for part in into_messages(&message) {
            let broken = |_| TransportError::Broken { reason: "the call has ended".into() };
            self.0.send(Ok(part)).await.map_err(broken)?;
        }
        Ok(())
    }
}
