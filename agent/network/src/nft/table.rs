//! A table as it should be: a value that can be compared, so that the difference can be sent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::Verdict;
use super::rule::Rule;

/// Address family of a table (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ipv4 = 2,
    /// Frames at a device.
    Netdev = 5,
    /// Frames in a bridge.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

/// Version of IP that rules speak of: how long its addresses are and where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ip {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// That of a subnet.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// Family of tables that see its packets alone.
    pub fn family(self) -> Family {
        match self {
            Self::V4 => Family::Ipv4,
            Self::V6 => Family::Ipv6,
        }
    }

    /// An address in keys and values.
    pub fn field(self) -> Field {
        match self {
            Self::V4 => Field::Address,
            Self::V6 => Field::Address6,
        }
    }

    /// Bytes of an address.
    pub fn width(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// 32-bit registers that an address takes.
    pub fn registers(self) -> u32 {
        self.width() / 4
    }

    /// EtherType (IEEE 802 numbers, IANA).
    pub fn ether_type(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }

    /// Offset of the source address in the header (RFC 791 section 3.1, RFC 8200 section 3).
    pub fn source_offset(self) -> u32 {
        match self {
            Self::V4 => 12,
            Self::V6 => 8,
        }
    }

    /// Offset of the destination address in the header.
    pub fn destination_offset(self) -> u32 {
        self.source_offset() + self.width()
    }

    /// Number of its ICMP (IANA).
    pub fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    /// Code of "port unreachable" (RFC 792, RFC 4443 section 3.1).
    pub fn port_unreachable(self) -> u8 {
        match self {
            Self::V4 => 3,
            Self::V6 => 4,
        }
    }
}

/// Bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where a base chain is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// On arrival, before routing.
    Prerouting,
    /// On the way through the host.
    Forward,
    /// From the host's own programs.
    Output,
    /// Before leaving.
    Postrouting,
    /// Frames that leave by a device (Linux 5.16).
    Egress {
        /// The device.
        device: String,
    },
}

/// Kind of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection.
    Nat,
}

/// How a base chain is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Kind.
    pub kind: Kind,
    /// Where.
    pub hook: Hook,
    /// Order among the chains of that hook; lower comes first.
    pub priority: i32,
}

/// A chain and its rules in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// How it is attached; `None` for a chain that others go to.
    pub base: Option<BaseChain>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A part of a key or value. Each takes a multiple of four bytes in a concatenation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// IPv4 address.
    Address,
    /// IPv6 address.
    Address6,
    /// Type of an ICMPv6 message.
    Icmp6Type,
    /// Ethernet address.
    Ether,
    /// Layer 4 protocol number.
    Protocol,
    /// Port.
    Port,
    /// Packet or connection mark, in host order.
    Mark,
    /// Conntrack zone, in host order.
    Zone,
    /// Index of a link, in host order.
    Link,
    /// Name of a link, padded to 16 bytes.
    Name,
    /// A number that was drawn, in host order.
    Index,
}

impl Field {
    /// Bytes without padding.
    pub fn len(self) -> usize {
        match self {
            Self::Address | Self::Mark | Self::Link | Self::Index => 4,
            Self::Ether => 6,
            Self::Name | Self::Address6 => 16,
            Self::Protocol | Self::Icmp6Type => 1,
            Self::Port | Self::Zone => 2,
        }
    }

    /// Number of the type for programs that print the table (nft's `enum datatypes`).
    pub(super) fn datatype(self) -> u32 {
        match self {
            Self::Address => 7,
            Self::Address6 => 8,
            Self::Icmp6Type => 29,
            Self::Ether => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Link => 20,
            Self::Name => 41,
            // As a mark: nft has no type for a number of 32 bits in a concatenation.
            Self::Index => 19,
            // nft has no named type for zones that may stand in a declaration; an integer prints well enough.
            Self::Zone => 4,
        }
    }
}

/// What a map holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapTo {
    /// Bytes.
    Fields(Vec<Field>),
    /// Verdicts.
    Verdict,
}

/// A value of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// The element only is or is not there.
    None,
    /// Bytes.
    Bytes(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

impl Value {
    /// The chain that it leads to.
    pub fn chain(&self) -> Option<&String> {
        match self {
            Self::Verdict(Verdict::Goto(name)) => Some(name),
            Self::Verdict(Verdict::Accept | Verdict::Drop) | Self::None | Self::Bytes(_) => None,
        }
    }
}

/// A set or map with all its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Parts of the key.
    pub key: Vec<Field>,
    /// What it maps to; `None` for a set.
    pub to: Option<MapTo>,
    /// Elements by encoded key.
    pub elements: BTreeMap<Vec<u8>, Value>,
}

impl Set {
    /// An empty set.
    pub fn of(key: impl Into<Vec<Field>>) -> Self {
        Self { key: key.into(), to: None, elements: BTreeMap::new() }
    }

    /// An empty map.
    pub fn map(key: impl Into<Vec<Field>>, to: MapTo) -> Self {
        Self { key: key.into(), to: Some(to), elements: BTreeMap::new() }
    }

    /// Whether both have keys and values of the same types.
    pub fn is_declared_as(&self, other: &Self) -> bool {
        self.key == other.key && self.to == other.to
    }

    /// Adds an element to a set.
    pub fn add(&mut self, key: Vec<u8>) {
        self.elements.insert(key, Value::None);
    }

    /// Adds an element to a map.
    pub fn put(&mut self, key: Vec<u8>, value: Value) {
        self.elements.insert(key, value);
    }
}

/// A table as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
}

impl Table {
    /// A table without chains.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    /// Adds a base chain.
    pub fn base(&mut self, name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) {
        let base = Some(BaseChain { kind, hook, priority });
        self.chains.insert(name.into(), Chain { base, rules });
    }

    /// Adds a chain that others go to.
    pub fn chain(&mut self, name: impl Into<String>, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { base: None, rules });
    }
}

/// Joins the parts of a key or value, each padded to four bytes.
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// A protocol and port, as keys have them.
pub fn service_key(protocol: u8, port: u16) -> Vec<u8> {
    concat(&[&[protocol], &port.to_be_bytes()])
}

/// An address and port, as values have them.
pub fn address_and_port(address: IpAddr, port: u16) -> Vec<u8> {
    concat(&[&octets(address), &port.to_be_bytes()])
}
