//! Jobs: tasks that run to completion, once for each execution of the service.
//!
//! An *iteration* is one execution: the spec version that the service has in force. A new spec begins a new one, and what
//! was left of the old one is removed. A place (a slot, or a node of a global job) is done when a task of the iteration
//! completed there; a failed one is tried again as the restart policy says.
//!
//! A job that has a schedule is executed when that says so ([`crate::schedule`]), not when its spec changes: its iteration is
//! that of the last run ([`Service::iteration`]), which goes on with the spec that it began with. Its runs do not overlap, and
//! the tasks of earlier ones stay as history, unless the schedule allows that: then earlier runs go on, each with its own spec, but
//! fill no place that is empty. All tasks of such runs start at once.

use std::collections::BTreeMap;

use skep_proto::model::schedule::{Concurrency, Schedule};
use skep_proto::model::{Service, ServiceMode, TaskState, Timestamp};

use super::place::{self, Verdict};
use super::replicated::start_ready;
use super::{Creation, Homeless, Input, Start, desire, homeless, remove, takes_tasks};
use crate::reconcile::{Env, Plan};
use crate::scheduler::filter::fits_for_ever;
use crate::store::{Change, Group, NodeRef, Reference, State, TaskRow};

type Rows<'a> = Vec<(u32, &'a TaskRow)>;

/// What a job lacks.
pub(super) fn plan(input: &Input<'_>, env: &mut Env<'_>) -> Plan {
    let Some(service) = executed(input.state, input.service) else { return Plan::default() };
    let input = Input { service, ..*input };
    let overlaps = may_overlap(input.service);
    if input.service.runs.is_some() && !overlaps && any_earlier_is_up(&input) {
        let mut plan = Plan::default();
        places(&input, &mut plan);
        return plan;
    }
    let mut plan = match input.service.spec.mode {
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            replicated(&input, max_concurrent, total_completions, env)
        }
        ServiceMode::GlobalJob => global(&input, env),
        ServiceMode::Replicated { .. } | ServiceMode::Global => Plan::default(),
    };
    if overlaps {
        earlier(&input, env, &mut plan);
    }
    plan
}

/// Whether earlier runs go on beside the last one.
fn may_overlap(service: &Service) -> bool {
    let schedule = service.runs.and_then(|_| Schedule::read(&service.spec.annotations.labels).ok().flatten());
    schedule.is_some_and(|schedule| schedule.concurrency == Concurrency::Allow)
}

/// What the runs before the last one lack: tasks that failed are tried again as the spec of their run says. What is done there
/// becomes history.
fn earlier(input: &Input<'_>, env: &mut Env<'_>, plan: &mut Plan) {
    let mut runs: BTreeMap<(u64, u32), Rows<'_>> = BTreeMap::new();
    for (handle, row) in input.state.rows_of_service(input.reference) {
        if row.spec_version != input.service.spec_version {
            runs.entry((row.spec_version, row.place())).or_default().push((handle, row));
        }
    }
    for ((version, place), rows) in runs {
        let Some(spec) = input.state.spec(input.reference, version) else { continue };
        let input = Input { service: &spec.service, ..*input };
        start_ready(&input, &rows, env, plan);
        match judge(&input, &rows, env.now) {
            Verdict::Replace { .. } if is_lost(&input, &rows) && rows.iter().all(|(_, row)| row.slot == 0) => {}
            Verdict::Replace { at, restarts } => {
                let (slot, node) =
                    rows.first().map_or((0, None), |(_, row)| (row.slot, row.node.filter(|_| row.slot == 0)));
                let creation = Creation { slot, node, place, start: start(at, env.now), restarts };
                plan.groups.push(retire(&rows, input.create(creation, env)));
            }
            Verdict::Finished => {
                let past = rows.iter().filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
                plan.groups.extend(past.map(Group::of));
            }
            Verdict::Lived(_) | Verdict::Empty => {}
        }
    }
}

/// The service as it was when the present iteration began; `None` while there is none.
fn executed<'a>(state: &'a State, service: &'a Service) -> Option<&'a Service> {
    if service.iteration() == service.spec_version {
        return Some(service);
    }
    let reference = state.services().reference(service.id)?;
    state.spec(reference, service.iteration()).map(|spec| &*spec.service)
}

/// Whether a job's present iteration is not done: some place is still to complete, and its policy does not give it up. Nodes
/// that are lost are not waited for.
pub fn goes_on(state: &State, service: &Service, now: Timestamp) -> bool {
    let found = executed(state, service).and_then(|s| Some((s, state.services().reference(s.id)?)));
    let Some((service, reference)) = found else { return false };
    let input = Input { state, reference, service, waits: false };
    let mut places = places(&input, &mut Plan::default());
    let mut is_done = |place: u32| {
        let rows = places.remove(&place).unwrap_or_default();
        is_lost(&input, &rows) || judge(&input, &rows, now) == Verdict::Finished
    };
    match service.spec.mode {
        ServiceMode::ReplicatedJob { total_completions, .. } => {
            let wanted = u32::try_from(total_completions).unwrap_or(u32::MAX);
            (1..=wanted).any(|slot| !is_done(slot))
        }
        ServiceMode::GlobalJob => state.nodes().iter().any(|(node, record)| {
            takes_tasks(record) && fits_for_ever(record, &service.spec.task.placement) && !is_done(node.handle())
        }),
        ServiceMode::Replicated { .. } | ServiceMode::Global => false,
    }
}

/// A task of an earlier run may still run. Nobody can wait for one on a lost node.
fn any_earlier_is_up(input: &Input<'_>) -> bool {
    input.state.rows_of_service(input.reference).any(|(_, row)| {
        row.spec_version != input.service.spec_version
            && !row.is_dead()
            && homeless(input.state, row) != Some(Homeless::Lost)
    })
}

/// What a job with a number of completions lacks.
fn replicated(input: &Input<'_>, most_at_once: u64, completions: u64, env: &mut Env<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut slots = places(input, &mut plan);
    let wanted = u32::try_from(completions).unwrap_or(u32::MAX);
    // A service that was told to complete less often.
    for rows in slots.split_off(&wanted.saturating_add(1)).into_values() {
        plan.groups.extend(rows.iter().filter_map(|(handle, row)| remove(*handle, row)).map(Group::of));
    }
    let (mut active, mut free) = (0, Vec::new());
    for slot in 1..=wanted {
        let rows = slots.remove(&slot).unwrap_or_default();
        start_ready(input, &rows, env, &mut plan);
        match judge(input, &rows, env.now) {
            Verdict::Empty => free.push((slot, rows)),
            Verdict::Lived(_) => active += 1,
            Verdict::Replace { at, restarts } => {
                active += 1;
                let creation = Creation { slot, node: None, place: slot, start: start(at, env.now), restarts };
                plan.groups.push(retire(&rows, input.create(creation, env)));
            }
            Verdict::Finished => {}
        }
    }
    let room = usize::try_from(most_at_once.saturating_sub(active)).unwrap_or(usize::MAX);
    for (slot, rows) in free.into_iter().take(room) {
        let creation = Creation { slot, node: None, place: slot, start: Start::Now, restarts: Vec::new() };
        plan.groups.push(retire(&rows, input.create(creation, env)));
    }
    plan
}

/// What a job that completes once on each node lacks.
fn global(input: &Input<'_>, env: &mut Env<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut nodes = places(input, &mut plan);
    for (node, record) in input.state.nodes().iter() {
        let rows = nodes.remove(&node.handle()).unwrap_or_default();
        start_ready(input, &rows, env, &mut plan);
        let is_wanted = takes_tasks(record) && fits_for_ever(record, &input.service.spec.task.placement);
        match judge(input, &rows, env.now) {
            // A task on a node that is lost for a while may still complete there.
            Verdict::Replace { .. } if is_lost(input, &rows) => {}
            Verdict::Empty if is_wanted => plan.groups.push(on_node(input, node, &rows, Start::Now, Vec::new(), env)),
            Verdict::Replace { at, restarts } if is_wanted => {
                plan.groups.push(on_node(input, node, &rows, start(at, env.now), restarts, env));
            }
            Verdict::Replace { .. } => {
                let stops = rows.iter().filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
                plan.groups.extend(stops.map(Group::of));
            }
            Verdict::Lived(_) | Verdict::Empty | Verdict::Finished => {}
        }
    }
    plan
}

/// Tasks of the present iteration, by place; older ones are told to go, or, where runs have a history, to stop.
fn places<'a>(input: &Input<'a>, plan: &mut Plan) -> BTreeMap<u32, Rows<'a>> {
    let mut places: BTreeMap<u32, Rows<'a>> = BTreeMap::new();
    for (handle, row) in input.state.rows_of_service(input.reference) {
        if row.spec_version == input.service.spec_version {
            places.entry(row.place()).or_default().push((handle, row));
        } else if !may_overlap(input.service) {
            let to = if input.service.runs.is_some() { TaskState::Shutdown } else { TaskState::Remove };
            plan.groups.extend(desire(handle, row, to).map(Group::of));
        }
    }
    places
}

/// A completed task is never replaced, whatever the policy says.
fn judge(input: &Input<'_>, rows: &[(u32, &TaskRow)], now: Timestamp) -> Verdict {
    let is_done = rows.iter().any(|(_, row)| row.has_completed());
    if is_done { Verdict::Finished } else { place::judge(input.state, rows, now) }
}

fn is_lost(input: &Input<'_>, rows: &[(u32, &TaskRow)]) -> bool {
    rows.iter().any(|(_, row)| row.is_live() && homeless(input.state, row) == Some(Homeless::Lost))
}

fn start(at: Option<Timestamp>, now: Timestamp) -> Start {
    at.filter(|at| *at > now).map_or(Start::Now, |at| Start::At(at.0))
}

fn on_node(
    input: &Input<'_>,
    node: NodeRef,
    rows: &[(u32, &TaskRow)],
    start: Start,
    restarts: Vec<u64>,
    env: &mut Env<'_>,
) -> Group {
    let creation = Creation { slot: 0, node: Some(node), place: node.handle(), start, restarts };
    retire(rows, input.create(creation, env))
}

/// The earlier tasks of a place step back and a new one takes it, in one group.
fn retire(rows: &[(u32, &TaskRow)], creation: Change) -> Group {
    let old = rows.iter().filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    old.chain([creation]).collect::<Vec<_>>().into()
}
