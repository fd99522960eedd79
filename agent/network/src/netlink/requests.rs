//! Requests, as lists.

use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::mac::Mac;

/// A list of requests, sent at once.
#[derive(Debug, Default)]
pub struct Requests {
    pub(super) list: Vec<Request>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
    /// Errors that mean that the wanted state is there already.
    pub(super) done: &'static [i32],
}

/// The other end of a veth pair.
#[derive(Debug)]
pub struct VethPeer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its namespace.
    pub netns: RawFd,
}

/// A port or link at our end of a veth pair.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address; `None` for a random one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of the bridge that it becomes a port of.
    pub bridge: Option<u32>,
    /// Group of links; 0 for none.
    pub group: u32,
    /// The other end.
    pub peer: VethPeer<'a>,
}

/// A VXLAN link (RFC 7348).
#[derive(Debug)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Source address of the outer packets. There is no underlay link named: its removal would remove this link.
    pub local: IpAddr,
    /// UDP port, ours and the peers'.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// Answer ARP and neighbour solicitations from its neighbour table.
    pub proxy: bool,
    /// Its address; `None` for a random one.
    pub mac: Option<Mac>,
}

/// A permanent neighbour or forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neighbour {
    /// Frames to the address leave the VXLAN link towards the node (`bridge fdb … self dst`).
    Tunnel(Mac, IpAddr),
    /// Frames to the address go to this bridge port (`bridge fdb … master`).
    Port(Mac),
    /// The address has this Ethernet address.
    Address(IpAddr, Mac),
}

pub(super) const EXISTS: &[i32] = &[libc::EEXIST];
pub(super) const ABSENT: &[i32] = &[libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];
pub(super) const NO_ERROR: &[i32] = &[];

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn local(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

impl Requests {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn push(&mut self, message: RouteNetlinkMessage, flags: u16, done: &'static [i32]) -> &mut Self {
        self.list.push(Request { message, flags, done });
        self
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Makes a bridge, up.
    pub fn add_bridge(&mut self, name: &str, mac: Option<Mac>, mtu: u32, group: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ]),
        ];
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        self.push(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, NO_ERROR)
    }

    /// Makes a veth pair, our end up; the other end is set up by its namespace.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> &mut Self {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.peer.name.into()),
            LinkAttribute::Address(veth.peer.mac.0.to_vec()),
            LinkAttribute::Mtu(veth.peer.mtu),
            LinkAttribute::NetNsFd(veth.peer.netns),
        ];
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(veth.name.into()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        message.attributes.extend(veth.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.extend(veth.bridge.map(LinkAttribute::Controller));
        if veth.group != 0 {
            message.attributes.push(LinkAttribute::Group(veth.group));
        }
        self.push(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, NO_ERROR)
    }

    /// Makes a VXLAN link, down.
    pub fn add_vxlan(&mut self, vxlan: &Vxlan<'_>) -> &mut Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(vxlan.name.into()),
            LinkAttribute::Mtu(vxlan.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::Id(vxlan.vni),
                    local(vxlan.local),
                    InfoVxlan::Port(vxlan.port),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Proxy(vxlan.proxy),
                    InfoVxlan::UDPCsum(true),
                ])),
            ]),
        ];
        message.attributes.extend(vxlan.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        self.push(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, NO_ERROR)
    }

    /// Makes a link of the kernel's WireGuard, down.
    pub fn add_wireguard(&mut self, name: &str, mtu: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
        ];
        self.push(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, NO_ERROR)
    }

    /// Changes the source address of a VXLAN link's outer packets.
    pub fn set_vxlan_local(&mut self, index: u32, address: IpAddr) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![local(address)])),
        ])];
        self.push(RouteNetlinkMessage::NewLink(message), 0, NO_ERROR)
    }

    /// Moves a link into another namespace under another name.
    pub fn move_link(&mut self, index: u32, netns: RawFd, name: &str) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::NetNsFd(netns), LinkAttribute::IfName(name.into())];
        self.push(RouteNetlinkMessage::SetLink(message), 0, NO_ERROR)
    }

    /// Sets a link up.
    pub fn set_up(&mut self, index: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.push(RouteNetlinkMessage::SetLink(message), 0, NO_ERROR)
    }

    /// Sets the MTU of a link, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.push(RouteNetlinkMessage::SetLink(message), 0, NO_ERROR)
    }

    /// Puts a link into a group of links.
    pub fn set_group(&mut self, index: u32, group: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Group(group)];
        self.push(RouteNetlinkMessage::SetLink(message), 0, NO_ERROR)
    }

    /// Makes a link a port of a bridge.
    pub fn set_bridge(&mut self, index: u32, bridge: u32) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Controller(bridge)];
        self.push(RouteNetlinkMessage::SetLink(message), 0, NO_ERROR)
    }

    /// Changes options of a bridge port.
    pub fn set_port(&mut self, index: u32, options: Vec<InfoBridgePort>) -> &mut Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ])];
        self.push(RouteNetlinkMessage::NewLink(message), 0, NO_ERROR)
    }

    /// Deletes the link of that name, if there is one.
    pub fn delete_link(&mut self, name: &str) -> &mut Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        self.push(RouteNetlinkMessage::DelLink(message), 0, ABSENT)
    }

    /// Gives a link an address. One of IPv6 is taken to be nobody else's, without asking the link (RFC 4862 section 5.4).
    pub fn add_address(&mut self, index: u32, address: impl Into<IpAddr>, prefix_len: u8) -> &mut Self {
        let address = address.into();
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        match address {
            IpAddr::V4(address) if prefix_len < 31 => {
                if let Ok(net) = Ipv4Net::new(address, prefix_len) {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpAddr::V4(_) => (),
            IpAddr::V6(_) => {
                message.header.flags = AddressHeaderFlags::Nodad | AddressHeaderFlags::Permanent;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent));
            }
        }
        self.push(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, EXISTS)
    }

    /// Makes or replaces a permanent entry of the link.
    pub fn replace_neighbour(&mut self, index: u32, entry: Neighbour) -> &mut Self {
        let message = neighbour(index, entry);
        self.push(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE, NO_ERROR)
    }

    /// Deletes an entry of the link, if it is there.
    pub fn delete_neighbour(&mut self, index: u32, entry: Neighbour) -> &mut Self {
        self.push(RouteNetlinkMessage::DelNeighbour(neighbour(index, entry)), 0, ABSENT)
    }
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn neighbour(index: u32, entry: Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    match entry {
        Neighbour::Tunnel(mac, to) => {
            message.header.family = AddressFamily::Bridge;
            message.header.state = NeighbourState::Permanent;
            message.header.flags = NeighbourFlags::Own;
            message.attributes = vec![
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                NeighbourAttribute::Destination(neighbour_address(to)),
            ];
        }
        Neighbour::Port(mac) => {
            message.header.family = AddressFamily::Bridge;
            message.header.state = NeighbourState::Noarp;
            message.header.flags = NeighbourFlags::Controller;
            message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        }
        Neighbour::Address(address, mac) => {
            message.header.family = family(address);
            message.header.state = NeighbourState::Permanent;
            message.attributes = vec![
                NeighbourAttribute::Destination(neighbour_address(address)),
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            ];
        }
    }
    message
}
