//! Nobody passes for another over IPv6: by packets, by Neighbour Discovery, by anything that speaks for a router.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;

use skep_network::mac::Mac;
use skep_network::{BridgeAttachment, BridgeSpec, BridgeSpec6, Sandbox, SandboxId, SandboxSpec};

use crate::world::wire::Capture;
use crate::world::{self, CLIENT6, World, eventually, pings, reaches, run};

const ICMP6: u8 = 58;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;

fn frame(to: Mac, from: Mac, source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0[..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(payload);
    frame
}

/// A message of Neighbour Discovery without its checksum: what is looked at here is whether it is delivered.
fn neighbour(kind: u8, target: Ipv6Addr, options: &[(u8, Mac)]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    for (option, mac) in options {
        message.extend([*option, 1]);
        message.extend(mac.0);
    }
    message
}

/// Sends frames by a packet socket, as a process with every right in the sandbox could: `HEX…`.
const SEND: &str = "import socket,sys\n\
    s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW)\n\
    s.bind(('eth0',0))\n\
    for f in sys.argv[1:]: s.send(bytes.fromhex(f))";

fn send(netns: &Path, frames: &[Vec<u8>]) {
    let hex = frames.iter().map(|f| f.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let net = format!("--net={}", netns.display());
    let status = Command::new("nsenter").args([&net, "python3", "-c", SEND]).args(hex).status().unwrap();
    assert!(status.success());
}

fn address(sandbox: &Sandbox) -> (Ipv6Addr, Mac) {
    (sandbox.links[0].address6.unwrap().addr(), sandbox.links[0].mac)
}

fn to_group(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// Every disguise of `evil` towards `victim`, with `other` as who it would like to be; each with its name.
fn disguises(evil: (Ipv6Addr, Mac), victim: (Ipv6Addr, Mac), other: (Ipv6Addr, Mac)) -> Vec<(&'static str, Vec<u8>)> {
    let ((own_ip, own), (victim_ip, victim_mac), (other_ip, other_mac)) = (evil, victim, other);
    let to =
        |from: Mac, source: Ipv6Addr, next, payload: &[u8]| frame(victim_mac, from, source, victim_ip, next, payload);
    let data = [0, 9, 0, 7, 0, 9, 0, 0, b'!'];
    let router: Ipv6Addr = "fe80::1".parse().unwrap();
    let everybody: Ipv6Addr = "ff02::1".parse().unwrap();
    let behind = |message: &[u8]| [&[ICMP6, 0, 1, 4, 0, 0, 0, 0], message].concat();
    let taken = neighbour(136, other_ip, &[(2, own)]);
    let tagged = {
        let frame = to(own, other_ip, UDP, &data);
        [&frame[..12], &[0x81, 0, 0, 1], &frame[12..]].concat()
    };
    vec![
        ("a packet with another's address", to(own, other_ip, UDP, &data)),
        ("a packet with another's Ethernet address", to(other_mac, own_ip, UDP, &data)),
        ("a packet with both", to(other_mac, other_ip, UDP, &data)),
        ("a tagged packet", tagged),
        ("a solicitation with another's address", to(own, other_ip, ICMP6, &neighbour(135, victim_ip, &[(1, own)]))),
        ("a solicitation that tells of another", to(own, own_ip, ICMP6, &neighbour(135, victim_ip, &[(1, other_mac)]))),
        (
            "a solicitation with two options",
            to(own, own_ip, ICMP6, &neighbour(135, victim_ip, &[(1, own), (1, other_mac)])),
        ),
        ("a solicitation of nobody", to(own, Ipv6Addr::UNSPECIFIED, ICMP6, &neighbour(135, victim_ip, &[]))),
        ("an advertisement of another", to(own, own_ip, ICMP6, &taken)),
        ("an advertisement of another by itself", to(own, other_ip, ICMP6, &taken)),
        ("an advertisement without an option", to(own, own_ip, ICMP6, &neighbour(136, other_ip, &[]))),
        (
            "an advertisement of another's Ethernet address",
            to(own, own_ip, ICMP6, &neighbour(136, own_ip, &[(2, other_mac)])),
        ),
        ("an advertisement behind another header", to(own, own_ip, HOP_BY_HOP, &behind(&taken))),
        ("an advertisement to all", frame(to_group(everybody), own, own_ip, everybody, ICMP6, &taken)),
        ("a router's advertisement", to(own, router, ICMP6, &neighbour(134, own_ip, &[(1, own)]))),
        ("a router's advertisement by itself", to(own, own_ip, ICMP6, &neighbour(134, own_ip, &[(1, own)]))),
        (
            "a router's advertisement behind another header",
            to(own, own_ip, HOP_BY_HOP, &behind(&neighbour(134, own_ip, &[]))),
        ),
        ("a redirect", to(own, own_ip, ICMP6, &neighbour(137, own_ip, &[(2, own)]))),
        (
            "a query for groups",
            frame(to_group(everybody), own, own_ip, everybody, ICMP6, &neighbour(130, everybody, &[])),
        ),
    ]
}

/// Sends all disguises, then what is honest, and looks at what arrived.
fn try_all(evil: &Sandbox, victim: &Sandbox, other: (Ipv6Addr, Mac)) {
    let ((own_ip, own), (victim_ip, victim_mac)) = (address(evil), address(victim));
    let to = |next, payload: &[u8]| frame(victim_mac, own, own_ip, victim_ip, next, payload);
    let honest = [
        ("a solicitation", to(ICMP6, &neighbour(135, victim_ip, &[(1, own)]))),
        ("a solicitation without an option", to(ICMP6, &neighbour(135, victim_ip, &[]))),
        ("an advertisement", to(ICMP6, &neighbour(136, own_ip, &[(2, own)]))),
        ("a packet", to(UDP, &[0, 9, 0, 7, 0, 12, 0, 0, b'!', b'!', b'!', b'!'])),
    ];
    let disguised = disguises((own_ip, own), (victim_ip, victim_mac), other);
    let capture = Capture::start(&victim.netns);
    let frames = disguised.iter().chain(&honest).map(|(_, frame)| frame.clone()).collect::<Vec<_>>();
    send(&evil.netns, &frames);
    let arrived = capture.stop();
    for (name, frame) in &honest {
        assert_eq!(arrived.with(frame), 1, "{name} must arrive, or this test proves nothing");
    }
    for (name, frame) in &disguised {
        assert_eq!(arrived.with(frame), 0, "{name} got through");
    }
    let neighbours = run(&format!("nsenter --net={} ip -6 neigh", victim.netns.display()));
    assert!(!neighbours.contains(&format!("{} dev eth0 lladdr {own}", other.0)), "{neighbours}");
    let routes = run(&format!("nsenter --net={} ip -6 route", victim.netns.display()));
    assert!(!routes.contains("proto ra"), "{routes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn nobody_passes_for_another_over_ipv6() {
    let mut w = World::new(2);
    let net = w.dual_network(1);
    w.apply().await;
    let evil = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let victim = w.task_at(2, 0, None, net, &["10.0.1.11/24", "fd00:1::b/64"]).await;
    let far = w.task_at(3, 1, None, net, &["10.0.1.12/24", "fd00:1::c/64"]).await;
    w.apply().await;
    // The victim knows whom the attacker would like to be.
    eventually("an answer of the other node", || pings(&victim.netns, "fd00:1::c"));
    try_all(&evil, &victim, address(&far));
    assert!(reaches(&victim.netns, "fd00:1::c"));
    // By the task link nobody leaves under another address either.
    let inside = format!("nsenter --net={}", evil.netns.display());
    run(&format!("{inside} ip -6 addr add 2001:db8:5::5/128 dev eth1 nodad"));
    let ping = |from: &str| run(&format!("{inside} busybox ping6 -c1 -W2 -I {from} {CLIENT6} || true"));
    let own = evil.links[1].address6.unwrap().addr().to_string();
    assert!(ping(&own).contains(" 1 packets received"), "or this proves nothing");
    assert!(ping("2001:db8:5::5").contains(" 0 packets received"));
    run(&format!("{inside} ip -6 addr del 2001:db8:5::5/128 dev eth1"));
    // Groups of IPv4 reach nobody either, although solicitations go to groups.
    let group = [&[1, 0, 0x5e, 0, 0, 0xfb][..], &evil.links[0].mac.0, &[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 1, 17, 0, 0]];
    let group = [&group.concat()[..], &evil.links[0].address.addr().octets(), &[224, 0, 0, 251], &[0; 26]].concat();
    let capture = Capture::start(&victim.netns);
    send(&evil.netns, std::slice::from_ref(&group));
    assert_eq!(capture.stop().with(&group), 0);

    let network = &w.nodes[0].network;
    let ipv6 = Some(BridgeSpec6::default());
    network.create_bridge(BridgeSpec { ipv6, ..world::bridge("six", None, false) }).await.unwrap();
    let on_bridge = |name: &str| {
        let mut spec = SandboxSpec::new(SandboxId::new(name).unwrap());
        spec.bridges.push(BridgeAttachment { bridge: "six".into(), ..BridgeAttachment::default_bridge() });
        network.create_sandbox(spec)
    };
    let (evil, victim) = (on_bridge("evil").await.unwrap(), on_bridge("victim").await.unwrap());
    let friend = on_bridge("friend").await.unwrap();
    let (friends, _) = address(&friend);
    assert!(reaches(&victim.netns, &friends.to_string()) && reaches(&victim.netns, CLIENT6));
    try_all(&evil, &victim, address(&friend));
    // The gateway, too: who takes its address takes everybody's way out.
    let bridge = network.bridges().into_iter().find(|bridge| bridge.name == "six").unwrap();
    try_all(&evil, &victim, (bridge.ipv6.unwrap().gateway, Mac::of(bridge.gateway())));
    assert!(reaches(&victim.netns, &friends.to_string()) && reaches(&victim.netns, CLIENT6));
}
