//! DNS messages (RFC 1035 section 4): what a sandbox asks, and replies to it within the size that it can take.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Seconds that an answer of ours may be kept, as Docker says it.
pub const TTL: u32 = 600;
/// Bytes of a header (RFC 1035 section 4.1.1).
pub(super) const HEADER: usize = 12;
/// Bytes of a UDP message when nothing else is agreed (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Largest UDP message sent whatever a client says it takes; also what we say we take.
pub(super) const LARGEST_UDP: u16 = 4096;

/// Bytes of an answer with an address at least: a name, 10 bytes fixed, the address. One more than the name of the root
/// takes; it has no addresses.
const SMALLEST_RECORD: usize = 16;
/// Bytes of an answer with an address at most, without the labels of its name: 10 bytes fixed, an address of IPv6, the end
/// of the name.
const LARGEST_ADDRESS: usize = 27;

/// How a question came, which says how long a reply may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// On a stream, with a length before each message.
    Tcp,
}

/// What became of a packet.
#[derive(Debug)]
pub enum Parsed {
    /// No reply: not a question at all. A reply to a reply could go in circles.
    Ignore,
    /// A reply that says what is wrong.
    Reply(Vec<u8>),
    /// A question to answer.
    Request(Box<Request>),
}

/// One question of a sandbox.
#[derive(Debug)]
pub struct Request {
    /// What is asked, with the name in the letters of the client.
    pub query: Query,
    /// The name in lower case without the last dot; empty for the root.
    pub name: String,
    /// Labels of the name.
    pub labels: usize,
    metadata: Metadata,
    edns: Option<EdnsAsked>,
}

/// What a question said by EDNS (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct EdnsAsked {
    pub payload: u16,
    pub dnssec_ok: bool,
}

/// Bytes that a reply may have.
pub(super) fn limit(edns: Option<EdnsAsked>, transport: Transport) -> usize {
    match (transport, edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => usize::from(PLAIN_UDP),
        (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PLAIN_UDP, LARGEST_UDP)),
    }
}

/// Reads a packet.
pub fn parse(packet: &[u8]) -> Parsed {
    let Some(id) = packet.first_chunk::<2>().map(|id| u16::from_be_bytes(*id)) else { return Parsed::Ignore };
    // The third byte starts with the bit that marks a reply.
    if packet.len() < HEADER || packet[2] & 0x80 != 0 {
        return Parsed::Ignore;
    }
    let op_code = OpCode::from_u8((packet[2] >> 3) & 0x0f);
    if op_code != OpCode::Query {
        return refusal(id, op_code, ResponseCode::NotImp);
    }
    let Ok(mut message) = Message::from_vec(packet) else { return refusal(id, op_code, ResponseCode::FormErr) };
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return refusal(id, op_code, ResponseCode::FormErr);
    };
    let edns = message.edns.as_ref();
    let version = edns.map_or(0, Edns::version);
    let edns = edns.map(|edns| EdnsAsked { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok });
    let (name, labels) = lower_name(&query.name);
    let request = Request { query, name, labels, metadata: message.metadata, edns };
    if version != 0 {
        return Parsed::Reply(request.reply(ResponseCode::BADVERS, Vec::new(), Transport::Udp));
    }
    match request.query.query_type {
        RecordType::AXFR | RecordType::IXFR => {
            Parsed::Reply(request.reply(ResponseCode::Refused, Vec::new(), Transport::Udp))
        }
        _ => Parsed::Request(Box::new(request)),
    }
}

fn refusal(id: u16, op_code: OpCode, code: ResponseCode) -> Parsed {
    match Message::error_msg(id, op_code, code).to_vec() {
        Ok(bytes) => Parsed::Reply(bytes),
        Err(_) => Parsed::Ignore,
    }
}

/// A name in lower case without the last dot, and how many labels it has. Bytes that no name of ours has become `?`:
/// a dot within a label must not be taken for one between two.
fn lower_name(name: &Name) -> (String, usize) {
    let mut text = String::with_capacity(name.len());
    let mut labels = 0;
    for label in name.iter() {
        if labels > 0 {
            text.push('.');
        }
        labels += 1;
        text.extend(label.iter().map(|byte| match byte {
            b'!'..=b'-' | b'/'..=b'~' => char::from(byte.to_ascii_lowercase()),
            _ => '?',
        }));
    }
    (text, labels)
}

impl Request {
    /// Bytes that a reply may have.
    pub fn limit(&self, transport: Transport) -> usize {
        limit(self.edns, transport)
    }

    /// A reply with addresses in that order. Those that do not fit are left out, and the reply says so.
    pub fn addresses(&self, addresses: &[IpAddr], transport: Transport) -> Vec<u8> {
        let data = |address: &IpAddr| match address {
            IpAddr::V4(address) => RData::A(A::from(*address)),
            IpAddr::V6(address) => RData::AAAA(AAAA::from(*address)),
        };
        let record = |address: &IpAddr| Record::from_rdata(self.query.name.clone(), TTL, data(address));
        self.reply(ResponseCode::NoError, addresses.iter().map(record).collect(), transport)
    }

    /// A reply with the name of an address.
    pub fn pointer(&self, name: &str, transport: Transport) -> Vec<u8> {
        match Name::from_ascii(name).map(|mut name| {
            name.set_fqdn(true);
            name
        }) {
            Ok(name) => {
                let record = Record::from_rdata(self.query.name.clone(), TTL, RData::PTR(PTR(name)));
                self.reply(ResponseCode::NoError, vec![record], transport)
            }
            Err(_) => self.status(ResponseCode::NXDomain),
        }
    }

    /// A reply without answers.
    pub fn status(&self, code: ResponseCode) -> Vec<u8> {
        self.reply(code, Vec::new(), Transport::Tcp)
    }

    /// A reply that says that the whole one can be had by TCP.
    pub fn truncated(&self) -> Vec<u8> {
        let mut message = self.message(ResponseCode::NoError);
        message.metadata.truncation = true;
        message.to_vec().unwrap_or_default()
    }

    fn message(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.queries.push(self.query.clone());
        if let Some(asked) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_UDP).set_version(0).set_dnssec_ok(asked.dnssec_ok);
            edns.set_rcode_high(code.high());
            message.edns = Some(edns);
        }
        message
    }

    fn reply(&self, code: ResponseCode, answers: Vec<Record>, transport: Transport) -> Vec<u8> {
        let limit = self.limit(transport);
        let mut message = self.message(code);
        message.answers = answers;
        // More than could fit in any way are not even encoded.
        if message.answers.len() > limit / SMALLEST_RECORD {
            message.answers.truncate(limit / SMALLEST_RECORD);
            message.metadata.truncation = true;
        }
        // Old resolvers do not come back by TCP, so they get as many as fit. How far names are compressed only the
        // encoder knows, so it is asked until it fits; it has dropped too few each time, and never too many.
        loop {
            let bytes = message.to_vec().unwrap_or_default();
            if bytes.len() <= limit {
                return bytes;
            }
            if message.answers.is_empty() {
                return self.truncated();
            }
            let largest = LARGEST_ADDRESS + self.query.name.len();
            let excess = (bytes.len() - limit).div_ceil(largest);
            message.answers.truncate(message.answers.len().saturating_sub(excess));
            message.metadata.truncation = true;
        }
    }

    /// A server's reply under the client's id, or the notice to come back by TCP when it is too long.
    pub fn relay(&self, mut reply: Vec<u8>, transport: Transport) -> Vec<u8> {
        if reply.len() > self.limit(transport) {
            return self.truncated();
        }
        if let Some(id) = reply.first_chunk_mut::<2>() {
            *id = self.metadata.id.to_be_bytes();
        }
        reply
    }
}

/// What matters of a server's reply before it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    /// Parts are missing; the whole one can be had by TCP.
    pub truncated: bool,
    /// Another server may do better: this one failed or refuses to serve us.
    pub try_next: bool,
}

/// The header of a reply to `query` under `id`; `None` when it is anything else, which may be forged.
pub fn check_reply(packet: &[u8], id: u16, query: &Query) -> Option<ReplyHeader> {
    let mut decoder = BinDecoder::new(packet);
    let header = Header::read(&mut decoder).ok()?;
    if header.metadata.id != id || header.metadata.message_type != MessageType::Response {
        return None;
    }
    let failed = matches!(
        header.metadata.response_code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp | ResponseCode::FormErr
    );
    match header.counts.queries {
        // Some servers leave the question out when they could not read it.
        0 if failed => (),
        1 => {
            let asked = Query::read(&mut decoder).ok()?;
            let same = asked.name.eq_ignore_root(&query.name)
                && asked.query_type == query.query_type
                && asked.query_class == query.query_class;
            if !same {
                return None;
            }
        }
        _ => return None,
    }
    Some(ReplyHeader { truncated: header.metadata.truncation, try_next: failed })
}

#[cfg(test)]
mod tests;
