//! Which names a service, a task and a sandbox give, each by itself.

use std::net::IpAddr;

use skep_proto::model::NetworkId;
use skep_proto::model::service::EndpointMode;
use skep_proto::model::view::{EndpointView, ServiceView};

use super::LocalName;
use crate::dns::zone::ZoneKey;

/// Which name of an address comes first in reverse answers: by what it is, then by its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Of the task that has the address.
    Task(usize),
    /// Of its service.
    Service(usize),
    /// Of a sandbox of this node.
    Local(usize),
}

/// A name that is given in a zone.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The name.
    pub name: &'a str,
    /// Where it leads. Without, it is known and has nothing.
    pub to: Option<(IpAddr, Rank)>,
}

/// What a service gives without its tasks.
pub fn service(service: &ServiceView, give: &mut impl FnMut(&ZoneKey, Name<'_>)) {
    let mut networks: Vec<NetworkId> =
        service.virtual_ips.iter().map(|vip| vip.network).chain(service.aliases.keys().copied()).collect();
    networks.sort();
    networks.dedup();
    for network in networks {
        let zone = ZoneKey::Overlay(network);
        for (rank, name, tasks) in names_of(service, network) {
            give(&zone, Name { name, to: None });
            give(&zone, Name { name: &tasks, to: None });
            for address in virtual_addresses(service, network).filter(IpAddr::is_ipv4) {
                give(&zone, Name { name, to: Some((address, Rank::Service(rank))) });
            }
        }
    }
}

/// What a task gives, its part in the names of its service included.
pub fn task(task: &EndpointView, service: Option<&ServiceView>, give: &mut impl FnMut(&ZoneKey, Name<'_>)) {
    for attachment in &task.addresses {
        let (network, address) = (attachment.network, attachment.address.addr());
        let zone = ZoneKey::Overlay(network);
        // A draining task keeps its own names: it is reachable, it only gets nothing new by the service's.
        let own = std::iter::once(&task.name).chain(&attachment.names);
        // Aliases of a service lead where its name does.
        let of_service = service.and_then(|service| service.aliases.get(&network));
        let aliases = attachment.aliases.iter().filter(|alias| !of_service.is_some_and(|all| all.contains(alias)));
        for (rank, name) in own.chain(aliases.filter(|_| task.serving)).enumerate() {
            give(&zone, Name { name, to: Some((address, Rank::Task(rank))) });
        }
        let Some(service) = service else { continue };
        let by_name = virtual_addresses(service, network).next().is_none();
        // One of IPv6 is there as long as a task is that has IPv6: it would refuse those who take it before the one of IPv4.
        let served =
            virtual_addresses(service, network).filter(|vip| task.serving && vip.is_ipv6() && address.is_ipv6());
        let served: Vec<IpAddr> = served.collect();
        for (rank, name, tasks) in names_of(service, network) {
            for vip in &served {
                give(&zone, Name { name, to: Some((*vip, Rank::Service(rank))) });
            }
            // Known wherever there is a task, whether it serves or not.
            let to = Some((address, Rank::Service(rank))).filter(|_| task.serving);
            give(&zone, Name { name, to: to.filter(|_| by_name) });
            give(&zone, Name { name: &tasks, to: to.map(|_| (address, Rank::Service(rank + 1))) });
        }
    }
}

/// What a sandbox gives on a network.
pub fn local(local: &LocalName, give: &mut impl FnMut(&ZoneKey, Name<'_>)) {
    for (rank, name) in local.names.iter().enumerate() {
        for address in &local.addresses {
            give(&local.zone, Name { name, to: Some((*address, Rank::Local(rank))) });
        }
    }
}

/// Whether two states of a service give the same, with and without tasks.
pub fn give_the_same(one: Option<&ServiceView>, other: Option<&ServiceView>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one.is_none() && other.is_none() };
    (&one.name, one.mode, &one.virtual_ips, &one.aliases)
        == (&other.name, other.mode, &other.virtual_ips, &other.aliases)
}

/// Names of a service on a network, each with the one that leads to its tasks.
fn names_of(service: &ServiceView, network: NetworkId) -> impl Iterator<Item = (usize, &str, String)> {
    let aliases = service.aliases.get(&network).into_iter().flatten();
    let names = std::iter::once(&service.name).chain(aliases).filter(|name| !name.is_empty());
    names.enumerate().map(|(at, name)| (2 * at, name.as_str(), format!("tasks.{name}")))
}

/// Where the name of a service leads; nothing when it leads to the tasks.
fn virtual_addresses(service: &ServiceView, network: NetworkId) -> impl Iterator<Item = IpAddr> {
    let has_any = service.mode == EndpointMode::Vip;
    service.virtual_ips.iter().filter(move |vip| has_any && vip.network == network).map(|vip| vip.address.addr())
}
