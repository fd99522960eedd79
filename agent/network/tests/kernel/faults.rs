//! What must not get through, what must come back, and what must not be left over.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_network::dns::zone::ZoneKey;
use skep_network::{BridgeAttachment, HostPort, NetworkError, OverlayAttachment, SandboxId, SandboxSpec};
use skep_proto::model::service::Protocol;
use skep_proto::model::view::Peer;
use skep_proto::model::{NetworkId, NodeId, TaskId};
use tokio_util::sync::CancellationToken;

use crate::world::{CLIENT, World, ask_tcp, ask_udp, eventually, reaches, run, serve_tcp, serve_udp, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_sandbox_cannot_send_as_another() {
    let mut w = World::new(2);
    let net = w.network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 0, None, net, "10.0.1.11/24").await;
    let c = w.task(3, 1, None, net, "10.0.1.12/24").await;
    w.apply().await;
    serve_udp(&b.netns, 80, "b");
    assert!(ask_udp(&a.netns, "10.0.1.11:80").is_ok());
    let inside = format!("nsenter --net={}", a.netns.display());
    run(&format!("{inside} ip addr add 10.0.1.99/24 dev eth0"));
    let received = count(&b.netns, "eth0");
    run(&format!("{inside} busybox ping -I 10.0.1.99 -c2 -W1 10.0.1.11 | cat"));
    run(&format!("{inside} ip link set eth0 down && {inside} ip link set eth0 address 02:42:0a:00:01:0b"));
    run(&format!("{inside} ip link set eth0 up && {inside} busybox ping -c2 -W1 10.0.1.11 | cat"));
    assert_eq!(count(&b.netns, "eth0"), received, "a frame with another's address got through");
    assert!(reaches(&b.netns, "10.0.1.12") && reaches(&c.netns, "10.0.1.11"));
}

/// Packets that a link received.
fn count(netns: &Path, link: &str) -> u64 {
    let inside = format!("nsenter --net={}", netns.display());
    run(&format!("{inside} awk '$1 == \"{link}:\" {{ print $3 }}' /proc/thread-self/net/dev")).trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn only_nodes_of_the_cluster_may_send_into_a_network() {
    let mut w = World::new(1);
    let net = w.plain_network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    w.apply().await;
    let socket = within(&a.netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let hub = format!("nsenter --net={}", w.hub().display());
    run(&format!(
        "{hub} ip link add evil address 02:42:0a:00:01:42 type vxlan id 4097 dstport 4789 local {CLIENT} remote 10.99.0.11 && \
         {hub} ip addr add 10.0.1.66/24 dev evil && {hub} ip link set evil up && \
         {hub} ip neigh replace 10.0.1.10 lladdr 02:42:0a:00:01:0a dev evil"
    ));
    let hub = w.hub();
    let inject = || {
        within(&hub, || UdpSocket::bind("10.0.1.66:0").unwrap().send_to(b"!", "10.0.1.10:80").unwrap()).join().unwrap();
        socket.recv_from(&mut [0; 8]).is_ok()
    };
    assert!(!inject(), "a stranger's frame got through");
    let stranger = NodeId(66);
    let address = CLIENT.parse::<IpAddr>().unwrap();
    w.view.peers.insert(
        stranger,
        Peer { node: stranger, index: 66, data_path: vec![address], wireguard: None, ipv4_only: false },
    );
    w.apply().await;
    assert!(inject(), "the same frame from a node of the cluster must arrive, or this test proves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn connections_to_a_task_that_is_gone_are_cut() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, Some(service), net, "10.0.1.20/24").await;
    w.apply().await;
    serve_udp(&b.netns, 80, "b");
    let socket = within(&a.netns, || UdpSocket::bind("0.0.0.0:0").unwrap()).join().unwrap();
    socket.connect("10.0.1.200:80").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?").ok()?;
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    assert_eq!(ask().as_deref(), Some("b 10.0.1.10"));
    let c = w.task(3, 0, Some(service), net, "10.0.1.21/24").await;
    serve_udp(&c.netns, 80, "c");
    w.view.endpoints.remove(&TaskId(2));
    w.apply().await;
    eventually("the same socket reaching the new task", || ask().as_deref() == Some("c 10.0.1.10"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn flushed_rules_come_back_and_those_of_others_stay() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, Some(service), net, "10.0.1.20/24").await;
    w.apply().await;
    serve_tcp(&b.netns, 80, "b");
    for netns in [&w.nodes[0].netns, &w.nodes[1].netns, &a.netns] {
        run(&format!("nsenter --net={} nft 'flush ruleset; add table ip other'", netns.display()));
    }
    assert!(ask_tcp(&a.netns, "10.0.1.200:80").is_err());
    w.apply().await;
    assert_eq!(ask_tcp(&a.netns, "10.0.1.200:80").unwrap(), "b 10.0.1.10");
    assert_eq!(ask_tcp(&w.hub(), "10.99.0.11:8080").unwrap(), format!("b {CLIENT}"));
    let tables = run(&format!("nsenter --net={} nft list tables", w.nodes[0].netns.display()));
    assert!(tables.contains("table ip other"), "{tables}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_sandbox_waits_for_its_network_and_fails_with_a_temporary_error() {
    let mut w = World::new(1);
    let mut spec = SandboxSpec::new(SandboxId::new("early").unwrap());
    let address = "10.0.1.10/24".parse().unwrap();
    spec.overlays.push(OverlayAttachment { network: NetworkId(1), address, names: Vec::new(), address6: None });
    let network = w.nodes[0].network.clone();
    let error = network.create_sandbox(spec.clone()).await.unwrap_err();
    assert!(matches!(error, NetworkError::UnknownNetwork { .. }) && error.is_temporary());
    let waiting = tokio::spawn(async move { network.create_sandbox(spec).await });
    w.network(1);
    w.apply().await;
    let made = waiting.await.unwrap().unwrap();
    assert_eq!(made.links.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_bridge_without_a_port_left_is_named() {
    let mut w = World::new(1);
    let net = w.network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let switch = format!("nsenter --net={}", w.nodes[0].config.switch_dir().join(net.to_string()).display());
    // With those of the task and of VXLAN, 1,023.
    let ports = (1..=1021).map(|n| format!("link add a{n} master br0 type veth peer name b{n}\n"));
    let path = w.nodes[0].config.state_dir.with_extension("links");
    std::fs::write(&path, ports.collect::<String>()).unwrap();
    run(&format!("{switch} ip -batch {}", path.display()));
    let mut spec = SandboxSpec::new(SandboxId::new("more").unwrap());
    let address = "10.0.1.11/24".parse().unwrap();
    spec.overlays.push(OverlayAttachment { network: net, address, names: Vec::new(), address6: None });
    let network = &w.nodes[0].network;
    let refused = network.create_sandbox(spec.clone()).await.unwrap_err();
    assert!(matches!(&refused, NetworkError::Full { network } if network == "net1"), "{refused}");
    run(&format!("{switch} ip link del a7"));
    network.create_sandbox(spec).await.unwrap();
    assert!(reaches(&a.netns, "10.0.1.11"));
}

/// A node whose only container on a network starts again is told of the end of its place, and of the next one, at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn a_network_that_goes_and_comes_back_while_a_sandbox_is_made_is_waited_for() {
    let mut w = World::new(1);
    let without = w.view.clone();
    let id = w.network(1);
    let with = w.view.clone();
    let network = w.nodes[0].network.clone();
    let end = CancellationToken::new();
    let telling = tokio::spawn({
        let (network, end) = (network.clone(), end.clone());
        async move {
            while !end.is_cancelled() {
                network.apply(Arc::new(without.clone())).await.unwrap();
                network.apply(Arc::new(with.clone())).await.unwrap();
            }
        }
    });
    for _ in 0..30 {
        let mut spec = SandboxSpec::new(SandboxId::new("again").unwrap());
        let address = "10.0.1.10/24".parse().unwrap();
        spec.overlays.push(OverlayAttachment { network: id, address, names: Vec::new(), address6: None });
        let made = network.create_sandbox(spec.clone()).await.unwrap();
        assert_eq!(made.links.len(), 2);
        network.delete_sandbox(&made.id).await.unwrap();
    }
    end.cancel();
    telling.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn a_sandbox_in_the_making_holds_up_no_view_and_has_the_newest_in_the_end() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.apply().await;
    let client = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let [stays, goes] = [(2, "10.0.1.20/24"), (3, "10.0.1.21/24")];
    for (number, address) in [stays, goes] {
        let task = w.task(number, 0, Some(service), net, address).await;
        serve_tcp(&task.netns, 80, if number == 2 { "stays" } else { "goes" });
    }
    w.apply().await;

    let (names, network) = (w.nodes[0].names.clone(), w.nodes[0].network.clone());
    names.hold(true);
    let making = tokio::spawn(async move {
        let mut spec = SandboxSpec::new(SandboxId::new("slow").unwrap());
        let address = "10.0.1.30/24".parse().unwrap();
        spec.overlays.push(OverlayAttachment { network: net, address, names: Vec::new(), address6: None });
        network.create_sandbox(spec).await.unwrap()
    });
    eventually("a sandbox in the making", || names.held() == 1);
    w.view.endpoints.remove(&TaskId(3));
    let told = tokio::time::timeout(Duration::from_secs(5), w.apply()).await;
    let is_gone =
        |netns: &Path| (0..8).all(|_| ask_tcp(netns, "10.0.1.200:80").is_ok_and(|text| text.starts_with("stays")));
    let seen = (is_gone(&client.netns), names.zones()[&ZoneKey::Overlay(net)].resolve("task3").is_none());
    // Before anything fails: whoever clears the node would wait for the sandbox.
    names.hold(false);
    assert!(told.is_ok(), "a view waits for a sandbox in the making");
    assert_eq!(seen, (true, true), "rules and names without the task that went");
    let made = making.await.unwrap();
    assert!(is_gone(&made.netns));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_port_of_a_program_of_the_node_is_not_taken_away() {
    let w = World::new(1);
    let program = within(&w.nodes[0].netns, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081)).unwrap());
    let _program = program.join().unwrap();
    let mut spec = SandboxSpec::new(SandboxId::new("one").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec.host_ports = vec![HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp }];
    let error = w.nodes[0].network.create_sandbox(spec).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to bind host port 0.0.0.0:8081/tcp: address already in use");
    assert_eq!(w.nodes[0].network.sandboxes().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn a_hundred_sandboxes_are_made_at_once_and_leave_nothing() {
    let mut w = World::new(1);
    let net = w.network(1);
    w.apply().await;
    let start = Instant::now();
    let making: Vec<_> = (0..100u8)
        .map(|number| {
            let network = w.nodes[0].network.clone();
            let mut spec = SandboxSpec::new(SandboxId::new(format!("s{number}")).unwrap());
            let address = format!("10.0.1.{}/24", 10 + number).parse().unwrap();
            spec.overlays.push(OverlayAttachment { network: net, address, names: Vec::new(), address6: None });
            tokio::spawn(async move { network.create_sandbox(spec).await.unwrap() })
        })
        .collect();
    // Views come meanwhile.
    for _ in 0..5 {
        w.apply().await;
    }
    let mut made = Vec::new();
    for one in making {
        made.push(one.await.unwrap());
    }
    let created = start.elapsed();
    assert!(reaches(&made[0].netns, "10.0.1.109"));
    let start = Instant::now();
    w.apply().await;
    let applied = start.elapsed();
    let start = Instant::now();
    let deleting: Vec<_> = made
        .into_iter()
        .map(|one| {
            let network = w.nodes[0].network.clone();
            tokio::spawn(async move { network.delete_sandbox(&one.id).await.unwrap() })
        })
        .collect();
    for one in deleting {
        one.await.unwrap();
    }
    println!("100 sandboxes: made in {created:?}, applied in {applied:?}, deleted in {:?}", start.elapsed());
    let links =
        run(&format!("nsenter --net={} ip -o link | grep -c -e skep-t -e skep-p | cat", w.nodes[0].netns.display()));
    assert_eq!(links.trim(), "0");
    assert_eq!(std::fs::read_dir(w.nodes[0].config.switch_dir()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(w.nodes[0].config.sandbox_dir()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_sandbox_without_a_name_server_is_taken_back() {
    let mut w = World::new(1);
    let net = w.network(1);
    w.apply().await;
    let mut spec = SandboxSpec::new(SandboxId::new("one").unwrap());
    let address = "10.0.1.10/24".parse().unwrap();
    spec.overlays.push(OverlayAttachment { network: net, address, names: vec!["one".into()], address6: None });
    let node = &w.nodes[0];
    node.names.refuse(true);
    let error = node.network.create_sandbox(spec.clone()).await.unwrap_err();
    assert!(matches!(error, NetworkError::Names { .. }) && error.is_temporary());
    assert_eq!(std::fs::read_dir(node.config.switch_dir()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(node.config.sandbox_dir()).unwrap().count(), 0);
    node.names.refuse(false);
    node.network.create_sandbox(spec).await.unwrap();
    let zone = skep_network::dns::zone::ZoneKey::Overlay(net);
    assert_eq!(
        node.names.zones()[&zone].resolve("one").unwrap().v4,
        ["10.0.1.10".parse::<std::net::Ipv4Addr>().unwrap()]
    );
}
