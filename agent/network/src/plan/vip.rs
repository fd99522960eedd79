//! Virtual addresses of services, as a sandbox sees them: the destination is changed before the packet leaves it, so
//! the client's address stays, and a task may reach itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::{EndpointMode, VirtualIp};
use skep_proto::model::view::{NetworkView, ServiceView};
use skep_proto::model::{NetworkId, ServiceId};

use super::balance;
use super::change::{Backends, Change};
use super::node::protocol_number;
use super::overlay::TABLE;
use crate::names::DnsPorts;
use crate::nft::expr::Verdict;
use crate::nft::part::Part;
use crate::nft::rule::{Rule, TCP, UDP};
use crate::nft::table::{Chain, Family, Field, Hook, Ip, Kind, MapTo, Set, Table, Value, concat, octets};

/// Priority of destination NAT (nft's `dstnat`).
const DSTNAT: i32 = -100;

/// What is behind a virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behind {
    /// Addresses of tasks, in the order of their numbers.
    pub tasks: Vec<IpAddr>,
    /// Ports that lead to others; every other port leads to itself.
    pub redirects: Vec<PortRedirect>,
}

/// All virtual addresses, with what is behind each.
pub type Vips = OrdMap<(NetworkId, IpAddr), Arc<Behind>>;

/// Virtual addresses of a view and the tasks behind them, draining ones left out. Behind one of IPv6 are the tasks' addresses
/// of IPv6. Tasks keep the numbers that they have in `before`, as far as they can.
pub fn vips(view: &NetworkView, backends: &Backends, before: &Vips) -> Vips {
    let services = view.services.values().filter(|s| s.mode == EndpointMode::Vip);
    let there = services.flat_map(|s| s.virtual_ips.iter().map(move |vip| (s, vip)));
    there.map(|(service, vip)| (key(vip), behind(view, backends, service, vip, before))).collect()
}

fn key(vip: &VirtualIp) -> (NetworkId, IpAddr) {
    (vip.network, vip.address.addr())
}

fn behind(
    view: &NetworkView,
    backends: &Backends,
    service: &ServiceView,
    vip: &VirtualIp,
    before: &Vips,
) -> Arc<Behind> {
    let ip = Ip::of_net(&vip.address);
    let addresses = backends.serving(view, service.id).flat_map(|endpoint| &endpoint.addresses);
    let addresses = addresses.filter(|a| a.network == vip.network).map(|a| a.address.addr());
    let wanted: BTreeSet<IpAddr> = addresses.filter(|address| Ip::of(*address) == ip).collect();
    let known = before.get(&key(vip));
    let tasks = balance::arrange(known.map_or(&[], |behind| behind.tasks.as_slice()), &wanted);
    let behind = Behind { tasks, redirects: service.redirects.clone() };
    known.filter(|known| ***known == behind).cloned().unwrap_or_else(|| Arc::new(behind))
}

/// Virtual addresses that changed, by network: before and after.
pub type Changed = BTreeMap<(NetworkId, IpAddr), (Option<Arc<Behind>>, Option<Arc<Behind>>)>;

/// Brings `vips` from `before` to `after`, which `backends` follows, as far as services are concerned that `change` names.
/// Gives what is other then.
pub fn follow(
    vips: &mut Vips,
    (before, after): (&NetworkView, &NetworkView),
    backends: &Backends,
    change: &Change<'_>,
) -> Changed {
    let of = |view: &NetworkView, id: &ServiceId| -> Vec<VirtualIp> {
        let service = view.services.get(id).filter(|s| s.mode == EndpointMode::Vip);
        service.map(|service| service.virtual_ips.clone()).unwrap_or_default()
    };
    let known = vips.clone();
    let mut all = Changed::new();
    for vip in change.services.iter().flat_map(|id| of(before, id)) {
        all.insert(key(&vip), (vips.remove(&key(&vip)), None));
    }
    // After all that is gone: another service may have got the address.
    for id in &change.services {
        let Some(service) = after.services.get(id) else { continue };
        for vip in of(after, id) {
            let behind = behind(after, backends, service, &vip, &known);
            vips.insert(key(&vip), behind.clone());
            all.entry(key(&vip)).or_insert_with(|| (known.get(&key(&vip)).cloned(), None)).1 = Some(behind);
        }
    }
    all.retain(|_, (before, after)| before != after);
    all
}

/// Address of the name server in every sandbox, as with Docker.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port that resolvers ask (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// Map from virtual addresses to the chains of their sizes.
const CHOSEN: &str = "vips";
/// Set of all virtual addresses, also of those that nobody is behind.
const ALL: &str = "vip-addresses";
/// Map from virtual addresses and numbers to tasks.
const TASKS: &str = "backends";
/// Map from virtual addresses, protocols and ports to the ports that they lead to.
const PORTS: &str = "redirects";

/// The tables of a sandbox on these networks. `dns` is where port 53 of the name server really is. There is none for IPv6
/// without a virtual address of it.
pub fn sandbox_tables(vips: &Vips, networks: &BTreeSet<NetworkId>, dns: DnsPorts) -> Vec<Table> {
    // By address: what is the same in two networks has one chain.
    let here = vips.iter().filter(|((network, _), _)| networks.contains(network));
    let here: BTreeMap<IpAddr, &Behind> = here.map(|((_, vip), behind)| (*vip, &**behind)).collect();
    let of = |ip: Ip| here.iter().filter(move |(vip, _)| Ip::of(**vip) == ip).map(|(vip, behind)| (*vip, *behind));
    let mut tables = vec![sandbox_table(Ip::V4, of(Ip::V4), Some(dns))];
    if of(Ip::V6).next().is_some() {
        tables.push(sandbox_table(Ip::V6, of(Ip::V6), None));
    }
    tables
}

/// What changes in the tables of a sandbox on networks where these virtual addresses changed. Chains that nothing leads to any
/// more are not named.
pub fn sandbox_parts(changed: &Changed, networks: &BTreeSet<NetworkId>) -> Vec<Part> {
    let mut parts = [Part::new(Family::Ipv4, TABLE), Part::new(Family::Ipv6, TABLE)];
    for ((_, vip), (before, after)) in changed.iter().filter(|((network, _), _)| networks.contains(network)) {
        let part = &mut parts[usize::from(vip.is_ipv6())];
        let (before, after) = (before.as_deref(), after.as_deref());
        part.element(ALL, octets(*vip), after.map(|_| Value::None));
        let chain = after.and_then(|behind| chain(Ip::of(*vip), behind));
        let goto = chain.as_ref().map(|(name, _)| Value::Verdict(Verdict::Goto(name.clone())));
        part.element(CHOSEN, octets(*vip), goto);
        if let Some((name, rules)) = chain {
            part.chain(name, Some(Chain { base: None, rules }));
        }
        for led in before.iter().flat_map(|behind| &behind.redirects) {
            part.element(PORTS, port_key(*vip, led), None);
        }
        for led in after.iter().flat_map(|behind| &behind.redirects) {
            part.element(PORTS, port_key(*vip, led), Some(port(led)));
        }
        let (old, new) = (before.map_or(&[][..], |b| &b.tasks), after.map_or(&[][..], |b| &b.tasks));
        for (index, task) in balance::moved(old, new) {
            part.element(TASKS, task_key(*vip, index), task.map(|task| Value::Bytes(octets(*task))));
        }
    }
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

fn task_key(vip: IpAddr, index: u32) -> Vec<u8> {
    concat(&[&octets(vip), &index.to_ne_bytes()])
}

fn port_key(vip: IpAddr, led: &PortRedirect) -> Vec<u8> {
    concat(&[&octets(vip), &[protocol_number(led.protocol)], &led.port.to_be_bytes()])
}

fn port(led: &PortRedirect) -> Value {
    Value::Bytes(led.target.to_be_bytes().to_vec())
}

/// The chain that leads from a virtual address to its tasks, if there are any: it is that of all addresses with as many.
fn chain(ip: Ip, Behind { tasks, redirects }: &Behind) -> Option<(String, Vec<Rule>)> {
    if tasks.is_empty() {
        return None;
    }
    let size = balance::size(tasks.len());
    let draws = || balance::draws(size).into_iter();
    let itself = draws().map(|below| Rule::of(ip).balance_by_destination(TASKS, below));
    if redirects.is_empty() {
        return Some((format!("balance-{size}"), itself.collect()));
    }
    let redirected = draws().map(|below| Rule::of(ip).balance_by_destination_and_port(TASKS, PORTS, below));
    Some((format!("redirect-{size}"), redirected.chain(itself).collect()))
}

fn sandbox_table<'a>(ip: Ip, vips: impl Iterator<Item = (IpAddr, &'a Behind)>, dns: Option<DnsPorts>) -> Table {
    let mut table = Table::new(ip.family(), TABLE);
    let mut chosen = Set::map([ip.field()], MapTo::Verdict);
    let mut all = Set::of([ip.field()]);
    let mut tasks = Set::map([ip.field(), Field::Index], MapTo::Fields(vec![ip.field()]));
    let mut ports = Set::map([ip.field(), Field::Protocol, Field::Port], MapTo::Fields(vec![Field::Port]));
    for (vip, behind) in vips {
        all.add(octets(vip));
        for led in &behind.redirects {
            ports.put(port_key(vip, led), port(led));
        }
        for (place, task) in behind.tasks.iter().enumerate() {
            tasks.put(task_key(vip, balance::index(place)), Value::Bytes(octets(*task)));
        }
        if let Some((name, rules)) = chain(ip, behind) {
            chosen.put(octets(vip), Value::Verdict(Verdict::Goto(name.clone())));
            table.chain(name, rules);
        }
    }
    let sets = [(CHOSEN, chosen), (ALL, all), (TASKS, tasks), (PORTS, ports)];
    table.sets.extend(sets.map(|(name, set)| (name.to_owned(), set)));
    let choose = || vec![Rule::of(ip).verdict_by_destination(CHOSEN)];
    let server = IpAddr::V4(NAME_SERVER);
    let ask = |protocol, port| {
        Rule::of(ip).destination(IpNet::from(server)).destination_port(protocol, DNS).lead_to(server, port)
    };
    let mut output: Vec<Rule> = dns.into_iter().flat_map(|dns| [ask(UDP, dns.udp), ask(TCP, dns.tcp)]).collect();
    output.extend(choose());
    table.base("vip-output", Kind::Nat, Hook::Output, DSTNAT, output);
    table.base("vip-output-again", Kind::Nat, Hook::Output, DSTNAT + 1, choose());
    // For containers that forward for others, such as a proxy in front of nested containers.
    table.base("vip-prerouting", Kind::Nat, Hook::Prerouting, DSTNAT, choose());
    table.base("vip-prerouting-again", Kind::Nat, Hook::Prerouting, DSTNAT + 1, choose());
    // A packet that still goes to a virtual address has no task to go to: say so at once.
    let refuse = vec![
        Rule::of(ip).destination_in(ALL).protocol(TCP).reject(true),
        Rule::of(ip).destination_in(ALL).reject(false),
    ];
    table.base("vip-refuse", Kind::Filter, Hook::Output, 0, refuse);
    table
}
