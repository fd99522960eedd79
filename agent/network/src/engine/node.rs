//! The node's own namespace: the mesh link, local bridges, tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use skep_proto::model::network::INGRESS_VNI;

use super::state::Bridge;
use super::sysctl;
use crate::config::{
    BRIDGE_GROUP, Config, IPV6_MIN_MTU, LinkNames, MESH_GROUP, MESH_MARK, MESH_MASK, MESH_RULE, MESH_TABLE,
    mesh_next_hop, mesh_range, node_addresses, twin, twin_net, wireguard_range,
};
use crate::error::{NetworkError, Step};
use crate::mac::Mac;
use crate::netlink::{MarkRule, Neighbour, Requests, Rtnl, Via, Vxlan};
use crate::nft::Tables;
use crate::nft::part::Part;
use crate::nft::table::{Family, Ip};
use crate::plan::encryption::Path;
use crate::plan::ingress::{self, Changed};
use crate::plan::node::{NodeFacts, mesh_entries, node_tables};
use crate::sys::netns::Netns;

/// The main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// MTU when the link of the data path cannot be found, in bytes.
const ETHERNET_MTU: u32 = 1500;

/// What we made in the node's namespace.
#[derive(Debug, Default)]
pub struct Node {
    tables: Tables,
    mesh: Option<Mesh>,
    distrusted: bool,
}

/// What the mesh link of this node follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Its central index, which the link's addresses follow from.
    pub index: u16,
    /// How it reaches the other nodes.
    pub path: Path,
    /// Whether it speaks IPv6 for its sandboxes.
    pub ipv6: bool,
}

impl Own {
    /// Whether the mesh link carries IPv6: the kernel takes it from links of smaller packets.
    fn carries_ipv6(&self) -> bool {
        self.ipv6 && self.path.mtu >= IPV6_MIN_MTU
    }
}

/// What sends replies on the mesh back to their entry node.
const REPLIES: MarkRule = MarkRule { priority: MESH_RULE, mark: MESH_MARK, mask: MESH_MASK, table: MESH_TABLE };

#[derive(Debug)]
struct Mesh {
    link: u32,
    entries: BTreeSet<Neighbour>,
    /// Routes to the tasks of other nodes: share and gateway.
    routes: BTreeMap<IpNet, IpAddr>,
    /// Whether it carries IPv6.
    ipv6: bool,
}

impl Node {
    /// That of an earlier process. Where the host has no IPv6 any more, its table of it goes.
    pub fn taking_over(config: &Config) -> Self {
        Self { tables: Tables::taking_over(Family::Ipv6, &config.names().table()), ..Self::default() }
    }

    /// Brings the mesh link and the tables to `facts`. `own` is there once the node has an index.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn sync(
        &mut self,
        config: &Config,
        netns: &Netns,
        own: Option<Own>,
        facts: &NodeFacts,
    ) -> Result<(), NetworkError> {
        let name = config.names().mesh();
        let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
        let found = rtnl.link(&name).step("read a link")?;
        let usable = found.as_ref().filter(|link| {
            own.is_some_and(|own| {
                let speaks = (own.path.local, own.path.port);
                link.mac == Some(Mac::of_node(own.index)) && link.vxlan == Some(speaks)
            })
        });
        let distrusted = std::mem::take(&mut self.distrusted);
        let ipv6 = own.is_some_and(|own| own.carries_ipv6());
        let known = self
            .mesh
            .take()
            .filter(|mesh| !distrusted && mesh.ipv6 == ipv6 && Some(mesh.link) == usable.map(|link| link.index));
        if usable.is_none() {
            // The filter comes before the link: whoever reaches the port from now on was let in by it.
            let before = NodeFacts { mesh: false, ..facts.clone() };
            self.tables.set(netns, node_tables(&before)).step("load the node's rules")?;
            rtnl.send(Requests::new().delete_link(&name)).step("delete the mesh link")?;
        }
        let Some(own) = own else { return Ok(()) };
        if let Some(link) = usable.filter(|link| link.mtu != own.path.mtu) {
            rtnl.send(Requests::new().set_mtu(link.index, own.path.mtu))
                .step("set the size of the mesh link's packets")?;
        }
        let mut mesh = match (known, usable) {
            (Some(mesh), _) => mesh,
            (None, Some(link)) => Mesh::recover(config, netns, &mut rtnl, own, link.index)?,
            (None, None) => Mesh::create(config, netns, &mut rtnl, own)?,
        };
        if let Some(range) = facts.tunnels {
            // While the WireGuard link is away nothing for it may take another way, whoever flushes the rules.
            rtnl.send(Requests::new().replace_route(range, Via::Nowhere, MAIN_TABLE)).step("close the way around")?;
        }
        self.tables.set(netns, node_tables(facts)).step("load the node's rules")?;
        mesh.sync(config, &mut rtnl, facts, &own.path)?;
        self.mesh = Some(mesh);
        Ok(())
    }

    /// Whether nobody changed the rules after us.
    pub fn is_last_change_ours(&mut self, netns: &Netns) -> bool {
        self.tables.is_last_change_ours(netns)
    }

    /// Somebody else may have changed what belongs to the mesh link: the next [`Self::sync`] looks at the kernel.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Loads the rules alone.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn load_rules(&mut self, netns: &Netns, facts: &NodeFacts) -> Result<(), NetworkError> {
        let facts = NodeFacts { mesh: self.mesh.is_some(), ..facts.clone() };
        self.tables.set(netns, node_tables(&facts)).step("load the node's rules")
    }

    /// Brings to the rules what changed of published ports. False when that needs more than that: then nothing was done.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn follow(&mut self, names: &LinkNames, netns: &Netns, changed: &Changed) -> Result<bool, NetworkError> {
        let name = names.table();
        let parts = [Ip::V4, Ip::V6].map(|ip| ingress::part(&name, ip, changed));
        let there: Vec<Part> = parts.into_iter().filter(|part| self.tables.has(part.family, &name)).collect();
        if !there.iter().any(|part| part.family == Family::Ipv4) {
            return Ok(false);
        }
        self.tables.patch(netns, &there).step("change the node's rules")
    }

    /// What differs from `facts`, in the kernel or in what it was told. Changes nothing.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn differences(&self, netns: &Netns, facts: &NodeFacts) -> Result<Vec<String>, NetworkError> {
        let facts = NodeFacts { mesh: self.mesh.is_some(), ..facts.clone() };
        let mut found = self.tables.differences(netns).step("read the node's rules")?;
        if !self.tables.is_loaded(&node_tables(&facts)) {
            found.push("the node's rules are older than the managers' last word".into());
        }
        Ok(found)
    }

    /// Removes the mesh link, its routes and the tables.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn clear(&mut self, config: &Config, netns: &Netns) -> Result<(), NetworkError> {
        let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
        let mut requests = Requests::new();
        requests.delete_link(&config.names().mesh());
        if let Some(range) = wireguard_range(config.infra) {
            requests.delete_route(range, Via::Nowhere, MAIN_TABLE);
        }
        requests.delete_mark_rule(Ip::V4, REPLIES).delete_mark_rule(Ip::V6, REPLIES);
        rtnl.send(&requests).step("delete the mesh link")?;
        self.mesh = None;
        self.tables.set(netns, Vec::new()).step("delete the node's rules")
    }
}

impl Mesh {
    fn create(config: &Config, netns: &Netns, rtnl: &mut Rtnl, own: Own) -> Result<Self, NetworkError> {
        let Own { index, path: Path { local, port, mtu }, .. } = own;
        let name = config.names().mesh();
        let mac = Some(Mac::of_node(index));
        let vxlan = Vxlan { name: &name, vni: INGRESS_VNI, local, port, mtu, proxy: false, mac };
        rtnl.send(Requests::new().add_vxlan(&vxlan)).step("make the mesh link")?;
        // Clients' addresses come in by it (loose reverse path, also this node's own), answers to 127.0.0.1 too.
        let parameters = [("rp_filter", "2"), ("accept_local", "1"), ("route_localnet", "1")];
        sysctl::write(netns, &sysctl::of_link(&name, &parameters)).step("set up the mesh link")?;
        let link = index_of(rtnl, &name)?;
        Self::set_up(config, netns, rtnl, own, link)?;
        Ok(Self { link, entries: BTreeSet::new(), routes: BTreeMap::new(), ipv6: own.carries_ipv6() })
    }

    /// What belongs to the link: address, routes, the rule for replies. Harmless where it is so already.
    fn set_up(config: &Config, netns: &Netns, rtnl: &mut Rtnl, own: Own, link: u32) -> Result<(), NetworkError> {
        let too_small = || NetworkError::RangeTooSmall { range: config.infra, index: own.index };
        let addresses = node_addresses(config.infra, own.index).ok_or_else(too_small)?;
        let range = mesh_range(config.infra).ok_or_else(too_small)?;
        let next_hop = mesh_next_hop(config.infra).ok_or_else(too_small)?;
        let mut requests = Requests::new();
        requests
            .set_group(link, MESH_GROUP)
            .add_address(link, addresses.mesh, 32)
            .set_up(link)
            .replace_route(range, Via::Link(link), MAIN_TABLE)
            .replace_neighbour(link, Neighbour::Address(next_hop.into(), Mac::NEXT_HOP))
            .replace_route(Ipv4Net::default(), Via::Gateway(next_hop.into(), link), MESH_TABLE)
            .add_mark_rule(Ip::V4, REPLIES);
        if own.carries_ipv6() {
            let next_hop = IpAddr::V6(twin(next_hop));
            sysctl::write(netns, &sysctl::with_ipv6(&config.names().mesh())).step("set up IPv6 of the mesh link")?;
            requests
                .add_address(link, twin(addresses.mesh), 128)
                .replace_neighbour(link, Neighbour::Address(next_hop, Mac::NEXT_HOP))
                .add_mark_rule(Ip::V6, REPLIES);
            let wanted = [
                (IpNet::V6(twin_net(range)), Via::Link(link), MAIN_TABLE),
                (IpNet::V6(Ipv6Net::default()), Via::Gateway(next_hop, link), MESH_TABLE),
            ];
            // Those of IPv6 alone are looked at first: the kernel tells of one that is replaced by itself as of a change.
            let there = rtnl.routes().step("read routes")?;
            for (to, via, table) in wanted.into_iter().filter(|route| !there.contains(route)) {
                requests.replace_route(to, via, table);
            }
        }
        rtnl.send(&requests).step("set up the mesh link")?;
        if own.carries_ipv6() {
            lead_to_loopback(rtnl, link, None, twin(addresses.mesh));
        }
        Ok(())
    }

    fn recover(config: &Config, netns: &Netns, rtnl: &mut Rtnl, own: Own, link: u32) -> Result<Self, NetworkError> {
        Self::set_up(config, netns, rtnl, own, link)?;
        let found = rtnl.neighbours(link).step("read neighbours")?;
        let entries =
            found.into_iter().filter(|entry| !matches!(entry, Neighbour::Address(_, mac) if *mac == Mac::NEXT_HOP));
        let routes = rtnl.routes().step("read routes")?.into_iter().filter_map(|(to, via, table)| match via {
            Via::Gateway(gateway, by) if by == link && table == MAIN_TABLE => Some((to, gateway)),
            _ => None,
        });
        Ok(Self { link, entries: entries.collect(), routes: routes.collect(), ipv6: own.carries_ipv6() })
    }

    fn sync(&mut self, config: &Config, rtnl: &mut Rtnl, facts: &NodeFacts, path: &Path) -> Result<(), NetworkError> {
        let entries = mesh_entries(facts, path, config.infra, self.ipv6);
        let shares = || facts.peers.keys().filter_map(|index| node_addresses(config.infra, *index));
        let v4 = shares().map(|node| (IpNet::V4(node.tasks), IpAddr::V4(node.mesh)));
        let v6 = shares().filter(|_| self.ipv6);
        let v6 = v6.map(|node| (IpNet::V6(twin_net(node.tasks)), IpAddr::V6(twin(node.mesh))));
        let routes: BTreeMap<IpNet, IpAddr> = v4.chain(v6).collect();
        let mut requests = Requests::new();
        for (share, gateway) in self.routes.iter().filter(|(share, _)| !routes.contains_key(share)) {
            requests.delete_route(*share, Via::Gateway(*gateway, self.link), MAIN_TABLE);
        }
        for entry in self.entries.difference(&entries) {
            requests.delete_neighbour(self.link, *entry);
        }
        for entry in entries.difference(&self.entries) {
            requests.replace_neighbour(self.link, *entry);
        }
        for (share, gateway) in routes.iter().filter(|(share, gateway)| self.routes.get(share) != Some(*gateway)) {
            requests.replace_route(*share, Via::Gateway(*gateway, self.link), MAIN_TABLE);
        }
        rtnl.send(&requests).step("change the entries of the mesh link")?;
        (self.entries, self.routes) = (entries, routes);
        Ok(())
    }
}

/// Brings replies to programs that spoke to `::1` back, from a link that they come by. A kernel without traffic control does
/// not have that, and published ports are then not open on `::1`: no reason to make no link.
pub fn lead_to_loopback(rtnl: &mut Rtnl, index: u32, from: Option<Ipv6Addr>, to: Ipv6Addr) {
    if let Err(error) = rtnl.send(Requests::new().lead_to_loopback(index, from, to)) {
        tracing::warn!(%error, "published ports are not open on ::1: cls_u32, act_mirred or sch_ingress is missing");
    }
}

/// Index of a link that must be there.
///
/// # Errors
/// [`NetworkError::Kernel`] when it is not.
pub fn index_of(rtnl: &mut Rtnl, name: &str) -> Result<u32, NetworkError> {
    let link = rtnl.link(name).step("read a link")?;
    let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("link {name} is gone"));
    link.map(|link| link.index).ok_or_else(|| NetworkError::Kernel { step: "find a link", source: missing() })
}

/// MTU in bytes of the link that has the data path's address `local`.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn underlay_mtu(local: Option<IpAddr>, rtnl: &mut Rtnl) -> Result<u32, NetworkError> {
    let addresses = rtnl.addresses().step("read addresses")?;
    let Some((index, _)) = addresses.into_iter().find(|(_, net)| Some(net.addr()) == local) else {
        return Ok(ETHERNET_MTU);
    };
    let links = rtnl.links().step("read links")?;
    // A loopback link has 65536, which no frame on its way to another node would survive.
    Ok(links.into_iter().find(|link| link.index == index).map_or(ETHERNET_MTU, |link| link.mtu.min(9000)))
}

/// Makes the link of a local bridge, if it is not there. `mtu` is in bytes; `attached` is who has an IPv6 address on it.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn ensure_bridge(
    config: &Config,
    netns: &Netns,
    bridge: &Bridge,
    mtu: u32,
    attached: &[Neighbour],
) -> Result<(), NetworkError> {
    let name = config.names().bridge(bridge.number);
    let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
    let there = rtnl.link(&name).step("read a link")?;
    let ipv6 = bridge.ipv6.filter(|_| sysctl::has_ipv6(netns));
    let mut parameters = Vec::new();
    if there.is_none() {
        rtnl.send(Requests::new().add_bridge(&name, Some(Mac::of(bridge.gateway())), mtu, BRIDGE_GROUP))
            .step("make a bridge")?;
        parameters = sysctl::of_link(&name, &[("route_localnet", "1")]);
    }
    match ipv6 {
        Some(_) => parameters.extend(sysctl::with_ipv6(&name)),
        None => parameters.push((format!("ipv6/conf/{name}/disable_ipv6"), "1")),
    }
    sysctl::write(netns, &parameters).step("set up a bridge")?;
    let link = index_of(&mut rtnl, &name)?;
    let mut requests = Requests::new();
    requests.add_address(link, bridge.gateway(), bridge.subnet.prefix_len());
    if let Some(ipv6) = ipv6 {
        requests.add_address(link, ipv6.gateway, ipv6.subnet.prefix_len());
        // The link has no address of its own making, and without one the kernel asks nobody where to forward a packet.
        for neighbour in attached {
            requests.replace_neighbour(link, *neighbour);
        }
    }
    if there.is_some_and(|there| !there.up) {
        requests.set_up(link);
    }
    rtnl.send(&requests).step("give a bridge its address")
}

/// Removes the link of a local bridge.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn delete_bridge(config: &Config, netns: &Netns, bridge: &Bridge) -> Result<(), NetworkError> {
    let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
    rtnl.send(Requests::new().delete_link(&config.names().bridge(bridge.number))).step("delete a bridge")
}

/// Subnets that the node reaches by links of others: what we give out must not overlap them.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn foreign_subnets(config: &Config, netns: &Netns) -> Result<Vec<IpNet>, NetworkError> {
    let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
    let ours = format!("{}-", config.prefix);
    let links = rtnl.links().step("read links")?;
    let foreign: BTreeSet<u32> =
        links.into_iter().filter(|link| !link.name.starts_with(&ours)).map(|link| link.index).collect();
    let addresses = rtnl.addresses().step("read addresses")?;
    Ok(addresses.into_iter().filter(|(index, _)| foreign.contains(index)).map(|(_, net)| net.trunc()).collect())
}

/// Refuses a subnet that overlaps one of `others`.
///
/// # Errors
/// [`NetworkError::Address`].
pub fn refuse_overlap(subnet: IpNet, others: &[IpNet]) -> Result<(), NetworkError> {
    let overlaps = |other: &IpNet| subnet.contains(&other.network()) || other.contains(&subnet.network());
    match others.iter().find(|other| overlaps(other)) {
        None => Ok(()),
        Some(other) => Err(NetworkError::Address {
            address: other.network(),
            reason: "a subnet of this host overlaps it; give the cluster other ranges",
        }),
    }
}
