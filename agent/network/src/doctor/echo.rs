//! Echo requests of ICMP (RFC 792) to many addresses at once, of a given size, and what came back.
//!
//! The IP header is written here, so that each packet says itself whether it may be cut to pieces on its way.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

use crate::sys::netns::Netns;

/// Between two requests to one address.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Bytes of the IP and ICMP headers.
const HEADERS: usize = 28;
/// Room for answers that arrive together, in bytes.
const BUFFER: usize = 4 << 20;

const ICMP: u8 = 1;
const REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const TOO_BIG: u8 = 4;
const REQUEST: u8 = 8;

/// What to send to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Where.
    pub to: Ipv4Addr,
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
    Reply { from: Ipv4Addr, id: u16, sequence: u16 },
    TooBig { to: Ipv4Addr, id: u16, sequence: u16, limit: u16 },
}

/// Sends all requests from the namespace, and waits for the answers. Blocks for up to two seconds; packets may not be cut
/// to pieces.
///
/// # Errors
/// When the sockets cannot be opened.
pub fn echo(netns: &Netns, id: u16, asks: &[Ask]) -> io::Result<Vec<Echo>> {
    let socket = |protocol| -> io::Result<OwnedFd> {
        Ok(socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?)
    };
    let (ears, mouth) = netns.enter(|| Ok::<_, io::Error>((socket(ipproto::ICMP)?, socket(ipproto::RAW)?)))??;
    sockopt::set_socket_recv_buffer_size_force(&ears, BUFFER)?;
    let mut found: Vec<Echo> = asks.iter().map(|ask| Echo { asked: ask.count, ..Echo::default() }).collect();
    let mut sent: BTreeMap<u16, (usize, Instant)> = BTreeMap::new();
    let mut next: u16 = 0;
    for round in 0..asks.iter().map(|ask| ask.count).max().unwrap_or(0) {
        for (at, ask) in asks.iter().enumerate().filter(|(_, ask)| round < ask.count) {
            let target = SocketAddrV4::new(ask.to, 0);
            sent.insert(next, (at, Instant::now()));
            if let Err(error) = sendto(&mouth, &packet(ask, id, next), SendFlags::DONTWAIT, &target) {
                sent.remove(&next);
                found[at].refused = Some(io::Error::from(error).to_string());
            }
            next = next.wrapping_add(1);
        }
        listen(&ears, id, asks, &mut sent, &mut found, PAUSE)?;
    }
    listen(&ears, id, asks, &mut sent, &mut found, PATIENCE)?;
    Ok(found)
}

/// Takes in answers for so long, or until none is missing.
fn listen(
    ears: &OwnedFd,
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
        match poll(&mut [PollFd::new(ears, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let length = match recv(ears, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        match read(&buffer[..length]) {
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
fn packet(ask: &Ask, id: u16, sequence: u16) -> Vec<u8> {
    let size = usize::try_from(ask.size).unwrap_or(usize::MAX).clamp(HEADERS, 65535);
    let mut out = vec![0u8; size];
    out[0] = 0x45;
    out[2..4].copy_from_slice(&u16::try_from(size).unwrap_or(u16::MAX).to_be_bytes());
    out[4..6].copy_from_slice(&sequence.wrapping_add(1).max(1).to_be_bytes());
    out[6] = 0x40;
    out[8] = 64;
    out[9] = ICMP;
    out[16..20].copy_from_slice(&ask.to.octets());
    out[20] = REQUEST;
    out[24..26].copy_from_slice(&id.to_be_bytes());
    out[26..28].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&out[20..]);
    out[22..24].copy_from_slice(&sum.to_be_bytes());
    out
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

/// Reads an IP packet with a message of ICMP.
fn read(packet: &[u8]) -> Option<Heard> {
    let (source, _, message) = ip(packet)?;
    let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    match (*message.first()?, *message.get(1)?) {
        (REPLY, _) => Some(Heard::Reply { from: source, id: word(message, 4)?, sequence: word(message, 6)? }),
        (UNREACHABLE, TOO_BIG) => {
            let (_, to, ours) = ip(message.get(8..)?)?;
            let limit = word(message, 6)?;
            (*ours.first()? == REQUEST).then_some(())?;
            Some(Heard::TooBig { to, id: word(ours, 4)?, sequence: word(ours, 6)?, limit })
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

    #[test]
    fn a_request_has_its_size_and_may_not_be_cut_to_pieces() {
        let bytes = packet(&Ask { to: PEER, size: 1440, count: 1 }, 9, 4);
        assert_eq!((bytes.len(), bytes[6] & 0x40), (1440, 0x40));
        assert_eq!(checksum(&bytes[20..]), 0, "a sum over a right checksum is zero");
        assert_eq!(packet(&Ask { to: PEER, size: 0, count: 1 }, 9, 4).len(), HEADERS);
    }

    #[test]
    fn answers_are_told_from_requests_and_limits_are_read() {
        let mut reply = packet(&Ask { to: PEER, size: 60, count: 1 }, 9, 4);
        assert_eq!(read(&reply), None, "our own request is no answer");
        reply[12..16].copy_from_slice(&PEER.octets());
        reply[20] = REPLY;
        assert_eq!(read(&reply), Some(Heard::Reply { from: PEER, id: 9, sequence: 4 }));

        let request = packet(&Ask { to: PEER, size: 60, count: 1 }, 9, 4);
        let mut error = packet(&Ask { to: Ipv4Addr::LOCALHOST, size: 28, count: 1 }, 0, 0);
        (error[20], error[21]) = (UNREACHABLE, TOO_BIG);
        error[26..28].copy_from_slice(&1400u16.to_be_bytes());
        error.extend_from_slice(&request[..28]);
        assert_eq!(read(&error), Some(Heard::TooBig { to: PEER, id: 9, sequence: 4, limit: 1400 }));
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), shape in any::<bool>()) {
            if shape && bytes.len() > 22 {
                (bytes[0], bytes[9], bytes[20], bytes[21]) = (0x45, ICMP, UNREACHABLE, TOO_BIG);
            }
            let _ = read(&bytes);
        }
    }
}
