//! Rules, built from conditions and one effect, read from left to right.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::{Base, Ct, Expr, Meta, Verdict};
use super::table::{Ip, octets};

/// A rule: conditions, then what is done. What it says of addresses is of one version of IP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    exprs: Vec<Expr>,
    pub(super) ip: Ip,
}

/// Bits of a connection's state as nf_tables shows it.
const STATE_ESTABLISHED_RELATED: u32 = 0x6;
/// The destination was changed (`IPS_DST_NAT`).
const STATUS_DNAT: u32 = 0x20;
/// Address of this host (`RTN_LOCAL`).
const LOCAL: u32 = 2;

/// A register that no address in the first ones reaches.
const ASIDE: u32 = 8;

/// TCP's protocol number (IANA).
pub const TCP: u8 = 6;
/// UDP's protocol number (IANA).
pub const UDP: u8 = 17;
/// SCTP's protocol number (IANA).
pub const SCTP: u8 = 132;

/// A link name as nf_tables compares it: 16 bytes, zero-padded.
pub fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

impl Rule {
    /// A rule without conditions, for IPv4 where it matters.
    pub fn new() -> Self {
        Self::default()
    }

    /// A rule without conditions, for that version of IP.
    pub fn of(ip: Ip) -> Self {
        Self { ip, ..Self::default() }
    }

    /// Its steps, from left to right.
    pub fn exprs(&self) -> &[Expr] {
        &self.exprs
    }

    pub(super) fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.exprs.extend(exprs);
        self
    }

    fn meta(self, key: Meta, equal: bool, data: Vec<u8>) -> Self {
        self.with([Expr::Meta { key, dreg: 0 }, Expr::Cmp { sreg: 0, equal, data }])
    }

    /// The packet came in by the link.
    pub fn iif(self, name: &str) -> Self {
        self.meta(Meta::IifName, true, link_name(name))
    }

    /// The packet came in by another link.
    pub fn iif_not(self, name: &str) -> Self {
        self.meta(Meta::IifName, false, link_name(name))
    }

    /// The packet goes out by the link.
    pub fn oif(self, name: &str) -> Self {
        self.meta(Meta::OifName, true, link_name(name))
    }

    /// The packet goes out by another link.
    pub fn oif_not(self, name: &str) -> Self {
        self.meta(Meta::OifName, false, link_name(name))
    }

    /// The packet came in by a link of the group.
    pub fn iif_group(self, group: u32) -> Self {
        self.meta(Meta::IifGroup, true, group.to_ne_bytes().to_vec())
    }

    /// The packet came in by a link that is not of the group.
    pub fn iif_group_not(self, group: u32) -> Self {
        self.meta(Meta::IifGroup, false, group.to_ne_bytes().to_vec())
    }

    /// The packet goes out by a link of the group.
    pub fn oif_group(self, group: u32) -> Self {
        self.meta(Meta::OifGroup, true, group.to_ne_bytes().to_vec())
    }

    /// The packet goes out by a link that is not of the group.
    pub fn oif_group_not(self, group: u32) -> Self {
        self.meta(Meta::OifGroup, false, group.to_ne_bytes().to_vec())
    }

    /// Layer 4 protocol.
    pub fn protocol(self, number: u8) -> Self {
        self.meta(Meta::L4Proto, true, vec![number])
    }

    /// Destination port of TCP or UDP, with the protocol's check before it.
    pub fn destination_port(self, protocol: u8, port: u16) -> Self {
        self.protocol(protocol).with([
            Expr::Payload { base: Base::Transport, offset: 2, len: 2, dreg: 0 },
            Expr::Cmp { sreg: 0, equal: true, data: port.to_be_bytes().to_vec() },
        ])
    }

    /// Some bit of `flags` is set in the TCP header.
    pub fn tcp_flags(self, flags: u8) -> Self {
        self.protocol(TCP).with([
            Expr::Payload { base: Base::Transport, offset: 13, len: 1, dreg: 0 },
            Expr::Bitwise { reg: 0, mask: vec![flags], xor: vec![0] },
            Expr::Cmp { sreg: 0, equal: false, data: vec![0] },
        ])
    }

    fn address(self, offset: u32, net: IpNet) -> Self {
        let width = self.ip.width();
        let rule = self.with([Expr::Payload { base: Base::Network, offset, len: width, dreg: 0 }]);
        let rule = if net.prefix_len() == net.max_prefix_len() {
            rule
        } else {
            let xor = octets(net.netmask()).iter().map(|_| 0).collect();
            rule.with([Expr::Bitwise { reg: 0, mask: octets(net.netmask()), xor }])
        };
        rule.with([Expr::Cmp { sreg: 0, equal: true, data: octets(net.network()) }])
    }

    /// Source address. The subnet is of the rule's version of IP.
    pub fn source(self, net: impl Into<IpNet>) -> Self {
        let offset = self.ip.source_offset();
        self.address(offset, net.into())
    }

    /// Destination address. The subnet is of the rule's version of IP.
    pub fn destination(self, net: impl Into<IpNet>) -> Self {
        let offset = self.ip.destination_offset();
        self.address(offset, net.into())
    }

    /// The source address is in the set.
    pub fn source_in(self, set: &str) -> Self {
        self.load_source(0).in_set(set, false)
    }

    /// The source address is not in the set.
    pub fn source_not_in(self, set: &str) -> Self {
        self.load_source(0).in_set(set, true)
    }

    /// The destination address is in the set.
    pub fn destination_in(self, set: &str) -> Self {
        self.load_destination(0).in_set(set, false)
    }

    /// The pair of source and destination address is in the set.
    pub fn source_and_destination_in(self, set: &str) -> Self {
        let second = self.ip.registers();
        self.load_source(0).load_destination(second).in_set(set, false)
    }

    fn load_source(self, dreg: u32) -> Self {
        let (offset, len) = (self.ip.source_offset(), self.ip.width());
        self.with([Expr::Payload { base: Base::Network, offset, len, dreg }])
    }

    fn load_destination(self, dreg: u32) -> Self {
        let (offset, len) = (self.ip.destination_offset(), self.ip.width());
        self.with([Expr::Payload { base: Base::Network, offset, len, dreg }])
    }

    pub(super) fn in_set(self, set: &str, invert: bool) -> Self {
        self.with([Expr::InSet { set: set.into(), sreg: 0, invert }])
    }

    /// The destination is an address of this host.
    pub fn destination_is_local(self) -> Self {
        self.address_type(false)
    }

    /// The source is an address of this host.
    pub fn source_is_local(self) -> Self {
        self.address_type(true)
    }

    fn address_type(self, of_source: bool) -> Self {
        self.with([
            Expr::AddressType { of_source, dreg: 0 },
            Expr::Cmp { sreg: 0, equal: true, data: LOCAL.to_ne_bytes().to_vec() },
        ])
    }

    /// The source is not reached by the link that the packet came in by.
    pub fn spoofed(self) -> Self {
        self.with([Expr::ReversePath { dreg: 0 }, Expr::Cmp { sreg: 0, equal: true, data: vec![0; 4] }])
    }

    fn ct_bits(self, key: Ct, bits: u32) -> Self {
        self.with([
            Expr::Ct { key, dreg: 0 },
            Expr::Bitwise { reg: 0, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { sreg: 0, equal: false, data: vec![0; 4] },
        ])
    }

    /// The packet belongs to a connection that was let through, or is an error about one.
    pub fn established(self) -> Self {
        self.ct_bits(Ct::State, STATE_ESTABLISHED_RELATED)
    }

    /// The connection's destination was changed.
    pub fn was_dnat(self) -> Self {
        self.ct_bits(Ct::Status, STATUS_DNAT)
    }

    /// The packet goes the way of the connection's first one.
    pub fn original(self) -> Self {
        self.with([Expr::Ct { key: Ct::Direction, dreg: 0 }, Expr::Cmp { sreg: 0, equal: true, data: vec![0] }])
    }

    /// The packet answers.
    pub fn reply(self) -> Self {
        self.with([Expr::Ct { key: Ct::Direction, dreg: 0 }, Expr::Cmp { sreg: 0, equal: true, data: vec![1] }])
    }

    /// The connection's mark is `value` under `mask`.
    pub fn ct_mark(self, value: u32, mask: u32) -> Self {
        self.with([
            Expr::Ct { key: Ct::Mark, dreg: 0 },
            Expr::Bitwise { reg: 0, mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { sreg: 0, equal: true, data: value.to_ne_bytes().to_vec() },
        ])
    }

    /// Adds bits to the connection's mark.
    pub fn or_ct_mark(self, bits: u32) -> Self {
        self.with([
            Expr::Ct { key: Ct::Mark, dreg: 0 },
            Expr::Bitwise { reg: 0, mask: (!bits).to_ne_bytes().to_vec(), xor: bits.to_ne_bytes().to_vec() },
            Expr::CtSet { key: Ct::Mark, sreg: 0, original: false },
        ])
    }

    fn map_ether_source(self, map: &str) -> Self {
        self.with([
            Expr::Payload { base: Base::Link, offset: 6, len: 6, dreg: 0 },
            Expr::Map { set: map.into(), sreg: 0, dreg: 0 },
        ])
    }

    /// Sets the zone of the connection's first direction from a map of Ethernet sources.
    pub fn zone_by_ether_source(self, map: &str) -> Self {
        self.map_ether_source(map).with([Expr::CtSet { key: Ct::Zone, sreg: 0, original: true }])
    }

    /// Sets the connection's mark from a map of Ethernet sources.
    pub fn ct_mark_by_ether_source(self, map: &str) -> Self {
        self.map_ether_source(map).with([Expr::CtSet { key: Ct::Mark, sreg: 0, original: false }])
    }

    /// The packet takes its connection's mark.
    pub fn mark_by_ct_mark(self) -> Self {
        self.with([Expr::Ct { key: Ct::Mark, dreg: 0 }, Expr::MetaSet { key: Meta::Mark, sreg: 0 }])
    }

    /// Sets the Ethernet destination from a map of packet marks.
    pub fn ether_destination_by_mark(self, map: &str) -> Self {
        self.with([
            Expr::Meta { key: Meta::Mark, dreg: 0 },
            Expr::Map { set: map.into(), sreg: 0, dreg: 0 },
            Expr::PayloadWrite { base: Base::Link, offset: 0, len: 6, sreg: 0 },
        ])
    }

    /// The packet loses its mark.
    pub fn clear_mark(self) -> Self {
        self.with([Expr::Immediate { dreg: 0, data: vec![0; 4] }, Expr::MetaSet { key: Meta::Mark, sreg: 0 }])
    }

    /// Lowers TCP's segment size to what the route carries.
    pub fn clamp_mss(self) -> Self {
        self.with([Expr::RouteMss { dreg: 0 }, Expr::Hton16 { reg: 0 }, Expr::ClampMss { sreg: 0 }])
    }

    /// Takes the verdict that the map holds for the destination address.
    pub fn verdict_by_destination(self, map: &str) -> Self {
        self.load_destination(0).with([Expr::VerdictMap { set: map.into(), sreg: 0 }])
    }

    fn load_service(self, with_address: bool) -> Self {
        let rule = self.with([Expr::Meta { key: Meta::L4Proto, dreg: 0 }]);
        let after = 1 + rule.ip.registers();
        let (rule, port) = if with_address { (rule.load_destination(1), after) } else { (rule, 1) };
        rule.with([Expr::Payload { base: Base::Transport, offset: 2, len: 2, dreg: port }])
    }

    /// Takes the verdict that the map holds for protocol and destination port.
    pub fn verdict_by_service(self, map: &str) -> Self {
        self.load_service(false).with([Expr::VerdictMap { set: map.into(), sreg: 0 }])
    }

    /// Changes the destination to the address and port that the map holds for protocol and port.
    pub fn dnat_by_service(self, map: &str) -> Self {
        self.load_service(false).dnat_by_map(map)
    }

    /// Changes the destination to the address and port that the map holds for protocol, address and port.
    pub fn dnat_by_address_and_service(self, map: &str) -> Self {
        self.load_service(true).dnat_by_map(map)
    }

    fn dnat_by_map(self, map: &str) -> Self {
        let ip = self.ip;
        let to = Expr::Dnat { ip, addr: 0, port: Some(ip.registers()) };
        self.with([Expr::Map { set: map.into(), sreg: 0, dreg: 0 }, to])
    }

    /// Changes the destination, to an address of the rule's version of IP and a port.
    pub fn lead_to(self, address: IpAddr, port: u16) -> Self {
        let (ip, after) = (self.ip, self.ip.registers());
        self.with([
            Expr::Immediate { dreg: 0, data: octets(address) },
            Expr::Immediate { dreg: after, data: port.to_be_bytes().to_vec() },
            Expr::Dnat { ip, addr: 0, port: Some(after) },
        ])
    }

    /// Changes the destination to the address that the map holds for it and a number below `below`, drawn by chance.
    pub fn balance_by_destination(self, map: &str, below: u32) -> Self {
        let ip = self.ip;
        self.pick_by_destination(map, below).with([Expr::Dnat { ip, addr: 0, port: None }])
    }

    /// As [`Self::balance_by_destination`], and the port becomes the one that `ports` holds for address, protocol and port.
    pub fn balance_by_destination_and_port(self, map: &str, ports: &str, below: u32) -> Self {
        let (ip, after) = (self.ip, self.ip.registers());
        self.load_destination(0)
            .with([
                Expr::Meta { key: Meta::L4Proto, dreg: after },
                Expr::Payload { base: Base::Transport, offset: 2, len: 2, dreg: after + 1 },
                Expr::Map { set: ports.into(), sreg: 0, dreg: ASIDE },
            ])
            .pick_by_destination(map, below)
            .with([Expr::Dnat { ip, addr: 0, port: Some(ASIDE) }])
    }

    fn pick_by_destination(self, map: &str, below: u32) -> Self {
        let after = self.ip.registers();
        self.load_destination(0)
            .with([Expr::Draw { below, dreg: after }, Expr::Map { set: map.into(), sreg: 0, dreg: 0 }])
    }

    /// Changes the destination to the address and port that the map holds for protocol, port and a number below `below`,
    /// drawn by chance.
    pub fn balance_by_service(self, map: &str, below: u32) -> Self {
        self.load_service(false).with([Expr::Draw { below, dreg: 2 }]).dnat_by_map(map)
    }

    /// The source becomes an address of the outgoing link.
    pub fn masquerade(self) -> Self {
        self.with([Expr::Masquerade])
    }

    /// The source becomes that address, of the rule's version of IP.
    pub fn source_becomes(self, address: IpAddr) -> Self {
        let ip = self.ip;
        self.with([Expr::Immediate { dreg: 0, data: octets(address) }, Expr::Snat { ip, addr: 0 }])
    }

    /// Answers that nobody listens.
    pub fn reject(self, tcp_reset: bool) -> Self {
        let ip = self.ip;
        self.with([Expr::Reject { ip, tcp_reset }])
    }

    /// Goes on in another chain of the table, without return.
    pub fn goto(self, chain: &str) -> Self {
        self.with([Expr::Verdict(Verdict::Goto(chain.into()))])
    }

    /// Lets the packet pass.
    pub fn accept(self) -> Self {
        self.with([Expr::Verdict(Verdict::Accept)])
    }

    /// Drops the packet.
    pub fn drop(self) -> Self {
        self.with([Expr::Verdict(Verdict::Drop)])
    }
}
