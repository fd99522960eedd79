//! Overlays, bridges and virtual addresses between nodes that are namespaces of this kernel.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::BTreeMap;

use skep_network::{BridgeAttachment, SandboxId, SandboxSpec};

use crate::world::{self, World, ask_tcp, ask_udp, bridge, pings, reaches, run, serve_tcp, serve_udp};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn tasks_of_one_network_reach_each_other_across_nodes_and_by_virtual_address() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, Some(service), net, "10.0.1.20/24").await;
    let c = w.task(3, 1, Some(service), net, "10.0.1.21/24").await;
    let d = w.task(4, 0, Some(service), net, "10.0.1.22/24").await;
    w.apply().await;

    for to in ["10.0.1.20", "10.0.1.21", "10.0.1.22"] {
        assert!(reaches(&a.netns, to), "{to}");
    }
    for (sandbox, name) in [(&b, "b"), (&c, "c"), (&d, "d")] {
        serve_tcp(&sandbox.netns, 80, name);
        serve_udp(&sandbox.netns, 80, name);
    }
    assert_eq!(ask_tcp(&a.netns, "10.0.1.20:80").unwrap(), "b 10.0.1.10");
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        *seen.entry(ask_tcp(&a.netns, "10.0.1.200:80").unwrap()).or_insert(0) += 1;
    }
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["b 10.0.1.10", "c 10.0.1.10", "d 10.0.1.10"]);
    assert!(ask_udp(&a.netns, "10.0.1.200:80").unwrap().ends_with(" 10.0.1.10"));

    // A task that drains gets nothing new by the service's address, and is the only one left for itself.
    for task in [3, 4] {
        w.view.endpoints.get_mut(&skep_proto::model::TaskId(task)).unwrap().serving = false;
    }
    w.apply().await;
    for _ in 0..10 {
        assert_eq!(ask_tcp(&b.netns, "10.0.1.200:80").unwrap(), "b 10.0.1.20");
    }
    assert!(reaches(&a.netns, "10.0.1.21"));
    w.view.endpoints.get_mut(&skep_proto::model::TaskId(2)).unwrap().serving = false;
    w.apply().await;
    let refused = ask_tcp(&a.netns, "10.0.1.200:80").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_sandbox_on_the_default_bridge_has_a_way_out_before_the_node_knows_its_cluster() {
    let w = World::new(1);
    let mut spec = SandboxSpec::new(SandboxId::new("one").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    let one = w.nodes[0].network.create_sandbox(spec.clone()).await.unwrap();
    assert_eq!(w.nodes[0].network.create_sandbox(spec.clone()).await.unwrap(), one);
    spec.id = SandboxId::new("two").unwrap();
    let two = w.nodes[0].network.create_sandbox(spec).await.unwrap();
    assert_eq!(one.links[0].address.to_string(), "172.17.0.2/16");
    serve_tcp(&w.hub(), 80, "outside");
    assert_eq!(ask_tcp(&one.netns, &format!("{}:80", world::CLIENT)).unwrap(), "outside 10.99.0.11");
    assert!(reaches(&one.netns, &two.links[0].address.addr().to_string()));

    // Where the fake name server says that it listens.
    let bind = || {
        let udp = std::net::UdpSocket::bind("127.0.0.11:5353").unwrap();
        (udp, std::net::TcpListener::bind("127.0.0.11:5354").unwrap())
    };
    let (udp, tcp) = world::within(&one.netns, bind).join().unwrap();
    let answering = std::thread::spawn(move || {
        let (_, from) = udp.recv_from(&mut [0; 8]).unwrap();
        udp.send_to(b"udp", from).unwrap();
        std::io::Write::write_all(&mut tcp.accept().unwrap().0, b"tcp").unwrap();
    });
    assert_eq!(ask_udp(&one.netns, "127.0.0.11:53").unwrap(), "udp");
    assert_eq!(ask_tcp(&one.netns, "127.0.0.11:53").unwrap(), "tcp");
    answering.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn overlay_tasks_have_a_way_out_and_networks_are_apart() {
    let mut w = World::new(1);
    let (first, second) = (w.network(1), w.network(2));
    w.apply().await;
    let a = w.task(1, 0, None, first, "10.0.1.10/24").await;
    let b = w.task(2, 0, None, second, "10.0.2.10/24").await;
    w.apply().await;
    serve_tcp(&w.hub(), 80, "outside");
    serve_tcp(&b.netns, 80, "b");
    assert_eq!(ask_tcp(&a.netns, &format!("{}:80", world::CLIENT)).unwrap(), "outside 10.99.0.11");
    assert!(!pings(&a.netns, "10.0.2.10"));
    let task_link = b.mesh.unwrap();
    assert!(!pings(&a.netns, &task_link.to_string()), "task links are no way between networks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_restart_finds_what_is_there_and_deletion_leaves_nothing() {
    let mut w = World::new(2);
    let net = w.network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, None, net, "10.0.1.20/24").await;
    w.apply().await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    w.restart(0);
    assert!(reaches(&a.netns, "10.0.1.20"), "traffic goes on before the managers are heard");
    assert_eq!(w.nodes[0].network.sandboxes().await, std::slice::from_ref(&a));
    w.apply().await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    let c = w.task(3, 0, None, net, "10.0.1.11/24").await;
    w.apply().await;
    assert!(reaches(&c.netns, "10.0.1.20") && reaches(&c.netns, "10.0.1.10") && reaches(&b.netns, "10.0.1.11"));

    for node in &w.nodes {
        node.network.clear().await.unwrap_or_else(|error| panic!("{}", world::chain(&error)));
        let inside = format!("nsenter --net={}", node.netns.display());
        let links = run(&format!("{inside} ip -o link | grep -v -e ': lo:' -e ': uplink@' | cat"));
        assert_eq!(links, "");
        assert_eq!(run(&format!("{inside} nft list tables")), "");
        assert_eq!(run(&format!("{inside} ip rule list | grep 51000 | cat")), "");
        let files = run(&format!("find {} -type f", node.config.state_dir.display()));
        assert_eq!(files, "");
        assert_eq!(run(&format!("grep {} /proc/self/mountinfo | cat", node.config.state_dir.display())), "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_service_with_a_thousand_tasks_is_one_swap() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(skep_proto::model::service::Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 0, Some(service), net, "10.0.1.20/24").await;
    serve_tcp(&b.netns, 80, "b");
    let here = w.view.endpoints[&skep_proto::model::TaskId(2)].clone();
    let far = skep_proto::model::NodeId(99);
    let address = "10.99.0.99".parse().unwrap();
    w.view.peers.insert(
        far,
        skep_proto::model::view::Peer {
            node: far,
            index: 99,
            data_path: vec![address],
            wireguard: None,
            ipv4_only: false,
        },
    );
    for number in 0..1000u16 {
        let mut endpoint = here.clone();
        let [high, low] = number.to_be_bytes();
        endpoint.task = skep_proto::model::TaskId(1000 + u128::from(number));
        endpoint.node = far;
        endpoint.addresses[0].address = format!("10.1.{high}.{low}/16").parse().unwrap();
        endpoint.mesh = Some(format!("100.65.{high}.{low}").parse().unwrap());
        w.view.endpoints.insert(endpoint.task, endpoint);
    }
    let start = std::time::Instant::now();
    w.apply().await;
    println!("1000 tasks, 2 sandboxes: {:?}", start.elapsed());
    let count = |netns: &std::path::Path, table: &str, what: &str| {
        let command =
            format!("nsenter --net={} nft list table ip {table} | grep -o ' : {what}[0-9.]*' | wc -l", netns.display());
        run(&command).trim().parse::<usize>().unwrap()
    };
    assert_eq!(count(&a.netns, "skep", "10.1."), 1000);
    assert_eq!(count(&w.nodes[0].netns, "skep-skep", "100.65."), 1000);
    for number in 0..1000u16 {
        w.view.endpoints.remove(&skep_proto::model::TaskId(1000 + u128::from(number)));
    }
    w.apply().await;
    assert_eq!(ask_tcp(&a.netns, "10.0.1.200:80").unwrap(), "b 10.0.1.10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn local_bridges_are_apart_have_names_and_outlive_a_restart() {
    let mut w = World::new(1);
    let network = w.nodes[0].network.clone();
    let mine = network.create_bridge(bridge("mine", None, false)).await.unwrap();
    assert_eq!(mine.subnet.to_string(), "172.18.0.0/16");
    network.create_bridge(bridge("closed", Some("192.168.7.0/24"), true)).await.unwrap();
    let taken = network.create_bridge(bridge("other", Some("192.168.7.128/25"), true)).await.unwrap_err();
    assert!(taken.to_string().starts_with("address 192.168.7.0 is not available"), "{taken}");
    assert!(network.create_bridge(bridge("mine", None, false)).await.is_err());

    let mut made = Vec::new();
    for (id, bridge) in [("a", "mine"), ("b", "mine"), ("c", "closed"), ("d", "closed"), ("e", "bridge")] {
        let mut spec = SandboxSpec::new(SandboxId::new(id).unwrap());
        spec.bridges.push(BridgeAttachment {
            bridge: bridge.into(),
            address: None,
            names: vec![id.into()],
            address6: None,
        });
        made.push(network.create_sandbox(spec).await.unwrap());
    }
    let address = |at: usize| made[at].links[0].address.addr().to_string();
    assert!(reaches(&made[0].netns, &address(1)) && reaches(&made[2].netns, &address(3)));
    assert!(reaches(&made[0].netns, world::CLIENT) && reaches(&made[4].netns, world::CLIENT));
    // Also for a container that helps itself to a route.
    run(&format!("nsenter --net={} ip route add default via 192.168.7.1", made[2].netns.display()));
    assert!(!pings(&made[2].netns, world::CLIENT), "an internal bridge has no way out");
    for (from, to) in [(0, 4), (4, 0), (0, 2), (2, 0)] {
        assert!(!pings(&made[from].netns, &address(to)), "{from} to {to}");
    }
    let zones = w.nodes[0].names.zones();
    let zone = &zones[&skep_network::dns::zone::ZoneKey::Bridge("mine".into())];
    assert_eq!(zone.resolve("b").unwrap().v4, [made[1].links[0].address.addr()]);
    assert_eq!(zone.resolve("e"), None);

    w.restart(0);
    let network = &w.nodes[0].network;
    assert_eq!(network.bridges().len(), 3);
    assert!(reaches(&made[0].netns, &address(1)) && reaches(&made[0].netns, world::CLIENT));
    let refused = network.remove_bridge("mine").await.unwrap_err();
    assert_eq!(refused.to_string(), "network mine: containers are on it; remove them first");
    for one in &made[..2] {
        network.delete_sandbox(&one.id).await.unwrap();
    }
    network.remove_bridge("mine").await.unwrap();
    assert_eq!(network.bridges().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn an_internal_overlay_has_no_way_out() {
    let mut w = World::new(2);
    let net = w.network(1);
    w.view.networks.get_mut(&net).unwrap().internal = true;
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    w.task(2, 1, None, net, "10.0.1.20/24").await;
    w.apply().await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    assert_eq!((a.links.len(), a.mesh), (1, None));
    assert!(ask_tcp(&a.netns, &format!("{}:80", world::CLIENT)).is_err());
}
