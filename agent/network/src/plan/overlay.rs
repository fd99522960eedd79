//! One overlay network on this node: who is behind which node, and who may send from which port.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use skep_proto::model::view::NetworkView;
use skep_proto::model::{NetworkId, NodeId};

use crate::config::first_v4;
use crate::mac::Mac;
use crate::netlink::Neighbour;
use crate::nft::rule::Rule;
use crate::nft::table::{Family, Field, Hook, Kind, Set, Table, concat};

/// Name of the VXLAN link in a switch namespace.
pub const VXLAN: &str = "vx0";
/// Name of the bridge in a switch namespace.
pub const BRIDGE: &str = "br0";
/// Name of our table in switch namespaces and sandboxes.
pub const TABLE: &str = "skep";

/// EtherType of IPv4 and offset of the source address in its header.
const IPV4_SENDER: (u16, u32) = (0x0800, 12);
/// EtherType of ARP and offset of the sender's IPv4 address in it (RFC 826).
const ARP_SENDER: (u16, u32) = (0x0806, 14);

/// Addresses of a network that live on other nodes: each needs its VXLAN destination, its bridge port and its answer
/// to ARP. What is attached here is never among them, whatever the managers still say.
pub fn remote_entries(
    view: &NetworkView,
    network: NetworkId,
    node: Option<NodeId>,
    local: &BTreeSet<Ipv4Addr>,
) -> BTreeSet<Neighbour> {
    let mut entries = BTreeSet::new();
    for endpoint in view.endpoints.values().filter(|e| Some(e.node) != node) {
        let Some(node_address) = view.peers.get(&endpoint.node).and_then(|peer| first_v4(&peer.data_path)) else {
            continue;
        };
        for attachment in endpoint.addresses.iter().filter(|a| a.network == network) {
            let IpNet::V4(net) = attachment.address else { continue };
            let address = net.addr();
            if local.contains(&address) {
                continue;
            }
            let mac = Mac::of(address);
            entries.extend([
                Neighbour::Tunnel(mac, node_address),
                Neighbour::Port(mac),
                Neighbour::Address(address, mac),
            ]);
        }
    }
    entries
}

/// An attachment here: the index of its port in the switch namespace, and its address.
pub type Port = (u32, Ipv4Addr);

/// The filter of a switch namespace: a port may send only as what is attached to it. Frames from other nodes were
/// checked where they began.
pub fn switch_table(ports: &[Port]) -> Table {
    let mut table = Table::new(Family::Bridge, TABLE);
    let mut senders = Set::of([Field::Link, Field::Ether, Field::Address]);
    for (index, address) in ports {
        senders.add(concat(&[&index.to_ne_bytes(), &Mac::of(*address).0, &address.octets()]));
    }
    table.sets.insert("senders".into(), senders);
    let rules = vec![
        Rule::new().iif(VXLAN).accept(),
        Rule::new().sender_in(IPV4_SENDER.0, IPV4_SENDER.1, "senders").accept(),
        Rule::new().sender_in(ARP_SENDER.0, ARP_SENDER.1, "senders").accept(),
        Rule::new().drop(),
    ];
    // Before anything else in the bridge (ebtables' brouting chain is at -300 too).
    table.base("senders-only", Kind::Filter, Hook::Prerouting, -300, rules);
    table
}
