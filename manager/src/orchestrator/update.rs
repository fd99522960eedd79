//! Rolling updates: tasks of an older spec give way, a few at a time.
//!
//! Everything an update needs to go on is in the tasks and in the service's record, so a change of leader half-way is
//! nothing special: which slots are outdated, which are under way, when the last one was done, what failed since it began.

use std::time::Duration;

use skep_proto::model::service::{FailureAction, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus};
use skep_proto::model::{Service, TaskState, Timestamp};

use super::place::Lived;
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
    fn newest(&self) -> Option<&TaskRow> {
        self.rows.iter().find(|(handle, _)| *handle == self.place.newest).map(|(_, row)| *row)
    }

    fn is_outdated(&self, service: &Service) -> bool {
        self.place.spec_version != service.spec_version
    }

    /// The new task does not run yet, or an older one has not been told to stop.
    fn is_under_way(&self, service: &Service) -> bool {
        !self.is_outdated(service) && (!self.place.is_running || !self.place.older.is_empty())
    }
}

/// Plans the update of the places that live.
pub(super) fn plan(input: &Input<'_>, slots: &[Slot<'_>], env: &mut Env<'_>, plan: &mut Plan) {
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
    if config.failure_action == FailureAction::Pause && has_failed(input, &config, began) {
        let state = if is_rollback { UpdateState::RollbackPaused } else { UpdateState::Paused };
        let text =
            format!("update paused due to failure or early termination of task {}", failed_task(input, &config, began));
        plan.groups.push(set_status(service, state, &text, began, None));
        return;
    }
    if outdated.is_empty() {
        complete(slots, service, &config, is_rollback, began, env.now, plan);
        return;
    }
    let under_way = slots.iter().filter(|s| s.is_under_way(service)).count();
    let width =
        if config.parallelism == 0 { usize::MAX } else { usize::try_from(config.parallelism).unwrap_or(usize::MAX) };
    // The pause runs from the moment the last group was done.
    let last_done =
        slots.iter().filter(|s| !s.is_outdated(service)).filter_map(Slot::newest).map(|r| r.status_ms).max();
    if let Some(at) = last_done.filter(|_| config.delay > Duration::ZERO).map(|ms| Timestamp(ms).after(config.delay))
        && (under_way > 0 || at > env.now)
    {
        plan.recheck(at.max(env.now.after(Duration::from_millis(1))));
        return;
    }
    for slot in outdated.into_iter().take(width.saturating_sub(under_way)) {
        plan.groups.push(replace(input, slot, config.order, env));
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

fn replace(input: &Input<'_>, slot: &Slot<'_>, order: UpdateOrder, env: &mut Env<'_>) -> Group {
    let newest = slot.newest();
    let node = newest.filter(|_| slot.slot == 0).and_then(|row| row.node);
    let place = newest.map_or(slot.slot, TaskRow::place);
    let start = match order {
        UpdateOrder::StartFirst => Start::Now,
        UpdateOrder::StopFirst => Start::AfterOthers,
    };
    let creation = input.create(Creation { slot: slot.slot, node, place, start, restarts: Vec::new() }, env);
    let old = slot.rows.iter().filter(|_| order == UpdateOrder::StopFirst);
    let stops = old.filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    stops.chain([creation]).collect::<Vec<_>>().into()
}

/// Done when every task is of the spec in force, runs, and has run as long as it is watched.
fn complete(
    slots: &[Slot<'_>],
    service: &Service,
    config: &UpdateConfig,
    is_rollback: bool,
    began: Timestamp,
    now: Timestamp,
    plan: &mut Plan,
) {
    if slots.iter().any(|s| s.is_under_way(service)) {
        return;
    }
    let replaced = slots.iter().filter_map(Slot::newest).map(|row| row.status_ms).filter(|ms| *ms >= began.0).max();
    let until = replaced.map_or(now, |ms| Timestamp(ms).after(config.monitor));
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

/// Tasks of the spec in force that ended badly while they were watched.
fn failures<'a>(input: &'a Input<'_>, config: &UpdateConfig, began: Timestamp) -> impl Iterator<Item = &'a TaskRow> {
    let (version, monitor) = (input.service.spec_version, config.monitor);
    let rows = input.state.rows_of_service(input.reference).map(|(_, row)| row);
    rows.filter(move |row| {
        let ended_badly = matches!(row.state, TaskState::Failed | TaskState::Rejected);
        let early = row.status_ms <= Timestamp(row.created_ms).after(monitor.max(Duration::from_secs(1))).0
            || row.state == TaskState::Rejected;
        row.spec_version == version && ended_badly && early && row.created_ms >= began.0
    })
}

fn has_failed(input: &Input<'_>, config: &UpdateConfig, began: Timestamp) -> bool {
    let failed = failures(input, config, began).count();
    let all = usize::try_from(input.state.count(input.reference).live).unwrap_or(usize::MAX).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a share of tasks, compared with a ratio given by people")]
    let share = failed as f32 / all as f32;
    share > config.max_failure_ratio
}

fn failed_task(input: &Input<'_>, config: &UpdateConfig, began: Timestamp) -> String {
    failures(input, config, began).map(|row| row.id.to_string()).next().unwrap_or_default()
}
