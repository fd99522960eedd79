//! Statuses on their way to the managers.
//!
//! Only the last status of a task counts. It stays here until the managers are known to have it, across reconnects and
//! restarts of the agent: the assignment of a task says which state they know.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_proto::model::session::StatusReport;
use skep_proto::model::{TaskId, TaskState};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::state::{LocalState, StateError, Write};

/// Statuses gather this long, so that many travel as one message.
pub const GATHER: Duration = Duration::from_millis(50);
/// A state that is usually left at once is reported when it lasts this long.
const LINGER: Duration = Duration::from_secs(1);
/// A status that the managers do not confirm is sent again after this time.
const RESEND: Duration = Duration::from_secs(5);
/// Statuses in one message at most.
const BATCH: usize = 256;

/// Statuses on their way to the managers.
pub struct Reports {
    state: LocalState,
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    /// The last status of each task.
    entries: BTreeMap<TaskId, Entry>,
    /// The state that the managers know of each assigned task.
    known: BTreeMap<TaskId, TaskState>,
}

struct Entry {
    report: StatusReport,
    /// It was sent at least once.
    sent: bool,
    /// When to send it (again); `None` when there is nothing to tell.
    due: Option<Instant>,
}

impl Inner {
    fn knows(&self, report: &StatusReport) -> bool {
        self.known.get(&report.task).is_some_and(|known| *known >= report.status.state)
    }
}

impl Reports {
    /// Begins with what an earlier process could not deliver.
    pub fn new(state: LocalState, undelivered: impl IntoIterator<Item = StatusReport>) -> Self {
        let due = Some(Instant::now());
        let entries = undelivered.into_iter().map(|report| (report.task, Entry { report, sent: false, due })).collect();
        Self { state, inner: Mutex::new(Inner { entries, known: BTreeMap::new() }), wake: Notify::new() }
    }

    /// Sends a status when it is time; it reaches the disk soon.
    pub fn publish(&self, report: StatusReport) {
        if !self.inner().knows(&report) {
            self.state.write_later(vec![Write::status(&report)]);
        }
        self.enqueue(report);
    }

    /// Sends a status once it is on disk.
    ///
    /// # Errors
    /// When it cannot be written. It is not sent then.
    pub async fn record(&self, report: StatusReport) -> Result<(), StateError> {
        self.state.write(vec![Write::status(&report)]).await?;
        self.enqueue(report);
        Ok(())
    }

    fn enqueue(&self, report: StatusReport) {
        let wait = if passes_by(report.status.state) { LINGER } else { GATHER };
        let due = Instant::now() + wait;
        {
            let mut inner = self.inner();
            let waiting = inner.entries.get(&report.task).filter(|entry| !entry.sent).and_then(|entry| entry.due);
            let due = waiting.map_or(due, |before| before.min(due));
            inner.entries.insert(report.task, Entry { report, sent: false, due: Some(due) });
        }
        self.wake.notify_one();
    }

    /// A session began. Its manager has none of the volatile facts, and perhaps not the last statuses.
    pub fn session_began(&self) {
        let now = Instant::now();
        for entry in self.inner().entries.values_mut() {
            if entry.due.is_some() || !entry.report.status.state.is_terminal() {
                entry.due = Some(now);
            }
        }
        self.wake.notify_one();
    }

    /// The managers know the task in `observed`. Gives the write that forgets what they now have.
    pub fn acknowledge(&self, task: TaskId, observed: TaskState) -> Option<Write> {
        let mut inner = self.inner();
        inner.known.insert(task, observed);
        let entry = inner.entries.get_mut(&task).filter(|entry| entry.report.status.state <= observed)?;
        if entry.sent {
            entry.due = None;
        }
        Some(Write::ForgetStatus { task, up_to: observed })
    }

    /// The last status of a task.
    pub fn last(&self, task: TaskId) -> Option<StatusReport> {
        self.inner().entries.get(&task).map(|entry| entry.report.clone())
    }

    /// The task is forgotten.
    pub fn forget(&self, task: TaskId) {
        let mut inner = self.inner();
        inner.entries.remove(&task);
        inner.known.remove(&task);
    }

    /// Waits until something is due and takes it. What is taken comes again unless it is acknowledged.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&self) -> Vec<StatusReport> {
        loop {
            let wake = self.wake.notified();
            let (batch, next) = self.take(Instant::now());
            if !batch.is_empty() {
                return batch;
            }
            match next {
                Some(at) => tokio::select! {
                    () = wake => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => wake.await,
            }
        }
    }

    /// What is due at `now`, with what will be soon; and when the next one is, if nothing is.
    fn take(&self, now: Instant) -> (Vec<StatusReport>, Option<Instant>) {
        let mut inner = self.inner();
        let next = inner.entries.values().filter_map(|entry| entry.due).min();
        if next.is_none_or(|at| at > now) {
            return (Vec::new(), next);
        }
        let Inner { entries, known } = &mut *inner;
        let horizon = now + GATHER;
        let batch = entries
            .values_mut()
            .filter(|entry| entry.due.is_some_and(|at| at <= horizon))
            .take(BATCH)
            .map(|entry| {
                let news = known.get(&entry.report.task).is_none_or(|known| *known < entry.report.status.state);
                entry.due = news.then_some(now + RESEND);
                entry.sent = true;
                entry.report.clone()
            })
            .collect();
        (batch, None)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; the maps are whole in any case.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Usually left within milliseconds.
fn passes_by(state: TaskState) -> bool {
    matches!(state, TaskState::Assigned | TaskState::Accepted | TaskState::Preparing | TaskState::Starting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{report, scratch_state};

    #[tokio::test(start_paused = true)]
    async fn only_the_last_status_of_a_task_travels_and_those_of_one_moment_travel_together() {
        let reports = Reports::new(scratch_state(), []);
        let began = Instant::now();
        reports.publish(report(1, TaskState::Accepted));
        reports.publish(report(1, TaskState::Ready));
        reports.publish(report(2, TaskState::Running));
        let batch = reports.next().await;
        assert_eq!(batch, [report(1, TaskState::Ready), report(2, TaskState::Running)]);
        assert_eq!(began.elapsed(), GATHER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_is_left_at_once_is_not_reported_and_one_that_lasts_is() {
        let reports = Reports::new(scratch_state(), []);
        let began = Instant::now();
        reports.publish(report(1, TaskState::Preparing));
        assert_eq!(reports.next().await, [report(1, TaskState::Preparing)]);
        assert_eq!(began.elapsed(), LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_acknowledged_comes_again_and_what_is_does_not() {
        let reports = Reports::new(scratch_state(), []);
        reports.publish(report(1, TaskState::Failed));
        reports.next().await;
        assert!(reports.acknowledge(TaskId(1), TaskState::Running).is_none());
        let began = Instant::now();
        assert_eq!(reports.next().await, [report(1, TaskState::Failed)]);
        assert_eq!(began.elapsed(), RESEND);
        assert!(reports.acknowledge(TaskId(1), TaskState::Failed).is_some());
        assert!(tokio::time::timeout(Duration::from_secs(60), reports.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_session_hears_of_live_tasks_again_and_of_dead_ones_only_when_they_are_news() {
        let reports = Reports::new(scratch_state(), []);
        for (task, state) in [(1, TaskState::Running), (2, TaskState::Failed), (3, TaskState::Failed)] {
            reports.publish(report(task, state));
        }
        reports.next().await;
        reports.acknowledge(TaskId(1), TaskState::Running);
        reports.acknowledge(TaskId(2), TaskState::Failed);
        reports.session_began();
        assert_eq!(reports.next().await, [report(1, TaskState::Running), report(3, TaskState::Failed)]);
    }
}
