//! Plain VXLAN beside VXLAN over two WireGuard devices, in one run: throughput with one and four TCP streams, CPU of the
//! devices, round-trip time.
//!
//! As in a cluster, from container to container: each container is a namespace behind a bridge of its node, with the
//! VXLAN link on that bridge; both nodes are on one wire. All of it shares this machine's processors, both ends too.
//!
//! `cargo run --release -p skep-wireguard --example throughput` as root; needs `ip` and `bridge`, uses `iperf3` if it is
//! there. `--rounds N` (3), `--seconds N` (3), `--tap none|tso|uso|tunnel`, `--segmented`: the link between the nodes
//! carries single packets, as a network card without offloads does. `--threads N`: so many each way in each device.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement: it ends at the first thing that goes wrong"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skep_wireguard::{Config, Device, Options, Peer, PrivateKey, PublicKey, TapOffload, Tuning};

const UNDERLAY_MTU: u32 = 1500;
const WIREGUARD_MTU: u32 = 1420;

/// One way from the first node to the second.
struct Path {
    name: &'static str,
    address: IpAddr,
}

struct Settings {
    rounds: usize,
    seconds: u64,
    tap: TapOffload,
    segmented: bool,
    threads: Option<usize>,
}

fn main() {
    let settings = settings();
    let names = [1, 2].map(|node| format!("wgbench{}-{node}", std::process::id()));
    make_namespaces(&names, settings.segmented);
    let devices = make_devices(&names, &settings);
    make_vxlan(&names);
    let containers = names.clone().map(|name| format!("{name}c"));
    println!("offloads: {:?}", devices[0].status().offloads);
    let paths = [
        Path { name: "plain VXLAN", address: "10.61.0.2".parse().unwrap() },
        Path { name: "VXLAN over WireGuard", address: "10.62.0.2".parse().unwrap() },
    ];
    for path in &paths {
        // Makes the session, and warms both ways.
        throughput(&containers, path.address, 1, 1);
    }
    for streams in [1, 4] {
        let mut rates = [vec![], vec![]];
        let mut costs = vec![];
        for _ in 0..settings.rounds {
            for (path, rates) in paths.iter().zip(&mut rates) {
                let before = device_cpu();
                let rate = throughput(&containers, path.address, streams, settings.seconds);
                let cpu = device_cpu() - before;
                if path.name != paths[0].name {
                    costs.push(cpu / settings.seconds as f64 / rate);
                }
                rates.push(rate);
            }
        }
        let [plain, sealed] = rates.map(median);
        println!("{streams} stream(s): {:<22} {plain:6.2} Gbit/s", paths[0].name);
        println!(
            "{streams} stream(s): {:<22} {sealed:6.2} Gbit/s = {:.0} % of plain; both devices {:.2} cores per Gbit/s",
            paths[1].name,
            100.0 * sealed / plain,
            median(costs)
        );
    }
    let [plain, sealed] = [0, 1].map(|path| round_trip(&containers, paths[path].address));
    println!(
        "round trip of 64 bytes, median and 99 of 100: plain {:.0} and {:.0} us, over WireGuard {:.0} and {:.0} us",
        plain[0], plain[1], sealed[0], sealed[1]
    );
    let counters = devices[1].status().counters;
    println!(
        "of {} packets: {} forged, {} replayed, {} refused by the interface",
        counters.packets_received, counters.forged, counters.replayed, counters.write_failed
    );
    drop(devices);
    for name in &names {
        run(&format!("ip netns del {name}c && ip netns del {name}"));
    }
    run(&format!("ip netns del {}w", names[0]));
}

fn settings() -> Settings {
    let mut settings = Settings { rounds: 3, seconds: 3, tap: TapOffload::Tunnel, segmented: false, threads: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().expect("the flag has a value");
        match flag.as_str() {
            "--rounds" => settings.rounds = value().parse().expect("a number"),
            "--seconds" => settings.seconds = value().parse().expect("a number"),
            "--threads" => settings.threads = Some(value().parse().expect("a number")),
            "--segmented" => settings.segmented = true,
            "--tap" => {
                settings.tap = match value().as_str() {
                    "none" => TapOffload::None,
                    "tso" => TapOffload::Tso,
                    "uso" => TapOffload::Uso,
                    _ => TapOffload::Tunnel,
                }
            }
            _ => panic!("unknown flag {flag}"),
        }
    }
    settings
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn within<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let path = format!("/run/netns/{name}");
    thread::spawn(move || {
        let file = openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        f()
    })
}

/// Node names are `names`, those of their containers end with `c`; the wire is a bridge in a namespace ending with `w`.
fn make_namespaces(names: &[String; 2], segmented: bool) {
    let wire = format!("{}w", names[0]);
    run(&format!("ip netns add {wire} && ip -n {wire} link add wire type bridge && ip -n {wire} link set wire up"));
    for (i, name) in names.iter().enumerate() {
        run(&format!(
            "ip netns add {name} && ip netns add {name}c && \
             ip -n {wire} link add n{i} mtu {UNDERLAY_MTU} type veth peer name up0 mtu {UNDERLAY_MTU} netns {name} && \
             ip -n {wire} link set n{i} master wire up && \
             ip -n {name} addr add 10.60.0.{}/24 dev up0 && ip -n {name} link set up0 up",
            i + 1
        ));
        if segmented {
            // One segment a packet: the kernel cuts all runs before the link.
            run(&format!("ip -n {name} link set up0 gso_max_segs 1"));
        }
    }
}

fn make_devices(names: &[String; 2], settings: &Settings) -> [Device; 2] {
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    [0, 1].map(|node| {
        let options = Options { name: "wg0".into(), listen: "0.0.0.0:51820".parse().unwrap(), mtu: WIREGUARD_MTU };
        let mut tuning = Tuning::default();
        tuning.offload.tap = settings.tap;
        tuning.threads = settings.threads;
        let device = within(&names[node], move || Device::open_with(&options, tuning)).join().unwrap().unwrap();
        let other = 1 - node;
        let peer = Peer {
            public_key: PublicKey::from(&keys[other]),
            preshared_key: None,
            endpoint: Some(SocketAddr::from(([10, 60, 0, other as u8 + 1], 51820))),
            allowed_ips: vec![format!("10.63.0.{}/32", other + 1).parse().unwrap()],
            keepalive: None,
        };
        device.configure(Config { private_key: keys[node].clone(), peers: vec![peer] }).unwrap();
        let name = &names[node];
        run(&format!("ip -n {name} addr add 10.63.0.{}/24 dev wg0 && ip -n {name} link set wg0 up", node + 1));
        device
    })
}

/// Networks of the containers: 10.61.0.0/24 over the wire itself, 10.62.0.0/24 over the devices.
fn make_vxlan(names: &[String; 2]) {
    for (net, local, port, mtu) in [(61, 60, 4789, UNDERLAY_MTU - 50), (62, 63, 4790, WIREGUARD_MTU - 50)] {
        for (node, name) in [1, 2].into_iter().zip(names) {
            let (other, mac) = (3 - node, |node| format!("02:00:00:00:{net}:0{node}"));
            run(&format!(
                "ip -n {name} link add br{net} type bridge && \
                 ip -n {name} link add vx{net} mtu {mtu} type vxlan id {net} dstport {port} local 10.{local}.0.{node} \
                 nolearning && ip -n {name} link set vx{net} master br{net} up && \
                 ip -n {name} link add c{net} mtu {mtu} type veth peer name eth{net} address {0} mtu {mtu} netns {name}c && \
                 ip -n {name} link set c{net} master br{net} up && ip -n {name} link set br{net} up && \
                 bridge -n {name} fdb add {1} dev vx{net} dst 10.{local}.0.{other} && \
                 ip -n {name}c addr add 10.{net}.0.{node}/24 dev eth{net} && ip -n {name}c link set eth{net} up && \
                 ip -n {name}c neigh add 10.{net}.0.{other} lladdr {1} dev eth{net}",
                mac(node),
                mac(other)
            ));
        }
    }
}

/// Gbit/s of TCP data received.
fn throughput(names: &[String; 2], address: IpAddr, streams: usize, seconds: u64) -> f64 {
    if Command::new("iperf3").arg("--version").output().is_ok() {
        return iperf3(names, address, streams, seconds);
    }
    let listener = within(&names[1], move || TcpListener::bind((address, 0)).unwrap()).join().unwrap();
    let target = listener.local_addr().unwrap();
    let senders: Vec<_> = (0..streams)
        .map(|_| {
            within(&names[0], move || {
                let mut stream = TcpStream::connect(target).unwrap();
                let (room, started) = (vec![0; 128 << 10], Instant::now());
                while started.elapsed() < Duration::from_secs(seconds) {
                    stream.write_all(&room).unwrap();
                }
            })
        })
        .collect();
    let receivers: Vec<_> = (0..streams)
        .map(|_| {
            let (mut stream, _) = listener.accept().unwrap();
            thread::spawn(move || {
                let (mut room, mut total) = (vec![0; 128 << 10], 0);
                while let Ok(len @ 1..) = stream.read(&mut room) {
                    total += len as u64;
                }
                total
            })
        })
        .collect();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let total: u64 = receivers.into_iter().map(|receiver| receiver.join().unwrap()).sum();
    total as f64 * 8e-9 / seconds as f64
}

fn iperf3(names: &[String; 2], address: IpAddr, streams: usize, seconds: u64) -> f64 {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{name}");
    let mut server = Command::new("sh")
        .args(["-c", &format!("exec {} iperf3 -s -1 -B {address} >/dev/null", enter(&names[1]))])
        .spawn()
        .unwrap();
    let client = format!("{} iperf3 -J -c {address} -P {streams} -t {seconds} -O 1", enter(&names[0]));
    // The server needs a moment until it listens; an error is in the report, not in the exit code.
    let started = Instant::now();
    let text = loop {
        let output = Command::new("sh").args(["-c", &client]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && !text.contains("\"error\"") {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{text}");
        thread::sleep(Duration::from_millis(50));
    };
    server.wait().unwrap();
    let sum = text.split("\"sum_received\"").nth(1).expect("a sum in the report");
    let rate = sum.split("\"bits_per_second\":").nth(1).and_then(|rest| rest.split(',').next()).expect("a rate");
    rate.trim().parse::<f64>().unwrap() * 1e-9
}

/// Microseconds of the median round trip of a datagram on an otherwise idle way, and of the slowest of a hundred.
fn round_trip(names: &[String; 2], address: IpAddr) -> [f64; 2] {
    let server = within(&names[1], move || UdpSocket::bind((address, 0)).unwrap()).join().unwrap();
    let target = server.local_addr().unwrap();
    // A lost datagram is not waited for.
    let patience = Some(Duration::from_secs(1));
    server.set_read_timeout(patience).unwrap();
    let answering = thread::spawn(move || {
        let mut room = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut room) {
            server.send_to(&room[..len], from).unwrap();
        }
    });
    let times = within(&names[0], move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(patience).unwrap();
        let one = |number: u16| {
            thread::sleep(Duration::from_millis(2));
            let started = Instant::now();
            let mut room = [0; 64];
            room[..2].copy_from_slice(&number.to_le_bytes());
            socket.send_to(&room, target).unwrap();
            let (_, same) = (socket.recv_from(&mut room).ok()?, room[..2] == number.to_le_bytes());
            same.then(|| started.elapsed().as_secs_f64() * 1e6)
        };
        (0..1000).filter_map(one).collect::<Vec<_>>()
    });
    let mut times = times.join().unwrap();
    answering.join().unwrap();
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 99 / 100]]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds of CPU that the threads of both devices have used.
fn device_cpu() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let ticks = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        name.contains("(wg-").then_some(user + system)
    });
    // Ticks are hundredths on all of Linux' common architectures.
    ticks.sum::<f64>() / 100.0
}
