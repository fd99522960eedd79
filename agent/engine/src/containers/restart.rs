//! Restart policies of plain containers. Tasks have none: the orchestrator replaces them, the agent starts sidecars again.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::ContainerId;
use skep_proto::model::engine::{ContainerRestart, ContainerStatus};

use super::Containers;
use super::entry::Entry;
use super::record::Record;

/// Docker's first pause; it doubles with each failure.
const FIRST: Duration = Duration::from_millis(100);
/// Docker's longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A run of that length counts as success: the pause starts anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// A restart that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The pause before it.
    pub delay: Duration,
    /// Short runs in a row, this one included.
    pub failures: u32,
}

/// What follows a run that took `ran` and ended with `code`.
pub fn decide(record: &Record, code: i32, ran: Duration, failures: u32) -> Option<Next> {
    if record.stopped_by_hand {
        return None;
    }
    let again = match record.config.restart {
        ContainerRestart::No => false,
        ContainerRestart::Always | ContainerRestart::UnlessStopped => true,
        ContainerRestart::OnFailure(limit) => code != 0 && (limit == 0 || record.restart_count < limit),
    };
    let failures = if ran >= HEALTHY { 1 } else { failures.saturating_add(1) };
    let delay = FIRST.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(LONGEST);
    again.then_some(Next { delay, failures })
}

impl Containers {
    /// Containers that their policy wants to run after the daemon's start and that do not. The caller starts them, as
    /// only it can make their networks anew.
    pub fn wanting_start(&self) -> Vec<ContainerId> {
        let wants = |entry: &Arc<Entry>| {
            let record = entry.record();
            let policy = match record.config.restart {
                ContainerRestart::No => false,
                ContainerRestart::Always => true,
                ContainerRestart::UnlessStopped => !record.stopped_by_hand,
                ContainerRestart::OnFailure(_) => {
                    !record.stopped_by_hand && record.state.exit_code != 0 && record.state.finished_at.is_some()
                }
            };
            // One that was made but never started stays so.
            policy && record.state.pid == 0 && record.state.started_at.is_some()
        };
        self.entries().iter().filter(|e| wants(e)).map(|e| e.id).collect()
    }

    pub(super) fn restart_later(&self, entry: Arc<Entry>, delay: Duration) {
        let containers = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let mut turn = entry.turn.lock().await;
            if turn.removed || entry.state().status != ContainerStatus::Restarting {
                return;
            }
            let with = turn.with.clone();
            entry.update(|r| r.restart_count += 1);
            if let Err(error) = containers.start_in_turn(&entry, &mut turn, with).await {
                tracing::warn!(container.id = %entry.id, %error, "restarting a container");
            }
        });
    }

    /// A container between two runs is stopped by taking its restart away.
    pub(super) async fn stop_restarting(&self, entry: &Entry) {
        let _turn = entry.turn.lock().await;
        if entry.state().status == ContainerStatus::Restarting {
            entry.update(|r| r.state.status = ContainerStatus::Exited);
            entry.progress.send_modify(|p| p.restarting = false);
        }
    }
}

#[cfg(test)]
#[path = "restart_tests.rs"]
mod tests;
