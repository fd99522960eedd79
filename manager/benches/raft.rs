//! Committed writes a second on three managers in one process over loopback, with their disks in a temporary folder, and
//! appends a second of the log alone. Prints figures; `cargo bench -p skep-manager --bench raft`.

#![allow(clippy::unwrap_used)] // test code

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use skep_manager::raft::disk::Folder;
use skep_manager::raft::log::{LogStore, Seal, SegmentSizes, Workers};
use skep_manager::raft::seal::{Sealer, SecretKey};
use skep_manager::raft::types::{Payload, TypeConfig};
use support::{Group, Node, leader_of, propose};

const TIME: Duration = Duration::from_secs(3);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        log_alone(256, 1).await;
        log_alone(256, 64).await;
        log_alone(4096, 64).await;
        let group = Group::new(|_| {});
        let nodes = Arc::new(group.form(3).await);
        let leader = leader_of(&nodes).await;
        for clients in [1, 16, 64] {
            writes("on the leader", &nodes, leader, clients).await;
        }
        for clients in [1, 16, 64] {
            writes("through a follower", &nodes, (leader + 1) % 3, clients).await;
        }
    });
}

fn report(what: &str, count: u64, took: Duration, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let rate = count as f64 / took.as_secs_f64();
    println!("{what}: {rate:.0}/s, p50 {:?}, p99 {:?}", at(0.5), at(0.99));
}

/// Writes of 256 bytes, each awaited by its client.
async fn writes(what: &str, nodes: &Arc<Vec<Node>>, through: usize, clients: usize) {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let value = "x".repeat(256);
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (nodes, next, value) = (Arc::clone(nodes), Arc::clone(&next), value.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while began.elapsed() < TIME {
                    let key = (next.fetch_add(1, Ordering::Relaxed) % 100).to_string();
                    let sent = Instant::now();
                    propose(&nodes[through], &key, &value).await.unwrap();
                    latencies.push(sent.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    report(&format!("{clients} clients {what}"), latencies.len() as u64, began.elapsed(), latencies);
}

/// Durable appends to the log, with `ahead` of them in flight.
async fn log_alone(bytes: usize, ahead: usize) {
    let dir = tempfile::tempdir().unwrap();
    let sealer = Arc::new(Sealer::new(&[(1, SecretKey::random())], rand::random()));
    let seal = Seal { cluster: [0; 16], sealer };
    let disk = Arc::new(Folder::open(dir.path().join("log")).unwrap());
    let mut log = LogStore::open(disk, seal, SegmentSizes::default(), Workers::Threads).unwrap();
    let payload = Payload(vec![7; bytes].into());
    let (mut latencies, mut in_flight) = (Vec::new(), std::collections::VecDeque::new());
    let began = Instant::now();
    let mut index = 0;
    while began.elapsed() < TIME {
        while in_flight.len() < ahead {
            index += 1;
            let entry = support::entry(1, index, payload.clone());
            let (tx, rx) = TypeConfig::oneshot();
            log.append([entry], IOFlushed::signal(tx)).await.unwrap();
            in_flight.push_back((Instant::now(), rx));
        }
        let (sent, rx) = in_flight.pop_front().unwrap();
        rx.await.unwrap().unwrap();
        latencies.push(sent.elapsed());
    }
    report(&format!("log, {bytes} bytes, {ahead} ahead"), latencies.len() as u64, began.elapsed(), latencies);
}
