//! Evening out a service that the cluster has outgrown: a node joined or came back, and has too few of its tasks.
//!
//! Only where the operator asked for it, by the service's label [`LABEL`]. A move is a start-first replacement in the same
//! slot: the new task runs before the old one is told to stop, so there are never fewer than are wanted. One move at a time,
//! and only one that the scheduler would make and that makes the spread more even: so it comes to an end.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::model::{Service, Timestamp};

use super::update::Slot;
use super::{Creation, Input, Start};
use crate::reconcile::{Env, Plan};
use crate::scheduler;
use crate::store::{Change, Group, Reference};

/// The label that asks for it.
pub const LABEL: &str = "skep.rebalance";
/// Its value for "whenever it is needed".
pub const AUTO: &str = "auto";
/// Its value for "now": it goes when the service is even.
pub const ONCE: &str = "once";
/// Between two moves at least, so that a large service does not start all over at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Plans the next move of a service whose tasks all run.
pub(super) fn plan(input: &Input<'_>, slots: &[Slot<'_>], env: &mut Env<'_>, plan: &mut Plan) {
    let asked = input.service.spec.annotations.labels.get(LABEL).map(String::as_str);
    if !matches!(asked, Some(AUTO | ONCE)) || slots.iter().any(|s| !s.is_settled(input.service)) {
        return;
    }
    let Some(slot) = next(input, slots, env.now) else {
        if asked == Some(ONCE) {
            plan.groups.push(Group::of(Change::update(&without_label(input.service))));
        }
        return;
    };
    let pause = input.service.spec.update.as_ref().map_or(PAUSE, |update| update.delay.max(PAUSE));
    let last = slots.iter().filter_map(Slot::newest).map(|row| row.updated_ms).max().unwrap_or_default();
    let at = Timestamp(last).after(pause);
    if at > env.now {
        plan.recheck(at);
        return;
    }
    let creation = Creation { slot, node: None, place: slot, start: Start::Now, restarts: Vec::new() };
    plan.groups.push(Group::of(input.create(creation, env)));
}

/// The slot whose task should run where the scheduler would put another one.
fn next(input: &Input<'_>, slots: &[Slot<'_>], now: Timestamp) -> Option<u32> {
    let state = input.state;
    let to = scheduler::choice(state, input.reference, input.service.spec_version, now)?;
    // The counts that a move must make more even: of the domain at each level of preference, then of the node.
    let preferences = &input.service.spec.task.placement.preferences;
    let path = |node: u32| -> Option<Vec<String>> {
        let record = state.nodes().at(node)?;
        let labels = preferences.iter().map(|preference| scheduler::rank::value(preference, record).to_owned());
        Some(labels.chain([node.to_string()]).collect())
    };
    let mut counts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    let mut places: Vec<(u32, Vec<String>)> = Vec::new();
    for slot in slots {
        let path = path(slot.newest()?.node?.handle())?;
        (1..=path.len()).for_each(|depth| *counts.entry(path[..depth].to_vec()).or_default() += 1);
        places.push((slot.slot, path));
    }
    let to = path(to)?;
    let count = |path: &[String]| counts.get(path).copied().unwrap_or_default();
    let gains = |from: &[String]| {
        let fork = from.iter().zip(&to).position(|(a, b)| a != b);
        fork.is_some_and(|at| count(&to[..=at]) + 1 < count(&from[..=at]))
    };
    let fullness = |path: &[String]| (1..=path.len()).map(|depth| count(&path[..depth])).collect::<Vec<_>>();
    places
        .iter()
        .filter(|(_, from)| gains(from))
        .max_by_key(|(slot, from)| (fullness(from), *slot))
        .map(|(slot, _)| *slot)
}

fn without_label(service: &Service) -> Service {
    let mut changed = service.clone();
    changed.spec.annotations.labels.remove(LABEL);
    changed
}
