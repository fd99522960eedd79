//! Throughput of a plain and of an encrypted network between two nodes that are namespaces of one machine, run by run in
//! turn: `cargo bench -p skep-network --bench overlay` as root, with iperf3. `ROUNDS` (5) and `SECONDS` (3) may be set.
//!
//! The nodes' links are made by the network layer itself; sender, receiver and both ends of the tunnel share the machine.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

mod support;

use support::{measure, median, number};
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
    for streams in [1, 4] {
        let (mut plain, mut encrypted) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            plain.push(measure(&c.netns, &d.netns, "10.0.2.20", streams, seconds));
            encrypted.push(measure(&a.netns, &b.netns, "10.0.1.20", streams, seconds));
        }
        println!("{streams} streams, Gbit/s in order: plain {plain:.2?}, encrypted {encrypted:.2?}");
        let (plain, encrypted) = (median(&mut plain), median(&mut encrypted));
        println!(
            "{streams} streams, medians: plain {plain:.2}, encrypted {encrypted:.2}, ratio {:.2}",
            encrypted / plain
        );
    }
}
