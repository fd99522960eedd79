//! Devices for tests: network namespaces on a bridge, each with a WireGuard device, and a namespace for strangers.
#![allow(dead_code, reason = "each test uses its part")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skep_wireguard::{Config, Device, Options, Peer, PrivateKey, PublicKey, Status, Timers, Tuning};

static WORLDS: AtomicU32 = AtomicU32::new(0);

pub const PORT: u16 = 51820;
pub const MTU: u32 = 1420;

/// Nodes with a device each, all peers of each other.
pub struct World {
    tag: String,
    pub nodes: Vec<Node>,
    tuning: Tuning,
    outer_v6: bool,
}

pub struct Node {
    pub netns: PathBuf,
    pub key: PrivateKey,
    pub outer: IpAddr,
    pub device: Option<Device>,
}

pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `f` on a thread of its own in the namespace; threads and sockets that it makes stay there.
pub fn within<T: Send + 'static>(netns: &Path, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let netns = netns.to_owned();
    thread::spawn(move || {
        let file = openat(CWD, &netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        f()
    })
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "did not happen: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Constants of the protocol in tenths of seconds rather than minutes.
pub fn short() -> Timers {
    Timers {
        rekey_after: Duration::from_millis(700),
        reject_after: Duration::from_millis(2500),
        rekey_timeout: Duration::from_millis(300),
        rekey_jitter: Duration::from_millis(30),
        rekey_attempt: Duration::from_secs(10),
        keepalive: Duration::from_millis(500),
        ..Timers::default()
    }
}

impl World {
    pub fn new(count: usize, tuning: Tuning, outer_v6: bool) -> World {
        let tag = format!("wg{}x{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{tag}-hub");
        run(&format!(
            "ip netns add {hub} && ip -n {hub} link set lo up && ip -n {hub} link add wire type bridge && \
             ip -n {hub} addr add 10.98.0.9/24 dev wire && ip -n {hub} link set wire up"
        ));
        let mut world = World { tag, nodes: vec![], tuning, outer_v6 };
        for number in 1..=count {
            let ns = format!("{}-n{number}", world.tag);
            run(&format!(
                "ip netns add {ns} && ip -n {ns} link set lo up && \
                 ip -n {hub} link add n{number} type veth peer name uplink netns {ns} && \
                 ip -n {hub} link set n{number} master wire up && \
                 ip netns exec {ns} sh -c 'echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries' && \
                 ip -n {ns} addr add 10.98.0.{}/24 dev uplink && \
                 ip -n {ns} addr add fd98::{number}/64 dev uplink nodad && ip -n {ns} link set uplink up",
                10 + number
            ));
            let outer: IpAddr = match outer_v6 {
                true => format!("fd98::{number}").parse().unwrap(),
                false => format!("10.98.0.{}", 10 + number).parse().unwrap(),
            };
            let netns = PathBuf::from(format!("/run/netns/{ns}"));
            let key = PrivateKey::generate();
            world.nodes.push(Node { netns, key, outer, device: None });
        }
        for node in 0..count {
            world.start(node);
        }
        for node in 0..count {
            world.nodes[node].device().configure(world.config(node)).unwrap();
        }
        world
    }

    pub fn hub(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}-hub", self.tag))
    }

    pub fn ns(&self, node: usize) -> String {
        format!("{}-n{}", self.tag, node + 1)
    }

    /// Makes the device of a node and its addresses.
    pub fn start(&mut self, node: usize) {
        let listen = SocketAddr::new(if self.outer_v6 { "::" } else { "0.0.0.0" }.parse().unwrap(), PORT);
        let options = Options { name: "wg0".into(), listen, mtu: MTU };
        let tuning = self.tuning.clone();
        let made = within(&self.nodes[node].netns, move || Device::open_with(&options, tuning)).join().unwrap();
        self.nodes[node].device = Some(made.unwrap());
        let (ns, number) = (self.ns(node), node + 1);
        run(&format!(
            "ip -n {ns} addr add 10.77.0.{number}/24 dev wg0 && ip -n {ns} addr add fd77::{number}/64 dev wg0 nodad && \
             ip -n {ns} link set wg0 up"
        ));
    }

    /// All other nodes as peers.
    pub fn config(&self, node: usize) -> Config {
        let peers = self.nodes.iter().enumerate().filter(|(i, _)| *i != node).map(|(i, other)| Peer {
            public_key: PublicKey::from(&other.key),
            preshared_key: None,
            endpoint: Some(SocketAddr::new(other.outer, PORT)),
            allowed_ips: vec![inner(i, false).into(), inner(i, true).into()],
            keepalive: None,
        });
        Config { private_key: self.nodes[node].key.clone(), peers: peers.collect() }
    }

    pub fn status(&self, node: usize) -> Status {
        self.nodes[node].device().status()
    }

    /// Sends echo requests; the number that was answered.
    pub fn ping(&self, from: usize, to: IpAddr, count: usize, size: usize) -> usize {
        let ns = self.ns(from);
        let text = Command::new("sh")
            .args(["-c", &format!("nsenter --net=/run/netns/{ns} busybox ping -c {count} -W 5 -s {size} {to}")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&text.stdout).lines().filter(|line| line.contains("seq=")).count()
    }

    /// A VXLAN link over the devices, with an address of its own on each node and without learning.
    pub fn vxlan(&self, v6: bool) {
        for node in 0..self.nodes.len() {
            let (ns, number, local) = (self.ns(node), node + 1, inner(node, v6));
            run(&format!(
                "ip -n {ns} link add vx0 address 02:00:00:00:00:0{number} mtu {} type vxlan id 9 dstport 4790 local {local} \
                 nolearning && ip -n {ns} addr add 10.66.0.{number}/24 dev vx0 && \
                 ip -n {ns} addr add fd66::{number}/64 dev vx0 nodad && ip -n {ns} link set vx0 up",
                MTU - if v6 { 70 } else { 50 },
            ));
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                let (mac, dst) = (format!("02:00:00:00:00:0{}", other + 1), inner(other, v6));
                run(&format!(
                    "bridge -n {ns} fdb add {mac} dev vx0 dst {dst} && \
                     ip -n {ns} neigh add 10.66.0.{0} lladdr {mac} dev vx0 && \
                     ip -n {ns} neigh add fd66::{0} lladdr {mac} dev vx0",
                    other + 1
                ));
            }
        }
    }
}

impl Node {
    pub fn device(&self) -> &Device {
        self.device.as_ref().unwrap()
    }
}

/// The address of a node on its device.
pub fn inner(node: usize, v6: bool) -> IpAddr {
    match v6 {
        true => format!("fd77::{}", node + 1).parse().unwrap(),
        false => format!("10.77.0.{}", node + 1).parse().unwrap(),
    }
}

/// The byte at a place of a test stream.
fn content(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// A TCP connection between two namespaces that sends until it is told to stop; its content is checked byte by byte.
pub struct Stream {
    stop: std::sync::Arc<AtomicU32>,
    pub moved: std::sync::Arc<std::sync::atomic::AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    pub fn start(from: &Path, to: &Path, address: IpAddr) -> Stream {
        let listener = within(to, move || TcpListener::bind((address, 0)).unwrap()).join().unwrap();
        let target = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(AtomicU32::new(0));
        let moved = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let (told, counter) = (stop.clone(), moved.clone());
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let (mut room, mut total) = (vec![0; 1 << 16], 0u64);
            loop {
                let len = stream.read(&mut room).unwrap();
                if len == 0 {
                    return total;
                }
                let wrong = room[..len].iter().zip(total..).position(|(byte, at)| *byte != content(at));
                assert_eq!(wrong, None, "content at {total}");
                total += len as u64;
                counter.store(total, Ordering::Relaxed);
            }
        });
        let sender = within(from, move || {
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut total = 0u64;
            while told.load(Ordering::Relaxed) == 0 {
                let part: Vec<u8> = (total..total + (1 << 15)).map(content).collect();
                stream.write_all(&part).unwrap();
                total += part.len() as u64;
            }
            total
        });
        Stream { stop, moved, sender, receiver }
    }

    /// Waits until so many more bytes have arrived.
    pub fn more(&self, bytes: u64) {
        let from = self.moved.load(Ordering::Relaxed);
        eventually("bytes arrive", || self.moved.load(Ordering::Relaxed) >= from + bytes);
    }

    /// Ends the connection; all that was sent has arrived. Returns how much.
    pub fn finish(self) -> u64 {
        self.stop.store(1, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        assert_eq!(self.receiver.join().unwrap(), sent);
        sent
    }
}

/// Sends datagrams of these sizes and has them back from the other namespace, one at a time.
pub fn echo(from: &Path, to: &Path, address: IpAddr, sizes: &'static [usize]) {
    let server = within(to, move || UdpSocket::bind((address, 0)).unwrap()).join().unwrap();
    let target = server.local_addr().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let answering = thread::spawn(move || {
        let mut room = vec![0; 1 << 16];
        for _ in sizes {
            let (len, from) = server.recv_from(&mut room).unwrap();
            server.send_to(&room[..len], from).unwrap();
        }
    });
    within(from, move || {
        let any: IpAddr = if address.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for size in sizes {
            let data: Vec<u8> = (0..*size as u64).map(content).collect();
            socket.send_to(&data, target).unwrap();
            let mut room = vec![0; 1 << 16];
            let (len, _) = socket.recv_from(&mut room).unwrap();
            assert_eq!(room[..len], data, "datagram of {size}");
        }
    })
    .join()
    .unwrap();
    answering.join().unwrap();
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.device = None;
        }
        for node in 0..self.nodes.len() {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(node)]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &format!("{}-hub", self.tag)]).status();
    }
}
