//! All tasks of the node: one worker each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::session::StatusReport;
use skep_proto::model::{TaskId, TaskStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::step::Goal;
use super::worker::{Deps, Worker};
use crate::executor::TaskUnit;
use crate::state::desired::Desired;

/// Pause before a worker that died of a bug is replaced.
const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// All tasks of the node.
pub struct Tasks {
    deps: Arc<Deps>,
    desired: Arc<Desired>,
    workers: BTreeMap<TaskId, watch::Sender<Goal>>,
    running: JoinSet<()>,
    names: HashMap<tokio::task::Id, TaskId>,
    /// What an earlier process reported last; taken by the first worker of each task.
    recorded: BTreeMap<TaskId, TaskStatus>,
}

impl Tasks {
    /// The tasks of `desired`; `recorded` is what an earlier process reported of them and the managers may not have.
    pub fn new(deps: Arc<Deps>, desired: Arc<Desired>, recorded: impl IntoIterator<Item = StatusReport>) -> Self {
        let recorded = recorded.into_iter().map(|report| (report.task, report.status)).collect();
        Self { deps, desired, workers: BTreeMap::new(), running: JoinSet::new(), names: HashMap::new(), recorded }
    }

    /// Follows the assignments until `cancel`. Workers end with it, containers do not.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut revisions = self.desired.revisions();
        self.reconcile();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = revisions.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.reconcile();
                }
                Some(ended) = self.running.join_next_with_id() => {
                    let (id, crashed) = match ended {
                        Ok((id, ())) => (id, false),
                        Err(error) => (error.id(), true),
                    };
                    self.ended(id, crashed).await;
                }
            }
        }
        self.running.shutdown().await;
    }

    fn reconcile(&mut self) {
        for (unit, goal) in self.desired.tasks() {
            match self.workers.get(&unit.task.id) {
                Some(worker) => {
                    worker.send_if_modified(|now| std::mem::replace(now, goal) != goal);
                }
                None => self.spawn(unit, goal),
            }
        }
    }

    fn spawn(&mut self, unit: TaskUnit, goal: Goal) {
        let id = unit.task.id;
        let (sender, receiver) = watch::channel(goal);
        let worker = Worker::new(Arc::clone(&self.deps), unit, receiver, self.recorded.remove(&id));
        let handle = self.running.spawn(worker.run());
        self.names.insert(handle.id(), id);
        self.workers.insert(id, sender);
    }

    /// A worker has ended: nothing of its task is left, or it crashed.
    async fn ended(&mut self, id: tokio::task::Id, crashed: bool) {
        let Some(task) = self.names.remove(&id) else { return };
        self.workers.remove(&task);
        if crashed {
            error!(task.id = %task, "the worker of a task has crashed; another one goes on");
            self.recorded.extend(self.deps.reports.last(task).map(|report| (task, report.status)));
            tokio::time::sleep(REPLACE_AFTER).await;
        } else if let Err(error) = self.desired.forget(task).await {
            warn!(task.id = %task, error = %crate::chain(&error), "cannot forget a task; it is looked at again after a restart");
        }
        self.reconcile();
    }
}
