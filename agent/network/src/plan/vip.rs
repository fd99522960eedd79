//! Virtual addresses of services, as a sandbox sees them: the destination is changed before the packet leaves it, so
//! the client's address stays, and a task may reach itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use skep_proto::model::NetworkId;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::EndpointMode;
use skep_proto::model::view::NetworkView;

use super::node::protocol_number;
use super::overlay::TABLE;
use crate::names::DnsPorts;
use crate::nft::expr::Verdict;
use crate::nft::rule::{Rule, TCP, UDP};
use crate::nft::table::{Family, Field, Hook, Kind, MapTo, Set, Table, Value};

/// Priority of destination NAT (nft's `dstnat`).
const DSTNAT: i32 = -100;

/// What is behind a virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behind {
    /// Addresses of tasks.
    pub tasks: Vec<Ipv4Addr>,
    /// Ports that lead to others; every other port leads to itself.
    pub redirects: Vec<PortRedirect>,
}

/// Virtual addresses on the networks and the tasks behind them, draining ones left out.
pub fn services(view: &NetworkView, networks: &BTreeSet<NetworkId>) -> BTreeMap<Ipv4Addr, Behind> {
    let mut backends: BTreeMap<_, Vec<Ipv4Addr>> = BTreeMap::new();
    for endpoint in view.endpoints.values().filter(|e| e.serving) {
        let Some(service) = endpoint.service else { continue };
        for attachment in endpoint.addresses.iter().filter(|a| networks.contains(&a.network)) {
            if let IpNet::V4(net) = attachment.address {
                backends.entry((service, attachment.network)).or_default().push(net.addr());
            }
        }
    }
    let mut all = BTreeMap::new();
    for service in view.services.values().filter(|s| s.mode == EndpointMode::Vip) {
        for vip in service.virtual_ips.iter().filter(|v| networks.contains(&v.network)) {
            if let IpNet::V4(net) = vip.address {
                let mut addresses = backends.get(&(service.id, vip.network)).cloned().unwrap_or_default();
                addresses.sort_unstable();
                addresses.dedup();
                all.insert(net.addr(), Behind { tasks: addresses, redirects: service.redirects.clone() });
            }
        }
    }
    all
}

/// Address of the name server in every sandbox, as with Docker.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port that resolvers ask (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// The table of a sandbox on networks with these services. `dns` is where port 53 of the name server really is.
pub fn sandbox_table(services: &BTreeMap<Ipv4Addr, Behind>, dns: DnsPorts) -> Table {
    let mut table = Table::new(Family::Ipv4, TABLE);
    let mut chosen = Set::map([Field::Address], MapTo::Verdict);
    let mut all = Set::of([Field::Address]);
    for (vip, Behind { tasks, redirects }) in services {
        all.add(vip.octets().to_vec());
        if tasks.is_empty() {
            continue;
        }
        let chain = format!("vip-{vip}");
        let mut rules = Vec::new();
        for led in redirects {
            let to_port = Rule::new().destination_port(protocol_number(led.protocol), led.port);
            rules.extend(to_port.lead_to(tasks, Some(led.target)));
        }
        rules.extend(Rule::new().lead_to(tasks, None));
        table.chain(&chain, rules);
        chosen.put(vip.octets().to_vec(), Value::Verdict(Verdict::Goto(chain)));
    }
    table.sets.insert("vips".into(), chosen);
    table.sets.insert("vip-addresses".into(), all);
    let choose = vec![Rule::new().verdict_by_destination("vips")];
    let server = Ipv4Net::from(NAME_SERVER);
    let ask = |protocol, port| {
        Rule::new().destination(server).destination_port(protocol, DNS).balance(vec![NAME_SERVER], Some(port))
    };
    let mut output = vec![ask(UDP, dns.udp), ask(TCP, dns.tcp)];
    output.extend(choose.clone());
    table.base("vip-output", Kind::Nat, Hook::Output, DSTNAT, output);
    // For containers that forward for others, such as a proxy in front of nested containers.
    table.base("vip-prerouting", Kind::Nat, Hook::Prerouting, DSTNAT, choose);
    // A packet that still goes to a virtual address has no task to go to: say so at once.
    let refuse = vec![
        Rule::new().destination_in("vip-addresses").protocol(TCP).reject(true),
        Rule::new().destination_in("vip-addresses").reject(false),
    ];
    table.base("vip-refuse", Kind::Filter, Hook::Output, 0, refuse);
    table
}
