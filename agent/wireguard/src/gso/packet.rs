//! Reading IP, TCP, UDP and VXLAN headers. Only plain forms are told apart in detail, as only these are joined: IPv4
//! without options or fragments (RFC 791), IPv6 without extension headers (RFC 8200), VXLAN (RFC 7348).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::virtio::Kind;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// UDP, VXLAN and inner Ethernet header.
const VXLAN_HEADERS: usize = 8 + 8 + 14;

/// Big-endian 16 bits.
///
/// # Panics
/// If they are not inside; callers have checked.
pub fn get16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Writes big-endian 16 bits.
pub fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Where a packet goes.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).ok()?))),
        6 if packet.len() >= 40 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).ok()?))),
        _ => None,
    }
}

/// The length of a packet without padding, and where it says it is from. None for what is no IP packet.
pub fn source(padded: &[u8]) -> Option<(usize, IpAddr)> {
    let (len, source) = match padded.first()? >> 4 {
        4 if padded.len() >= 20 => {
            let source = Ipv4Addr::from(<[u8; 4]>::try_from(&padded[12..16]).ok()?);
            let len = get16(padded, 2);
            let header = usize::from(padded[0] & 15) * 4;
            if header < 20 || len < header {
                return None;
            }
            (len, IpAddr::V4(source))
        }
        6 if padded.len() >= 40 => {
            let source = Ipv6Addr::from(<[u8; 16]>::try_from(&padded[8..24]).ok()?);
            (get16(padded, 4) + 40, IpAddr::V6(source))
        }
        _ => return None,
    };
    (len <= padded.len()).then_some((len, source))
}

/// Where the parts of a packet lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub kind: Kind,
    /// The innermost IP header.
    pub net: usize,
    /// The innermost TCP or UDP header.
    pub transport: usize,
    /// What it carries.
    pub payload: usize,
    /// The UDP header of the tunnel around it; the outer IP header is at 0.
    pub outer: Option<usize>,
}

impl Layout {
    /// The layout of a whole packet (no padding) that may be part of a run. None for all others. Into a tunnel is looked
    /// if its port is in `vxlan`.
    pub fn of(packet: &[u8], vxlan: &[u16]) -> Option<Layout> {
        let (transport, protocol) = ip(packet, 0)?;
        if protocol == TCP {
            return Some(Layout { kind: Kind::Tcp, net: 0, transport, payload: tcp(packet, transport)?, outer: None });
        }
        udp(packet, transport)?;
        let plain = Layout { kind: Kind::Udp, net: 0, transport, payload: transport + 8, outer: None };
        Some(tunnelled(packet, transport, vxlan).unwrap_or(plain))
    }
}

/// TCP inside VXLAN.
fn tunnelled(packet: &[u8], outer: usize, vxlan: &[u16]) -> Option<Layout> {
    let net = outer + VXLAN_HEADERS;
    if packet.len() <= net || !vxlan.contains(&(get16(packet, outer + 2) as u16)) {
        return None;
    }
    // Flags: a network's number and no more; extensions are carried, but not joined.
    if packet[outer + 8..outer + 12] != [8, 0, 0, 0] || packet[outer + 15] != 0 {
        return None;
    }
    let (transport, protocol) = ip(packet, net)?;
    let v6 = packet[net] >> 4 == 6;
    let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    if protocol != TCP || packet[net - 2..net] != ethertype {
        return None;
    }
    let payload = tcp(packet, transport)?;
    Some(Layout { kind: Kind::Tcp, net, transport, payload, outer: Some(outer) })
}

/// Where the transport header is, and which it is: TCP or UDP. The IP packet must fill the rest.
fn ip(packet: &[u8], net: usize) -> Option<(usize, u8)> {
    let rest = packet.get(net..)?;
    let (len, header, protocol) = match *rest.first()? {
        // More fragments or an offset: not whole.
        0x45 if rest.len() >= 20 && get16(rest, 6) & 0x3fff == 0 => (get16(rest, 2), 20, rest[9]),
        first if first >> 4 == 6 && rest.len() >= 40 => (get16(rest, 4) + 40, 40, rest[6]),
        _ => return None,
    };
    (len == rest.len() && matches!(protocol, TCP | UDP)).then_some((net + header, protocol))
}

fn tcp(packet: &[u8], transport: usize) -> Option<usize> {
    if packet.len() < transport + 20 {
        return None;
    }
    let payload = transport + usize::from(packet[transport + 12] >> 4) * 4;
    (payload >= transport + 20 && payload <= packet.len()).then_some(payload)
}

fn udp(packet: &[u8], transport: usize) -> Option<()> {
    (packet.len() >= transport + 8 && get16(packet, transport + 4) == packet.len() - transport).then_some(())
}
