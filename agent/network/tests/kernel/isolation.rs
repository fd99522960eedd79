//! Containers with every network capability try to pass for others and to reach what they are not on. Attackers are
//! programs in their namespaces that send whole frames of their own making.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use skep_network::mac::Mac;
use skep_network::{BridgeAttachment, HostPort, Sandbox, SandboxId, SandboxSpec};
use skep_proto::model::service::Protocol;

use crate::world::{CLIENT, CLIENT6, World, ask_tcp, bridge, node6, pings, reaches, run, serve_tcp, within};

/// Sends frames by a packet socket: `IFACE HEX…`, from inside a namespace.
const SEND: &str = "import socket,sys\n\
    s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW)\n\
    s.bind((sys.argv[1],0))\n\
    for f in sys.argv[2:]: s.send(bytes.fromhex(f))";

fn send(netns: &Path, link: &str, frames: &[Vec<u8>]) {
    let hex = frames.iter().map(|f| f.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let net = format!("--net={}", netns.display());
    let status = Command::new("nsenter").args([&net, "python3", "-c", SEND, link]).args(hex).status().unwrap();
    assert!(status.success());
}

fn ether(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

/// An ARP answer: `address` is at `mac`.
fn arp(to: Mac, from: Mac, address: Ipv4Addr, mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    [&ether(to, from, 0x0806)[..], &head, &mac.0, &address.octets(), &to.0, &target.octets(), &[0; 18]].concat()
}

/// A UDP packet with one byte, without a checksum (which IPv4 allows).
fn udp(to: Mac, from: Mac, source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut ip = [&[0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0][..], &source.octets(), &destination.octets()].concat();
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&ether(to, from, 0x0800)[..], &ip, &9999u16.to_be_bytes(), &port.to_be_bytes(), &[0, 9, 0, 0, b'!'], &[0; 17]]
        .concat()
}

fn address(sandbox: &Sandbox) -> (Ipv4Addr, Mac) {
    (sandbox.links[0].address.addr(), sandbox.links[0].mac)
}

fn listen(netns: &Path) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind("0.0.0.0:7").unwrap()).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

fn hears(socket: &UdpSocket) -> bool {
    socket.recv_from(&mut [0; 8]).is_ok()
}

/// Tries every disguise of `evil` towards `victim`, with `other` as who it would like to be. The honest frame arrives.
fn disguises(evil: (&Sandbox, &str), victim: &Sandbox, other: (Ipv4Addr, Mac)) {
    let ((own_ip, own), (victim_ip, victim_mac)) = (address(evil.0), address(victim));
    let socket = listen(&victim.netns);
    let (other_ip, other_mac) = other;
    let tagged = {
        let frame = udp(victim_mac, own, other_ip, victim_ip, 7);
        [&frame[..12], &[0x81, 0, 0, 1], &frame[12..]].concat()
    };
    send(
        &evil.0.netns,
        evil.1,
        &[
            udp(victim_mac, own, other_ip, victim_ip, 7),
            udp(victim_mac, other_mac, own_ip, victim_ip, 7),
            udp(victim_mac, other_mac, other_ip, victim_ip, 7),
            udp(Mac([0xff; 6]), own, other_ip, victim_ip, 7),
            tagged,
        ],
    );
    assert!(!hears(&socket), "a packet in another's name got through");
    let poison = arp(victim_mac, own, other_ip, own, victim_ip);
    let poison_as_other = arp(victim_mac, other_mac, other_ip, own, victim_ip);
    send(&evil.0.netns, evil.1, &[poison, poison_as_other]);
    let table = run(&format!("nsenter --net={} ip neigh", victim.netns.display()));
    assert!(
        !table.contains(&format!("{other_ip} dev eth0 lladdr {own}")),
        "ARP in another's name was believed: {table}"
    );
    send(&evil.0.netns, evil.1, &[udp(victim_mac, own, own_ip, victim_ip, 7)]);
    assert!(hears(&socket), "an honest packet must arrive, or this test proves nothing");
}

fn plain(name: &str, bridge: &str) -> SandboxSpec {
    let mut spec = SandboxSpec::new(SandboxId::new(name).unwrap());
    spec.bridges.push(BridgeAttachment { bridge: bridge.into(), address: None, names: Vec::new(), address6: None });
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn nobody_passes_for_another_on_an_overlay_or_a_bridge() {
    let mut w = World::new(2);
    let net = w.network(1);
    w.apply().await;
    let (evil, victim) = (w.task(1, 0, None, net, "10.0.1.10/24").await, w.task(2, 0, None, net, "10.0.1.11/24").await);
    let far = w.task(3, 1, None, net, "10.0.1.12/24").await;
    w.apply().await;
    // The victim knows whom the attacker would like to be.
    assert!(reaches(&victim.netns, "10.0.1.12"));
    disguises((&evil, "eth0"), &victim, address(&far));
    assert!(reaches(&victim.netns, "10.0.1.12"));

    let network = &w.nodes[0].network;
    let evil = network.create_sandbox(plain("evil", "bridge")).await.unwrap();
    let victim = network.create_sandbox(plain("victim", "bridge")).await.unwrap();
    let friend = network.create_sandbox(plain("friend", "bridge")).await.unwrap();
    let friends = address(&friend).0.to_string();
    assert!(reaches(&victim.netns, &friends) && reaches(&victim.netns, CLIENT));
    disguises((&evil, "eth0"), &victim, address(&friend));
    // The gateway, too: who takes its address takes everybody's way out.
    let gateway = victim.links[0].gateway.unwrap();
    let (own, (victim_ip, victim_mac)) = (address(&evil).1, address(&victim));
    send(&evil.netns, "eth0", &[arp(victim_mac, own, gateway, own, victim_ip)]);
    let table = run(&format!("nsenter --net={} ip neigh", victim.netns.display()));
    assert!(
        !table.contains(&own.to_string()) || !table.contains(&format!("{gateway} dev eth0 lladdr {own}")),
        "{table}"
    );
    assert!(reaches(&victim.netns, &friends) && reaches(&victim.netns, CLIENT));
    // Another address given to its own link reaches nobody, and nobody reaches it.
    let inside = format!("nsenter --net={}", evil.netns.display());
    run(&format!("{inside} ip addr flush dev eth0 && {inside} ip addr add {friends}/16 dev eth0"));
    run(&format!("{inside} ip link set eth0 down && {inside} ip link set eth0 address {} up", address(&friend).1));
    assert!(!pings(&evil.netns, &victim_ip.to_string()));
    assert!(reaches(&victim.netns, &friends));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn networks_are_closed_to_each_other_and_internal_ones_to_the_world() {
    let mut w = World::new(2);
    let (one, two) = (w.network(1), w.network(2));
    w.apply().await;
    let a = w.task(1, 0, None, one, "10.0.1.10/24").await;
    let b = w.task(2, 0, None, two, "10.0.2.10/24").await;
    let c = w.task(3, 1, None, two, "10.0.2.11/24").await;
    w.apply().await;
    let network = &w.nodes[0].network;
    network.create_bridge(bridge("closed", None, true)).await.unwrap();
    network.create_bridge(bridge("open", None, false)).await.unwrap();
    let inner = network.create_sandbox(plain("inner", "closed")).await.unwrap();
    let beside = network.create_sandbox(plain("beside", "closed")).await.unwrap();
    let mut spec = plain("outer", "open");
    spec.host_ports = vec![HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp }];
    let outer = network.create_sandbox(spec).await.unwrap();
    serve_tcp(&outer.netns, 80, "outer");
    let default = network.create_sandbox(plain("default", "bridge")).await.unwrap();
    assert!(reaches(&inner.netns, &address(&beside).0.to_string()), "in the same network they meet");
    let all = [&a, &b, &c, &inner, &beside, &outer, &default];
    // Each has a default route, whatever it takes.
    let gateway = network.bridges().into_iter().find(|bridge| bridge.name == "closed").unwrap().gateway();
    for closed in [&inner, &beside] {
        run(&format!("nsenter --net={} ip route add default via {gateway}", closed.netns.display()));
    }
    let same = |x: &Sandbox, y: &Sandbox| {
        x.links.iter().any(|l| y.links.iter().any(|m| l.kind == m.kind && l.address.trunc() == m.address.trunc()))
    };
    // At once: each that finds no way takes its whole patience.
    std::thread::scope(|scope| {
        for from in all {
            for to in all.iter().filter(|to| !same(from, to)) {
                for link in &to.links {
                    scope.spawn(move || {
                        let to_address = link.address.addr().to_string();
                        assert!(!pings(&from.netns, &to_address), "{} reaches {to_address} of {}", from.id, to.id);
                    });
                }
            }
        }
    });
    for (who, is_open) in [(&inner, false), (&beside, false), (&outer, true), (&default, true), (&a, true)] {
        let ping = if is_open { reaches } else { pings };
        assert_eq!(ping(&who.netns, CLIENT), is_open, "{}", who.id);
        let published = ask_tcp(&who.netns, &format!("{}:8081", w.nodes[0].address));
        assert_eq!(published.is_ok(), is_open, "{} by a published port: {published:?}", who.id);
    }
}

/// What docs/operations.md tells to let through, in the test's names of links.
const PASS: &str = "add rule inet host input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept\n\
    add rule inet host input ip saddr { 10.99.0.11, 10.99.0.12 } udp dport { 51820, 4789 } accept\n\
    add rule inet host input iifname \"skep-wg\" udp dport 4790 accept\n\
    add rule inet host forward ct state established,related accept\n\
    add rule inet host forward iifname \"skep-*\" accept\n\
    add rule inet host forward oifname \"skep-*\" accept";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_host_firewall_that_drops_needs_the_documented_rules_and_no_more() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let (a, b) =
        (w.task(1, 0, None, net, "10.0.1.10/24").await, w.task(2, 1, Some(service), net, "10.0.1.11/24").await);
    w.apply().await;
    serve_tcp(&b.netns, 80, "b");
    let network = &w.nodes[0].network;
    network.create_bridge(bridge("open", None, false)).await.unwrap();
    let ipv6 = Some(skep_network::BridgeSpec6::default());
    network.create_bridge(skep_network::BridgeSpec { ipv6, ..bridge("six", None, false) }).await.unwrap();
    let six = network.create_sandbox(plain("six", "six")).await.unwrap();
    let plain = network.create_sandbox(plain("plain", "open")).await.unwrap();
    let other = network.create_sandbox(self::plain("other", "bridge")).await.unwrap();
    let works = |is_open: bool| {
        let ping = if is_open { reaches } else { pings };
        [
            ping(&a.netns, "10.0.1.11"),
            ask_tcp(&w.hub(), "10.99.0.11:8080").is_ok_and(|text| text == format!("b {CLIENT}")),
            ask_tcp(&w.nodes[0].netns, "127.0.0.1:8080").is_ok(),
            ping(&plain.netns, CLIENT),
            ask_tcp(&w.hub(), &format!("[{}]:8080", node6(1))).is_ok_and(|text| text == format!("b {CLIENT6}")),
            ask_tcp(&w.nodes[0].netns, "[::1]:8080").is_ok(),
            ping(&six.netns, CLIENT6),
        ]
    };
    assert_eq!(works(true), [true; 7]);
    let load = |rules: &str| {
        let path = w.nodes[0].config.state_dir.with_extension("nft");
        std::fs::write(&path, rules).unwrap();
        for node in &w.nodes {
            run(&format!("nsenter --net={} nft -f {}", node.netns.display(), path.display()));
        }
    };
    load(
        "table inet host {\n\
         chain input { type filter hook input priority 0; policy drop; iif lo accept; ct state established accept; }\n\
         chain forward { type filter hook forward priority 0; policy drop; }\n}\n",
    );
    assert_eq!(works(false), [false; 7]);
    load(PASS);
    assert_eq!(works(true), [true; 7]);
    assert!(!pings(&plain.netns, &address(&other).0.to_string()), "networks stay closed to each other");
}
