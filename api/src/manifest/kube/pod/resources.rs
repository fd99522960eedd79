//! Requests are counted, limits enforced.

use skep_proto::model::ContainerSpec;
use skep_proto::model::pod::Role;
use skep_proto::model::task::{Limits, Reservations, Resources};

use crate::manifest::decode::{entries, unknown_key};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::super::build::Uses;
use super::quantity;

/// What a container asks for, in nano-CPUs and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// CPU.
    pub nano_cpus: i64,
    /// Memory.
    pub memory: i64,
}

/// Reads `resources`: requests and limits. What is limited and not requested is requested likewise.
pub fn read(node: &Node, problems: &mut Problems) -> (Amount, Amount) {
    let (mut requests, mut limits) = (None, Amount::default());
    for field in entries(node, "resources", problems) {
        match field.key.as_str() {
            "requests" => requests = Some(amount(&field.value, "requests", problems)),
            "limits" => limits = amount(&field.value, "limits", problems),
            "claims" => problems.add(field.place, "claims of devices are not supported by skep: use generic resources"),
            _ => unknown_key(field, "resources", &["requests", "limits"], problems),
        }
    }
    let mut requests = requests.unwrap_or_default();
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
            other if other.contains('/') || other.starts_with("hugepages-") => {
                let text =
                    "not supported by skep: give the nodes a generic resource and use Compose's generic_resources";
                problems.add(field.place, format!("the resource {other} is {text}"));
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
pub fn limits(amount: Amount) -> Option<Limits> {
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
        } else {
            together.nano_cpus = together.nano_cpus.saturating_add(request.nano_cpus);
            together.memory = together.memory.saturating_add(request.memory);
        }
    }
    let reservations = Reservations {
        nano_cpus: together.nano_cpus.max(largest.nano_cpus),
        memory: together.memory.max(largest.memory),
        ..Reservations::default()
    };
    Resources { limits: None, reservations: (reservations != Reservations::default()).then_some(reservations) }
}
