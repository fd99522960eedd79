//! Networks: requests, and the cluster's and the node's networks in the API's one shape.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use skep_proto::model::annotations::Annotations;
use skep_proto::model::container::Driver;
use skep_proto::model::engine::{Container, LocalNetwork};
use skep_proto::model::network::{IpamConfig, Network, NetworkSpec, Subnet};
use skep_proto::model::{Meta, NetworkId, Timestamp, addressing};

mod usage;

pub(crate) use usage::show_usage;

use super::{refuse, validate};
use crate::docker::error::ApiError;
use crate::docker::time::rfc3339;
use crate::docker::types::network as json;
use crate::docker::types::service as json_service;

/// Docker's name for the option that carries the VXLAN network identifier.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// Name and id of the routing mesh that every cluster has from the beginning.
pub(crate) const INGRESS: &str = "ingress";

/// A network that is to be made.
#[derive(Debug)]
pub(crate) enum NewNetwork {
    /// In the cluster.
    Cluster(NetworkSpec),
    /// On this node.
    Local(LocalNetwork),
}

/// Reads a request.
///
/// # Errors
/// 400 for what makes no sense, 501 for drivers and options that are not built.
pub(crate) fn read(request: json::NetworkCreate) -> Result<NewNetwork, ApiError> {
    refuse("NetworkCreate", &request.rest)?;
    if request.config_only || request.config_from.is_some_and(|c| !c.network.is_empty()) {
        return Err(ApiError::not_supported("a configuration-only network"));
    }
    if request.enable_ipv4 == Some(false) {
        return Err(ApiError::not_supported("a network without IPv4"));
    }
    let ipam = request.ipam.unwrap_or_default();
    if !["", "default"].contains(&ipam.driver.as_str()) {
        return Err(ApiError::not_supported(format!("the IPAM driver {}", ipam.driver)));
    }
    let configs = ipam.config.into_iter().map(read_ipam).collect::<Result<Vec<_>, _>>()?;
    // Clients send an entry without any content for "whatever is free".
    let configs: Vec<IpamConfig> = configs.into_iter().filter(|config| *config != IpamConfig::default()).collect();
    let ipv6 = request.enable_ipv6.unwrap_or(false);
    if let Some(text) = addressing::contradiction(ipv6, &configs) {
        return Err(ApiError::bad_request(text));
    }
    match request.driver.as_str() {
        "overlay" => {
            validate::dns_name("network", &request.name)?;
            if !["", "swarm", "global"].contains(&request.scope.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "an overlay network has scope swarm, not {}",
                    request.scope
                )));
            }
            Ok(NewNetwork::Cluster(NetworkSpec {
                annotations: Annotations { name: request.name, labels: request.labels },
                driver: Driver { name: request.driver, options: request.options },
                ipv6,
                internal: request.internal,
                ingress: request.ingress,
                attachable: request.attachable,
                ipam: configs,
                ipam_options: ipam.options.unwrap_or_default(),
            }))
        }
        "" | "bridge" => {
            if !["", "local"].contains(&request.scope.as_str()) {
                return Err(ApiError::not_supported(format!("a bridge network with scope {}", request.scope)));
            }
            if request.name.is_empty() {
                return Err(ApiError::bad_request("network name cannot be empty"));
            }
            Ok(NewNetwork::Local(LocalNetwork {
                name: request.name,
                driver: "bridge".into(),
                subnets: configs.iter().map(subnet).collect::<Result<_, _>>()?,
                ipv6,
                internal: request.internal,
                labels: request.labels,
                options: request.options,
                ..LocalNetwork::default()
            }))
        }
        driver => Err(ApiError::not_supported(format!("the network driver {driver}"))),
    }
}

fn read_ipam(config: json::IpamConfig) -> Result<IpamConfig, ApiError> {
    fn parsed<T: std::str::FromStr>(what: &str, text: &str) -> Result<Option<T>, ApiError> {
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("invalid {what} {text}")))
    }
    let subnet: Option<IpNet> = parsed("subnet", &config.subnet)?;
    let gateway: Option<IpAddr> = parsed("gateway address", &config.gateway)?;
    Ok(IpamConfig {
        subnet: subnet.map(|s| s.trunc()),
        range: parsed("ip-range", &config.ip_range)?,
        gateway,
        reserved: config
            .auxiliary_addresses
            .into_iter()
            .map(|(name, address)| {
                let parsed = parsed("auxiliary address", &address)?;
                parsed.map(|a| (name, a)).ok_or_else(|| ApiError::bad_request("invalid auxiliary address"))
            })
            .collect::<Result<_, _>>()?,
    })
}

/// A subnet of a network of this node: its gateway is the first address when none was named.
fn subnet(config: &IpamConfig) -> Result<Subnet, ApiError> {
    let subnet = config.subnet.ok_or_else(|| ApiError::not_supported("an IPAM configuration without a subnet"))?;
    if !config.reserved.is_empty() {
        return Err(ApiError::not_supported("auxiliary addresses on a bridge network"));
    }
    let gateway = config
        .gateway
        .or_else(|| addressing::first_host(subnet))
        .ok_or_else(|| ApiError::bad_request(format!("subnet {subnet} has no room for a gateway")))?;
    Ok(Subnet { subnet, range: config.range, gateway })
}

fn none_if_empty(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}

/// Subnets in use, with the addresses kept for others of what was asked for.
fn show_subnets(subnets: &[Subnet], asked: &[IpamConfig]) -> Vec<json::IpamConfig> {
    let kept = |subnet: IpNet| asked.iter().filter(move |c| c.subnet == Some(subnet)).flat_map(|c| &c.reserved);
    subnets
        .iter()
        .map(|s| json::IpamConfig {
            subnet: s.subnet.to_string(),
            ip_range: s.range.map(|r| r.to_string()).unwrap_or_default(),
            gateway: s.gateway.to_string(),
            auxiliary_addresses: kept(s.subnet).map(|(name, address)| (name.clone(), address.to_string())).collect(),
        })
        .collect()
}

/// Options as given, and the network's identifier once it has one.
fn driver_state(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.spec.driver.options.clone();
    if let Some(vni) = network.vni {
        options.insert(VNI_OPTION.into(), vni.to_string());
    }
    options
}

/// The cluster's networks have a driver even when their spec names none (the routing mesh's).
fn driver_name(spec: &NetworkSpec) -> String {
    if spec.driver.name.is_empty() { "overlay".into() } else { spec.driver.name.clone() }
}

/// Shows a network of the cluster. `containers` are this node's on it.
pub(crate) fn show_cluster(network: &Network, containers: &[&Container]) -> json::Network {
    let spec = &network.spec;
    let id = network.id.to_string();
    json::Network {
        name: spec.annotations.name.clone(),
        created: rfc3339(network.meta.created_at),
        scope: "swarm",
        driver: driver_name(spec),
        enable_ipv4: None,
        enable_ipv6: spec.ipv6,
        ipam: json::Ipam {
            driver: "default".into(),
            options: none_if_empty(&spec.ipam_options),
            config: show_subnets(&network.subnets, &spec.ipam),
        },
        internal: spec.internal,
        attachable: spec.attachable,
        ingress: spec.ingress,
        config_from: json::ConfigFrom::default(),
        config_only: false,
        containers: Some(endpoints(&id, containers)).filter(|map| !map.is_empty()),
        options: none_if_empty(&driver_state(network)),
        labels: none_if_empty(&spec.annotations.labels),
        peers: Vec::new(),
        services: BTreeMap::new(),
        id,
    }
}

/// Shows a network of this node with its containers.
pub(crate) fn show_local(network: &LocalNetwork, containers: &[&Container]) -> json::Network {
    json::Network {
        name: network.name.clone(),
        id: network.id.clone(),
        created: rfc3339(network.created_at),
        scope: "local",
        driver: network.driver.clone(),
        enable_ipv4: None,
        enable_ipv6: network.ipv6,
        ipam: json::Ipam {
            driver: "default".into(),
            options: Some(BTreeMap::new()),
            config: show_subnets(&network.subnets, &[]),
        },
        internal: network.internal,
        attachable: false,
        ingress: false,
        config_from: json::ConfigFrom::default(),
        config_only: false,
        containers: Some(endpoints(&network.id, containers)),
        options: Some(network.options.clone()),
        labels: Some(network.labels.clone()),
        peers: Vec::new(),
        services: BTreeMap::new(),
    }
}

/// The routing mesh that every cluster has from the beginning, as Docker shows it. `subnets` are those of its links on this
/// node.
pub(crate) fn show_ingress(created: Timestamp, subnets: &[IpNet]) -> json::Network {
    let driver = Driver { name: "overlay".into(), options: BTreeMap::new() };
    let annotations = Annotations { name: INGRESS.into(), labels: BTreeMap::new() };
    let spec = NetworkSpec { annotations, driver, ingress: true, ..NetworkSpec::default() };
    let meta = Meta { created_at: created, ..Meta::default() };
    let network = Network { id: NetworkId(0), meta, spec, vni: None, subnets: Vec::new(), pending_delete: false };
    with_mesh_subnets(json::Network { id: INGRESS.into(), ..show_cluster(&network, &[]) }, subnets)
}

/// The routing mesh with the subnets of its links on this node; there is no gateway for all.
pub(crate) fn with_mesh_subnets(mut shown: json::Network, subnets: &[IpNet]) -> json::Network {
    let config = |subnet: &IpNet| json::IpamConfig { subnet: subnet.to_string(), ..json::IpamConfig::default() };
    shown.ipam.config = subnets.iter().map(config).collect();
    shown.enable_ipv6 = subnets.iter().any(|subnet| matches!(subnet, IpNet::V6(_)));
    shown
}

/// A network that every node has (`host`, `bridge`, `none`), as a service may name it: its name is its id.
pub(crate) fn show_predefined(name: &str) -> json::Network {
    let driver = if name == "none" { "null" } else { name };
    let network = LocalNetwork { id: name.into(), name: name.into(), driver: driver.into(), ..LocalNetwork::default() };
    json::Network { scope: "swarm", containers: None, ..show_local(&network, &[]) }
}

fn endpoints(network: &str, containers: &[&Container]) -> BTreeMap<String, json::EndpointResource> {
    containers
        .iter()
        .filter_map(|container| {
            let endpoint = container.networks.iter().find(|e| e.network_id == network)?;
            let address = |v4: bool| {
                endpoint
                    .addresses
                    .iter()
                    .find(|a| a.addr().is_ipv4() == v4)
                    .map(ToString::to_string)
                    .unwrap_or_default()
            };
            let resource = json::EndpointResource {
                name: container.config.name.clone(),
                endpoint_id: String::new(),
                mac_address: super::container_view::mac(endpoint.mac),
                ipv4_address: address(true),
                ipv6_address: address(false),
            };
            Some((container.config.id.to_string(), resource))
        })
        .collect()
}

/// Shows a network as part of a task's attachments.
pub(crate) fn show_inside_task(network: &Network) -> json::ClusterNetwork {
    let spec = &network.spec;
    let driver = |name: &str, options: &BTreeMap<String, String>| json_service::Driver {
        name: name.to_owned(),
        options: options.clone(),
    };
    json::ClusterNetwork {
        id: network.id.to_string(),
        meta: network.meta.into(),
        spec: json::ClusterNetworkSpec {
            name: spec.annotations.name.clone(),
            labels: spec.annotations.labels.clone(),
            driver_configuration: driver(&spec.driver.name, &spec.driver.options),
            ipv6_enabled: spec.ipv6,
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            ipam_options: (!spec.ipam.is_empty()).then(|| json::IpamOptions {
                driver: driver("default", &spec.ipam_options),
                configs: spec
                    .ipam
                    .iter()
                    .map(|c| json::IpamConfig {
                        subnet: c.subnet.map(|s| s.to_string()).unwrap_or_default(),
                        ip_range: c.range.map(|r| r.to_string()).unwrap_or_default(),
                        gateway: c.gateway.map(|g| g.to_string()).unwrap_or_default(),
                        auxiliary_addresses: c.reserved.iter().map(|(n, a)| (n.clone(), a.to_string())).collect(),
                    })
                    .collect(),
            }),
            scope: "swarm",
        },
        driver_state: driver(&driver_name(spec), &driver_state(network)),
        ipam_options: Some(json::IpamOptions {
            driver: driver("default", &BTreeMap::new()),
            configs: show_subnets(&network.subnets, &spec.ipam),
        }),
    }
}

#[cfg(test)]
mod tests;
