//! How fast names of the cluster are answered: `cargo bench -p skep-network --bench dns`, optionally with the seconds
//! each run lasts. One name server as `skep net` runs it, asked on loopback by one thread that keeps 1, 16 and 64
//! questions under way. The redirection of port 53 in a container is not part of it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a benchmark")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use skep_network::dns::forward::Forwarder;
use skep_network::dns::server::{ADDRESS, Server, Settings, Sockets, open};
use skep_network::dns::upstream::NodeServers;
use skep_network::dns::zone::{Zone, ZoneKey, Zones};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Services of the network.
const SERVICES: u32 = 1000;

fn main() {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(2.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let key = ZoneKey::Bridge("back".into());
    let mut zone = Zone::new("back");
    for number in 0..SERVICES {
        zone.add(&format!("web{number}"), Ipv4Addr::from(0x0a00_0100 + number));
        for task in 0..10 {
            zone.add(&format!("tasks.web{number}"), Ipv4Addr::from(0x0a01_0000 + number * 10 + task));
        }
    }
    let (_zones, zones) = watch::channel(Arc::new(Zones::from([(key.clone(), zone)])));
    let (udp, tcp) = open(None).unwrap();
    let forwarder = Arc::new(Forwarder::new(NodeServers::new("/etc/resolv.conf".into()), 53));
    let settings = Settings { zones: vec![key], servers: Vec::new() };
    let sockets = Sockets::new(udp, tcp).unwrap();
    let server = Server::start(sockets, settings, zones, forwarder, &TaskTracker::new()).unwrap();
    let to = SocketAddrV4::new(ADDRESS, server.ports().udp);
    for (what, name) in [("virtual address", "web7"), ("ten tasks", "tasks.web7"), ("unknown name", "nobody")] {
        for in_flight in [1, 16, 64] {
            let (count, p50) = load(to, name, in_flight, Duration::from_secs_f64(seconds));
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let rate = count as f64 / seconds;
            println!("{what:16} {in_flight:3} in flight: {rate:9.0} answers/s, p50 {p50:?}");
        }
    }
}

/// Asks for so long; gives how many were answered and the median time.
fn load(to: SocketAddrV4, name: &str, in_flight: usize, time: Duration) -> (usize, Duration) {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, RecordType::A));
    let question = message.to_vec().unwrap();
    let mut clients: Vec<(UdpSocket, Instant)> = Vec::new();
    for _ in 0..in_flight {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send(&question).unwrap();
        clients.push((socket, Instant::now()));
    }
    let (began, mut taken, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
    while began.elapsed() < time {
        for (socket, asked) in &mut clients {
            socket.recv(&mut buffer).expect("every question is answered");
            taken.push(asked.elapsed());
            *asked = Instant::now();
            socket.send(&question).unwrap();
        }
    }
    taken.sort_unstable();
    (taken.len(), taken[taken.len() / 2])
}
