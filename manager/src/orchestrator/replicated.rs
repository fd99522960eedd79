//! Replicated services: a number of slots, each with a task.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use skep_proto::model::TaskState;
use skep_proto::model::service::UpdateOrder;

use super::place::{self, Verdict};
use super::restart::Decision;
use super::update::{self, Slot};
use super::{Creation, Homeless, Input, Start, desire, homeless, rebalance, remove};
use crate::reconcile::{Env, Plan};
use crate::store::{Change, Group, Reference, TaskRow};

type Rows<'a> = Vec<(u32, &'a TaskRow)>;

/// What a replicated service lacks.
pub(super) fn plan(input: &Input<'_>, replicas: u64, env: &mut Env<'_>) -> Plan {
    let mut slots: BTreeMap<u32, Rows<'_>> = BTreeMap::new();
    for (handle, row) in input.state.rows_of_service(input.reference) {
        slots.entry(row.slot).or_default().push((handle, row));
    }
    let mut plan = Plan::default();
    let mut judged: BTreeMap<u32, (Verdict, Rows<'_>)> = BTreeMap::new();
    for (slot, rows) in slots {
        let verdict = place::judge(input.state, &rows, env.now);
        start_ready(input, &rows, env, &mut plan);
        if verdict != Verdict::Empty {
            judged.insert(slot, (verdict, rows));
        }
    }
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let surplus = judged.len().saturating_sub(wanted);
    for slot in removal_order(&judged, surplus) {
        if let Some((_, rows)) = judged.remove(&slot) {
            let changes: Vec<Change> = rows.iter().filter_map(|(handle, row)| remove(*handle, row)).collect();
            plan.groups.push(changes.into());
        }
    }
    let free: Vec<u32> =
        (1..).filter(|slot| !judged.contains_key(slot)).take(wanted.saturating_sub(judged.len())).collect();
    for slot in free {
        let creation = Creation { slot, node: None, place: slot, start: Start::Now, restarts: Vec::new() };
        plan.groups.push(Group::of(input.create(creation, env)));
    }
    let (mut lived, mut replaced) = (Vec::new(), 0);
    for (slot, (verdict, rows)) in &judged {
        match verdict {
            Verdict::Replace { .. } if moves_start_first(input, rows) => {
                replaced += 1;
                plan.groups.extend(start_elsewhere(input, *slot, rows, env));
            }
            Verdict::Replace { at, restarts } => {
                replaced += 1;
                plan.groups.push(replace(input, *slot, rows, *at, restarts.clone(), env));
            }
            Verdict::Lived(place) => lived.push(Slot { slot: *slot, place: place.clone(), rows: rows.clone() }),
            Verdict::Finished if is_outdated(input, rows) => {
                // A new spec is a new chance.
                let creation =
                    Creation { slot: *slot, node: None, place: *slot, start: Start::Now, restarts: Vec::new() };
                plan.groups.push(retire(rows, input.create(creation, env)));
            }
            Verdict::Finished | Verdict::Empty => {}
        }
    }
    update::plan(input, &lived, replaced, env, &mut plan);
    if plan.groups.is_empty() && replaced == 0 && lived.len() == wanted {
        rebalance::plan(input, &lived, env, &mut plan);
    }
    plan
}

/// Whether the service's tasks start elsewhere before they stop where they may not stay: the order of its updates.
fn moves_start_first(input: &Input<'_>, rows: &[(u32, &TaskRow)]) -> bool {
    let live = rows.iter().filter(|(_, row)| row.is_live()).max_by_key(|(handle, row)| (row.created_index, *handle));
    input.service.spec.update.as_ref().is_some_and(|update| update.order == UpdateOrder::StartFirst)
        && live.is_some_and(|(_, row)| {
            row.state == TaskState::Running && homeless(input.state, row) == Some(Homeless::Unwanted)
        })
}

/// A task for a slot whose own must leave its node and runs until then. One that failed elsewhere already is followed as
/// the restart policy says.
fn start_elsewhere(input: &Input<'_>, slot: u32, rows: &[(u32, &TaskRow)], env: &mut Env<'_>) -> Option<Group> {
    let newest = rows.iter().max_by_key(|(handle, row)| (row.created_index, *handle));
    let failed = newest.filter(|(_, row)| row.is_dead() && row.desired <= TaskState::Running);
    let (start, restarts) = match failed.map(|(handle, row)| place::decide(input.state, *handle, row, env.now)) {
        None => (Start::Now, Vec::new()),
        Some(Decision::Leave) => return None,
        Some(Decision::Replace { at, restarts }) if at > env.now => (Start::At(at.0), restarts),
        Some(Decision::Replace { restarts, .. }) => (Start::Now, restarts),
    };
    let creation = input.create(Creation { slot, node: None, place: slot, start, restarts }, env);
    let dead = rows.iter().filter(|(_, row)| row.is_dead());
    let stops = dead.filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    Some(stops.chain([creation]).collect::<Vec<_>>().into())
}

fn is_outdated(input: &Input<'_>, rows: &[(u32, &TaskRow)]) -> bool {
    let newest = rows.iter().max_by_key(|(_, row)| row.created_index);
    newest.is_some_and(|(_, row)| row.spec_version != input.service.spec_version)
}

/// The old tasks of a place step back and a new one takes it, in one group.
fn retire(rows: &[(u32, &TaskRow)], creation: Change) -> Group {
    let old = rows.iter().filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    old.chain([creation]).collect::<Vec<_>>().into()
}

fn replace(
    input: &Input<'_>,
    slot: u32,
    rows: &[(u32, &TaskRow)],
    at: Option<skep_proto::model::Timestamp>,
    restarts: Vec<u64>,
    env: &mut Env<'_>,
) -> Group {
    let start = match at {
        Some(at) if at > env.now => Start::At(at.0),
        Some(_) | None => Start::Now,
    };
    retire(rows, input.create(Creation { slot, node: None, place: slot, start, restarts }, env))
}

/// Lets ready tasks run whose time has come, and remembers when the next one's comes.
pub(super) fn start_ready(input: &Input<'_>, rows: &[(u32, &TaskRow)], env: &Env<'_>, plan: &mut Plan) {
    if input.waits {
        return;
    }
    let (ready, next) = place::to_start(input.state, rows, env.now);
    for handle in ready {
        let row = rows.iter().find(|(h, _)| *h == handle).map(|(_, row)| *row);
        plan.groups.extend(row.and_then(|row| desire(handle, row, TaskState::Running)).map(Group::of));
    }
    if let Some(at) = next {
        plan.recheck(at);
    }
}

/// Slots in the order in which they go: those that do not run first, then those on the fullest nodes, the highest first.
/// A node counts as emptier by each that goes before.
fn removal_order(judged: &BTreeMap<u32, (Verdict, Rows<'_>)>, most: usize) -> Vec<u32> {
    if most == 0 {
        return Vec::new();
    }
    let mut on_node: BTreeMap<Option<u32>, Vec<(bool, Reverse<u32>)>> = BTreeMap::new();
    for (slot, (verdict, rows)) in judged {
        let is_running = matches!(verdict, Verdict::Lived(place) if place.is_running);
        let live = rows.iter().filter(|(_, row)| row.is_live()).filter_map(|(_, row)| row.node);
        let node = live.map(Reference::handle).next_back();
        on_node.entry(node).or_default().push((is_running, Reverse(*slot)));
    }
    let mut order: Vec<(bool, Reverse<usize>, Reverse<u32>)> = Vec::with_capacity(judged.len());
    for (node, mut slots) in on_node {
        slots.sort_unstable();
        let count = slots.len();
        let fullness = |gone: usize| if node.is_some() { count - gone } else { 0 };
        let ranked = slots.into_iter().enumerate();
        order.extend(ranked.map(|(gone, (is_running, slot))| (is_running, Reverse(fullness(gone)), slot)));
    }
    order.sort_unstable();
    order.into_iter().take(most).map(|(_, _, Reverse(slot))| slot).collect()
}
