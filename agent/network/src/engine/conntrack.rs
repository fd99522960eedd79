//! Connections to addresses that are no more, cut: otherwise they hang until their time-out (ctnetlink,
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use crate::nft::diff::header;
use crate::nft::rule::UDP;
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

/// Which connections are cut.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// Those whose answers would come from these addresses.
    pub gone: BTreeSet<Ipv4Addr>,
    /// Those to these UDP ports that lead nowhere else: a client that kept sending to a port that was closed would
    /// never be led to the task that it was published for.
    pub opened: BTreeSet<u16>,
}

/// Deletes the connections of a namespace that `cut` names.
///
/// # Errors
/// Those of the socket. A connection that ended meanwhile is no error.
pub fn cut(netns: &Netns, cut: &Cut) -> io::Result<usize> {
    if cut.gone.is_empty() && cut.opened.is_empty() {
        return Ok(0);
    }
    let mut socket = NetlinkSocket::open(netns, Protocol::Netfilter)?;
    let mut request = Vec::new();
    header(&mut request, GET, REQUEST | DUMP, 1, IPV4, 0, &[]);
    let answer = socket.request(&request)?;
    let doomed: Vec<Attrs> = answer.messages.iter().filter_map(|message| deletion(message.get(4..)?, cut)).collect();
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

/// One direction of a connection.
struct Tuple {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// The destination port, of UDP.
    udp: Option<u16>,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    // CTA_TUPLE_IP 1 with CTA_IP_V4_SRC 1 and CTA_IP_V4_DST 2; CTA_TUPLE_PROTO 2 with CTA_PROTO_NUM 1 and
    // CTA_PROTO_DST_PORT 3.
    let (addresses, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(addresses, kind)?).ok()?));
    let port = || Some(u16::from_be_bytes(find(protocol, 3)?.try_into().ok()?));
    let udp = if find(protocol, 1)? == [UDP] { port() } else { None };
    Some(Tuple { source: address(1)?, destination: address(2)?, udp })
}

/// What deletes the connection, if it is to be cut.
fn deletion(connection: &[u8], cut: &Cut) -> Option<Attrs> {
    let there = tuple(find(connection, TUPLE_ORIGINAL)?)?;
    let back = tuple(find(connection, TUPLE_REPLY)?)?;
    let untranslated = (there.source, there.destination) == (back.destination, back.source);
    let opened = untranslated && there.udp.is_some_and(|port| cut.opened.contains(&port));
    if !opened && !cut.gone.contains(&back.source) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn direction(source: [u8; 4], destination: [u8; 4], protocol: u8, port: u16) -> Attrs {
        let mut attrs = Attrs::new();
        attrs.nest(1, |ip| {
            ip.bytes(1, &source).bytes(2, &destination);
        });
        attrs.nest(2, |proto| {
            proto.u8(1, protocol).bytes(3, &port.to_be_bytes());
        });
        attrs
    }

    fn connection(there: Attrs, back: Attrs) -> Vec<u8> {
        let mut attrs = Attrs::new();
        attrs.bytes(TUPLE_ORIGINAL | 0x8000, there.as_slice()).bytes(TUPLE_REPLY | 0x8000, back.as_slice());
        attrs.as_slice().to_vec()
    }

    #[test]
    fn connections_to_the_gone_and_untranslated_ones_to_opened_udp_ports_are_cut() {
        let (client, node, task) = ([192, 0, 2, 9], [192, 0, 2, 1], [100, 64, 64, 2]);
        let cut = Cut { gone: [Ipv4Addr::from(task)].into(), opened: [8080].into() };
        let is_cut = |there, back| deletion(&connection(there, back), &cut).is_some();
        assert!(is_cut(direction(client, node, 6, 80), direction(task, client, 6, 9)));
        assert!(is_cut(direction(client, node, UDP, 8080), direction(node, client, UDP, 9)));
        assert!(!is_cut(direction(client, node, 6, 8080), direction(node, client, 6, 9)));
        assert!(!is_cut(direction(client, node, UDP, 81), direction(node, client, UDP, 9)));
        // On its way out by this node, whose address it took.
        assert!(!is_cut(direction(client, [198, 51, 100, 1], UDP, 8080), direction([198, 51, 100, 1], node, UDP, 9)));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = deletion(&bytes, &Cut::default());
        }
    }
}
