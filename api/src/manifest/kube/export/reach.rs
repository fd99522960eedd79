//! Services: names, virtual addresses and published ports of the workloads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skep_proto::model::service::{EndpointMode, EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::{Labels, ServiceSpec};

use crate::manifest::kube::extension::{NAME, SELECTED};
use crate::manifest::kube::network::OF_EACH_TASK;
use crate::manifest::kube::service::plain_name;

use super::names::{self, Origin};
use super::{metadata, put};

/// The Services, by namespace and name.
#[derive(Debug, Default)]
pub struct Services {
    services: BTreeMap<(String, String), Service>,
}

#[derive(Debug, Default)]
struct Service {
    /// Its name in the stack, where that is another one.
    stack_name: Option<String>,
    is_headless: bool,
    publishes_unready: bool,
    kind: &'static str,
    ports: Vec<Value>,
    /// Workloads that it selects, as indexes.
    workloads: Vec<usize>,
}

/// What a workload has to say itself of how it is reached.
#[derive(Debug, Default)]
pub struct Own {
    /// The Service that gives its members their names.
    pub governing: Option<String>,
    /// Ports that are published where a task runs.
    pub host_ports: Vec<PortConfig>,
}

impl Services {
    /// Takes the names and ports of a workload, which has an index.
    pub fn take(&mut self, index: usize, origin: &Origin, spec: &ServiceSpec) -> Own {
        let endpoint = spec.endpoint.clone().unwrap_or_default();
        let (host, ingress): (Vec<PortConfig>, Vec<PortConfig>) = endpoint
            .ports
            .iter()
            .filter(|port| port.protocol != Protocol::Sctp)
            .cloned()
            .partition(|port| port.mode == PublishMode::Host);
        // Kubernetes chooses no ports of nodes for pods.
        let host_ports = host.into_iter().filter(|port| port.published.is_some()).collect();
        let mut own = Own { governing: None, host_ports };
        // No Service leads to pods on the node's own network.
        if spec.task.networks.iter().any(|attachment| attachment.target == "host") {
            return own;
        }
        let of_members = format!("{}-{{{{.Task.Ordinal}}}}.", origin.name);
        let mut wanted: Vec<(String, bool)> = Vec::new();
        let attachments = spec.task.networks.iter().map(|attachment| &attachment.aliases);
        // Where there are several namespaces, the second network has the full names alone.
        let attachments: Vec<&Vec<String>> =
            if origin.is_docker { attachments.collect() } else { attachments.take(1).collect() };
        for alias in attachments.into_iter().flatten() {
            if let Some(governing) = alias.strip_prefix(&of_members).filter(|rest| !rest.contains('.')) {
                own.governing = Some(governing.to_owned());
                continue;
            }
            let name = alias.strip_suffix(OF_EACH_TASK).unwrap_or(alias);
            let is_short = origin.is_docker || !name.contains('.');
            if is_short && !name.contains("{{") && !wanted.iter().any(|(known, _)| known == name) {
                wanted.push((name.to_owned(), name.len() < alias.len()));
            }
        }
        let is_dnsrr = endpoint.mode == EndpointMode::DnsRoundRobin;
        if wanted.is_empty() && (is_dnsrr || !ingress.is_empty()) {
            wanted.push((origin.stack_name.clone().unwrap_or_else(|| origin.name.clone()), false));
        }
        let mut addresses = Vec::new();
        for (name, of_each) in wanted {
            let key = (origin.namespace.clone(), self.object(&origin.namespace, &name));
            let service = self.services.entry(key.clone()).or_default();
            service.stack_name = (key.1 != name).then_some(name);
            service.is_headless |= is_dnsrr || of_each;
            service.publishes_unready |= of_each;
            if !service.workloads.contains(&index) {
                service.workloads.push(index);
            }
            if !service.is_headless {
                addresses.push(key);
            }
        }
        self.ports(&addresses, &endpoint, &ingress, origin.is_docker);
        own
    }

    /// The object with this name for containers. Names that Kubernetes does not tell apart (`b` and `_b`) are different objects.
    fn object(&self, namespace: &str, name: &str) -> String {
        let plain = names::object_name(name);
        let is_its = |object: &String| {
            let known = self.services.get(&(namespace.to_owned(), object.clone()));
            known.is_none_or(|service| service.stack_name.as_ref().unwrap_or(object) == name)
        };
        let free = names::numbered(&plain).find(is_its);
        free.unwrap_or(plain)
    }

    /// Gives the ports of a workload to its Services with an address: what is published to the first of them, what an address
    /// leads elsewhere besides to the second, whose type is another.
    fn ports(
        &mut self,
        addresses: &[(String, String)],
        endpoint: &EndpointSpec,
        ingress: &[PortConfig],
        is_docker: bool,
    ) {
        let led = |port: u16, target: u16, protocol: Protocol| {
            port == target
                || is_docker
                || endpoint.redirects.iter().any(|r| (r.port, r.target, r.protocol) == (port, target, protocol))
        };
        let is_balanced =
            |port: &PortConfig| port.published.is_some_and(|published| led(published, port.target, port.protocol));
        let (balanced, mut others): (Vec<&PortConfig>, Vec<&PortConfig>) =
            ingress.iter().partition(|port| is_balanced(port));
        let mut used: BTreeSet<(u16, Protocol)> = BTreeSet::new();
        let mut published = Vec::new();
        for port in &balanced {
            let at = others.iter().position(|other| {
                (other.target, other.protocol, &other.name) == (port.target, port.protocol, &port.name)
            });
            let node_port = at.and_then(|at| others.remove(at).published);
            let number = port.published.unwrap_or(port.target);
            used.insert((number, port.protocol));
            published.push(entry(port, number, node_port, is_docker));
        }
        let mut kind = if balanced.is_empty() { "" } else { "LoadBalancer" };
        if balanced.is_empty() && !others.is_empty() {
            kind = "NodePort";
            for port in others {
                let redirect =
                    endpoint.redirects.iter().find(|r| (r.target, r.protocol) == (port.target, port.protocol));
                let number = redirect.map_or(port.target, |redirect| redirect.port);
                used.insert((number, port.protocol));
                published.push(entry(port, number, port.published, is_docker));
            }
        }
        let rest = endpoint.redirects.iter().filter(|r| !used.contains(&(r.port, r.protocol)));
        let rest: Vec<Value> = rest
            .map(|r| {
                let port = PortConfig {
                    name: String::new(),
                    protocol: r.protocol,
                    target: r.target,
                    published: None,
                    mode: PublishMode::Ingress,
                };
                entry(&port, r.port, None, is_docker)
            })
            .collect();
        if published.is_empty() {
            if let Some(service) = addresses.first().and_then(|key| self.services.get_mut(key)) {
                service.ports.extend(rest);
            }
            return;
        }
        if let Some(service) = addresses.first().and_then(|key| self.services.get_mut(key)) {
            service.kind = kind;
            service.ports.extend(published);
        }
        if let Some(service) = addresses.get(1).and_then(|key| self.services.get_mut(key)) {
            service.ports.extend(rest);
        }
    }

    /// The documents. Labels by which they select are put into the pods of the workloads.
    pub fn documents(&self, workloads: &mut [Value]) -> Vec<Value> {
        let mut documents = Vec::new();
        for ((namespace, name), service) in &self.services {
            let selector = selector(name, &service.workloads, workloads);
            let mut metadata = metadata(namespace, name);
            if let Some(stack_name) = &service.stack_name {
                metadata["annotations"][NAME] = json!(stack_name);
            }
            let mut spec = json!({"selector": selector});
            if service.is_headless {
                spec["clusterIP"] = json!("None");
            }
            if service.publishes_unready {
                spec["publishNotReadyAddresses"] = json!(true);
            }
            put(&mut spec, "type", json!(service.kind));
            put(&mut spec, "ports", json!(service.ports));
            documents.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
        }
        documents
    }
}

fn entry(port: &PortConfig, number: u16, node_port: Option<u16>, is_docker: bool) -> Value {
    let mut entry = json!({"port": number});
    let name =
        if port.name.is_empty() && is_docker { plain_name(port.protocol, port.target) } else { port.name.clone() };
    put(&mut entry, "name", json!(name));
    if port.protocol == Protocol::Udp {
        entry["protocol"] = json!("UDP");
    }
    if number != port.target {
        entry["targetPort"] = json!(port.target);
    }
    put(&mut entry, "nodePort", json!(node_port));
    entry
}

/// The labels that the pods of the workloads share and no others have; where there are none, they get one for it.
fn selector(name: &str, chosen: &[usize], workloads: &mut [Value]) -> Labels {
    let labels: Vec<Labels> = workloads.iter().map(pod_labels).collect();
    let mut of_chosen = chosen.iter().filter_map(|index| labels.get(*index));
    let mut shared = of_chosen.next().cloned().unwrap_or_default();
    for labels in of_chosen {
        shared.retain(|key, value| labels.get(key) == Some(value));
    }
    if let Some(selected) = shared.get(SELECTED) {
        return [(SELECTED.to_owned(), selected.clone())].into();
    }
    let namespace = |index: usize| workloads.get(index).map(|workload| workload["metadata"]["namespace"].clone());
    let is_meant = |(index, labels): (usize, &Labels)| {
        let has_all = shared.iter().all(|(key, value)| labels.get(key) == Some(value));
        let is_here = namespace(index) == chosen.first().and_then(|index| namespace(*index));
        !(has_all && is_here) || chosen.contains(&index)
    };
    if !shared.is_empty() && labels.iter().enumerate().all(is_meant) {
        return shared;
    }
    let own = format!("{SELECTED}/{name}");
    for index in chosen {
        if let Some(workload) = workloads.get_mut(*index) {
            pod_metadata(workload)["labels"][&own] = json!("true");
        }
    }
    [(own, "true".to_owned())].into()
}

/// The metadata of a workload's pods.
fn pod_metadata(workload: &mut Value) -> &mut Value {
    match workload["kind"].as_str() {
        Some("Pod") => &mut workload["metadata"],
        Some("CronJob") => &mut workload["spec"]["jobTemplate"]["spec"]["template"]["metadata"],
        _ => &mut workload["spec"]["template"]["metadata"],
    }
}

fn pod_labels(workload: &Value) -> Labels {
    let metadata = match workload["kind"].as_str() {
        Some("Pod") => &workload["metadata"],
        Some("CronJob") => &workload["spec"]["jobTemplate"]["spec"]["template"]["metadata"],
        _ => &workload["spec"]["template"]["metadata"],
    };
    let pairs = metadata["labels"].as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
