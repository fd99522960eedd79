//! The usual question, read and answered where it lies: one name of letters, digits, `-` and `_`, for addresses of one
//! family, with or without EDNS (RFC 6891), and nothing else in the packet. Nearly all that resolvers of containers ask
//! is of this form, and neither reading nor answering it allocates.
//!
//! Whatever is not exactly that is left to `message`, and so is what a server outside has to say. A reply is the same as
//! `message` makes, byte by byte: the tests ask both.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use rand::Rng;

use super::message::{EdnsAsked, HEADER, LARGEST_UDP, TTL, Transport, limit};
use super::resolve::{Found, choose, find};
use super::zone::{ZoneKey, Zones};

/// Bytes of a name on the wire at most (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 255;
/// Bytes of the pseudo-record of EDNS without options (RFC 6891 section 6.1.2).
const OPT: usize = 11;
/// Addresses in a reply at most: the encoder that `message` uses shortens 120 names of a message at most.
const MOST_ADDRESSES: usize = 100;
/// Class of the internet.
const IN: [u8; 2] = [0, 1];
/// Points to the name of the question (RFC 1035 section 4.1.4): it stands behind the header.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, 12];

/// A question that is as usual.
#[derive(Debug)]
pub struct Question<'a> {
    /// Header and question.
    packet: &'a [u8],
    kind: RecordType,
    edns: Option<EdnsAsked>,
    /// The name in lower case without the last dot.
    name: [u8; LONGEST_NAME],
    length: usize,
    labels: usize,
}

impl<'a> Question<'a> {
    /// Reads a packet; `None` when there is anything unusual about it.
    pub fn read(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<HEADER>()?;
        // A query that may wish for recursion and speak of DNSSEC, with one question.
        let [_, _, first, second, 0, 1, 0, 0, 0, 0, 0, additional] = *header else { return None };
        if first & !0x01 != 0 || second & !0x30 != 0 || additional > 1 {
            return None;
        }
        let (mut name, mut length, mut labels, mut at) = ([0; LONGEST_NAME], 0, 0, HEADER);
        loop {
            let label = match usize::from(*packet.get(at)?) {
                0 => break,
                size @ 1..=63 => packet.get(at + 1..at + 1 + size)?,
                _ => return None,
            };
            at += 1 + label.len();
            // The end of the name takes a byte as well.
            if at + 1 - HEADER > LONGEST_NAME {
                return None;
            }
            if labels > 0 {
                name[length] = b'.';
                length += 1;
            }
            labels += 1;
            for (place, byte) in name[length..].iter_mut().zip(label) {
                *place = match byte {
                    b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'A'..=b'Z' => byte.to_ascii_lowercase(),
                    _ => return None,
                };
            }
            length += label.len();
        }
        let end = at + 5;
        let kind = match packet.get(at + 1..end)? {
            [kind @ .., 0, 1] if *kind == u16::from(RecordType::A).to_be_bytes() => RecordType::A,
            [kind @ .., 0, 1] if *kind == u16::from(RecordType::AAAA).to_be_bytes() => RecordType::AAAA,
            _ => return None,
        };
        let edns = match (additional, &packet[end..]) {
            (0, []) => None,
            // Root, type 41, size, no extended code, version 0, flags, no options.
            (1, [0, 0, 41, size @ .., 0, 0, flags, 0, 0, 0]) if size.len() == 2 && flags & !0x80 == 0 => {
                Some(EdnsAsked { payload: u16::from_be_bytes([size[0], size[1]]), dnssec_ok: *flags != 0 })
            }
            _ => return None,
        };
        (labels > 0).then_some(Self { packet: &packet[..end], kind, edns, name, length, labels })
    }

    /// Puts the reply behind what is in `reply`; false, and nothing, when a server outside has to say or the reply is
    /// unusually long. `room` is for addresses.
    pub fn answer(
        &self,
        (order, zones): (&[ZoneKey], &Zones),
        transport: Transport,
        rng: &mut impl Rng,
        room: &mut Vec<IpAddr>,
        reply: &mut Vec<u8>,
    ) -> bool {
        let Ok(name) = str::from_utf8(&self.name[..self.length]) else { return false };
        match find(name, self.labels, order, zones) {
            Found::Known(known) if known.v4.len().max(known.v6.len()) > MOST_ADDRESSES => return false,
            Found::Known(known) => {
                choose(known, self.kind, rng, room);
                self.reply(ResponseCode::NoError, room, transport, reply);
            }
            Found::NoSuchName => self.reply(ResponseCode::NXDomain, &[], transport, reply),
            Found::Elsewhere => return false,
        }
        true
    }

    fn reply(&self, code: ResponseCode, addresses: &[IpAddr], transport: Transport, reply: &mut Vec<u8>) {
        let data: u16 = if self.kind == RecordType::A { 4 } else { 16 };
        let each = NAME_OF_QUESTION.len() + 10 + usize::from(data);
        let around = self.packet.len() + if self.edns.is_some() { OPT } else { 0 };
        let fit = limit(self.edns, transport).saturating_sub(around) / each;
        let count = u16::try_from(addresses.len().min(fit)).unwrap_or(u16::MAX);
        let is_cut = usize::from(count) < addresses.len();
        let recursion_desired = self.packet[2] & 0x01;
        let edns = u8::from(self.edns.is_some());
        reply.reserve(around + usize::from(count) * each);
        reply.extend_from_slice(&self.packet[..2]);
        // A reply, perhaps cut; recursion is available.
        reply.extend_from_slice(&[0x80 | u8::from(is_cut) << 1 | recursion_desired, 0x80 | code.low()]);
        reply.extend_from_slice(&[0, 1]);
        reply.extend_from_slice(&count.to_be_bytes());
        reply.extend_from_slice(&[0, 0, 0, edns]);
        reply.extend_from_slice(&self.packet[HEADER..]);
        for address in &addresses[..usize::from(count)] {
            reply.extend_from_slice(&NAME_OF_QUESTION);
            reply.extend_from_slice(&u16::from(self.kind).to_be_bytes());
            reply.extend_from_slice(&IN);
            reply.extend_from_slice(&TTL.to_be_bytes());
            reply.extend_from_slice(&data.to_be_bytes());
            match address {
                IpAddr::V4(address) => reply.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => reply.extend_from_slice(&address.octets()),
            }
        }
        if let Some(edns) = self.edns {
            reply.extend_from_slice(&[0, 0, 41]);
            reply.extend_from_slice(&LARGEST_UDP.to_be_bytes());
            reply.extend_from_slice(&[0, 0, u8::from(edns.dnssec_ok) << 7, 0, 0, 0]);
        }
    }
}

#[cfg(test)]
mod tests;
