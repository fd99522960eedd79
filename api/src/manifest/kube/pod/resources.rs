//! Requests are counted, limits enforced.

use std::collections::BTreeMap;

use skep_proto::model::ContainerSpec;
use skep_proto::model::pod::Role;
use skep_proto::model::task::{Limits, Reservations, Resources};

use crate::manifest::decode::{entries, parsed, unknown_key};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::super::build::Uses;
use super::quantity;

/// What a container asks for, in nano-CPUs and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amount {
    /// CPU.
    pub nano_cpus: i64,
    /// Memory.
    pub memory: i64,
    /// Generic resources by kind.
    pub generic: BTreeMap<String, u64>,
}

/// Of the names of extended resources, the domain of those that have none in the cluster.
pub const PLAIN_DOMAIN: &str = "skep/";

/// The kind of generic resource that an extended resource is: nodes name kinds without a slash.
fn kind_of(name: &str) -> String {
    name.strip_prefix(PLAIN_DOMAIN).unwrap_or(name).replace('/', "-")
}

/// Reads `resources`: requests and limits. What is limited and not requested is requested likewise, unless Docker's rules
/// hold.
pub fn read(node: &Node, is_docker: bool, problems: &mut Problems) -> (Amount, Amount) {
    let (mut requests, mut limits) = (None, Amount::default());
    for field in entries(node, "resources", problems) {
        match field.key.as_str() {
            "requests" => requests = Some(amount(&field.value, "requests", problems)),
            "limits" => limits = amount(&field.value, "limits", problems),
            "claims" => problems.add(field.place, "claims of devices are not supported by skep: use generic resources"),
            _ => unknown_key(field, "resources", &["requests", "limits"], problems),
        }
    }
    let mut requests: Amount = requests.unwrap_or_default();
    // Those cannot be shared: Kubernetes wants them limited, and requests to be the same.
    for (kind, amount) in std::mem::take(&mut limits.generic) {
        if requests.generic.insert(kind.clone(), amount).is_some_and(|requested| requested != amount) {
            problems.add(node.place, format!("the request and the limit of {kind} differ: they cannot"));
        }
    }
    if is_docker {
        return (requests, limits);
    }
    if requests.nano_cpus == 0 {
        requests.nano_cpus = limits.nano_cpus;
    }
    if requests.memory == 0 {
        requests.memory = limits.memory;
    }
    (requests, limits)
}

fn amount(node: &Node, what: &str, problems: &mut Problems) -> Amount {
    let mut amount = Amount::default();
    for field in entries(node, what, problems) {
        let value = &field.value;
        match field.key.as_str() {
            "cpu" => amount.nano_cpus = quantity::read(value, "cpu", problems).map_or(0, quantity::nano),
            "memory" => amount.memory = quantity::read(value, "memory", problems).map_or(0, quantity::units),
            "ephemeral-storage" => {
                problems.warn(field.place, "ephemeral-storage is left out: what a container writes is not limited");
            }
            other if other.starts_with("hugepages-") => {
                problems.add(field.place, format!("the resource {other} is not supported by skep: remove it"));
            }
            // Devices that nodes are said to have.
            other if other.contains('/') => {
                let count = parsed(value, other, "a whole number", problems).unwrap_or(0);
                amount.generic.insert(kind_of(other), count);
            }
            _ => unknown_key(field, what, &["cpu", "memory"], problems),
        }
    }
    if amount.memory != 0 && amount.memory < 4 << 20 {
        problems.add(node.place, "memory is 4Mi at least: no process starts in less");
    }
    if amount.nano_cpus != 0 && amount.nano_cpus < 1_000_000 {
        problems.add(node.place, "cpu is 1m at least");
    }
    amount
}

/// Limits of a container; `None` when there are none.
pub fn limits(amount: &Amount) -> Option<Limits> {
    let limits = Limits { nano_cpus: amount.nano_cpus, memory: amount.memory, pids: 0 };
    (limits != Limits::default()).then_some(limits)
}

/// What a task reserves: its main containers and sidecars together, or its largest init container, whichever is more
/// (kubelet, "resource sharing within containers").
pub fn whole(containers: &[ContainerSpec], uses: &Uses) -> Resources {
    let (mut together, mut largest) = (Amount::default(), Amount::default());
    for (container, request) in containers.iter().zip(&uses.requests) {
        if container.pod.as_ref().is_some_and(|pod| pod.role == Role::Init) {
            largest.nano_cpus = largest.nano_cpus.max(request.nano_cpus);
            largest.memory = largest.memory.max(request.memory);
            for (kind, count) in &request.generic {
                let known = largest.generic.entry(kind.clone()).or_default();
                *known = (*known).max(*count);
            }
        } else {
            together.nano_cpus = together.nano_cpus.saturating_add(request.nano_cpus);
            together.memory = together.memory.saturating_add(request.memory);
            for (kind, count) in &request.generic {
                let known = together.generic.entry(kind.clone()).or_default();
                *known = known.saturating_add(*count);
            }
        }
    }
    let mut generic = together.generic;
    for (kind, count) in largest.generic {
        let known = generic.entry(kind).or_default();
        *known = (*known).max(count);
    }
    let reservations = Reservations {
        nano_cpus: together.nano_cpus.max(largest.nano_cpus),
        memory: together.memory.max(largest.memory),
        generic,
    };
    Resources { limits: None, reservations: (reservations != Reservations::default()).then_some(reservations) }
}
