//! What the size of the cluster costs a node: `cargo bench -p skep-network --bench scale` as root. `ROUNDS` (50) and `TASKS`
//! (300) may be set.
//!
//! A node with ten tasks on a network of a thousand nodes and a thousand services is told that one task moved; the same
//! where all tasks are of one service; and how long a connection to a virtual address takes to be made with 1, 100 and
//! `TASKS` tasks behind it (the kernel's table of neighbours has 1,024 by default). The kernel is the real one, the other nodes exist in what the managers say alone.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_proto::model::node::WireGuard;
use skep_proto::model::view::{EndpointAddress, EndpointView, Peer};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};
use world::{World, serve_tcp, within};

const NODES: u16 = 1000;
const SERVICES: u32 = 1000;
const TASKS_EACH: u32 = 10;
/// Tasks of the node that is measured.
const HERE: u32 = 10;

fn rounds() -> u32 {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// Time of a processor that this process, with its threads, has used: to 10 ms (proc_pid_stat(5), fields 14 and 15).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn text(address: u32) -> String {
    format!("{}/16", Ipv4Addr::from(0x0a07_0000 + address))
}

/// Address of a task: behind those of the services.
fn task_address(number: u32) -> u32 {
    0x2000 + number
}

fn endpoint(w: &mut World, number: u32, service: ServiceId, network: NetworkId, node: NodeId) {
    let address = text(task_address(number)).parse().unwrap();
    let endpoint = EndpointView {
        task: TaskId(u128::from(number)),
        service: Some(service),
        node,
        name: format!("task{number}"),
        addresses: vec![EndpointAddress { network, address, aliases: Vec::new(), names: Vec::new() }],
        mesh: Some(IpAddr::V4(Ipv4Addr::from(0x6440_0000 + number))),
        serving: true,
    };
    w.view.endpoints.insert(endpoint.task, endpoint);
}

/// A node of a cluster of that many, with tasks of the first services.
async fn cluster(nodes: u16, services: u32, each: u32) -> (World, NetworkId, Vec<skep_network::Sandbox>) {
    let mut w = World::new(1);
    for index in 2..=nodes {
        let node = NodeId(u128::from(index));
        let data_path = vec![IpAddr::V4(Ipv4Addr::from(0x0a63_1000 + u32::from(index)))];
        let mut key = [7; 32];
        key[..2].copy_from_slice(&index.to_be_bytes());
        let wireguard = Some(WireGuard { port: 51820, key, next: None });
        w.view.peers.insert(node, Peer { node, index, data_path, wireguard, ipv4_only: false });
    }
    let network = w.network(7);
    let subnet = &mut w.view.networks.get_mut(&network).unwrap().subnets[0];
    (subnet.subnet, subnet.gateway) = ("10.7.0.0/16".parse().unwrap(), "10.7.0.1".parse().unwrap());
    for number in 1..=services {
        let service = w.service(u128::from(number), network, &text(0x100 + number), &[]);
        for task in 0..each {
            let number = (number - 1) * each + task + 1;
            let node = NodeId(u128::from(number % u32::from(nodes - 1) + 2));
            endpoint(&mut w, number, service, network, node);
        }
    }
    let began = Instant::now();
    w.apply().await;
    println!("first view, no task here: {:.1?}", began.elapsed());
    let mut here = Vec::new();
    for number in 1..=HERE {
        let service = ServiceId(u128::from((number - 1) / each + 1));
        here.push(w.task(u128::from(number), 0, Some(service), network, &text(task_address(number))).await);
    }
    let began = Instant::now();
    w.apply().await;
    println!("{HERE} tasks here, all that is behind them: {:.1?}", began.elapsed());
    (w, network, here)
}

/// Moves one task after the other to another node, with another address, and tells the node of each.
async fn move_tasks(w: &mut World, network: NetworkId, each: u32, of: u32) {
    let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
    for round in 0..rounds() {
        let old = HERE + 1 + round;
        let service = ServiceId(u128::from((old - 1) / each + 1));
        w.view.endpoints.remove(&TaskId(u128::from(old)));
        endpoint(w, of + 1 + round, service, network, NodeId(u128::from(round % 900 + 2)));
        let view = Arc::new(w.view.clone());
        let (began, before) = (Instant::now(), cpu());
        w.nodes[0].network.apply(view).await.unwrap();
        times.push(began.elapsed());
        spent += cpu() - before;
    }
    let spent = spent / rounds();
    println!("one task moved, {HERE} namespaces: median {:.2?}, processor {spent:.2?} each", median(times));
}

/// Median time to connect from one namespace, and the same again without the virtual address.
async fn connect(behind: u32) {
    let mut w = World::new(1);
    let network = w.network(7);
    let subnet = &mut w.view.networks.get_mut(&network).unwrap().subnets[0];
    (subnet.subnet, subnet.gateway) = ("10.7.0.0/16".parse().unwrap(), "10.7.0.1".parse().unwrap());
    let service = w.service(1, network, "10.7.0.200/16", &[]);
    w.apply().await;
    let began = Instant::now();
    let mut first = None;
    for number in 1..=behind {
        let task = w.task(u128::from(number), 0, Some(service), network, &text(task_address(number))).await;
        serve_tcp(&task.netns, 80, "here");
        first.get_or_insert(Ipv4Addr::from(0x0a07_0000 + task_address(number)));
    }
    let made = began.elapsed() / behind;
    let client = w.task(100_000, 0, None, network, "10.7.250.1/16").await;
    w.apply().await;
    let count = 4000;
    let direct = connections(&client.netns, SocketAddr::new(first.unwrap().into(), 80), count);
    let led = connections(&client.netns, "10.7.0.200:80".parse().unwrap(), count);
    println!(
        "{behind} tasks: connect {direct:.1?} directly, {led:.1?} by the virtual address ({made:.1?} to make each)"
    );
}

fn connections(netns: &Path, to: SocketAddr, count: u32) -> Duration {
    let all = move || {
        let once = || {
            let began = Instant::now();
            let mut stream = TcpStream::connect(to).unwrap();
            let taken = began.elapsed();
            let _ = stream.read_to_end(&mut Vec::new());
            taken
        };
        (0..count).map(|_| once()).collect()
    };
    median(within(netns, all).join().unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    println!("{NODES} nodes, {SERVICES} services of {TASKS_EACH} tasks");
    let (mut w, network, here) = cluster(NODES, SERVICES, TASKS_EACH).await;
    move_tasks(&mut w, network, TASKS_EACH, SERVICES * TASKS_EACH).await;
    drop((w, here));
    println!("{NODES} nodes, one service of 1000 tasks");
    let (mut w, network, here) = cluster(NODES, 1, 1000).await;
    move_tasks(&mut w, network, 1000, 1000).await;
    drop((w, here));
    let most = std::env::var("TASKS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    for behind in [1, 100, most] {
        connect(behind).await;
    }
}
