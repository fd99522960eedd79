//! Joining and cutting against each other, and against bytes that mean harm.

use std::ops::Range;

use proptest::prelude::*;

use super::{
    checksum::{fold, never_zero, pseudo, put, put_ipv4, sum},
    coalesce::{FRAME_HEADER, Joiner},
    cut::Cutter,
    packet::{Layout, put16, source},
    virtio::Offload,
};
use crate::{TapOffload, sys::tap::VNET_HEADER};

const VXLAN: &[u16] = &[4789, 4790];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What is around the data of a stream.
#[derive(Debug, Clone, Copy)]
struct Shape {
    v6: bool,
    /// VXLAN around it: over IPv6, with a checksum.
    tunnel: Option<(bool, bool)>,
    udp: bool,
    options: bool,
}

fn ip(v6: bool, protocol: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = match v6 {
        true => vec![0x60, 0, 0, 0, 0, 0, protocol, 64],
        false => vec![0x45, 0, 0, 0, (id >> 8) as u8, id as u8, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
    };
    if v6 {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    packet.extend(payload);
    let len = packet.len();
    if v6 {
        put16(&mut packet, 4, len - 40);
    } else {
        put16(&mut packet, 2, len);
        put_ipv4(&mut packet, 0);
    }
    packet
}

fn summed(packet: &mut [u8], net: usize, at: usize, protocol: u8, offset: usize) {
    put(packet, at + offset, 0);
    let total = pseudo(packet, net, protocol, packet.len() - at) + sum(&packet[at..]);
    let checksum = !fold(total);
    put(packet, at + offset, if protocol == 17 { never_zero(checksum) } else { checksum });
}

/// A whole packet of a stream, as a kernel sends it.
fn packet(shape: Shape, id: u16, sequence: u32, push: bool, data: &[u8]) -> Vec<u8> {
    let (protocol, mut transport) = match shape.udp {
        true => (17, vec![0x30, 0, 0x40, 1, 0, 0, 0, 0]),
        false => {
            let mut tcp = vec![0x30, 0, 0x40, 1];
            tcp.extend(sequence.to_be_bytes());
            tcp.extend([0, 0, 0, 7, 0x50, 0x10 | u8::from(push) << 3, 1, 0, 0, 0, 0, 0]);
            if shape.options {
                tcp[12] = 0x80;
                tcp.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
            }
            (6, tcp)
        }
    };
    transport.extend(data);
    if shape.udp {
        let len = transport.len();
        put16(&mut transport, 4, len);
    }
    let mut inner = ip(shape.v6, protocol, id, &transport);
    let at = inner.len() - transport.len();
    summed(&mut inner, 0, at, protocol, if shape.udp { 6 } else { 16 });
    let Some((outer_v6, checksum)) = shape.tunnel else { return inner };
    let mut tunnel = vec![0xc0, 1, 0x12, 0xb6, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 9, 0];
    tunnel.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    tunnel.extend(if shape.v6 { [0x86, 0xdd] } else { [8, 0] });
    tunnel.extend(inner);
    let len = tunnel.len();
    put16(&mut tunnel, 4, len);
    let mut outer = ip(outer_v6, 17, id, &tunnel);
    if checksum || outer_v6 {
        let at = outer.len() - tunnel.len();
        summed(&mut outer, 0, at, 17, 6);
    }
    outer
}

/// Packets one after another, as the socket's room holds them.
fn laid_out(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut room = vec![];
    let ranges = packets.iter().map(|packet| {
        room.extend([0xee; 16]);
        room.extend(packet);
        room.len() - packet.len()..room.len()
    });
    let ranges = ranges.collect();
    (room, ranges)
}

type Frame = ([u8; FRAME_HEADER], Vec<u8>, usize);

/// What is written for these packets: header, IP packet, number of parts.
fn joined(offload: TapOffload, packets: &[Vec<u8>]) -> Vec<Frame> {
    let (mut room, ranges) = laid_out(packets);
    let mut joiner = Joiner::new(offload, VXLAN, MAC);
    for range in ranges {
        joiner.add(&room, range);
    }
    joiner.finish(&mut room);
    let frame = |(header, parts): (&[u8; FRAME_HEADER], &[Range<usize>])| {
        (*header, parts.iter().flat_map(|part| room[part.clone()].to_vec()).collect(), parts.len())
    };
    joiner.frames().map(frame).collect()
}

/// What the kernel on the other side would read of it, cut.
fn cut(frames: Vec<Frame>) -> Option<Vec<Vec<u8>>> {
    let mut packets = vec![];
    for (header, mut bytes, _) in frames {
        let offload = Offload::parse(header.first_chunk::<VNET_HEADER>().unwrap())?;
        let mut cutter = Cutter::new(offload, &mut bytes)?;
        while let Some(len) = cutter.next_len() {
            let mut slot = vec![0; len];
            cutter.write(&mut slot);
            packets.push(slot);
        }
    }
    Some(packets)
}

/// A stream of data in segments; the last may be shorter.
fn stream(shape: Shape, segment: usize, data: &[u8], start: u32) -> Vec<Vec<u8>> {
    let count = data.len().div_ceil(segment);
    let parts = data.chunks(segment).enumerate();
    parts
        .map(|(i, part)| {
            let sequence = start.wrapping_add((i * segment) as u32);
            packet(shape, 100 + i as u16, sequence, i + 1 == count, part)
        })
        .collect()
}

fn shapes() -> impl Strategy<Value = Shape> {
    let tunnel = proptest::option::of(any::<(bool, bool)>());
    (any::<bool>(), tunnel, any::<bool>(), any::<bool>()).prop_map(|(v6, tunnel, udp, options)| Shape {
        v6,
        tunnel,
        // UDP inside a tunnel is joined as the tunnel's datagrams, whose inside stays as it is.
        udp: udp && tunnel.is_none(),
        options,
    })
}

#[test]
fn a_stream_is_one_write() {
    for tunnel in [None, Some((false, false)), Some((true, true))] {
        let shape = Shape { v6: false, tunnel, udp: false, options: true };
        let frames = joined(TapOffload::Tunnel, &stream(shape, 1300, &[7; 50_000], u32::MAX - 9000));
        assert_eq!(frames.iter().map(|frame| frame.2).collect::<Vec<_>>(), [39]);
        assert_eq!(frames[0].0[VNET_HEADER..VNET_HEADER + 6], MAC);
    }
}

#[test]
fn without_tunnel_offload_the_datagrams_of_a_tunnel_are_joined_and_without_udps_nothing_of_it() {
    let shape = Shape { v6: false, tunnel: Some((false, true)), udp: false, options: false };
    let packets = stream(shape, 1300, &[7; 13_000], 5);
    let kinds = |offload| -> Vec<_> { joined(offload, &packets).iter().map(|frame| (frame.0[1], frame.2)).collect() };
    assert_eq!(kinds(TapOffload::Uso), [(5, 10)]);
    assert_eq!(kinds(TapOffload::Tso), [(0, 1); 10]);
    let plain = stream(Shape { tunnel: None, ..shape }, 1300, &[7; 13_000], 5);
    assert_eq!(joined(TapOffload::Tso, &plain).len(), 1);
    assert_eq!(joined(TapOffload::None, &plain).len(), 10);
}

#[test]
fn the_order_within_a_flow_is_kept() {
    let shape = Shape { v6: false, tunnel: None, udp: false, options: false };
    let mut packets = stream(shape, 100, &[7; 400], 1000);
    // Not a push, so that the run could go on; then a packet that cannot be joined, then what follows it.
    let mut reset = packet(shape, 9, 1300, false, &[]);
    reset[33] = 0x14;
    packets[3] = packet(shape, 103, 1300, false, &[7; 100]);
    packets.insert(3, reset);
    packets.push(packet(shape, 104, 1400, false, &[8; 100]));
    let frames = joined(TapOffload::Tunnel, &packets);
    assert_eq!(frames.iter().map(|frame| frame.2).collect::<Vec<_>>(), [3, 1, 2]);
}

#[test]
fn what_differs_in_a_field_that_would_be_lost_is_not_joined() {
    let shape = Shape { v6: false, tunnel: Some((false, false)), udp: false, options: true };
    let pair = || [packet(shape, 1, 0, false, &[1; 50]), packet(shape, 2, 50, false, &[2; 50])];
    assert_eq!(joined(TapOffload::Tunnel, &pair()).len(), 1);
    // Outer: class, time to live, don't-fragment, port, checksum; VXLAN: network; Ethernet: both; inner: class, time to
    // live; TCP: acknowledgement, reserved bits, flags, window, urgent, options.
    for at in [1, 6, 8, 21, 27, 34, 36, 42, 51, 58, 81, 82, 83, 84, 89, 95] {
        let mut packets = pair();
        packets[1][at] ^= if at == 6 { 0x40 } else { 4 };
        assert_eq!(joined(TapOffload::Tunnel, &packets).len(), 2, "byte {at}");
    }
}

#[test]
fn the_source_of_a_packet_is_read_with_bounds() {
    assert_eq!(source(&[]), None);
    let plain = packet(Shape { v6: false, tunnel: None, udp: true, options: false }, 1, 0, false, &[1; 9]);
    let padded = [plain.as_slice(), &[0; 7]].concat();
    assert_eq!(source(&padded), Some((plain.len(), "10.0.0.1".parse().unwrap())));
    assert_eq!(source(&plain[..plain.len() - 1]), None);
    let mut short = plain.clone();
    put16(&mut short, 2, 19);
    assert_eq!(source(&short), None);
    short[0] = 0x44;
    assert_eq!(source(&short), None);
}

proptest! {
    /// Joining and cutting again gives the packets that were sent, to the last checksum.
    #[test]
    fn what_is_joined_and_cut_is_what_was_sent(
        shape in shapes(),
        segment in 1usize..2000,
        data in proptest::collection::vec(any::<u8>(), 1..20_000),
        start in any::<u32>(),
        offload in prop_oneof![
            Just(TapOffload::None), Just(TapOffload::Tso), Just(TapOffload::Uso), Just(TapOffload::Tunnel)
        ],
    ) {
        let packets = stream(shape, segment.max(data.len() / 40), &data, start);
        let frames = joined(offload, &packets);
        let as_datagrams = shape.tunnel.is_some() && offload == TapOffload::Uso;
        let back = cut(frames).unwrap();
        prop_assert_eq!(back.len(), packets.len());
        for (back, sent) in back.iter().zip(&packets) {
            if as_datagrams && !matches!(shape.tunnel, Some((_, true)) | Some((true, _))) {
                // A tunnel's datagrams without checksum get one: they are correct, not the same.
                let at = 20 + 6;
                let mut back = back.clone();
                back[at..at + 2].fill(0);
                prop_assert_eq!(&back, sent);
            } else {
                prop_assert_eq!(back, sent);
            }
        }
    }

    /// Whatever a peer sends: nothing panics, nothing is lost or made up, and each frame agrees with its header.
    #[test]
    fn changed_packets_are_carried_as_they_are(
        shape in shapes(),
        changes in proptest::collection::vec((0usize..10, 0usize..140, any::<u8>()), 0..6),
        cuts in proptest::collection::vec((0usize..10, 20usize..400), 0..2),
    ) {
        let mut packets = stream(shape, 300, &[7; 3000], 5);
        for (which, at, value) in changes {
            if let Some(byte) = packets[which].get_mut(at) {
                *byte = value;
            }
        }
        for (which, len) in cuts {
            packets[which].truncate(len);
        }
        for offload in [TapOffload::Tunnel, TapOffload::Uso, TapOffload::Tso] {
            let frames = joined(offload, &packets);
            prop_assert_eq!(frames.iter().map(|frame| frame.2).sum::<usize>(), packets.len());
            for (_, bytes, parts) in &frames {
                prop_assert!(*parts > 1 || packets.contains(bytes));
                prop_assert!(bytes.len() <= usize::from(u16::MAX));
            }
            let back = cut(frames);
            prop_assert_eq!(back.map(|back| back.len()), Some(packets.len()));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0u8..4) {
        let mut bytes = bytes;
        if let Some(byte) = bytes.first_mut() {
            *byte = [0x45, 0x60, 0x46, *byte][usize::from(first)];
        }
        if let Some(layout) = Layout::of(&bytes, &[0x4242]) {
            prop_assert!(layout.payload <= bytes.len() && layout.transport < layout.payload);
        }
        let _ = source(&bytes);
        if !bytes.is_empty() {
            prop_assert_eq!(joined(TapOffload::Tunnel, &[bytes.clone(), bytes.clone()]).iter().map(|f| f.2).sum::<usize>(), 2);
        }
    }

    /// Whatever header the kernel gives: no panic, and no more bytes than headers times segments.
    #[test]
    fn any_frame_is_cut_without_panic(
        flags in 0u8..16, kind in prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x21), Just(0x44), any::<u8>()],
        offsets in proptest::collection::vec(0u16..200, 6), shape in shapes(), len in 0usize..400,
    ) {
        let mut header = [0; VNET_HEADER];
        (header[0], header[1]) = (flags, kind);
        for (at, value) in [4, 6, 8, 18, 20, 22].into_iter().zip(&offsets) {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut bytes = packet(shape, 1, 2, true, &[7; 300]);
        bytes.truncate(len);
        let Some(offload) = Offload::parse(&header) else { return Ok(()) };
        let limit = bytes.len() * bytes.len() + 100;
        let Some(mut cutter) = Cutter::new(offload, &mut bytes) else { return Ok(()) };
        let mut total = 0;
        while let Some(len) = cutter.next_len() {
            let mut slot = vec![0; len];
            cutter.write(&mut slot);
            total += len;
            prop_assert!(total <= limit);
        }
    }
}
