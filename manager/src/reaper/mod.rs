//! Forgets what nobody needs any more: tasks that have gone, the history of slots beyond what is kept, networks that were
//! removed, tasks whose node will not come back.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::model::{NodeState, TaskState};

use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, Reference, ServiceRef, State, TaskRow, Touched};

/// How long a node may be away before its tasks count as lost for good (swarmkit).
const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Tasks forgotten in one round.
const ROUND: usize = 2000;

/// The planner.
#[derive(Debug, Default)]
pub struct Reaper;

/// What is looked at on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Tasks that have gone, networks and lost nodes.
    Cluster,
    /// The history of a service, by its handle.
    Service(u32),
}

impl Planner for Reaper {
    type Key = Key;
    const NAME: &'static str = "reaper";

    fn keys(&self, state: &State) -> Vec<Key> {
        let services = state.services().iter().map(|(reference, _)| Key::Service(reference.handle()));
        services.chain([Key::Cluster]).collect()
    }

    fn touched(&self, touched: &Touched, state: &State) -> Vec<Key> {
        let mut keys: Vec<Key> = touched.tasks.iter().filter_map(|t| t.service).map(Key::Service).collect();
        keys.sort_unstable();
        keys.dedup();
        let is_cluster = !touched.objects.is_empty()
            || state.removable().next().is_some()
            || state.networks().values().any(|n| n.pending_delete);
        keys.extend(is_cluster.then_some(Key::Cluster));
        keys
    }

    fn plan(&mut self, state: &State, key: Key, env: &mut Env<'_>) -> Plan {
        plan(state, key, env)
    }
}

/// What can be forgotten now.
pub fn plan(state: &State, key: Key, env: &Env<'_>) -> Plan {
    let mut plan = Plan::default();
    match key {
        Key::Service(handle) => {
            let service = state.services().at(handle).and_then(|s| state.services().reference(s.id));
            let old = service.map(|s| history(state, s)).unwrap_or_default();
            plan.groups.extend(old.into_iter().map(|(handle, row)| forget(handle, row)).take(ROUND));
        }
        Key::Cluster => {
            plan.groups.extend(state.removable().map(|(handle, row)| forget(handle, row)).take(ROUND));
            for network in state.networks().values().filter(|n| n.pending_delete) {
                if state.networks().reference(network.id).is_some_and(|r| state.addresses_used(r) == 0) {
                    plan.groups.push(Group::of(Change::delete(&**network)));
                }
            }
            orphans(state, env, &mut plan);
        }
    }
    plan
}

/// A task's row with its handle.
type Row<'a> = (u32, &'a TaskRow);

fn forget(handle: u32, row: &TaskRow) -> Group {
    Group::of(Change::DeleteTask { task: row.reference(handle), if_version: row.version })
}

/// Dead tasks of each place that are more than its history holds. As with Docker the limit counts the live ones too: of
/// five, `service ps` shows the task that runs and four before it.
fn history(state: &State, service: ServiceRef) -> Vec<Row<'_>> {
    let limit = state.cluster().map_or(5, |c| usize::try_from(c.spec.task_history).unwrap_or(usize::MAX));
    let count = state.count(service);
    // Without more tasks than live ones there is no history.
    if count.tasks <= count.live {
        return Vec::new();
    }
    let mut places: BTreeMap<u32, (usize, Vec<Row<'_>>)> = BTreeMap::new();
    for (handle, row) in state.rows_of_service(service) {
        let (all, past) = places.entry(row.place()).or_default();
        *all += 1;
        if row.is_dead() && row.desired > TaskState::Running && row.desired != TaskState::Remove {
            past.push((handle, row));
        }
    }
    let mut old = Vec::new();
    for (all, mut past) in places.into_values() {
        past.sort_by_key(|(handle, row)| (row.created_index, *handle));
        old.extend(past.into_iter().take(all.saturating_sub(limit)));
    }
    old
}

fn is_away(state: NodeState) -> bool {
    matches!(state, NodeState::Down | NodeState::Disconnected)
}

/// Tasks on a node that has been away too long.
fn orphans(state: &State, env: &Env<'_>, plan: &mut Plan) {
    for (reference, node) in state.nodes().iter().filter(|(_, n)| is_away(n.state)) {
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
