//! The tables of the node's own namespace: who may send VXLAN, the routing mesh, published ports, the way out.
//!
//! ```text
//! client -> A:8080   A: DNAT to a task's address on its task link, connection marked "published"
//!           A -> B   over the mesh (VXLAN), Ethernet source = A
//!           B        connection mark = A's, zone = A's (two entry nodes may bring the same client port)
//! task   -> B        packet mark = connection mark -> table 51000 -> mesh
//!           B -> A   on leaving the mesh link: Ethernet destination = node of the mark, mark cleared (the outer
//!                    packet would inherit it and be routed into the mesh again)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use skep_proto::model::NodeId;
use skep_proto::model::service::Protocol;
use skep_proto::model::view::NetworkView;

use super::encryption::{self, Path};
use super::ingress::{self, Ingress};
use super::senders::{self, Groups, Sender};
use crate::config::{
    BRIDGE_GROUP, LOOPBACK_TWIN, LinkNames, MESH_GROUP, MESH_MARK, MESH_MASK, PORT_GROUP, PUBLISHED_MARK, TASK_GROUP,
    Underlay, node_addresses, twin, twins,
};
use crate::mac::Mac;
use crate::netlink::Neighbour;
use crate::nft::frame::PortKey;
use crate::nft::rule::{Rule, SCTP, TCP, UDP, link_name};
use crate::nft::table::{
    Family, Field, Hook, Ip, Kind, MapTo, Set, Table, Value, address_and_port, concat, octets, service_key,
};

/// Priorities of nft's names `raw`, `mangle`, `dstnat`, `filter`, `srcnat`.
const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;
/// TCP's SYN flag.
const SYN: u8 = 2;

/// What the tables of the node follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Names of links and tables.
    pub names: LinkNames,
    /// UDP ports of VXLAN that is not encrypted.
    pub vxlan_ports: BTreeSet<u16>,
    /// The nodes' addresses on WireGuard.
    pub tunnels: Option<Ipv4Net>,
    /// Whether the mesh link is there.
    pub mesh: bool,
    /// Whether the node speaks IPv6 for its sandboxes.
    pub ipv6: bool,
    /// The other nodes by central index, with their addresses on the underlay.
    pub peers: BTreeMap<u16, Underlay>,
    /// Shares for task links of nodes whose tasks have no IPv6.
    pub ipv4_only: BTreeSet<Ipv4Net>,
    /// Local bridges.
    pub bridges: Vec<BridgeFacts>,
    /// Sandboxes' ports on local bridges, by link, with what is behind each.
    pub ports: BTreeMap<String, Sender>,
    /// Addresses of this node's sandboxes on their task links.
    pub tasks: BTreeSet<Ipv4Addr>,
    /// Ports of this node alone: on which of its addresses, or on all, and where they lead.
    pub host_ports: BTreeMap<(Protocol, Option<IpAddr>, u16), (Ends, u16)>,
    /// Ports of the cluster.
    pub ingress: Ingress,
}

/// A sandbox as published ports lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ends {
    /// For connections over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// For connections over IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Ends {
    fn of(&self, ip: Ip) -> Option<IpAddr> {
        match ip {
            Ip::V4 => self.v4.map(IpAddr::V4),
            Ip::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// A local bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeFacts {
    /// Its link.
    pub link: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its subnet of IPv6, if it has one.
    pub subnet6: Option<Ipv6Net>,
    /// No way out.
    pub internal: bool,
}

impl BridgeFacts {
    fn subnet(&self, ip: Ip) -> Option<IpNet> {
        match ip {
            Ip::V4 => Some(IpNet::V4(self.subnet)),
            Ip::V6 => self.subnet6.map(IpNet::V6),
        }
    }
}

/// An address of the infrastructure, in that version of IP.
pub fn in_ip(ip: Ip, address: Ipv4Addr) -> IpAddr {
    match ip {
        Ip::V4 => IpAddr::V4(address),
        Ip::V6 => IpAddr::V6(twin(address)),
    }
}

/// The other nodes as the mesh and the VXLAN filter need them.
pub fn peers(view: &NetworkView, node: Option<NodeId>) -> BTreeMap<u16, Underlay> {
    let others = view.peers.values().filter(|peer| Some(peer.node) != node);
    let others = others.map(|peer| (peer.index, Underlay::of(&peer.data_path)));
    others.filter(|(_, underlay)| underlay.preferred().is_some()).collect()
}

/// Central indexes of the nodes whose tasks have no IPv6, this one included.
pub fn ipv4_only(view: &NetworkView) -> BTreeSet<u16> {
    view.peers.values().filter(|peer| peer.ipv4_only).map(|peer| peer.index).collect()
}

/// Entries of the mesh link, whose path is `path`: where the other nodes are. With `ipv6` those that have it are there by their
/// twin addresses too. A node that has no address of the path's version of IP is not reached.
pub fn mesh_entries(facts: &NodeFacts, path: &Path, infra: IpNet, ipv6: bool) -> BTreeSet<Neighbour> {
    let mut entries = BTreeSet::new();
    for (index, underlay) in &facts.peers {
        let Some(addresses) = node_addresses(infra, *index) else { continue };
        let end = if path.is_encrypted() { Some(addresses.wireguard.into()) } else { underlay.alike(path.local) };
        if let Some(end) = end {
            let mac = Mac::of_node(*index);
            entries.extend([Neighbour::Tunnel(mac, end), Neighbour::Address(IpAddr::V4(addresses.mesh), mac)]);
            let ipv6 = ipv6 && !facts.ipv4_only.contains(&addresses.tasks);
            entries.extend(ipv6.then(|| Neighbour::Address(IpAddr::V6(twin(addresses.mesh)), mac)));
        }
    }
    entries
}

/// Number of a protocol in the IP header.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => SCTP,
    }
}

/// Name of a protocol.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The mark of connections that node `index` brought.
fn mark(index: u16) -> [u8; 4] {
    (MESH_MARK | u32::from(index)).to_ne_bytes()
}

/// Zone of connections that node `index` brought; 0 is everybody's.
fn zone(index: u16) -> [u8; 2] {
    (index.wrapping_add(1)).to_ne_bytes()
}

/// All our tables in the node's namespace.
pub fn node_tables(facts: &NodeFacts) -> Vec<Table> {
    let mut tables = vec![ip_table(Ip::V4, facts), bridge_table(facts)];
    if facts.ipv6 {
        tables.push(ip_table(Ip::V6, facts));
    }
    if facts.mesh {
        tables.push(mesh_table(facts));
    }
    tables
}

/// The filter of local bridges: a sandbox may send only as what is attached to its port. Bridges of others pass.
fn bridge_table(facts: &NodeFacts) -> Table {
    let mut table = Table::new(Family::Bridge, facts.names.table());
    let ports: Vec<_> = facts.ports.iter().map(|(link, sender)| (link_name(link), *sender)).collect();
    senders::add_sets(&mut table, PortKey::Name, &ports);
    let mut rules = vec![Rule::new().iif_group_not(PORT_GROUP).accept()];
    rules.extend(senders::rules(PortKey::Name, &ports, Groups::Pass));
    table.base("senders-only", Kind::Filter, Hook::Prerouting, RAW, rules);
    table
}

/// What leaves the mesh link gets its Ethernet destination from its mark.
fn mesh_table(facts: &NodeFacts) -> Table {
    let mut table = Table::new(Family::Netdev, facts.names.table());
    let mut nodes = Set::map([Field::Mark], MapTo::Fields(vec![Field::Ether]));
    for index in facts.peers.keys() {
        nodes.put(mark(*index).to_vec(), Value::Bytes(Mac::of_node(*index).0.to_vec()));
    }
    table.sets.insert("nodes".into(), nodes);
    let rules = vec![Rule::new().ether_destination_by_mark("nodes"), Rule::new().clear_mark()];
    table.base("to-entry-node", Kind::Filter, Hook::Egress { device: facts.names.mesh() }, FILTER, rules);
    table
}

/// The table of one version of IP. Both are alike: what differs are addresses.
fn ip_table(ip: Ip, facts: &NodeFacts) -> Table {
    let mut table = Table::new(ip.family(), facts.names.table());
    add_sets(&mut table, ip, facts);
    let mesh = facts.names.mesh();
    let loopback = loopback(ip);

    let mut raw = encryption::incoming(ip, facts);
    raw.extend([
        // The links below have route_localnet, which must not open loopback to others.
        Rule::of(ip).destination(loopback).iif_not("lo").drop(),
        Rule::of(ip).iif_group(TASK_GROUP).spoofed().drop(),
        Rule::of(ip).iif_group(BRIDGE_GROUP).spoofed().drop(),
        Rule::of(ip).iif_group(MESH_GROUP).zone_by_ether_source("node-zones"),
    ]);
    table.base("raw", Kind::Filter, Hook::Prerouting, RAW, raw);
    table.chain(encryption::FROM_TUNNEL, encryption::from_tunnel(ip));
    table.base("sealed", Kind::Filter, Hook::Output, FILTER, encryption::outgoing(ip, facts));
    table.base(
        "mangle",
        Kind::Filter,
        Hook::Prerouting,
        MANGLE,
        vec![
            Rule::of(ip).original().iif_group(MESH_GROUP).ct_mark_by_ether_source("node-marks"),
            Rule::of(ip).reply().ct_mark(MESH_MARK, MESH_MASK).iif_group_not(MESH_GROUP).mark_by_ct_mark(),
        ],
    );
    let published = vec![
        Rule::of(ip).destination_is_local().dnat_by_address_and_service("host-ports-bound"),
        Rule::of(ip).destination_is_local().dnat_by_service("host-ports"),
        Rule::of(ip).destination_is_local().verdict_by_service(ingress::PORTS),
    ];
    let again = published[published.len() - 1..].to_vec();
    table.base("published", Kind::Nat, Hook::Prerouting, DSTNAT, published.clone());
    table.base("published-local", Kind::Nat, Hook::Output, DSTNAT, published);
    // Of what changes with the tasks, once more: see `balance`.
    table.base("published-again", Kind::Nat, Hook::Prerouting, DSTNAT + 1, again.clone());
    table.base("published-local-again", Kind::Nat, Hook::Output, DSTNAT + 1, again);
    table.base(
        "segments",
        Kind::Filter,
        Hook::Forward,
        MANGLE,
        vec![Rule::of(ip).tcp_flags(SYN).oif(&mesh).clamp_mss()],
    );
    table.base("forward", Kind::Filter, Hook::Forward, FILTER, forward_rules(ip, facts, &mesh));
    if ip == Ip::V6 {
        // What came for the stand-in of `::1` and answers nothing. After the destinations of replies were changed back.
        let rules = vec![Rule::of(ip).destination(IpNet::from(IpAddr::V6(LOOPBACK_TWIN))).drop()];
        table.base("loopback", Kind::Filter, Hook::Prerouting, FILTER, rules);
    }
    table.base("source", Kind::Nat, Hook::Postrouting, SRCNAT, source_rules(ip, facts, &mesh, loopback));
    ingress::add_to(&mut table, ip, &facts.ingress);
    table
}

/// Addresses of programs that speak to their own host.
fn loopback(ip: Ip) -> IpNet {
    match ip {
        Ip::V4 => Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 is a prefix length").into(),
        Ip::V6 => Ipv6Net::from(Ipv6Addr::LOCALHOST).into(),
    }
}

/// Who may pass through the node. Rules of others are asked as well; ours only speak about our own links.
fn forward_rules(ip: Ip, facts: &NodeFacts, mesh: &str) -> Vec<Rule> {
    let mut rules = encryption::forwarded(ip, facts);
    for port in &facts.vxlan_ports {
        let vxlan = || Rule::of(ip).destination_port(UDP, *port).destination_in("nodes");
        // A container could speak VXLAN to another node, which would take it for this node's.
        rules.extend([vxlan().iif_group(TASK_GROUP).drop(), vxlan().iif_group(BRIDGE_GROUP).drop()]);
    }
    rules.extend([Rule::of(ip).established().accept()]);
    // Before what lets published ports through: they are no way out either.
    for bridge in facts.bridges.iter().filter(|bridge| bridge.internal) {
        rules.push(Rule::of(ip).iif(&bridge.link).oif(&bridge.link).accept());
        rules.push(Rule::of(ip).iif(&bridge.link).drop());
        rules.push(Rule::of(ip).oif(&bridge.link).drop());
    }
    rules.extend([
        // Published ports are the only way between sandboxes of different networks.
        Rule::of(ip).oif_group(TASK_GROUP).was_dnat().accept(),
        Rule::of(ip).oif_group(TASK_GROUP).iif(mesh).accept(),
        Rule::of(ip).oif_group(TASK_GROUP).drop(),
        Rule::of(ip).oif(mesh).was_dnat().accept(),
        Rule::of(ip).oif(mesh).drop(),
    ]);
    for bridge in facts.bridges.iter().filter(|bridge| !bridge.internal) {
        rules.push(Rule::of(ip).iif(&bridge.link).oif(&bridge.link).accept());
    }
    rules.push(Rule::of(ip).oif_group(BRIDGE_GROUP).was_dnat().accept());
    rules.push(Rule::of(ip).oif_group(BRIDGE_GROUP).drop());
    if ip == Ip::V6 {
        // Twins on bridges answer. A network without IPv6 is no way out over it.
        rules.push(Rule::of(ip).iif_group(BRIDGE_GROUP).source(twins()).reject(false));
    }
    rules
}

/// When the source must become the node's. Clients keep theirs wherever the answer finds back.
fn source_rules(ip: Ip, facts: &NodeFacts, mesh: &str, loopback: IpNet) -> Vec<Rule> {
    let of_loopback = || Rule::of(ip).was_dnat().source(loopback);
    // What brings the answers back is in `netlink/loopback.rs`.
    let stand_in = (ip == Ip::V6).then(|| of_loopback().oif_not(mesh).source_becomes(LOOPBACK_TWIN.into()));
    let mut rules: Vec<Rule> = stand_in.into_iter().collect();
    rules.extend([
        of_loopback().masquerade(),
        // A task that came back to itself: it would not accept its own address from outside.
        Rule::of(ip).was_dnat().source_and_destination_in("selves").masquerade(),
        // Nodes as clients: the task's node would see its own address come in.
        Rule::of(ip).oif(mesh).ct_mark(PUBLISHED_MARK, PUBLISHED_MARK).source_is_local().masquerade(),
        Rule::of(ip).oif(mesh).ct_mark(PUBLISHED_MARK, PUBLISHED_MARK).source_in("nodes").masquerade(),
        // Bridge addresses mean nothing on another node.
        Rule::of(ip).oif(mesh).iif_group(BRIDGE_GROUP).masquerade(),
        Rule::of(ip).iif_group(TASK_GROUP).oif_not(mesh).oif_group_not(TASK_GROUP).masquerade(),
    ]);
    for bridge in &facts.bridges {
        // Through a published port back to the same bridge: the answer would take the short way and not be known. Not
        // by incoming link: where bridged frames are filtered too (br_netfilter), there is none after routing.
        let Some(subnet) = bridge.subnet(ip) else { continue };
        rules.push(Rule::of(ip).source(subnet).oif(&bridge.link).was_dnat().masquerade());
        if !bridge.internal {
            rules.push(Rule::of(ip).iif(&bridge.link).source(subnet).oif_not(&bridge.link).oif_not(mesh).masquerade());
        }
    }
    rules
}

fn add_sets(table: &mut Table, ip: Ip, facts: &NodeFacts) {
    let mut nodes = Set::of([ip.field()]);
    let mut marks = Set::map([Field::Ether], MapTo::Fields(vec![Field::Mark]));
    let mut zones = Set::map([Field::Ether], MapTo::Fields(vec![Field::Zone]));
    for (index, underlay) in &facts.peers {
        let mac = Mac::of_node(*index).0.to_vec();
        let address = match ip {
            Ip::V4 => underlay.v4.map(IpAddr::V4),
            Ip::V6 => underlay.v6.map(IpAddr::V6),
        };
        if let Some(address) = address {
            nodes.add(octets(address));
        }
        marks.put(mac.clone(), Value::Bytes(mark(*index).to_vec()));
        zones.put(mac, Value::Bytes(zone(*index).to_vec()));
    }
    let mut selves = Set::of([ip.field(), ip.field()]);
    for address in &facts.tasks {
        let address = octets(in_ip(ip, *address));
        selves.add(concat(&[&address, &address]));
    }
    let to = || MapTo::Fields(vec![ip.field(), Field::Port]);
    let mut ports = Set::map([Field::Protocol, Field::Port], to());
    let mut bound = Set::map([Field::Protocol, ip.field(), Field::Port], to());
    for ((protocol, bind, port), (ends, target)) in &facts.host_ports {
        let Some(address) = ends.of(ip) else { continue };
        let number = protocol_number(*protocol);
        let value = Value::Bytes(address_and_port(address, *target));
        match bind {
            // The unspecified address stands for all of its own version, none for all of both.
            Some(bind) if Ip::of(*bind) != ip => (),
            Some(bind) if !bind.is_unspecified() => {
                bound.put(concat(&[&[number], &octets(*bind), &port.to_be_bytes()]), value);
            }
            Some(_) | None => ports.put(service_key(number, *port), value),
        }
    }
    let named = [
        ("nodes", nodes),
        ("node-marks", marks),
        ("node-zones", zones),
        ("selves", selves),
        ("host-ports", ports),
        ("host-ports-bound", bound),
    ];
    table.sets.extend(named.map(|(name, set)| (name.to_owned(), set)));
}
