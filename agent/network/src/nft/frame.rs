//! Conditions on frames in a bridge: who sends them by which port, and what they say of neighbours.

use super::expr::{Base, Expr, Meta};
use super::rule::Rule;
use super::table::Ip;

/// What names a bridge's port in keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKey {
    /// Its index.
    Index,
    /// Its name.
    Name,
}

impl PortKey {
    /// The property to load, and the register behind it.
    fn load(self) -> (Meta, u32) {
        match self {
            Self::Index => (Meta::Iif, 1),
            Self::Name => (Meta::IifName, 4),
        }
    }
}

impl Rule {
    fn payload(self, base: Base, offset: u32, data: &[u8], equal: bool) -> Self {
        let len = u32::try_from(data.len()).expect("a few bytes");
        self.with([Expr::Payload { base, offset, len, dreg: 0 }, Expr::Cmp { sreg: 0, equal, data: data.to_vec() }])
    }

    /// Only frames of the EtherType.
    pub fn ether_type(self, number: u16) -> Self {
        self.payload(Base::Link, 12, &number.to_be_bytes(), true)
    }

    /// Only frames to a group of stations: the lowest bit of the first byte of the destination (IEEE 802 section 8.2.2).
    pub fn for_group(self) -> Self {
        self.with([
            Expr::Payload { base: Base::Link, offset: 0, len: 1, dreg: 0 },
            Expr::Bitwise { reg: 0, mask: vec![1], xor: vec![0] },
            Expr::Cmp { sreg: 0, equal: false, data: vec![0] },
        ])
    }

    /// Only frames that are not to all stations.
    pub fn not_broadcast(self) -> Self {
        self.payload(Base::Link, 0, &[0xff; 6], false)
    }

    /// Bytes of the network header.
    pub fn network_bytes(self, offset: u32, data: &[u8]) -> Self {
        self.payload(Base::Network, offset, data, true)
    }

    /// Bytes of what follows the network header.
    pub fn transport_bytes(self, offset: u32, data: &[u8]) -> Self {
        self.payload(Base::Transport, offset, data, true)
    }

    /// The type of the ICMPv6 message is in the set.
    pub fn icmp6_type_in(self, set: &str) -> Self {
        self.protocol(Ip::V6.icmp())
            .with([Expr::Payload { base: Base::Transport, offset: 0, len: 1, dreg: 0 }])
            .in_set(set, false)
    }

    /// Incoming port, Ethernet source and the address at `offset` of `base` are a triple of the set.
    pub fn sender_in(self, port: PortKey, base: Base, offset: u32, set: &str) -> Self {
        let len = self.ip.width();
        let (key, ether) = port.load();
        let address = ether + 2;
        self.with([
            Expr::Meta { key, dreg: 0 },
            Expr::Payload { base: Base::Link, offset: 6, len: 6, dreg: ether },
            Expr::Payload { base, offset, len, dreg: address },
        ])
        .in_set(set, false)
    }

    /// Incoming port and the Ethernet address at `offset` of what follows the network header are a pair of the set.
    pub fn told_ether_in(self, port: PortKey, offset: u32, set: &str) -> Self {
        let (key, ether) = port.load();
        self.with([Expr::Meta { key, dreg: 0 }, Expr::Payload { base: Base::Transport, offset, len: 6, dreg: ether }])
            .in_set(set, false)
    }
}
