//! The socket that sends them and reads what is there.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::requests::{Neighbour, Requests};
use super::routes::{ROUTE_PROTOCOL, Route, Via};
use crate::mac::Mac;
use crate::sys::netlink::{NetlinkSocket, Protocol};
use crate::sys::netns::Netns;

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Address, of Ethernet links.
    pub mac: Option<Mac>,
    /// Kind (`veth`, `bridge`, …), empty for others.
    pub kind: String,
    /// Index of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// Set up.
    pub up: bool,
    /// Source address and UDP port of a VXLAN link.
    pub vxlan: Option<(IpAddr, u16)>,
}

/// An rtnetlink socket in a namespace.
#[derive(Debug)]
pub struct Rtnl {
    socket: NetlinkSocket,
}

impl Rtnl {
    /// A socket in the namespace.
    ///
    /// # Errors
    /// Those of setns(2) and socket(2).
    pub fn open(netns: &Netns) -> io::Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(netns, Protocol::Route)? })
    }

    /// Sends the list. All requests are tried, in order.
    ///
    /// # Errors
    /// The first refusal that does not mean "is so already".
    pub fn send(&mut self, requests: &Requests) -> io::Result<()> {
        // The kernel's receive side takes a list of any length; parts keep the answers below the buffer.
        if requests.is_empty() {
            return Ok(());
        }
        for part in requests.list.chunks(2000) {
            let mut bytes = Vec::new();
            for (number, request) in part.iter().enumerate() {
                let sequence = u32::try_from(number).expect("at most 2000");
                append(&mut bytes, &request.message, NLM_F_REQUEST | NLM_F_ACK | request.flags, sequence);
            }
            let answer = self.socket.request(&bytes)?;
            for (sequence, error) in answer.errors {
                let request = part.get(sequence as usize);
                if !request.is_some_and(|r| error.raw_os_error().is_some_and(|code| r.done.contains(&code))) {
                    tracing::debug!(request = ?request.map(|r| &r.message), %error, "the kernel refused a request");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn get(&mut self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
        let mut bytes = Vec::new();
        append(&mut bytes, message, NLM_F_REQUEST | flags, 0);
        let answer = self.socket.request(&bytes)?;
        if let Some((_, error)) = answer.errors.into_iter().next() {
            return Err(error);
        }
        let mut header = NetlinkHeader::default();
        header.message_type = match message {
            RouteNetlinkMessage::GetNeighbour(_) => libc::RTM_NEWNEIGH,
            RouteNetlinkMessage::GetAddress(_) => libc::RTM_NEWADDR,
            RouteNetlinkMessage::GetRoute(_) => libc::RTM_NEWROUTE,
            _ => libc::RTM_NEWLINK,
        };
        // A message that cannot be read is one that we do not look for.
        Ok(answer
            .messages
            .iter()
            .filter_map(|payload| RouteNetlinkMessage::deserialize(&header, payload).ok())
            .collect())
    }

    /// The link of that name.
    ///
    /// # Errors
    /// `NotFound` is not an error here but `None`; others are the socket's.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        match self.get(&RouteNetlinkMessage::GetLink(message), 0) {
            Ok(messages) => Ok(messages.into_iter().find_map(read_link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// The socket's.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let messages = self.get(&RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(messages.into_iter().filter_map(read_link).collect())
    }

    /// Addresses of both families with the index of their link; those of IPv6 that mean something on their link alone are
    /// left out.
    ///
    /// # Errors
    /// The socket's.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let message = AddressMessage::default();
        let messages = self.get(&RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        Ok(messages
            .into_iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                // Of IPv6 there is no local address beside the address, but where the link has another end.
                let part = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
                let local = part(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None });
                let address = part(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None });
                let address = local.or(address).filter(|address| !is_of_link(*address))?;
                Some((message.header.index, IpNet::new(address, message.header.prefix_len).ok()?))
            })
            .collect())
    }

    /// The routes that we made, by links.
    ///
    /// # Errors
    /// The socket's.
    pub fn routes(&mut self) -> io::Result<BTreeSet<Route>> {
        let messages = self.get(&RouteNetlinkMessage::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(messages.into_iter().filter_map(read_route).collect())
    }

    /// Permanent entries of a link: of its own table, of its bridge's, and of the neighbour table.
    ///
    /// # Errors
    /// The socket's.
    pub fn neighbours(&mut self, index: u32) -> io::Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let messages = self.get(&RouteNetlinkMessage::GetNeighbour(message), NLM_F_DUMP)?;
            found.extend(messages.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == index => read_neighbour(&m),
                _ => None,
            }));
        }
        Ok(found)
    }
}

fn append(out: &mut Vec<u8>, message: &RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message.clone());
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    debug_assert!(matches!(message.payload, NetlinkPayload::InnerMessage(_)));
    let at = out.len();
    out.resize(at + message.buffer_len().next_multiple_of(4), 0);
    Emitable::emit(&message, &mut out[at..]);
}

fn read_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let (index, name, kind) = (message.header.index, String::new(), String::new());
    let mut link = Link { index, name, mtu: 0, mac: None, kind, bridge: None, up, vxlan: None };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(bridge) => link.bridge = (bridge != 0).then_some(bridge),
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::Vxlan(options)) => link.vxlan = read_vxlan(&options),
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    Some(link)
}

fn read_route(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    if message.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut to, mut gateway, mut link, mut table) = (any, None, None, message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = address(destination)?,
            RouteAttribute::Gateway(by) => gateway = address(by),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            _ => (),
        }
    }
    let link = link?;
    let via = gateway.map_or(Via::Link(link), |gateway| Via::Gateway(gateway, link));
    Some((IpNet::new(to, message.header.destination_prefix_length).ok()?, via, table))
}

fn is_of_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn read_vxlan(options: &[InfoVxlan]) -> Option<(IpAddr, u16)> {
    let local = options.iter().find_map(|o| match o {
        InfoVxlan::Local(local) => Some(IpAddr::V4(*local)),
        InfoVxlan::Local6(local) => Some(IpAddr::V6(*local)),
        _ => None,
    })?;
    let port = options.iter().find_map(|o| if let InfoVxlan::Port(port) = o { Some(*port) } else { None })?;
    Some((local, port))
}

fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok().map(Mac),
        _ => None,
    })?;
    let destination = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
            _ => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        },
        _ => None,
    });
    let controlled = message.attributes.iter().any(|a| matches!(a, NeighbourAttribute::Controller(_)));
    match (message.header.family, destination) {
        (AddressFamily::Inet | AddressFamily::Inet6, Some(address))
            if message.header.state == NeighbourState::Permanent =>
        {
            Some(Neighbour::Address(address, mac))
        }
        (AddressFamily::Bridge, Some(to)) => Some(Neighbour::Tunnel(mac, to)),
        (AddressFamily::Bridge, None) if controlled && message.header.state == NeighbourState::Noarp => {
            Some(Neighbour::Port(mac))
        }
        _ => None,
    }
}
