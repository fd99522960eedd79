use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep_identity::{Connector, Dialer, Expect, Identity, LiveIdentity, Revoked};
use skep_proto::model::{ClusterId, NodeId, NodeRole};
use skep_proto::wire::DESCRIPTORS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;
use tower::Service;

use super::authorize::decide;
use super::fake::MemoryNet;
use super::*;
use crate::ca::fake::{START, TestClock};
use crate::ca::root::{Request, Signer, create_root};
use skep_identity::{Credentials, NodeKey};

const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Paths of all methods of all services.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    paths
}

struct World {
    net: MemoryNet,
    manager: Connector,
    worker: Connector,
    address: SocketAddr,
    stop: CancellationToken,
}

/// A server without services: what passes its door is answered `Unimplemented`.
fn world(limits: Limits, roles: impl Roles) -> World {
    let mut rng = StdRng::seed_from_u64(1);
    let cluster = ClusterId::random(&mut rng);
    let root = create_root(cluster, START).unwrap();
    let signer = Signer::new(cluster, &root).unwrap();
    let (net, clock) = (MemoryNet::default(), Arc::new(TestClock::at(START)));
    let node = |role| {
        let key = NodeKey::generate().unwrap();
        let request = Request::read(&key.request().unwrap()).unwrap();
        let certificate = signer.issue(request, key.node(), role, START, LIFE, [1; 16]).unwrap();
        let credentials = Credentials::new(key, &certificate, &root.certificates).unwrap();
        let live = LiveIdentity::new(credentials, Revoked::default(), clock.clone());
        Connector::new(live, net.dialer("10.0.0.2"))
    };
    let (manager, worker) = (node(NodeRole::Manager), node(NodeRole::Worker));
    let address = "10.0.0.1:2377".parse().unwrap();
    let stop = CancellationToken::new();
    let server = Server::new(Routes::default(), manager.live().clone(), Arc::new(roles)).with_limits(limits);
    tokio::spawn(server.run(net.listen(address), stop.clone()));
    World { net, manager, worker, address, stop }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Calls `path` with an empty message and returns the code of the answer.
async fn call(connector: &Connector, address: SocketAddr, path: &str) -> Code {
    call_on(&mut connector.channel(address, Expect::Role(NodeRole::Manager)), path).await
}

async fn call_on(channel: &mut tonic::transport::Channel, path: &str) -> Code {
    let request = http::Request::post(format!("http://cluster{path}"))
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::empty())
        .unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    let status = response.headers().get("grpc-status").expect("an answer without body carries its status");
    Code::from_bytes(status.as_bytes())
}

fn who(role: NodeRole) -> Identity {
    Identity { node: NodeId(5), cluster: ClusterId(1), role }
}

#[test]
fn every_method_has_a_rule_and_every_rule_a_method() {
    let (mut methods, mut rules) = (methods(), RULES.iter().map(|(path, _)| (*path).to_owned()).collect::<Vec<_>>());
    methods.sort();
    rules.sort();
    assert!(methods.len() > 2);
    assert_eq!(methods, rules);
}

#[test]
fn exactly_two_methods_are_open() {
    let open: Vec<_> = RULES.iter().filter(|(_, access)| *access == Access::Open).map(|(path, _)| *path).collect();
    assert_eq!(open, ["/skep.ca.CertificateAuthority/GetRootCa", "/skep.ca.CertificateAuthority/IssueCertificate"]);
}

#[test]
fn what_the_table_does_not_name_is_denied_to_all() {
    let decide = |caller| decide(RULES, "/skep.Other/Call", caller, &CertificateRoles, &Revoked::default());
    assert_eq!(decide(None).unwrap_err().code(), Code::Unauthenticated);
    for role in [NodeRole::Worker, NodeRole::Manager] {
        assert_eq!(decide(Some(who(role))).unwrap_err().code(), Code::PermissionDenied);
    }
}

/// Over TLS, every method of every service, for each kind of caller.
#[tokio::test]
async fn each_method_lets_in_whom_its_rule_names() {
    let w = world(Limits::default(), CertificateRoles);
    for path in methods() {
        let access = RULES.iter().find(|(rule, _)| *rule == path).unwrap().1;
        let passes = Code::Unimplemented;
        let expected = if matches!(access, Access::Manager | Access::Member) { Code::PermissionDenied } else { passes };
        assert_eq!(call(&w.worker, w.address, &path).await, expected, "{path} as worker");
        assert_eq!(call(&w.manager, w.address, &path).await, passes, "{path} as manager");
        let expected = if access == Access::Open { passes } else { Code::Unauthenticated };
        let got = decide(RULES, &path, None, &CertificateRoles, &Revoked::default());
        assert_eq!(got.map_or_else(|status| status.code(), |_| passes), expected, "{path} without certificate");
    }
}

#[test]
fn a_manager_that_the_store_calls_a_worker_is_one_a_worker_never_rises_and_a_stranger_is_none() {
    struct Fixed(Option<NodeRole>, bool);
    impl Roles for Fixed {
        fn role(&self, _: &Identity) -> Option<NodeRole> {
            self.0
        }
        fn is_current_without(&self, _: NodeId) -> bool {
            self.1
        }
    }
    let rules: &[(&str, Access)] = &[("/m", Access::Manager), ("/r", Access::Member)];
    let decide = |path, now, certificate| {
        decide(rules, path, Some(who(certificate)), &Fixed(now, true), &Revoked::default())
            .map_err(|status| status.code())
    };
    let (worker, manager) = (NodeRole::Worker, NodeRole::Manager);
    for path in ["/m", "/r"] {
        assert_eq!(decide(path, Some(worker), manager), Err(Code::PermissionDenied));
        assert_eq!(decide(path, Some(manager), worker), Err(Code::PermissionDenied));
        assert_eq!(decide(path, None, worker), Err(Code::PermissionDenied));
        assert_eq!(decide(path, Some(manager), manager), Ok(Some(who(manager))));
    }
    // Unknown here: removed, or newer than what this manager has seen. Only Raft itself may bring it the news.
    assert_eq!(decide("/m", None, manager), Err(Code::PermissionDenied));
    assert_eq!(decide("/r", None, manager), Ok(Some(who(manager))));
    // One that lags behind knows a new manager, perhaps its leader, as the worker that it was.
    let lagging = |path| {
        let caller = Some(who(manager));
        super::authorize::decide(rules, path, caller, &Fixed(Some(worker), false), &Revoked::default()).is_ok()
    };
    assert_eq!((lagging("/r"), lagging("/m")), (true, false));
}

#[test]
fn a_removed_node_is_denied_on_a_connection_that_is_still_open() {
    let revoked = Revoked::default();
    revoked.insert(NodeId(5));
    let rules: &[(&str, Access)] = &[("/n", Access::Node)];
    let status = decide(rules, "/n", Some(who(NodeRole::Manager)), &CertificateRoles, &revoked).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn garbage_on_the_port_is_cut_off_and_hurts_nobody() {
    let w = world(Limits::default(), CertificateRoles);
    let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hello = [&[22, 3, 1, 0x40, 0][..], &noise[..0x4000]].concat();
    let pieces: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &noise, &hello, b""];
    for bytes in pieces {
        let mut stream = w.net.dialer("10.0.0.66").dial(w.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // At most a TLS alert comes back, then the end.
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(matches!(ended, Ok(Ok(_)) | Ok(Err(_))), "the connection stays open");
        assert!(answer.len() < 16, "{answer:?}");
    }
    assert_eq!(call(&w.worker, w.address, "/x").await, Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_finish_the_handshake_is_cut_off() {
    let w = world(Limits::default(), CertificateRoles);
    let mut stream = w.net.dialer("10.0.0.66").dial(w.address).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let limits = Limits { strangers: 3, strangers_per_address: 2, ..Limits::default() };
    let w = world(limits, CertificateRoles);
    let mut held = Vec::new();
    for from in ["10.0.0.66", "10.0.0.66", "10.0.0.66", "10.0.0.67", "10.0.0.68"] {
        held.push(w.net.dialer(from).dial(w.address).await.unwrap());
    }
    let mut cut = Vec::new();
    for stream in &mut held {
        let end = tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await;
        cut.push(matches!(end, Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
    }
    assert_eq!(cut, [false, false, true, false, true]);
    drop(held);
    // The places are free again.
    let manager = Expect::Role(NodeRole::Manager);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while w.worker.connect(w.address, manager).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "no place within 5 s");
    }
}

#[tokio::test]
async fn nodes_do_not_take_the_places_of_strangers() {
    let limits = Limits { strangers: 1, strangers_per_address: 1, ..Limits::default() };
    let w = world(limits, CertificateRoles);
    let mut channels = Vec::new();
    for _ in 0..5 {
        let mut channel = w.worker.connect(w.address, Expect::Role(NodeRole::Manager)).await.unwrap();
        // Served, so the handshake is over on both sides.
        assert_eq!(call_on(&mut channel, "/x").await, Code::PermissionDenied);
        channels.push(channel);
    }
}

#[tokio::test]
async fn stopping_ends_open_connections_and_the_server() {
    let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
    let w = world(limits, CertificateRoles);
    let channel = w.worker.connect(w.address, Expect::Role(NodeRole::Manager)).await.unwrap();
    w.stop.cancel();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while w.worker.connect(w.address, Expect::Role(NodeRole::Manager)).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the server still accepts after 5 s");
    }
    drop(channel);
}
