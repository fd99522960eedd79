//! What this node has given out: addresses, slots, ports. Kept in memory, and per sandbox on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use skep_proto::model::NetworkId;
use skep_proto::model::view::NetworkView;

use super::pool::Pool;
use crate::config::{Config, NodeAddresses, Place, Underlay, node_addresses, twin, twin_net, wireguard_range};
use crate::error::NetworkError;
use crate::names::SandboxDns;
use crate::netlink::Neighbour;
use crate::plan::change::{Backends, Change};
use crate::plan::encryption::Mesh;
use crate::plan::ingress::Ingress;
use crate::plan::names::{LocalName, Sources};
use crate::plan::node::{BridgeFacts, Ends, NodeFacts};
use crate::plan::sight::{Sight, Standpoint};
use crate::plan::vip::Vips;
use crate::spec::{
    Addressing, DEFAULT_BRIDGE, HostPort, LinkKind, Sandbox, SandboxId, SandboxLink, SandboxSpec, resolv_conf,
};

/// The node's own settings.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Ports chosen for those who ask for any: the dynamic range of RFC 6335 section 6.
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// A sandbox with what was given to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Number that its links in the node's namespace are named by.
    pub slot: u32,
    /// Its links, in order.
    pub links: Vec<SandboxLink>,
    /// Its open ports, with their numbers.
    pub host_ports: Vec<HostPort>,
}

/// A local bridge as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Number that its link is named by; 0 is the default bridge.
    pub number: u32,
    /// Its subnet. The first address is the gateway's.
    pub subnet: Ipv4Net,
    /// No way out.
    pub internal: bool,
    /// Where in the subnet addresses are. In a record of its own, so that an older daemon reads this one.
    #[serde(skip)]
    pub addressing: Addressing,
    /// IPv6 beside IPv4. Also in a record of its own.
    #[serde(skip)]
    pub ipv6: Option<Bridge6>,
}

/// The IPv6 half of a local bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge6 {
    /// Its subnet.
    pub subnet: Ipv6Net,
    /// The node's address there.
    pub gateway: Ipv6Addr,
    /// Addresses that nobody named are chosen from here; `None` for the whole subnet.
    pub range: Option<Ipv6Net>,
}

impl Bridge {
    /// Its subnets.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        std::iter::once(IpNet::V4(self.subnet)).chain(self.ipv6.map(|ipv6| IpNet::V6(ipv6.subnet)))
    }

    /// The node's address on the bridge.
    pub fn gateway(&self) -> Ipv4Addr {
        self.addressing.gateway.unwrap_or_else(|| Ipv4Addr::from(u32::from(self.subnet.network()) + 1))
    }

    /// The twin of its IPv4 half.
    fn twin(&self) -> Bridge6 {
        Bridge6 { subnet: twin_net(self.subnet), gateway: twin(self.gateway()), range: None }
    }

    pub(super) fn pool(&self) -> Pool<Ipv4Addr> {
        Pool::v4(self.subnet, self.gateway(), self.addressing.range.unwrap_or(self.subnet))
    }
}

impl Bridge6 {
    pub(super) fn pool(&self) -> Pool<Ipv6Addr> {
        Pool::v6(self.subnet, self.gateway, self.range.unwrap_or(self.subnet))
    }
}

/// Of the cluster, what the node's tables need until the managers are heard again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Central index of this node.
    pub index: Option<u16>,
    /// Addresses of this node that links between nodes were made for.
    pub underlay: Underlay,
    /// The other nodes.
    pub peers: BTreeMap<u16, Underlay>,
    /// Nodes whose tasks have no IPv6.
    pub ipv4_only: BTreeSet<u16>,
    /// Published ports of the routing mesh.
    pub ingress: Ingress,
    /// How the routing mesh gets to other nodes.
    pub mesh: Mesh,
}

/// All bookkeeping.
#[derive(Debug, Default)]
pub struct State {
    /// Where the node stands.
    pub place: Place,
    /// What the managers want, as of the last time they were heard, as far as it holds here.
    pub view: Arc<NetworkView>,
    /// While that is brought to the kernel: what is left of the view before, which names are told of. What is new gets its names
    /// once there is a way to it.
    pub left: Option<(Arc<NetworkView>, Backends)>,
    /// What the managers want, as they told it.
    pub sight: Sight,
    /// Tasks of its services.
    pub backends: Backends,
    /// Virtual addresses of its services, with the tasks in the order in which all sandboxes number them.
    pub vips: Vips,
    /// What was kept of it.
    pub remembered: Remembered,
    /// Sandboxes that are, or are being made.
    pub records: BTreeMap<SandboxId, Record>,
    /// UDP ports of VXLAN that is not encrypted, besides the usual one.
    pub vxlan_ports: BTreeSet<u16>,
    /// Why the node has no WireGuard link, where it should have one.
    pub tunnel_failure: Option<String>,
    /// Local bridges by name.
    pub bridges: BTreeMap<String, Bridge>,
    /// Where the search for a free address goes on, by subnet: an address is given again as late as possible.
    pub(super) cursors: BTreeMap<IpNet, u128>,
    /// Whether the node speaks IPv6 for its sandboxes.
    pub ipv6: bool,
}

impl Record {
    /// Address on the task link.
    pub fn task_address(&self) -> Option<Ipv4Addr> {
        self.links.iter().find(|link| link.kind == LinkKind::Task).map(|link| link.address.addr())
    }

    /// The link of the default route. Of a task it is the task link, which the routing mesh comes by. A plain container's
    /// is the first that leads out: one that it joins while it runs takes nothing from the connections that it has.
    pub fn way_out(&self) -> Option<&SandboxLink> {
        let task = self.links.iter().find(|link| link.kind == LinkKind::Task && self.spec.task.is_some());
        task.or_else(|| self.links.iter().find(|link| link.gateway.is_some()))
    }

    /// The link of the default route of IPv6: as [`Self::way_out`], among those that have an IPv6 gateway. The twin of a bridge's
    /// address answers and leads nowhere: it comes last.
    pub fn way_out6(&self) -> Option<&SandboxLink> {
        let mut all = self.links.iter().filter(|link| link.gateway6.is_some());
        let task = all.clone().find(|link| link.kind == LinkKind::Task && self.spec.task.is_some());
        let answers_alone = |link: &SandboxLink| link.kind != LinkKind::Task && link.has_twin();
        task.or_else(|| all.clone().find(|link| !answers_alone(link))).or_else(|| all.next())
    }

    /// Where the node's published ports lead to.
    fn published_ends(&self) -> Option<Ends> {
        let bridge = || self.links.iter().find(|link| matches!(link.kind, LinkKind::Bridge(_)));
        let link = self.way_out().or_else(bridge)?;
        let v6 = self.way_out6().or(Some(link)).and_then(|link| link.address6);
        Some(Ends { v4: Some(link.address.addr()), v6: v6.map(|net| net.addr()) })
    }

    /// Networks of the cluster that it is on.
    pub fn networks(&self) -> BTreeSet<NetworkId> {
        self.spec.overlays.iter().map(|overlay| overlay.network).collect()
    }

    /// As the agent sees it.
    pub fn sandbox(&self, config: &Config) -> Sandbox {
        Sandbox {
            id: self.spec.id.clone(),
            netns: netns_path(config, &self.spec.id),
            links: self.links.clone(),
            mesh: self.task_address().map(IpAddr::V4),
            host_ports: self.host_ports.clone(),
            task: self.spec.task,
            resolv_conf: resolv_conf(&self.spec.dns, &std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
        }
    }

    /// As the name server sees it.
    pub fn dns(&self, config: &Config) -> SandboxDns {
        let overlays = self.spec.overlays.iter().map(|o| crate::dns::zone::ZoneKey::Overlay(o.network));
        let bridges = self.spec.bridges.iter().filter(|b| b.bridge != DEFAULT_BRIDGE);
        let bridges = bridges.map(|b| crate::dns::zone::ZoneKey::Bridge(b.bridge.clone()));
        SandboxDns {
            id: self.spec.id.clone(),
            netns: netns_path(config, &self.spec.id),
            zones: overlays.chain(bridges).collect(),
            servers: self.spec.dns.servers.clone(),
        }
    }
}

/// The file that keeps a sandbox's namespace.
pub fn netns_path(config: &Config, id: &SandboxId) -> std::path::PathBuf {
    config.sandbox_dir().join(format!("{id}.net"))
}

impl State {
    /// This node's addresses, once the managers have told its index.
    ///
    /// # Errors
    /// [`NetworkError::NoIndex`], [`NetworkError::RangeTooSmall`].
    pub fn addresses(&self, config: &Config) -> Result<NodeAddresses, NetworkError> {
        let index = self.remembered.index.ok_or(NetworkError::NoIndex)?;
        node_addresses(config.infra, index).ok_or(NetworkError::RangeTooSmall { range: config.infra, index })
    }

    /// Whether the sandbox gets a task link: asked for, or as the way out of a network that has one.
    pub(super) fn needs_task_link(&self, spec: &SandboxSpec) -> bool {
        let open = |network| self.view.networks.get(network).is_none_or(|n| !n.internal);
        spec.mesh || spec.overlays.iter().any(|overlay| open(&overlay.network))
    }

    /// What is missing before the sandbox can be made, if anything.
    ///
    /// # Errors
    /// [`NetworkError::UnknownNetwork`], [`NetworkError::NoIndex`], [`NetworkError::RangeTooSmall`].
    pub fn ready_for(&self, spec: &SandboxSpec, config: &Config) -> Result<(), NetworkError> {
        for overlay in &spec.overlays {
            if !self.view.networks.contains_key(&overlay.network) {
                return Err(NetworkError::UnknownNetwork { network: overlay.network });
            }
        }
        let is_encrypted = |network| self.view.networks.get(network).is_some_and(|n| n.encrypted);
        if self.needs_task_link(spec) || spec.overlays.iter().any(|overlay| is_encrypted(&overlay.network)) {
            self.addresses(config)?;
        }
        Ok(())
    }

    /// Gives a sandbox its addresses and ports and keeps them for it.
    ///
    /// `is_free` tells whether no program of the node has a port.
    ///
    /// # Errors
    /// When an address or port asked for is taken, or none is left.
    pub fn reserve(
        &mut self,
        spec: SandboxSpec,
        config: &Config,
        is_free: impl Fn(&HostPort) -> bool,
    ) -> Result<Record, NetworkError> {
        let links = self.plan_links(&spec, config, &[])?;
        if !spec.host_ports.is_empty() && links.iter().all(|link| matches!(link.kind, LinkKind::Overlay(_))) {
            return Err(NetworkError::NoWayOut { id: spec.id.to_string() });
        }
        let host_ports = self.reserve_ports(&spec, is_free)?;
        let used: BTreeSet<u32> = self.records.values().map(|record| record.slot).collect();
        let slot = (0..).find(|slot| !used.contains(slot)).expect("fewer sandboxes than numbers");
        let record = Record { spec, slot, links, host_ports };
        self.records.insert(record.spec.id.clone(), record.clone());
        Ok(record)
    }

    fn reserve_ports(
        &self,
        spec: &SandboxSpec,
        is_free: impl Fn(&HostPort) -> bool,
    ) -> Result<Vec<HostPort>, NetworkError> {
        let mut given: Vec<HostPort> = Vec::new();
        for (at, port) in spec.host_ports.iter().enumerate() {
            if let (Some(IpAddr::V6(address)), false) = (port.bind, self.ipv6) {
                let reason = "this node has no IPv6";
                return Err(NetworkError::Address { address: IpAddr::V6(address), reason });
            }
            let free = |number: u16, given: &[HostPort]| {
                let port = HostPort { published: Some(number), ..*port };
                let others = self.records.values().flat_map(|record| &record.host_ports).chain(given);
                let mesh = self.remembered.ingress.contains_key(&(port.protocol, number));
                !mesh && others.into_iter().all(|other| !port.clashes(other)) && is_free(&port)
            };
            let range = match (port.published, spec.ranges.get(&at)) {
                (Some(first), last) => first..=last.copied().unwrap_or(first),
                (None, _) => DYNAMIC_PORTS,
            };
            let address = port.bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let taken = || match range.start() == range.end() {
                true => NetworkError::PortTaken { address, port: *range.start(), protocol: port.protocol },
                false => NetworkError::NoPortLeft { address, range: format!("{}-{}", range.start(), range.end()) },
            };
            let number = range.clone().find(|number| free(*number, &given)).ok_or_else(taken)?;
            given.push(HostPort { published: Some(number), ..*port });
        }
        Ok(given)
    }

    /// A bridge as its link is: one without IPv6 has the twin of its subnet while a sandbox on it has the twin of its address.
    pub fn with_twin(&self, bridge: &Bridge) -> Bridge {
        let is_there = |link: &SandboxLink| matches!(&link.kind, LinkKind::Bridge(name) if *name == bridge.name);
        let mut links = self.records.values().flat_map(|record| &record.links);
        let twin = bridge.ipv6.is_none() && links.any(|link| is_there(link) && link.has_twin());
        Bridge { ipv6: if twin { Some(bridge.twin()) } else { bridge.ipv6 }, ..bridge.clone() }
    }

    /// What the node's tables follow from.
    pub fn facts(&self, config: &Config) -> NodeFacts {
        let names = config.names();
        let bridges = self.bridges.values().map(|bridge| self.with_twin(bridge)).map(|bridge| BridgeFacts {
            link: names.bridge(bridge.number),
            subnet: bridge.subnet,
            subnet6: bridge.ipv6.map(|ipv6| ipv6.subnet),
            internal: bridge.internal,
        });
        let mut host_ports = BTreeMap::new();
        for record in self.records.values() {
            let Some(ends) = record.published_ends() else { continue };
            for port in &record.host_ports {
                if let Some(published) = port.published {
                    host_ports.insert((port.protocol, port.bind, published), (ends, port.target));
                }
            }
        }
        let on_bridges = self.records.values().flat_map(|record| record.links.iter().map(move |link| (record, link)));
        let on_bridges = on_bridges.filter(|(_, link)| matches!(link.kind, LinkKind::Bridge(_)));
        let share = |index: &u16| node_addresses(config.infra, *index).map(|addresses| addresses.tasks);
        let port =
            |(record, link): (&Record, &SandboxLink)| (names.bridge_port(record.slot, link.number()), link.sender());
        let mesh = &self.remembered.mesh;
        let mesh_port = (!mesh.encrypted).then_some(mesh.port);
        NodeFacts {
            bridges: bridges.collect(),
            ports: on_bridges.map(port).collect(),
            names,
            vxlan_ports: self.vxlan_ports.iter().copied().chain([config.vxlan_port]).chain(mesh_port).collect(),
            tunnels: wireguard_range(config.infra),
            mesh: self.remembered.index.is_some(),
            ipv6: self.ipv6,
            peers: self.remembered.peers.clone(),
            ipv4_only: self.remembered.ipv4_only.iter().filter_map(share).collect(),
            tasks: self.records.values().filter_map(Record::task_address).collect(),
            host_ports,
            ingress: self.remembered.ingress.clone(),
        }
    }

    /// Where views are looked at from.
    pub fn standpoint(&self) -> Standpoint {
        Standpoint { node: self.place.node, underlay: self.place.underlay(), ipv6: self.ipv6 }
    }

    /// Whether every sandbox here has the IPv6 addresses that it was given. One that was made while the node had no IPv6 goes
    /// on without when it comes.
    pub fn speaks_ipv6(&self) -> bool {
        let given = |record: &Record, network| {
            record.spec.overlays.iter().any(|o| o.network == network && o.address6.is_some())
        };
        let lacks = |record: &Record| {
            record.links.iter().any(|link| match link.kind {
                LinkKind::Overlay(network) => link.address6.is_none() && given(record, network),
                LinkKind::Task | LinkKind::Bridge(_) => false,
            })
        };
        self.ipv6 && !self.records.values().any(lacks)
    }

    /// Sandboxes with an IPv6 address on a bridge.
    pub fn neighbours_on(&self, bridge: &str) -> Vec<Neighbour> {
        let links = self.records.values().flat_map(|record| &record.links);
        let there = links.filter(|link| matches!(&link.kind, LinkKind::Bridge(name) if name == bridge));
        there.filter_map(SandboxLink::neighbour6).collect()
    }

    /// Whether the managers' last word is known: not yet after a start of a node of a cluster.
    pub fn is_heard(&self) -> bool {
        self.remembered.index.is_none() || !self.view.peers.is_empty()
    }

    /// Has names told of what is left of the view by `change`, until [`State::left`] is taken back. There is nothing to take
    /// names from before the first view: what an earlier process told goes on.
    pub fn withdraw(&mut self, change: &Change<'_>) {
        if self.view.peers.is_empty() {
            return;
        }
        let left = change.withdrawn(&self.view);
        let mut backends = self.backends.clone();
        backends.follow(&Change::between(&self.view, &left));
        self.left = Some((Arc::new(left), backends));
    }

    /// What the zones follow from.
    pub fn name_sources(&self) -> Sources {
        let bridges = self.bridges.keys().filter(|name| *name != DEFAULT_BRIDGE);
        let (view, backends) = self.left.clone().unwrap_or_else(|| (self.view.clone(), self.backends.clone()));
        Sources { view, backends, bridges: bridges.cloned().collect(), local: self.local_names() }
    }

    /// Names of this node's sandboxes that were asked for with them.
    fn local_names(&self) -> BTreeMap<SandboxId, Vec<LocalName>> {
        use crate::dns::zone::ZoneKey;
        let mut sandboxes = BTreeMap::new();
        for record in self.records.values() {
            let mut all = Vec::new();
            // The others of a service's task are the service's: they lead there only while it serves.
            let of_task = record.spec.task.and_then(|task| self.view.endpoints.get(&task));
            let count = if of_task.is_some_and(|endpoint| endpoint.service.is_some()) { 1 } else { usize::MAX };
            for overlay in &record.spec.overlays {
                let zone = ZoneKey::Overlay(overlay.network);
                let names = overlay.names.iter().take(count).cloned().collect();
                // Its link may lack the IPv6 address that it was given.
                let link = record.links.iter().find(|link| link.kind == LinkKind::Overlay(overlay.network));
                let v6 = link.and_then(|link| link.address6).map(|net| IpAddr::V6(net.addr()));
                let addresses = std::iter::once(overlay.address.addr()).chain(v6).collect();
                all.push(LocalName { zone, names, addresses });
            }
            for attachment in record.spec.bridges.iter().filter(|b| b.bridge != DEFAULT_BRIDGE) {
                let kind = LinkKind::Bridge(attachment.bridge.clone());
                if let Some(link) = record.links.iter().find(|link| link.kind == kind) {
                    let zone = ZoneKey::Bridge(attachment.bridge.clone());
                    let is_told = |address: &IpAddr| address.is_ipv4() || !link.has_twin();
                    let addresses = link.addresses().filter(is_told).collect();
                    all.push(LocalName { zone, names: attachment.names.clone(), addresses });
                }
            }
            sandboxes.insert(record.spec.id.clone(), all);
        }
        sandboxes
    }
}

pub(super) fn net(address: Ipv4Addr, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix_len).expect("the length is another subnet's or 32")
}

#[cfg(test)]
pub(super) mod tests;
