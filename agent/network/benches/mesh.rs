//! The routing mesh: a published port asked at the node of the task, and at another one that leads there; beside it, in the same
//! rounds, what the kernel alone gets by one DNAT and VXLAN ([`support::bare`]).
//! `cargo bench -p skep-network --bench mesh` as root, with iperf3. `ROUNDS` (5), `SECONDS` (3) and `REQUESTS` (300) may be set,
//! and `MBIT`: then all links between nodes carry no more than that, as real ones do, and processors are not what counts.
//!
//! Nodes and client are namespaces of one machine; what passes between nodes is encrypted in userspace, or plain where the
//! operator made a routing mesh with `--opt encrypted=false`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

mod support;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use skep_proto::model::service::Protocol;
use support::bare::{Bare, DATAGRAMS};
use support::{cost, load, measure, median, number, wire};
use world::{CLIENT, CLIENT6, World, ask_udp, node6, serve_tcp, serve_udp, within};

/// Port that iperf3 listens on.
const IPERF: u16 = 5201;

/// Times of connections made one after another, with what the task saw as the client's address.
fn connections(netns: &Path, to: IpAddr, count: u32) -> Vec<(Duration, String)> {
    let to = SocketAddr::new(to, 8080);
    let once = move || {
        let began = Instant::now();
        let mut stream = TcpStream::connect(to).unwrap();
        let taken = began.elapsed();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        (taken, text)
    };
    within(netns, move || (0..count).map(|_| once()).collect()).join().unwrap()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if let [_, word, to, count] = &std::env::args().collect::<Vec<_>>()[..]
        && word == "send"
    {
        return cost::send(to, count.parse().unwrap());
    }
    for encrypted in [true, false] {
        println!("{}, load {}:", if encrypted { "encrypted" } else { "plain" }, load());
        mesh(encrypted).await;
    }
}

async fn mesh(encrypted: bool) {
    let (rounds, seconds, requests) = (number("ROUNDS", 5), number("SECONDS", 3), number("REQUESTS", 300));
    let mut w = World::new(2);
    w.mesh(encrypted);
    let network = w.network(1);
    let ports = [(Protocol::Tcp, IPERF, IPERF), (Protocol::Tcp, 8080, 8080), (Protocol::Udp, DATAGRAMS, 81)];
    let service = w.service(1, network, "10.0.1.200/24", &ports);
    w.apply().await;
    let task = w.task(1, 0, Some(service), network, "10.0.1.10/24").await;
    w.apply().await;
    let hub = w.hub();
    let bare = Bare::new(&hub);
    serve_tcp(&task.netns, 8080, "task");
    serve_udp(&task.netns, 81, "task");
    serve_tcp(&bare.task, 8080, "task");
    serve_udp(&bare.task, DATAGRAMS, "task");
    if !encrypted {
        let count = |node: Ipv4Addr| cost::instructions(&hub, &format!("{node}:{DATAGRAMS}")).unwrap_or(f64::NAN);
        println!(
            "kernel instructions for a datagram: at the task's node {:.0}, by another {:.0}; the kernel alone {:.0}, {:.0}",
            count(w.nodes[0].address),
            count(w.nodes[1].address),
            count(bare.own),
            count(bare.other)
        );
    }
    if let mbit @ 1.. = number("MBIT", 0) {
        let nodes = w.nodes.iter().map(|node| node.netns.file_name().unwrap().to_str().unwrap());
        wire::limit(&hub, nodes.chain(bare.names()), mbit);
    }
    let (own, other) = (w.nodes[0].address, w.nodes[1].address);
    for streams in [1, 4] {
        let ways = [(&task.netns, own), (&task.netns, other), (&bare.task, bare.own), (&bare.task, bare.other)];
        let mut rates = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            for ((task, address), rates) in ways.iter().zip(&mut rates) {
                rates.push(measure(&hub, task, &address.to_string(), streams, seconds));
            }
        }
        let [direct, led, bare_direct, bare_led] = rates.map(|mut rates| median(&mut rates));
        println!(
            "{streams} streams, Gbit/s: at the task's node {direct:.2}, by another {led:.2}, ratio {:.2}; \
             the kernel alone, not encrypted: {bare_direct:.2}, {bare_led:.2}, ratio {:.2}",
            led / direct,
            bare_led / bare_direct
        );
    }
    for (what, addresses) in
        [("at the task's node", [own.into(), node6(1).into()]), ("by another", [other.into(), node6(2).into()])]
    {
        for (address, client) in addresses.into_iter().zip([CLIENT, CLIENT6]) {
            asked(&hub, what, address, client, requests);
        }
    }
    for (what, address) in [("at the task's node", bare.own), ("by another", bare.other)] {
        let mut times =
            connections(&hub, address.into(), requests).iter().map(|(taken, _)| micros(*taken)).collect::<Vec<_>>();
        println!("the kernel alone, {what}: connect {:.0} us", median(&mut times));
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Asks the services by a node, over TCP and UDP, and tells how long connecting took and whom the task saw.
fn asked(hub: &Path, what: &str, node: IpAddr, client: &str, requests: u32) {
    let wanted = format!("task {client}");
    let tcp = connections(hub, node, requests);
    let right = tcp.iter().filter(|(_, seen)| *seen == wanted).count();
    let mut times: Vec<f64> = tcp.iter().map(|(taken, _)| micros(*taken)).collect();
    let to = SocketAddr::new(node, DATAGRAMS).to_string();
    let udp = (0..requests).filter(|_| ask_udp(hub, &to).is_ok_and(|seen| seen == wanted)).count();
    println!(
        "{what}, {}: connect {:.0} us; the client's address seen by {right} of {requests} TCP, {udp} of {requests} UDP",
        if node.is_ipv4() { "IPv4" } else { "IPv6" },
        median(&mut times),
    );
}
