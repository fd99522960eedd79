//! Strangers on the way, in real network namespaces: what they record, change, cut, reflect and invent never reaches
//! the inside, and costs little.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

mod world;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey as Point, StaticSecret};
use skep_wireguard::{Counters, PrivateKey, PublicKey, Tuning};
use world::{PORT, Stream, World, eventually, inner, run, short, within};

/// What passed the stranger, by the node that sent it.
type Seen = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

/// Sits between two nodes: each believes the other to be here.
struct Between {
    sockets: [UdpSocket; 2],
    nodes: [SocketAddr; 2],
    seen: Seen,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Between {
    fn new(world: &World) -> Between {
        let made = within(&world.hub(), || [5001, 5002].map(|port| UdpSocket::bind(("10.98.0.9", port)).unwrap()));
        let sockets = made.join().unwrap();
        let nodes = [0, 1].map(|node| SocketAddr::new(world.nodes[node].outer, PORT));
        let (seen, stop): (Seen, Arc<AtomicBool>) = Default::default();
        let threads = [0, 1].map(|from| {
            // The socket that node `from` sends to; it is passed on from the other one.
            let (own, other) = (sockets[from].try_clone().unwrap(), sockets[1 - from].try_clone().unwrap());
            own.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let (seen, stop, to) = (seen.clone(), stop.clone(), nodes[1 - from]);
            thread::spawn(move || {
                let mut room = vec![0; 1 << 16];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((len, _)) = own.recv_from(&mut room) else { continue };
                    seen.lock().unwrap().push((from, room[..len].to_vec()));
                    other.send_to(&room[..len], to).unwrap();
                }
            })
        });
        for node in [0, 1] {
            let mut config = world.config(node);
            config.peers[0].endpoint = Some(SocketAddr::from(([10, 98, 0, 9], 5001 + node as u16)));
            world.nodes[node].device().configure(config).unwrap();
        }
        Between { sockets, nodes, seen, stop, threads: threads.into() }
    }

    /// Sends to a node as if from the other.
    fn inject(&self, to: usize, message: &[u8]) {
        self.sockets[to].send_to(message, self.nodes[to]).unwrap();
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Datagrams from outside that were looked at.
fn looked_at(counters: &Counters) -> u64 {
    counters.forged + counters.replayed + counters.unknown + counters.handshakes_alien + counters.handshakes_refused
}

#[test]
#[ignore = "needs root"]
fn what_a_stranger_records_and_changes_does_not_reach_the_inside() {
    let world = World::new(2, Tuning::default(), false);
    let between = Between::new(&world);
    let (a, b) = (&world.nodes[0].netns, &world.nodes[1].netns);
    world::echo(a, b, inner(1, false), &[100, 1300, 3000, 100, 1, 500]);
    let recorded = between.seen.lock().unwrap().clone();
    assert!(recorded.iter().any(|(_, message)| message[0] == 1) && recorded.iter().any(|(_, message)| message[0] == 2));

    let plain: Vec<u8> = (0..64u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    assert!(recorded.iter().all(|(_, message)| !message.windows(16).any(|part| part == &plain[..16])), "readable");

    let before = [0, 1].map(|node| world.status(node).counters);
    let mut sent = [0; 2];
    for (from, message) in &recorded {
        for to in [0, 1] {
            // As it was (to its receiver, and back to its sender), each of these bytes changed, cut, and one byte more.
            let mut variants = vec![message.clone()];
            for at in [0, 4, 8, 15, 16, message.len() / 2, message.len() - 20, message.len() - 1] {
                let mut changed = message.clone();
                changed[at] ^= 0x80;
                variants.push(changed);
            }
            variants
                .extend([1, 15, 16, 31, 32, message.len() - 1].map(|len| message[..len.min(message.len())].to_vec()));
            variants.push([message.as_slice(), &[0]].concat());
            for variant in variants {
                // A changed sender's index in an initiation is not authentic, but its mac1 is wrong too.
                between.inject(to, &variant);
                sent[to] += 1;
            }
        }
        let _ = from;
    }
    for node in [0, 1] {
        eventually("all of it was looked at", || {
            looked_at(&world.status(node).counters) >= looked_at(&before[node]) + sent[node]
        });
        let after = world.status(node).counters;
        assert_eq!(after.packets_received, before[node].packets_received, "{after:?}");
        assert_eq!(after.malformed_peer + after.wrong_source, 0);
    }
    // And the two go on by the sessions that they had.
    world::echo(a, b, inner(1, false), &[100, 1300]);
}

#[test]
#[ignore = "needs root"]
fn another_key_and_another_nodes_address_do_not_reach_the_inside() {
    let world = World::new(3, Tuning { timers: short(), ..Tuning::default() }, false);
    // A node with a key of its own choosing that says that it has node 2's addresses.
    let mut config = world.config(2);
    config.private_key = PrivateKey::generate();
    world.nodes[2].device().configure(config).unwrap();
    assert_eq!(world.ping(2, inner(0, false), 1, 56), 0);
    let counters = world.status(0).counters;
    assert!(counters.handshakes_refused > 0 && counters.packets_received == 0, "{counters:?}");

    // A true node that sends from another's address.
    world.nodes[2].device().configure(world.config(2)).unwrap();
    eventually("it is heard", || world.ping(2, inner(0, false), 1, 56) == 1);
    let (ns, received) = (world.ns(2), world.status(0).counters.packets_received);
    run(&format!("ip -n {ns} addr add {}/32 dev wg0", inner(1, false)));
    let from = inner(1, false);
    within(&world.nodes[2].netns, move || {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(b"I am node 1", (inner(0, false), 9)).unwrap();
    })
    .join()
    .unwrap();
    eventually("it is refused", || world.status(0).counters.wrong_source == 1);
    assert_eq!(world.status(0).counters.packets_received, received);
}

#[test]
#[ignore = "needs root"]
fn a_stranger_who_knows_the_public_key_cannot_make_it_work_hard() {
    let tuning = Tuning { timers: short(), ..Tuning::default() };
    let limit = u64::from(tuning.limits.handshakes_per_second);
    let world = World::new(2, tuning, false);
    let victim = PublicKey::from(&world.nodes[0].key).to_bytes();
    let (a, b) = (&world.nodes[0].netns, &world.nodes[1].netns);
    let streams = [Stream::start(a, b, inner(1, false)), Stream::start(b, a, inner(0, false))];
    for stream in &streams {
        stream.more(1 << 20);
    }

    let target = SocketAddr::new(world.nodes[0].outer, PORT);
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let before = world.status(0).counters;
    let started = Instant::now();
    let flood = within(&world.hub(), move || {
        let own = StaticSecret::from([9; 32]);
        let mut tunn = Tunn::new(own, Point::from(victim), None, None, 1, None);
        let mut room = [0; 2048];
        let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(&mut room, true) else {
            panic!("no initiation");
        };
        let socket = UdpSocket::bind("10.98.0.9:0").unwrap();
        let mut sent = 0u64;
        while !told.load(Ordering::Relaxed) {
            sent += u64::from(socket.send_to(message, target).is_ok());
        }
        sent
    });
    eventually("cookies are sent", || world.status(0).counters.cookies_sent > 1000);
    // The two make new sessions all the same, with cookies, and their connections go on.
    let handshakes = || world.status(1).counters.handshakes_tried;
    for _ in 0..2 {
        let done = handshakes();
        eventually("a new session under the flood", || handshakes() > done);
        for stream in &streams {
            stream.more(1 << 20);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().unwrap();
    let (after, seconds) = (world.status(0).counters, started.elapsed().as_secs() + 2);
    let tried = after.handshakes_tried - before.handshakes_tried;
    // Those of before the load was noticed, and of the true peer with its cookie.
    assert!(tried <= limit * seconds + 100, "{tried} of {sent} in {seconds} s");
    assert!(sent > tried * 4, "the flood was none: {sent}");
    for stream in streams {
        stream.more(1 << 20);
        stream.finish();
    }
}
