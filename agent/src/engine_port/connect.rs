//! How a container is connected, and how that is shown. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use skep_api::ports::EngineError;
use skep_engine::containers::StartWith;
use skep_proto::model::ContainerId;
use skep_proto::model::addressing;
use skep_proto::model::engine::{
    Container, ContainerConfig, ContainerStatus, EndpointState, LocalNetwork, NetworkEndpoint, NetworkMode, PortBinding,
};

use super::cluster::Place;
use super::sandboxes::{BridgeJoin, LinkTo, OverlayJoin, Sandbox, SandboxRequest};

/// Name of the default bridge.
pub(super) const BRIDGE: &str = "bridge";
/// Name of the network that stands for the node's own.
pub(super) const HOST: &str = "host";
/// Name of the network that stands for none.
pub(super) const NONE: &str = "none";

/// What a start has to arrange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// A sandbox of its own.
    Sandbox(SandboxRequest),
    /// The node's network.
    Host,
    /// Nothing but a loopback device.
    Nothing,
    /// Another container's sandbox.
    Shared(ContainerId),
    /// A sandbox that somebody else keeps.
    Given(std::path::PathBuf),
}

/// It runs, or is about to run again by its restart policy: what it was started with is needed.
pub(super) fn is_live(status: ContainerStatus) -> bool {
    match status {
        ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => true,
        ContainerStatus::Created | ContainerStatus::Removing | ContainerStatus::Exited | ContainerStatus::Dead => false,
    }
}

/// The id of the sandbox that a container is in: its task's, or its own.
pub(super) fn sandbox_id(config: &ContainerConfig) -> String {
    match &config.task {
        Some(owner) => owner.task.to_string(),
        None => config.id.to_string(),
    }
}

/// How the container is to be connected on a node with these networks. `places` are those it has on the cluster's.
///
/// # Errors
/// A network that does not exist, or networks that cannot be had together.
pub(super) fn plan(
    config: &ContainerConfig,
    hostname: &str,
    networks: &[LocalNetwork],
    places: &[Place],
) -> Result<Plan, EngineError> {
    let request = SandboxRequest {
        id: sandbox_id(config),
        ports: config.ports.clone(),
        dns: config.spec.dns.clone().unwrap_or_default(),
        ..SandboxRequest::default()
    };
    let endpoints = match &config.network {
        NetworkMode::Host => return Ok(Plan::Host),
        NetworkMode::None => return Ok(Plan::Nothing),
        NetworkMode::Sandbox(path) => return Ok(Plan::Given(path.clone())),
        NetworkMode::Container(other) if !config.ports.is_empty() => {
            let text = "conflicting options: port publishing and the container type network mode";
            return Err(EngineError::Invalid(format!("{text}: publish the ports of container {other} instead")));
        }
        NetworkMode::Container(other) => return Ok(Plan::Shared(*other)),
        NetworkMode::Bridge => {
            let bridges = vec![BridgeJoin { bridge: BRIDGE.to_owned(), ..BridgeJoin::default() }];
            return Ok(Plan::Sandbox(SandboxRequest { bridges, ..request }));
        }
        NetworkMode::Networks(endpoints) => endpoints,
    };
    if let [only] = &endpoints[..] {
        match only.network.as_str() {
            HOST => return Ok(Plan::Host),
            NONE => return Ok(Plan::Nothing),
            _ => {}
        }
    }
    join_all(endpoints, &names(config, hostname), networks, places, request).map(Plan::Sandbox)
}

fn join_all(
    endpoints: &[NetworkEndpoint],
    names: &[String],
    networks: &[LocalNetwork],
    places: &[Place],
    mut request: SandboxRequest,
) -> Result<SandboxRequest, EngineError> {
    for endpoint in endpoints {
        let addresses = endpoint.addresses.clone();
        let names: Vec<String> = unique(names.iter().chain(&endpoint.aliases));
        let Some(network) = find(networks, &endpoint.network) else {
            let place = places.iter().find(|place| place.reference == endpoint.network);
            let place = place.ok_or_else(|| EngineError::NoSuchNetwork(endpoint.network.clone()))?;
            let (network, addresses) = (place.network, place.addresses.clone());
            request.overlays.push(OverlayJoin { network, addresses, names });
            continue;
        };
        match network.name.as_str() {
            HOST | NONE => {
                let text = format!("network {} cannot be combined with other networks", network.name);
                return Err(EngineError::Invalid(text));
            }
            BRIDGE if !addresses.is_empty() => {
                let text = "user specified IP address is supported on user defined networks only";
                return Err(EngineError::Invalid(text.to_owned()));
            }
            BRIDGE => request.bridges.push(BridgeJoin { bridge: BRIDGE.to_owned(), ..BridgeJoin::default() }),
            name => {
                check_asked(&addresses, network)?;
                request.bridges.push(BridgeJoin { bridge: name.to_owned(), addresses, names });
            }
        }
    }
    Ok(request)
}

/// Addresses asked for lie in the network's subnets.
fn check_asked(addresses: &[IpAddr], network: &LocalNetwork) -> Result<(), EngineError> {
    for address in addresses.iter().filter(|_| !network.subnets.is_empty()) {
        let known = addressing::subnet_of(*address, &network.subnets);
        known.map_err(|text| EngineError::Invalid(format!("invalid endpoint settings:\n{text}")))?;
    }
    Ok(())
}

/// Names by which others on its networks reach the container.
pub(super) fn names(config: &ContainerConfig, hostname: &str) -> Vec<String> {
    unique([config.name.clone(), config.id.short(), hostname.to_owned()].iter().filter(|name| !name.is_empty()))
}

fn unique<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names.into_iter().filter(|name| seen.insert(name.as_str())).cloned().collect()
}

/// A network by name, id or unique prefix of one.
pub(super) fn find<'a>(networks: &'a [LocalNetwork], reference: &str) -> Option<&'a LocalNetwork> {
    if let Some(exact) = networks.iter().find(|n| n.name == reference || n.id == reference) {
        return Some(exact);
    }
    let mut prefixed = networks.iter().filter(|n| !reference.is_empty() && n.id.starts_with(reference));
    match (prefixed.next(), prefixed.next()) {
        (Some(network), None) => Some(network),
        _ => None,
    }
}

/// What the engine's start takes, for containers that need no sandbox of their own.
pub(super) fn start_with(plan: &Plan) -> Option<StartWith> {
    let network = match plan {
        Plan::Sandbox(_) => return None,
        Plan::Host => NetworkMode::Host,
        Plan::Nothing => NetworkMode::None,
        Plan::Shared(other) => NetworkMode::Container(*other),
        Plan::Given(path) => NetworkMode::Sandbox(path.clone()),
    };
    Some(StartWith { network, ..StartWith::default() })
}

/// Adds what the engine's containers do not know of: networks, ports, and ports that were declared by being published.
pub(super) fn show(mut container: Container, sandboxes: &[Sandbox], networks: &[LocalNetwork]) -> Container {
    for port in &container.config.ports {
        let exposed = (port.protocol, port.container_port);
        if !container.exposed.contains(&exposed) {
            container.exposed.push(exposed);
        }
    }
    let id = sandbox_id(&container.config);
    let sandbox = sandboxes.iter().find(|s| s.id == id).filter(|_| is_live(container.state.status));
    container.ports = sandbox.map(open_ports).unwrap_or_default();
    container.networks = match sandbox {
        Some(sandbox) => endpoints(&container.config, sandbox, networks),
        None => wanted(&container.config, networks),
    };
    container
}

/// The ports of a sandbox. One on every address is shown for each family that leads into it, as Docker does.
fn open_ports(sandbox: &Sandbox) -> Vec<PortBinding> {
    let has_ipv6 = sandbox.links.iter().any(|link| link.addresses.iter().any(|net| net.addr().is_ipv6()));
    let of_both = |port: &PortBinding| {
        let second = has_ipv6 && port.host_ip.is_none();
        let v6 = PortBinding { host_ip: Some(Ipv6Addr::UNSPECIFIED.into()), ..port.clone() };
        [port.clone()].into_iter().chain(second.then_some(v6))
    };
    sandbox.ports.iter().flat_map(of_both).collect()
}

/// The container's places on its networks.
fn endpoints(config: &ContainerConfig, sandbox: &Sandbox, networks: &[LocalNetwork]) -> Vec<EndpointState> {
    let of_link = |link: &super::sandboxes::Link| {
        let (network, network_id, cluster_network) = match &link.to {
            LinkTo::Node => return None,
            LinkTo::Bridge(name) => (name.clone(), find(networks, name).map(|n| n.id.clone())?, None),
            LinkTo::Cluster { id, name } => (name.clone(), id.to_string(), Some(*id)),
        };
        Some(EndpointState {
            aliases: aliases(config, &network, &network_id),
            network,
            network_id,
            cluster_network,
            addresses: link.addresses.clone(),
            gateways: link.gateways.clone(),
            mac: link.mac,
        })
    };
    sandbox.links.iter().filter_map(of_link).collect()
}

fn aliases(config: &ContainerConfig, network: &str, id: &str) -> Vec<String> {
    let NetworkMode::Networks(endpoints) = &config.network else { return Vec::new() };
    let own = endpoints.iter().find(|e| e.network == network || e.network == id);
    own.map(|e| e.aliases.clone()).unwrap_or_default()
}

/// The networks that a container without a sandbox belongs to: no addresses, but it counts as a user of them.
fn wanted(config: &ContainerConfig, networks: &[LocalNetwork]) -> Vec<EndpointState> {
    let names: Vec<&str> = match &config.network {
        NetworkMode::Bridge => vec![BRIDGE],
        NetworkMode::Host => vec![HOST],
        NetworkMode::None => vec![NONE],
        NetworkMode::Container(_) | NetworkMode::Sandbox(_) => Vec::new(),
        NetworkMode::Networks(endpoints) => endpoints.iter().map(|e| e.network.as_str()).collect(),
    };
    let of_network = |n: &LocalNetwork| EndpointState {
        network: n.name.clone(),
        network_id: n.id.clone(),
        cluster_network: None,
        addresses: Vec::new(),
        gateways: Vec::new(),
        mac: [0; 6],
        aliases: aliases(config, &n.name, &n.id),
    };
    // A network of the cluster is known only while the container is on it.
    let of_cluster = |name: &str| EndpointState {
        network: name.to_owned(),
        network_id: String::new(),
        cluster_network: None,
        addresses: Vec::new(),
        gateways: Vec::new(),
        mac: [0; 6],
        aliases: aliases(config, name, ""),
    };
    names.iter().map(|name| find(networks, name).map_or_else(|| of_cluster(name), of_network)).collect()
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
