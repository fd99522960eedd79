//! Virtual addresses of services, as a sandbox sees them: the destination is changed before the packet leaves it, so
//! the client's address stays, and a task may reach itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::{EndpointMode, VirtualIp};
use skep_proto::model::view::{NetworkView, ServiceView};
use skep_proto::model::{NetworkId, ServiceId};

use super::change::{Backends, Change};
use super::node::protocol_number;
use super::overlay::TABLE;
use crate::names::DnsPorts;
use crate::nft::expr::Verdict;
use crate::nft::part::Part;
use crate::nft::rule::{Rule, TCP, UDP};
use crate::nft::table::{Chain, Family, Hook, Ip, Kind, MapTo, Set, Table, Value, octets};

/// Priority of destination NAT (nft's `dstnat`).
const DSTNAT: i32 = -100;

/// What is behind a virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behind {
    /// Addresses of tasks.
    pub tasks: Vec<IpAddr>,
    /// Ports that lead to others; every other port leads to itself.
    pub redirects: Vec<PortRedirect>,
}

/// Virtual addresses on the networks and the tasks behind them, draining ones left out. Behind one of IPv6 are the tasks'
/// addresses of IPv6.
pub fn services(view: &NetworkView, backends: &Backends, networks: &BTreeSet<NetworkId>) -> BTreeMap<IpAddr, Behind> {
    let services = view.services.values().filter(|s| s.mode == EndpointMode::Vip);
    let there = services.flat_map(|s| s.virtual_ips.iter().map(move |vip| (s, vip)));
    let there = there.filter(|(_, vip)| networks.contains(&vip.network));
    there.map(|(service, vip)| (vip.address.addr(), behind(view, backends, service, vip))).collect()
}

fn behind(view: &NetworkView, backends: &Backends, service: &ServiceView, vip: &VirtualIp) -> Behind {
    let ip = Ip::of_net(&vip.address);
    let addresses = backends.serving(view, service.id).flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.filter(|a| a.network == vip.network).map(|a| a.address.addr());
    let mut tasks: Vec<IpAddr> = addresses.filter(|address| Ip::of(*address) == ip).collect();
    tasks.sort_unstable();
    tasks.dedup();
    Behind { tasks, redirects: service.redirects.clone() }
}

/// Virtual addresses that changed, by network; `None` for one that is gone.
pub type Changed = BTreeMap<(NetworkId, IpAddr), Option<Behind>>;

/// Virtual addresses of the services that `change` names: as they are in `after`, which `backends` follows.
pub fn changed(before: &NetworkView, after: &NetworkView, backends: &Backends, change: &Change<'_>) -> Changed {
    let vips = |view: &NetworkView, id: &ServiceId| -> Vec<VirtualIp> {
        let service = view.services.get(id).filter(|s| s.mode == EndpointMode::Vip);
        service.map(|service| service.virtual_ips.clone()).unwrap_or_default()
    };
    let mut all = Changed::new();
    for vip in change.services.iter().flat_map(|id| vips(before, id)) {
        all.insert((vip.network, vip.address.addr()), None);
    }
    // After all that is gone: another service may have got the address.
    for id in &change.services {
        let Some(service) = after.services.get(id) else { continue };
        for vip in vips(after, id) {
            let behind = behind(after, backends, service, &vip);
            all.insert((vip.network, vip.address.addr()), Some(behind));
        }
    }
    all
}

/// Address of the name server in every sandbox, as with Docker.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port that resolvers ask (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// The tables of a sandbox on networks with these services. `dns` is where port 53 of the name server really is. There is
/// none for IPv6 without a virtual address of it.
pub fn sandbox_tables(services: &BTreeMap<IpAddr, Behind>, dns: DnsPorts) -> Vec<Table> {
    let of = |ip: Ip| services.iter().filter(move |(vip, _)| Ip::of(**vip) == ip);
    let mut tables = vec![sandbox_table(Ip::V4, of(Ip::V4), Some(dns))];
    if of(Ip::V6).next().is_some() {
        tables.push(sandbox_table(Ip::V6, of(Ip::V6), None));
    }
    tables
}

/// What changes in the tables of a sandbox on networks where these virtual addresses changed.
pub fn sandbox_parts(changed: &Changed, networks: &BTreeSet<NetworkId>) -> Vec<Part> {
    let mut parts = [Part::new(Family::Ipv4, TABLE), Part::new(Family::Ipv6, TABLE)];
    for ((_, vip), behind) in changed.iter().filter(|((network, _), _)| networks.contains(network)) {
        let part = &mut parts[usize::from(vip.is_ipv6())];
        let chain = behind.as_ref().and_then(|behind| vip_chain(*vip, behind));
        let goto = chain.as_ref().map(|(name, _)| Value::Verdict(Verdict::Goto(name.clone())));
        part.element(CHOSEN, octets(*vip), goto);
        part.element(ALL, octets(*vip), behind.as_ref().map(|_| Value::None));
        part.chain(chain_name(*vip), chain.map(|(_, rules)| Chain { base: None, rules }));
    }
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// Map from virtual addresses to their chains.
const CHOSEN: &str = "vips";
/// Set of all virtual addresses, also of those that nobody is behind.
const ALL: &str = "vip-addresses";

fn chain_name(vip: IpAddr) -> String {
    format!("vip-{vip}")
}

/// The chain that leads from a virtual address to its tasks, if there are any.
fn vip_chain(vip: IpAddr, Behind { tasks, redirects }: &Behind) -> Option<(String, Vec<Rule>)> {
    if tasks.is_empty() {
        return None;
    }
    let ip = Ip::of(vip);
    let redirect = |led: &PortRedirect| {
        Rule::of(ip).destination_port(protocol_number(led.protocol), led.port).lead_to(tasks, Some(led.target))
    };
    let itself = Rule::of(ip).lead_to(tasks, None);
    Some((chain_name(vip), redirects.iter().flat_map(redirect).chain(itself).collect()))
}

fn sandbox_table<'a>(ip: Ip, services: impl Iterator<Item = (&'a IpAddr, &'a Behind)>, dns: Option<DnsPorts>) -> Table {
    let mut table = Table::new(ip.family(), TABLE);
    let mut chosen = Set::map([ip.field()], MapTo::Verdict);
    let mut all = Set::of([ip.field()]);
    for (vip, behind) in services {
        all.add(octets(*vip));
        if let Some((chain, rules)) = vip_chain(*vip, behind) {
            table.chain(&chain, rules);
            chosen.put(octets(*vip), Value::Verdict(Verdict::Goto(chain)));
        }
    }
    table.sets.insert(CHOSEN.into(), chosen);
    table.sets.insert(ALL.into(), all);
    let choose = vec![Rule::of(ip).verdict_by_destination(CHOSEN)];
    let server = IpNet::from(IpAddr::V4(NAME_SERVER));
    let ask = |protocol, port| {
        Rule::of(ip).destination(server).destination_port(protocol, DNS).balance(vec![server.addr()], Some(port))
    };
    let mut output: Vec<Rule> = dns.into_iter().flat_map(|dns| [ask(UDP, dns.udp), ask(TCP, dns.tcp)]).collect();
    output.extend(choose.clone());
    table.base("vip-output", Kind::Nat, Hook::Output, DSTNAT, output);
    // For containers that forward for others, such as a proxy in front of nested containers.
    table.base("vip-prerouting", Kind::Nat, Hook::Prerouting, DSTNAT, choose);
    // A packet that still goes to a virtual address has no task to go to: say so at once.
    let refuse = vec![
        Rule::of(ip).destination_in(ALL).protocol(TCP).reject(true),
        Rule::of(ip).destination_in(ALL).reject(false),
    ];
    table.base("vip-refuse", Kind::Filter, Hook::Output, 0, refuse);
    table
}
