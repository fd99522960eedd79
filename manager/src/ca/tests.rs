use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep_identity::join::{JoinError, JoinRequest, join};
use skep_identity::{
    BACK_DATE, Connector, Credentials, Dialer, Disk, Expect, Identity, LiveIdentity, NodeKey, Renewer, Revoked,
};
use skep_proto::model::{Availability, ClusterId, NodeId, NodeRole, Timestamp};
use skep_proto::wire::ca::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::wire::ca::{GetRootCaRequest, IssueCertificateRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;

use super::fake::{MemoryStore, START, TestClock};
use super::*;
use crate::rpc::fake::MemoryNet;
use crate::rpc::{CertificateRoles, Server};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// A cluster with one manager whose port is open.
struct World {
    net: MemoryNet,
    clock: Arc<TestClock>,
    store: Arc<MemoryStore>,
    manager: LiveIdentity,
    address: SocketAddr,
    rng: StdRng,
    stop: CancellationToken,
}

fn world() -> World {
    World::new(1, &MemoryNet::default(), "10.0.0.1:2377")
}

impl World {
    fn new(seed: u64, net: &MemoryNet, address: &str) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = ClusterId::random(&mut rng);
        let clock = Arc::new(TestClock::at(START));
        let made = bootstrap(cluster, START, LIFE, &mut rng).unwrap();
        let first =
            NewNode { id: made.credentials.identity.node, role: NodeRole::Manager, availability: Availability::Active };
        let store = Arc::new(MemoryStore {
            cluster: ClusterCa {
                id: cluster,
                root: made.root,
                tokens: made.tokens,
                link: String::new(),
                cert_expiry: LIFE,
            }
            .into(),
            nodes: std::sync::Mutex::new([(first.id, first)].into()),
        });
        let manager = LiveIdentity::new(made.credentials, Revoked::default(), clock.clone());
        let world = Self {
            net: net.clone(),
            clock,
            store,
            manager,
            address: address.parse().unwrap(),
            rng,
            stop: CancellationToken::new(),
        };
        let ca = CaService::new(world.store.clone(), world.manager.clone()).into_server();
        world.serve(Routes::new(ca), world.manager.clone());
        world
    }

    fn serve(&self, routes: Routes, live: LiveIdentity) {
        let server = Server::new(routes, live, Arc::new(CertificateRoles));
        tokio::spawn(server.run(self.net.listen(self.address), self.stop.clone()));
    }

    fn token(&self, role: NodeRole) -> skep_identity::JoinToken {
        let cluster = self.store.cluster.lock().unwrap();
        match role {
            NodeRole::Worker => cluster.tokens.worker.parse().unwrap(),
            NodeRole::Manager => cluster.tokens.manager.parse().unwrap(),
        }
    }

    fn request(&self, role: NodeRole) -> JoinRequest {
        JoinRequest { token: self.token(role), availability: Availability::Active, key: NodeKey::generate().unwrap() }
    }

    async fn join(&self, request: &JoinRequest) -> Result<Credentials, JoinError> {
        join(self.address, request, self.net.dialer("10.0.0.2"), self.clock.clone()).await
    }

    async fn joined(&self, role: NodeRole) -> Connector {
        let credentials = self.join(&self.request(role)).await.unwrap();
        self.connector(credentials)
    }

    fn connector(&self, credentials: Credentials) -> Connector {
        let live = LiveIdentity::new(credentials, Revoked::default(), self.clock.clone());
        Connector::new(live, self.net.dialer("10.0.0.2"))
    }

    fn issue(&self, key: &NodeKey, role: NodeRole, now: Timestamp) -> String {
        let cluster = self.store.cluster.lock().unwrap();
        let request = root::Request::read(&key.request().unwrap()).unwrap();
        let node = request.node();
        Signer::new(cluster.id, &cluster.root).unwrap().issue(request, node, role, now, LIFE, [1; 16]).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One call that every node may make or nobody: whether the connection stands, and who answers.
async fn call(connector: &Connector, world: &World) -> Result<(), tonic::Status> {
    let channel = connector.channel(world.address, Expect::Role(NodeRole::Manager));
    CertificateAuthorityClient::new(channel).get_root_ca(GetRootCaRequest {}).await.map(drop)
}

#[tokio::test]
async fn the_token_decides_the_role_and_the_key_the_id() {
    let w = world();
    for role in [NodeRole::Worker, NodeRole::Manager] {
        let request = w.request(role);
        let credentials = w.join(&request).await.unwrap();
        let cluster = w.store.cluster.lock().unwrap().id;
        assert_eq!(credentials.identity, Identity { node: request.key.node(), cluster, role });
        assert_eq!(credentials.validity.not_before, Timestamp(START.0 - BACK_DATE.as_millis() as u64));
        assert_eq!(credentials.validity.not_after, START.after(LIFE));
        assert_eq!(credentials.validity.half_life(), START.after(LIFE / 2));
    }
}

#[tokio::test]
async fn a_join_that_is_repeated_gives_the_same_node() {
    let w = world();
    let request = w.request(NodeRole::Worker);
    let (first, second) = (w.join(&request).await.unwrap(), w.join(&request).await.unwrap());
    assert_eq!(first.identity, second.identity);
    assert_eq!(w.store.nodes.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_manager_of_another_cluster_never_sees_the_token() {
    let net = MemoryNet::default();
    let (ours, other) = (World::new(1, &net, "10.0.0.1:2377"), World::new(2, &net, "10.0.0.9:2377"));
    let request = ours.request(NodeRole::Worker);
    let error = join(other.address, &request, net.dialer("10.0.0.2"), ours.clock.clone()).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongCluster { expected, .. } if expected == request.token.root));
    assert!(error.to_string().starts_with("remote CA does not match fingerprint"), "{error}");
    assert_eq!(other.store.nodes.lock().unwrap().len(), 1);
}

/// Shows genuine roots, which are public, from a server that is not of the cluster.
#[tokio::test]
async fn whoever_only_repeats_the_roots_never_sees_the_token() {
    let net = MemoryNet::default();
    let ours = World::new(1, &net, "10.0.0.1:2377");
    let impostor = World::new(2, &net, "10.0.0.9:2377");
    impostor.stop.cancel();
    let forwarding = CaService::new(ours.store.clone(), ours.manager.clone()).into_server();
    let server = Server::new(Routes::new(forwarding), impostor.manager.clone(), Arc::new(CertificateRoles));
    let stop = CancellationToken::new();
    tokio::spawn(server.run(net.listen(impostor.address), stop.clone()));
    let request = ours.request(NodeRole::Worker);
    let error = join(impostor.address, &request, net.dialer("10.0.0.2"), ours.clock.clone()).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
    stop.cancel();
}

#[tokio::test]
async fn a_worker_that_plays_manager_never_sees_the_token() {
    let w = world();
    let worker = w.joined(NodeRole::Worker).await;
    w.stop.cancel();
    let ca = CaService::new(w.store.clone(), w.manager.clone()).into_server();
    let server = Server::new(Routes::new(ca), worker.live().clone(), Arc::new(CertificateRoles));
    let stop = CancellationToken::new();
    tokio::spawn(server.run(w.net.listen(w.address), stop.clone()));
    let error = w.join(&w.request(NodeRole::Worker)).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
    stop.cancel();
}

#[tokio::test]
async fn a_rotated_token_admits_nobody_and_the_new_one_does() {
    let mut w = world();
    let old = w.request(NodeRole::Worker);
    {
        let cluster = &mut *w.store.cluster.lock().unwrap();
        rotate_token(&mut cluster.tokens, NodeRole::Worker, &cluster.root, &mut w.rng).unwrap();
    }
    let error = w.join(&old).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { message } if message.contains("rotated")), "{error}");
    assert!(!error.is_temporary());
    assert_eq!(w.store.nodes.lock().unwrap().len(), 1);
    w.join(&w.request(NodeRole::Worker)).await.unwrap();
    w.join(&w.request(NodeRole::Manager)).await.unwrap();
}

#[tokio::test]
async fn a_node_whose_clock_is_off_is_told_so() {
    for behind in [false, true] {
        let w = world();
        let off = TestClock::at(START);
        let by = Duration::from_secs(301);
        if behind {
            off.go_back(by)
        } else {
            off.advance(by)
        }
        let request = w.request(NodeRole::Worker);
        let error = join(w.address, &request, w.net.dialer("10.0.0.2"), Arc::new(off)).await.unwrap_err();
        let expected = if behind { "behind" } else { "ahead of" };
        assert!(
            matches!(error, JoinError::ClockSkew { direction, difference } if direction == expected && difference == by)
        );
    }
    let w = world();
    let near = TestClock::at(START.after(Duration::from_secs(299)));
    join(w.address, &w.request(NodeRole::Worker), w.net.dialer("10.0.0.2"), Arc::new(near)).await.unwrap();
}

#[tokio::test]
async fn the_manager_checks_the_clock_of_a_node_that_does_not() {
    let w = world();
    let status = issue_raw(&w, |r| r.now_ms -= 301_000).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("behind"), "{status}");
}

#[tokio::test]
async fn requests_that_are_not_ours_are_refused() {
    let w = world();
    let code = |result: Result<(), tonic::Status>| result.unwrap_err().code();
    assert_eq!(code(issue_raw(&w, |r| r.csr = vec![0; MAX_CSR + 1].into()).await), Code::InvalidArgument);
    assert_eq!(code(issue_raw(&w, |r| r.csr = vec![0x30; 100].into()).await), Code::InvalidArgument);
    assert_eq!(code(issue_raw(&w, |r| r.csr = Bytes::new()).await), Code::InvalidArgument);
    assert_eq!(code(issue_raw(&w, |r| r.token = "SWMTKN-1-x-y".into()).await), Code::InvalidArgument);
    // Beyond what is read at all.
    assert_eq!(code(issue_raw(&w, |r| r.csr = vec![0; 16 << 10].into()).await), Code::OutOfRange);
    // A signature that is not by the key in the request.
    let broken = |r: &mut IssueCertificateRequest| {
        let mut csr = r.csr.to_vec();
        *csr.last_mut().unwrap() ^= 1;
        r.csr = csr.into();
    };
    assert_eq!(code(issue_raw(&w, broken).await), Code::InvalidArgument);
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&ed25519).unwrap().der().to_vec();
    assert_eq!(code(issue_raw(&w, |r| r.csr = csr.into()).await), Code::InvalidArgument);
    assert_eq!(w.store.nodes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_request_says_of_itself_is_ignored() {
    let w = world();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, w.manager.identity().node.to_string());
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "swarm-manager");
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let request = root::Request::read(&csr).unwrap();
    let cluster = w.store.cluster.lock().unwrap();
    let node = request.node();
    let signer = Signer::new(cluster.id, &cluster.root).unwrap();
    let certificate = signer.issue(request, node, NodeRole::Worker, START, LIFE, [1; 16]).unwrap();
    let own = NodeKey::from_pem(&key.serialize_pem()).unwrap();
    let credentials = Credentials::new(own, &certificate, &cluster.root.certificates).unwrap();
    assert_eq!(credentials.identity, Identity { node, cluster: cluster.id, role: NodeRole::Worker });
    assert_ne!(node, w.manager.identity().node);
}

const MAX_CSR: usize = skep_identity::MAX_CSR_BYTES;

/// IssueCertificate as a client that checks nothing, with a request changed by `change`.
async fn issue_raw(w: &World, change: impl FnOnce(&mut IssueCertificateRequest)) -> Result<(), tonic::Status> {
    let mut request = IssueCertificateRequest {
        token: w.token(NodeRole::Worker).to_string(),
        csr: NodeKey::generate().unwrap().request().unwrap().into(),
        availability: 0,
        now_ms: START.0,
    };
    change(&mut request);
    let connector = w.connector(lone_credentials(w));
    let channel = connector.channel(w.address, Expect::Role(NodeRole::Manager));
    CertificateAuthorityClient::new(channel).issue_certificate(request).await.map(drop)
}

/// Credentials that the cluster's root signed, of a node that the store does not know.
fn lone_credentials(w: &World) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = w.issue(&key, NodeRole::Worker, START);
    let roots = w.store.cluster.lock().unwrap().root.certificates.clone();
    Credentials::new(key, &certificate, &roots).unwrap()
}

#[tokio::test]
async fn renewing_keeps_the_node_and_takes_the_role_of_the_store() {
    let w = world();
    let connector = w.joined(NodeRole::Worker).await;
    let before = connector.live().identity();
    w.store.nodes.lock().unwrap().get_mut(&before.node).unwrap().role = NodeRole::Manager;
    w.clock.advance(DAY);
    let dir = tempfile::tempdir().unwrap();
    let (_managers, receiver) = watch::channel(vec!["10.0.0.77:2377".parse().unwrap(), w.address]);
    let renewer = Renewer::new(connector.clone(), Disk::new(dir.path()), receiver);
    assert_eq!(renewer.renew().await.unwrap(), NodeRole::Manager);
    let after = connector.live().current();
    assert_eq!(after.identity, Identity { role: NodeRole::Manager, ..before });
    assert_eq!(after.validity.not_after, START.after(DAY + LIFE));
    assert_eq!(Disk::new(dir.path()).load().unwrap().unwrap().node_pem(), after.node_pem());
    call(&connector, &w).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_certificate_is_renewed_at_half_life_and_not_before() {
    let w = world();
    let connector = w.joined(NodeRole::Worker).await;
    let dir = tempfile::tempdir().unwrap();
    let (_managers, receiver) = watch::channel(vec![w.address]);
    let renewer = Renewer::new(connector.clone(), Disk::new(dir.path()), receiver);
    let mut changed = connector.live().subscribe();
    let run = tokio::spawn(async move { renewer.run(CancellationToken::new()).await });
    w.clock.advance(LIFE / 2 - DAY);
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, changed.changed()).await.is_err());
    // The spread is at most a tenth of the life.
    w.clock.advance(DAY + LIFE / 10);
    tokio::time::timeout(hour, changed.changed()).await.unwrap().unwrap();
    run.abort();
}

#[tokio::test]
async fn a_node_that_the_store_does_not_know_gets_no_new_certificate() {
    let w = world();
    let connector = w.connector(lone_credentials(&w));
    let dir = tempfile::tempdir().unwrap();
    let (_managers, receiver) = watch::channel(vec![w.address]);
    let error = Renewer::new(connector, Disk::new(dir.path()), receiver).renew().await.unwrap_err();
    assert!(error.to_string().contains("not part of the cluster"), "{error}");
}

#[tokio::test]
async fn a_removed_node_is_cut_off_and_cannot_come_back() {
    let w = world();
    let connector = w.joined(NodeRole::Worker).await;
    let node = connector.live().identity().node;
    let address = w.address;
    let channel = connector.connect(address, Expect::Node(w.manager.identity().node)).await.unwrap();
    let mut client = CertificateAuthorityClient::new(channel);
    client.get_root_ca(GetRootCaRequest {}).await.unwrap();
    w.manager.revoked().insert(node);
    // The open connection ends, the new handshake is refused.
    eventually(async || client.get_root_ca(GetRootCaRequest {}).await.is_err()).await;
    assert!(call(&connector, &w).await.is_err());
    // Nor does the key get another certificate.
    let request = JoinRequest {
        token: w.token(NodeRole::Manager),
        availability: Availability::Active,
        key: NodeKey::from_pem(&connector.live().current().node_pem()).unwrap(),
    };
    let error = w.join(&request).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { message } if message.contains("not part of the cluster")), "{error}");
}

#[tokio::test]
async fn the_handshake_itself_refuses_a_removed_node_in_either_part() {
    let w = world();
    let key = NodeKey::generate().unwrap();
    let certificate = w.issue(&key, NodeRole::Worker, START);
    raw_tls(&w, &certificate, &key.to_pem()).await.unwrap();
    w.manager.revoked().insert(key.node());
    let alert = raw_tls(&w, &certificate, &key.to_pem()).await.unwrap_err().to_string();
    assert!(alert.contains("CertificateRevoked"), "{alert}");
    // A removed manager that still serves: a node that knows does not speak to it.
    let connector = w.joined(NodeRole::Worker).await;
    call(&connector, &w).await.unwrap();
    connector.live().revoked().insert(w.manager.identity().node);
    assert!(connector.connect(w.address, Expect::Role(NodeRole::Manager)).await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let w = world();
    let connector = w.joined(NodeRole::Worker).await;
    call(&connector, &w).await.unwrap();
    w.clock.advance(LIFE + Duration::from_secs(1));
    // The manager's is as old: the dialler refuses.
    let manager = Expect::Role(NodeRole::Manager);
    assert!(connector.connect(w.address, manager).await.is_err());
    // With a fresh one at the manager, the worker's is refused.
    let key = NodeKey::generate().unwrap();
    let cluster = w.store.cluster.lock().unwrap().clone();
    let csr = root::Request::read(&key.request().unwrap()).unwrap();
    let certificate = Signer::new(cluster.id, &cluster.root)
        .unwrap()
        .issue(csr, w.manager.identity().node, NodeRole::Manager, w.manager.clock().now(), LIFE, [2; 16])
        .unwrap();
    w.manager.replace(Credentials::new(key, &certificate, &cluster.root.certificates).unwrap()).unwrap();
    assert!(call(&connector, &w).await.is_err());
    // The fresh one was taken into use without a restart: a newcomer is served.
    w.join(&w.request(NodeRole::Worker)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_on_both_sides() {
    let net = MemoryNet::default();
    let (ours, other) = (World::new(1, &net, "10.0.0.1:2377"), World::new(2, &net, "10.0.0.9:2377"));
    let connector = ours.joined(NodeRole::Manager).await;
    assert!(connector.connect(other.address, Expect::Role(NodeRole::Manager)).await.is_err());
    // A client that trusts anyone shows our certificate to them: they refuse it.
    let cluster = ours.store.cluster.lock().unwrap().clone();
    let mixed = Credentials::new(
        NodeKey::generate().unwrap(),
        &ours.issue(&NodeKey::generate().unwrap(), NodeRole::Manager, START),
        &cluster.root.certificates,
    );
    assert!(matches!(mixed, Err(skep_identity::CredentialsError::KeyMismatch)));
    let theirs = other.store.cluster.lock().unwrap().root.certificates.clone();
    let key = NodeKey::generate().unwrap();
    let certificate = ours.issue(&key, NodeRole::Manager, START);
    let pem = key.to_pem();
    let both = Credentials::new(key, &certificate, &(cluster.root.certificates + &theirs)).unwrap();
    let trusting_both = other.connector(both);
    // Our side still insists on one cluster, by name.
    assert!(trusting_both.connect(other.address, Expect::Role(NodeRole::Manager)).await.is_err());
    let raw = raw_tls(&other, &certificate, &pem).await;
    assert!(raw.is_err(), "the manager accepted a certificate of another cluster");
}

/// A handshake that shows `certificate` and accepts any server; waits until the server has judged it.
async fn raw_tls(w: &World, certificate: &str, key: &str) -> std::io::Result<()> {
    use rustls_pki_types::pem::PemObject;
    use tokio::io::AsyncReadExt;
    let roots = w.store.cluster.lock().unwrap().root.certificates.clone();
    let mut store = rustls::RootCertStore::empty();
    for root in skep_identity::pem::certificates(&roots).unwrap() {
        store.add(root).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(FixedTime))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store)
        .with_client_auth_cert(
            skep_identity::pem::certificates(certificate).unwrap(),
            rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = w.net.dialer("10.0.0.3").dial(w.address).await?;
    let name = w.manager.identity().node.to_string().try_into().unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    // A server that accepts speaks first in HTTP/2; one that refuses sends an alert.
    tls.read_u8().await.map(drop)
}

#[derive(Debug)]
struct FixedTime;

impl rustls::time_provider::TimeProvider for FixedTime {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        Some(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_millis(START.0)))
    }
}

#[tokio::test]
async fn calls_without_a_certificate_are_limited_per_address() {
    let w = world();
    let connector = w.connector(lone_credentials(&w));
    let channel = connector.channel(w.address, Expect::Role(NodeRole::Manager));
    let mut client = CertificateAuthorityClient::new(channel);
    let mut refused = None;
    for _ in 0..100 {
        if let Err(status) = client.get_root_ca(GetRootCaRequest {}).await {
            refused = Some(status.code());
            break;
        }
    }
    assert_eq!(refused, Some(Code::ResourceExhausted));
    let request = w.request(NodeRole::Worker);
    join(w.address, &request, w.net.dialer("10.0.0.200"), w.clock.clone()).await.unwrap();
}

#[tokio::test]
async fn a_dialler_who_expects_another_node_refuses() {
    let w = world();
    let connector = w.joined(NodeRole::Worker).await;
    assert!(connector.connect(w.address, Expect::Node(NodeId(7))).await.is_err());
    assert!(connector.connect(w.address, Expect::Role(NodeRole::Worker)).await.is_err());
    connector.connect(w.address, Expect::Node(w.manager.identity().node)).await.unwrap();
}

/// Polls until `done`, at most 5 s.
async fn eventually(mut done: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "it did not happen within 5 s");
        tokio::task::yield_now().await;
    }
}
