//! The routing mesh: published ports on every node, with the client's address kept.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::BTreeSet;

use skep_network::{BridgeAttachment, HostPort, SandboxId, SandboxSpec};
use skep_proto::model::TaskId;
use skep_proto::model::service::Protocol;

use crate::world::wire::Capture;
use crate::world::{self, CLIENT, World, ask_tcp, ask_udp, run, serve_tcp, serve_udp};

/// Three nodes, a service on port 8080 with one task on the second.
async fn world() -> World {
    let mut w = World::new(3);
    let net = w.network(1);
    let ports = [(Protocol::Tcp, 8080, 80), (Protocol::Udp, 8080, 80)];
    let service = w.service(1, net, "10.0.1.200/24", &ports);
    w.apply().await;
    let task = w.task(1, 1, Some(service), net, "10.0.1.10/24").await;
    serve_tcp(&task.netns, 80, "b");
    serve_udp(&task.netns, 80, "b");
    w.apply().await;
    w
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn every_node_leads_a_client_to_the_task_which_sees_the_clients_address() {
    let w = world().await;
    for node in &w.nodes {
        let to = format!("{}:8080", node.address);
        for _ in 0..5 {
            assert_eq!(ask_tcp(&w.hub(), &to).unwrap(), format!("b {CLIENT}"), "by {to}");
            assert_eq!(ask_udp(&w.hub(), &to).unwrap(), format!("b {CLIENT}"), "by {to}");
        }
    }
    // The same client port by all entry nodes at once.
    let connections: Vec<_> = w.nodes.iter().map(|node| world::hold_tcp(&w.hub(), 40000, node.address, 8080)).collect();
    for connection in connections {
        assert_eq!(world::read(connection.unwrap()).unwrap(), format!("b {CLIENT}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_mesh_link_of_an_earlier_release_goes_on_leading_clients() {
    let mut w = world().await;
    for node in 0..w.nodes.len() {
        // It was in no group of links.
        run(&format!("nsenter --net={} ip link set skep-mesh group default", w.nodes[node].netns.display()));
        w.restart(node);
    }
    w.announce();
    w.apply().await;
    for node in &w.nodes {
        let to = format!("{}:8080", node.address);
        assert_eq!(ask_tcp(&w.hub(), &to).unwrap(), format!("b {CLIENT}"), "by {to}");
        assert_eq!(ask_udp(&w.hub(), &to).unwrap(), format!("b {CLIENT}"), "by {to}");
    }
    // The same client port by all entry nodes at once: their zones.
    let connections: Vec<_> = w.nodes.iter().map(|node| world::hold_tcp(&w.hub(), 40000, node.address, 8080)).collect();
    for connection in connections {
        assert_eq!(world::read(connection.unwrap()).unwrap(), format!("b {CLIENT}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn segments_of_a_client_fit_the_way_between_nodes() {
    let w = world().await;
    let task = w.nodes[1].config.sandbox_dir().join(format!("{}.net", TaskId(1)));
    let mut seen = Vec::new();
    for node in [&w.nodes[1], &w.nodes[0]] {
        let capture = Capture::start(&task);
        ask_tcp(&w.hub(), &format!("{}:8080", node.address)).unwrap();
        // A SYN to port 80 without ACK, after Ethernet's and IP's header; Linux's first option is the size (RFC 9293, 3.7.1).
        let is_syn = |f: &&Vec<u8>| f.len() >= 58 && f[23] == 6 && f[36..38] == [0, 80] && f[47] & 0x12 == 2;
        let frames = capture.stop().0;
        seen.push(frames.iter().find(is_syn).map(|f| (f[54], u16::from_be_bytes([f[56], f[57]]))));
    }
    assert_eq!(seen, [Some((2, 1460)), Some((2, 1390 - 40))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn nodes_and_their_containers_are_clients_too() {
    let mut w = world().await;
    let net = skep_proto::model::NetworkId(1);
    let other = w.task(2, 0, None, net, "10.0.1.20/24").await;
    w.apply().await;
    for node in &w.nodes {
        for to in ["127.0.0.1".to_owned(), node.address.to_string(), w.nodes[0].address.to_string()] {
            let to = format!("{to}:8080");
            for ask in [ask_tcp, ask_udp] {
                let answer = ask(&node.netns, &to).unwrap_or_else(|e| panic!("node {} by {to}: {e}", node.id));
                assert!(answer.starts_with("b "), "{answer}");
            }
        }
    }
    for node in &w.nodes {
        let answer = ask_tcp(&other.netns, &format!("{}:8080", node.address)).unwrap();
        assert!(answer.starts_with("b "), "{answer}");
    }
    // The task itself, by its own node's port.
    let own = w.nodes[1].config.sandbox_dir().join(format!("{}.net", TaskId(1)));
    for node in &w.nodes {
        assert!(ask_tcp(&own, &format!("{}:8080", node.address)).unwrap().starts_with("b "), "by {}", node.address);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn connections_spread_over_the_tasks_and_leave_those_that_drain() {
    let mut w = world().await;
    let (net, service) = (skep_proto::model::NetworkId(1), skep_proto::model::ServiceId(1));
    for (number, node, name) in [(2, 0, "a"), (3, 2, "c")] {
        let task = w.task(number, node, Some(service), net, &format!("10.0.1.{}/24", 10 + number)).await;
        serve_tcp(&task.netns, 80, name);
    }
    w.apply().await;
    let ask = |w: &World| -> BTreeSet<String> {
        (0..40).map(|_| ask_tcp(&w.hub(), &format!("{}:8080", w.nodes[0].address)).unwrap()).collect()
    };
    assert_eq!(ask(&w), ["a", "b", "c"].map(|name| format!("{name} {CLIENT}")).into());
    w.view.endpoints.get_mut(&TaskId(2)).unwrap().serving = false;
    w.apply().await;
    assert_eq!(ask(&w), ["b", "c"].map(|name| format!("{name} {CLIENT}")).into());
    for task in [1, 2, 3] {
        w.view.endpoints.remove(&TaskId(task));
    }
    w.apply().await;
    let refused = ask_tcp(&w.hub(), &format!("{}:8080", w.nodes[0].address)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_host_port_leads_into_its_sandbox_with_the_clients_address_and_cannot_be_given_twice() {
    let w = World::new(1);
    let mut spec = SandboxSpec::new(SandboxId::new("one").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    let port = HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp };
    spec.host_ports = vec![port, HostPort { published: None, ..port }];
    let network = &w.nodes[0].network;
    let one = network.create_sandbox(spec.clone()).await.unwrap();
    let chosen = one.host_ports[1].published.unwrap();
    serve_tcp(&one.netns, 80, "one");
    for port in [8081, chosen] {
        let answer = ask_tcp(&w.hub(), &format!("{}:{port}", w.nodes[0].address)).unwrap();
        assert_eq!(answer, format!("one {CLIENT}"));
    }
    assert!(ask_tcp(&w.nodes[0].netns, "127.0.0.1:8081").unwrap().starts_with("one "));
    assert!(ask_tcp(&one.netns, &format!("{}:8081", w.nodes[0].address)).unwrap().starts_with("one "));
    spec.id = SandboxId::new("two").unwrap();
    let error = network.create_sandbox(spec.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "Bind for 0.0.0.0:8081 failed: port is already allocated");
    network.delete_sandbox(&one.id).await.unwrap();
    network.create_sandbox(spec).await.unwrap();
    assert_eq!(
        ask_tcp(&w.hub(), &format!("{}:8081", w.nodes[0].address)).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused,
        "the new sandbox serves nothing yet"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_udp_client_that_was_too_early_reaches_the_service_once_it_is_there() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Udp, 8080, 80)]);
    w.apply().await;
    let socket = world::within(&w.hub(), || std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).join().unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    socket.connect("10.99.0.11:8080").unwrap();
    let ask = || {
        let mut buffer = [0; 64];
        socket.send(b"?").ok()?;
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    assert_eq!((ask(), ask(), ask()), (None, None, None));
    let task = w.task(1, 1, Some(service), net, "10.0.1.10/24").await;
    serve_udp(&task.netns, 80, "b");
    w.apply().await;
    world::eventually("an answer", || ask() == Some(format!("b {CLIENT}")));
}
