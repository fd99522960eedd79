//! Containers of tasks, wherever they run.

use skep_api::ports::control::{ContainerLocation, ControlError};
use skep_proto::model::{ContainerId, Task, TaskId};

use super::Control;
use super::tasks::task_name;

/// Digits of a container id that a prefix needs at least: shorter ones would make every name that happens to be
/// hexadecimal cost a walk over all tasks.
const SHORTEST_PREFIX: usize = 4;

impl Control {
    pub(super) async fn find_container(&self, reference: &str) -> Result<Option<ContainerLocation>, ControlError> {
        let state = self.read().await?;
        let reference = reference.strip_prefix('/').unwrap_or(reference);
        // A container's name ends with its task's id.
        if let Some(id) = reference.rsplit('.').next().and_then(|id| id.parse::<TaskId>().ok()) {
            return Ok(state
                .task(id)
                .filter(|task| task_name(task) == reference || reference == task.id.to_string())
                .and_then(location));
        }
        let is_hex = reference.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        if !is_hex || reference.len() < SHORTEST_PREFIX || reference.len() > 64 {
            return Ok(None);
        }
        let mut matches = state
            .tasks()
            .filter(|task| ContainerId::of_task(task.id, 0).to_string().starts_with(reference))
            .filter_map(location);
        let Some(first) = matches.next() else { return Ok(None) };
        match matches.count() {
            0 => Ok(Some(first)),
            others => {
                Err(ControlError::Ambiguous { kind: "container", reference: reference.to_owned(), matches: others + 1 })
            }
        }
    }
}

fn location(task: Task) -> Option<ContainerLocation> {
    Some(ContainerLocation { container: ContainerId::of_task(task.id, 0), node: task.node? })
}
