//! The routing mesh: a published port asked at the node of the task, and at another one that leads there.
//! `cargo bench -p skep-network --bench mesh` as root, with iperf3. `ROUNDS` (5), `SECONDS` (3) and `REQUESTS` (300) may be set.
//!
//! Nodes and client are namespaces of one machine; what passes between nodes is encrypted in userspace, or plain where the
//! operator made a routing mesh with `--opt encrypted=false`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

mod support;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use skep_proto::model::service::Protocol;
use support::{measure, median, number};
use world::{CLIENT, World, ask_udp, serve_tcp, serve_udp, within};

/// Port that iperf3 listens on.
const IPERF: u16 = 5201;

/// Times of connections made one after another, with what the task saw as the client's address.
fn connections(netns: &Path, to: Ipv4Addr, count: u32) -> Vec<(Duration, String)> {
    let to = SocketAddr::new(to.into(), 8080);
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
    for encrypted in [true, false] {
        println!("{}", if encrypted { "encrypted:" } else { "plain:" });
        mesh(encrypted).await;
    }
}

async fn mesh(encrypted: bool) {
    let (rounds, seconds, requests) = (number("ROUNDS", 5), number("SECONDS", 3), number("REQUESTS", 300));
    let mut w = World::new(2);
    w.mesh(encrypted);
    let network = w.network(1);
    let ports = [(Protocol::Tcp, IPERF, IPERF), (Protocol::Tcp, 8080, 80), (Protocol::Udp, 8081, 81)];
    let service = w.service(1, network, "10.0.1.200/24", &ports);
    w.apply().await;
    let task = w.task(1, 0, Some(service), network, "10.0.1.10/24").await;
    serve_tcp(&task.netns, 80, "task");
    serve_udp(&task.netns, 81, "task");
    w.apply().await;
    let hub = w.hub();
    let (own, other) = (w.nodes[0].address, w.nodes[1].address);
    for streams in [1, 4] {
        let (mut direct, mut led) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            direct.push(measure(&hub, &task.netns, &own.to_string(), streams, seconds));
            led.push(measure(&hub, &task.netns, &other.to_string(), streams, seconds));
        }
        let (direct, led) = (median(&mut direct), median(&mut led));
        println!(
            "{streams} streams, Gbit/s: at the task's node {direct:.2}, by another {led:.2}, ratio {:.2}",
            led / direct
        );
    }
    for (what, node) in [("at the task's node", own), ("by another", other)] {
        let tcp = connections(&hub, node, requests);
        let wanted = format!("task {CLIENT}");
        let right = tcp.iter().filter(|(_, seen)| *seen == wanted).count();
        let mut times: Vec<f64> = tcp.iter().map(|(taken, _)| taken.as_secs_f64() * 1e6).collect();
        let asked = (0..requests).filter(|_| ask_udp(&hub, &format!("{node}:8081")).is_ok_and(|seen| seen == wanted));
        println!(
            "{what}: connect {:.0} us; the client's address seen by {right} of {requests} TCP, {} of {requests} UDP",
            median(&mut times),
            asked.count()
        );
    }
}
