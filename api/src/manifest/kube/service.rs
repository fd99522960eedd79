//! `v1` Service: names, a virtual address and published ports of the pods that it selects.

use crate::manifest::decode::{boolean, entries, items, pairs, parsed, text, texts};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::yaml::Node;
use skep_proto::model::service::Protocol;

use super::meta::Meta;
use super::rest::Rest;
use super::selector::Selector;

/// How a Service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By a virtual address.
    Address,
    /// By the addresses of the pods.
    Headless,
    /// By a virtual address, and by a port of every node.
    NodePort,
    /// Likewise; the port of the nodes is the Service's own.
    LoadBalancer,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be empty.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The Service's port.
    pub port: u16,
    /// The pods' port: a number, or the name of one of theirs.
    pub target: TargetPort,
    /// The nodes' port.
    pub node_port: Option<u16>,
    /// Where it is declared.
    pub place: Place,
}

impl ServicePort {
    /// The name is one that says nothing: Kubernetes wants names where a Service has several ports.
    pub fn has_plain_name(&self) -> bool {
        let TargetPort::Number(target) = self.target else { return false };
        [plain_name(Protocol::Tcp, target), plain_name(Protocol::Udp, target)].contains(&self.name)
    }
}

/// The name of a port that has none.
pub fn plain_name(protocol: Protocol, target: u16) -> String {
    let word = match protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp | Protocol::Sctp => "tcp",
    };
    format!("{word}-{target}")
}

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Who it is.
    pub meta: Meta,
    /// How it is reached.
    pub reach: Reach,
    /// The pods.
    pub selector: Selector,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Names of pods hold before they are ready.
    pub publishes_unready: bool,
    /// It is reached by IPv6 beside IPv4.
    pub ipv6: bool,
}

const REST: Rest<'_> = Rest {
    what: "a Service",
    known: &["type", "selector", "ports", "clusterIP", "publishNotReadyAddresses", "ipFamilies", "ipFamilyPolicy"],
    refused: &[
        ("externalIPs", "published ports are open on every node: use type LoadBalancer or NodePort"),
        ("externalName", "use the outside name itself, or hostAliases of the pods"),
        ("loadBalancerIP", "published ports are open on every node"),
        ("loadBalancerSourceRanges", "filter at the nodes' firewall"),
    ],
    left_out: &[
        ("sessionAffinity", "connections are spread over all pods"),
        ("sessionAffinityConfig", "connections are spread over all pods"),
        ("externalTrafficPolicy", "every node takes connections, and pods see the client's address either way"),
        ("internalTrafficPolicy", "connections are spread over the pods of all nodes"),
        ("trafficDistribution", "connections are spread over the pods of all nodes"),
        ("loadBalancerClass", "published ports are open on every node"),
        ("allocateLoadBalancerNodePorts", "published ports are open on every node"),
        ("healthCheckNodePort", "every node takes connections"),
    ],
};

/// Reads the object.
pub fn read(node: &Node, meta: Meta, problems: &mut Problems) -> Service {
    let mut service = Service {
        reach: Reach::Address,
        selector: Selector::default(),
        ports: Vec::new(),
        publishes_unready: false,
        ipv6: false,
        meta,
    };
    let Some(spec) = node.get("spec") else {
        problems.add(service.meta.place, "the Service has no spec");
        return service;
    };
    let (mut headless, mut kind) = (false, "ClusterIP".to_owned());
    for field in entries(spec, "a Service", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "type" => kind = text(value, "type", problems),
            "selector" => service.selector = Selector::of_labels(pairs(value, "selector", problems)),
            "ports" => {
                let list = items(value, "ports", problems);
                service.ports = list.iter().filter_map(|item| port(item, problems)).collect();
            }
            "clusterIP" | "clusterIPs" => {
                let addresses = texts(value, "clusterIP", problems);
                headless |= addresses.iter().any(|address| address == "None");
                if addresses.iter().any(|address| !address.is_empty() && address != "None") {
                    problems.warn(value.place, "the cluster chooses virtual addresses: this one is left out");
                }
            }
            "publishNotReadyAddresses" => {
                service.publishes_unready = boolean(value, "publishNotReadyAddresses", problems);
            }
            "ipFamilies" => {
                let families = texts(value, "ipFamilies", problems);
                service.ipv6 |= families.iter().any(|family| family == "IPv6");
                if service.ipv6 && !families.iter().any(|family| family == "IPv4") {
                    problems.warn(value.place, "every Service is reached by IPv4: this one has IPv6 beside it");
                }
                if let Some(other) = families.iter().find(|f| !matches!(f.as_str(), "IPv4" | "IPv6")) {
                    problems.add(value.place, format!("a family is IPv4 or IPv6, not {other:?}"));
                }
            }
            "ipFamilyPolicy" => match text(value, "ipFamilyPolicy", problems).as_str() {
                "SingleStack" => {}
                "PreferDualStack" | "RequireDualStack" => service.ipv6 = true,
                other => {
                    let known = "SingleStack, PreferDualStack or RequireDualStack";
                    problems.add(value.place, format!("ipFamilyPolicy is {known}, not {other:?}"));
                }
            },
            _ => REST.take(field, problems),
        }
    }
    service.reach = match kind.as_str() {
        "ClusterIP" if headless => Reach::Headless,
        "ClusterIP" => Reach::Address,
        "NodePort" => Reach::NodePort,
        "LoadBalancer" => Reach::LoadBalancer,
        "ExternalName" => {
            let text = "a Service of type ExternalName is not supported by skep: use the outside name itself";
            problems.add(service.meta.place, text);
            Reach::Address
        }
        other => {
            let text = format!("a Service's type is ClusterIP, NodePort or LoadBalancer, not {other:?}");
            problems.add(service.meta.place, text);
            Reach::Address
        }
    };
    if service.selector.0.is_empty() && problems.count() == 0 {
        let text = "a Service without a selector leads to nobody: its endpoints cannot be given by hand";
        problems.add(service.meta.place, text);
    }
    service
}

const PORT_REST: Rest<'_> = Rest {
    what: "a port of a Service",
    known: &["name", "protocol", "port", "targetPort", "nodePort"],
    refused: &[],
    left_out: &[],
};

fn port(node: &Node, problems: &mut Problems) -> Option<ServicePort> {
    let (mut number, mut target, mut node_port) = (None, None, None);
    let (mut name, mut protocol) = (String::new(), Protocol::Tcp);
    for field in entries(node, "a port of a Service", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "name" => name = text(value, "name", problems),
            "protocol" => protocol = super::pod::protocol(value, problems),
            "port" => number = port_number(value, "port", problems),
            "targetPort" => target = read_target(value, problems),
            "nodePort" => node_port = port_number(value, "nodePort", problems),
            // A hint for proxies that look into connections; none does.
            "appProtocol" => {}
            _ => PORT_REST.take(field, problems),
        }
    }
    let Some(port) = number else {
        problems.add(node.place, "a port of a Service needs a port from 1 to 65535");
        return None;
    };
    Some(ServicePort {
        name,
        protocol,
        port,
        target: target.unwrap_or(TargetPort::Number(port)),
        node_port,
        place: node.place,
    })
}

/// A number or a name.
pub fn read_target(node: &Node, problems: &mut Problems) -> Option<TargetPort> {
    let written = text(node, "a port", problems);
    match written.parse::<u32>() {
        Ok(_) => port_number(node, "a port", problems).map(TargetPort::Number),
        Err(_) if !written.is_empty() => Some(TargetPort::Name(written)),
        Err(_) => None,
    }
}

/// From 1 to 65535.
pub fn port_number(node: &Node, what: &str, problems: &mut Problems) -> Option<u16> {
    let number: u16 = parsed(node, what, "a port from 1 to 65535", problems)?;
    if number == 0 {
        problems.add(node.place, format!("{what} is a port from 1 to 65535, not 0"));
        return None;
    }
    Some(number)
}
