//! Everything in the files, by kind; nothing of it refers to anything else yet.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::manifest::decode::{entries, items};
use crate::manifest::problem::Problems;
use crate::manifest::stack::FileKind;
use crate::manifest::yaml::Node;

use super::claim::{self, Claim};
use super::data::{self, Data};
use super::meta;
use super::service::{self, Service};
use super::workload::{self, Kind, Workload};

/// The objects of all files.
#[derive(Debug, Default)]
pub struct Objects {
    /// ConfigMaps and Secrets by kind, namespace and name.
    data: BTreeMap<(FileKind, String, String), Data>,
    /// Claims by namespace and name.
    claims: BTreeMap<(String, String), Claim>,
    /// Services in their order.
    pub services: Vec<Service>,
    /// Workloads in their order.
    pub workloads: Vec<Workload>,
}

/// Kinds of which nothing is left here, and what that means.
const LEFT_OUT: [(&str, &str); 12] = [
    ("ServiceAccount", "tasks have no account: there is no API server that they could ask"),
    ("Role", "there is no API server that tasks could ask"),
    ("RoleBinding", "there is no API server that tasks could ask"),
    ("ClusterRole", "there is no API server that tasks could ask"),
    ("ClusterRoleBinding", "there is no API server that tasks could ask"),
    ("PodDisruptionBudget", "update_config and drain decide how many tasks stop at a time"),
    ("PriorityClass", "no task is ended to make room for another"),
    ("StorageClass", "all volumes are folders of a node"),
    ("PersistentVolume", "volumes are made by the node that needs them: use hostPath for an existing path"),
    ("LimitRange", "set resources of the containers"),
    ("ResourceQuota", "nothing limits what a stack uses as a whole"),
    ("IngressClass", "see Ingress"),
];

/// Kinds that would be missed, and what to do instead.
const REFUSED: [(&str, &str); 6] = [
    (
        "Ingress",
        "publish the Service (type: LoadBalancer), or run a proxy such as Traefik, which finds services by their labels",
    ),
    (
        "NetworkPolicy",
        "put what may talk to each other into a stack or namespace of its own: networks are closed to others",
    ),
    ("HorizontalPodAutoscaler", "set replicas, or scale with skep service scale"),
    ("CustomResourceDefinition", "there is no API server that would serve it"),
    ("EndpointSlice", "a Service finds its pods by its selector"),
    ("Endpoints", "a Service finds its pods by its selector"),
];

impl Objects {
    /// Reads one document: an object, or a `List` of them.
    pub fn read(&mut self, node: &Rc<Node>, problems: &mut Problems) {
        self.read_one(node, 0, problems);
    }

    fn read_one(&mut self, node: &Rc<Node>, depth: usize, problems: &mut Problems) {
        let word = |key: &str| node.get(key).and_then(|value| value.as_text()).unwrap_or_default().to_owned();
        let (version, kind) = (word("apiVersion"), word("kind"));
        if kind == "List" && depth == 0 {
            for field in entries(node, "a List", problems).iter().filter(|field| field.key == "items") {
                for item in items(&field.value, "items", problems) {
                    self.read_one(item, depth + 1, problems);
                }
            }
            return;
        }
        let place = node.get("kind").map_or(node.place, |kind| kind.place);
        let metadata = node.get("metadata").map(|node| &**node);
        if let Some(workload) = Kind::of(&kind) {
            self.expect(&version, workload.api_version(), node, problems);
            let meta = meta::read(metadata, place, true, problems);
            self.workloads.extend(workload::read(workload, node, meta, problems));
            return;
        }
        match kind.as_str() {
            "ConfigMap" | "Secret" | "Service" | "PersistentVolumeClaim" | "Namespace" => {
                self.expect(&version, "v1", node, problems);
                let meta = meta::read(metadata, place, true, problems);
                self.read_plain(&kind, node, meta, problems);
            }
            _ => {
                let said =
                    |list: &[(&str, &'static str)]| list.iter().find(|(name, _)| *name == kind).map(|(_, text)| *text);
                if let Some(text) = said(&LEFT_OUT) {
                    problems.warn(place, format!("the {kind} is left out: {text}"));
                } else if let Some(text) = said(&REFUSED) {
                    problems.add(place, format!("{kind} is not supported by skep: {text}"));
                } else {
                    let hint = crate::manifest::decode::nearest(&kind, &KINDS);
                    let hint = hint.map(|kind| format!("; did you mean {kind}?")).unwrap_or_default();
                    problems.add(place, format!("the kind {kind:?} of {version} is not supported by skep{hint}"));
                }
            }
        }
    }

    fn read_plain(&mut self, kind: &str, node: &Rc<Node>, meta: meta::Meta, problems: &mut Problems) {
        let place = meta.place;
        let key = (meta.namespace.clone(), meta.name.clone());
        let is_double = match kind {
            "ConfigMap" | "Secret" => {
                let kind = if kind == "Secret" { FileKind::Secret } else { FileKind::Config };
                let data = data::read(kind, node, meta, problems);
                self.data.insert((kind, key.0.clone(), key.1.clone()), data).is_some()
            }
            "Service" => {
                let is_double =
                    self.services.iter().any(|known| (&known.meta.namespace, &known.meta.name) == (&key.0, &key.1));
                self.services.push(service::read(node, meta, problems));
                is_double
            }
            "PersistentVolumeClaim" => {
                let claim = claim::read(node, meta, problems);
                self.claims.insert(key.clone(), claim).is_some()
            }
            // Objects name their namespace themselves.
            _ => false,
        };
        if is_double {
            problems.add(place, format!("the {kind} {} is declared twice in the namespace {}", key.1, key.0));
        }
    }

    fn expect(&self, version: &str, expected: &str, node: &Node, problems: &mut Problems) {
        if version != expected {
            let place = node.get("apiVersion").map_or(node.place, |node| node.place);
            problems.add(place, format!("the apiVersion of this kind is {expected}, not {version:?}"));
        }
    }

    /// A ConfigMap or Secret.
    pub fn data(&self, kind: FileKind, namespace: &str, name: &str) -> Option<&Data> {
        self.data.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// Whether the claim is declared.
    pub fn has_claim(&self, namespace: &str, name: &str) -> bool {
        self.claims.contains_key(&(namespace.to_owned(), name.to_owned()))
    }

    /// Namespaces that workloads are in.
    pub fn namespaces(&self) -> std::collections::BTreeSet<&str> {
        self.workloads.iter().map(|workload| workload.meta.namespace.as_str()).collect()
    }
}

/// Kinds that are read.
const KINDS: [&str; 13] = [
    "Deployment",
    "ReplicaSet",
    "DaemonSet",
    "StatefulSet",
    "ReplicationController",
    "Pod",
    "Service",
    "ConfigMap",
    "Secret",
    "Namespace",
    "PersistentVolumeClaim",
    "Job",
    "CronJob",
];
