//! Names: what each network's zone answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_proto::model::NetworkId;
use skep_proto::model::service::EndpointMode;
use skep_proto::model::view::NetworkView;

use crate::dns::zone::{Zone, ZoneKey};

/// A sandbox of this node as far as names are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalName {
    /// The zone.
    pub zone: ZoneKey,
    /// Its names there.
    pub names: Vec<String>,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
}

/// The zones of all networks. `bridges` are the names of local bridges with names (all but the default one).
pub fn zones(view: &NetworkView, bridges: &[String], local: &[LocalName]) -> BTreeMap<ZoneKey, Zone> {
    let mut zones = BTreeMap::new();
    for network in view.networks.values() {
        zones.insert(ZoneKey::Overlay(network.id), overlay_zone(view, network.id, &network.name));
    }
    for bridge in bridges {
        zones.insert(ZoneKey::Bridge(bridge.clone()), Zone::new(bridge));
    }
    for entry in local {
        if let Some(zone) = zones.get_mut(&entry.zone) {
            for name in &entry.names {
                for address in &entry.addresses {
                    zone.add(name, *address);
                }
            }
        }
    }
    zones
}

fn overlay_zone(view: &NetworkView, network: NetworkId, name: &str) -> Zone {
    let mut zone = Zone::new(name);
    let mut backends: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    // Services with a task here, whether it serves or not.
    let mut present = BTreeSet::new();
    for endpoint in view.endpoints.values() {
        for attachment in endpoint.addresses.iter().filter(|a| a.network == network) {
            let address = attachment.address.addr();
            // A draining task keeps its own name: it is reachable, it only gets nothing new by the service's.
            zone.add(&endpoint.name, address);
            present.extend(endpoint.service);
            for name in &attachment.names {
                zone.add(name, address);
            }
            if !endpoint.serving {
                continue;
            }
            // Aliases of a service lead where its name does.
            let service = endpoint.service.and_then(|id| view.services.get(&id)?.aliases.get(&network));
            for alias in attachment.aliases.iter().filter(|alias| !service.is_some_and(|all| all.contains(alias))) {
                zone.add(alias, address);
            }
            if let Some(service) = endpoint.service {
                backends.entry(service).or_default().push(address);
            }
        }
    }
    for service in view.services.values() {
        let tasks = backends.remove(&service.id).unwrap_or_default();
        let vips = service.virtual_ips.iter().filter(|vip| vip.network == network);
        // One of IPv6 whose tasks have IPv4 alone would refuse those who take it first.
        let is_served = |vip: IpAddr| vip.is_ipv4() || tasks.is_empty() || tasks.iter().any(IpAddr::is_ipv6);
        let vips = vips.filter(|vip| is_served(vip.address.addr()));
        let vips: Vec<IpAddr> = vips.map(|vip| vip.address.addr()).collect();
        let answers = match service.mode {
            EndpointMode::Vip if !vips.is_empty() => &vips,
            EndpointMode::Vip | EndpointMode::DnsRoundRobin => &tasks,
        };
        let is_here = !vips.is_empty() || present.contains(&service.id) || service.aliases.contains_key(&network);
        let aliases = service.aliases.get(&network).into_iter().flatten();
        for name in std::iter::once(&service.name).chain(aliases).filter(|_| is_here) {
            zone.declare(name);
            zone.declare(&format!("tasks.{name}"));
            for address in answers {
                zone.add(name, *address);
            }
            for address in &tasks {
                zone.add(&format!("tasks.{name}"), *address);
            }
        }
    }
    zone
}
