//! Echo requests of ICMP (RFC 792, RFC 4443) to many addresses at once, of a given size, and what came back.
//!
//! The IP header is written here, so that each packet says itself whether it may be cut to pieces on its way; over IPv6
//! none may.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, socket_with, sockopt,
};

use crate::sys::netns::Netns;

/// Between two requests to one address.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Bytes of the IP and ICMP headers.
const HEADERS: usize = 28;
const HEADERS6: usize = 48;
/// Room for answers that arrive together, in bytes.
const BUFFER: usize = 4 << 20;

const ICMP: u8 = 1;
const REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const TOO_BIG: u8 = 4;
const REQUEST: u8 = 8;

const ICMPV6: u8 = 58;
const REPLY6: u8 = 129;
const TOO_BIG6: u8 = 2;
const REQUEST6: u8 = 128;

/// What to send to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Where.
    pub to: IpAddr,
    /// Size of the IP packets in bytes.
    pub size: u32,
    /// How many.
    pub count: u16,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Echo {
    /// Packets that were to be sent.
    pub asked: u16,
    /// Of those that came back, how long it took.
    pub times: Vec<Duration>,
    /// Why this node could not send one.
    pub refused: Option<String>,
    /// Somebody on the way said that it passes on only packets of so many bytes (RFC 1191); 0 when it did not say how many.
    pub limit: Option<u16>,
}

impl Echo {
    /// Packets that did not come back.
    pub fn lost(&self) -> usize {
        usize::from(self.asked).saturating_sub(self.times.len())
    }

    /// None came back.
    pub fn is_silent(&self) -> bool {
        self.times.is_empty()
    }
}

/// A message of ICMP, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Reply { from: IpAddr, id: u16, sequence: u16 },
    TooBig { to: IpAddr, id: u16, sequence: u16, limit: u16 },
}

/// Sockets of one version of IP.
struct Sockets {
    ears: OwnedFd,
    mouth: OwnedFd,
    is_v6: bool,
}

impl Sockets {
    fn open(netns: &Netns, is_v6: bool) -> io::Result<Self> {
        let (family, icmp) =
            if is_v6 { (AddressFamily::INET6, ipproto::ICMPV6) } else { (AddressFamily::INET, ipproto::ICMP) };
        let socket = |protocol| -> io::Result<OwnedFd> {
            Ok(socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?)
        };
        let (ears, mouth) = netns.enter(|| Ok::<_, io::Error>((socket(icmp)?, socket(ipproto::RAW)?)))??;
        sockopt::set_socket_recv_buffer_size_force(&ears, BUFFER)?;
        Ok(Self { ears, mouth, is_v6 })
    }
}

/// Sends all requests from the namespace, and waits for the answers. Blocks for up to two seconds; packets may not be cut
/// to pieces.
///
/// # Errors
/// When the sockets cannot be opened.
pub fn echo(netns: &Netns, id: u16, asks: &[Ask]) -> io::Result<Vec<Echo>> {
    let families = [false, true].into_iter().filter(|is_v6| asks.iter().any(|ask| ask.to.is_ipv6() == *is_v6));
    let sockets = families.map(|is_v6| Sockets::open(netns, is_v6)).collect::<io::Result<Vec<_>>>()?;
    let mut found: Vec<Echo> = asks.iter().map(|ask| Echo { asked: ask.count, ..Echo::default() }).collect();
    let mut sent: BTreeMap<u16, (usize, Instant)> = BTreeMap::new();
    let mut next: u16 = 0;
    for round in 0..asks.iter().map(|ask| ask.count).max().unwrap_or(0) {
        for (at, ask) in asks.iter().enumerate().filter(|(_, ask)| round < ask.count) {
            sent.insert(next, (at, Instant::now()));
            if let Err(error) = request(netns, &sockets, ask, id, next) {
                sent.remove(&next);
                found[at].refused = Some(error.to_string());
            }
            next = next.wrapping_add(1);
        }
        listen(&sockets, id, asks, &mut sent, &mut found, PAUSE)?;
    }
    listen(&sockets, id, asks, &mut sent, &mut found, PATIENCE)?;
    Ok(found)
}

fn request(netns: &Netns, sockets: &[Sockets], ask: &Ask, id: u16, sequence: u16) -> io::Result<()> {
    let bytes = match ask.to {
        IpAddr::V4(to) => packet(to, ask.size, id, sequence),
        IpAddr::V6(to) => packet6(source(netns, to)?, to, ask.size, id, sequence),
    };
    let Some(sockets) = sockets.iter().find(|sockets| sockets.is_v6 == ask.to.is_ipv6()) else { return Ok(()) };
    sendto(&sockets.mouth, &bytes, SendFlags::DONTWAIT, &SocketAddr::new(ask.to, 0))?;
    Ok(())
}

/// The address that packets to another one leave with. The checksum of ICMPv6 is over it, too.
fn source(netns: &Netns, to: Ipv6Addr) -> io::Result<Ipv6Addr> {
    let own = netns.enter(|| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        // Any port: nothing is sent.
        socket.connect((to, 9))?;
        socket.local_addr()
    })??;
    match own.ip() {
        IpAddr::V6(own) => Ok(own),
        IpAddr::V4(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// Takes in answers for so long, or until none is missing.
fn listen(
    sockets: &[Sockets],
    id: u16,
    asks: &[Ask],
    sent: &mut BTreeMap<u16, (usize, Instant)>,
    found: &mut [Echo],
    patience: Duration,
) -> io::Result<()> {
    let until = Instant::now() + patience;
    let mut buffer = vec![0u8; 65536];
    while !sent.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|s| PollFd::new(&s.ears, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(ready) = fds.iter().position(|fd| !fd.revents().is_empty()) else { continue };
        let ready = &sockets[ready];
        let (length, from) = match recvfrom(&ready.ears, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _, from)) => (length, from.and_then(|from| SocketAddr::try_from(from).ok())),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let heard = match from {
            Some(SocketAddr::V6(from)) if ready.is_v6 => read6(&buffer[..length], *from.ip()),
            _ => read(&buffer[..length]),
        };
        match heard {
            Some(Heard::Reply { from, id: theirs, sequence }) if theirs == id => {
                if let Some((at, when)) = sent.get(&sequence).copied()
                    && asks[at].to == from
                {
                    sent.remove(&sequence);
                    found[at].times.push(when.elapsed());
                }
            }
            Some(Heard::TooBig { to, id: theirs, sequence, limit }) if theirs == id => {
                if let Some((at, _)) = sent.get(&sequence).copied()
                    && asks[at].to == to
                {
                    found[at].limit = Some(limit);
                }
            }
            _ => {}
        }
    }
    // The pause is also what keeps requests apart.
    std::thread::sleep(until.saturating_duration_since(Instant::now()).min(PAUSE));
    Ok(())
}

/// A request that may not be cut to pieces (RFC 791, RFC 792). The kernel fills in the source, and the header's checksum.
fn packet(to: Ipv4Addr, size: u32, id: u16, sequence: u16) -> Vec<u8> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).clamp(HEADERS, 65535);
    let mut out = vec![0u8; size];
    out[0] = 0x45;
    out[2..4].copy_from_slice(&u16::try_from(size).unwrap_or(u16::MAX).to_be_bytes());
    out[4..6].copy_from_slice(&sequence.wrapping_add(1).max(1).to_be_bytes());
    out[6] = 0x40;
    out[8] = 64;
    out[9] = ICMP;
    out[16..20].copy_from_slice(&to.octets());
    out[20] = REQUEST;
    out[24..26].copy_from_slice(&id.to_be_bytes());
    out[26..28].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&out[20..]);
    out[22..24].copy_from_slice(&sum.to_be_bytes());
    out
}

/// The same of IPv6 (RFC 8200 section 3, RFC 4443 section 4.1).
fn packet6(from: Ipv6Addr, to: Ipv6Addr, size: u32, id: u16, sequence: u16) -> Vec<u8> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).clamp(HEADERS6, 65535);
    let length = u16::try_from(size - 40).unwrap_or(u16::MAX);
    let mut out = vec![0u8; size];
    out[0] = 0x60;
    out[4..6].copy_from_slice(&length.to_be_bytes());
    (out[6], out[7]) = (ICMPV6, 64);
    out[8..24].copy_from_slice(&from.octets());
    out[24..40].copy_from_slice(&to.octets());
    out[40] = REQUEST6;
    out[44..46].copy_from_slice(&id.to_be_bytes());
    out[46..48].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum6(&out);
    out[42..44].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Over addresses, length and protocol as well (RFC 8200 section 8.1).
fn checksum6(packet: &[u8]) -> u16 {
    let about = [0, 0, packet[4], packet[5], 0, 0, 0, ICMPV6];
    checksum(&[&packet[8..40], &about, &packet[40..]].concat())
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads an IP packet with a message of ICMP.
fn read(packet: &[u8]) -> Option<Heard> {
    let (source, _, message) = ip(packet)?;
    match (*message.first()?, *message.get(1)?) {
        (REPLY, _) => Some(Heard::Reply { from: source.into(), id: word(message, 4)?, sequence: word(message, 6)? }),
        (UNREACHABLE, TOO_BIG) => {
            let (_, to, ours) = ip(message.get(8..)?)?;
            let limit = word(message, 6)?;
            (*ours.first()? == REQUEST).then_some(())?;
            Some(Heard::TooBig { to: to.into(), id: word(ours, 4)?, sequence: word(ours, 6)?, limit })
        }
        _ => None,
    }
}

/// Reads a message of ICMPv6 from that address, as its socket gives it: without a header.
fn read6(message: &[u8], from: Ipv6Addr) -> Option<Heard> {
    match *message.first()? {
        REPLY6 => Some(Heard::Reply { from: from.into(), id: word(message, 4)?, sequence: word(message, 6)? }),
        TOO_BIG6 => {
            let (high, low) = (word(message, 4)?, word(message, 6)?);
            let ours = message.get(8..)?;
            let to = Ipv6Addr::from(<[u8; 16]>::try_from(ours.get(24..40)?).ok()?);
            (*ours.get(6)? == ICMPV6 && *ours.get(40)? == REQUEST6).then_some(())?;
            let limit = if high > 0 { u16::MAX } else { low };
            Some(Heard::TooBig { to: to.into(), id: word(ours, 44)?, sequence: word(ours, 46)?, limit })
        }
        _ => None,
    }
}

/// Source, destination and content of an IPv4 packet of ICMP.
fn ip(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, &[u8])> {
    let first = *packet.first()?;
    if first >> 4 != 4 || *packet.get(9)? != ICMP {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    Some((address(12)?, address(16)?, packet.get(usize::from(first & 15) * 4..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

    #[test]
    fn a_request_has_its_size_and_may_not_be_cut_to_pieces() {
        let bytes = packet(PEER, 1440, 9, 4);
        assert_eq!((bytes.len(), bytes[6] & 0x40), (1440, 0x40));
        assert_eq!(checksum(&bytes[20..]), 0, "a sum over a right checksum is zero");
        assert_eq!(packet(PEER, 0, 9, 4).len(), HEADERS);
        let bytes = packet6(OWN6, PEER6, 1440, 9, 4);
        assert_eq!((bytes.len(), word(&bytes, 4)), (1440, Some(1400)));
        assert_eq!(checksum6(&bytes), 0);
        assert_eq!(packet6(OWN6, PEER6, 0, 9, 4).len(), HEADERS6);
    }

    #[test]
    fn answers_are_told_from_requests_and_limits_are_read() {
        let mut reply = packet(PEER, 60, 9, 4);
        assert_eq!(read(&reply), None, "our own request is no answer");
        reply[12..16].copy_from_slice(&PEER.octets());
        reply[20] = REPLY;
        assert_eq!(read(&reply), Some(Heard::Reply { from: PEER.into(), id: 9, sequence: 4 }));

        let request = packet(PEER, 60, 9, 4);
        let mut error = packet(Ipv4Addr::LOCALHOST, 28, 0, 0);
        (error[20], error[21]) = (UNREACHABLE, TOO_BIG);
        error[26..28].copy_from_slice(&1400u16.to_be_bytes());
        error.extend_from_slice(&request[..28]);
        assert_eq!(read(&error), Some(Heard::TooBig { to: PEER.into(), id: 9, sequence: 4, limit: 1400 }));
    }

    #[test]
    fn the_same_holds_of_ipv6() {
        let request = packet6(OWN6, PEER6, 60, 9, 4);
        assert_eq!(read6(&request[40..], PEER6), None, "our own request is no answer");
        let mut reply = request[40..].to_vec();
        reply[0] = REPLY6;
        assert_eq!(read6(&reply, PEER6), Some(Heard::Reply { from: PEER6.into(), id: 9, sequence: 4 }));
        let mut error = vec![TOO_BIG6, 0, 0, 0, 0, 0, 5, 0];
        error.extend_from_slice(&request);
        let heard = Heard::TooBig { to: PEER6.into(), id: 9, sequence: 4, limit: 1280 };
        assert_eq!(read6(&error, OWN6), Some(heard));
        error[5] = 1;
        assert!(matches!(read6(&error, OWN6), Some(Heard::TooBig { limit: u16::MAX, .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), shape in any::<bool>()) {
            if shape && bytes.len() > 22 {
                (bytes[0], bytes[9], bytes[20], bytes[21]) = (0x45, ICMP, UNREACHABLE, TOO_BIG);
            }
            let _ = read(&bytes);
            if shape && bytes.len() > 50 {
                (bytes[0], bytes[14], bytes[48]) = (TOO_BIG6, ICMPV6, REQUEST6);
            }
            let _ = read6(&bytes, PEER6);
        }
    }
}
