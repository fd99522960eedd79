//! The name server's process in real network namespaces.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skep_network::dns::zone::{Zone, ZoneKey, Zones};
use skep_network::netd::{Client, ClientConfig};
use skep_network::{DnsPorts, SandboxDns, SandboxId};

/// An address of IPv6 that a name has.
const SIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 6);
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// A namespace with its loopback link up, removed when dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("netdns-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]);
        let made = Self(name);
        ip(&["-n", &made.0, "link", "set", "lo", "up"]);
        made
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `f` in a thread of its own inside.
    fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
            f()
        })
    }

    fn ask(&self, port: u16, name: &str, kind: RecordType) -> Message {
        let name = name.to_owned();
        self.run(move || ask(&client(port), &name, kind, 1).expect("no answer")).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Ends the process of a folder, also when the test fails.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self) -> ClientConfig {
        let test = std::env::current_exe().unwrap();
        let exe = test.parent().unwrap().parent().unwrap().join("examples/netd");
        ClientConfig::new(self.0.path(), exe)
    }

    /// Processes that serve this folder.
    fn processes(&self) -> Vec<i32> {
        let dir = self.0.path().to_str().unwrap().as_bytes();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.split(|b| *b == 0).any(|word| word == dir)
            })
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid);
        }
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

fn client(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((SERVER, 0)).unwrap();
    socket.connect((SERVER, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn question(name: &str, kind: RecordType, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask(socket: &UdpSocket, name: &str, kind: RecordType, id: u16) -> std::io::Result<Message> {
    socket.send(&question(name, kind, id))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, id);
    Ok(reply)
}

fn addresses(reply: &Message) -> BTreeSet<IpAddr> {
    reply.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn key(name: &str) -> ZoneKey {
    ZoneKey::Bridge(name.into())
}

fn address(network: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, network, last)
}

fn zones() -> Zones {
    let mut red = Zone::new("red");
    red.add("web", address(1, 1));
    red.add("web", SIX);
    red.add("six", SIX);
    for last in 0..200 {
        red.add("many", address(2, last));
    }
    let mut blue = Zone::new("blue");
    blue.add("web", address(3, 1));
    Zones::from([(key("red"), red), (key("blue"), blue)])
}

fn sandbox(id: &str, namespace: &Namespace, zone: &str) -> SandboxDns {
    SandboxDns {
        id: SandboxId::new(id).unwrap(),
        netns: namespace.path(),
        zones: vec![key(zone)],
        servers: vec![IpAddr::from([127, 0, 0, 11])],
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn each_sandbox_is_answered_from_its_own_zones() {
    let (folder, red, blue) = (Folder::new(), Namespace::new("a1"), Namespace::new("a2"));
    let netd = Client::start(folder.config()).await.unwrap();
    netd.put_zones(zones()).await.unwrap();
    let red_ports = netd.put_sandbox(sandbox("red", &red, "red")).await.unwrap();
    let blue_ports = netd.put_sandbox(sandbox("blue", &blue, "blue")).await.unwrap();
    assert_eq!(netd.put_sandbox(sandbox("red", &red, "red")).await.unwrap(), red_ports);

    assert_eq!(addresses(&red.ask(red_ports.udp, "web.", RecordType::A)), [address(1, 1).into()].into());
    assert_eq!(addresses(&blue.ask(blue_ports.udp, "WEB.blue.", RecordType::A)), [address(3, 1).into()].into());
    for name in ["web.", "six.red."] {
        assert_eq!(addresses(&red.ask(red_ports.udp, name, RecordType::AAAA)), [SIX.into()].into());
    }
    let six = red.ask(red_ports.udp, "six.", RecordType::A);
    assert_eq!((six.metadata.response_code, six.answers.len()), (ResponseCode::NoError, 0));
    let reverse = format!("6.{}1.0.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(23));
    assert_eq!(red.ask(red_ports.udp, &reverse, RecordType::PTR).answers[0].data.to_string(), "web.red.");
    let code = |name, kind| blue.ask(blue_ports.udp, name, kind).metadata.response_code;
    assert_eq!(code("many.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("web.", RecordType::AAAA), ResponseCode::NoError);
    // The only server is ourselves, who are never asked.
    assert_eq!(code("example.org.", RecordType::A), ResponseCode::ServFail);
    let pointer = blue.ask(blue_ports.udp, "1.3.0.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(pointer.answers[0].data.to_string(), "web.blue.");

    let cut = red.ask(red_ports.udp, "many.", RecordType::A);
    assert!(cut.metadata.truncation && cut.answers.len() < 200);
    let whole = red.run(move || {
        let mut stream = TcpStream::connect(SocketAddr::from((SERVER, red_ports.tcp))).unwrap();
        let packet = question("many.", RecordType::A, 9);
        stream.write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&packet).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply).unwrap();
        Message::from_vec(&reply).unwrap()
    });
    assert_eq!(addresses(&whole.join().unwrap()).len(), 200);

    // Settings change without new ports; a removed sandbox is served no more.
    assert_eq!(netd.put_sandbox(sandbox("red", &red, "blue")).await.unwrap(), red_ports);
    assert_eq!(addresses(&red.ask(red_ports.udp, "web.", RecordType::A)), [address(3, 1).into()].into());
    // An open stream must not keep a removed sandbox's namespace.
    let open = red.run(move || {
        let stream = TcpStream::connect(SocketAddr::from((SERVER, red_ports.tcp))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    });
    let mut open = open.join().unwrap();
    netd.remove_sandbox(&SandboxId::new("red").unwrap()).await.unwrap();
    assert_eq!(netd.served().await.unwrap(), [(sandbox("blue", &blue, "blue"), blue_ports)]);
    match open.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    let closed = red.run(move || ask(&client(red_ports.udp), "web.", RecordType::A, 1).unwrap_err().kind());
    assert_eq!(closed.join().unwrap(), std::io::ErrorKind::ConnectionRefused);
    netd.stop().await.unwrap();
    eventually("the process ends", || folder.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn questions_that_come_together_are_all_answered_each_as_it_was_asked() {
    const COUNT: u16 = 100;
    let (folder, inside) = (Folder::new(), Namespace::new("e1"));
    let netd = Client::start(folder.config()).await.unwrap();
    netd.put_zones(zones()).await.unwrap();
    let ports = netd.put_sandbox(sandbox("one", &inside, "red")).await.unwrap();
    let server = rustix::process::Pid::from_raw(netd.process_id().await.unwrap().cast_signed()).unwrap();
    let asking = inside.run(move || {
        let socket = client(ports.udp);
        let ask = |id: u16| match id % 3 {
            0 => question("web.", RecordType::A, id),
            1 => question("six.", RecordType::AAAA, id),
            // Read in the general way.
            _ => question("nobody.", RecordType::MX, id),
        };
        // More than are received and answered in a row wait for it.
        rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
        for id in 0..COUNT {
            socket.send(&ask(id)).unwrap();
        }
        rustix::process::kill_process(server, rustix::process::Signal::CONT).unwrap();
        let mut buffer = [0; 4096];
        let mut receive = || {
            let length = socket.recv(&mut buffer).expect("a question was lost");
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            (reply.metadata.id, (reply.queries[0].name.to_string(), addresses(&reply)))
        };
        (0..COUNT).map(|_| receive()).collect::<BTreeMap<_, _>>()
    });
    let replies = asking.join().unwrap();
    assert_eq!(replies.keys().copied().collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
    let expected = [
        ("web.".to_owned(), BTreeSet::from([IpAddr::V4(address(1, 1))])),
        ("six.".to_owned(), BTreeSet::from([IpAddr::V6(SIX)])),
        ("nobody.".to_owned(), BTreeSet::new()),
    ];
    assert!(replies.iter().all(|(id, reply)| *reply == expected[usize::from(id % 3)]), "{replies:?}");
    netd.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_name_outside_is_asked_of_the_sandboxs_server_from_the_nodes_namespace() {
    let (folder, inside) = (Folder::new(), Namespace::new("d1"));
    // An address of the node's loopback link, which the sandbox itself cannot reach.
    let [.., high, low] = std::process::id().to_be_bytes();
    let server = Ipv4Addr::new(127, 66, high, low);
    let outside = UdpSocket::bind((server, 53)).unwrap();
    outside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let netd = Client::start(folder.config()).await.unwrap();
    let asked = SandboxDns { servers: vec![server.into()], ..sandbox("out", &inside, "red") };
    let ports = netd.put_sandbox(asked).await.unwrap();
    let serving = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, client) = outside.recv_from(&mut buffer).unwrap();
        let mut reply = Message::from_vec(&buffer[..length]).unwrap();
        reply.metadata.message_type = MessageType::Response;
        let name = reply.queries[0].name.clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::A(Ipv4Addr::new(192, 0, 2, 7).into())));
        outside.send_to(&reply.to_vec().unwrap(), client).unwrap();
    });
    let reply = inside.ask(ports.udp, "example.org.", RecordType::A);
    assert_eq!(addresses(&reply), [Ipv4Addr::new(192, 0, 2, 7).into()].into());
    serving.join().unwrap();
    netd.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_killed_process_is_back_within_a_second_on_the_same_ports_and_without_gone_sandboxes() {
    let (folder, stays, goes) = (Folder::new(), Namespace::new("b1"), Namespace::new("b2"));
    let netd = Client::start(folder.config()).await.unwrap();
    netd.put_zones(zones()).await.unwrap();
    let ports = netd.put_sandbox(sandbox("stays", &stays, "red")).await.unwrap();
    netd.put_sandbox(sandbox("goes", &goes, "red")).await.unwrap();
    let pid = netd.process_id().await.unwrap();
    drop(goes);
    let killed = Instant::now();
    kill(i32::try_from(pid).unwrap());
    let answer = stays.run(move || {
        let socket = client(ports.udp);
        // What the dying process had taken is lost.
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        loop {
            // Until it is back, the kernel says that the port is closed.
            if let Ok(reply) = ask(&socket, "web.", RecordType::A, 3) {
                return addresses(&reply);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert_eq!(answer.join().unwrap(), [address(1, 1).into()].into());
    let away = killed.elapsed();
    println!("away for {away:?}");
    assert_eq!(addresses(&stays.ask(ports.udp, "six.", RecordType::AAAA)), [SIX.into()].into());
    assert!(away < Duration::from_secs(1), "away for {away:?}");
    assert_ne!(netd.process_id().await.unwrap(), pid);
    assert_eq!(netd.served().await.unwrap(), [(sandbox("stays", &stays, "red"), ports)]);
    netd.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_successor_takes_over_under_load_without_a_lost_question() {
    let (folder, inside) = (Folder::new(), Namespace::new("c1"));
    let netd = Client::start(folder.config()).await.unwrap();
    netd.put_zones(zones()).await.unwrap();
    let ports: DnsPorts = netd.put_sandbox(sandbox("one", &inside, "red")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..3)
        .map(|_| {
            let stop = stop.clone();
            inside.run(move || {
                let socket = client(ports.udp);
                let (mut count, start) = (0u32, Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    let id = u16::try_from(count & 0xffff).unwrap();
                    let reply = ask(&socket, "web.", RecordType::A, id).expect("a question was lost");
                    assert_eq!(reply.answers.len(), 1);
                    count += 1;
                }
                f64::from(count) / start.elapsed().as_secs_f64()
            })
        })
        .collect();
    let mut pids = BTreeSet::from([netd.process_id().await.unwrap()]);
    for _ in 0..3 {
        pids.insert(netd.replace().await.unwrap());
    }
    assert_eq!(pids.len(), 4);
    assert_eq!(addresses(&inside.ask(ports.udp, "six.", RecordType::AAAA)), [SIX.into()].into());
    // Changes reach the successor.
    netd.put_sandbox(sandbox("one", &inside, "blue")).await.unwrap();
    eventually("the predecessors are gone", || folder.processes().len() == 1);
    stop.store(true, Ordering::Relaxed);
    let rates: Vec<f64> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    println!("questions per second of each client: {rates:.0?}");
    assert_eq!(addresses(&inside.ask(ports.udp, "web.", RecordType::A)), [address(3, 1).into()].into());
    netd.stop().await.unwrap();
}
