//! The header before each frame on the interface: `struct virtio_net_hdr_v1_hash_tunnel` (Virtio 1.4, section 5.1.6;
//! linux/virtio_net.h), little endian.

use crate::sys::tap::VNET_HEADER;

const NEEDS_CSUM: u8 = 1;
const TUNNEL_CSUM: u8 = 8;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_TUNNEL_IPV4: u8 = 0x20;
const GSO_TUNNEL_IPV6: u8 = 0x40;
const GSO_ECN: u8 = 0x80;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// What is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
}

/// A run of segments in one frame. Offsets are from the IP header on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub kind: Kind,
    /// Bytes of data in each segment but the last.
    pub segment: usize,
    /// Where the innermost TCP or UDP header begins.
    pub transport: usize,
    /// Where the outer UDP header and the inner IP header begin, if the run is inside a UDP tunnel.
    pub tunnel: Option<Tunnel>,
}

/// See [`Run::tunnel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    pub outer_transport: usize,
    pub inner_net: usize,
    /// The outer UDP header has a checksum.
    pub checksum: bool,
}

/// What the header says of a frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// One finished packet.
    None,
    /// One packet whose checksum is still to be summed from `start`, and written `offset` after it.
    Checksum { start: usize, offset: usize },
    /// Many packets.
    Run(Run),
}

impl Offload {
    /// None for a header that makes no sense, or offloads that were not asked for.
    pub fn parse(header: &[u8; VNET_HEADER]) -> Option<Offload> {
        let at = |i: usize| usize::from(u16::from_le_bytes([header[i], header[i + 1]]));
        let inside = |offset: usize| offset.checked_sub(ETHERNET);
        let (flags, kind, segment) = (header[0], header[1], at(4));
        let kind = match kind & !(GSO_ECN | GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6) {
            0 if flags & NEEDS_CSUM != 0 => return Some(Offload::Checksum { start: inside(at(6))?, offset: at(8) }),
            0 => return Some(Offload::None),
            GSO_TCPV4 | GSO_TCPV6 => Kind::Tcp,
            GSO_UDP_L4 => Kind::Udp,
            _ => return None,
        };
        let tunnel = match header[1] & (GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6) {
            0 => None,
            _ => Some(Tunnel {
                outer_transport: inside(at(20))?,
                inner_net: inside(at(22))?,
                checksum: flags & TUNNEL_CSUM != 0,
            }),
        };
        (segment > 0).then_some(Offload::Run(Run { kind, segment, transport: inside(at(6))?, tunnel }))
    }
}

/// Writes the header of a run that is given to the kernel. `headers`: bytes before the data; `v6`: the innermost IP;
/// `outer_v6`: that of the tunnel.
pub fn put_run(header: &mut [u8; VNET_HEADER], run: &Run, headers: usize, v6: bool, outer_v6: bool) {
    let mut put = |at: usize, value: usize| header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    put(2, headers + ETHERNET);
    put(4, run.segment);
    put(6, run.transport + ETHERNET);
    put(8, if run.kind == Kind::Tcp { 16 } else { 6 });
    let mut kind = match run.kind {
        Kind::Tcp if v6 => GSO_TCPV6,
        Kind::Tcp => GSO_TCPV4,
        Kind::Udp => GSO_UDP_L4,
    };
    let mut flags = NEEDS_CSUM;
    if let Some(tunnel) = run.tunnel {
        put(20, tunnel.outer_transport + ETHERNET);
        put(22, tunnel.inner_net + ETHERNET);
        kind |= if outer_v6 { GSO_TUNNEL_IPV6 } else { GSO_TUNNEL_IPV4 };
        if tunnel.checksum {
            flags |= TUNNEL_CSUM;
        }
    }
    (header[0], header[1]) = (flags, kind);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let tunnel = Some(Tunnel { outer_transport: 40, inner_net: 70, checksum: true });
        for run in [
            Run { kind: Kind::Tcp, segment: 1300, transport: 90, tunnel },
            Run { kind: Kind::Udp, segment: 1, transport: 20, tunnel: None },
        ] {
            let mut header = [0; VNET_HEADER];
            put_run(&mut header, &run, 110, false, true);
            assert_eq!(Offload::parse(&header), Some(Offload::Run(run)));
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(bytes in any::<[u8; VNET_HEADER]>()) {
            if let Some(Offload::Run(run)) = Offload::parse(&bytes) {
                prop_assert!(run.segment > 0);
            }
        }
    }
}
