//! How fast a container's questions for names of the cluster are answered: `cargo bench -p skep-network --bench dns` as
//! root. `SECONDS` (2) of each run and `SERVICES` (1000) may be set, and with `RUN` a command that is run in the sandbox in
//! place of the client here, by a shell.
//!
//! A real sandbox, whose rules redirect port 53 to a name server that is a process of its own, as `skep net` is. One
//! thread keeps 1, 16 and 64 questions under way, each on a socket of its own, and asks the next as each is answered.
//! `dns ask SERVER NAME SECONDS IN_FLIGHT` is that client alone, for the namespace of anybody else's container.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, missing_docs, reason = "a benchmark")]

#[path = "../tests/world/mod.rs"]
mod world;

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skep_network::Sandbox;
use skep_network::netd::NetdConfig;
use skep_proto::model::view::{EndpointAddress, EndpointView};
use skep_proto::model::{NodeId, ServiceId, TaskId};
use world::served::Served;
use world::{World, run, within};

/// Tasks of each service.
const TASKS: u32 = 10;
/// What is asked for: a virtual address, ten addresses, a name that nobody has.
const NAMES: [&str; 3] = ["service7", "tasks.service7", "nobody"];
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// After how long an answer is given up.
const PATIENCE: Duration = Duration::from_secs(2);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["net", "--dir", dir] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(skep_network::netd::run(NetdConfig::new(dir))).unwrap();
        }
        ["ask", server, name, seconds, in_flight] => {
            let to = SocketAddr::new(server.parse().unwrap(), 53);
            let time = Duration::from_secs_f64(seconds.parse().unwrap());
            println!("{}", load(to, name, in_flight.parse().unwrap(), time));
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(measure());
        }
    }
}

async fn measure() {
    let seconds = support::number("SECONDS", 2);
    let folder = tempfile::tempdir().unwrap();
    let mut w = World::new(1);
    let names = Served::start(&mut w, 0, folder.path(), &std::env::current_exe().unwrap()).await;
    let sandbox = cluster(&mut w, support::number("SERVICES", 1000)).await;
    if let Ok(command) = std::env::var("RUN") {
        println!("{}", run(&format!("nsenter --net={} {command}", sandbox.netns.display())));
    } else {
        let server = names.client().process_id().await.unwrap();
        for name in NAMES {
            for in_flight in [1, 16, 64] {
                let (to, time) = (SocketAddr::from((SERVER, 53)), Duration::from_secs(seconds.into()));
                let before = cpu(server);
                let run = within(&sandbox.netns, move || load(to, name, in_flight, time)).join().unwrap();
                println!("{run}, {:.1?} of the server's processor each", (cpu(server) - before) / run.answers);
            }
        }
    }
    drop(w);
}

/// A node whose containers know so many services, and a container there.
async fn cluster(w: &mut World, services: u32) -> Sandbox {
    let network = w.network(7);
    let subnet = &mut w.view.networks.get_mut(&network).unwrap().subnets[0];
    (subnet.subnet, subnet.gateway) = ("10.7.0.0/16".parse().unwrap(), "10.7.0.1".parse().unwrap());
    let text = |address: u32| format!("{}/16", Ipv4Addr::from(0x0a07_0000 + address));
    for number in 1..=services {
        let service = w.service(number.into(), network, &text(0x100 + number), &[]);
        for task in 0..TASKS {
            let number = (number - 1) * TASKS + task;
            let endpoint = EndpointView {
                task: TaskId(u128::from(number)),
                service: Some(service),
                node: NodeId(u128::from(2 + task)),
                name: format!("task{number}"),
                addresses: vec![EndpointAddress {
                    network,
                    address: text(0x2000 + number).parse().unwrap(),
                    aliases: Vec::new(),
                    names: Vec::new(),
                }],
                mesh: None,
                serving: true,
            };
            w.view.endpoints.insert(endpoint.task, endpoint);
        }
    }
    w.apply().await;
    let sandbox = w.task(1_000_000, 0, Some(ServiceId(1_000_000)), network, "10.7.255.1/16").await;
    w.apply().await;
    sandbox
}

/// What came of asking.
struct Run {
    name: String,
    in_flight: usize,
    rate: f64,
    answers: u32,
    unanswered: u32,
    /// The median, and what one of a hundred exceeds.
    p50: Duration,
    p99: Duration,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, in_flight, rate, unanswered, p50, p99, .. } = self;
        write!(f, "{name:16} {in_flight:3} in flight: {rate:8.0} answers/s, p50 {p50:.1?}, p99 {p99:.1?}")?;
        if *unanswered > 0 { write!(f, ", {unanswered} not answered") } else { Ok(()) }
    }
}

/// Asks for so long with so many sockets.
fn load(to: SocketAddr, name: &str, in_flight: usize, time: Duration) -> Run {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut asked = Name::from_ascii(name).unwrap();
    asked.set_fqdn(true);
    message.add_query(Query::query(asked, RecordType::A));
    let question = message.to_vec().unwrap();
    let mut clients: Vec<(UdpSocket, Instant)> = Vec::new();
    for _ in 0..in_flight {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.send(&question).unwrap();
        clients.push((socket, Instant::now()));
    }
    let (began, mut taken, mut unanswered, mut buffer) = (Instant::now(), Vec::new(), 0, [0; 4096]);
    while began.elapsed() < time {
        let mut ready: Vec<PollFd<'_>> = clients.iter().map(|(s, _)| PollFd::new(s, PollFlags::IN)).collect();
        poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        let now = Instant::now();
        for ((socket, asked), ready) in clients.iter_mut().zip(ready) {
            if ready {
                assert!(socket.recv(&mut buffer).expect("an answer") >= question.len());
                taken.push(now - *asked);
            } else if now - *asked > PATIENCE {
                unanswered += 1;
            } else {
                continue;
            }
            *asked = Instant::now();
            socket.send(&question).unwrap();
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    taken.sort_unstable();
    let answers = u32::try_from(taken.len()).unwrap();
    let at = |share: usize| taken.get(taken.len() * share / 100).copied().unwrap_or_default();
    let (name, rate) = (name.to_owned(), f64::from(answers) / seconds);
    Run { name, in_flight, rate, answers, unanswered, p50: at(50), p99: at(99) }
}

/// Time of a processor that a process, with its threads, has used: to 10 ms (proc_pid_stat(5), fields 14 and 15).
fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}
