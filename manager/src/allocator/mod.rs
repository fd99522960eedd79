//! Addresses and ports: VXLAN identifiers and subnets of networks, virtual addresses and published ports of services,
//! addresses of tasks.
//!
//! One planner with one key, because all decisions compete for the same pools. Everything it gives is checked once more
//! where it is applied. A task leaves the state new only when it has every address that its spec asks for.

mod pool;
mod ports;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use skep_proto::model::addressing::{self, Family, SUBNET6, first_host, overlap, unique_local};
use skep_proto::model::network::Subnet;
use skep_proto::model::service::{Endpoint, EndpointMode, VirtualIp};
use skep_proto::model::{Cluster, Network, NetworkId, Service};

use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, NetworkRef, Reference, State, TaskRow, Touched};

/// VXLAN identifiers from here on, as swarmkit gives them: lower ones are left to people (RFC 7348: 24 bits).
const FIRST_VNI: u32 = 4097;
const LAST_VNI: u32 = (1 << 24) - 1;
/// Tasks given addresses in one round.
const ROUND: usize = 2000;

/// The planner.
#[derive(Debug, Default)]
pub struct Allocator;

impl Planner for Allocator {
    type Key = ();
    const NAME: &'static str = "allocator";

    fn keys(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn touched(&self, touched: &Touched, state: &State) -> Vec<()> {
        let is_needed = !touched.objects.is_empty() || state.unallocated().next().is_some();
        if is_needed { vec![()] } else { Vec::new() }
    }

    fn plan(&mut self, state: &State, (): (), _: &mut Env<'_>) -> Plan {
        plan(state)
    }
}

/// Addresses given by this plan and not yet in the state.
#[derive(Debug, Default)]
struct Given {
    addresses: BTreeSet<(u32, IpAddr)>,
    cursors: BTreeMap<(u32, Family), IpAddr>,
    /// Networks that have their subnet once this plan is applied.
    networks: BTreeSet<NetworkId>,
    /// Networks found full, with what to say of them: not searched again.
    full: BTreeMap<(u32, Family), String>,
    /// Services that cannot get what they ask for, by handle, and why.
    stuck: BTreeMap<u32, String>,
}

/// Why something is not given.
enum Lack {
    /// What it waits for is on its way.
    Later,
    /// It cannot be had; for people.
    Impossible(String),
}

/// Gives what is missing.
pub fn plan(state: &State) -> Plan {
    let mut plan = Plan::default();
    let mut given = Given::default();
    networks(state, &mut given, &mut plan);
    services(state, &mut given, &mut plan);
    // Those that cannot be helped now do not stand in the way of the others.
    let mut round = ROUND;
    for (handle, row) in state.unallocated() {
        match task(state, handle, row, &mut given) {
            Ok(group) => {
                plan.groups.push(group);
                round -= 1;
            }
            Err(Lack::Later) => {}
            Err(Lack::Impossible(text)) => {
                if state.extra(handle).is_none_or(|e| e.error != text) {
                    let task = row.reference(handle);
                    plan.groups.push(Group::of(Change::ExplainTask { task, if_version: row.version, text }));
                    round -= 1;
                }
            }
        }
        if round == 0 {
            break;
        }
    }
    plan
}

fn networks(state: &State, given: &mut Given, plan: &mut Plan) {
    let mut vnis: BTreeSet<u32> = state.networks().values().filter_map(|n| n.vni).collect();
    let mut taken: Vec<IpNet> = state.networks().values().flat_map(|n| &n.subnets).map(|s| s.subnet).collect();
    for network in state.networks().values().filter(|n| n.vni.is_none() && !n.pending_delete) {
        let Some(vni) = (FIRST_VNI..=LAST_VNI).find(|vni| !vnis.contains(vni)) else { return };
        let Some(subnets) = subnets_for(state, network, &taken) else { continue };
        vnis.insert(vni);
        taken.extend(subnets.iter().map(|s| s.subnet));
        given.networks.insert(network.id);
        let mut changed = (**network).clone();
        changed.vni = Some(vni);
        changed.subnets = subnets;
        plan.groups.push(Group::of(Change::update(&changed)));
    }
}

/// The network's subnets, IPv4 first; none at all when one of them cannot be had.
fn subnets_for(state: &State, network: &Network, taken: &[IpNet]) -> Option<Vec<Subnet>> {
    let mut subnets = vec![subnet_for(state, network, Family::V4, taken)?];
    if network.spec.ipv6 {
        subnets.push(subnet_for(state, network, Family::V6, taken)?);
    }
    Some(subnets)
}

/// The subnet of a family that was asked for, or the next free one of the pools.
fn subnet_for(state: &State, network: &Network, family: Family, taken: &[IpNet]) -> Option<Subnet> {
    let mut asked = network.spec.ipam.iter().filter_map(|config| Some((config.subnet?.trunc(), config)));
    let asked = asked.find(|(subnet, _)| Family::of(subnet.addr()) == family);
    let (subnet, range, gateway) = match asked {
        // In the way of another network: refused where it would be applied, so it is not asked.
        Some((subnet, _)) if taken.iter().any(|t| overlap(*t, subnet)) => return None,
        Some((subnet, config)) => (subnet, config.range, config.gateway),
        None => {
            let cluster = state.cluster()?;
            let free = match family {
                Family::V4 => pool::next_free(&cluster.address_pools, family, cluster.subnet_size, taken)?,
                Family::V6 => pool::next_free(&pools6(cluster), family, SUBNET6, taken)?,
            };
            (free, None, None)
        }
    };
    let gateway = gateway.or_else(|| first_host(subnet))?;
    Some(Subnet { subnet, range, gateway })
}

/// Where IPv6 subnets come from: the cluster's pools, or a prefix of its own when nobody gave it one.
fn pools6(cluster: &Cluster) -> Vec<IpNet> {
    let given: Vec<IpNet> =
        cluster.address_pools.iter().filter(|pool| Family::of(pool.addr()) == Family::V6).copied().collect();
    if given.is_empty() { vec![unique_local(&cluster.id.0.to_be_bytes()).into()] } else { given }
}

fn services(state: &State, given: &mut Given, plan: &mut Plan) {
    let mut ports = ports::Ports::of(state);
    for (reference, service) in state.services().iter().filter(|(_, s)| !s.pending_delete) {
        match endpoint(state, service, given, &mut ports) {
            Ok(wanted) if wanted != service.endpoint => {
                let mut changed = (**service).clone();
                changed.endpoint = wanted;
                plan.groups.push(Group::of(Change::update(&changed)));
            }
            Ok(_) => {}
            Err(Lack::Later) => {}
            Err(Lack::Impossible(text)) => drop(given.stuck.insert(reference.handle(), text)),
        }
    }
}

/// What a service's endpoint should be, or why it cannot be that now.
fn endpoint(state: &State, service: &Service, given: &mut Given, ports: &mut ports::Ports) -> Result<Endpoint, Lack> {
    let spec = service.spec.endpoint.clone().unwrap_or_default();
    let resolved = ports.resolve(service, &spec).ok_or_else(|| Lack::Impossible(ports::none_free()))?;
    let mut virtual_ips = Vec::new();
    if spec.mode == EndpointMode::Vip {
        for id in overlay_networks(service.spec.task.networks.iter().map(|n| n.target.as_str())) {
            let network = allocated(state, id, given)?;
            for subnet in &network.subnets {
                let mut known = service.endpoint.virtual_ips.iter().filter(|v| v.network == id);
                let vip = match known.find(|v| subnet.subnet.contains(&v.address.addr())) {
                    Some(known) => *known,
                    None => VirtualIp { network: id, address: free_address(state, network, subnet, given)? },
                };
                virtual_ips.push(vip);
            }
        }
    }
    Ok(Endpoint { spec: Some(spec), ports: resolved, virtual_ips })
}

/// Whether everything that was asked of the allocator for a service is there.
fn is_allocated(state: &State, service: &Service) -> bool {
    let has_address = |id: NetworkId, subnet: &Subnet| {
        service.endpoint.virtual_ips.iter().any(|v| v.network == id && subnet.subnet.contains(&v.address.addr()))
    };
    let has_all = |id| {
        let network = state.networks().get(id).filter(|network| !network.subnets.is_empty());
        network.is_some_and(|network| network.subnets.iter().all(|subnet| has_address(id, subnet)))
    };
    service.endpoint.spec.as_ref() == Some(&service.spec.endpoint.clone().unwrap_or_default())
        && (service.endpoint.spec.as_ref().is_none_or(|s| s.mode != EndpointMode::Vip)
            || overlay_networks(service.spec.task.networks.iter().map(|n| n.target.as_str())).all(has_all))
}

/// Networks of the cluster among the targets of a spec; the others belong to the node.
fn overlay_networks<'a>(targets: impl Iterator<Item = &'a str> + 'a) -> impl Iterator<Item = NetworkId> + 'a {
    targets.filter_map(|target| target.parse().ok())
}

fn task(state: &State, handle: u32, row: &TaskRow, given: &mut Given) -> Result<Group, Lack> {
    if let Some(attached) = state.attached(handle) {
        let network = state.networks().lookup(attached.network).ok_or_else(network_gone)?;
        let network = allocated(state, network.id, given)?;
        let asked = attached.address.map(IpAddr::V4).into_iter().chain(state.asked_address6(handle).map(IpAddr::V6));
        let addresses = addresses_for(state, network, &asked.collect::<Vec<_>>(), given)?;
        let (task, addresses) = (row.reference(handle), vec![(attached.network, addresses)]);
        return Ok(Group::of(Change::Allocate { task, if_version: row.version, addresses }));
    }
    let spec = state.spec_of(row).ok_or(Lack::Later)?;
    let service = row.service.and_then(|r| Some((r, state.services().lookup(r)?)));
    if let Some((reference, service)) =
        service.filter(|(_, s)| s.spec_version == row.spec_version && !is_allocated(state, s))
    {
        let reason = given.stuck.get(&reference.handle());
        let name = &service.spec.annotations.name;
        return Err(reason.map_or(Lack::Later, |text| Lack::Impossible(format!("service {name}: {text}"))));
    }
    let mut addresses: Vec<(NetworkRef, Vec<IpNet>)> = Vec::new();
    for id in overlay_networks(spec.task.networks.iter().map(|n| n.target.as_str())) {
        let network = allocated(state, id, given)?;
        let reference = state.networks().reference(id).ok_or_else(network_gone)?;
        addresses.push((reference, addresses_for(state, network, &[], given)?));
    }
    let task = row.reference(handle);
    Ok(Group::of(Change::Allocate { task, if_version: row.version, addresses }))
}

/// An address in each of a network's subnets: those asked for, any others.
fn addresses_for(state: &State, network: &Network, asked: &[IpAddr], given: &mut Given) -> Result<Vec<IpNet>, Lack> {
    for address in asked {
        let known = addressing::subnet_of(*address, &network.subnets);
        let name = &network.spec.annotations.name;
        known.map_err(|text| Lack::Impossible(format!("{text}: network {name} has {}", shown(&network.subnets))))?;
    }
    let one = |subnet: &Subnet| match asked.iter().find(|address| subnet.subnet.contains(*address)) {
        Some(address) => asked_address(state, network, subnet, *address, given),
        None => free_address(state, network, subnet, given),
    };
    network.subnets.iter().map(one).collect()
}

fn shown(subnets: &[Subnet]) -> String {
    subnets.iter().map(|s| s.subnet.to_string()).collect::<Vec<_>>().join(" and ")
}

/// An address that was asked for, if it can be had.
fn asked_address(
    state: &State,
    network: &Network,
    subnet: &Subnet,
    address: IpAddr,
    given: &mut Given,
) -> Result<IpNet, Lack> {
    let reference = state.networks().reference(network.id).ok_or_else(network_gone)?;
    let net = subnet.subnet;
    let is_edge = address == net.network() || (address.is_ipv4() && address == net.broadcast());
    let is_taken = is_edge
        || subnet.gateway == address
        || is_reserved(network, address)
        || state.is_address_used(reference, address)
        || !given.addresses.insert((reference.handle(), address));
    if is_taken {
        // Docker's words.
        return Err(Lack::Impossible("Address already in use".into()));
    }
    with_prefix(network, subnet, address)
}

fn with_prefix(network: &Network, subnet: &Subnet, address: IpAddr) -> Result<IpNet, Lack> {
    let name = &network.spec.annotations.name;
    let net = IpNet::new(address, subnet.subnet.prefix_len());
    net.map_err(|_| Lack::Impossible(format!("network {name} has an impossible subnet")))
}

/// Kept for others by `--aux-address`.
fn is_reserved(network: &Network, address: IpAddr) -> bool {
    network.spec.ipam.iter().flat_map(|config| config.reserved.values()).any(|kept| *kept == address)
}

fn network_gone() -> Lack {
    Lack::Impossible("a network of the task is gone".into())
}

/// A network that has its subnets.
fn allocated<'a>(state: &'a State, id: NetworkId, given: &Given) -> Result<&'a Network, Lack> {
    let network = state.networks().get(id).ok_or_else(network_gone)?;
    if given.networks.contains(&id) {
        return Err(Lack::Later);
    }
    let name = &network.spec.annotations.name;
    let lack = "has no subnet: the one it asks for overlaps another's, or the address pools are used up";
    if network.subnets.is_empty() {
        return Err(Lack::Impossible(format!("network {name} {lack}")));
    }
    Ok(network)
}

/// The next free address of a subnet behind the one given last.
fn free_address(state: &State, network: &Network, subnet: &Subnet, given: &mut Given) -> Result<IpNet, Lack> {
    let reference = state.networks().reference(network.id).ok_or_else(network_gone)?;
    let (handle, family) = (reference.handle(), Family::of(subnet.gateway));
    if let Some(text) = given.full.get(&(handle, family)) {
        return Err(Lack::Impossible(text.clone()));
    }
    let known = || match family {
        Family::V4 => state.address_cursor(reference).map(IpAddr::V4),
        Family::V6 => state.address_cursor6(reference).map(IpAddr::V6),
    };
    let cursor = given.cursors.get(&(handle, family)).copied().or_else(known);
    let is_free = |address: IpAddr| {
        !given.addresses.contains(&(handle, address))
            && !state.is_address_used(reference, address)
            && !is_reserved(network, address)
    };
    let Some(address) = pool::next_address(subnet, cursor, is_free) else {
        let name = &network.spec.annotations.name;
        let text =
            format!("no free address in network {name} ({}): remove tasks or make a larger network", subnet.subnet);
        given.full.insert((handle, family), text.clone());
        return Err(Lack::Impossible(text));
    };
    given.addresses.insert((handle, address));
    given.cursors.insert((handle, family), address);
    with_prefix(network, subnet, address)
}
