//! Who uses a network, in the API's shape (moby's `Peers` and `Services`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use skep_proto::model::service::{PortConfig, PublishMode};

use crate::docker::types::network as json;
use crate::ports::usage::{EndpointUsage, NetworkUsage};

/// Adds the nodes that use a network, and when `verbose` its services and their tasks. Containers without a service are
/// listed under the empty name, as dockerd lists them.
pub(crate) fn show_usage(network: &mut json::Network, usage: &NetworkUsage, verbose: bool) {
    let address = |node: &skep_proto::model::Node| node.description.data_path.first().copied().or(node.address);
    network.peers = usage
        .nodes
        .iter()
        .map(|node| json::Peer {
            name: node.description.hostname.clone(),
            ip: address(node).map(|ip| ip.to_string()).unwrap_or_default(),
        })
        .collect();
    if !verbose {
        return;
    }
    let mut services: BTreeMap<String, json::ServiceInfo> = usage
        .services
        .iter()
        .map(|on_it| {
            let vip = on_it.virtual_ips.first().map(|net| net.addr().to_string());
            let service = &on_it.service;
            let info = show_service(vip, &service.endpoint.ports, &on_it.tasks);
            (service.spec.annotations.name.clone(), info)
        })
        .collect();
    if !usage.containers.is_empty() {
        services.insert(String::new(), show_service(None, &[], &usage.containers));
    }
    network.services = services;
}

fn show_service(vip: Option<String>, ports: &[PortConfig], tasks: &[EndpointUsage]) -> json::ServiceInfo {
    let published = ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    json::ServiceInfo {
        // What Go prints of an address that is not there.
        vip: vip.unwrap_or_else(|| "<nil>".into()),
        ports: published.filter_map(|p| Some(format!("Target: {}, Publish: {}", p.target, p.published?))).collect(),
        // The mark of a service in IPVS, which skep does not use.
        local_lb_index: 0,
        tasks: tasks.iter().map(show_task).collect(),
    }
}

fn show_task(task: &EndpointUsage) -> json::NetworkTask {
    let of = |v4: bool| task.addresses.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == v4).map(|ip| ip.to_string());
    let host = task.host.map(|ip| ("Host IP".to_owned(), ip.to_string()));
    let second = of(false).map(|ip| ("Endpoint IPv6".to_owned(), ip));
    json::NetworkTask {
        name: task.name.clone(),
        endpoint_id: task.container.to_string(),
        endpoint_ip: of(true).unwrap_or_default(),
        info: host.into_iter().chain(second).collect(),
    }
}
