//! Published ports of the routing mesh: where each leads, and what of the node's tables follows from that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::model::ServiceId;
use skep_proto::model::service::{Protocol, PublishMode};
use skep_proto::model::view::{EndpointView, NetworkView};

use super::balance;
use super::change::{Backends, Change};
use super::node::{in_ip, protocol_number};
use crate::config::PUBLISHED_MARK;
use crate::nft::expr::Verdict;
use crate::nft::part::Part;
use crate::nft::rule::Rule;
use crate::nft::table::{Chain, Field, Ip, MapTo, Set, Table, Value, address_and_port, concat, service_key};

/// What is behind a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Port of the tasks.
    pub target: u16,
    /// Addresses of tasks on their task links, in the order of their numbers. There is one at least.
    pub tasks: Vec<Ipv4Addr>,
    /// Those of them that have IPv6, in the order of their numbers there.
    pub twins: Vec<Ipv4Addr>,
}

impl Published {
    fn behind(&self, ip: Ip) -> &[Ipv4Addr] {
        match ip {
            Ip::V4 => &self.tasks,
            Ip::V6 => &self.twins,
        }
    }
}

/// A port of every node.
pub type Port = (Protocol, u16);

/// All published ports of the routing mesh. Those without a task are not there: the node refuses them as it does any closed
/// port.
pub type Ingress = OrdMap<Port, Arc<Published>>;

/// Published ports of a view. Tasks keep the numbers that they have in `before`, as far as they can.
pub fn ingress(view: &NetworkView, backends: &Backends, before: &Ingress) -> Ingress {
    view.services.keys().flat_map(|id| published(view, backends, *id, before)).collect()
}

/// Ports that services publish in a view, whether or not somebody is behind them.
fn ports(view: &NetworkView, service: ServiceId) -> impl Iterator<Item = (Port, u16)> {
    let ports = view.services.get(&service).into_iter().flat_map(|service| &service.ports);
    let ports = ports.filter(|port| port.mode == PublishMode::Ingress);
    ports.filter_map(|port| Some(((port.protocol, port.published?), port.target)))
}

fn published(
    view: &NetworkView,
    backends: &Backends,
    service: ServiceId,
    before: &Ingress,
) -> Vec<(Port, Arc<Published>)> {
    let mut ports = ports(view, service).peekable();
    if ports.peek().is_none() {
        return Vec::new();
    }
    let address = |mesh: Option<IpAddr>| match mesh {
        Some(IpAddr::V4(address)) => Some(address),
        _ => None,
    };
    let has_ipv6 = |task: &EndpointView| view.peers.get(&task.node).is_none_or(|peer| !peer.ipv4_only);
    let serving = || backends.serving(view, service);
    let tasks: BTreeSet<Ipv4Addr> = serving().filter_map(|task| address(task.mesh)).collect();
    if tasks.is_empty() {
        return Vec::new();
    }
    let twins: BTreeSet<Ipv4Addr> =
        serving().filter(|task| has_ipv6(task)).filter_map(|task| address(task.mesh)).collect();
    let lead = |(port, target)| {
        let known = before.get(&port);
        let arrange = |ip, wanted| balance::arrange(known.map_or(&[], |known| known.behind(ip)), wanted);
        let published = Published { target, tasks: arrange(Ip::V4, &tasks), twins: arrange(Ip::V6, &twins) };
        (port, known.filter(|known| ***known == published).cloned().unwrap_or_else(|| Arc::new(published)))
    };
    ports.map(lead).collect()
}

/// Published ports that changed: before and after.
pub type Changed = BTreeMap<Port, (Option<Arc<Published>>, Option<Arc<Published>>)>;

/// Brings `ingress` from `before` to `after`, which `backends` follows, as far as services are concerned that `change` names.
/// Gives what is other then.
pub fn follow(
    ingress: &mut Ingress,
    (before, after): (&NetworkView, &NetworkView),
    backends: &Backends,
    change: &Change<'_>,
) -> Changed {
    let known = ingress.clone();
    let mut all = Changed::new();
    for (port, _) in change.services.iter().flat_map(|id| ports(before, *id)) {
        if let Some(gone) = ingress.remove(&port) {
            all.insert(port, (Some(gone), None));
        }
    }
    // After all that is gone: another service may have got the port.
    for (port, published) in change.services.iter().flat_map(|id| published(after, backends, *id, &known)) {
        ingress.insert(port, published.clone());
        all.entry(port).or_insert_with(|| (known.get(&port).cloned(), None)).1 = Some(published);
    }
    all.retain(|_, (before, after)| before != after);
    all
}

/// Map from protocols and ports to the chains of their sizes.
pub const PORTS: &str = "ingress-ports";
/// Map from protocols, ports and numbers to tasks with their ports.
const TASKS: &str = "ingress-tasks";

/// Adds to a table of the node what leads to the tasks.
pub fn add_to(table: &mut Table, ip: Ip, ingress: &Ingress) {
    let mut ports = Set::map([Field::Protocol, Field::Port], MapTo::Verdict);
    let to = MapTo::Fields(vec![ip.field(), Field::Port]);
    let mut tasks = Set::map([Field::Protocol, Field::Port, Field::Index], to);
    for (port, published) in ingress {
        let Some((name, rules)) = chain(ip, published) else { continue };
        ports.put(key(*port), Value::Verdict(Verdict::Goto(name.clone())));
        table.chain(name, rules);
        for (place, task) in published.behind(ip).iter().enumerate() {
            tasks.put(task_key(*port, balance::index(place)), value(ip, *task, published.target));
        }
    }
    table.sets.extend([(PORTS.to_owned(), ports), (TASKS.to_owned(), tasks)]);
}

/// What changes in a table of the node, of that name and version of IP, where these ports changed. Chains that nothing leads
/// to any more are not named.
pub fn part(name: &str, ip: Ip, changed: &Changed) -> Part {
    let mut part = Part::new(ip.family(), name);
    for (port, (before, after)) in changed {
        let chain = after.as_deref().and_then(|published| chain(ip, published));
        let goto = chain.as_ref().map(|(name, _)| Value::Verdict(Verdict::Goto(name.clone())));
        part.element(PORTS, key(*port), goto);
        if let Some((name, rules)) = chain {
            part.chain(name, Some(Chain { base: None, rules }));
        }
        let ends = |published: &Option<Arc<Published>>| -> Vec<(Ipv4Addr, u16)> {
            let ends = published
                .iter()
                .flat_map(|published| published.behind(ip).iter().map(|task| (*task, published.target)));
            ends.collect()
        };
        for (index, end) in balance::moved(&ends(before), &ends(after)) {
            part.element(TASKS, task_key(*port, index), end.map(|(task, target)| value(ip, *task, *target)));
        }
    }
    part
}

fn key((protocol, port): Port) -> Vec<u8> {
    service_key(protocol_number(protocol), port)
}

fn task_key((protocol, port): Port, index: u32) -> Vec<u8> {
    concat(&[&[protocol_number(protocol)], &port.to_be_bytes(), &index.to_ne_bytes()])
}

fn value(ip: Ip, task: Ipv4Addr, target: u16) -> Value {
    Value::Bytes(address_and_port(in_ip(ip, task), target))
}

/// The chain that leads to the tasks behind a port, if there are any: it is that of all ports with as many.
fn chain(ip: Ip, published: &Published) -> Option<(String, Vec<Rule>)> {
    let count = published.behind(ip).len();
    if count == 0 {
        return None;
    }
    let size = balance::size(count);
    let draws = balance::draws(size).into_iter();
    let lead = draws.map(|below| Rule::of(ip).balance_by_service(TASKS, below));
    let rules = std::iter::once(Rule::of(ip).or_ct_mark(PUBLISHED_MARK)).chain(lead);
    Some((format!("ingress-{size}"), rules.collect()))
}
