//! Forgets what nobody needs any more: tasks that have gone, the history of slots beyond what is kept, networks that were
//! removed, tasks whose node will not come back.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::model::{NodeState, TaskState};

use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, State, TaskRow, Touched};

/// How long a node may be away before its tasks count as lost for good (swarmkit).
const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Tasks forgotten in one round.
const ROUND: usize = 2000;

/// The planner.
#[derive(Debug, Default)]
pub struct Reaper;

impl Planner for Reaper {
    type Key = ();
    const NAME: &'static str = "reaper";

    fn keys(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn touched(&self, _: &Touched, _: &State) -> Vec<()> {
        vec![()]
    }

    fn plan(&mut self, state: &State, (): (), env: &mut Env<'_>) -> Plan {
        plan(state, env)
    }
}

/// What can be forgotten now.
pub fn plan(state: &State, env: &Env<'_>) -> Plan {
    let mut plan = Plan::default();
    let gone = state.removable().map(|(handle, row)| forget(handle, row));
    let limit = state.cluster().map_or(5, |c| usize::try_from(c.spec.task_history).unwrap_or(usize::MAX));
    let old = history(state, limit).into_iter().map(|(handle, row)| forget(handle, row));
    plan.groups.extend(gone.chain(old).take(ROUND));
    for network in state.networks().values().filter(|n| n.pending_delete) {
        if state.networks().reference(network.id).is_some_and(|r| state.addresses_used(r) == 0) {
            plan.groups.push(Group::of(Change::delete(&**network)));
        }
    }
    orphans(state, env, &mut plan);
    plan
}

fn forget(handle: u32, row: &TaskRow) -> Group {
    Group::of(Change::DeleteTask { task: row.reference(handle), if_version: row.version })
}

/// Dead tasks of each place beyond the newest `limit`, as Docker keeps them for `service ps`.
fn history(state: &State, limit: usize) -> Vec<(u32, &TaskRow)> {
    let mut places: BTreeMap<(u32, u32), Vec<(u32, &TaskRow)>> = BTreeMap::new();
    for (reference, _) in state.services().iter() {
        let count = state.count(reference);
        // Without more tasks than live ones there is no history.
        if count.tasks <= count.live {
            continue;
        }
        for (handle, row) in state.rows_of_service(reference) {
            let is_history = row.is_dead() && row.desired > TaskState::Running && row.desired != TaskState::Remove;
            if is_history {
                places
                    .entry((crate::store::Reference::handle(reference), row.place()))
                    .or_default()
                    .push((handle, row));
            }
        }
    }
    let mut old = Vec::new();
    for mut rows in places.into_values() {
        rows.sort_by_key(|(handle, row)| (std::cmp::Reverse(row.created_index), *handle));
        old.extend(rows.into_iter().skip(limit));
    }
    old
}

/// Tasks on a node that has been away too long.
fn orphans(state: &State, env: &Env<'_>, plan: &mut Plan) {
    for (reference, node) in state.nodes().iter().filter(|(_, n)| n.state == NodeState::Down) {
        let at = node.meta.updated_at.after(ORPHAN_AFTER);
        if at > env.now {
            plan.recheck(at);
            continue;
        }
        for (handle, row) in state.rows_on_node(reference).filter(|(_, row)| !row.is_dead()) {
            plan.groups.push(Group::of(Change::Status {
                task: row.reference(handle),
                state: TaskState::Orphaned,
                at_ms: env.now.0,
                exit: None,
            }));
        }
    }
}
