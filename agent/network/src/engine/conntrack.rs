//! Connections to addresses that are no more, cut: otherwise they hang until their time-out (ctnetlink,
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use crate::nft::diff::header;
use crate::nlattr::{Attrs, find};
use crate::sys::netlink::{NetlinkSocket, Protocol};
use crate::sys::netns::Netns;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const IPV4: u8 = 2;
/// Attributes of a connection.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// Deletes the connections of a namespace whose answers would come from one of `gone`.
///
/// # Errors
/// Those of the socket. A connection that ended meanwhile is no error.
pub fn cut(netns: &Netns, gone: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    if gone.is_empty() {
        return Ok(0);
    }
    let mut socket = NetlinkSocket::open(netns, Protocol::Netfilter)?;
    let mut request = Vec::new();
    header(&mut request, GET, REQUEST | DUMP, 1, IPV4, 0, &[]);
    let answer = socket.request(&request)?;
    let doomed: Vec<Attrs> = answer.messages.iter().filter_map(|message| deletion(message.get(4..)?, gone)).collect();
    for part in doomed.chunks(500) {
        let mut requests = Vec::new();
        for (sequence, attrs) in (1..).zip(part) {
            header(&mut requests, DELETE, REQUEST | ACK, sequence, IPV4, 0, attrs.as_slice());
        }
        let answer = socket.request(&requests)?;
        if let Some((_, error)) = answer.errors.into_iter().find(|(_, e)| e.kind() != io::ErrorKind::NotFound) {
            return Err(error);
        }
    }
    Ok(doomed.len())
}

/// What deletes the connection, if its answers come from one of `gone`.
fn deletion(connection: &[u8], gone: &BTreeSet<Ipv4Addr>) -> Option<Attrs> {
    // CTA_TUPLE_IP and CTA_IP_V4_SRC are both 1.
    let source: [u8; 4] = find(find(find(connection, TUPLE_REPLY)?, 1)?, 1)?.try_into().ok()?;
    if !gone.contains(&Ipv4Addr::from(source)) {
        return None;
    }
    let mut attrs = Attrs::new();
    let original = find(connection, TUPLE_ORIGINAL)?;
    attrs.bytes(TUPLE_ORIGINAL | 0x8000, original);
    for kind in [ID, ZONE] {
        if let Some(value) = find(connection, kind) {
            attrs.bytes(kind, value);
        }
    }
    Some(attrs)
}
