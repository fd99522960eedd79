//! Tasks that run and want no new connections, as their nodes say it: what a readiness probe shows.
//!
//! It is volatile and never enters Raft. A new leader takes every running task for ready until its node tells otherwise,
//! which it does as soon as its session begins.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_proto::model::TaskId;

/// Tasks that want no new connections.
#[derive(Debug, Default)]
pub struct Unready(Mutex<HashSet<TaskId>>);

impl Unready {
    /// Takes in what the task's node says. Whether that is news.
    pub fn set(&self, task: TaskId, unready: bool) -> bool {
        if unready { self.tasks().insert(task) } else { self.tasks().remove(&task) }
    }

    /// Whether the task wants no new connections.
    pub fn has(&self, task: TaskId) -> bool {
        self.tasks().contains(&task)
    }

    /// Forgets tasks that are gone.
    pub fn forget(&self, gone: &[TaskId]) {
        let mut tasks = self.tasks();
        gone.iter().for_each(|task| {
            tasks.remove(task);
        });
    }

    fn tasks(&self) -> MutexGuard<'_, HashSet<TaskId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
