//! The set of assignments, shared: the session changes it, the rest of the agent follows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::model::TaskId;
use skep_proto::model::session::{AssignmentChange, Assignments, ManagerPeer};
use skep_proto::model::view::NetworkView;
use tokio::sync::watch;

use super::held::{Held, RefusedSet};
use super::{LocalState, StateError, Table, Write};
use crate::executor::TaskUnit;
use crate::executor::files::Files;
use crate::reports::Reports;
use crate::task::step::Goal;

/// Why a set of assignments was not taken over. The session it came from must end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] RefusedSet),
    /// It cannot be kept.
    #[error("cannot keep the assignments")]
    State(#[from] StateError),
}

/// The set of assignments.
pub struct Desired {
    held: Mutex<Held>,
    state: LocalState,
    reports: Arc<Reports>,
    revision: watch::Sender<u64>,
    files: Files,
    /// The revision that the node's network is at.
    in_network: watch::Sender<u64>,
}

impl Desired {
    /// The set as it was kept.
    pub fn new(held: Held, state: LocalState, reports: Arc<Reports>, files: Files) -> Self {
        for (id, task) in &held.tasks {
            reports.acknowledge(*id, task.task.observed);
        }
        Self {
            held: Mutex::new(held),
            state,
            reports,
            revision: watch::Sender::new(1),
            files,
            in_network: watch::Sender::new(0),
        }
    }

    /// Takes a set over: on disk first, then in force. Gives its revision.
    ///
    /// # Errors
    /// When it is refused or cannot be kept. In the latter case everything must be asked for again.
    pub async fn apply(&self, set: Assignments) -> Result<u64, ApplyError> {
        let observed: Vec<_> = set
            .changes
            .iter()
            .filter_map(|change| match change {
                AssignmentChange::PutTask(task) => Some((task.id, task.observed)),
                _ => None,
            })
            .collect();
        let mut writes = {
            let mut held = self.held();
            let writes = held.apply(set)?;
            // Not with the other parts below: they wait for the disk, which never sees these.
            self.files.set(Arc::clone(&held.files));
            writes
        };
        writes.extend(observed.into_iter().filter_map(|(task, state)| self.reports.acknowledge(task, state)));
        if let Err(error) = self.state.write(writes).await {
            // The file now lacks what memory holds. A whole set writes it anew.
            self.ask_for_everything();
            return Err(error.into());
        }
        self.revision.send_modify(|revision| *revision += 1);
        let revision = *self.revision.borrow();
        Ok(revision)
    }

    /// The node's network is as [`Self::view`] was at `revision`.
    pub fn applied_to_network(&self, revision: u64) {
        self.in_network.send_if_modified(|now| std::mem::replace(now, revision) != revision);
    }

    /// The revision that the node's network is at.
    pub fn in_network(&self) -> watch::Receiver<u64> {
        self.in_network.subscribe()
    }

    /// A session began.
    pub fn session_began(&self) {
        let writes = self.held().drop_unused_specs();
        self.state.write_later(writes);
        self.reports.session_began();
    }

    /// The node leaves the cluster: every task shall go, and the managers' word counts no more.
    ///
    /// # Errors
    /// When that cannot be written; it holds for this process nevertheless.
    pub async fn abandon(&self) -> Result<(), StateError> {
        let writes = self.held().abandon();
        self.files.set(Arc::default());
        self.revision.send_modify(|revision| *revision += 1);
        self.state.write(writes).await
    }

    /// Resolves when nothing of any task is left.
    pub async fn emptied(&self) {
        let mut revisions = self.revisions();
        while !self.held().tasks.is_empty() {
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps the managers to ask after a restart.
    pub fn keep_managers(&self, managers: &[ManagerPeer]) {
        let puts = managers.iter().map(Write::manager);
        self.state.write_later(std::iter::once(Write::Clear(Table::Managers)).chain(puts).collect());
    }

    /// Nothing of the task is left on the node. `false` when it is wanted again meanwhile.
    ///
    /// # Errors
    /// When that cannot be written; the task is then looked at again after a restart.
    pub async fn forget(&self, task: TaskId) -> Result<bool, StateError> {
        let writes = self.held().forget(task);
        if writes.is_empty() {
            return Ok(false);
        }
        self.reports.forget(task);
        self.revision.send_modify(|revision| *revision += 1);
        self.state.write(writes).await.map(|()| true)
    }

    /// What the next session says it has: the index of the last set, or 0 to ask for everything.
    pub fn resume_index(&self) -> u64 {
        let held = self.held();
        if held.incomplete { 0 } else { held.index }
    }

    /// Asks for everything at the next session.
    pub fn ask_for_everything(&self) {
        self.held().incomplete = true;
    }

    /// The managers have said what this node should have, and nothing of it is missing here.
    pub fn is_complete(&self) -> bool {
        let held = self.held();
        held.index > 0 && !held.incomplete
    }

    /// Changes with every set.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The cluster's network.
    pub fn view(&self) -> Arc<NetworkView> {
        Arc::clone(&self.held().view)
    }

    /// Tasks with what is wanted of them.
    pub fn tasks(&self) -> Vec<(TaskUnit, Goal)> {
        let held = self.held();
        held.tasks
            .values()
            .filter_map(|entry| {
                let spec = Arc::clone(held.specs.get(&entry.task.spec)?);
                let goal = match entry {
                    entry if entry.gone => Goal::Gone,
                    // The managers gave it up: its replacement runs elsewhere.
                    entry if entry.task.observed.is_terminal() => Goal::Shutdown,
                    entry => Goal::of(entry.task.desired),
                };
                Some((TaskUnit { task: entry.task.clone(), spec }, goal))
            })
            .collect()
    }

    /// Whether the task is assigned or still being removed.
    pub fn holds(&self, task: TaskId) -> bool {
        self.held().tasks.contains_key(&task)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while it is held; a set is taken over whole or not at all.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
