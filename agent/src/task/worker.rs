//! Runs the steps of one task, one at a time, until the task is forgotten.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::session::{StatusReport, TaskVitals};
use skep_proto::model::{NodeId, TaskState, TaskStatus};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::step::{self, Goal, Outcome, Situation, Step};
use crate::executor::{Containers, Executor, ExecutorError, Seen, TaskUnit};
use crate::reports::Reports;
use crate::state::StateError;
use skep_identity::Clock;

/// First pause after an operation failed; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How long bringing a task up may fail in ways that might pass. Then the task ends, and another node gets a chance.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every worker uses.
pub struct Deps {
    /// This node.
    pub node: NodeId,
    /// What acts.
    pub executor: Arc<dyn Executor>,
    /// Wall time for statuses.
    pub clock: Arc<dyn Clock>,
    /// Where statuses go.
    pub reports: Arc<Reports>,
}

/// The worker of one task.
pub(super) struct Worker {
    deps: Arc<Deps>,
    unit: TaskUnit,
    goal: watch::Receiver<Goal>,
    situation: Situation,
    status: TaskStatus,
    retry: Retry,
}

/// Failures since the last success.
#[derive(Default)]
struct Retry {
    since: Option<Instant>,
    pause: Duration,
}

impl Retry {
    /// Notes a failure and gives the pause before the next try, and for how long it has been failing.
    fn failed(&mut self) -> (Duration, Duration) {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        (self.pause, since.elapsed())
    }
}

impl Worker {
    /// A worker for `unit`, of which an earlier process reported `recorded`.
    pub(super) fn new(
        deps: Arc<Deps>,
        unit: TaskUnit,
        goal: watch::Receiver<Goal>,
        recorded: Option<TaskStatus>,
    ) -> Self {
        let known = unit.task.observed;
        let status = recorded.filter(|status| status.state >= known).unwrap_or_else(|| TaskStatus {
            state: known,
            at: deps.clock.now(),
            message: String::new(),
            error: String::new(),
            exit_code: None,
            host_ports: Vec::new(),
        });
        let situation = Situation {
            goal: Goal::Ready,
            reached: status.state,
            containers: Containers::Absent,
            prepared: false,
            released: false,
        };
        Self { deps, unit, goal, situation, status, retry: Retry::default() }
    }

    /// Works until nothing of the task is left. May be dropped at any point: the next worker of the task goes on from
    /// what the node and the disk show.
    pub(super) async fn run(mut self) {
        self.observe().await;
        if !self.situation.reached.is_terminal() {
            // Managers do not know the volatile facts of a task that was taken over.
            self.publish();
        }
        loop {
            self.situation.goal = *self.goal.borrow_and_update();
            let step = step::step(&self.situation);
            debug!(task.id = %self.unit.task.id, ?step, "next step");
            match step {
                Step::Report(outcome) => self.report(outcome).await,
                Step::Prepare => self.prepare().await,
                Step::Create => self.create().await,
                Step::Start => self.start().await,
                Step::Wait => self.wait().await,
                Step::Stop => self.stop().await,
                Step::Release => self.release().await,
                Step::Remove => {
                    if self.remove().await {
                        return;
                    }
                }
                Step::Idle => {
                    if self.goal.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Looks at the node until it answers.
    async fn observe(&mut self) {
        loop {
            match self.deps.executor.observe(&self.unit).await {
                Ok(containers) => {
                    self.saw(containers);
                    return;
                }
                Err(error) => self.pause("cannot see the task's containers", &error).await,
            }
        }
    }

    fn saw(&mut self, containers: Containers) {
        if let Containers::Running(running) = &containers {
            self.status.host_ports.clone_from(&running.host_ports);
        }
        self.situation.containers = containers;
    }

    async fn prepare(&mut self) {
        let result = tokio::select! {
            result = self.deps.executor.prepare(&self.unit) => result,
            () = unwanted(&mut self.goal) => return,
        };
        match result {
            Ok(()) => {
                self.retry = Retry::default();
                self.situation.prepared = true;
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn create(&mut self) {
        match self.deps.executor.create(&self.unit).await {
            Ok(()) => {
                self.retry = Retry::default();
                self.saw(Containers::Created);
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn start(&mut self) {
        match self.deps.executor.start(&self.unit).await {
            Ok(running) => {
                self.retry = Retry::default();
                self.saw(Containers::Running(running));
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn wait(&mut self) {
        let seen = match &self.situation.containers {
            Containers::Running(running) => running.seen(),
            Containers::Absent | Containers::Created | Containers::Ended(_) => Seen::default(),
        };
        let result = tokio::select! {
            result = self.deps.executor.wait(&self.unit, seen) => result,
            () = unwanted(&mut self.goal) => return,
        };
        match result {
            Ok(containers) => {
                self.retry = Retry::default();
                let other = matches!(&containers, Containers::Running(running) if running.unready != seen.unready);
                self.saw(containers);
                if other && self.situation.reached == TaskState::Running {
                    self.publish();
                }
            }
            Err(error) => {
                self.pause("lost sight of the task's containers", &error).await;
                self.observe().await;
            }
        }
    }

    async fn stop(&mut self) {
        match self.deps.executor.stop(&self.unit).await {
            Ok(exit) => {
                self.retry = Retry::default();
                self.saw(Containers::Ended(exit));
            }
            Err(error) => {
                self.pause("cannot stop the task", &error).await;
                self.observe().await;
            }
        }
    }

    async fn release(&mut self) {
        match self.deps.executor.release(self.unit.task.id).await {
            Ok(()) => {
                self.retry = Retry::default();
                self.situation.released = true;
            }
            Err(error) => self.pause("cannot release the task's sandbox", &error).await,
        }
    }

    /// Removes everything. `true` when that is still what is wanted.
    async fn remove(&mut self) -> bool {
        // A graceful end first: removal kills.
        if matches!(self.situation.containers, Containers::Running(_)) {
            self.stop().await;
            return false;
        }
        match self.deps.executor.remove(self.unit.task.id).await {
            Ok(()) => {
                self.saw(Containers::Absent);
                self.situation.prepared = false;
                self.situation.released = true;
                *self.goal.borrow() == Goal::Gone
            }
            Err(error) => {
                self.pause("cannot remove the task", &error).await;
                self.observe().await;
                false
            }
        }
    }

    /// Bringing the task up failed: try again, or end it.
    async fn failed(&mut self, error: ExecutorError) {
        let (pause, failing) = self.retry.failed();
        // What was prepared may be what is missing now.
        self.situation.prepared = false;
        if error.is_temporary() && failing < PATIENCE {
            warn!(task.id = %self.unit.task.id, %error, retry_in_seconds = pause.as_secs_f32(), "cannot bring the task up yet");
            self.status.error = error.to_string();
            self.publish();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = unwanted(&mut self.goal) => {}
            }
            self.observe().await;
            return;
        }
        self.observe().await;
        let state = step::refusal(self.situation.reached);
        self.report(Outcome { state, exit_code: None, error: error.to_string() }).await;
    }

    /// An operation that must succeed in the end did not: wait, unless the goal changes.
    async fn pause(&mut self, what: &str, error: &ExecutorError) {
        let (pause, _) = self.retry.failed();
        warn!(task.id = %self.unit.task.id, %error, retry_in_seconds = pause.as_secs_f32(), "{what}");
        tokio::time::sleep(pause).await;
    }

    async fn report(&mut self, outcome: Outcome) {
        let Outcome { state, exit_code, error } = outcome;
        debug!(task.id = %self.unit.task.id, state.from = self.status.state.as_str(), state.to = state.as_str(), "task moves");
        let status = TaskStatus {
            state,
            at: self.deps.clock.now(),
            message: message(state).unwrap_or(&self.status.message).to_owned(),
            error,
            exit_code,
            host_ports: self.status.host_ports.clone(),
        };
        let before = std::mem::replace(&mut self.status, status);
        // What must not be lost with the process is on disk before anything follows from it.
        if state == TaskState::Starting || state.is_terminal() {
            if let Err(error) = self.deps.reports.record(self.report_now()).await {
                self.status = before;
                self.cannot_record(&error).await;
                return;
            }
        } else {
            self.publish();
        }
        self.situation.reached = state;
    }

    async fn cannot_record(&mut self, error: &StateError) {
        let (pause, _) = self.retry.failed();
        warn!(task.id = %self.unit.task.id, error = %crate::chain(error), "cannot keep the task's state on disk");
        tokio::time::sleep(pause).await;
    }

    fn publish(&self) {
        self.deps.reports.publish(self.report_now());
    }

    fn report_now(&self) -> StatusReport {
        let (pid, mesh, unready) = match &self.situation.containers {
            Containers::Running(running) => (running.pid, running.mesh, running.unready),
            Containers::Absent | Containers::Created | Containers::Ended(_) => (0, None, false),
        };
        let exists = self.situation.containers != Containers::Absent;
        StatusReport {
            task: self.unit.task.id,
            status: self.status.clone(),
            vitals: TaskVitals { pid, container: exists.then(|| self.unit.container_id(0)), health: String::new() },
            mesh,
            unready,
        }
    }
}

/// Resolves when the task is not wanted any more. An agent that stops does not decide that.
async fn unwanted(goal: &mut watch::Receiver<Goal>) {
    if goal.wait_for(|goal| matches!(goal, Goal::Shutdown | Goal::Gone)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Swarm's words; a failure keeps those of the state it happened in.
fn message(state: TaskState) -> Option<&'static str> {
    match state {
        TaskState::Accepted => Some("accepted"),
        TaskState::Preparing => Some("preparing"),
        TaskState::Ready => Some("prepared"),
        TaskState::Starting => Some("starting"),
        TaskState::Running => Some("started"),
        TaskState::Complete => Some("finished"),
        TaskState::Shutdown => Some("shutdown"),
        TaskState::New
        | TaskState::Pending
        | TaskState::Assigned
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => None,
    }
}
