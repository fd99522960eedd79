//! What a node must know of the cluster's network, pushed to it by the managers: enough to go on alone.
//!
//! Each value has a key; the managers put and remove values by key, the agent keeps the maps and the network layer
//! compares them with what the kernel holds. None of it is ordered in time: a later map is simply the truth.

use std::collections::BTreeMap;
use std::net::IpAddr;

use imbl::OrdMap;
use ipnet::IpNet;

use super::network::{INGRESS_VNI, Subnet};
use super::node::WireGuard;
use super::pod::PortRedirect;
use super::service::{EndpointMode, PortConfig, VirtualIp};
use super::{NetworkId, NodeId, ServiceId, TaskId};

/// All that a node knows of the cluster's network. Copies share what is equal in them, so that keeping one and finding what
/// changed since cost as much as the change, whatever the size of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkView {
    /// The nodes, this one included.
    pub peers: OrdMap<NodeId, Peer>,
    /// Networks on which this node has a task, or that one of its containers joined, and the routing mesh where the operator
    /// made one.
    pub networks: OrdMap<NetworkId, OverlayNetwork>,
    /// Services on those networks, and all services with ports in ingress mode.
    pub services: OrdMap<ServiceId, ServiceView>,
    /// Tasks with an address on those networks, and tasks behind ingress ports.
    pub endpoints: OrdMap<TaskId, EndpointView>,
}

impl NetworkView {
    /// The routing mesh, where the operator made one.
    pub fn ingress(&self) -> Option<&OverlayNetwork> {
        self.networks.values().find(|network| network.vni == INGRESS_VNI)
    }
}

/// Another node, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its central index.
    pub index: u16,
    /// Where its data path is reached, one address per family.
    pub data_path: Vec<IpAddr>,
    /// How encrypted networks reach it; `None` while it cannot encrypt.
    pub wireguard: Option<WireGuard>,
    /// Its tasks have no addresses of IPv6, whatever was given to them.
    pub ipv4_only: bool,
}

/// A network as a node needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// The network.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Subnets, one per family.
    pub subnets: Vec<Subnet>,
    /// No way out.
    pub internal: bool,
    /// Whether what passes between nodes is encrypted.
    pub encrypted: bool,
    /// MTU asked for by `com.docker.network.driver.mtu`; `None` to derive it from the underlay.
    pub mtu: Option<u32>,
    /// UDP port of its VXLAN when it is not encrypted; 0 for the usual one (4789, RFC 7348 section 5).
    pub port: u16,
}

/// A service as a node needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// The service.
    pub id: ServiceId,
    /// Its name: what DNS answers to.
    pub name: String,
    /// What the name resolves to.
    pub mode: EndpointMode,
    /// Addresses of the service.
    pub virtual_ips: Vec<VirtualIp>,
    /// Further names by network.
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
    /// Published ports, with their numbers.
    pub ports: Vec<PortConfig>,
    /// Ports of the virtual addresses that lead to other ports of the tasks.
    pub redirects: Vec<PortRedirect>,
}

/// A task as other nodes need it. It is present only while it should get traffic or drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// The task.
    pub task: TaskId,
    /// Its service.
    pub service: Option<ServiceId>,
    /// Its node.
    pub node: NodeId,
    /// Container name (`web.1.…`), resolvable on its networks.
    pub name: String,
    /// Addresses by network.
    pub addresses: Vec<EndpointAddress>,
    /// Address on its node's task bridge, when it has ports in ingress mode: reported by its agent when it starts.
    pub mesh: Option<IpAddr>,
    /// Gets new connections. False while it drains: no DNS, no VIP, no mesh, but its addresses stay reachable.
    pub serving: bool,
}

/// An address of a task on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointAddress {
    /// The network.
    pub network: NetworkId,
    /// Address with the network's prefix length.
    pub address: IpNet,
    /// Further names on that network.
    pub aliases: Vec<String>,
    /// Names of this task alone, which hold as long as it is there, whether it is serving or not.
    pub names: Vec<String>,
}
