//! Traffic between devices in real network namespaces.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

mod world;

use skep_wireguard::{OffloadLimit, TapOffload, Tuning};
use world::{Stream, World, echo, inner, short};

/// Sizes that are sent whole, in fragments, and as the largest datagram but some.
const SIZES: &[usize] = &[1, 100, 1300, 1372, 1373, 1400, 4000, 9000, 30_000, 65_000];

fn carries_everything(world: &World) {
    let (a, b) = (world.nodes[0].netns.clone(), world.nodes[1].netns.clone());
    for v6 in [false, true] {
        assert_eq!(world.ping(0, inner(1, v6), 2, 56), 2);
        assert_eq!(world.ping(1, inner(0, v6), 1, 8000), 1);
        echo(&a, &b, inner(1, v6), SIZES);
        echo(&b, &a, inner(0, v6), SIZES);
        let there = Stream::start(&a, &b, inner(1, v6));
        let back = Stream::start(&b, &a, inner(0, v6));
        there.more(8 << 20);
        back.more(8 << 20);
        there.finish();
        back.finish();
    }
    for node in [0, 1] {
        let counters = world.status(node).counters;
        let failures = [
            counters.forged,
            counters.replayed,
            counters.wrong_source,
            counters.malformed_peer,
            counters.malformed_inside,
            counters.write_failed,
            counters.handshakes_refused,
        ];
        assert_eq!(failures, [0; 7], "{counters:?}");
    }
}

fn carries_vxlan(world: &World, v6: bool) {
    world.vxlan(v6);
    let (a, b) = (world.nodes[0].netns.clone(), world.nodes[1].netns.clone());
    for address in ["10.66.0.2", "fd66::2"] {
        let address = address.parse().unwrap();
        assert_eq!(world.ping(0, address, 2, 56), 2);
        echo(&a, &b, address, SIZES);
        let there = Stream::start(&a, &b, address);
        there.more(16 << 20);
        there.finish();
    }
    let counters = world.status(1).counters;
    assert_eq!((counters.write_failed, counters.malformed_peer), (0, 0), "{counters:?}");
}

fn with_offload(tap: TapOffload, udp: bool) -> Tuning {
    Tuning { offload: OffloadLimit { tap, udp }, ..Tuning::default() }
}

#[test]
#[ignore = "needs root"]
fn packets_of_all_kinds_pass_over_ipv4() {
    let world = World::new(2, Tuning::default(), false);
    carries_everything(&world);
    carries_vxlan(&world, false);
}

#[test]
#[ignore = "needs root"]
fn packets_of_all_kinds_pass_over_ipv6() {
    let world = World::new(2, Tuning::default(), true);
    carries_everything(&world);
    carries_vxlan(&world, true);
}

#[test]
#[ignore = "needs root"]
fn each_step_back_from_the_kernels_offloads_carries_the_same() {
    for (tap, udp) in [(TapOffload::Uso, true), (TapOffload::Tso, true), (TapOffload::None, false)] {
        let world = World::new(2, with_offload(tap, udp), false);
        let offloads = world.status(0).offloads;
        assert!(offloads.tap <= tap && offloads.udp_gro == udp && offloads.udp_segment == udp);
        carries_everything(&world);
        carries_vxlan(&world, tap == TapOffload::Tso);
    }
}

#[test]
#[ignore = "needs root"]
fn new_sessions_under_load_lose_nothing() {
    let world = World::new(2, Tuning { timers: short(), ..Tuning::default() }, false);
    let (a, b) = (world.nodes[0].netns.clone(), world.nodes[1].netns.clone());
    let streams = [Stream::start(&a, &b, inner(1, false)), Stream::start(&b, &a, inner(0, true))];
    let mut handshakes = std::collections::BTreeSet::new();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while handshakes.len() < 5 {
        assert!(std::time::Instant::now() < end, "{handshakes:?}");
        for stream in &streams {
            stream.more(1 << 20);
        }
        let tried = world.status(0).counters.handshakes_tried + world.status(1).counters.handshakes_tried;
        handshakes.insert(tried);
    }
    for stream in streams {
        stream.finish();
    }
    let (x, y) = (world.status(0).counters, world.status(1).counters);
    assert_eq!((x.forged + y.forged, x.replayed + y.replayed, x.unknown + y.unknown), (0, 0, 0), "{x:?} {y:?}");
}
