//! Containers of a task that are started again in place, while the task goes on ([`super::pod::again`]).
//!
//! Pauses are this process's: a daemon that starts begins them anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_proto::model::ContainerId;
use tokio::time::Instant;
use tracing::{info, warn};

use super::run::restart_condition;
use super::{NodeExecutor, pod};
use crate::executor::{Executor, ExecutorError, TaskUnit};

/// The pauses of containers that have ended, and of those that did before.
#[derive(Debug, Default)]
pub struct Pauses(Mutex<HashMap<ContainerId, Pause>>);

#[derive(Debug, Clone, Copy, Default)]
struct Pause {
    /// Ends in a row.
    ends: u32,
    /// When the container is started again; `None` while it runs.
    until: Option<Instant>,
}

impl Pauses {
    fn all(&self) -> MutexGuard<'_, HashMap<ContainerId, Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets containers.
    pub fn forget(&self, ids: impl IntoIterator<Item = ContainerId>) {
        let mut all = self.all();
        for id in ids {
            all.remove(&id);
        }
    }
}

/// What came of the containers that are to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// There are none.
    None,
    /// One was started or ended: look anew.
    Changed,
    /// The next one's pause is over then.
    At(Instant),
}

impl NodeExecutor {
    /// Ends what its probes want ended, and starts again what has ended, each after its pause.
    pub(super) async fn start_again(&self, unit: &TaskUnit) -> Result<Again, ExecutorError> {
        let (members, restart) = (self.members(unit), restart_condition(unit));
        if let Some(index) = pod::ailing(&members, restart).first().copied() {
            let why = members[index].probed.failed.as_deref().unwrap_or_default();
            info!(task.id = %unit.task.id, container = members[index].name, why, "a container is ended, to be started again");
            let stopped = self.stop_one(unit, index, Instant::now()).await;
            stopped.map_err(|error| ExecutorError::Temporary(crate::chain(&error).to_string()))?;
            return Ok(Again::Changed);
        }
        let mut next = None;
        for index in pod::again(&members, restart) {
            let id = unit.container_id(index);
            let until = {
                let mut all = self.pauses.all();
                let pause = all.entry(id).or_default();
                if pause.until.is_none() {
                    pause.ends = pod::ends_in_a_row(&members[index], pause.ends);
                }
                *pause.until.get_or_insert_with(|| Instant::now() + pod::pause(pause.ends))
            };
            if until > Instant::now() {
                next = Some(next.map_or(until, |known: Instant| known.min(until)));
                continue;
            }
            self.pauses.all().entry(id).and_modify(|pause| pause.until = None);
            self.watchers.forget_one(id);
            if let Err(error) = self.start_one_again(unit, index).await {
                // It has ended without a run: the next pause is longer.
                warn!(task.id = %unit.task.id, container = members[index].name, %error, "a container cannot be started again");
            } else {
                info!(task.id = %unit.task.id, container = members[index].name, "a container was started again");
            }
            return Ok(Again::Changed);
        }
        Ok(next.map_or(Again::None, Again::At))
    }

    async fn start_one_again(&self, unit: &TaskUnit, index: usize) -> Result<(), ExecutorError> {
        // Another process may have started it.
        if self.prepared_of(unit).is_err() {
            self.prepare(unit).await?;
        }
        let prepared = self.prepared_of(unit)?;
        self.start_one(unit, &prepared, index, true).await
    }
}
