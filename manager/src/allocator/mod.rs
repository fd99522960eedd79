//! Addresses and ports: VXLAN identifiers and subnets of networks, virtual addresses and published ports of services,
//! addresses of tasks.
//!
//! One planner with one key, because all decisions compete for the same pools. Everything it gives is checked once more
//! where it is applied. A task leaves the state new only when it has every address that its spec asks for.

mod pool;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use skep_proto::model::network::Subnet;
use skep_proto::model::service::{Endpoint, EndpointMode, VirtualIp};
use skep_proto::model::{Network, NetworkId, Service};

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
    addresses: BTreeSet<(u32, u32)>,
    cursors: BTreeMap<u32, u32>,
    /// Networks that have their subnet once this plan is applied.
    networks: BTreeSet<NetworkId>,
    /// Networks found full, with what to say of them: not searched again.
    full: BTreeMap<u32, String>,
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
    let mut taken: Vec<Ipv4Net> = state.networks().values().flat_map(|n| &n.subnets).filter_map(pool::v4).collect();
    for network in state.networks().values().filter(|n| n.vni.is_none() && !n.pending_delete) {
        let Some(vni) = (FIRST_VNI..=LAST_VNI).find(|vni| !vnis.contains(vni)) else { return };
        let Some(subnet) = subnet_for(state, network, &taken) else { continue };
        vnis.insert(vni);
        taken.extend(pool::v4(&subnet));
        given.networks.insert(network.id);
        let mut changed = (**network).clone();
        changed.vni = Some(vni);
        changed.subnets = vec![subnet];
        plan.groups.push(Group::of(Change::update(&changed)));
    }
}

/// The subnet that was asked for, or the next free one of the pools.
fn subnet_for(state: &State, network: &Network, taken: &[Ipv4Net]) -> Option<Subnet> {
    let asked = network.spec.ipam.iter().find(|c| matches!(c.subnet, Some(IpNet::V4(_))));
    let (subnet, range, gateway) = match asked {
        Some(config) => match config.subnet {
            // In the way of another network: refused where it would be applied, so it is not asked.
            Some(IpNet::V4(subnet))
                if taken.iter().any(|t| t.contains(&subnet.network()) || subnet.contains(&t.network())) =>
            {
                return None;
            }
            Some(IpNet::V4(subnet)) => (subnet.trunc(), config.range, config.gateway),
            Some(IpNet::V6(_)) | None => return None,
        },
        None => {
            let cluster = state.cluster()?;
            (pool::next_free(&cluster.address_pools, cluster.subnet_size, taken)?, None, None)
        }
    };
    let gateway = gateway.or_else(|| subnet.hosts().next().map(IpAddr::V4))?;
    Some(Subnet { subnet: IpNet::V4(subnet), range, gateway })
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
            let known = service.endpoint.virtual_ips.iter().find(|v| v.network == id);
            let vip = match known {
                Some(known) => *known,
                None => VirtualIp { network: id, address: free_address(state, id, given)? },
            };
            virtual_ips.push(vip);
        }
    }
    Ok(Endpoint { spec: Some(spec), ports: resolved, virtual_ips })
}

/// Whether everything that was asked of the allocator for a service is there.
fn is_allocated(service: &Service) -> bool {
    service.endpoint.spec.as_ref() == Some(&service.spec.endpoint.clone().unwrap_or_default())
        && (service.endpoint.spec.as_ref().is_none_or(|s| s.mode != EndpointMode::Vip)
            || overlay_networks(service.spec.task.networks.iter().map(|n| n.target.as_str()))
                .all(|id| service.endpoint.virtual_ips.iter().any(|v| v.network == id)))
}

/// Networks of the cluster among the targets of a spec; the others belong to the node.
fn overlay_networks<'a>(targets: impl Iterator<Item = &'a str> + 'a) -> impl Iterator<Item = NetworkId> + 'a {
    targets.filter_map(|target| target.parse().ok())
}

fn task(state: &State, handle: u32, row: &TaskRow, given: &mut Given) -> Result<Group, Lack> {
    if let Some(attached) = state.attached(handle) {
        let network = state.networks().lookup(attached.network).ok_or_else(network_gone)?;
        let address = match attached.address {
            Some(address) => asked_address(state, network, address, given)?,
            None => free_address(state, network.id, given)?,
        };
        let (task, addresses) = (row.reference(handle), vec![(attached.network, vec![address])]);
        return Ok(Group::of(Change::Allocate { task, if_version: row.version, addresses }));
    }
    let spec = state.spec_of(row).ok_or(Lack::Later)?;
    let service = row.service.and_then(|r| Some((r, state.services().lookup(r)?)));
    if let Some((reference, service)) = service.filter(|(_, s)| s.spec_version == row.spec_version && !is_allocated(s))
    {
        let reason = given.stuck.get(&reference.handle());
        let name = &service.spec.annotations.name;
        return Err(reason.map_or(Lack::Later, |text| Lack::Impossible(format!("service {name}: {text}"))));
    }
    let mut addresses: Vec<(NetworkRef, Vec<IpNet>)> = Vec::new();
    for id in overlay_networks(spec.task.networks.iter().map(|n| n.target.as_str())) {
        let reference = state.networks().reference(id).ok_or_else(network_gone)?;
        addresses.push((reference, vec![free_address(state, id, given)?]));
    }
    let task = row.reference(handle);
    Ok(Group::of(Change::Allocate { task, if_version: row.version, addresses }))
}

/// An address that was asked for, if it can be had.
fn asked_address(state: &State, network: &Network, address: Ipv4Addr, given: &mut Given) -> Result<IpNet, Lack> {
    let reference = state.networks().reference(network.id).ok_or_else(network_gone)?;
    let name = &network.spec.annotations.name;
    let subnet = network.subnets.iter().find(|s| s.subnet.contains(&IpAddr::V4(address)));
    let subnet = subnet.ok_or_else(|| Lack::Impossible(format!("address {address} is outside of network {name}")))?;
    let (is_edge, key) = match subnet.subnet {
        IpNet::V4(net) => (address == net.network() || address == net.broadcast(), reference.handle()),
        IpNet::V6(_) => (true, reference.handle()),
    };
    let is_taken = is_edge
        || subnet.gateway == IpAddr::V4(address)
        || is_reserved(network, address)
        || state.is_address_used(reference, address.into())
        || !given.addresses.insert((key, u32::from(address)));
    if is_taken {
        // Docker's words.
        return Err(Lack::Impossible("Address already in use".into()));
    }
    let net = IpNet::new(address.into(), subnet.subnet.prefix_len());
    net.map_err(|_| Lack::Impossible(format!("network {name} has an impossible subnet")))
}

/// Kept for others by `--aux-address`.
fn is_reserved(network: &Network, address: Ipv4Addr) -> bool {
    network.spec.ipam.iter().flat_map(|config| config.reserved.values()).any(|kept| *kept == IpAddr::V4(address))
}

fn network_gone() -> Lack {
    Lack::Impossible("a network of the task is gone".into())
}

/// The next free address of a network behind the one given last.
fn free_address(state: &State, id: NetworkId, given: &mut Given) -> Result<IpNet, Lack> {
    let network = state.networks().get(id).ok_or_else(network_gone)?;
    let reference = state.networks().reference(id).ok_or_else(network_gone)?;
    if given.networks.contains(&id) {
        return Err(Lack::Later);
    }
    let name = &network.spec.annotations.name;
    let subnet = network.subnets.iter().find(|s| matches!(s.subnet, IpNet::V4(_)));
    let subnet = subnet.ok_or_else(|| {
        Lack::Impossible(format!(
            "network {name} has no subnet: the one it asks for overlaps another's, or the address pools are used up"
        ))
    })?;
    let key = reference.handle();
    if let Some(text) = given.full.get(&key) {
        return Err(Lack::Impossible(text.clone()));
    }
    let cursor = given.cursors.get(&key).copied().map(Ipv4Addr::from).or_else(|| state.address_cursor(reference));
    let is_free = |address: Ipv4Addr| {
        !given.addresses.contains(&(key, u32::from(address)))
            && !state.is_address_used(reference, address.into())
            && !is_reserved(network, address)
    };
    let Some(address) = pool::next_address(subnet, cursor, is_free) else {
        let text =
            format!("no free address in network {name} ({}): remove tasks or make a larger network", subnet.subnet);
        given.full.insert(key, text.clone());
        return Err(Lack::Impossible(text));
    };
    given.addresses.insert((key, u32::from(address)));
    given.cursors.insert(key, u32::from(address));
    let net = IpNet::new(address.into(), subnet.subnet.prefix_len());
    net.map_err(|_| Lack::Impossible(format!("network {name} has an impossible subnet")))
}
