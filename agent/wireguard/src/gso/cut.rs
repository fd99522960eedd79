//! One read of the interface into packets as they go on the wire.
//!
//! Each packet is written straight to where it will be sealed: headers copied and corrected (lengths, IPv4 id, TCP
//! sequence and flags, all checksums), then its part of the data.

use super::{
    checksum::{fold, never_zero, pseudo, put, put_ipv4, sum},
    packet::{get16, put16},
    virtio::{Kind, Offload, Run},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// TCP flags (RFC 9293, section 3.1; RFC 3168 for CWR).
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Cuts one frame's IP packet into packets.
#[derive(Debug)]
pub struct Cutter<'a> {
    packet: &'a [u8],
    run: Option<Run>,
    headers: usize,
    done: usize,
    index: usize,
    finished: bool,
}

impl<'a> Cutter<'a> {
    /// `packet` is the frame from its IP header on. Finishes the checksum of a single packet in place. None for a packet
    /// that does not agree with its header.
    pub fn new(offload: Offload, packet: &'a mut [u8]) -> Option<Cutter<'a>> {
        let mut cutter = Cutter { packet: &[], run: None, headers: packet.len(), done: 0, index: 0, finished: false };
        match offload {
            Offload::None => {}
            Offload::Checksum { start, offset } => {
                let at = start.checked_add(offset)?;
                if start >= packet.len() || at + 2 > packet.len() {
                    return None;
                }
                // The field holds the sum over the pseudo header.
                let checksum = !fold(sum(&packet[start..]));
                put(packet, at, if offset == 6 { never_zero(checksum) } else { checksum });
            }
            Offload::Run(run) => {
                let headers = check(&run, packet)?;
                // Sums run over zero where the checksum will be.
                put(packet, run.transport + checksum_at(run.kind), 0);
                if let Some(tunnel) = run.tunnel {
                    put(packet, tunnel.outer_transport + 6, 0);
                }
                (cutter.run, cutter.headers, cutter.done) = (Some(run), headers, headers);
            }
        }
        cutter.packet = packet;
        Some(cutter)
    }

    /// Bytes of the next packet; None when there is none.
    pub fn next_len(&self) -> Option<usize> {
        match &self.run {
            _ if self.finished => None,
            None => Some(self.packet.len()),
            Some(run) => Some(self.headers + run.segment.min(self.packet.len() - self.done)),
        }
    }

    /// Writes the next packet into `slot`, which has the size that [`Cutter::next_len`] told.
    pub fn write(&mut self, slot: &mut [u8]) {
        let Some(run) = self.run else {
            slot.copy_from_slice(self.packet);
            self.finished = true;
            return;
        };
        let (headers, data) = slot.split_at_mut(self.headers);
        headers.copy_from_slice(&self.packet[..self.headers]);
        data.copy_from_slice(&self.packet[self.done..self.done + data.len()]);
        let first = self.done == self.headers;
        let before = self.done - self.headers;
        self.done += data.len();
        self.finished = self.done >= self.packet.len();
        correct(slot, &run, self.index, before, first, self.finished);
        self.index += 1;
    }
}

/// Bytes of all headers, if the run's offsets lie inside the packet, in order, and before some data.
fn check(run: &Run, packet: &[u8]) -> Option<usize> {
    let has_ip = |net: usize, end: usize| match packet.get(net)? >> 4 {
        4 => (net + 20 <= end && net + usize::from(packet[net] & 15) * 4 <= end && packet[net] & 15 >= 5).then_some(()),
        6 => (net + 40 <= end).then_some(()),
        _ => None,
    };
    let minimum = if run.kind == Kind::Udp { 8 } else { 20 };
    if run.transport + minimum > packet.len() || packet.len() > usize::from(u16::MAX) {
        return None;
    }
    match run.tunnel {
        None => has_ip(0, run.transport)?,
        Some(tunnel) => {
            has_ip(0, tunnel.outer_transport)?;
            // Sums are added up, which needs whole words; all headers that there are between the two have them.
            let is_odd = !run.transport.wrapping_sub(tunnel.outer_transport).is_multiple_of(2);
            if tunnel.outer_transport + 8 > tunnel.inner_net || is_odd {
                return None;
            }
            has_ip(tunnel.inner_net, run.transport)?;
        }
    }
    let headers = match run.kind {
        Kind::Udp => run.transport + 8,
        Kind::Tcp => run.transport + usize::from(packet[run.transport + 12] >> 4) * 4,
    };
    (headers >= run.transport + minimum && headers < packet.len()).then_some(headers)
}

fn checksum_at(kind: Kind) -> usize {
    if kind == Kind::Tcp { 16 } else { 6 }
}

/// Makes the copied headers those of segment `index`, which begins `before` bytes into the data.
fn correct(packet: &mut [u8], run: &Run, index: usize, before: usize, first: bool, last: bool) {
    let (at, len) = (run.transport, packet.len());
    let net = run.tunnel.map_or(0, |tunnel| tunnel.inner_net);
    put_ip(packet, net, index);
    let protocol = match run.kind {
        Kind::Tcp => {
            let sequence = u32::from_be_bytes([packet[at + 4], packet[at + 5], packet[at + 6], packet[at + 7]]);
            packet[at + 4..at + 8].copy_from_slice(&sequence.wrapping_add(before as u32).to_be_bytes());
            // The end of a stream and a push belong to its last segment, the answer to ECN to the first.
            packet[at + 13] &= if last { 0xff } else { !FIN_PSH } & if first { 0xff } else { !CWR };
            TCP
        }
        Kind::Udp => {
            put16(packet, at + 4, len - at);
            UDP
        }
    };
    let head = pseudo(packet, net, protocol, len - at);
    let checksum = !fold(head + sum(&packet[at..]));
    put(packet, at + checksum_at(run.kind), if run.kind == Kind::Udp { never_zero(checksum) } else { checksum });
    if let Some(tunnel) = run.tunnel {
        put_ip(packet, 0, index);
        let outer = tunnel.outer_transport;
        put16(packet, outer + 4, len - outer);
        // Over IPv4 VXLAN goes without (RFC 7348, section 4.2), over IPv6 a datagram without one is dropped (RFC 8200,
        // section 8.1). What is inside sums to the complement of its pseudo header, so it need not be read again.
        if tunnel.checksum || packet[0] >> 4 == 6 {
            let inside = u64::from(!fold(head));
            let between = sum(&packet[outer..at]);
            let checksum = !fold(pseudo(packet, 0, UDP, len - outer) + between + inside);
            put(packet, outer + 6, never_zero(checksum));
        }
    }
}

/// Length, id and checksum of the IP header at `net`.
fn put_ip(packet: &mut [u8], net: usize, index: usize) {
    let len = packet.len() - net;
    if packet[net] >> 4 == 4 {
        put16(packet, net + 2, len);
        let id = get16(packet, net + 4).wrapping_add(index);
        put16(packet, net + 4, id);
        put_ipv4(packet, net);
    } else {
        put16(packet, net + 4, len - 40);
    }
}
