//! What the size of the cluster costs a node: `cargo bench -p skep-network --bench scale` as root. `ROUNDS` (50) may be set;
//! words after `--` choose parts: `moves`, `names`, `connect`, `apart`, `swaps`.
//!
//! - A node with tasks on a network of a thousand nodes and a thousand services is told that one task moved; the same where all
//!   tasks are of one service, and where all services are published. With ten tasks of its own and with sixty: what fifty more
//!   cost is what each costs.
//! - What the names of that take, with a name server that keeps them on disk; where tasks move, there is one that only remembers.
//! - How long a connection to a virtual address takes with 1, 100 and 1,000 tasks behind it, in turn with one to a task.
//! - The same with each task in a namespace of its own, and how long making and removing those takes.
//! - How many connections fail while the tasks behind a virtual address are all replaced, 100 by 1,000 and back.
//!
//! The kernel is the real one, the other nodes exist in what the managers say alone. In `connect` and `swaps` all tasks are addresses
//! of the client's own namespace: its neighbours and theirs would be measured otherwise.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skep_network::netd::{self, NetdConfig};
use skep_network::plan::change::Backends;
use skep_network::plan::names::{Book, Sources};
use skep_proto::model::node::WireGuard;
use skep_proto::model::service::Protocol;
use skep_proto::model::view::{EndpointAddress, EndpointView, NetworkView, Peer};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};
use world::load::{Clients, serve_slowly};
use world::{World, eventually, run, serve_tcp, within};

const NODES: u16 = 1000;
const SERVICES: u32 = 1000;
const TASKS_EACH: u32 = 10;
/// Tasks of the node that is measured: some, and more.
const HERE: [u32; 2] = [10, 60];
/// Connections that are measured in each turn.
const TURN: u32 = 400;

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
async fn cluster(nodes: u16, services: u32, each: u32, published: bool) -> (World, NetworkId) {
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
        let port = published.then_some((Protocol::Tcp, 20_000 + u16::try_from(number).unwrap(), 80));
        let service = w.service(u128::from(number), network, &text(0x100 + number), port.as_slice());
        for task in 0..each {
            let number = (number - 1) * each + task + 1;
            let node = NodeId(u128::from(number % u32::from(nodes - 1) + 2));
            endpoint(&mut w, number, service, network, node);
        }
    }
    let began = Instant::now();
    w.apply().await;
    println!("first view, no task here: {:.1?}", began.elapsed());
    (w, network)
}

/// Has a task of another node go to yet another one, with another address.
fn move_one(w: &mut World, network: NetworkId, each: u32, next: &mut u32, round: u32) {
    let old = HERE[1] + 1 + round;
    let service = ServiceId(u128::from((old - 1) / each + 1));
    let left =
        w.view.endpoints.values().find(|task| task.service == Some(service) && task.task.0 > u128::from(HERE[1]));
    let left = left.unwrap().task;
    w.view.endpoints.remove(&left);
    endpoint(w, *next, service, network, NodeId(u128::from(round % 900 + 2)));
    *next += 1;
}

/// Moves one task after the other to another node, with another address, and tells the node of each. Gives the median time.
async fn move_tasks(w: &mut World, network: NetworkId, each: u32, next: &mut u32) -> (Duration, Duration) {
    let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
    for round in 0..rounds() {
        move_one(w, network, each, next, round);
        let view = Arc::new(w.view.clone());
        let (began, before) = (Instant::now(), cpu());
        w.nodes[0].network.apply(view).await.unwrap();
        times.push(began.elapsed());
        spent += cpu() - before;
    }
    (median(times), spent / rounds())
}

/// Moves tasks as above; tells what it takes to plan the names that differ, and to have the name server serve and keep them.
async fn move_names(services: u32, each: u32) {
    let (mut w, network) = cluster(NODES, services, each, false).await;
    let mut next = services * each + 1;
    let sources = |view: &NetworkView| Sources {
        view: Arc::new(view.clone()),
        backends: Backends::of(view),
        ..Sources::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let config = NetdConfig::new(folder.path());
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(netd::run(config)).unwrap();
    });
    while !folder.path().join("netd.sock").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let client = netd::Client::start(netd::ClientConfig::new(folder.path(), "/nonexistent")).await.unwrap();
    let began = Instant::now();
    let mut book = Book::of(sources(&w.view));
    let planned = began.elapsed();
    let (zones, began) = (book.zones().clone(), Instant::now());
    client.put_zones(zones).await.unwrap();
    println!("all names: planned in {planned:.2?}, told in {:.2?}", began.elapsed());
    let (mut planned, mut told) = (Vec::new(), Vec::new());
    for round in 0..rounds() {
        move_one(&mut w, network, each, &mut next, round);
        let now = sources(&w.view);
        let began = Instant::now();
        let patch = book.follow(now);
        planned.push(began.elapsed());
        let began = Instant::now();
        assert!(client.patch_zones(patch).await.unwrap());
        told.push(began.elapsed());
    }
    println!("names of one task moved: planned in {:.2?}, told in {:.2?}", median(planned), median(told));
    client.stop().await.unwrap();
    serving.join().unwrap();
}

async fn moves(services: u32, each: u32, published: bool) {
    let (mut w, network) = cluster(NODES, services, each, published).await;
    let (mut next, mut all) = (services * each + 1, Vec::new());
    for here in HERE {
        let (began, mut made) = (Instant::now(), 0);
        for number in 1..=here {
            let id = TaskId(u128::from(number));
            if w.view.endpoints[&id].node == w.nodes[0].id {
                continue;
            }
            let service = ServiceId(u128::from((number - 1) / each + 1));
            w.task(id.0, 0, Some(service), network, &text(task_address(number))).await;
            made += 1;
        }
        println!("{made} sandboxes made, {:.1?} each", began.elapsed() / made);
        w.apply().await;
        let (took, spent) = move_tasks(&mut w, network, each, &mut next).await;
        println!("one task moved, {here} namespaces: median {took:.2?}, processor {spent:.2?} each");
        all.push((took, spent));
    }
    let more = HERE[1] - HERE[0];
    let (took, spent) = (all[1].0.saturating_sub(all[0].0) / more, all[1].1.saturating_sub(all[0].1) / more);
    println!("each further namespace: {took:.2?}, processor {spent:.2?}");
}

/// A node with one sandbox, which answers at all addresses of tasks itself, and services with that many of them.
async fn alone(counts: &[u32]) -> (World, skep_network::Sandbox) {
    let mut w = World::new(1);
    let network = w.network(7);
    let subnet = &mut w.view.networks.get_mut(&network).unwrap().subnets[0];
    (subnet.subnet, subnet.gateway) = ("10.7.0.0/16".parse().unwrap(), "10.7.0.1".parse().unwrap());
    let node = w.nodes[0].id;
    for (service, count) in (1..).zip(counts) {
        let id = w.service(u128::from(service), network, &text(0x100 + service), &[]);
        for number in 1..=*count {
            endpoint(&mut w, service * 0x1000 + number, id, network, node);
        }
    }
    w.apply().await;
    let client = w.task(1, 0, None, network, "10.7.250.1/16").await;
    run(&format!("nsenter --net={} ip route add local 10.7.32.0/19 dev lo", client.netns.display()));
    run(&format!("nsenter --net={} ip route add local 10.7.64.0/18 dev lo", client.netns.display()));
    w.apply().await;
    (w, client)
}

/// Services with so many tasks behind their virtual addresses.
const BEHIND: [u32; 3] = [1, 100, 1000];

fn vip(service: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(0x0a07_0100 + service).into(), 80)
}

async fn connect() {
    let (_w, client) = alone(&BEHIND).await;
    serve_tcp(&client.netns, 80, "here");
    let direct = SocketAddr::new(Ipv4Addr::from(0x0a07_0000 + task_address(0x1001)).into(), 80);
    compare(&client.netns, &[direct]);
}

/// Each task is a sandbox. All of the services are the same ones: a bridge has no more than 1,024 ports.
async fn apart() {
    let _room = Neighbours::make_room();
    let mut w = World::new(1);
    let network = w.network(7);
    let subnet = &mut w.view.networks.get_mut(&network).unwrap().subnets[0];
    (subnet.subnet, subnet.gateway) = ("10.7.0.0/16".parse().unwrap(), "10.7.0.1".parse().unwrap());
    for service in 1..=3 {
        w.service(u128::from(service), network, &text(0x100 + service), &[]);
    }
    w.apply().await;
    let client = w.task(0x9000, 0, None, network, "10.7.250.1/16").await;
    let (began, [.., most]) = (Instant::now(), BEHIND);
    let (mut direct, stop) = (Vec::new(), Arc::new(AtomicBool::default()));
    for number in 1..=most {
        let address = task_address(number);
        let made = w.task(u128::from(number), 0, Some(ServiceId(3)), network, &text(address)).await;
        serve_until(&made.netns, &stop);
        direct.push(SocketAddr::new(Ipv4Addr::from(0x0a07_0000 + address).into(), 80));
    }
    println!("{most} sandboxes made, {:.1?} each", began.elapsed() / most);
    for (service, count) in (1..).zip(&BEHIND[..2]) {
        for number in 1..=*count {
            let mut same = w.view.endpoints[&TaskId(u128::from(number))].clone();
            (same.task, same.service) =
                (TaskId(u128::from(service * 0x1_0000 + number)), Some(ServiceId(service.into())));
            w.view.endpoints.insert(same.task, same);
        }
    }
    let began = Instant::now();
    w.apply().await;
    println!("told to all of them at once in {:.1?}", began.elapsed());
    compare(&client.netns, &direct);
    // A namespace ends with its last socket.
    stop.store(true, Ordering::Relaxed);
    connections(&client.netns, &direct, most);
    let began = Instant::now();
    drop(w);
    println!("removed, {:.1?} each", began.elapsed() / most);
}

/// Accepts connections until one that comes after `stop` was set.
fn serve_until(netns: &Path, stop: &Arc<AtomicBool>) {
    let (listener, stop) = (within(netns, || TcpListener::bind("0.0.0.0:80").unwrap()).join().unwrap(), stop.clone());
    std::thread::spawn(move || listener.incoming().take_while(|_| !stop.load(Ordering::Relaxed)).for_each(drop));
}

/// What a daemon in the host's own namespace sees to: room for the neighbours of all sandboxes together. Taken back when dropped.
struct Neighbours(Vec<(String, String)>);

impl Neighbours {
    fn make_room() -> Self {
        let paths = (1..=3).map(|level| format!("/proc/sys/net/ipv4/neigh/default/gc_thresh{level}"));
        let before = paths.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect();
        let room = Self(before);
        room.0.iter().rev().for_each(|(path, _)| std::fs::write(path, "16384").unwrap());
        room
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.0.iter().for_each(|(path, text)| std::fs::write(path, text).unwrap());
    }
}

/// Connects in turn to tasks themselves and to the virtual addresses.
fn compare(netns: &Path, direct: &[SocketAddr]) {
    let mut ways = vec![("a task".to_owned(), direct.to_vec())];
    ways.extend((1..).zip(BEHIND).map(|(service, count)| (format!("{count} behind"), vec![vip(service)])));
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..rounds() {
        for ((_, to), times) in ways.iter().zip(&mut times) {
            times.push(connections(netns, to, TURN));
        }
    }
    for ((name, _), mut times) in ways.into_iter().zip(times) {
        times.sort_unstable();
        let (least, most) = (times[times.len() / 10], times[times.len() * 9 / 10]);
        println!("connect, {name}: median {:.1?}, 10 to 90 % of the turns {least:.1?} to {most:.1?}", median(times));
    }
}

fn connections(netns: &Path, to: &[SocketAddr], count: u32) -> Duration {
    let to = to.to_vec();
    let all = move || {
        let once = |to: &SocketAddr| {
            let began = Instant::now();
            let mut stream = TcpStream::connect(to).unwrap();
            let taken = began.elapsed();
            let _ = stream.read_to_end(&mut Vec::new());
            taken
        };
        to.iter().cycle().take(count as usize).map(once).collect()
    };
    median(within(netns, all).join().unwrap())
}

async fn swaps() {
    let (mut w, client) = alone(&[1100]).await;
    serve_slowly(&client.netns);
    let serve = |w: &mut World, numbers: std::ops::Range<u32>| {
        for number in 1..=1100 {
            let id = TaskId(u128::from(0x1000 + number));
            w.view.endpoints.get_mut(&id).unwrap().serving = numbers.contains(&number);
        }
    };
    serve(&mut w, 1..101);
    w.apply().await;
    let clients = Clients::start(&client.netns, "10.7.1.1:80", 4);
    let mut times = Vec::new();
    for swap in 0..50 {
        let before = clients.answered.load(Ordering::Relaxed);
        eventually("more answers", || clients.answered.load(Ordering::Relaxed) > before + 100);
        serve(&mut w, if swap % 2 == 0 { 101..1101 } else { 1..101 });
        let view = Arc::new(w.view.clone());
        let began = Instant::now();
        w.nodes[0].network.apply(view).await.unwrap();
        times.push(began.elapsed());
    }
    let (answered, failures) = clients.finish();
    let took = median(times);
    println!("50 swaps of 100 and 1,000 tasks, {took:.1?} each: {answered} connections, {} failed", failures.len());
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if is_wanted("moves") {
        println!("{NODES} nodes, {SERVICES} services of {TASKS_EACH} tasks");
        moves(SERVICES, TASKS_EACH, false).await;
        println!("{NODES} nodes, {SERVICES} published services of {TASKS_EACH} tasks");
        moves(SERVICES, TASKS_EACH, true).await;
        println!("{NODES} nodes, one service of 1000 tasks");
        moves(1, 1000, false).await;
    }
    if is_wanted("names") {
        println!("names of {NODES} nodes, {SERVICES} services of {TASKS_EACH} tasks");
        move_names(SERVICES, TASKS_EACH).await;
    }
    if is_wanted("connect") {
        println!("connections, the tasks in the client's namespace");
        connect().await;
    }
    if is_wanted("apart") {
        println!("connections, each task in its own namespace");
        apart().await;
    }
    if is_wanted("swaps") {
        swaps().await;
    }
}
