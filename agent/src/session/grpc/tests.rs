//! The gRPC transport against a gRPC server, over pipes in memory.

use std::pin::Pin;
use std::sync::Mutex;

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use skep_proto::convert::into_messages;
use skep_proto::model::session::{AssignmentChange, Assignments, Welcome};
use skep_proto::model::{NodeDescription, TaskId};
use skep_proto::wire::session::dispatcher_server::{Dispatcher, DispatcherServer};
use skep_proto::wire::session::streams_server::{Streams, StreamsServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response};

use super::*;
use crate::test_support::address;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Sends a welcome and a large set, and keeps what it hears. Streams echo, with the nonce in front.
struct Manager {
    heard: mpsc::Sender<AgentMessage>,
}

fn large_set() -> ManagerMessage {
    let changes = (0..200_000).map(|id| AssignmentChange::RemoveTask(TaskId(id))).collect();
    ManagerMessage::Assignments(Assignments { index: 7, complete: true, changes })
}

fn welcome() -> ManagerMessage {
    let heartbeat = std::time::Duration::from_secs(2);
    ManagerMessage::Welcome(Welcome { session: 1, heartbeat, index: 3, data_path_port: 4789, mesh_removed: false })
}

#[tonic::async_trait]
impl Dispatcher for Manager {
    type SessionStream = Replies<wire::ManagerMessage>;

    async fn session(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        // As a real manager may: nothing is answered before the hello.
        let hello = incoming.message().await?.unwrap();
        let heard = self.heard.clone();
        heard.send(hello.try_into().unwrap()).await.unwrap();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                heard.send(message.try_into().unwrap()).await.unwrap();
            }
        });
        let messages = [welcome(), large_set()].iter().flat_map(into_messages).map(Ok).collect::<Vec<_>>();
        Ok(Response::new(Box::pin(stream::iter(messages).chain(stream::pending()))))
    }
}

#[tonic::async_trait]
impl Streams for Manager {
    type AttachStream = Replies<wire::Chunk>;

    async fn attach(&self, request: Request<Streaming<wire::Chunk>>) -> Result<Response<Self::AttachStream>, Status> {
        let echo = request
            .into_inner()
            .map(|chunk| chunk.map(|chunk| wire::Chunk { data: chunk.nonce.unwrap_or(chunk.data), nonce: None }));
        Ok(Response::new(Box::pin(echo)))
    }
}

struct Pipe(Mutex<Option<DuplexStream>>);

#[async_trait]
impl Dialer for Pipe {
    async fn dial(&self, _: SocketAddr) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let mut pipe = self.0.lock().unwrap().take();
        let connector = tower::service_fn(move |_| {
            let pipe = pipe.take().map(TokioIo::new).ok_or(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
            async move { pipe }
        });
        Ok(Endpoint::from_static("http://manager").connect_with_connector(connector).await?)
    }
}

/// A transport to a manager, and what the manager hears.
fn connected() -> (Grpc, mpsc::Receiver<AgentMessage>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (heard, hears) = mpsc::channel(16);
    let server = Server::builder()
        .add_service(DispatcherServer::new(Manager { heard: heard.clone() }))
        .add_service(StreamsServer::new(Manager { heard }));
    tokio::spawn(server.serve_with_incoming(stream::iter([Ok::<_, std::io::Error>(theirs)]).chain(stream::pending())));
    (Grpc::new(Arc::new(Pipe(Mutex::new(Some(ours))))), hears)
}

#[tokio::test]
async fn messages_cross_both_ways_and_a_large_set_arrives_whole() {
    let (transport, mut hears) = connected();
    let hello = Hello { description: NodeDescription::default(), last_index: 9 };
    let mut link = transport.session(address(1), hello.clone()).await.unwrap();
    assert_eq!(hears.recv().await, Some(AgentMessage::Hello(hello)));
    link.to_manager.send(AgentMessage::Heartbeat).await.unwrap();
    assert_eq!(hears.recv().await, Some(AgentMessage::Heartbeat));
    assert_eq!(link.from_manager.next().await.unwrap().unwrap(), welcome());
    assert_eq!(link.from_manager.next().await.unwrap().unwrap(), large_set());
}

#[tokio::test]
async fn a_stream_begins_with_its_nonce_and_each_direction_ends_on_its_own() {
    let (transport, _hears) = connected();
    let mut stream = transport.attach(address(1), [7; 16]).await.unwrap();
    let data = vec![5; 300_000];
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut echoed = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut echoed));
    read.unwrap();
    assert_eq!(echoed[..16], [7; 16]);
    assert_eq!(echoed[16..], data);
}

#[tokio::test]
async fn a_manager_that_cannot_be_reached_is_named() {
    let transport = Grpc::new(Arc::new(Pipe(Mutex::new(None))));
    let hello = Hello { description: NodeDescription::default(), last_index: 0 };
    let Err(error) = transport.session(address(1), hello).await else { panic!() };
    assert_eq!(error.to_string(), "cannot connect to the manager at 10.0.0.1:2377");
}
