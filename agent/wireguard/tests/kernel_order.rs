//! Several threads each way, in real network namespaces: order, losses, changes and the end under load.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

mod world;

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use skep_wireguard::{Device, Tuning};
use world::{Stream, World, eventually, inner, run, short, within};

/// More than this machine may suggest.
fn crowded() -> Tuning {
    Tuning { threads: Some(4), timers: short(), ..Tuning::default() }
}

fn streams(world: &World) -> [Stream; 2] {
    let (a, b) = (&world.nodes[0].netns, &world.nodes[1].netns);
    let streams = [Stream::start(a, b, inner(1, false)), Stream::start(b, a, inner(0, true))];
    for stream in &streams {
        stream.more(4 << 20);
    }
    streams
}

/// Numbers of datagrams that arrived while somebody sent faster than they can be carried: first the order, then how many
/// were sent.
fn flood(world: &World, seconds: u64) -> (Vec<u64>, u64) {
    let address = inner(1, false);
    let server = within(&world.nodes[1].netns, move || UdpSocket::bind((address, 0)).unwrap()).join().unwrap();
    let target = server.local_addr().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let receiver = thread::spawn(move || {
        let (mut room, mut arrived) = ([0; 2048], vec![]);
        // Silence is the end.
        while let Ok(len) = server.recv(&mut room) {
            let number = u64::from_le_bytes(*room.first_chunk().unwrap());
            assert!(len == 1200 && room[8..len].iter().all(|byte| *byte == number as u8), "content of {number}");
            arrived.push(number);
        }
        arrived
    });
    let sender = within(&world.nodes[0].netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let (mut number, end) = (0u64, Instant::now() + Duration::from_secs(seconds));
        while Instant::now() < end {
            let mut room = [number as u8; 1200];
            room[..8].copy_from_slice(&number.to_le_bytes());
            // The interface's queue may be full.
            if socket.send_to(&room, target).is_ok() {
                number += 1;
            }
        }
        number
    });
    let sent = sender.join().unwrap();
    (receiver.join().unwrap(), sent)
}

#[test]
#[ignore = "needs root"]
fn datagrams_keep_their_order_though_queues_overflow() {
    let world = World::new(2, crowded(), false);
    assert_eq!(world.ping(0, inner(1, false), 1, 56), 1);
    let (arrived, sent) = flood(&world, 3);
    assert!(arrived.len() > 10_000, "{} of {sent}", arrived.len());
    let late = arrived.windows(2).filter(|pair| pair[1] < pair[0]).count();
    let mut once = arrived.clone();
    once.sort_unstable();
    once.dedup();
    println!("{} of {sent} arrived, {late} late", arrived.len());
    assert_eq!(once.len(), arrived.len(), "none arrives twice");
    assert!(late * 1000 < arrived.len(), "{late} of {} came after later ones", arrived.len());
    let (x, y) = (world.status(0).counters, world.status(1).counters);
    assert_eq!((x.forged + y.forged, x.replayed + y.replayed, y.malformed_peer), (0, 0, 0), "{x:?} {y:?}");
}

#[test]
#[ignore = "needs root"]
fn sessions_places_and_processes_change_under_load() {
    let mut world = World::new(2, crowded(), false);
    let streams = streams(&world);
    let started = world.status(1).counters.handshakes_tried;
    let ns = world.ns(0);
    for place in [50, 51, 50] {
        run(&format!("ip -n {ns} addr add 10.98.0.{place}/24 dev uplink"));
        run(&format!(
            "for a in 11 50 51; do test $a = {place} || ip -n {ns} addr del 10.98.0.$a/24 dev uplink; done; true"
        ));
        eventually("the other node learns the address", || {
            world.status(1).peers[0].endpoint == Some(format!("10.98.0.{place}:51820").parse().unwrap())
        });
        streams.iter().for_each(|stream| stream.more(2 << 20));
    }
    eventually("new sessions are made", || {
        streams.iter().for_each(|stream| stream.more(1 << 20));
        world.status(1).counters.handshakes_tried >= started + 3
    });
    for _ in 0..3 {
        let old = world.nodes[0].device.take().unwrap();
        let handover = old.handover().unwrap();
        old.stop();
        world.nodes[0].device = Some(Device::adopt_with(handover, crowded()).unwrap());
        streams.iter().for_each(|stream| stream.more(2 << 20));
    }
    for stream in streams {
        stream.finish();
    }
    let counters = world.status(1).counters;
    assert_eq!((counters.forged, counters.malformed_peer, counters.wrong_source), (0, 0, 0), "{counters:?}");
}

#[test]
#[ignore = "needs root"]
fn a_device_ends_at_once_under_load() {
    for _ in 0..5 {
        let mut world = World::new(2, crowded(), false);
        assert_eq!(world.ping(0, inner(1, false), 1, 56), 1);
        let flooding = {
            let (netns, target) = (world.nodes[0].netns.clone(), inner(1, false));
            within(&netns, move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                // Until the interface is gone.
                let end = Instant::now() + Duration::from_secs(20);
                while Instant::now() < end
                    && socket
                        .send_to(&[0; 1200], (target, 9))
                        .map_or_else(|error| error.raw_os_error() != Some(101), |_| true)
                {}
            })
        };
        eventually("packets pass", || world.status(1).counters.packets_received > 1000);
        let began = Instant::now();
        for node in [0, 1] {
            world.nodes[node].device.take().unwrap().stop();
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        flooding.join().unwrap();
    }
}
