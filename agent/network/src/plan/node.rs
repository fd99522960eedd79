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
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use skep_proto::model::NodeId;
use skep_proto::model::service::{Protocol, PublishMode};
use skep_proto::model::view::NetworkView;

use crate::config::{
    BRIDGE_GROUP, LinkNames, MESH_MARK, MESH_MASK, PUBLISHED_MARK, TASK_GROUP, first_v4, node_addresses,
};
use crate::mac::Mac;
use crate::netlink::Neighbour;
use crate::nft::expr::Verdict;
use crate::nft::rule::{Rule, SCTP, TCP, UDP};
use crate::nft::table::{Family, Field, Hook, Kind, MapTo, Set, Table, Value, address_and_port, concat, service_key};

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
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Whether the mesh link is there.
    pub mesh: bool,
    /// The other nodes by central index, with their address on the underlay.
    pub peers: BTreeMap<u16, Ipv4Addr>,
    /// Local bridges.
    pub bridges: Vec<BridgeFacts>,
    /// Addresses of this node's sandboxes on their task links.
    pub tasks: BTreeSet<Ipv4Addr>,
    /// Ports of this node alone.
    pub host_ports: BTreeMap<(Protocol, Option<Ipv4Addr>, u16), (Ipv4Addr, u16)>,
    /// Ports of the cluster: port of the task and addresses of tasks.
    pub ingress: BTreeMap<(Protocol, u16), (u16, Vec<Ipv4Addr>)>,
}

/// A local bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeFacts {
    /// Its link.
    pub link: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// No way out.
    pub internal: bool,
}

/// The other nodes as the mesh and the VXLAN filter need them.
pub fn peers(view: &NetworkView, node: Option<NodeId>) -> BTreeMap<u16, Ipv4Addr> {
    let others = view.peers.values().filter(|peer| Some(peer.node) != node);
    others.filter_map(|peer| Some((peer.index, first_v4(&peer.data_path)?))).collect()
}

/// Published ports of the routing mesh with the tasks behind them. Ports without a task are not there: the node
/// refuses them as it does any closed port.
pub fn ingress(view: &NetworkView) -> BTreeMap<(Protocol, u16), (u16, Vec<Ipv4Addr>)> {
    let mut all = BTreeMap::new();
    for service in view.services.values() {
        let tasks = view.endpoints.values().filter(|e| e.serving && e.service == Some(service.id));
        let mut addresses: Vec<Ipv4Addr> = tasks
            .filter_map(|endpoint| match endpoint.mesh {
                Some(IpAddr::V4(address)) => Some(address),
                _ => None,
            })
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        for port in service.ports.iter().filter(|p| p.mode == PublishMode::Ingress) {
            if let (Some(published), false) = (port.published, addresses.is_empty()) {
                all.insert((port.protocol, published), (port.target, addresses.clone()));
            }
        }
    }
    all
}

/// Entries of the mesh link: where the other nodes are.
pub fn mesh_entries(peers: &BTreeMap<u16, Ipv4Addr>, infra: ipnet::IpNet) -> BTreeSet<Neighbour> {
    let mut entries = BTreeSet::new();
    for (index, underlay) in peers {
        if let Some(addresses) = node_addresses(infra, *index) {
            let mac = Mac::of_node(*index);
            entries.extend([Neighbour::Tunnel(mac, *underlay), Neighbour::Address(addresses.mesh, mac)]);
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

fn protocol_name(protocol: Protocol) -> &'static str {
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
    let mut tables = vec![ipv4_table(facts)];
    if facts.mesh {
        tables.push(mesh_table(facts));
    }
    tables
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

fn ipv4_table(facts: &NodeFacts) -> Table {
    let mut table = Table::new(Family::Ipv4, facts.names.table());
    add_sets(&mut table, facts);
    let mesh = facts.names.mesh();
    let loopback = Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("8 is a prefix length");

    table.base(
        "raw",
        Kind::Filter,
        Hook::Prerouting,
        RAW,
        vec![
            // Before the VXLAN links exist: only nodes of the cluster may send to their port.
            Rule::new().destination_is_local().destination_port(UDP, facts.vxlan_port).source_not_in("nodes").drop(),
            // The links below have route_localnet, which must not open loopback to others.
            Rule::new().iif_not("lo").destination(loopback).drop(),
            Rule::new().iif_group(TASK_GROUP).spoofed().drop(),
            Rule::new().iif_group(BRIDGE_GROUP).spoofed().drop(),
            Rule::new().iif(&mesh).zone_by_ether_source("node-zones"),
        ],
    );
    table.base(
        "mangle",
        Kind::Filter,
        Hook::Prerouting,
        MANGLE,
        vec![
            Rule::new().iif(&mesh).original().ct_mark_by_ether_source("node-marks"),
            Rule::new().iif_not(&mesh).reply().ct_mark(MESH_MARK, MESH_MASK).mark_by_ct_mark(),
        ],
    );
    let published = vec![
        Rule::new().destination_is_local().dnat_by_address_and_service("host-ports-bound"),
        Rule::new().destination_is_local().dnat_by_service("host-ports"),
        Rule::new().destination_is_local().verdict_by_service("ingress-ports"),
    ];
    table.base("published", Kind::Nat, Hook::Prerouting, DSTNAT, published.clone());
    table.base("published-local", Kind::Nat, Hook::Output, DSTNAT, published);
    table.base(
        "segments",
        Kind::Filter,
        Hook::Forward,
        MANGLE,
        vec![Rule::new().oif(&mesh).tcp_flags(SYN).clamp_mss()],
    );
    table.base("forward", Kind::Filter, Hook::Forward, FILTER, forward_rules(facts, &mesh));
    table.base("source", Kind::Nat, Hook::Postrouting, SRCNAT, source_rules(facts, &mesh, loopback));
    for ((protocol, port), (target, addresses)) in &facts.ingress {
        let mut rules = vec![Rule::new().or_ct_mark(PUBLISHED_MARK)];
        rules.extend(Rule::new().lead_to(addresses, Some(*target)));
        table.chain(ingress_chain(*protocol, *port), rules);
    }
    table
}

fn ingress_chain(protocol: Protocol, port: u16) -> String {
    format!("ingress-{}-{port}", protocol_name(protocol))
}

/// Who may pass through the node. Rules of others are asked as well; ours only speak about our own links.
fn forward_rules(facts: &NodeFacts, mesh: &str) -> Vec<Rule> {
    let vxlan = || Rule::new().destination_in("nodes").destination_port(UDP, facts.vxlan_port);
    let mut rules = vec![
        // A container could speak VXLAN to another node, which would take it for this node's.
        vxlan().iif_group(TASK_GROUP).drop(),
        vxlan().iif_group(BRIDGE_GROUP).drop(),
        Rule::new().established().accept(),
        // Published ports are the only way between sandboxes of different networks.
        Rule::new().oif_group(TASK_GROUP).was_dnat().accept(),
        Rule::new().oif_group(TASK_GROUP).iif(mesh).accept(),
        Rule::new().oif_group(TASK_GROUP).drop(),
        Rule::new().oif(mesh).was_dnat().accept(),
        Rule::new().oif(mesh).drop(),
    ];
    for bridge in &facts.bridges {
        rules.push(Rule::new().iif(&bridge.link).oif(&bridge.link).accept());
        if bridge.internal {
            rules.push(Rule::new().iif(&bridge.link).drop());
            rules.push(Rule::new().oif(&bridge.link).drop());
        }
    }
    rules.push(Rule::new().oif_group(BRIDGE_GROUP).was_dnat().accept());
    rules.push(Rule::new().oif_group(BRIDGE_GROUP).drop());
    rules
}

/// When the source must become the node's. Clients keep theirs wherever the answer finds back.
fn source_rules(facts: &NodeFacts, mesh: &str, loopback: Ipv4Net) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new().was_dnat().source(loopback).masquerade(),
        // A task that came back to itself: it would not accept its own address from outside.
        Rule::new().was_dnat().source_and_destination_in("selves").masquerade(),
        // Nodes as clients: the task's node would see its own address come in.
        Rule::new().oif(mesh).ct_mark(PUBLISHED_MARK, PUBLISHED_MARK).source_is_local().masquerade(),
        Rule::new().oif(mesh).ct_mark(PUBLISHED_MARK, PUBLISHED_MARK).source_in("nodes").masquerade(),
        // Bridge addresses mean nothing on another node.
        Rule::new().oif(mesh).iif_group(BRIDGE_GROUP).masquerade(),
        Rule::new().iif_group(TASK_GROUP).oif_not(mesh).oif_group_not(TASK_GROUP).masquerade(),
    ];
    for bridge in &facts.bridges {
        // Through a published port back to the same bridge: the answer would take the short way and not be known. Not
        // by incoming link: where bridged frames are filtered too (br_netfilter), there is none after routing.
        rules.push(Rule::new().source(bridge.subnet).oif(&bridge.link).was_dnat().masquerade());
        if !bridge.internal {
            rules.push(
                Rule::new().iif(&bridge.link).source(bridge.subnet).oif_not(&bridge.link).oif_not(mesh).masquerade(),
            );
        }
    }
    rules
}

fn add_sets(table: &mut Table, facts: &NodeFacts) {
    let mut nodes = Set::of([Field::Address]);
    let mut marks = Set::map([Field::Ether], MapTo::Fields(vec![Field::Mark]));
    let mut zones = Set::map([Field::Ether], MapTo::Fields(vec![Field::Zone]));
    for (index, address) in &facts.peers {
        let mac = Mac::of_node(*index).0.to_vec();
        nodes.add(address.octets().to_vec());
        marks.put(mac.clone(), Value::Bytes(mark(*index).to_vec()));
        zones.put(mac, Value::Bytes(zone(*index).to_vec()));
    }
    let mut selves = Set::of([Field::Address, Field::Address]);
    for address in &facts.tasks {
        selves.add(concat(&[&address.octets(), &address.octets()]));
    }
    let to = || MapTo::Fields(vec![Field::Address, Field::Port]);
    let mut ports = Set::map([Field::Protocol, Field::Port], to());
    let mut bound = Set::map([Field::Protocol, Field::Address, Field::Port], to());
    for ((protocol, bind, port), (address, target)) in &facts.host_ports {
        let number = protocol_number(*protocol);
        let value = Value::Bytes(address_and_port(*address, *target));
        match bind {
            None => ports.put(service_key(number, *port), value),
            Some(bind) => bound.put(concat(&[&[number], &bind.octets(), &port.to_be_bytes()]), value),
        }
    }
    let mut ingress = Set::map([Field::Protocol, Field::Port], MapTo::Verdict);
    for (protocol, port) in facts.ingress.keys() {
        let verdict = Verdict::Goto(ingress_chain(*protocol, *port));
        ingress.put(service_key(protocol_number(*protocol), *port), Value::Verdict(verdict));
    }
    let named = [
        ("nodes", nodes),
        ("node-marks", marks),
        ("node-zones", zones),
        ("selves", selves),
        ("host-ports", ports),
        ("host-ports-bound", bound),
        ("ingress-ports", ingress),
    ];
    table.sets.extend(named.map(|(name, set)| (name.to_owned(), set)));
}
