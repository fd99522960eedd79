//! Throughput and latency of a plain and of an encrypted network between two nodes that are namespaces of one machine, run by
//! run in turn, and what the encryption takes of processors: `cargo bench -p skep-network --bench overlay` as root, with iperf3.
//! `ROUNDS` (5), `SECONDS` (3) and `REQUESTS` (1000) may be set, and `MBIT`: then no link between nodes carries more than that.
//!
//! The nodes' links are made by the network layer itself; sender, receiver and both ends of the tunnel share the machine.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

mod support;

use support::{device_cpu, load, measure, median, number, round_trip, wire};
use world::World;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let (rounds, seconds) = (number("ROUNDS", 5), number("SECONDS", 3));
    let mut w = World::new(2);
    let (sealed, open) = (w.network(1), w.plain_network(2));
    w.apply().await;
    let a = w.task(1, 0, None, sealed, "10.0.1.10/24").await;
    let b = w.task(2, 1, None, sealed, "10.0.1.20/24").await;
    let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
    let d = w.task(4, 1, None, open, "10.0.2.20/24").await;
    w.apply().await;
    if let mbit @ 1.. = number("MBIT", 0) {
        let nodes = w.nodes.iter().map(|node| node.netns.file_name().unwrap().to_str().unwrap());
        wire::limit(&w.hub(), nodes, mbit);
    }
    println!("load {}", load());
    for streams in [1, 4] {
        let (mut plain, mut encrypted, mut cores) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            plain.push(measure(&c.netns, &d.netns, "10.0.2.20", streams, seconds));
            let before = device_cpu();
            let rate = measure(&a.netns, &b.netns, "10.0.1.20", streams, seconds);
            cores.push((device_cpu() - before) / f64::from(seconds) / rate);
            encrypted.push(rate);
        }
        println!("{streams} streams, Gbit/s in order: plain {plain:.2?}, encrypted {encrypted:.2?}");
        let (plain, encrypted) = (median(&mut plain), median(&mut encrypted));
        println!(
            "{streams} streams, medians: plain {plain:.2}, encrypted {encrypted:.2}, ratio {:.2}; both ends of the tunnel \
             take {:.2} processors for each Gbit/s",
            encrypted / plain,
            median(&mut cores)
        );
    }
    let requests = number("REQUESTS", 1000);
    let plain = round_trip(&c.netns, &d.netns, "10.0.2.20", requests);
    let encrypted = round_trip(&a.netns, &b.netns, "10.0.1.20", requests);
    println!(
        "round trip of a datagram, p50 and p99: plain {:.0} and {:.0} us, encrypted {:.0} and {:.0} us, added {:.0} us",
        plain[0],
        plain[1],
        encrypted[0],
        encrypted[1],
        encrypted[0] - plain[0]
    );
    println!("load {}", load());
}
