//! What belongs to IPv6 outlives a restart, comes back when somebody removes it, and is absent on hosts without it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv6Net;
use skep_network::{BridgeAttachment, BridgeSpec, BridgeSpec6, HostPort, SandboxId, SandboxSpec};
use skep_proto::model::TaskId;
use skep_proto::model::service::Protocol;
use tokio_util::sync::CancellationToken;

use crate::world::{
    self, CLIENT, CLIENT6, World, ask_tcp, eventually, hold_tcp, node6, pings, run, serve_tcp, serve_udp, within,
};

/// A server that gives back whatever comes, as long as the connection lasts.
fn echo(netns: &Path, port: u16) {
    let listener = within(netns, move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..length]);
                }
            });
        }
    });
}

fn goes_on(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"hello"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn connections_of_ipv6_outlive_a_restart_and_an_older_sandbox_gets_its_twin() {
    let mut w = World::new(2);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    w.apply().await;
    echo(&b.netns, 80);
    let vip: Ipv6Addr = "fd00:1::c8".parse().unwrap();
    let mut held = [
        hold_tcp(&a.netns, 40000, vip, 80).unwrap(),
        hold_tcp(&w.hub(), 40001, node6(1), 8080).unwrap(),
        hold_tcp(&w.nodes[0].netns, 40002, Ipv6Addr::LOCALHOST, 8080).unwrap(),
    ];
    assert!(held.iter_mut().all(goes_on));
    let before = w.nodes[0].network.sandboxes().await;
    for node in [0, 1] {
        w.restart(node);
    }
    assert!(held.iter_mut().all(goes_on), "before the managers are heard");
    assert_eq!(w.nodes[0].network.sandboxes().await, before);
    w.apply().await;
    assert!(held.iter_mut().all(goes_on));
    drop(held);

    // A sandbox that an earlier release made: no IPv6 on its task link, and no word of it in its record.
    let inside = format!("nsenter --net={}", b.netns.display());
    let node = format!("nsenter --net={}", w.nodes[1].netns.display());
    let link = b.links.iter().find(|link| link.mac != b.links[0].mac).unwrap();
    run(&format!("{inside} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/{}/disable_ipv6'", link.name));
    run(&format!("{node} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/skep-t0/disable_ipv6'"));
    type Link = (Option<Ipv6Net>, Option<Ipv6Addr>);
    let part: (Vec<Option<Ipv6Net>>, Vec<Option<Ipv6Addr>>, Vec<Link>) =
        (vec![b.links[0].address6], Vec::new(), b.links.iter().map(|link| (link.address6, link.gateway6)).collect());
    // And behind that the ranges of its ports, which it has none of.
    let part = postcard::to_stdvec(&(part, std::collections::BTreeMap::<usize, u16>::new())).unwrap();
    let path = w.nodes[1].config.sandbox_dir().join(format!("{}.record", TaskId(2)));
    let mut record = std::fs::read(&path).unwrap();
    assert!(record.ends_with(&part));
    record.truncate(record.len() - part.len());
    std::fs::write(&path, &record).unwrap();
    w.restart(1);
    w.apply().await;
    let mut stream = hold_tcp(&w.hub(), 40003, node6(1), 8080).unwrap();
    assert!(goes_on(&mut stream));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn what_somebody_removes_of_ipv6_comes_back_and_then_nothing_changes_any_more() {
    let mut w = World::new(2);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    w.apply().await;
    serve_tcp(&b.netns, 80, "b");
    let network = &w.nodes[0].network;
    let ipv6 = Some(BridgeSpec6::default());
    network.create_bridge(BridgeSpec { ipv6, ..world::bridge("six", None, false) }).await.unwrap();
    let mut spec = SandboxSpec::new(SandboxId::new("plain").unwrap());
    spec.bridges.push(BridgeAttachment { bridge: "six".into(), ..BridgeAttachment::default_bridge() });
    spec.host_ports = vec![HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp }];
    let plain = network.create_sandbox(spec).await.unwrap();
    serve_tcp(&plain.netns, 80, "plain");
    let stop = CancellationToken::new();
    let watching: Vec<_> = w
        .nodes
        .iter()
        .map(|node| {
            let (network, stop) = (node.network.clone(), stop.clone());
            tokio::spawn(async move { network.watch(stop).await })
        })
        .collect();
    let works = || {
        let by_port = |port: u16| ask_tcp(&w.hub(), &format!("[{}]:{port}", node6(1))).ok();
        ask_tcp(&a.netns, "[fd00:1::c8]:80").is_ok_and(|text| text == "b fd00:1::a")
            && by_port(8080) == Some(format!("b {CLIENT6}"))
            && by_port(8081) == Some(format!("plain {CLIENT6}"))
            && ask_tcp(&w.nodes[0].netns, "[::1]:8080").is_ok_and(|text| text.starts_with("b "))
            && ask_tcp(&w.nodes[0].netns, "[::1]:8081").is_ok_and(|text| text.starts_with("plain "))
            && pings(&a.netns, "fd00:1::14")
            && pings(&a.netns, CLIENT6)
    };
    eventually("all of it", works);
    let node = format!("nsenter --net={}", w.nodes[0].netns.display());
    let switch = format!("nsenter --net={}", w.nodes[0].config.switch_dir().join(net.to_string()).display());
    let inside = format!("nsenter --net={}", a.netns.display());
    for harm in [
        format!("{node} nft delete table ip6 skep-skep"),
        format!("{inside} nft flush ruleset"),
        format!("{node} ip -6 addr flush dev skep-mesh scope global"),
        format!("{node} ip -6 rule del priority 5100"),
        format!("{node} ip -6 route flush table 51000"),
        format!("{node} ip -6 route flush dev skep-mesh"),
        format!("{node} ip -6 neigh flush dev skep-mesh nud permanent"),
        format!("{node} ip link set skep-mesh down"),
        format!("{node} ip -6 addr flush dev skep-br1 scope global"),
        format!("{node} ip link set skep-br1 down"),
        format!("{node} ip -6 route flush dev skep-t0"),
        format!("{node} ip -6 addr flush dev skep-t0 scope global"),
        format!("{switch} ip -6 neigh flush dev vx0 nud permanent"),
        format!("{switch} ip link set vx0 down"),
        format!("{switch} ip link del vx0"),
        format!("{switch} ip link del br0"),
    ] {
        run(&harm);
        eventually(&harm, works);
    }
    // All is there: nobody hears of any change from now on. Once the last one was heard.
    let quiet = || run(&format!("{node} timeout 2 ip -6 monitor address route rule 2>&1 | cat")).is_empty();
    eventually("silence", quiet);
    stop.cancel();
    for watching in watching {
        watching.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn connections_of_ipv6_to_a_task_that_is_gone_are_cut() {
    let mut w = World::new(2);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Udp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    w.apply().await;
    serve_udp(&b.netns, 80, "b");
    let held = |netns: &Path, to: &str| {
        let socket = within(netns, || UdpSocket::bind("[::]:0").unwrap()).join().unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        move || {
            let mut buffer = [0; 64];
            socket.send(b"?").ok()?;
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        }
    };
    let by_vip = held(&a.netns, "[fd00:1::c8]:80");
    let by_port = held(&w.hub(), &format!("[{}]:8080", node6(1)));
    assert_eq!((by_vip(), by_port()), (Some("b fd00:1::a".into()), Some(format!("b {CLIENT6}"))));
    let c = w.task_at(3, 0, Some(service), net, &["10.0.1.21/24", "fd00:1::15/64"]).await;
    serve_udp(&c.netns, 80, "c");
    w.view.endpoints.remove(&TaskId(2));
    w.apply().await;
    eventually("the same socket reaching the new task", || by_vip().as_deref() == Some("c fd00:1::a"));
    eventually("the same client reaching it by the port", || by_port() == Some(format!("c {CLIENT6}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_host_without_ipv6_goes_on_with_ipv4() {
    let mut w = World::new(2);
    for node in [0, 1] {
        let inside = format!("nsenter --net={}", w.nodes[node].netns.display());
        run(&format!("{inside} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6'"));
        w.restart(node);
    }
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    w.apply().await;
    assert!(a.links.iter().chain(&b.links).all(|link| link.address6.is_none() && link.gateway6.is_none()));
    serve_tcp(&b.netns, 80, "b");
    assert_eq!(ask_tcp(&a.netns, "10.0.1.200:80").unwrap(), "b 10.0.1.10");
    assert_eq!(ask_tcp(&w.hub(), &format!("{}:8080", w.nodes[0].address)).unwrap(), format!("b {CLIENT}"));
    let network = &w.nodes[0].network;
    let ipv6 = Some(BridgeSpec6::default());
    let refused = network.create_bridge(BridgeSpec { ipv6, ..world::bridge("six", None, false) }).await.unwrap_err();
    assert_eq!(refused.to_string(), "network six: this node has no IPv6");
    let inside = format!("nsenter --net={}", w.nodes[0].netns.display());
    assert!(!run(&format!("{inside} nft list tables")).contains("ip6"));
}
