//! Ethernet addresses.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// An Ethernet address. Those that we give follow from the IPv4 address, so nobody has to be told them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the interface that has `address`: `02:42` and the four bytes, as Docker does.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }

    /// The address of a node on the mesh, from its central index.
    pub fn of_node(index: u16) -> Self {
        let [high, low] = index.to_be_bytes();
        Self([0x02, 0x53, 0x4b, 0, high, low])
    }

    /// The node's end of every task link. Each is the only neighbour on its link, so all may be the same.
    pub const GATEWAY: Self = Self([0x02, 0x53, 0x4b, 1, 0, 1]);

    /// Destination of replies on the mesh before they are given the entry node's address.
    pub const NEXT_HOP: Self = Self([0x02, 0x53, 0x4b, 2, 0, 1]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
