//! Tasks as the API shows them.

use std::collections::BTreeMap;

use super::{network, service};
use crate::docker::time::rfc3339;
use crate::docker::types::{ObjectVersion, task as json};
use crate::ports::control::TaskView;

/// Shows a task.
pub(crate) fn show(view: &TaskView) -> json::Task {
    let task = &view.task;
    let container = view.container.or(view.vitals.container);
    let named = container.is_some() || task.status.exit_code.is_some();
    json::Task {
        id: task.id.to_string(),
        meta: task.meta.into(),
        name: String::new(),
        labels: BTreeMap::new(),
        spec: service::show_task(&task.spec),
        service_id: task.service.map(|id| id.to_string()).unwrap_or_default(),
        // Slots of a job count from 0 for clients, and they walk them from there.
        slot: if view.job_iteration.is_some() { task.slot.saturating_sub(1) } else { task.slot },
        node_id: task.node.map(|id| id.to_string()).unwrap_or_default(),
        status: json::TaskStatus {
            timestamp: rfc3339(task.status.at),
            state: task.status.state.as_str(),
            message: task.status.message.clone(),
            err: task.status.error.clone(),
            container_status: named.then(|| json::ContainerStatus {
                container_id: container.map(|id| id.to_string()).unwrap_or_default(),
                pid: view.vitals.pid,
                exit_code: task.status.exit_code.unwrap_or(0),
            }),
            port_status: json::PortStatus { ports: task.status.host_ports.iter().map(service::show_port).collect() },
        },
        desired_state: view.desired().as_str(),
        job_iteration: view.job_iteration.map(|index| ObjectVersion { index }),
        networks_attachments: task
            .attachments
            .iter()
            .filter_map(|attachment| {
                let network = view.networks.iter().find(|n| n.id == attachment.network)?;
                Some(json::Attachment {
                    network: network::show_inside_task(network),
                    addresses: attachment.addresses.iter().map(ToString::to_string).collect(),
                })
            })
            .collect(),
    }
}
