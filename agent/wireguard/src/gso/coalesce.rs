//! Opened packets into as few writes as the kernel takes: consecutive segments of one TCP stream (also inside VXLAN)
//! and UDP datagrams of one size are joined, without copying.
//!
//! The order within a flow is kept: a packet that cannot be joined ends its flow's run, and later packets begin a new
//! one behind it. Checksums of joined packets are not verified but made anew, as the kernel's WireGuard does: what was
//! opened is what the peer's kernel sent.

use std::ops::Range;

use super::{
    checksum::{fold, pseudo, put, put_ipv4},
    packet::{Layout, put16},
    virtio::{ETHERNET, Kind, Run, Tunnel, put_run},
};
use crate::{TapOffload, sys::tap::VNET_HEADER};

/// Bytes before the IP header of each frame.
pub const FRAME_HEADER: usize = VNET_HEADER + ETHERNET;
/// Bytes of a run's IP packet, below the 64 KB of its length field.
const MAX_BYTES: usize = 65_000;
/// Packets in a run, as writev(2) takes a limited number of parts.
const MAX_PARTS: usize = 64;
/// Runs that are looked at for a packet's flow, from the newest on.
const LOOK_BACK: usize = 16;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Collects packets of one receive.
pub struct Joiner {
    offload: TapOffload,
    vxlan: Vec<u16>,
    mac: [u8; 6],
    groups: Vec<Group>,
    used: usize,
}

/// A packet, or a run that begins with it.
struct Group {
    /// Before the IP packet, once it is finished.
    header: [u8; FRAME_HEADER],
    /// The first packet, then the data of the others.
    parts: Vec<Range<usize>>,
    layout: Option<Layout>,
    /// Bytes of data in the first packet.
    segment: usize,
    /// Bytes of all parts.
    total: usize,
    /// TCP: the sequence number that comes next.
    sequence: u32,
    /// TCP: the push flag of the last packet.
    push: u8,
    is_open: bool,
}

impl Joiner {
    /// For an interface with this offload and Ethernet address.
    pub fn new(offload: TapOffload, vxlan: &[u16], mac: [u8; 6]) -> Joiner {
        let vxlan = if offload == TapOffload::Tunnel { vxlan.to_vec() } else { vec![] };
        Joiner { offload, vxlan, mac, groups: vec![], used: 0 }
    }

    /// Takes the IP packet at `range` of `room`, which stays as it is until [`Joiner::finish`].
    pub fn add(&mut self, room: &[u8], range: Range<usize>) {
        let packet = &room[range.clone()];
        let layout = Layout::of(packet, &self.vxlan).filter(|layout| match layout.kind {
            Kind::Tcp => self.offload >= TapOffload::Tso,
            Kind::Udp => self.offload >= TapOffload::Uso,
        });
        let can_join = layout.is_some_and(|layout| is_joinable(packet, &layout));
        if let Some(layout) = layout {
            for group in self.groups[..self.used].iter_mut().rev().take(LOOK_BACK) {
                if group.is_open && group.is_same_flow(room, packet, &layout) {
                    if can_join && group.join(room, &range, &layout) {
                        return;
                    }
                    group.is_open = false;
                    break;
                }
            }
        }
        self.begin(room, range, layout.filter(|_| can_join));
    }

    fn begin(&mut self, room: &[u8], range: Range<usize>, layout: Option<Layout>) {
        if self.used == self.groups.len() {
            self.groups.push(Group::new());
        }
        let group = &mut self.groups[self.used];
        self.used += 1;
        group.parts.clear();
        (group.layout, group.total, group.is_open, group.push) = (layout, range.len(), layout.is_some(), 0);
        if let Some(layout) = layout {
            let packet = &room[range.clone()];
            group.segment = packet.len() - layout.payload;
            if layout.kind == Kind::Tcp {
                group.sequence = sequence(packet, &layout).wrapping_add(group.segment as u32);
                group.push = packet[layout.transport + 13] & PSH;
                group.is_open = group.push == 0;
            }
        }
        group.parts.push(range);
    }

    /// Makes the headers of all frames. Then [`Joiner::frames`] are ready, until [`Joiner::clear`].
    pub fn finish(&mut self, room: &mut [u8]) {
        for group in &mut self.groups[..self.used] {
            let mut header = [0; FRAME_HEADER];
            let first = &mut room[group.parts[0].clone()];
            if let (Some(layout), 2..) = (group.layout, group.parts.len()) {
                let vnet = header.first_chunk_mut().expect("the frame's header begins with this");
                finish_headers(first, &layout, group, vnet);
            }
            // Without ARP the address of the other side means nothing; our own must be right, or the frame is not for us.
            header[VNET_HEADER..VNET_HEADER + 6].copy_from_slice(&self.mac);
            header[VNET_HEADER + 6..VNET_HEADER + 12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            let ethertype: [u8; 2] = if first[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
            header[VNET_HEADER + 12..].copy_from_slice(&ethertype);
            group.header = header;
        }
    }

    /// Each frame: its headers before the IP packet, and where the parts of the IP packet are.
    pub fn frames(&self) -> impl Iterator<Item = (&[u8; FRAME_HEADER], &[Range<usize>])> {
        self.groups[..self.used].iter().map(|group| (&group.header, group.parts.as_slice()))
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

/// Whether a packet may begin or continue a run.
fn is_joinable(packet: &[u8], layout: &Layout) -> bool {
    let has_data = packet.len() > layout.payload;
    match layout.kind {
        Kind::Tcp => has_data && packet[layout.transport + 13] & !PSH == ACK,
        Kind::Udp => has_data,
    }
}

fn sequence(packet: &[u8], layout: &Layout) -> u32 {
    let at = layout.transport + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

impl Group {
    fn new() -> Group {
        Group {
            header: [0; FRAME_HEADER],
            parts: vec![],
            layout: None,
            segment: 0,
            total: 0,
            sequence: 0,
            push: 0,
            is_open: false,
        }
    }

    fn first<'a>(&self, room: &'a [u8]) -> &'a [u8] {
        &room[self.parts[0].clone()]
    }

    /// Whether both have the same addresses and ports, at each level.
    fn is_same_flow(&self, room: &[u8], packet: &[u8], layout: &Layout) -> bool {
        let Some(own) = &self.layout else { return false };
        let same_place =
            (own.kind, own.net, own.transport, own.outer) == (layout.kind, layout.net, layout.transport, layout.outer);
        if !same_place {
            return false;
        }
        let first = self.first(room);
        let addresses = |net: usize| if packet[net] >> 4 == 4 { net + 12..net + 20 } else { net + 8..net + 40 };
        let same = |range: Range<usize>| first[range.clone()] == packet[range];
        same(addresses(layout.net))
            && same(layout.transport..layout.transport + 4)
            && layout.outer.is_none_or(|outer| same(addresses(0)) && same(outer + 8..layout.net))
    }

    /// Appends a packet of the same flow, if nothing is lost by it: all other header fields follow from the first's.
    fn join(&mut self, room: &[u8], range: &Range<usize>, layout: &Layout) -> bool {
        let (first, packet) = (self.first(room), &room[range.clone()]);
        let data = packet.len() - layout.payload;
        let fits = data <= self.segment && self.total + data <= MAX_BYTES && self.parts.len() < MAX_PARTS;
        let same = |range: Range<usize>| first[range.clone()] == packet[range];
        // All but length, id and checksum (IPv4), length (IPv6).
        let same_ip = |net: usize| match packet[net] >> 4 {
            4 => same(net..net + 2) && same(net + 6..net + 10),
            _ => same(net..net + 4) && same(net + 6..net + 8),
        };
        let both_summed = |at: usize| (first[at..at + 2] == [0, 0]) == (packet[at..at + 2] == [0, 0]);
        let same_outer =
            layout.outer.is_none_or(|outer| same_ip(0) && same(outer..outer + 4) && both_summed(outer + 6));
        if !fits || !same_ip(layout.net) || !same_outer {
            return false;
        }
        match layout.kind {
            Kind::Udp if !both_summed(layout.transport + 6) => return false,
            Kind::Udp => {}
            Kind::Tcp => {
                let at = layout.transport;
                let own = self.layout.is_some_and(|own| own.payload == layout.payload);
                // Acknowledgement, header length, window, urgent pointer, options.
                let same_tcp = own && same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..layout.payload);
                if !same_tcp || sequence(packet, layout) != self.sequence {
                    return false;
                }
                self.sequence = self.sequence.wrapping_add(data as u32);
                self.push |= packet[at + 13] & PSH;
            }
        }
        self.total += data;
        self.parts.push(range.start + layout.payload..range.end);
        // A push is for what came so far; a shorter segment can only be the last.
        self.is_open = data == self.segment && self.push == 0;
        true
    }
}

/// Makes the first packet's headers those of the whole run.
fn finish_headers(first: &mut [u8], layout: &Layout, group: &Group, vnet: &mut [u8; VNET_HEADER]) {
    let (at, total) = (layout.transport, group.total);
    let v6 = first[layout.net] >> 4 == 6;
    let outer_v6 = first[0] >> 4 == 6;
    put_len(first, layout.net, total);
    match layout.kind {
        Kind::Tcp => {
            first[at + 13] |= group.push;
            let sum = fold(pseudo(first, layout.net, 6, total - at));
            put(first, at + 16, sum);
        }
        Kind::Udp => {
            put16(first, at + 4, total - at);
            let sum = fold(pseudo(first, layout.net, 17, total - at));
            put(first, at + 6, sum);
        }
    }
    let tunnel = layout.outer.map(|outer| {
        put_len(first, 0, total);
        put16(first, outer + 4, total - outer);
        let checksum = first[outer + 6..outer + 8] != [0, 0];
        if checksum {
            let sum = fold(pseudo(first, 0, 17, total - outer));
            put(first, outer + 6, sum);
        }
        Tunnel { outer_transport: outer, inner_net: layout.net, checksum }
    });
    let run = Run { kind: layout.kind, segment: group.segment, transport: at, tunnel };
    put_run(vnet, &run, layout.payload, v6, outer_v6);
}

/// Length and checksum of the IP header at `net`, of a packet that ends at `total`.
fn put_len(packet: &mut [u8], net: usize, total: usize) {
    if packet[net] >> 4 == 4 {
        put16(packet, net + 2, total - net);
        put_ipv4(packet, net);
    } else {
        put16(packet, net + 4, total - net - 40);
    }
}
