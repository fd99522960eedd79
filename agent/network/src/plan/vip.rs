//! Virtual addresses of services, as a sandbox sees them: the destination is changed before the packet leaves it, so
//! the client's address stays, and a task may reach itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use skep_proto::model::NetworkId;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::EndpointMode;
use skep_proto::model::view::NetworkView;

use super::node::protocol_number;
use super::overlay::TABLE;
use crate::names::DnsPorts;
use crate::nft::expr::Verdict;
use crate::nft::rule::{Rule, TCP, UDP};
use crate::nft::table::{Hook, Ip, Kind, MapTo, Set, Table, Value, octets};

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
pub fn services(view: &NetworkView, networks: &BTreeSet<NetworkId>) -> BTreeMap<IpAddr, Behind> {
    let mut backends: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for endpoint in view.endpoints.values().filter(|e| e.serving) {
        let Some(service) = endpoint.service else { continue };
        for attachment in endpoint.addresses.iter().filter(|a| networks.contains(&a.network)) {
            let address = attachment.address.addr();
            backends.entry((service, attachment.network, Ip::of(address))).or_default().push(address);
        }
    }
    let mut all = BTreeMap::new();
    for service in view.services.values().filter(|s| s.mode == EndpointMode::Vip) {
        for vip in service.virtual_ips.iter().filter(|v| networks.contains(&v.network)) {
            let key = (service.id, vip.network, Ip::of_net(&vip.address));
            let mut tasks = backends.get(&key).cloned().unwrap_or_default();
            tasks.sort_unstable();
            tasks.dedup();
            all.insert(vip.address.addr(), Behind { tasks, redirects: service.redirects.clone() });
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

fn sandbox_table<'a>(ip: Ip, services: impl Iterator<Item = (&'a IpAddr, &'a Behind)>, dns: Option<DnsPorts>) -> Table {
    let mut table = Table::new(ip.family(), TABLE);
    let mut chosen = Set::map([ip.field()], MapTo::Verdict);
    let mut all = Set::of([ip.field()]);
    for (vip, Behind { tasks, redirects }) in services {
        all.add(octets(*vip));
        if tasks.is_empty() {
            continue;
        }
        let chain = format!("vip-{vip}");
        let redirect = |led: &PortRedirect| {
            Rule::of(ip).destination_port(protocol_number(led.protocol), led.port).lead_to(tasks, Some(led.target))
        };
        let itself = Rule::of(ip).lead_to(tasks, None);
        table.chain(&chain, redirects.iter().flat_map(redirect).chain(itself).collect());
        chosen.put(octets(*vip), Value::Verdict(Verdict::Goto(chain)));
    }
    table.sets.insert("vips".into(), chosen);
    table.sets.insert("vip-addresses".into(), all);
    let choose = vec![Rule::of(ip).verdict_by_destination("vips")];
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
        Rule::of(ip).destination_in("vip-addresses").protocol(TCP).reject(true),
        Rule::of(ip).destination_in("vip-addresses").reject(false),
    ];
    table.base("vip-refuse", Kind::Filter, Hook::Output, 0, refuse);
    table
}
