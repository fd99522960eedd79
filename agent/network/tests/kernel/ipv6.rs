//! IPv6 beside IPv4: overlays, virtual addresses, the mesh, published ports.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::BTreeSet;

use skep_network::{BridgeAttachment, HostPort, SandboxId, SandboxSpec};
use skep_proto::model::TaskId;
use skep_proto::model::service::Protocol;

use crate::world::{
    self, CLIENT, CLIENT6, World, ask_tcp, ask_udp, eventually, hold_tcp, node6, pings, reaches, run, serve_tcp,
    serve_udp,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn tasks_meet_over_ipv6_and_by_a_virtual_address_that_keeps_the_client() {
    let mut w = World::new(2);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    let c = w.task_at(3, 0, Some(service), net, &["10.0.1.21/24", "fd00:1::15/64"]).await;
    w.apply().await;
    for to in ["10.0.1.20", "fd00:1::14", "fd00:1::15"] {
        assert!(reaches(&a.netns, to), "{to}");
    }
    assert!(reaches(&b.netns, "fd00:1::a") && reaches(&b.netns, "fd00:1::15"));
    for (sandbox, name) in [(&b, "b"), (&c, "c")] {
        serve_tcp(&sandbox.netns, 80, name);
        serve_udp(&sandbox.netns, 80, name);
    }
    let seen: BTreeSet<_> = (0..40).map(|_| ask_tcp(&a.netns, "[fd00:1::c8]:80").unwrap()).collect();
    assert_eq!(seen, ["b fd00:1::a", "c fd00:1::a"].map(String::from).into());
    assert!(ask_udp(&a.netns, "[fd00:1::c8]:80").unwrap().ends_with(" fd00:1::a"));
    assert!(ask_tcp(&a.netns, "10.0.1.200:80").unwrap().ends_with(" 10.0.1.10"));
    for task in [2, 3] {
        w.view.endpoints.get_mut(&TaskId(task)).unwrap().serving = false;
    }
    w.apply().await;
    let refused = ask_tcp(&a.netns, "[fd00:1::c8]:80").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // Nobody answers for an address that nobody has.
    assert!(!pings(&a.netns, "fd00:1::99"));
}

/// Two nodes, a service on port 8080 whose network has IPv4 alone, with one task on the second.
async fn mesh() -> World {
    let mut w = World::new(2);
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
async fn every_node_leads_a_client_of_ipv6_to_the_task_which_sees_its_address() {
    let w = mesh().await;
    for number in [1, 2] {
        let to = format!("[{}]:8080", node6(number));
        for _ in 0..3 {
            assert_eq!(ask_tcp(&w.hub(), &to).unwrap(), format!("b {CLIENT6}"), "by {to}");
            assert_eq!(ask_udp(&w.hub(), &to).unwrap(), format!("b {CLIENT6}"), "by {to}");
        }
    }
    // The same client port by both entry nodes at once.
    let both: Vec<_> = [1, 2].map(|number| hold_tcp(&w.hub(), 40000, node6(number), 8080)).into();
    for connection in both {
        assert_eq!(world::read(connection.unwrap()).unwrap(), format!("b {CLIENT6}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn nodes_and_containers_reach_ports_of_the_cluster_over_ipv6_and_by_loopback() {
    let mut w = mesh().await;
    let net = skep_proto::model::NetworkId(1);
    let other = w.task(2, 0, None, net, "10.0.1.20/24").await;
    w.apply().await;
    for (number, node) in (1..).zip(&w.nodes) {
        for to in [node6(number), node6(1), std::net::Ipv6Addr::LOCALHOST] {
            let to = format!("[{to}]:8080");
            for ask in [ask_tcp, ask_udp] {
                let answer = ask(&node.netns, &to).unwrap_or_else(|e| panic!("node {} by {to}: {e}", node.id));
                assert!(answer.starts_with("b "), "{answer}");
            }
        }
    }
    let own = w.nodes[1].config.sandbox_dir().join(format!("{}.net", TaskId(1)));
    for number in [1, 2] {
        let to = format!("[{}]:8080", node6(number));
        assert!(ask_tcp(&other.netns, &to).unwrap().starts_with("b "), "by {to}");
        assert!(ask_tcp(&own, &to).unwrap().starts_with("b "), "the task itself, by {to}");
    }
    // The way out.
    assert!(reaches(&other.netns, CLIENT6) && reaches(&other.netns, CLIENT));
    // Tasks of different networks do not meet by their task links.
    let twin = run(&format!("nsenter --net={} ip -6 addr show scope global", own.display()));
    let twin = twin.split_whitespace().find_map(|word| word.strip_suffix("/128")).unwrap().to_owned();
    assert!(!pings(&other.netns, &twin), "{twin}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn ports_of_one_node_are_open_on_its_ipv6_addresses_or_on_one_of_them() {
    let w = World::new(1);
    let inside = format!("nsenter --net={}", w.nodes[0].netns.display());
    run(&format!("{inside} ip addr add 2001:db8:99::77/64 dev uplink nodad"));
    let network = &w.nodes[0].network;
    let made = network
        .create_bridge(skep_network::BridgeSpec {
            ipv6: Some(skep_network::BridgeSpec6::default()),
            ..world::bridge("six", None, false)
        })
        .await
        .unwrap();
    let mut spec = SandboxSpec::new(SandboxId::new("one").unwrap());
    spec.bridges.push(BridgeAttachment { bridge: "six".into(), ..BridgeAttachment::default_bridge() });
    let port = HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp };
    let bound = HostPort { bind: Some("2001:db8:99::77".parse().unwrap()), published: Some(8082), ..port };
    spec.host_ports = vec![port, bound];
    let one = network.create_sandbox(spec.clone()).await.unwrap();
    let address = one.links[0].address6.unwrap();
    assert!(made.ipv6.unwrap().subnet.contains(&address.addr()));
    serve_tcp(&one.netns, 80, "one");
    let node = &w.nodes[0].netns;
    let announced = network.announced().unwrap();
    assert_eq!(announced.len(), 2);
    assert!(announced[0] == w.nodes[0].address && announced[1].is_ipv6(), "{announced:?}");
    for to in [node6(1).to_string(), "2001:db8:99::77".into()] {
        assert_eq!(ask_tcp(&w.hub(), &format!("[{to}]:8081")).unwrap(), format!("one {CLIENT6}"));
    }
    assert_eq!(ask_tcp(&w.hub(), &format!("{}:8081", w.nodes[0].address)).unwrap(), format!("one {CLIENT}"));
    for to in ["[::1]:8081", "127.0.0.1:8081"] {
        assert!(ask_tcp(node, to).unwrap().starts_with("one "), "{to}");
    }
    assert_eq!(ask_tcp(&w.hub(), "[2001:db8:99::77]:8082").unwrap(), format!("one {CLIENT6}"));
    assert!(ask_tcp(&w.hub(), &format!("[{}]:8082", node6(1))).is_err());
    // Its own port, another container's, the way out and the gateway.
    assert!(ask_tcp(&one.netns, &format!("[{}]:8081", node6(1))).unwrap().starts_with("one "));
    spec.id = SandboxId::new("two").unwrap();
    spec.host_ports.clear();
    let two = network.create_sandbox(spec.clone()).await.unwrap();
    assert!(reaches(&two.netns, &address.addr().to_string()) && reaches(&two.netns, CLIENT6));
    assert!(ask_tcp(&two.netns, &format!("[{}]:8081", node6(1))).unwrap().starts_with("one "));
    assert!(reaches(&two.netns, &made.ipv6.unwrap().gateway.to_string()));
    // Another bridge with IPv6 is apart.
    network
        .create_bridge(skep_network::BridgeSpec {
            ipv6: Some(skep_network::BridgeSpec6::default()),
            ..world::bridge("other", None, false)
        })
        .await
        .unwrap();
    spec.id = SandboxId::new("three").unwrap();
    spec.bridges[0].bridge = "other".into();
    let three = network.create_sandbox(spec).await.unwrap();
    // A bridge that was made a moment ago may not have heard of its first port yet: one packet may be lost.
    eventually("the way out by a new bridge", || pings(&three.netns, CLIENT6));
    assert!(!pings(&three.netns, &address.addr().to_string()));
    assert!(!pings(&w.hub(), &address.addr().to_string()));
}
