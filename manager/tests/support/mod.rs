//! Groups of managers in one process, over loopback TCP.
#![allow(dead_code, clippy::unwrap_used)] // test code, shared by files that each use a part of it

pub mod kv;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv::{Change, Codec, Kv, State, Trace, View};
use skep_manager::raft::config::Config;
use skep_manager::raft::disk::Folder;
use skep_manager::raft::network::{ConnectError, Connector, endpoint};
use skep_manager::raft::proposer::{Limits, ProposeError, Proposer};
use skep_manager::raft::seal::{Sealer, SecretKey};
use skep_manager::raft::types::{Payload, Peer, RaftId, TypeConfig};
use skep_manager::raft::{Group as ChangeGroup, Raft};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server, server::TcpIncoming};

pub const CLUSTER: [u8; 16] = *b"a test's cluster";
pub const WITHIN: Duration = Duration::from_secs(60);

/// Dials plain TCP, and lets a test cut members off by number.
#[derive(Clone, Default)]
pub struct Plain;

impl Connector for Plain {
    fn connect(&self, id: RaftId, peer: &Peer) -> Result<Channel, ConnectError> {
        let failed = |reason: String| ConnectError { id, address: peer.address.clone(), reason };
        Ok(endpoint(format!("http://{}", peer.address)).map_err(|e| failed(e.to_string()))?.connect_lazy())
    }
}

/// One running manager.
pub struct Node {
    pub raft: Raft,
    pub view: View,
    pub trace: Trace,
    pub peer: Peer,
    pub proposer: Proposer,
    stop: CancellationToken,
    server: JoinHandle<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.view.lock().unwrap())
    }

    /// As a power cut would: nothing is told, nothing is flushed.
    pub async fn kill(mut self) {
        self.stop.cancel();
        let _ = (&mut self.server).await;
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
    }

    pub async fn shutdown(self) {
        self.raft.shutdown().await;
        self.kill().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A group whose members keep their folder and address over restarts.
pub struct Group {
    dir: tempfile::TempDir,
    addresses: Mutex<BTreeMap<RaftId, SocketAddr>>,
    pub tune: fn(&mut Config),
}

impl Group {
    pub fn new(tune: fn(&mut Config)) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), addresses: Mutex::default(), tune }
    }

    pub fn folder(&self, id: RaftId) -> std::path::PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// The next start of member `id` is at another address.
    pub fn forget_address(&self, id: RaftId) {
        self.addresses.lock().unwrap().remove(&id);
    }

    /// Starts member `id`, anew or from what its folder holds.
    pub async fn start(&self, id: RaftId) -> Node {
        let known = self.addresses.lock().unwrap().get(&id).copied();
        let wanted = known.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let incoming = eventually_some(|| TcpIncoming::bind(wanted).ok()).await.with_nodelay(Some(true));
        let address = incoming.local_addr().unwrap();
        self.addresses.lock().unwrap().insert(id, address);

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut config = Config::new(id, CLUSTER);
        (self.tune)(&mut config);
        let disk = Arc::new(Folder::open(self.folder(id)).unwrap());
        let sealer = Arc::new(Sealer::new(&[(1, SecretKey::from_bytes([id as u8; 32]))], rand::random()));
        let (view, trace) = (View::default(), Trace::default());
        let machine = Box::new(Kv::new(view.clone(), trace.clone()));
        let raft = Raft::start(config, disk, sealer, machine, Arc::new(Plain), runtime.handle().clone()).await.unwrap();

        let proposer = Proposer::start(&raft, Arc::new(Codec), Arc::new(|| 0), Limits::default());
        let stop = CancellationToken::new();
        let (service, stopped) = (raft.service(), stop.clone());
        let server = runtime.spawn(async move {
            let serve = Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::select! {
                _ = serve => {}
                () = stopped.cancelled() => {}
            }
        });
        let peer = Peer { address: address.to_string(), node_id: format!("node{id}") };
        Node { raft, view, trace, peer, proposer, stop, server, runtime: Some(runtime) }
    }

    /// Starts members 1 to `count` as voters of one group.
    pub async fn form(&self, count: u64) -> Vec<Node> {
        let mut nodes = vec![self.start(1).await];
        nodes[0].raft.initialize(nodes[0].peer.clone()).await.unwrap();
        leads(&nodes[0]).await;
        for id in 2..=count {
            let node = self.start(id).await;
            nodes[0].raft.add_learner(id, node.peer.clone(), WITHIN).await.unwrap();
            nodes[0].raft.promote(id, WITHIN).await.unwrap();
            nodes.push(node);
        }
        nodes
    }
}

/// Waits until `node` leads and may act.
pub async fn leads(node: &Node) {
    tokio::time::timeout(WITHIN, node.raft.tenure().wait_for(Option::is_some))
        .await
        .expect("a leader in time")
        .unwrap();
}

/// Waits until one of `nodes` leads, and returns its place.
pub async fn leader_of(nodes: &[Node]) -> usize {
    eventually_some(|| nodes.iter().position(|n| n.raft.is_leader())).await
}

/// Polls until there is a value.
pub async fn eventually_some<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + WITHIN;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in {WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls until the condition holds.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    eventually_some(|| holds().then_some(())).await;
}

/// Sets a key through `node`.
pub async fn propose(node: &Node, key: &str, value: &str) -> Result<u64, ProposeError> {
    let bytes = Change::set(key, value).encode();
    node.proposer.propose(ChangeGroup { bytes, changes: 1 }).await.map(|applied| applied.index)
}

/// Puts bytes through `node`, as the value of a key.
pub async fn propose_bytes(node: &Node, key: &str, value: &[u8]) -> Result<u64, ProposeError> {
    let value: String = value.iter().map(|b| char::from(b'!' + b % 90)).collect();
    propose(node, key, &value).await
}

/// An entry for a log of its own.
pub fn entry(term: u64, index: u64, payload: Payload) -> openraft::alias::EntryOf<TypeConfig> {
    let leader_id = openraft::alias::CommittedLeaderIdOf::<TypeConfig> { term };
    openraft::Entry { log_id: openraft::LogId { leader_id, index }, payload: openraft::EntryPayload::Normal(payload) }
}
