//! What a service waits for: its tasks are made and prepared at once, and start when the conditions hold.
//!
//! The conditions are in a label ([`dependency::LABEL`]), so they hold whoever made the service, and at every start of a task:
//! after a failure and after an outage of all nodes too, not only when the service is made. What runs is never stopped
//! because a condition holds no longer.

use std::collections::BTreeSet;

use skep_proto::model::dependency::{self, Condition};
use skep_proto::model::service::UpdateState;
use skep_proto::model::{Service, ServiceMode, TaskState};

use crate::store::{State, TaskRow};

/// Whether the tasks of a service must not start yet.
pub fn waits(state: &State, service: &Service) -> bool {
    // A label that cannot be read was refused when the service was made.
    let dependencies = dependency::read(&service.spec.annotations.labels).unwrap_or_default();
    dependencies.iter().any(|dependency| {
        let found = state.services().named(&dependency.service).filter(|s| !s.pending_delete);
        match found {
            Some(other) => !holds(state, other, dependency.condition),
            None => dependency.is_required,
        }
    })
}

fn holds(state: &State, service: &Service, condition: Condition) -> bool {
    let Some(reference) = state.services().reference(service.id) else { return false };
    // While an update is stopped, what it has left is all that will run.
    let is_stopped = service
        .update_status
        .as_ref()
        .is_some_and(|status| matches!(status.state, UpdateState::Paused | UpdateState::RollbackPaused));
    let in_force = |row: &TaskRow| row.spec_version == service.iteration();
    let mut rows = state.rows_of_service(reference).map(|(_, row)| row);
    match condition {
        // A task with a health check runs once it is healthy; a job that has completed was started.
        Condition::Started | Condition::Healthy => rows.any(|row| {
            let is_up = row.state == TaskState::Running && row.desired <= TaskState::Running;
            (is_up && (is_stopped || in_force(row))) || (in_force(row) && row.has_completed())
        }),
        Condition::CompletedSuccessfully => {
            let rows: Vec<&TaskRow> = rows.filter(|row| in_force(row)).collect();
            let done: BTreeSet<u32> = rows.iter().filter(|row| row.has_completed()).map(|row| row.place()).collect();
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => replicas,
                ServiceMode::ReplicatedJob { total_completions, .. } => total_completions,
                // As many as there are, at least one.
                ServiceMode::Global | ServiceMode::GlobalJob => {
                    let places: BTreeSet<u32> =
                        rows.iter().filter(|row| row.is_live()).map(|row| row.place()).collect();
                    if places.is_subset(&done) { 1 } else { u64::MAX }
                }
            };
            u64::try_from(done.len()).is_ok_and(|count| count >= wanted)
        }
    }
}
