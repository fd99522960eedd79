//! Specs that tasks were made from: each is held once per service and spec version, however many tasks there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::model::service::{PortConfig, Protocol, PublishMode};
use skep_proto::model::{Service, ServiceSpec, TaskSpec};

/// A service's spec as tasks of one version see it.
#[derive(Debug, Clone)]
pub struct SharedSpec {
    /// The service as it was when this spec became current: name, labels, endpoint.
    pub service: Arc<Service>,
    /// What tasks are made from.
    pub task: Arc<TaskSpec>,
    /// CPU reserved by a task, nano-CPUs.
    pub nano_cpus: i64,
    /// Memory reserved by a task, bytes.
    pub memory: i64,
    /// Ports that a task takes on its node.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Tasks made from it that the store still holds.
    pub tasks: u32,
}

impl SharedSpec {
    pub(super) fn of(service: &Arc<Service>) -> Self {
        let reservations = service.spec.task.resources.reservations.as_ref();
        Self {
            task: Arc::new(service.spec.task.clone()),
            nano_cpus: reservations.map_or(0, |r| r.nano_cpus.max(0)),
            memory: reservations.map_or(0, |r| r.memory.max(0)),
            host_ports: host_ports(&service.spec).filter_map(|p| Some((p.protocol, p.published?))).collect(),
            tasks: 0,
            service: service.clone(),
        }
    }

    /// Generic resources reserved by a task, by kind.
    pub fn generic(&self) -> impl Iterator<Item = (&String, &u64)> + '_ {
        self.task.resources.reservations.iter().flat_map(|r: &_| generic(&r.generic))
    }
}

fn generic(map: &BTreeMap<String, u64>) -> impl Iterator<Item = (&String, &u64)> + '_ {
    map.iter().filter(|(_, amount)| **amount > 0)
}

/// The ports of a spec that each task publishes on its own node.
pub fn host_ports(spec: &ServiceSpec) -> impl Iterator<Item = &PortConfig> + '_ {
    spec.endpoint.iter().flat_map(|e| &e.ports).filter(|p| p.mode == PublishMode::Host)
}

/// Tasks made from `old` can serve as tasks made from `new`. A job is executed anew whatever of it changes (Engine API,
/// `JobStatus.JobIteration`).
pub fn same_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    if new.mode.is_job() {
        return old == new;
    }
    old.task == new.task && host_ports(old).eq(host_ports(new))
}
