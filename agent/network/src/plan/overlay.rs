//! One overlay network on this node: who is behind which node, and who may send from which port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use skep_proto::model::view::{EndpointView, NetworkView, Peer};
use skep_proto::model::{NetworkId, NodeId};

use super::change::Change;
use super::senders::{self, Groups, Sender};
use crate::mac::Mac;
use crate::netlink::Neighbour;
use crate::nft::frame::PortKey;
use crate::nft::rule::Rule;
use crate::nft::table::{Family, Hook, Kind, Table};

/// Name of the VXLAN link in a switch namespace.
pub const VXLAN: &str = "vx0";
/// Name of the bridge in a switch namespace.
pub const BRIDGE: &str = "br0";
/// Name of our table in switch namespaces and sandboxes.
pub const TABLE: &str = "skep";

/// Addresses of a network that live on other nodes: each needs its VXLAN destination, its bridge port and its answer
/// to ARP or to a neighbour solicitation. What is attached here is never among them, whatever the managers still say. `end`
/// tells where a node's end of the network's path is; those of IPv6 are left out without `ipv6`.
pub fn remote_entries(
    view: &NetworkView,
    network: NetworkId,
    node: Option<NodeId>,
    local: &BTreeSet<IpAddr>,
    ipv6: bool,
    end: impl Fn(&Peer) -> Option<IpAddr>,
) -> BTreeSet<Neighbour> {
    let place = Place { network, node, local, ipv6 };
    view.endpoints.values().flat_map(|endpoint| entries_of(endpoint, view, &place, &end)).collect()
}

/// Where entries are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// On this network.
    pub network: NetworkId,
    /// On this node.
    pub node: Option<NodeId>,
    /// What is attached here.
    pub local: &'a BTreeSet<IpAddr>,
    /// With those of IPv6.
    pub ipv6: bool,
}

/// Entries that are gone, and that are new, after the tasks of `change`; neither nodes nor what is attached here changed.
pub fn changed_entries(
    change: &Change<'_>,
    view: &NetworkView,
    place: &Place<'_>,
    end: impl Fn(&Peer) -> Option<IpAddr>,
) -> (BTreeSet<Neighbour>, BTreeSet<Neighbour>) {
    let of = |endpoints: Vec<&EndpointView>| -> BTreeSet<Neighbour> {
        endpoints.into_iter().flat_map(|endpoint| entries_of(endpoint, view, place, &end)).collect()
    };
    let old = of(change.endpoints.iter().filter_map(|(old, _)| *old).collect());
    let new = of(change.endpoints.iter().filter_map(|(_, new)| *new).collect());
    // The same address may be found at another node now.
    (old.difference(&new).copied().collect(), new)
}

fn entries_of(
    endpoint: &EndpointView,
    view: &NetworkView,
    place: &Place<'_>,
    end: impl Fn(&Peer) -> Option<IpAddr>,
) -> Vec<Neighbour> {
    let there = || endpoint.addresses.iter().filter(|a| a.network == place.network).map(|a| a.address.addr());
    // The Ethernet address follows from IPv4, for both.
    let elsewhere = Some(endpoint.node) != place.node && there().all(|address| !place.local.contains(&address));
    let Some(mac) = there().find_map(mac_of).filter(|_| elsewhere) else { return Vec::new() };
    let Some(node) = view.peers.get(&endpoint.node).and_then(end) else { return Vec::new() };
    let addresses = there().filter(|a| place.ipv6 || a.is_ipv4()).map(|address| Neighbour::Address(address, mac));
    [Neighbour::Tunnel(mac, node), Neighbour::Port(mac)].into_iter().chain(addresses).collect()
}

fn mac_of(address: IpAddr) -> Option<Mac> {
    match address {
        IpAddr::V4(address) => Some(Mac::of(address)),
        IpAddr::V6(_) => None,
    }
}

/// An attachment here: the index of its port in the switch namespace, and its addresses.
pub type Port = (u32, Sender);

/// The filter of a switch namespace: a port may send only as what is attached to it. Frames from other nodes were
/// checked where they began.
pub fn switch_table(ports: &[Port]) -> Table {
    let mut table = Table::new(Family::Bridge, TABLE);
    let ports: Vec<_> = ports.iter().map(|(index, sender)| (index.to_ne_bytes().to_vec(), *sender)).collect();
    senders::add_sets(&mut table, PortKey::Index, &ports);
    let mut rules = vec![Rule::new().iif(VXLAN).accept()];
    rules.extend(senders::rules(PortKey::Index, &ports, Groups::Drop));
    // Before anything else in the bridge (ebtables' brouting chain is at -300 too).
    table.base("senders-only", Kind::Filter, Hook::Prerouting, -300, rules);
    table
}
