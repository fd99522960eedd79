//! Routes, and rules that choose a table of them.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::requests::{ABSENT, EXISTS, NO_ERROR, Requests, family};
use crate::nft::table::Ip;

/// Routes that we make carry this protocol number, as bird or zebra have theirs (rtnetlink(7): above 4 is free).
pub(super) const ROUTE_PROTOCOL: u8 = 0x53;

/// Metric of routes that lead nowhere: others of the same length are taken first.
const LAST: u32 = 4096;

/// As [`ABSENT`]; a host without IPv6 has no rules of it either.
const NO_RULE: &[i32] = &[libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];

/// A route that we made: to where, by what, in which table.
pub type Route = (IpNet, Via, u32);

/// Where a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// To the link itself.
    Link(u32),
    /// To a gateway that is taken to be on the link.
    Gateway(IpAddr, u32),
    /// Nowhere, as long as there is no other route of the same length.
    Nowhere,
}

/// A rule of policy routing, for packets with a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    /// Its place among the rules.
    pub priority: u32,
    /// The mark.
    pub mark: u32,
    /// The part of the mark that counts.
    pub mask: u32,
    /// The table that says where to.
    pub table: u32,
}

impl MarkRule {
    fn message(self, ip: Ip) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match ip {
            Ip::V4 => AddressFamily::Inet,
            Ip::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
        ];
        message
    }
}

impl Requests {
    /// Makes or replaces a route in the given table (254 is the main one).
    pub fn replace_route(&mut self, to: impl Into<IpNet>, via: Via, table: u32) -> &mut Self {
        let message = route(to.into(), via, table);
        self.push(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, NO_ERROR)
    }

    /// Deletes a route, if there is one.
    pub fn delete_route(&mut self, to: impl Into<IpNet>, via: Via, table: u32) -> &mut Self {
        self.push(RouteNetlinkMessage::DelRoute(route(to.into(), via, table)), 0, ABSENT)
    }

    /// Packets whose mark is `rule.mark` under its mask are routed by its table.
    pub fn add_mark_rule(&mut self, ip: Ip, rule: MarkRule) -> &mut Self {
        let message = RouteNetlinkMessage::NewRule(rule.message(ip));
        self.push(message, NLM_F_CREATE | NLM_F_EXCL, EXISTS)
    }

    /// Deletes a rule of [`Requests::add_mark_rule`], if it is there.
    pub fn delete_mark_rule(&mut self, ip: Ip, rule: MarkRule) -> &mut Self {
        self.push(RouteNetlinkMessage::DelRule(rule.message(ip)), 0, NO_RULE)
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn route(to: IpNet, via: Via, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Table(table));
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(to.network())));
    }
    match via {
        Via::Link(index) => {
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Via::Gateway(gateway, index) => {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Via::Nowhere => {
            message.header.kind = RouteType::Unreachable;
            message.attributes.push(RouteAttribute::Priority(LAST));
        }
    }
    message
}
