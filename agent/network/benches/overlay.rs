//! Throughput of a plain and of an encrypted network between two nodes that are namespaces of one machine, run by run in
//! turn: `cargo bench -p skep-network --bench overlay` as root, with iperf3. `ROUNDS` (5) and `SECONDS` (3) may be set.
//!
//! The nodes' links are made by the network layer itself; sender, receiver and both ends of the tunnel share the machine.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::path::Path;
use std::process::{Command, Stdio};

use world::World;

fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Gbit/s that arrive.
fn measure(from: &Path, to: &Path, address: &str, streams: u32, seconds: u32) -> f64 {
    let inside = |netns: &Path| format!("--net={}", netns.display());
    let mut server = Command::new("nsenter")
        .args([&inside(to), "iperf3", "-s", "-1", "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line says that it listens.
    let mut output = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0, "iperf3 does not listen");
    }
    let (streams, seconds) = (streams.to_string(), seconds.to_string());
    let client = Command::new("nsenter")
        .args([&inside(from), "iperf3", "-c", address, "-P", &streams, "-t", &seconds, "-f", "m"])
        .output()
        .unwrap();
    std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    server.wait().unwrap();
    let text = String::from_utf8_lossy(&client.stdout).into_owned();
    let wanted = if streams == "1" { "receiver" } else { "[SUM]" };
    let line = text.lines().rfind(|line| line.contains(wanted) && line.contains("receiver"));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&client.stderr)));
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "Mbits/sec").unwrap();
    words[at - 1].parse::<f64>().unwrap() / 1000.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

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
