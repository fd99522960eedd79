//! What passes between nodes: readable by nobody else, taken from nobody else, and never sent otherwise.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use skep_network::{NodeNetwork, Place, Sandbox, TunnelPath, Tunnels, netd};
use skep_proto::model::TaskId;
use skep_proto::model::service::Protocol;

use crate::world::wire::Capture;
use crate::world::{CLIENT, World, ask_tcp, ask_udp, eventually, pings, reaches, run, serve_tcp, serve_udp, within};

/// What must not be read.
const SECRET: &[u8] = b"the quick brown fox keeps a secret";

/// Sends the secret some hundred times by TCP, and gives how many bytes arrived.
fn tell(from: &Path, to: &Path, address: &str) -> usize {
    let port = 4000;
    let listener = within(to, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
    let address = format!("{address}:{port}").parse().unwrap();
    let sending = within(from, move || TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    let Ok(mut stream) = sending.join().unwrap() else { return 0 };
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all.len()
    });
    stream.write_all(&SECRET.repeat(300)).unwrap();
    drop(stream);
    reading.join().unwrap()
}

/// Tasks on two nodes of an encrypted network.
async fn pair(w: &mut World) -> (Sandbox, Sandbox) {
    let net = w.network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, None, net, "10.0.1.20/24").await;
    w.apply().await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn what_passes_between_nodes_can_be_read_on_the_wire_of_a_plain_network_alone() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    let open = w.plain_network(2);
    // As `swarm init --data-path-port` says.
    w.view.networks.get_mut(&open).unwrap().port = 5789;
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Udp, 8080, 80)]);
    w.apply().await;
    let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
    let d = w.task(4, 1, None, open, "10.0.2.20/24").await;
    w.view.endpoints.get_mut(&TaskId(2)).unwrap().service = Some(service);
    w.apply().await;

    let all = SECRET.len() * 300;
    let capture = Capture::start(&w.hub());
    assert_eq!(tell(&a.netns, &b.netns, "10.0.1.20"), all);
    // A published port, asked on the other node: the way to the task is between nodes too.
    serve_udp(&b.netns, 80, std::str::from_utf8(SECRET).unwrap());
    assert!(ask_udp(&w.nodes[0].netns, "10.99.0.11:8080").unwrap().contains("fox"));
    let frames = capture.stop();
    assert_eq!((frames.with(SECRET), frames.with(&SECRET[..12])), (0, 0), "it can be read");
    assert!(frames.udp(51820).len() > 10, "it went another way");
    assert_eq!((frames.udp(4789).len(), frames.udp(4790).len()), (0, 0));

    let capture = Capture::start(&w.hub());
    assert_eq!(tell(&c.netns, &d.netns, "10.0.2.20"), all);
    let frames = capture.stop();
    assert!(frames.with(SECRET) > 0, "a network that is not encrypted shows that this test can read");
    assert!(!frames.udp(5789).is_empty() && frames.udp(4789).is_empty());
    for node in &w.nodes {
        let rules = run(&format!("nsenter --net={} nft list chain ip skep-skep raw", node.netns.display()));
        assert!(rules.contains("udp dport 5789 ip saddr != @nodes fib daddr type local drop"), "{rules}");
    }
    let told = w.nodes[0].network.encryption().await;
    assert_eq!((told.path, told.failure, told.plain), (Some(TunnelPath::Userspace), None, vec!["net2".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_stranger_can_neither_inject_nor_replay() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    let open = w.plain_network(2);
    w.apply().await;
    let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
    w.apply().await;
    let listen = |sandbox: &Sandbox| {
        let socket = within(&sandbox.netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).join().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        socket
    };
    let (sealed, plain) = (listen(&a), listen(&c));
    let hub = format!("nsenter --net={}", w.hub().display());
    // VXLAN of both networks to both ports, first by the stranger's own address, then by that of node 2.
    for (link, vni, port, inner) in
        [("e0", 4097, 4790, 1), ("e1", 4097, 4789, 1), ("e2", 4098, 4789, 2), ("e3", 4098, 4790, 2)]
    {
        run(&format!(
            "{hub} ip link add {link} address 02:42:0a:00:0{inner}:42 type vxlan id {vni} dstport {port} local {CLIENT} noudpcsum remote 10.99.0.11 && \
             {hub} ip link set {link} up"
        ));
    }
    let inject = |link: &str, inner: u8| {
        run(&format!(
            "{hub} ip addr replace 10.0.{inner}.66/32 dev {link} && {hub} ip route replace 10.0.{inner}.10 dev {link} src 10.0.{inner}.66 && \
             {hub} ip neigh replace 10.0.{inner}.10 lladdr 02:42:0a:00:0{inner}:0a dev {link}"
        ));
        let to = format!("10.0.{inner}.10:80");
        within(&w.hub(), move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"!", to).unwrap()).join().unwrap();
    };
    let heard = |socket: &UdpSocket| socket.recv_from(&mut [0; 8]).is_ok();
    for spoofed in [false, true] {
        if spoofed {
            run(&format!(
                "{hub} nft 'table ip evil {{ chain out {{ type nat hook postrouting priority 100; ip saddr {CLIENT} udp dport {{ 4789, 4790, 51820 }} snat to 10.99.0.12\n}}\n}}'"
            ));
            run(&format!(
                "{hub} busybox true; command -v conntrack >/dev/null && {hub} conntrack -F 2>/dev/null; true"
            ));
        }
        inject("e0", 1);
        inject("e1", 1);
        assert!(!heard(&sealed), "a stranger's frame came into an encrypted network (spoofed: {spoofed})");
        inject("e3", 2);
        assert!(!heard(&plain), "a plain network listened on the port of the encrypted ones");
    }
    inject("e2", 2);
    eventually("the same frame, as of a node, in a plain network: or this test proves nothing", || {
        inject("e2", 2);
        heard(&plain)
    });

    // What node 2 said, once more.
    let capture = Capture::start(&w.hub());
    let send = || {
        within(&b.netns, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"once", "10.0.1.10:80").unwrap())
            .join()
            .unwrap();
    };
    send();
    assert!(heard(&sealed));
    let said: Vec<Vec<u8>> = capture
        .stop()
        .udp(51820)
        .into_iter()
        .filter(|(from, _)| *from == [10, 99, 0, 12])
        .map(|(_, data)| data)
        .collect();
    assert!(!said.is_empty());
    let status = || async { w.nodes[0].network.tunnel().await.unwrap().unwrap().peers[0].clone() };
    let before = status().await;
    for from_itself in [false, true] {
        if from_itself {
            run(&format!("{hub} nft delete table ip evil"));
        }
        let said = said.clone();
        within(&w.hub(), move || {
            let socket = UdpSocket::bind("0.0.0.0:51820").unwrap();
            for datagram in said.iter().cycle().take(20) {
                socket.send_to(datagram, "10.99.0.11:51820").unwrap();
            }
        })
        .join()
        .unwrap();
        assert!(!heard(&sealed), "what was recorded was heard again");
    }
    let after = status().await;
    assert_eq!((after.endpoint, after.received), (before.endpoint, before.received));
    send();
    assert!(heard(&sealed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_that_was_removed_is_heard_by_nobody_from_that_moment() {
    let mut w = World::new(3);
    let (a, b) = pair(&mut w).await;
    let c = w.task(3, 2, None, skep_proto::model::NetworkId(1), "10.0.1.30/24").await;
    w.apply().await;
    assert!(reaches(&b.netns, "10.0.1.10") && reaches(&b.netns, "10.0.1.30") && reaches(&a.netns, "10.0.1.30"));
    let whole = w.view.clone();
    // Removed while it is cut off: it was told nothing and has its sessions still.
    w.view.peers.remove(&w.nodes[1].id);
    for node in [0, 2] {
        w.nodes[node].network.apply(Arc::new(w.view.clone())).await.unwrap();
    }
    let socket = within(&a.netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).join().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    within(&b.netns, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"!", "10.0.1.10:80").unwrap()).join().unwrap();
    assert!(socket.recv_from(&mut [0; 8]).is_err(), "a removed node is heard");
    assert!(!pings(&b.netns, "10.0.1.30") && pings(&a.netns, "10.0.1.30"));
    assert_eq!(w.nodes[0].network.tunnel().await.unwrap().unwrap().peers.len(), 1);
    w.view = whole;
    w.apply().await;
    eventually("a node that is back is heard", || pings(&b.netns, "10.0.1.10"));
    drop(c);
}

/// A TCP connection over which something is said all the time and answered; the count of answers.
fn chatter(from: &Path, to: &Path, address: &str, stop: Arc<AtomicBool>) -> (Arc<AtomicU64>, thread::JoinHandle<()>) {
    let listener = within(to, || TcpListener::bind("0.0.0.0:5000").unwrap()).join().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 1000];
        while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
    });
    let address = format!("{address}:5000");
    let mut stream = within(from, move || TcpStream::connect(address).unwrap()).join().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let answers = Arc::new(AtomicU64::new(0));
    let counted = answers.clone();
    let talking = thread::spawn(move || {
        let mut buffer = [7; 1000];
        while !stop.load(Ordering::Relaxed) {
            stream.write_all(&buffer).expect("the connection goes on");
            stream.read_exact(&mut buffer).expect("the connection goes on");
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (answers, talking)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn a_node_goes_over_to_another_key_and_no_connection_notices() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (answers, talking) = chatter(&a.netns, &b.netns, "10.0.1.20", stop.clone());
    let (names, following) = (w.nodes[0].names.clone(), stop.clone());
    let follower = thread::spawn(move || {
        // What `skep net` does while a node changes its key.
        while !following.load(Ordering::Relaxed) {
            names.in_tunnels(|owner| owner.follow()).unwrap().unwrap().unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    let progress = |what: &str| {
        let before = answers.load(Ordering::Relaxed);
        eventually(what, || answers.load(Ordering::Relaxed) > before + 50);
    };
    let key_at_first = || async { w.nodes[0].network.tunnel().await.unwrap().unwrap().peers };
    let first = w.nodes[1].network.wireguard().unwrap();
    progress("before");
    w.nodes[1].network.begin_key_change().unwrap();
    let both = w.nodes[1].network.wireguard().unwrap();
    assert_eq!((both.key, both.next.is_some()), (first.key, true));
    assert!(!w.nodes[1].network.switch_key([1; 32]).await.unwrap(), "only to the key that was announced");
    assert_eq!(key_at_first().await.len(), 1);
    w.announce();
    w.apply().await;
    assert_eq!(w.nodes[0].network.tunnel().await.unwrap().unwrap().peers.len(), 2);
    progress("while both keys are known");
    assert!(w.nodes[1].network.switch_key(both.next.unwrap()).await.unwrap());
    progress("after the switch, before it was told");
    w.announce();
    w.apply().await;
    progress("after all");
    stop.store(true, Ordering::Relaxed);
    talking.join().unwrap();
    follower.join().unwrap();
    let now = w.nodes[0].network.tunnel().await.unwrap().unwrap().peers;
    assert_eq!((now.len(), now[0].key), (1, both.next.unwrap()));
    let files = run(&format!("ls {}", w.nodes[1].config.key_dir().display()));
    assert_eq!(files.lines().filter(|name| name.ends_with(".key")).count(), 1, "{files}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn packets_fit_the_wire_whatever_it_carries() {
    for (underlay, expected) in [(1500, 1390), (9000, 8890)] {
        let mut w = World::new(2);
        let hub = format!("nsenter --net={}", w.hub().display());
        run(&format!("{hub} ip link set n1 mtu {underlay} && {hub} ip link set n2 mtu {underlay}"));
        for node in &w.nodes {
            run(&format!("nsenter --net={} ip link set uplink mtu {underlay}", node.netns.display()));
        }
        let (a, b) = pair(&mut w).await;
        let open = w.plain_network(2);
        w.apply().await;
        let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
        let d = w.task(4, 1, None, open, "10.0.2.20/24").await;
        w.apply().await;
        for (from, to, address, mtu) in [(&a, &b, "10.0.1.20", expected), (&c, &d, "10.0.2.20", underlay - 50)] {
            let found = run(&format!("nsenter --net={} cat /sys/class/net/eth0/mtu; true", from.netns.display()));
            let shown = run(&format!("nsenter --net={} ip -o link show eth0", from.netns.display()));
            assert!(shown.contains(&format!("mtu {mtu} ")), "{shown}{found}");
            let capture = Capture::start(&w.hub());
            // The largest datagram that is one packet, and a stream of full segments.
            let socket = within(&to.netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).join().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let (address, size) = (address.to_owned(), usize::try_from(mtu).unwrap() - 28);
            let target = format!("{address}:80");
            within(&from.netns, move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&vec![1; size], target).unwrap())
                .join()
                .unwrap();
            assert_eq!(socket.recv_from(&mut vec![0; 10_000]).unwrap().0, size);
            assert_eq!(tell(&from.netns, &to.netns, &address), SECRET.len() * 300);
            let frames = capture.stop();
            assert_eq!(frames.fragments(), 0, "packets had to be cut to fit {underlay}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn without_the_link_nothing_leaves_in_the_clear() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    let inside = format!("nsenter --net={}", w.nodes[0].netns.display());
    for flushed in [false, true] {
        let removed = w.nodes[0].names.in_tunnels(|owner| {
            let wanted = owner.wanted().cloned().unwrap();
            owner.remove();
            wanted
        });
        let wanted = removed.unwrap().unwrap();
        if flushed {
            run(&format!("{inside} nft flush ruleset"));
        }
        let capture = Capture::start(&w.hub());
        let shout = within(&a.netns, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for _ in 0..20 {
                let _ = socket.send_to(SECRET, "10.0.1.20:80");
            }
        });
        shout.join().unwrap();
        assert!(!pings(&a.netns, "10.0.1.20"));
        let frames = capture.stop();
        assert_eq!((frames.with(SECRET), frames.udp(4790).len()), (0, 0), "flushed: {flushed}");
        w.nodes[0].names.put_tunnel(wanted).await.unwrap();
        w.apply().await;
        eventually("the link is back", || pings(&a.netns, "10.0.1.20"));
    }
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_container_cannot_speak_on_the_link_between_nodes_and_the_link_opens_nothing() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    // A server of the node, on all its addresses.
    serve_tcp(&w.nodes[1].netns, 22, "node");
    assert!(ask_tcp(&w.hub(), "10.99.0.12:22").is_ok());
    assert!(ask_tcp(&w.nodes[0].netns, "100.127.192.2:22").is_err(), "a node's own servers are not on the link");
    assert!(ask_tcp(&a.netns, "100.127.192.2:22").is_err());
    let received = |w: &World| {
        let inside = format!("nsenter --net={}", w.nodes[1].netns.display());
        run(&format!("{inside} awk '$1 == \"skep-wg:\" {{ print $3 }}' /proc/thread-self/net/dev"))
    };
    let before = received(&w);
    // VXLAN by hand: flags, identifier 4097, and whatever frame.
    let mut frame = vec![8, 0, 0, 0, 0, 0x10, 1, 0];
    frame.resize(100, 0);
    within(&a.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..5 {
            let _ = socket.send_to(&frame, "100.127.192.2:4790");
        }
    })
    .join()
    .unwrap();
    thread::sleep(Duration::from_millis(100));
    assert_eq!(received(&w), before, "a container's packet came through the link");
    assert!(reaches(&a.netns, "10.0.1.20"));
    assert_ne!(received(&w), before);
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_with_another_address_is_reached_again_on_every_network() {
    let mut w = World::new(2);
    let (a, b) = pair(&mut w).await;
    let open = w.plain_network(2);
    w.apply().await;
    let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
    let d = w.task(4, 1, None, open, "10.0.2.20/24").await;
    w.apply().await;
    assert!(reaches(&a.netns, "10.0.1.20") && reaches(&c.netns, "10.0.2.20"));
    w.move_node(0, Ipv4Addr::new(10, 99, 0, 41));
    w.apply().await;
    for (from, to) in [(&a, "10.0.1.20"), (&b, "10.0.1.10"), (&c, "10.0.2.20"), (&d, "10.0.2.10")] {
        eventually(to, || pings(&from.netns, to));
    }
    let at = w.nodes[1].network.tunnel().await.unwrap().unwrap().peers[0].endpoint;
    assert_eq!(at.unwrap().to_string(), "10.99.0.41:51820");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_network_that_was_made_in_the_clear_is_encrypted_once_the_managers_say_so() {
    let mut w = World::new(2);
    let net = w.plain_network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, None, net, "10.0.1.20/24").await;
    w.apply().await;
    assert!(reaches(&a.netns, "10.0.1.20"));
    w.view.networks.get_mut(&net).unwrap().encrypted = true;
    w.apply().await;
    let shown = run(&format!("nsenter --net={} ip -o link show eth0", a.netns.display()));
    assert!(shown.contains("mtu 1390 "), "{shown}");
    let capture = Capture::start(&w.hub());
    assert_eq!(tell(&a.netns, &b.netns, "10.0.1.20"), SECRET.len() * 300);
    let frames = capture.stop();
    assert_eq!((frames.with(SECRET), frames.udp(4789).len()), (0, 0));
    w.restart(0);
    assert!(reaches(&a.netns, "10.0.1.20"), "a restart changes nothing");
}

/// Has the links of a node made by a process as `skep net` is, in the node's namespace.
async fn with_process(w: &mut World, node: usize) -> Arc<netd::Client> {
    let at = &w.nodes[node];
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples").join("netd");
    let script = at.config.state_dir.with_extension("netd.sh");
    let line = format!("#!/bin/sh\nexec nsenter --net={} {} \"$@\"\n", at.netns.display(), program.display());
    std::fs::write(&script, line).unwrap();
    run(&format!("chmod +x {}", script.display()));
    let dir = at.config.state_dir.with_extension("netd");
    let client = Arc::new(netd::Client::start(netd::ClientConfig::new(dir, script)).await.unwrap());
    let (config, names) = (at.config.clone(), client.clone());
    let place = Place { node: Some(at.id), data_path: vec![at.address.into()] };
    let started = within(&at.netns, move || NodeNetwork::start(config, place, names).unwrap());
    w.nodes[node].network = started.join().unwrap();
    w.announce();
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn the_process_that_owns_the_link_is_replaced_and_killed_and_connections_go_on() {
    let mut w = World::new(2);
    let client = with_process(&mut w, 0).await;
    let (a, b) = pair(&mut w).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (answers, talking) = chatter(&a.netns, &b.netns, "10.0.1.20", stop.clone());
    let progress = |what: &str| {
        let before = answers.load(Ordering::Relaxed);
        eventually(what, || answers.load(Ordering::Relaxed) > before + 50);
    };
    progress("before");
    let first = client.process_id().await.unwrap();
    assert_ne!(client.replace().await.unwrap(), first);
    progress("with a successor");
    let folder = w.nodes[0].config.state_dir.with_extension("netd");
    let kept = run(&format!("cat {}/tunnel {}/netd.log", folder.display(), folder.display()));
    let keys = w.nodes[0].config.key_dir();
    let secret = run(&format!("cat {}/*.key", keys.display()));
    assert!(!kept.contains(secret.trim()), "the private key is where it does not belong");
    run(&format!("kill -9 {}", client.process_id().await.unwrap()));
    progress("after its death");
    let inside = format!("nsenter --net={} ip", w.nodes[0].netns.display());
    for harm in [
        format!("{inside} link set skep-wg down"),
        format!("{inside} link set skep-wg down && {inside} link set skep-wg up"),
        format!("{inside} addr flush dev skep-wg"),
        format!("{inside} link del skep-wg"),
    ] {
        run(&harm);
        progress(&harm);
    }
    let links = run(&format!("{inside} -o addr show skep-wg"));
    assert!(links.contains("100.127.192.1/32"), "{links}");
    stop.store(true, Ordering::Relaxed);
    talking.join().unwrap();
    w.nodes[0].network.clear().await.unwrap();
    // Lets go of the layer that held the other end.
    w.restart(0);
    Arc::into_inner(client).unwrap().stop().await.unwrap();
    drop((a, b));
}
