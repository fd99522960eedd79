//! Who may send from the ports of a bridge: only what is attached there, in IP and in what finds neighbours.
//!
//! Over IPv4 that is ARP, whose sender is checked. Over IPv6 it is Neighbour Discovery (RFC 4861), which is ICMPv6 and
//! says in options which Ethernet address is meant: a solicitation and an advertisement pass only in the one form that Linux
//! sends, with at most one option, and that of the port's own address. Router advertisements, redirects and everything
//! about multicast groups pass never: routes of sandboxes are set, not learned.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mac::Mac;
use crate::nft::expr::Base;
use crate::nft::frame::PortKey;
use crate::nft::rule::Rule;
use crate::nft::table::{Field, Ip, Set, Table, concat, octets};

/// EtherType of ARP and offset of the sender's IPv4 address in it (RFC 826).
const ARP: (u16, u32) = (0x0806, 14);
/// Neighbour solicitation and advertisement, with their code (RFC 4861 sections 4.3 and 4.4).
const SOLICITATION: [u8; 2] = [135, 0];
const ADVERTISEMENT: [u8; 2] = [136, 0];
/// Option with the sender's or the target's Ethernet address: type, and length in units of 8 bytes (section 4.6.1).
const SOURCE_LINK: [u8; 2] = [1, 1];
const TARGET_LINK: [u8; 2] = [2, 1];
/// Where target, option and the address in it are in the message.
const TARGET: u32 = 8;
const OPTION: u32 = 24;
const OPTION_ADDRESS: u32 = 26;
/// Payload length of a message without and with one option.
const BARE: [u8; 2] = [0, 24];
const WITH_OPTION: [u8; 2] = [0, 32];
/// Where the IPv6 header has the length of what follows, and the number of its protocol (RFC 8200 section 3).
const PAYLOAD_LENGTH: u32 = 4;
const NEXT_HEADER: u32 = 6;
/// Messages of ICMPv6 that only links and routers have a say in (IANA): multicast groups (130 to 132, 143), routers (133,
/// 134, 137), neighbours (135, 136), and their inverse, secure, mobile and multicast-router relatives.
const OF_THE_LINK: [u8; 18] =
    [130, 131, 132, 133, 134, 135, 136, 137, 141, 142, 143, 144, 145, 148, 149, 151, 152, 153];

/// What is attached to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// Its address, which its Ethernet address follows from.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub v6: Option<Ipv6Addr>,
}

impl Sender {
    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }
}

/// Which frames to a group of stations pass, besides those to all and solicitations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// Those of the attached ones.
    Pass,
    /// None.
    Drop,
}

/// Adds the sets that [`rules`] look into. Each sender comes with its port's key.
pub fn add_sets(table: &mut Table, port: PortKey, senders: &[(Vec<u8>, Sender)]) {
    let key = match port {
        PortKey::Index => Field::Link,
        PortKey::Name => Field::Name,
    };
    let mut v4 = Set::of([key, Field::Ether, Field::Address]);
    for (port, sender) in senders {
        v4.add(concat(&[port, &Mac::of(sender.v4).0, &sender.v4.octets()]));
    }
    table.sets.insert("senders".into(), v4);
    if !has_ipv6(senders) {
        return;
    }
    let (mut v6, mut links) = (Set::of([key, Field::Ether, Field::Address6]), Set::of([key, Field::Ether]));
    for (port, sender) in senders {
        let Some(address) = sender.v6 else { continue };
        v6.add(concat(&[port, &Mac::of(sender.v4).0, &octets(IpAddr::V6(address))]));
        links.add(concat(&[port, &Mac::of(sender.v4).0]));
    }
    let mut messages = Set::of([Field::Icmp6Type]);
    for number in OF_THE_LINK {
        messages.add(vec![number]);
    }
    let named = [("senders6", v6), ("links6", links), ("link-messages", messages)];
    table.sets.extend(named.map(|(name, set)| (name.to_owned(), set)));
}

fn has_ipv6(senders: &[(Vec<u8>, Sender)]) -> bool {
    senders.iter().any(|(_, sender)| sender.v6.is_some())
}

/// Rules that accept what the senders may send, and drop the rest.
pub fn rules(port: PortKey, senders: &[(Vec<u8>, Sender)], groups: Groups) -> Vec<Rule> {
    let v4 = |ether_type, offset| {
        Rule::of(Ip::V4).ether_type(ether_type).sender_in(port, Base::Network, offset, "senders").accept()
    };
    let mut rules = Vec::new();
    let v6 = has_ipv6(senders);
    if v6 && groups == Groups::Drop {
        // Solicitations go to groups, so the ports let them through.
        rules.push(Rule::of(Ip::V4).ether_type(Ip::V4.ether_type()).for_group().not_broadcast().drop());
    }
    rules.extend([v4(Ip::V4.ether_type(), Ip::V4.source_offset()), v4(ARP.0, ARP.1)]);
    if v6 {
        rules.extend(rules6(port, groups));
    }
    rules.push(Rule::new().drop());
    rules
}

fn rules6(port: PortKey, groups: Groups) -> Vec<Rule> {
    let frame = || Rule::of(Ip::V6).ether_type(Ip::V6.ether_type());
    let sender = |rule: Rule| rule.sender_in(port, Base::Network, Ip::V6.source_offset(), "senders6");
    // Nothing between the headers: what is behind extension headers is not looked at here, and falls to the type below.
    let message = |kind: [u8; 2], length: [u8; 2]| {
        frame()
            .network_bytes(NEXT_HEADER, &[Ip::V6.icmp()])
            .network_bytes(PAYLOAD_LENGTH, &length)
            .transport_bytes(0, &kind)
    };
    let telling = |rule: Rule, option: [u8; 2]| {
        rule.transport_bytes(OPTION, &option).told_ether_in(port, OPTION_ADDRESS, "links6")
    };
    let target = |rule: Rule| rule.sender_in(port, Base::Transport, TARGET, "senders6");
    let mut rules = vec![
        sender(telling(message(SOLICITATION, WITH_OPTION), SOURCE_LINK)).accept(),
        sender(message(SOLICITATION, BARE)).accept(),
    ];
    if groups == Groups::Drop {
        rules.push(frame().for_group().drop());
    }
    rules.extend([
        sender(target(telling(message(ADVERTISEMENT, WITH_OPTION), TARGET_LINK))).accept(),
        sender(target(message(ADVERTISEMENT, BARE))).accept(),
        frame().icmp6_type_in("link-messages").drop(),
        sender(frame()).accept(),
    ]);
    rules
}
