//! What the network layer is told once, and what follows from it: names, groups, addresses by node index.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use skep_proto::model::NodeId;

use crate::error::NetworkError;

/// Settings of a node's network.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where namespaces and records are kept: `…/network`.
    pub state_dir: PathBuf,
    /// Where the socket of the name server lies; its path must fit a Unix address (107 bytes).
    pub run_dir: PathBuf,
    /// UDP port of plain VXLAN, for networks that name none.
    pub vxlan_port: u16,
    /// UDP port of WireGuard (51820).
    pub wireguard_port: u16,
    /// Start of the names of links and tables in the node's namespace, 1 to 6 characters: two daemons in one
    /// namespace have different ones.
    pub prefix: String,
    /// Subnet of the default bridge (Docker's is 172.17.0.0/16).
    pub bridge_subnet: IpNet,
    /// Range of the mesh, of task links and of WireGuard (100.64.0.0/10).
    pub infra: IpNet,
    /// The program that serves names when called as `PROGRAM net --dir … --run-dir …`.
    pub netd_exe: PathBuf,
}

/// Where the node stands: what changes when it enters or leaves a cluster, while its network goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The node; `None` while it is in no cluster, and after a start until that is known.
    pub node: Option<NodeId>,
    /// Addresses that overlays use here, one per family.
    pub data_path: Vec<IpAddr>,
}

impl Place {
    /// This node's addresses on the underlay.
    pub fn underlay(&self) -> Underlay {
        Underlay::of(&self.data_path)
    }

    /// Checks what can be checked without the kernel.
    ///
    /// # Errors
    /// [`NetworkError::Config`].
    pub fn validate(&self) -> Result<(), NetworkError> {
        let what = "the data path has no address";
        self.underlay().preferred().map(drop).ok_or_else(|| NetworkError::Config { what: what.into() })
    }
}

/// Group of the node's ends of task links.
pub const TASK_GROUP: u32 = 0x534b_0001;
/// Group of local bridges.
pub const BRIDGE_GROUP: u32 = 0x534b_0002;
/// Group of sandboxes' ports on local bridges.
pub const PORT_GROUP: u32 = 0x534b_0003;
/// Group of the mesh link. Rules that every packet meets tell it by this number: to compare names takes the kernel some ten times as long.
pub const MESH_GROUP: u32 = 0x534b_0004;
/// Connection mark of a connection that came by the mesh: this and the entry node's index.
pub const MESH_MARK: u32 = 0x5100_0000;
/// The part of a mark that tells that it is ours.
pub const MESH_MASK: u32 = 0xff00_0000;
/// Connection mark at the entry node: the connection is to a published port.
pub const PUBLISHED_MARK: u32 = 0x0001_0000;
/// Routing table of replies on the mesh.
pub const MESH_TABLE: u32 = 51000;
/// Priority of the rule that leads there: after the table of local addresses (0), before the main one (32766).
pub const MESH_RULE: u32 = 5100;
/// The routing mesh, task links, and published ports on bridges without IPv6: each of their IPv4 addresses has a twin here, of
/// the same last four bytes. A
/// fixed unique local prefix (RFC 4193): as with 100.64.0.0/10, nothing of it is ever routed outside of nodes.
pub const TWINS: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b65, 0x7000, 0, 0, 0, 0, 0);
/// Stands for `::1` on the way to a container of the node, as the source of what a program of the node sends to it by `::1`:
/// the twin of 127.0.0.1. No host has it as an address. On the mesh it is the node's address there.
pub const LOOPBACK_TWIN: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6b65, 0x7000, 0, 0, 0, 0x7f00, 1);
/// Smallest MTU of a link that carries IPv6, in bytes (RFC 8200 section 5).
pub const IPV6_MIN_MTU: u32 = 1280;
/// Bytes by which a header of IPv6 is longer than one of IPv4.
pub const IPV6_HEADER_MORE: u32 = 20;
/// Bytes that VXLAN over IPv4 adds: IP 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub const VXLAN_OVERHEAD: u32 = 50;
/// UDP port of VXLAN that runs over WireGuard. Beside the registered one (4789), so that the two cannot be mistaken: a
/// VXLAN socket takes whatever reaches its port.
pub const ENCRYPTED_PORT: u16 = 4790;
/// Usual UDP port of WireGuard.
pub const WIREGUARD_PORT: u16 = 51820;
/// Bytes that WireGuard over IPv4 adds: IP 20, UDP 8, header 16, tag 16 (WireGuard paper, section 5.4.6).
pub const WIREGUARD_OVERHEAD: u32 = 60;
/// Addresses at the start of the range that are the nodes' on the mesh.
const MESH_ADDRESSES: u32 = 16384;
/// Addresses at the end of the range that are the nodes' on WireGuard.
const WIREGUARD_ADDRESSES: u32 = 16384;
/// Prefix length of a node's share for task links.
const TASK_PREFIX: u8 = 22;

impl Config {
    /// Checks what can be checked without the kernel.
    ///
    /// # Errors
    /// [`NetworkError::Config`] for the first setting that cannot be.
    pub fn validate(&self) -> Result<(), NetworkError> {
        let bad = |what: String| Err(NetworkError::Config { what });
        if self.prefix.is_empty() || self.prefix.len() > 6 || !self.prefix.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return bad(format!("link prefix {:?} is not 1 to 6 letters and digits", self.prefix));
        }
        if matches!(self.vxlan_port, 0 | ENCRYPTED_PORT) {
            return bad(format!(
                "the VXLAN port is {}: choose another than 0 and {ENCRYPTED_PORT}, which is that of encrypted networks",
                self.vxlan_port
            ));
        }
        if self.wireguard_port == 0 || self.wireguard_port == self.vxlan_port || self.wireguard_port == ENCRYPTED_PORT {
            return bad(format!("the WireGuard port is {}: it is 0 or that of VXLAN", self.wireguard_port));
        }
        let IpNet::V4(bridge) = self.bridge_subnet else {
            return bad(format!("the bridge subnet {} is not IPv4", self.bridge_subnet));
        };
        if bridge.prefix_len() > 29 {
            return bad(format!("the bridge subnet {bridge} is smaller than /29"));
        }
        let IpNet::V4(infra) = self.infra else {
            return bad(format!("the infrastructure range {} is not IPv4", self.infra));
        };
        if infra.prefix_len() > 16 {
            return bad(format!("the infrastructure range {infra} is smaller than /16"));
        }
        if infra.contains(&bridge.network()) || bridge.contains(&infra.network()) {
            return bad(format!("the bridge subnet {bridge} and the infrastructure range {infra} overlap"));
        }
        Ok(())
    }

    /// Names of links and tables.
    pub fn names(&self) -> LinkNames {
        LinkNames { prefix: self.prefix.clone() }
    }

    /// Where the node keeps its WireGuard keys.
    pub fn key_dir(&self) -> PathBuf {
        self.state_dir.join("keys")
    }

    /// Where sandboxes keep their namespaces and records.
    pub fn sandbox_dir(&self) -> PathBuf {
        self.state_dir.join("sandboxes")
    }

    /// Where overlays keep their switch namespaces.
    pub fn switch_dir(&self) -> PathBuf {
        self.state_dir.join("switches")
    }
}

/// The IPv6 twin of an infrastructure address.
pub fn twin(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(TWINS.to_bits() | u128::from(address.to_bits()))
}

/// The range of all twins.
pub fn twins() -> Ipv6Net {
    Ipv6Net::new(TWINS, 96).expect("96 is a prefix length")
}

/// The IPv6 twin of an infrastructure range.
pub fn twin_net(net: Ipv4Net) -> Ipv6Net {
    Ipv6Net::new(twin(net.network()), 96 + net.prefix_len()).expect("96 and at most 32 more")
}

/// A node's addresses on the underlay, at most one per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Underlay {
    /// Of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Of IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Underlay {
    /// The first ones of a list.
    pub fn of(addresses: &[IpAddr]) -> Self {
        let v6 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        });
        Self { v4: first_v4(addresses), v6 }
    }

    /// That of IPv4, or else that of IPv6.
    pub fn preferred(&self) -> Option<IpAddr> {
        self.v4.map(IpAddr::V4).or(self.v6.map(IpAddr::V6))
    }

    /// That of the same version of IP as `other`.
    pub fn alike(&self, other: IpAddr) -> Option<IpAddr> {
        match other {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// All of them.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether `peer` has an address of the version of IP that this end prefers: a VXLAN link that is not encrypted speaks
    /// that alone.
    pub fn speaks_with(&self, peer: &Self) -> bool {
        match self.preferred() {
            Some(IpAddr::V4(_)) => peer.v4.is_some(),
            Some(IpAddr::V6(_)) => peer.v6.is_some(),
            None => false,
        }
    }

    /// Where `self` reaches `peer`: over IPv4 if both have it, else over IPv6 if both have that.
    pub fn reaches(&self, peer: &Self) -> Option<IpAddr> {
        let v4 = peer.v4.filter(|_| self.v4.is_some()).map(IpAddr::V4);
        v4.or(peer.v6.filter(|_| self.v6.is_some()).map(IpAddr::V6))
    }
}

/// The first IPv4 address of a list of one per family.
pub fn first_v4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// Names of what we make in the node's namespace. A link name has at most 15 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNames {
    prefix: String,
}

impl LinkNames {
    /// Names that start with `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// Our tables in the node's namespace.
    pub fn table(&self) -> String {
        format!("skep-{}", self.prefix)
    }

    /// The VXLAN link of the routing mesh.
    pub fn mesh(&self) -> String {
        format!("{}-mesh", self.prefix)
    }

    /// The WireGuard link.
    pub fn wireguard(&self) -> String {
        format!("{}-wg", self.prefix)
    }

    /// The default bridge.
    pub fn default_bridge(&self) -> String {
        format!("{}-br0", self.prefix)
    }

    /// A user's bridge.
    pub fn bridge(&self, number: u32) -> String {
        format!("{}-br{number}", self.prefix)
    }

    /// The node's end of a sandbox's task link.
    pub fn task_link(&self, slot: u32) -> String {
        format!("{}-t{slot}", self.prefix)
    }

    /// A sandbox's port on a local bridge.
    pub fn bridge_port(&self, slot: u32, number: usize) -> String {
        format!("{}-p{slot}.{number}", self.prefix)
    }

    /// A VXLAN link on its way into its switch namespace.
    pub fn passing(&self, vni: u32) -> String {
        format!("{}-v{vni:x}", self.prefix)
    }

    /// Whether a link of the node's namespace belongs to a sandbox.
    pub fn is_sandbox_link(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| {
            let digits = rest.strip_prefix("-t").or_else(|| rest.strip_prefix("-p"));
            digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        })
    }
}

/// The addresses that a node has by its central index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddresses {
    /// On the mesh.
    pub mesh: Ipv4Addr,
    /// Share for task links; its first address is the gateway.
    pub tasks: Ipv4Net,
    /// On WireGuard.
    pub wireguard: Ipv4Addr,
}

impl NodeAddresses {
    /// The gateway of this node's tasks.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.tasks.network()) + 1)
    }
}

/// The addresses of the node with that index: in `infra`, 16384 mesh addresses come first, then one /22 per node; the
/// last 16384 are those of WireGuard. `None` when the range is too small for the index; 100.64.0.0/10 holds 4064 nodes.
pub fn node_addresses(infra: IpNet, index: u16) -> Option<NodeAddresses> {
    let IpNet::V4(infra) = infra else { return None };
    let start = u32::from(infra.network());
    let end = u32::from(infra.broadcast()).checked_sub(WIREGUARD_ADDRESSES)?;
    let share = 1u32 << (32 - TASK_PREFIX);
    let tasks = start.checked_add(MESH_ADDRESSES)?.checked_add(u32::from(index) * share)?;
    if tasks.checked_add(share - 1)? > end || u32::from(index) >= MESH_ADDRESSES.min(WIREGUARD_ADDRESSES) - 1 {
        return None;
    }
    let tasks = Ipv4Net::new(Ipv4Addr::from(tasks), TASK_PREFIX).expect("22 is a prefix length");
    let wireguard = Ipv4Addr::from(end + 1 + u32::from(index));
    Some(NodeAddresses { mesh: Ipv4Addr::from(start + u32::from(index)), tasks, wireguard })
}

/// The range of the nodes' mesh addresses, for a route to them.
pub fn mesh_range(infra: IpNet) -> Option<Ipv4Net> {
    let IpNet::V4(infra) = infra else { return None };
    Ipv4Net::new(infra.network(), 18).ok()
}

/// The range of the nodes' addresses on WireGuard: the last 16384.
pub fn wireguard_range(infra: IpNet) -> Option<Ipv4Net> {
    let IpNet::V4(infra) = infra else { return None };
    let start = u32::from(infra.broadcast()).checked_sub(WIREGUARD_ADDRESSES - 1)?;
    Ipv4Net::new(Ipv4Addr::from(start), 18).ok()
}

/// Stand-in for the next hop of replies on the mesh: the last mesh address, whose index no share is left for.
pub fn mesh_next_hop(infra: IpNet) -> Option<Ipv4Addr> {
    mesh_range(infra).map(|range| range.broadcast())
}

/// Whether a path can be bound as a Unix socket.
pub fn fits_socket(path: &Path) -> bool {
    path.as_os_str().len() < 108
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INFRA: &str = "100.64.0.0/10";

    #[test]
    fn shares_follow_the_mesh_addresses() {
        let first = node_addresses(INFRA.parse().unwrap(), 0).unwrap();
        assert_eq!((first.mesh.to_string(), first.tasks.to_string()), ("100.64.0.0".into(), "100.64.64.0/22".into()));
        let next = node_addresses(INFRA.parse().unwrap(), 1).unwrap();
        assert_eq!((next.mesh.to_string(), next.tasks.to_string()), ("100.64.0.1".into(), "100.64.68.0/22".into()));
        assert_eq!(next.gateway().to_string(), "100.64.68.1");
    }

    #[test]
    fn the_default_range_holds_4064_nodes() {
        let last = node_addresses(INFRA.parse().unwrap(), 4063).unwrap();
        assert_eq!(
            (last.tasks.to_string(), last.wireguard.to_string()),
            ("100.127.188.0/22".into(), "100.127.207.223".into())
        );
        assert_eq!(node_addresses(INFRA.parse().unwrap(), 4064), None);
        // A range of any size keeps its three parts apart.
        assert!(node_addresses("10.0.0.0/8".parse().unwrap(), 16351).is_some());
        assert_eq!(node_addresses("10.0.0.0/8".parse().unwrap(), 16352), None);
        assert!(node_addresses("10.0.0.0/16".parse().unwrap(), 31).is_some());
        assert_eq!(node_addresses("10.0.0.0/16".parse().unwrap(), 32), None);
    }

    proptest! {
        #[test]
        fn no_two_nodes_share_an_address(a in 0u16..4064, b in 0u16..4064) {
            prop_assume!(a != b);
            let infra: IpNet = INFRA.parse().unwrap();
            let (x, y) = (node_addresses(infra, a).unwrap(), node_addresses(infra, b).unwrap());
            prop_assert!(x.mesh != y.mesh);
            prop_assert!(!x.tasks.contains(&y.tasks));
            prop_assert!(!x.tasks.contains(&y.mesh));
            prop_assert!(infra.contains(&IpNet::V4(x.tasks)));
            prop_assert!(x.mesh != mesh_next_hop(infra).unwrap());
            prop_assert!(x.wireguard != y.wireguard);
            let tunnels = wireguard_range(infra).unwrap();
            prop_assert!(tunnels.contains(&x.wireguard) && infra.contains(&IpNet::V4(tunnels)));
            prop_assert!(!tunnels.contains(&x.mesh) && !tunnels.contains(&x.tasks.network()));
            prop_assert!(!tunnels.contains(&x.tasks.broadcast()) && !mesh_range(infra).unwrap().contains(&x.wireguard));
        }

        #[test]
        fn link_names_fit(slot: u16, number in 0usize..10, vni in 0u32..0x0100_0000) {
            let names = LinkNames::new("abcdef");
            for name in [names.mesh(), names.bridge(slot.into()), names.task_link(slot.into()),
                names.bridge_port(slot.into(), number), names.passing(vni), names.wireguard()] {
                prop_assert!(name.len() <= 15, "{}", name);
            }
        }
    }
}
