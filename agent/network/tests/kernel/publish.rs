//! Where published ports are open, who the task sees as its client, and what becomes of connections when ports change.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use skep_network::{BridgeAttachment, HostPort, SandboxId, SandboxSpec};
use skep_proto::model::service::{PortConfig, Protocol, PublishMode};
use skep_proto::model::{ServiceId, TaskId};

use crate::world::{
    self, CLIENT, CLIENT6, World, ask_tcp, ask_udp, eventually, node6, pings, run, serve_tcp, serve_udp, within,
};

fn plain(name: &str, ports: Vec<HostPort>) -> SandboxSpec {
    let mut spec = SandboxSpec::new(SandboxId::new(name).unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec.host_ports = ports;
    spec
}

fn port(bind: Option<&str>, published: u16, protocol: Protocol) -> HostPort {
    let bind = bind.map(|address| address.parse::<IpAddr>().unwrap());
    HostPort { bind, published: Some(published), target: 80, protocol }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_port_on_one_address_is_open_there_and_nowhere_else() {
    let w = World::new(2);
    let ns = w.nodes[0].netns.file_name().unwrap().to_string_lossy().into_owned();
    run(&format!("ip -n {ns} addr add 10.99.0.101/24 dev uplink"));
    let ports = |address: &str, number: u16| {
        vec![port(Some(address), number, Protocol::Tcp), port(Some(address), number, Protocol::Udp)]
    };
    let network = &w.nodes[0].network;
    let local = network.create_sandbox(plain("local", ports("127.0.0.1", 8080))).await.unwrap();
    let one = network.create_sandbox(plain("one", ports("10.99.0.101", 8080))).await.unwrap();
    let client = network.create_sandbox(plain("client", Vec::new())).await.unwrap();
    for (sandbox, name) in [(&local, "local"), (&one, "one")] {
        serve_tcp(&sandbox.netns, 80, name);
        serve_udp(&sandbox.netns, 80, name);
    }
    // Both at the same port: they do not meet.
    type Ask = fn(&Path, &str) -> std::io::Result<String>;
    for ask in [ask_tcp as Ask, ask_udp as Ask] {
        let who = |from: &Path, to: &str| ask(from, to).ok().map(|text| text.split(' ').next().unwrap().to_owned());
        let (hub, node, inside) = (w.hub(), &w.nodes[0].netns, &client.netns);
        assert_eq!(who(node, "127.0.0.1:8080").as_deref(), Some("local"));
        assert_eq!(who(node, "10.99.0.101:8080").as_deref(), Some("one"));
        assert_eq!(who(inside, "10.99.0.101:8080").as_deref(), Some("one"));
        assert_eq!(ask(&hub, "10.99.0.101:8080").unwrap(), format!("one {CLIENT}"));
        for (from, to) in [(node, "10.99.0.11"), (inside, "10.99.0.11"), (inside, "127.0.0.1"), (inside, "172.17.0.1")]
        {
            assert_eq!(who(from, &format!("{to}:8080")), None, "{to}");
        }
        assert_eq!(who(&hub, "10.99.0.11:8080"), None);
    }
    // A neighbour on the wire that routes 127.0.0.1 to the node.
    let hub = format!("nsenter --net={}", w.hub().display());
    run(&format!(
        "{hub} sysctl -qw net.ipv4.conf.all.route_localnet=1 && {hub} ip route add 127.0.0.1 via 10.99.0.11 dev wire table 7 && \
         {hub} ip rule add pref 1 to 127.0.0.1 lookup 7 && {hub} ip rule del pref 0 && {hub} ip rule add pref 2 lookup local"
    ));
    assert!(ask_tcp(&w.hub(), "127.0.0.1:8080").is_err());
    let taken = network.create_sandbox(plain("all", vec![port(None, 8080, Protocol::Tcp)])).await.unwrap_err();
    assert_eq!(taken.to_string(), "Bind for 0.0.0.0:8080 failed: port is already allocated");
    // TCP at one address, and UDP with the same number at another or at all.
    let (tcp, udp) = (port(Some("127.0.0.1"), 8090, Protocol::Tcp), port(None, 8090, Protocol::Udp));
    let mixed = network.create_sandbox(plain("mixed", vec![tcp, udp])).await.unwrap();
    serve_tcp(&mixed.netns, 80, "mixed");
    serve_udp(&mixed.netns, 80, "mixed");
    assert!(ask_tcp(&w.nodes[0].netns, "127.0.0.1:8090").is_ok() && ask_tcp(&w.hub(), "10.99.0.11:8090").is_err());
    assert!(ask_udp(&w.hub(), "10.99.0.11:8090").is_ok() && ask_udp(&w.nodes[0].netns, "127.0.0.1:8090").is_ok());
    // One that the node chooses, at one address.
    let any = HostPort { published: None, ..port(Some("127.0.0.1"), 1, Protocol::Tcp) };
    let chosen = network.create_sandbox(plain("any", vec![any])).await.unwrap();
    let number = chosen.host_ports[0].published.unwrap();
    serve_tcp(&chosen.netns, 80, "any");
    assert!(ask_tcp(&w.nodes[0].netns, &format!("127.0.0.1:{number}")).unwrap().starts_with("any "));
    assert!(ask_tcp(&w.hub(), &format!("10.99.0.11:{number}")).is_err());
    // Of a range the first that nobody has: neither a container nor a program.
    let program = within(&w.nodes[0].netns, || TcpListener::bind("0.0.0.0:8091").unwrap()).join().unwrap();
    let of_range = |name: &str| {
        let mut spec = plain(name, vec![port(None, 8090, Protocol::Tcp)]);
        spec.ranges = [(0, 8093)].into();
        spec
    };
    for (name, number) in [("first", 8092), ("second", 8093)] {
        let made = network.create_sandbox(of_range(name)).await.unwrap();
        assert_eq!(made.host_ports[0].published, Some(number), "{name}");
        assert_eq!(network.create_sandbox(of_range(name)).await.unwrap(), made, "asked for again");
    }
    let none = network.create_sandbox(of_range("third")).await.unwrap_err();
    assert_eq!(none.to_string(), "Bind for 0.0.0.0:8090-8093 failed: all ports are allocated");
    drop(program);
    let foreign = network.create_sandbox(plain("foreign", ports("192.0.2.1", 8080))).await.unwrap_err();
    assert_eq!(foreign.to_string(), "failed to bind host port 192.0.2.1:8080/tcp: cannot assign requested address");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn ports_of_a_container_without_ipv6_are_open_on_the_nodes_ipv6_addresses() {
    let mut w = World::new(2);
    let node = w.nodes[0].netns.clone();
    let (wire, other) = (node6(1), node6(2));
    let network = &w.nodes[0].network;
    network.leave().await.unwrap();
    network.create_bridge(world::bridge("mine", Some("172.30.0.0/24"), false)).await.unwrap();
    let all = vec![port(None, 8080, Protocol::Tcp), port(None, 8080, Protocol::Udp)];
    let some = vec![port(Some(&wire.to_string()), 8081, Protocol::Tcp), port(Some("0.0.0.0"), 8082, Protocol::Tcp)];
    let one = network.create_sandbox(plain("one", all)).await.unwrap();
    let mut spec = plain("two", some);
    spec.bridges[0].bridge = "mine".into();
    let two = network.create_sandbox(spec).await.unwrap();
    let v4 = network.create_sandbox(plain("three", vec![port(Some("0.0.0.0"), 8083, Protocol::Tcp)])).await.unwrap();
    assert!(one.links[0].has_twin() && two.links[0].has_twin() && v4.links[0].address6.is_none());
    for (sandbox, name) in [(&one, "one"), (&two, "two"), (&v4, "three")] {
        serve_tcp(&sandbox.netns, 80, name);
        serve_udp(&sandbox.netns, 80, name);
    }
    let ask = |w: &World| {
        for ask in [ask_tcp, ask_udp] {
            assert_eq!(ask(&w.hub(), &format!("[{wire}]:8080")).unwrap(), format!("one {CLIENT6}"));
            assert_eq!(ask(&w.hub(), "10.99.0.11:8080").unwrap(), format!("one {CLIENT}"));
            for to in [format!("[{wire}]:8080"), "[::1]:8080".into()] {
                assert!(ask(&node, &to).unwrap().starts_with("one "), "{to}");
            }
        }
        assert_eq!(ask_tcp(&w.hub(), &format!("[{wire}]:8081")).unwrap(), format!("two {CLIENT6}"));
        for port in [8082, 8083] {
            assert!(ask_tcp(&w.hub(), &format!("10.99.0.11:{port}")).is_ok(), "{port}");
            assert!(ask_tcp(&w.hub(), &format!("[{wire}]:{port}")).is_err(), "{port}");
        }
    };
    ask(&w);
    // Its own port, and another's, from inside.
    for from in [&one, &two] {
        assert!(ask_tcp(&from.netns, &format!("[{wire}]:8080")).unwrap().starts_with("one "));
    }
    // The network is no way out over IPv6, and says so at once; nothing is reached that is not published.
    let begun = std::time::Instant::now();
    let to_client = ask_tcp(&one.netns, &format!("[{CLIENT6}]:9")).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(2), "{to_client}");
    let hub = w.hub();
    serve_tcp(&hub, 9, "outside");
    assert!(ask_tcp(&one.netns, &format!("[{CLIENT6}]:9")).is_err() && !pings(&one.netns, CLIENT6));
    assert!(!pings(&one.netns, &other.to_string()));
    let twin = two.links[0].address6.unwrap().addr().to_string();
    assert!(!pings(&one.netns, &twin) && !pings(&w.hub(), &twin));
    // After a start, and after somebody took the bridge's address away.
    w.restart(0);
    ask(&w);
    run(&format!("nsenter --net={} ip -6 addr flush dev skep-br0", node.display()));
    let stop = tokio_util::sync::CancellationToken::new();
    let (network, stopped) = (w.nodes[0].network.clone(), stop.clone());
    let watch = tokio::spawn(async move { network.watch(stopped).await });
    eventually("the bridge has its address again", || ask_tcp(&w.hub(), &format!("[{wire}]:8080")).is_ok());
    stop.cancel();
    watch.await.unwrap();
    // With the last one it goes.
    for id in [&one.id, &v4.id] {
        w.nodes[0].network.delete_sandbox(id).await.unwrap();
    }
    assert!(ask_tcp(&w.hub(), &format!("[{wire}]:8080")).is_err());
}

/// A connection that stays, to a server that echoes in `server`.
fn hold(server: &Path, client: &Path, to: String) -> TcpStream {
    let listener = within(server, || TcpListener::bind("0.0.0.0:80").unwrap()).join().unwrap();
    let stream = within(client, move || TcpStream::connect(to).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream
}

fn echoes(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn ports_change_without_a_word_to_the_connections_that_there_are() {
    let mut w = World::new(2);
    let net = w.network(1);
    let (web, other) = (
        w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]),
        w.service(2, net, "10.0.1.201/24", &[(Protocol::Tcp, 8081, 80)]),
    );
    w.apply().await;
    let task = w.task(1, 1, Some(web), net, "10.0.1.10/24").await;
    let neighbour = w.task(2, 0, Some(other), net, "10.0.1.11/24").await;
    w.apply().await;
    serve_tcp(&neighbour.netns, 80, "other");
    // By the other node, so that entry and exit both have to keep it.
    let held = hold(&task.netns, &w.hub(), "10.99.0.11:8080".into());
    assert!(echoes(&held));
    let numbers = |w: &mut World, service: ServiceId, list: &[u16]| {
        let port = |number: &u16| PortConfig {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published: Some(*number),
            mode: PublishMode::Ingress,
        };
        w.view.services.get_mut(&service).unwrap().ports = list.iter().map(port).collect();
    };
    for (of_web, of_other) in
        [(&[8080, 8090][..], &[8091][..]), (&[8090], &[8080]), (&[8090], &[]), (&[8070], &[8081, 8080])]
    {
        numbers(&mut w, web, of_web);
        numbers(&mut w, other, of_other);
        w.apply().await;
        assert!(echoes(&held), "with {of_web:?} and {of_other:?}");
        for number in of_other {
            let answer = ask_tcp(&w.hub(), &format!("10.99.0.12:{number}")).unwrap();
            assert_eq!(answer, format!("other {CLIENT}"), "port {number}");
        }
    }
    let closed = ask_tcp(&w.hub(), "10.99.0.11:8090").unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);
    // Only with its task it ends, soon.
    w.view.endpoints.remove(&TaskId(1));
    w.apply().await;
    eventually("the connection to a task that left is cut", || !echoes(&held));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn containers_reach_a_port_of_the_cluster_by_every_node_over_tcp_and_udp() {
    let mut w = World::new(2);
    let net = w.network(1);
    let ports = [(Protocol::Tcp, 8080, 80), (Protocol::Udp, 8080, 80)];
    let service = w.service(1, net, "10.0.1.200/24", &ports);
    w.apply().await;
    let task = w.task(1, 1, Some(service), net, "10.0.1.10/24").await;
    let inside = w.task(2, 0, None, net, "10.0.1.11/24").await;
    w.apply().await;
    serve_tcp(&task.netns, 80, "b");
    serve_udp(&task.netns, 80, "b");
    let plain = w.nodes[0].network.create_sandbox(plain("plain", Vec::new())).await.unwrap();
    type Ask = fn(&Path, &str) -> std::io::Result<String>;
    for from in [&inside.netns, &plain.netns, &task.netns] {
        for node in &w.nodes {
            for ask in [ask_tcp as Ask, ask_udp as Ask] {
                let answer = ask(from, &format!("{}:8080", node.address)).unwrap_or_else(|e| panic!("{e}"));
                assert!(answer.starts_with("b "), "{answer}");
            }
        }
    }
    // A task that comes in at its own node is seen with its own address on the mesh.
    let seen = ask_tcp(&inside.netns, "10.99.0.11:8080").unwrap();
    assert_eq!(seen, format!("b {}", inside.mesh.unwrap()));
}
