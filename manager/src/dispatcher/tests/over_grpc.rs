//! Sessions and streams over TLS and gRPC, between real servers and clients.

use std::net::SocketAddr;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep_identity::{Connector, Credentials, Expect, LiveIdentity, NodeKey, Revoked};
use skep_proto::convert::Assembler;
use skep_proto::wire::session as wire;
use skep_proto::wire::session::Chunk;
use skep_proto::wire::session::dispatcher_client::DispatcherClient;
use skep_proto::wire::session::streams_client::StreamsClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Code, Status, Streaming};

use super::super::grpc::{RelayService, SessionService, StreamService};
use super::*;
use crate::ca::fake::{START, TestClock};
use crate::ca::root::{Request, Signer, create_root};
use crate::rpc::fake::MemoryNet;
use crate::rpc::{CertificateRoles, Server};

/// Two managers, of which the first leads, and the means to make nodes.
struct Cluster {
    net: MemoryNet,
    signer: Signer,
    roots: String,
    store: Arc<FakeStore>,
    leader: Manager,
    follower: Manager,
    stop: CancellationToken,
}

struct Manager {
    address: SocketAddr,
    streams: Streams,
    relay: Arc<Relay>,
    _leadership: watch::Sender<Leadership>,
}

impl Cluster {
    async fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let id = ClusterId::random(&mut rng);
        let root = create_root(id, START).unwrap();
        let signer = Signer::new(id, &root).unwrap();
        let (net, store, stop) = (MemoryNet::default(), FakeStore::new(), CancellationToken::new());
        let addresses: [SocketAddr; 2] = ["10.0.0.101:2377".parse().unwrap(), "10.0.0.102:2377".parse().unwrap()];
        let make = |n: usize, leadership| {
            let connector =
                connector(&net, &signer, &root.certificates, NodeRole::Manager, addresses[n].ip().to_string());
            manager(&net, &store, connector, addresses[n], leadership, &stop)
        };
        let leader = make(0, Leadership::Leading { term: 1 });
        let follower = make(1, Leadership::Following { leader: Some(addresses[0]) });
        eventually(|| leader.1.is_leading()).await;
        Self { net, signer, roots: root.certificates, store, leader: leader.0, follower: follower.0, stop }
    }

    /// A worker that is in the store.
    fn worker(&self) -> Connector {
        let connector = connector(&self.net, &self.signer, &self.roots, NodeRole::Worker, "10.0.0.3".into());
        self.store.put_node(Node { id: connector.live().identity().node, ..super::node(3) });
        connector
    }

    async fn session(&self, worker: &Connector) -> GrpcAgent {
        let channel = worker.channel(self.leader.address, Expect::Role(NodeRole::Manager));
        let (to_manager, queue) = mpsc::channel(8);
        to_manager.send((&hello(3)).into()).await.unwrap();
        let incoming = DispatcherClient::new(channel).session(ReceiverStream::new(queue)).await.unwrap().into_inner();
        GrpcAgent { to_manager, incoming, assembler: Assembler::default() }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn connector(net: &MemoryNet, signer: &Signer, roots: &str, role: NodeRole, from: String) -> Connector {
    let key = NodeKey::generate().unwrap();
    let request = Request::read(&key.request().unwrap()).unwrap();
    let life = Duration::from_secs(24 * 3600);
    let certificate = signer.issue(request, key.node(), role, START, life, [1; 16]).unwrap();
    let credentials = Credentials::new(key, &certificate, roots).unwrap();
    let live = LiveIdentity::new(credentials, Revoked::default(), Arc::new(TestClock::at(START)));
    Connector::new(live, net.dialer(&from))
}

fn manager(
    net: &MemoryNet,
    store: &Arc<FakeStore>,
    connector: Connector,
    address: SocketAddr,
    leadership: Leadership,
    stop: &CancellationToken,
) -> (Manager, Arc<Dispatcher>) {
    let leadership = watch::Sender::new(leadership);
    let dispatcher = Arc::new(Dispatcher::new(store.clone(), leadership.subscribe(), Timing::default(), Timestamp(1)));
    let relay = Arc::new(Relay::new(dispatcher.clone(), connector.clone()));
    let streams = Streams::new(watch::channel(address).1, relay.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(SessionService(dispatcher.clone()).into_server())
        .add_service(StreamService(streams.clone()).into_server())
        .add_service(RelayService(dispatcher.clone()).into_server());
    let server = Server::new(routes.routes(), connector.live().clone(), Arc::new(CertificateRoles));
    tokio::spawn(server.run(net.listen(address), stop.clone()));
    let (run, until) = (dispatcher.clone(), stop.clone());
    tokio::spawn(async move { run.run(until).await });
    (Manager { address, streams, relay, _leadership: leadership }, dispatcher)
}

struct GrpcAgent {
    to_manager: mpsc::Sender<wire::AgentMessage>,
    incoming: Streaming<wire::ManagerMessage>,
    assembler: Assembler,
}

impl GrpcAgent {
    async fn next(&mut self) -> ManagerMessage {
        loop {
            let part = self.incoming.message().await.unwrap().expect("the session goes on");
            if let Some(message) = self.assembler.push(part).unwrap() {
                return message;
            }
        }
    }

    async fn next_open(&mut self) -> OpenStream {
        loop {
            if let ManagerMessage::OpenStream(open) = self.next().await {
                return open;
            }
        }
    }
}

/// What the agent does with a request, as its transport does: data out by the sender, data in by the answer.
async fn attach(
    worker: &Connector,
    to: SocketAddr,
    nonce: &[u8],
) -> Result<(mpsc::Sender<Chunk>, Streaming<Chunk>), Status> {
    let (sender, queue) = mpsc::channel(4);
    let first = Chunk { data: Bytes::new(), nonce: Some(Bytes::copy_from_slice(nonce)) };
    sender.send(first).await.unwrap();
    let channel = worker.channel(to, Expect::Role(NodeRole::Manager));
    let incoming = StreamsClient::new(channel).attach(ReceiverStream::new(queue)).await?.into_inner();
    Ok((sender, incoming))
}

fn data(bytes: &[u8]) -> Chunk {
    Chunk { data: Bytes::copy_from_slice(bytes), nonce: None }
}

#[tokio::test]
async fn a_session_tells_a_node_its_tasks_and_takes_their_statuses() {
    let c = Cluster::new().await;
    let worker = c.worker();
    let node = worker.live().identity().node;
    c.store.put_service(service(5, &[], None));
    c.store.put_task(TaskFacts { node: Some(node), ..task(1, 5, 3, &[]) });
    let mut agent = c.session(&worker).await;
    assert!(matches!(agent.next().await, ManagerMessage::Welcome(_)));
    let ManagerMessage::Assignments(set) = agent.next().await else { panic!("no set") };
    let mut held = Held::default();
    held.apply(&set);
    assert_eq!(held.tasks.len(), 1);
    let report = AgentMessage::Statuses(vec![status(1, TaskState::Running)]);
    agent.to_manager.send((&report).into()).await.unwrap();
    eventually(|| c.store.read().tasks[&1].state == TaskState::Running).await;
    // Vitals are known on either manager; the follower asks the leader.
    for manager in [&c.leader, &c.follower] {
        let vitals = manager.relay.vitals(&[TaskId(1001), TaskId(4)]).await;
        assert_eq!(vitals.into_iter().map(|(id, v)| (id, v.pid)).collect::<Vec<_>>(), [(TaskId(1001), 1)]);
    }
}

#[tokio::test]
async fn a_set_larger_than_a_message_arrives_whole() {
    let c = Cluster::new().await;
    let worker = c.worker();
    let node = worker.live().identity().node;
    let mut large = service(5, &[], None);
    large.spec.task.containers = vec![ContainerSpec { env: vec!["x".repeat(200_000); 8], ..ContainerSpec::default() }];
    for id in 5..10 {
        c.store.put_service(Service { id: ServiceId(id), ..large.clone() });
        c.store.put_task(TaskFacts { node: Some(node), ..task(id as u32, id, 3, &[]) });
    }
    let mut agent = c.session(&worker).await;
    loop {
        if let ManagerMessage::Assignments(set) = agent.next().await {
            let specs = set.changes.iter().filter(|c| matches!(c, AssignmentChange::PutSpec(_))).count();
            assert_eq!((set.complete, specs), (true, 5));
            break;
        }
    }
}

#[tokio::test]
async fn either_manager_gets_a_stream_to_a_node_and_each_direction_ends_on_its_own() {
    let c = Cluster::new().await;
    let worker = c.worker();
    let node = worker.live().identity().node;
    let mut agent = c.session(&worker).await;
    agent.next().await;
    for manager in [&c.leader, &c.follower] {
        for manager_first in [true, false] {
            let streams = manager.streams.clone();
            let opened = tokio::spawn(async move { streams.open(node).await });
            let open = agent.next_open().await;
            assert_eq!(open.manager, manager.address);
            let (to_manager, mut from_manager) = attach(&worker, open.manager, &open.nonce).await.unwrap();
            let mut stream = opened.await.unwrap().unwrap();
            stream.write_all(b"question").await.unwrap();
            assert_eq!(from_manager.message().await.unwrap(), Some(data(b"question")));
            if manager_first {
                // The manager has said all: the node sees the end, and its answer still arrives, however long.
                stream.shutdown().await.unwrap();
                assert_eq!(from_manager.message().await.unwrap(), None);
                let answer = vec![7u8; 3 << 20];
                let sent = answer.clone();
                let send = tokio::spawn(async move {
                    for part in sent.chunks(100_000) {
                        to_manager.send(data(part)).await.unwrap();
                    }
                });
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.unwrap();
                send.await.unwrap();
                assert!(got == answer, "{} of {} bytes", got.len(), answer.len());
            } else {
                // The node has said all, and still hears.
                to_manager.send(data(b"last")).await.unwrap();
                drop(to_manager);
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, b"last");
                let long = vec![9u8; 3 << 20];
                let expected = long.clone();
                let send = tokio::spawn(async move {
                    stream.write_all(&long).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
                let mut got = Vec::new();
                while let Some(chunk) = from_manager.message().await.unwrap() {
                    assert!(chunk.data.len() <= 64 << 10);
                    got.extend_from_slice(&chunk.data);
                }
                send.await.unwrap();
                assert!(got == expected);
            }
        }
    }
}

#[tokio::test]
async fn a_reader_that_is_slow_is_felt_by_the_writer() {
    let c = Cluster::new().await;
    let worker = c.worker();
    let node = worker.live().identity().node;
    let mut agent = c.session(&worker).await;
    agent.next().await;
    let streams = c.leader.streams.clone();
    let opened = tokio::spawn(async move { streams.open(node).await });
    let open = agent.next_open().await;
    let (_to_manager, from_manager) = attach(&worker, open.manager, &open.nonce).await.unwrap();
    let mut stream = opened.await.unwrap().unwrap();
    // Nobody reads: far more than all windows and queues cannot be written.
    let write = async {
        let chunk = vec![0u8; 64 << 10];
        for _ in 0..1024 {
            stream.write_all(&chunk).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(500), write).await.is_err());
    // The node goes: the writer is told.
    drop(from_manager);
    drop(_to_manager);
    let chunk = vec![0u8; 64 << 10];
    let broken = async { while stream.write_all(&chunk).await.is_ok() {} };
    timeout(Duration::from_secs(5), broken).await.expect("writing fails once the node is gone");
}

#[tokio::test]
async fn a_nonce_is_good_once_for_its_node_only() {
    let c = Cluster::new().await;
    let (worker, other) = (c.worker(), c.worker());
    let node = worker.live().identity().node;
    let mut agent = c.session(&worker).await;
    agent.next().await;
    let streams = c.leader.streams.clone();
    let opened = tokio::spawn(async move { streams.open(node).await });
    let open = agent.next_open().await;
    let code = |result: Result<_, Status>| result.map(drop).unwrap_err().code();
    // Guessed, too short, stolen by another node, brought to another manager.
    assert_eq!(code(attach(&worker, open.manager, &[0; 16]).await), Code::PermissionDenied);
    assert_eq!(code(attach(&worker, open.manager, &[0; 4]).await), Code::InvalidArgument);
    assert_eq!(code(attach(&other, open.manager, &open.nonce).await), Code::PermissionDenied);
    assert_eq!(code(attach(&worker, c.follower.address, &open.nonce).await), Code::PermissionDenied);
    // Its owner's still works; replayed, it does not.
    let _stream = attach(&worker, open.manager, &open.nonce).await.unwrap();
    opened.await.unwrap().unwrap();
    assert_eq!(code(attach(&worker, open.manager, &open.nonce).await), Code::PermissionDenied);
}

#[tokio::test]
async fn a_node_without_session_cannot_be_asked() {
    let c = Cluster::new().await;
    let node = c.worker().live().identity().node;
    for manager in [&c.leader, &c.follower] {
        assert_eq!(manager.streams.open(node).await.err(), Some(StreamError::NotConnected { node }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_come_is_waited_for_ten_seconds() {
    struct Ask;
    #[async_trait::async_trait]
    impl streams::AskNode for Ask {
        async fn ask(&self, _: NodeId, _: OpenStream) -> Result<(), StreamError> {
            Ok(())
        }
    }
    let streams = Streams::new(watch::channel(LEADER.parse().unwrap()).1, Arc::new(Ask));
    let begun = Instant::now();
    assert_eq!(streams.open(N1).await.err(), Some(StreamError::Timeout { node: N1 }));
    assert_eq!(begun.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn a_worker_may_not_relay() {
    use skep_proto::wire::dispatch::VitalsRequest;
    use skep_proto::wire::dispatch::relay_client::RelayClient;
    let c = Cluster::new().await;
    let channel = c.worker().channel(c.leader.address, Expect::Role(NodeRole::Manager));
    let status = RelayClient::new(channel).vitals(VitalsRequest { tasks: vec![] }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}
