//! Which node each task gets.
//!
//! Tasks of one spec are placed as a batch: filters ([`filter`]) say which nodes can take one, a heap gives them out
//! evenly ([`rank`]), and where nothing fits, the counts of the filters are the explanation that people read.

pub mod constraint;
pub mod filter;
mod rank;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, NodeRef, Reference, SharedSpec, State, TaskRow, Touched};
use filter::{Filter, Room, refusal};
use rank::Queue;

/// Placements of one spec in one round, so that a huge service does not hold up a small one.
const ROUND: usize = 500;

/// The planner. It has one key: all placements compete for the same room.
#[derive(Debug, Default)]
pub struct Scheduler;

impl Planner for Scheduler {
    type Key = ();
    const NAME: &'static str = "scheduler";

    fn keys(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn touched(&self, _: &Touched, state: &State) -> Vec<()> {
        // Whatever happened, nothing is to be done when nobody waits.
        if state.unplaced().next().is_some() { vec![()] } else { Vec::new() }
    }

    fn plan(&mut self, state: &State, (): (), _: &mut Env<'_>) -> Plan {
        plan(state)
    }
}

/// Tasks of one spec that wait for a node.
type Waiting<'a> = Vec<(u32, &'a TaskRow)>;

/// Places what can be placed and explains the rest.
pub fn plan(state: &State) -> Plan {
    let mut waiting: BTreeMap<(u32, u64), Waiting<'_>> = BTreeMap::new();
    for (handle, row) in state.unplaced() {
        if let Some(service) = row.service {
            waiting.entry((service.handle(), row.spec_version)).or_default().push((handle, row));
        }
    }
    // The one that has waited longest first.
    let mut batches: Vec<Waiting<'_>> = waiting.into_values().collect();
    batches.sort_by_key(|rows| rows.iter().map(|(_, row)| row.created_index).min());
    let mut free = free_room(state);
    let mut plan = Plan::default();
    for rows in batches {
        place(state, &rows, &mut free, &mut plan);
    }
    plan
}

/// What each node has left, by handle.
fn free_room(state: &State) -> BTreeMap<u32, Room> {
    let room = |(reference, node): (NodeRef, &std::sync::Arc<skep_proto::model::Node>)| {
        let load = state.load(reference);
        let room = Room {
            nano_cpus: node.description.nano_cpus - load.nano_cpus,
            memory: node.description.memory - load.memory,
            tasks: load.tasks,
            own: 0,
            placed: 0,
        };
        (reference.handle(), room)
    };
    state.nodes().iter().map(room).collect()
}

fn place(state: &State, rows: &[(u32, &TaskRow)], free: &mut BTreeMap<u32, Room>, plan: &mut Plan) {
    let Some((_, first)) = rows.first() else { return };
    let (Some(service), Some(spec)) = (first.service, state.spec_of(first)) else { return };
    count_own(state, service, free);
    let bound = rows.iter().filter(|(_, row)| row.node.is_some());
    for (handle, row) in bound {
        place_bound(state, *handle, row, spec, free, plan);
    }
    let mut unbound: Waiting<'_> = rows.iter().filter(|(_, row)| row.node.is_none()).copied().collect();
    unbound.sort_by_key(|(handle, row)| (row.slot, *handle));
    if unbound.is_empty() {
        return;
    }
    let mut refused: BTreeMap<Filter, usize> = BTreeMap::new();
    let mut queue = Queue::default();
    for (reference, node) in state.nodes().iter() {
        let room = free.get(&reference.handle()).expect("every node has its room");
        match refusal(state, reference, node, spec, room) {
            None => queue.push(reference, room),
            Some(filter) => *refused.entry(filter).or_default() += 1,
        }
    }
    let count = unbound.len();
    let mut placed = 0;
    for (handle, row) in unbound.into_iter().take(ROUND) {
        let Some(node) = queue.pop() else { break };
        assign(handle, row, node, plan);
        placed += 1;
        let room = free.get_mut(&node.handle()).expect("every node has its room");
        take(room, spec);
        let record = state.nodes().lookup(node).expect("the node was just looked at");
        match refusal(state, node, record, spec, room) {
            None => queue.push(node, room),
            Some(filter) => *refused.entry(filter).or_default() += 1,
        }
    }
    let is_stuck = placed < count.min(ROUND);
    let text = if is_stuck { explanation(&refused) } else { String::new() };
    let known = state.explanation(service, first.spec_version).map(|t| t.to_string()).unwrap_or_default();
    if text != known {
        plan.groups.push(Group::of(Change::Explain { service, spec_version: first.spec_version, text }));
    }
}

/// A task of a global service has its node; it only has to fit there.
fn place_bound(
    state: &State,
    handle: u32,
    row: &TaskRow,
    spec: &SharedSpec,
    free: &mut BTreeMap<u32, Room>,
    plan: &mut Plan,
) {
    let found = row.node.and_then(|node| Some((node, state.nodes().lookup(node)?)));
    let Some((node, record)) = found else { return };
    let Some(room) = free.get_mut(&node.handle()) else { return };
    match refusal(state, node, record, spec, room) {
        None => {
            assign(handle, row, node, plan);
            take(room, spec);
        }
        Some(filter) => {
            let text = format!("no suitable node ({})", filter.explain(1));
            if state.extra(handle).is_none_or(|e| e.error != text) {
                plan.groups.push(Group::of(Change::ExplainTask {
                    task: row.reference(handle),
                    if_version: row.version,
                    text,
                }));
            }
        }
    }
}

fn assign(handle: u32, row: &TaskRow, node: NodeRef, plan: &mut Plan) {
    plan.groups.push(Group::of(Change::Assign { task: row.reference(handle), if_version: row.version, node }));
}

fn take(room: &mut Room, spec: &SharedSpec) {
    room.nano_cpus -= spec.nano_cpus;
    room.memory -= spec.memory;
    room.tasks += 1;
    room.own += 1;
    room.placed += 1;
}

/// How many tasks of the service each node has.
fn count_own(state: &State, service: crate::store::ServiceRef, free: &mut BTreeMap<u32, Room>) {
    free.values_mut().for_each(|room| (room.own, room.placed) = (0, 0));
    for (_, row) in state.rows_of_service(service).filter(|(_, row)| row.is_live() && row.occupies_node()) {
        if let Some(room) = row.node.and_then(|node| free.get_mut(&node.handle())) {
            room.own += 1;
        }
    }
}

/// The counts in words, the largest first.
fn explanation(refused: &BTreeMap<Filter, usize>) -> String {
    let mut counts: Vec<(usize, Filter)> = refused.iter().map(|(filter, count)| (*count, *filter)).collect();
    counts.sort_by_key(|(count, filter)| (std::cmp::Reverse(*count), *filter));
    if counts.is_empty() {
        return "no suitable node".into();
    }
    let parts: Vec<String> = counts.into_iter().map(|(count, filter)| filter.explain(count)).collect();
    format!("no suitable node ({})", parts.join("; "))
}
