//! Changes under load, in real network namespaces: addresses, processes, configurations.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

mod world;

use std::time::Duration;

use skep_wireguard::{Device, Error, Options, Tuning};
use world::{Stream, World, eventually, inner, run, short, within};

fn two_streams(world: &World) -> [Stream; 2] {
    let (a, b) = (&world.nodes[0].netns, &world.nodes[1].netns);
    let streams = [Stream::start(a, b, inner(1, false)), Stream::start(b, a, inner(0, false))];
    for stream in &streams {
        stream.more(1 << 20);
    }
    streams
}

#[test]
#[ignore = "needs root"]
fn a_node_that_changes_its_address_keeps_its_connections() {
    let world = World::new(2, Tuning::default(), false);
    let streams = two_streams(&world);
    let (ns, handshakes) = (world.ns(0), world.status(1).counters.handshakes_tried);
    run(&format!("ip -n {ns} addr add 10.98.0.50/24 dev uplink && ip -n {ns} addr del 10.98.0.11/24 dev uplink"));
    eventually("the other node learns the address", || {
        world.status(1).peers[0].endpoint == Some("10.98.0.50:51820".parse().unwrap())
    });
    for stream in streams {
        stream.more(4 << 20);
        stream.finish();
    }
    assert_eq!(world.status(1).counters.handshakes_tried, handshakes, "no handshake is needed for it");
}

#[test]
#[ignore = "needs root"]
fn another_process_takes_the_device_over_without_a_lost_connection() {
    let mut world = World::new(2, Tuning::default(), false);
    let streams = two_streams(&world);
    let name = world.status(0).name;
    for stop_first in [true, false, true] {
        let old = world.nodes[0].device.take().unwrap();
        let handover = old.handover().unwrap();
        let mut old = Some(old);
        if stop_first {
            drop(old.take());
        }
        let new = Device::adopt(handover).unwrap();
        drop(old);
        world.nodes[0].device = Some(new);
        for stream in &streams {
            stream.more(4 << 20);
        }
        let status = world.status(0);
        assert_eq!((&status.name, status.peers.len()), (&name, 1));
        // It began the handshake itself, before anything was to be sent.
        assert!(status.peers[0].handshake_age.is_some());
    }
    for stream in streams {
        stream.finish();
    }
}

#[test]
#[ignore = "needs root"]
fn a_process_that_took_over_is_heard_by_a_peer_that_only_sends() {
    let mut world = World::new(2, Tuning::default(), false);
    assert_eq!(world.ping(1, inner(0, false), 1, 56), 1);
    let old = world.nodes[0].device.take().unwrap();
    let handover = old.handover().unwrap();
    old.stop();
    world.nodes[0].device = Some(Device::adopt(handover).unwrap());
    // The peer's old session means nothing here; within its own timers (15 s) it would not find out.
    eventually("the handshake is done", || world.status(1).peers[0].handshake_age < Some(Duration::from_secs(1)));
    assert_eq!(world.ping(1, inner(0, false), 2, 56), 2);
}

#[test]
#[ignore = "needs root"]
fn a_configuration_changes_only_what_it_names() {
    let world = World::new(3, Tuning { timers: short(), ..Tuning::default() }, false);
    let device = world.nodes[0].device();
    let streams = two_streams(&world);
    assert_eq!(world.ping(0, inner(2, false), 1, 56), 1);

    // One that contradicts itself changes nothing.
    let mut wrong = world.config(0);
    wrong.peers[1].allowed_ips = wrong.peers[0].allowed_ips.clone();
    assert!(matches!(device.configure(wrong), Err(Error::AllowedTwice { .. })));
    let mut wrong = world.config(0);
    wrong.peers[1].public_key = wrong.peers[0].public_key;
    assert!(matches!(device.configure(wrong), Err(Error::PeerTwice { .. })));

    // A node that left is not heard any more, whatever it sends; the others' connections go on.
    let mut less = world.config(0);
    less.peers.truncate(1);
    device.configure(less).unwrap();
    assert_eq!(device.status().peers.len(), 1);
    let received = device.status().counters;
    assert_eq!(world.ping(2, inner(0, false), 1, 56), 0);
    eventually("its handshakes are refused", || {
        device.status().counters.handshakes_refused > received.handshakes_refused
    });
    for stream in streams {
        stream.more(2 << 20);
        stream.finish();
    }
    device.configure(world.config(0)).unwrap();
    eventually("it is heard again", || world.ping(2, inner(0, false), 1, 56) == 1);
}

#[test]
#[ignore = "needs root"]
fn a_device_that_is_gone_leaves_nothing_and_a_taken_name_is_refused() {
    let mut world = World::new(1, Tuning::default(), false);
    let options = Options { name: "wg0".into(), listen: "0.0.0.0:0".parse().unwrap(), mtu: 1420 };
    let netns = world.nodes[0].netns.clone();
    let again = options.clone();
    let refused = within(&netns, move || Device::open(&again).map(drop)).join().unwrap();
    assert!(matches!(refused, Err(Error::Interface { .. })), "{refused:?}");
    world.nodes[0].device.take().unwrap().stop();
    let ns = world.ns(0);
    assert!(!run(&format!("ip -n {ns} link")).contains("wg0"));
    let status = within(&netns, move || Device::open(&options).map(|device| device.status())).join().unwrap().unwrap();
    assert_ne!(status.listen.port(), 0);
}
