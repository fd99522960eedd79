//! Global services: a task on each node that takes part and satisfies the constraints.

use std::collections::BTreeMap;

use skep_proto::model::TaskState;

use super::place::{self, Verdict};
use super::replicated::start_ready;
use super::update::{self, Slot};
use super::{Creation, Homeless, Input, Start, desire, homeless, takes_tasks};
use crate::reconcile::{Env, Plan};
use crate::scheduler::filter::fits_for_ever;
use crate::store::{Change, Group, NodeRef, Reference, TaskRow};

/// What a global service lacks.
pub(super) fn plan(input: &Input<'_>, env: &mut Env<'_>) -> Plan {
    let mut places: BTreeMap<u32, Vec<(u32, &TaskRow)>> = BTreeMap::new();
    for (handle, row) in input.state.rows_of_service(input.reference) {
        places.entry(row.place()).or_default().push((handle, row));
    }
    let mut plan = Plan::default();
    let (mut lived, mut replaced) = (Vec::new(), 0);
    for (node, record) in input.state.nodes().iter() {
        let rows = places.remove(&node.handle()).unwrap_or_default();
        start_ready(input, &rows, env, &mut plan);
        let is_wanted = takes_tasks(record) && fits_for_ever(record, &input.service.spec.task.placement);
        match judge(input, &rows, env) {
            // A node that is lost for a while keeps its task: it may still run there.
            Verdict::Lived(place) => lived.push(Slot { slot: 0, place, rows }),
            Verdict::Empty if is_wanted => plan.groups.push(create(input, node, &rows, Start::Now, Vec::new(), env)),
            Verdict::Replace { at, restarts } if is_wanted => {
                replaced += 1;
                let start = at.filter(|at| *at > env.now).map_or(Start::Now, |at| Start::At(at.0));
                plan.groups.push(create(input, node, &rows, start, restarts, env));
            }
            Verdict::Finished if is_wanted && is_outdated(input, &rows) => {
                plan.groups.push(create(input, node, &rows, Start::Now, Vec::new(), env));
            }
            Verdict::Replace { .. } => {
                let changes = rows.iter().filter_map(|(h, row)| desire(*h, row, TaskState::Shutdown));
                plan.groups.extend(changes.map(Group::of));
            }
            Verdict::Empty | Verdict::Finished => {}
        }
    }
    // Places without a node: it was removed.
    for (handle, row) in places.into_values().flatten() {
        plan.groups.extend(desire(handle, row, TaskState::Shutdown).map(Group::of));
    }
    update::plan(input, &lived, replaced, env, &mut plan);
    plan
}

/// A task on a node that is lost lives on there, as far as anybody knows.
fn judge(input: &Input<'_>, rows: &[(u32, &TaskRow)], env: &Env<'_>) -> Verdict {
    let live = rows.iter().filter(|(_, row)| row.is_live()).max_by_key(|(_, row)| row.created_index);
    match live {
        Some((newest, row)) if homeless(input.state, row) == Some(Homeless::Lost) => Verdict::Lived(place::Lived {
            newest: *newest,
            spec_version: input.service.spec_version,
            // An update does not wait for it.
            is_running: true,
            older: Vec::new(),
        }),
        _ => place::judge(input.state, rows, env.now),
    }
}

fn is_outdated(input: &Input<'_>, rows: &[(u32, &TaskRow)]) -> bool {
    rows.iter()
        .max_by_key(|(_, row)| row.created_index)
        .is_some_and(|(_, row)| row.spec_version != input.service.spec_version)
}

fn create(
    input: &Input<'_>,
    node: NodeRef,
    rows: &[(u32, &TaskRow)],
    start: Start,
    restarts: Vec<u64>,
    env: &mut Env<'_>,
) -> Group {
    let creation = Creation { slot: 0, node: Some(node), place: node.handle(), start, restarts };
    let old = rows.iter().filter_map(|(handle, row)| desire(*handle, row, TaskState::Shutdown));
    let changes: Vec<Change> = old.chain([input.create(creation, env)]).collect();
    changes.into()
}
