//! Rolling updates: tasks of an older spec give way, a few at a time.
//!
//! Everything an update needs to go on is in the tasks and in the service's record, so a change of leader half-way is
//! nothing special: which slots are outdated, which are under way, when the last one was done, what failed since it began.

use std::time::Duration;

use skep_proto::model::service::{FailureAction, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use skep_proto::model::{Service, TaskId, TaskState, Timestamp};

use super::place::{self, Lived};
use super::restart::Decision;
use super::{Creation, Input, Start, desire};
use crate::reconcile::{Env, Plan};
use crate::store::{Change, Group, TaskRow};

/// A place with a live task.
pub(super) struct Slot<'a> {
    pub slot: u32,
    pub place: Lived,
    pub rows: Vec<(u32, &'a TaskRow)>,
}

impl Slot<'_> {
    pub(super) fn newest(&self) -> Option<&TaskRow> {
        self.rows.iter().find(|(handle, _)| *handle == self.place.newest).map(|(_, row)| *row)
    }

    /// Its one task is of the spec in force, and runs.
    pub(super) fn is_settled(&self, service: &Service) -> bool {
        !self.is_outdated(service) && !self.is_under_way(service)
    }

    fn is_outdated(&self, service: &Service) -> bool {
        self.place.spec_version != service.spec_version
    }

    /// The new task does not run yet, or an older one has not been told to stop.
    fn is_under_way(&self, service: &Service) -> bool {
        !self.is_outdated(service) && (!self.place.is_running || !self.place.older.is_empty())
    }
}

/// Plans the update of the places that live. `replaced` places get a new task in this very plan: they are under way.
pub(super) fn plan(input: &Input<'_>, slots: &[Slot<'_>], replaced: usize, env: &mut Env<'_>, plan: &mut Plan) {
    let service = input.service;
    finish_start_first(slots, service, plan);
    let outdated: Vec<&Slot<'_>> = slots.iter().filter(|s| s.is_outdated(service)).collect();
    let status = service.update_status.as_ref();
    match status.map(|s| s.state) {
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => return,
        Some(UpdateState::Updating | UpdateState::RollbackStarted) => {}
        Some(UpdateState::Completed | UpdateState::RollbackCompleted) | None => {
            if !outdated.is_empty() {
                // The record first: what follows is judged by when it began.
                plan.groups.push(set_status(service, UpdateState::Updating, "update in progress", env.now, None));
            }
            return;
        }
    }
    let is_rollback = status.is_some_and(|s| s.state == UpdateState::RollbackStarted);
    let config = config_of(service, is_rollback);
    let began = status.map_or(env.now, |s| s.started_at);
    if let Some(failed) = decisive_failure(input, &config, began, slots.len() + replaced)
        && let Some(group) = on_failure(service, config.failure_action, is_rollback, failed, began, env.now)
    {
        plan.groups.push(group);
        return;
    }
    let under_way = slots.iter().filter(|s| s.is_under_way(service)).count() + replaced;
    if outdated.is_empty() {
        if under_way == 0 {
            complete(slots, service, &config, is_rollback, began, env.now, plan);
        }
        return;
    }
    let width =
        if config.parallelism == 0 { usize::MAX } else { usize::try_from(config.parallelism).unwrap_or(usize::MAX) };
    // The pause runs from the moment the last group was done.
    let last_done =
        slots.iter().filter(|s| !s.is_outdated(service)).filter_map(Slot::newest).map(|r| r.updated_ms).max();
    if let Some(at) = last_done.filter(|_| config.delay > Duration::ZERO).map(|ms| Timestamp(ms).after(config.delay)) {
        // While tasks are under way their next state brings us back here.
        if under_way > 0 {
            return;
        }
        if at > env.now {
            plan.recheck(at);
            return;
        }
    }
    for slot in outdated.into_iter().take(width.saturating_sub(under_way)) {
        plan.groups.extend(replace(input, slot, config.order, env));
    }
}

fn config_of(service: &Service, is_rollback: bool) -> UpdateConfig {
    let config = if is_rollback { &service.spec.rollback } else { &service.spec.update };
    config.clone().unwrap_or_default()
}

/// Where the new task of a start-first update runs, the old one stops.
fn finish_start_first(slots: &[Slot<'_>], service: &Service, plan: &mut Plan) {
    for slot in slots.iter().filter(|s| !s.is_outdated(service) && s.place.is_running) {
        let older = slot.rows.iter().filter(|(handle, _)| slot.place.older.contains(handle));
        plan.groups.extend(older.filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown)).map(Group::of));
    }
}

/// The new task of a place. One that failed there already (start-first: the old one runs on) is replaced by the restart
/// policy: after its delay, or not at all.
fn replace(input: &Input<'_>, slot: &Slot<'_>, order: UpdateOrder, env: &mut Env<'_>) -> Option<Group> {
    let newest = slot.newest();
    let node = newest.filter(|_| slot.slot == 0).and_then(|row| row.node);
    let place = newest.map_or(slot.slot, TaskRow::place);
    let failed = slot.rows.iter().filter(|(_, row)| {
        row.spec_version == input.service.spec_version && row.is_dead() && row.desired <= TaskState::Running
    });
    let decision = failed.max_by_key(|(_, row)| row.created_index);
    let decision = decision.map(|(handle, row)| place::decide(input.state, *handle, row, env.now));
    let (start, restarts) = match (decision, order) {
        (Some(Decision::Leave), _) => return None,
        (Some(Decision::Replace { at, restarts }), _) if at > env.now => (Start::At(at.0), restarts),
        (Some(Decision::Replace { restarts, .. }), UpdateOrder::StartFirst) => (Start::Now, restarts),
        (Some(Decision::Replace { restarts, .. }), UpdateOrder::StopFirst) => (Start::AfterOthers, restarts),
        (None, UpdateOrder::StartFirst) => (Start::Now, Vec::new()),
        (None, UpdateOrder::StopFirst) => (Start::AfterOthers, Vec::new()),
    };
    let creation = input.create(Creation { slot: slot.slot, node, place, start, restarts }, env);
    let old = slot.rows.iter().filter(|(_, row)| order == UpdateOrder::StopFirst || row.is_dead());
    let stops = old.filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    Some(stops.chain([creation]).collect::<Vec<_>>().into())
}

/// Every task is of the spec in force and runs: done when the newest has run as long as it is watched.
fn complete(
    slots: &[Slot<'_>],
    service: &Service,
    config: &UpdateConfig,
    is_rollback: bool,
    began: Timestamp,
    now: Timestamp,
    plan: &mut Plan,
) {
    let replaced = slots.iter().filter_map(Slot::newest).map(|row| row.updated_ms).filter(|ms| *ms >= began.0).max();
    // Where a failure leads to nothing there is nothing to watch for (swarmkit's updater).
    let watched = replaced.filter(|_| config.failure_action != FailureAction::Continue);
    let until = watched.map_or(now, |ms| Timestamp(ms).after(config.monitor));
    if until > now {
        plan.recheck(until);
        return;
    }
    let (state, text) = if is_rollback {
        (UpdateState::RollbackCompleted, "rollback completed")
    } else {
        (UpdateState::Completed, "update completed")
    };
    plan.groups.push(set_status(service, state, text, began, Some(now)));
}

fn set_status(
    service: &Service,
    state: UpdateState,
    message: &str,
    began: Timestamp,
    ended: Option<Timestamp>,
) -> Group {
    let mut changed = service.clone();
    changed.update_status =
        Some(UpdateStatus { state, started_at: began, completed_at: ended, message: message.into() });
    Group::of(Change::update(&changed))
}

/// The first task of the spec in force that ended badly while it was watched, when there are more of them than the
/// service accepts.
fn decisive_failure(input: &Input<'_>, config: &UpdateConfig, began: Timestamp, places: usize) -> Option<TaskId> {
    let version = input.service.spec_version;
    let failed = input.state.rows_of_service(input.reference).filter(|(handle, row)| {
        let is_new = row.spec_version == version && row.created_ms >= began.0;
        let early = || {
            let started = input.state.extra(*handle).map(|e| e.started_ms).filter(|ms| *ms > 0);
            started.is_none_or(|ms| Timestamp(row.status_ms).since(Timestamp(ms)) <= config.monitor)
        };
        is_new && matches!(row.state, TaskState::Failed | TaskState::Rejected) && early()
    });
    let mut failed = failed.map(|(_, row)| row.id);
    let first = failed.next()?;
    #[expect(clippy::cast_precision_loss, reason = "a share of tasks, compared with a ratio given by people")]
    let share = (1 + failed.count()) as f32 / places.max(1) as f32;
    (share > config.max_failure_ratio).then_some(first)
}

/// What a failure leads to (swarmkit's words); `None` to go on.
fn on_failure(
    service: &Service,
    action: FailureAction,
    is_rollback: bool,
    failed: TaskId,
    began: Timestamp,
    now: Timestamp,
) -> Option<Group> {
    let because = format!("due to failure or early termination of task {failed}");
    let pause = || {
        let (state, what) =
            if is_rollback { (UpdateState::RollbackPaused, "rollback") } else { (UpdateState::Paused, "update") };
        set_status(service, state, &format!("{what} paused {because}"), began, None)
    };
    match (action, &service.previous) {
        (FailureAction::Continue, _) => None,
        // A rollback is never rolled back.
        (FailureAction::Rollback, Some(previous)) if !is_rollback => {
            let mut changed = service.clone();
            changed.spec = previous.spec.clone();
            changed.previous = None;
            changed.update_status = Some(UpdateStatus {
                state: UpdateState::RollbackStarted,
                started_at: now,
                completed_at: None,
                message: format!("update rolled back {because}"),
            });
            Some(Group::of(Change::update(&changed)))
        }
        (FailureAction::Pause | FailureAction::Rollback, _) => Some(pause()),
    }
}
