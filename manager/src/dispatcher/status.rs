//! Statuses on their way into the store: which are accepted, which travel through Raft, and when.
//!
//! States that are usually left at once (accepted, preparing, starting) are kept back for a second: a container start of
//! 20 ms then costs one status, not five.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use skep_proto::model::session::StatusReport;
use skep_proto::model::{NodeId, TaskId, TaskState};
use tokio::time::Instant;

use super::ports::{ClusterView, StatusUpdate};

/// A state that passes by is kept back this long.
pub const LINGER: Duration = Duration::from_secs(1);
/// Statuses of one proposal at most.
pub const BATCH: usize = 500;
/// Statuses gather this long.
pub const GATHER: Duration = Duration::from_millis(20);

/// Why a report is not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// The task is gone, or of another node. A node speaks for its own tasks only.
    NotItsTask,
    /// No agent may report that state.
    NotItsState,
    /// The store has it, or a later one.
    Late,
}

/// Whether a report of `node` is to be proposed.
///
/// # Errors
/// Why not.
pub fn accept(view: &dyn ClusterView, node: NodeId, report: &StatusReport) -> Result<StatusUpdate, Ignored> {
    let task = view.task(report.task).filter(|task| task.node == Some(node)).ok_or(Ignored::NotItsTask)?;
    let state = report.status.state;
    if !(TaskState::Accepted..=TaskState::Rejected).contains(&state) {
        return Err(Ignored::NotItsState);
    }
    let mesh = report.mesh.or(task.mesh);
    if state < task.state || (state == task.state && mesh == task.mesh) || task.state.is_terminal() {
        return Err(Ignored::Late);
    }
    Ok(StatusUpdate { task: report.task, node, status: report.status.clone(), mesh })
}

/// The state is usually left at once.
fn passes_by(state: TaskState) -> bool {
    match state {
        TaskState::Accepted | TaskState::Preparing | TaskState::Starting => true,
        TaskState::New
        | TaskState::Pending
        | TaskState::Assigned
        | TaskState::Ready
        | TaskState::Running
        | TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => false,
    }
}

/// The last status of each task that waits to be proposed: never more than there are tasks.
#[derive(Debug, Default)]
pub struct Gathered {
    ready: BTreeMap<TaskId, StatusUpdate>,
    held: HashMap<TaskId, (StatusUpdate, Instant)>,
}

impl Gathered {
    /// Takes a status in. An earlier state than one that waits is dropped.
    pub fn push(&mut self, update: StatusUpdate, now: Instant) {
        let (task, state) = (update.task, update.status.state);
        if self.ready.get(&task).is_some_and(|waiting| waiting.status.state > state) {
            return;
        }
        if passes_by(state) {
            match self.held.get(&task) {
                Some((waiting, _)) if waiting.status.state >= state => {}
                _ => {
                    self.held.insert(task, (update, now + LINGER));
                }
            }
        } else {
            self.held.remove(&task);
            self.ready.insert(task, update);
        }
    }

    /// Puts back what could not be proposed, unless something later came in.
    pub fn put_back(&mut self, batch: Vec<StatusUpdate>) {
        for update in batch {
            self.ready.entry(update.task).or_insert(update);
        }
    }

    /// Whether something is to be proposed at `now`.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.release(now);
        !self.ready.is_empty()
    }

    /// When a status that is kept back becomes due.
    pub fn next(&self) -> Option<Instant> {
        self.held.values().map(|(_, due)| *due).min()
    }

    /// Takes at most [`BATCH`] statuses.
    pub fn take(&mut self, now: Instant) -> Vec<StatusUpdate> {
        self.release(now);
        let keys: Vec<TaskId> = self.ready.keys().take(BATCH).copied().collect();
        keys.iter().filter_map(|task| self.ready.remove(task)).collect()
    }

    /// Statuses that wait to be proposed.
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    fn release(&mut self, now: Instant) {
        let due: Vec<TaskId> = self.held.iter().filter(|(_, (_, due))| *due <= now).map(|(task, _)| *task).collect();
        for task in due {
            if let Some((update, _)) = self.held.remove(&task) {
                let later = self.ready.get(&task).is_some_and(|w| w.status.state >= update.status.state);
                if !later {
                    self.ready.insert(task, update);
                }
            }
        }
    }
}
