//! Connections to addresses that are no more, cut: otherwise they hang until their time-out (ctnetlink,
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h).
//!
//! A client uses a port again while its last connection from there is still remembered. So between a look at the
//! connections and a deletion, the same client, ports and published port may have become a connection to another
//! task, under the same id (the kernel derives it from the place in memory, and that is used again at once). Whatever is
//! deleted here is therefore named by what makes it doomed, the address that answers, and never by what the client sent.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::nft::diff::header;
use crate::nft::rule::UDP;
use crate::nft::table::{Ip, octets};
use crate::nlattr::{Attrs, find};
use crate::sys::netlink::{NetlinkSocket, Protocol};
use crate::sys::netns::Netns;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const STATISTICS: u16 = SUBSYSTEM | 5;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Attributes of a connection.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
/// Of a filter: which parts of the reply's tuple count.
const FILTER_REPLY: u16 = 2;
/// That part is the source address; or protocol and ports.
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_SOURCE_PORT: u32 = 1 << 4;
const BY_DESTINATION_PORT: u32 = 1 << 5;
/// State of a connection that was answered (`IPS_SEEN_REPLY`).
const ANSWERED: u32 = 2;
/// Of statistics: how many connections there are.
const ENTRIES: u16 = 1;
/// In a namespace of many connections so many addresses are looked for one by one, each a walk of some milliseconds through the
/// kernel's table, which is one for all namespaces; for more, what is there is read once, which takes up to some hundred.
const WALKS: usize = 16;
/// Of so few connections in a namespace, all are read in the time of one walk.
const FEW: u32 = 4096;

/// Which connections are cut.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// Those whose answers would come from these addresses.
    pub gone: BTreeSet<IpAddr>,
    /// Those that got no answer from these addresses. Left alone by kernels before 6.11.
    pub half_open: BTreeSet<IpAddr>,
    /// Those to these UDP ports that lead nowhere else: a client that kept sending to a port that was closed would
    /// never be led to the task that it was published for.
    pub opened: BTreeSet<u16>,
}

impl Cut {
    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.half_open.is_empty() && self.opened.is_empty()
    }
}

/// Deletes the connections of a namespace that `cut` names.
///
/// # Errors
/// Those of the socket. A connection that ended meanwhile is no error.
pub fn cut(netns: &Netns, cut: &Cut) -> io::Result<()> {
    if cut.is_empty() {
        return Ok(());
    }
    open(netns)?.cut(cut)
}

/// Opens a namespace for its connections to be cut. It may be held by nobody else then.
///
/// # Errors
/// Those of the socket.
pub fn open(netns: &Netns) -> io::Result<Connections> {
    Ok(Connections(NetlinkSocket::open(netns, Protocol::Netfilter)?))
}

/// The connections of a namespace.
pub struct Connections(NetlinkSocket);

impl Connections {
    /// Deletes those that `cut` names.
    ///
    /// # Errors
    /// As [`cut`].
    pub fn cut(mut self, cut: &Cut) -> io::Result<()> {
        match count(&mut self.0)? {
            0 => Ok(()),
            few if few <= FEW => delete(&mut self.0, cut, 1),
            _ => delete(&mut self.0, cut, WALKS),
        }
    }
}

/// Deletes connections; no more than so many walks for each kind of them.
fn delete(socket: &mut NetlinkSocket, cut: &Cut, walks: usize) -> io::Result<()> {
    let mut half_open: BTreeSet<IpAddr> = cut.half_open.iter().copied().filter(|a| has_filter(*a)).collect();
    if half_open.len() > walks {
        half_open = unanswered(socket, &half_open)?;
    }
    for address in half_open {
        if !delete_where(socket, Ip::of(address), &by_address(address, true))? {
            break;
        }
    }
    if cut.half_open.iter().any(|address| !has_filter(*address)) {
        delete_half_open6(socket, &cut.half_open)?;
    }
    let mut rest = Cut { half_open: BTreeSet::new(), ..cut.clone() };
    if rest.gone.len() <= walks {
        for address in cut.gone.iter().filter(|address| has_filter(**address)) {
            if !delete_where(socket, Ip::of(*address), &by_address(*address, false))? {
                break;
            }
            rest.gone.remove(address);
        }
    }
    if rest.gone.is_empty() && rest.opened.is_empty() { Ok(()) } else { look_through(socket, &rest) }
}

/// Whether the kernel can tell connections by the address that answers. Of IPv6 it takes those that another address answers
/// (`ctnetlink_filter_match_tuple` takes the result of ipv6_addr_cmp for its opposite): a deletion would hit all the others.
fn has_filter(address: IpAddr) -> bool {
    address.is_ipv4()
}

/// Connections of the namespace: most sandboxes have none, most of the time.
fn count(socket: &mut NetlinkSocket) -> io::Result<u32> {
    let mut request = Vec::new();
    // The one answer is marked as part of several; the acknowledgement is what ends it.
    header(&mut request, STATISTICS, REQUEST | ACK, 1, 0, 0, &[]);
    let answer = socket.request(&request)?;
    let entries = answer.messages.iter().find_map(|message| find(message.get(4..)?, ENTRIES)?.try_into().ok());
    Ok(entries.map_or(u32::MAX, u32::from_be_bytes))
}

/// Deletes connections of IPv6 that got no answer from these addresses. The kernel cannot tell them by address, so they are
/// looked for, and deleted by protocol and ports if they are not answered still: a name that another may have too, but one
/// that is answered never goes, and one on its way to somebody else is sent again.
fn delete_half_open6(socket: &mut NetlinkSocket, addresses: &BTreeSet<IpAddr>) -> io::Result<()> {
    let mut unanswered = Attrs::new();
    unanswered.u32(STATUS, 0).u32(STATUS_MASK, ANSWERED);
    let mut request = Vec::new();
    header(&mut request, GET, REQUEST | DUMP, 1, Ip::V6.family() as u8, 0, unanswered.as_slice());
    request[17] = 1;
    let answer = socket.request(&request)?;
    let found = answer.messages.iter().filter_map(|message| half_open(message.get(4..)?, addresses));
    let mut all: BTreeSet<Ports> = found.collect();
    if all.len() > WALKS {
        // Each is a walk; so many ports of tasks there are not.
        all = all.into_iter().map(|ports| Ports { to: None, ..ports }).collect();
    }
    for ports in all {
        if !delete_where(socket, Ip::V6, &by_ports(&ports))? {
            break;
        }
    }
    Ok(())
}

/// Protocol and ports of a connection's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    protocol: u8,
    /// The task's.
    from: [u8; 2],
    /// The client's; `None` for all.
    to: Option<[u8; 2]>,
}

/// The ports of a connection that one of these addresses has not answered.
fn half_open(connection: &[u8], addresses: &BTreeSet<IpAddr>) -> Option<Ports> {
    // Older kernels look at no status where all are asked for.
    let status = u32::from_be_bytes(find(connection, STATUS)?.try_into().ok()?);
    let back = find(connection, TUPLE_REPLY)?;
    if status & ANSWERED != 0 || !addresses.contains(&tuple(back)?.source) {
        return None;
    }
    let protocol = find(back, 2)?;
    let port = |kind| find(protocol, kind)?.try_into().ok();
    Some(Ports { protocol: *find(protocol, 1)?.first()?, from: port(2)?, to: Some(port(3)?) })
}

/// Has the kernel delete all connections that a filter takes. False when it cannot: it deletes by a filter since Linux 6.11.
fn delete_where(socket: &mut NetlinkSocket, ip: Ip, filter: &Attrs) -> io::Result<bool> {
    let mut request = Vec::new();
    header(&mut request, DELETE, REQUEST | ACK, 1, ip.family() as u8, 0, filter.as_slice());
    // The version, after the family. With 0 the family is ignored.
    request[17] = 1;
    match socket.request(&request)?.errors.into_iter().next() {
        None => Ok(true),
        Some((_, error)) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => {
            Ok(false)
        }
        Some((_, error)) => Err(error),
    }
}

/// Those of the addresses of IPv4 that have not answered some connection yet.
fn unanswered(socket: &mut NetlinkSocket, among: &BTreeSet<IpAddr>) -> io::Result<BTreeSet<IpAddr>> {
    let mut request = Vec::new();
    header(&mut request, GET, REQUEST | DUMP, 1, Ip::V4.family() as u8, 0, &[]);
    let answer = socket.request(&request)?;
    let found = answer.messages.iter().filter_map(|message| waited_for(message.get(4..)?));
    Ok(found.filter(|address| among.contains(address)).collect())
}

/// Who should answer a connection and has not.
fn waited_for(connection: &[u8]) -> Option<IpAddr> {
    let status = u32::from_be_bytes(find(connection, STATUS)?.try_into().ok()?);
    let back = tuple(find(connection, TUPLE_REPLY)?)?;
    (status & ANSWERED == 0).then_some(back.source)
}

/// Takes the connections that `address` answers, or those of them that it has not answered yet. A kernel that knows no filters
/// takes this for an incomplete name of one connection, and refuses.
fn by_address(address: IpAddr, unanswered: bool) -> Attrs {
    let mut attrs = Attrs::new();
    attrs.nest(TUPLE_REPLY, |tuple| {
        tuple.nest(1, |ip| {
            ip.bytes(source_attribute(Ip::of(address)), &octets(address));
        });
    });
    attrs.nest(FILTER, |filter| {
        filter.bytes(FILTER_REPLY, &BY_SOURCE.to_ne_bytes());
    });
    if unanswered {
        attrs.u32(STATUS, 0).u32(STATUS_MASK, ANSWERED);
    }
    attrs
}

/// Takes the connections with these ports that were not answered yet.
fn by_ports(ports: &Ports) -> Attrs {
    let mut attrs = Attrs::new();
    attrs.nest(TUPLE_REPLY, |tuple| {
        tuple.nest(2, |protocol| {
            protocol.u8(1, ports.protocol).bytes(2, &ports.from).bytes(3, &ports.to.unwrap_or_default());
        });
    });
    let to = if ports.to.is_some() { BY_DESTINATION_PORT } else { 0 };
    attrs.nest(FILTER, |filter| {
        filter.bytes(FILTER_REPLY, &(BY_PROTOCOL | BY_SOURCE_PORT | to).to_ne_bytes());
    });
    attrs.u32(STATUS, 0).u32(STATUS_MASK, ANSWERED);
    attrs
}

/// `CTA_IP_V4_SRC` or `CTA_IP_V6_SRC`. The destination's is the next number for IPv4, and for IPv6.
fn source_attribute(ip: Ip) -> u16 {
    match ip {
        Ip::V4 => 1,
        Ip::V6 => 3,
    }
}

/// Reads all connections of the versions of IP that `cut` speaks of, and deletes those that it names. A look at each place of
/// the kernel's table takes some 15 ms of a processor, however few connections there are.
fn look_through(socket: &mut NetlinkSocket, cut: &Cut) -> io::Result<()> {
    let is_meant = |ip: &Ip| !cut.opened.is_empty() || cut.gone.iter().any(|address| Ip::of(*address) == *ip);
    let versions = [Ip::V4, Ip::V6].into_iter().filter(is_meant);
    versions.map(|ip| look_through_of(socket, cut, ip)).fold(Ok(()), Result::and)
}

fn look_through_of(socket: &mut NetlinkSocket, cut: &Cut, ip: Ip) -> io::Result<()> {
    let mut request = Vec::new();
    header(&mut request, GET, REQUEST | DUMP, 1, ip.family() as u8, 0, &[]);
    let answer = socket.request(&request)?;
    let doomed: Vec<Attrs> = answer.messages.iter().filter_map(|message| deletion(message.get(4..)?, cut)).collect();
    for part in doomed.chunks(500) {
        let mut requests = Vec::new();
        for (sequence, attrs) in (1..).zip(part) {
            header(&mut requests, DELETE, REQUEST | ACK, sequence, ip.family() as u8, 0, attrs.as_slice());
        }
        let answer = socket.request(&requests)?;
        if let Some((_, error)) = answer.errors.into_iter().find(|(_, e)| e.kind() != io::ErrorKind::NotFound) {
            return Err(error);
        }
    }
    Ok(())
}

/// One direction of a connection.
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    /// The destination port, of UDP.
    udp: Option<u16>,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    // CTA_TUPLE_IP 1 with the addresses; CTA_TUPLE_PROTO 2 with CTA_PROTO_NUM 1 and CTA_PROTO_DST_PORT 3.
    let (addresses, protocol) = (find(bytes, 1)?, find(bytes, 2)?);
    let v4 = |kind| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(find(addresses, kind)?).ok()?)));
    let v6 = |kind| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(find(addresses, kind)?).ok()?)));
    let address = |second: u16| v4(source_attribute(Ip::V4) + second).or_else(|| v6(source_attribute(Ip::V6) + second));
    let port = || Some(u16::from_be_bytes(find(protocol, 3)?.try_into().ok()?));
    let udp = if find(protocol, 1)? == [UDP] { port() } else { None };
    Some(Tuple { source: address(0)?, destination: address(1)?, udp })
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
    attrs.bytes(TUPLE_REPLY | 0x8000, find(connection, TUPLE_REPLY)?);
    if let Some(zone) = find(connection, ZONE) {
        attrs.bytes(ZONE, zone);
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
        let cut = Cut { gone: [IpAddr::from(task)].into(), opened: [8080].into(), ..Cut::default() };
        let is_cut = |there, back| deletion(&connection(there, back), &cut).is_some();
        assert!(is_cut(direction(client, node, 6, 80), direction(task, client, 6, 9)));
        assert!(is_cut(direction(client, node, UDP, 8080), direction(node, client, UDP, 9)));
        assert!(!is_cut(direction(client, node, 6, 8080), direction(node, client, 6, 9)));
        assert!(!is_cut(direction(client, node, UDP, 81), direction(node, client, UDP, 9)));
        // On its way out by this node, whose address it took.
        assert!(!is_cut(direction(client, [198, 51, 100, 1], UDP, 8080), direction([198, 51, 100, 1], node, UDP, 9)));
    }

    #[test]
    fn what_is_deleted_is_named_by_who_answers_and_not_by_what_the_client_sent() {
        let (client, node, task) = ([192, 0, 2, 9], [192, 0, 2, 1], [100, 64, 64, 2]);
        let cut = Cut { gone: [IpAddr::from(task)].into(), ..Cut::default() };
        let back = direction(task, client, 6, 40_000);
        let attrs = deletion(&connection(direction(client, node, 6, 8080), back.clone()), &cut).unwrap();
        assert_eq!(find(attrs.as_slice(), TUPLE_REPLY), Some(back.as_slice()));
        assert_eq!(find(attrs.as_slice(), TUPLE_ORIGINAL), None);
    }

    #[test]
    fn what_is_half_open_is_named_by_its_ports_unless_it_was_answered() {
        let (client, task) = ([192, 0, 2, 9], [100, 64, 64, 2]);
        let with = |status: u32, from: [u8; 4]| {
            let mut back = Attrs::new();
            back.nest(1, |ip| {
                ip.bytes(1, &from).bytes(2, &client);
            });
            back.nest(2, |proto| {
                proto.u8(1, 6).bytes(2, &80u16.to_be_bytes()).bytes(3, &40_000u16.to_be_bytes());
            });
            let mut attrs = Attrs::new();
            attrs.bytes(TUPLE_REPLY | 0x8000, back.as_slice()).bytes(STATUS, &status.to_be_bytes());
            half_open(attrs.as_slice(), &[IpAddr::from(task)].into())
        };
        let ports = Ports { protocol: 6, from: 80u16.to_be_bytes(), to: Some(40_000u16.to_be_bytes()) };
        assert_eq!(with(8, task), Some(ports));
        assert_eq!((with(8 | ANSWERED, task), with(8, client)), (None, None));
    }

    #[test]
    fn who_is_waited_for_is_who_has_not_answered() {
        let (client, node, task) = ([192, 0, 2, 9], [192, 0, 2, 1], [100, 64, 64, 2]);
        let with_status = |status: u32| {
            let mut attrs = Attrs::new();
            attrs.u32(STATUS, status);
            let tuples = connection(direction(client, node, 6, 80), direction(task, client, 6, 9));
            waited_for(&[attrs.as_slice(), &tuples].concat())
        };
        assert_eq!(with_status(0x20), Some(IpAddr::from(task)));
        assert_eq!(with_status(0x20 | ANSWERED), None);
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (deletion(&bytes, &Cut::default()), half_open(&bytes, &BTreeSet::new()), waited_for(&bytes));
        }
    }
}
