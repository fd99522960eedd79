//! Which node each task gets.
//!
//! Tasks of one spec are placed as a batch: filters ([`filter`], [`columns`]) say which nodes can take one, a heap gives
//! them out evenly ([`rank`]), and where nothing fits, the counts of the filters are the explanation that people read.

mod columns;
pub mod constraint;
pub mod filter;
mod pins;
pub mod rank;
#[cfg(test)]
mod tests;

use std::time::Duration;

use skep_proto::model::{TaskState, Timestamp};

use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, Kind, NodeRef, Reference, ServiceRef, SharedSpec, State, TaskRow, Touched};
use columns::{Bits, Columns, Refused};
use filter::Filter;
use pins::Pins;
use rank::{Domain, Key};

pub use columns::Cache;

/// Placements of one spec in one round, so that a huge service does not hold up a small one.
const ROUND: usize = 500;
/// How long a failure speaks against its node (swarmkit's figure).
const FAILURE_MEMORY: Duration = Duration::from_secs(5 * 60);
/// How many must, before they count more than an even spread. Swarmkit asks for five; failures are read from the history
/// of tasks here, so that a new leader knows them too, and that keeps four a slot by default.
const FAILURES_THAT_COUNT: u32 = 3;

/// The planner. It has one key: all placements compete for the same room.
#[derive(Debug, Default)]
pub struct Scheduler {
    cache: Cache,
}

impl Planner for Scheduler {
    type Key = ();
    const NAME: &'static str = "scheduler";

    fn keys(&self, _: &State) -> Vec<()> {
        vec![()]
    }

    fn touched(&self, touched: &Touched, state: &State) -> Vec<()> {
        let is_needed = state.unplaced().next().is_some() || state.explanations().next().is_some();
        // Only a task that waits, or one that gives room back, changes what can be placed.
        let matters = |handle| state.row_at(handle).is_none_or(|row| row.state == TaskState::Pending || !row.is_live());
        let is_due = touched.objects.iter().any(|o| o.kind == Kind::Node)
            || touched.tasks.iter().any(|task| matters(task.handle));
        if is_needed && is_due { vec![()] } else { Vec::new() }
    }

    fn plan(&mut self, state: &State, (): (), env: &mut Env<'_>) -> Plan {
        plan(state, &mut self.cache, env.now)
    }
}

/// Places what can be placed and explains the rest.
pub fn plan(state: &State, cache: &mut Cache, now: Timestamp) -> Plan {
    let mut specs: Vec<(u64, ServiceRef, u64)> = state
        .unplaced_specs()
        .map(|(service, version)| {
            let oldest = state.unplaced_of(service, version).take(ROUND).map(|(_, row)| row.created_index).min();
            (oldest.unwrap_or_default(), service, version)
        })
        .collect();
    // The one that has waited longest first.
    specs.sort_unstable();
    let mut plan = Plan::default();
    forget_explanations(state, &mut plan);
    if specs.is_empty() {
        return plan;
    }
    cache.refresh(state);
    let mut round = Round {
        state,
        now,
        columns: Columns::of(state, cache),
        own: Own::default(),
        pins: Pins::default(),
        cache,
        plan,
    };
    for (_, service, version) in specs {
        round.place(service, version);
    }
    round.plan
}

/// The node that another task of a service would get now, by its handle. It changes nothing.
pub fn choice(state: &State, service: ServiceRef, version: u64, now: Timestamp) -> Option<u32> {
    // A task with a volume that pins does not move.
    let spec = state.spec(service, version).filter(|spec| !pins::pins(&spec.task))?;
    let mut cache = Cache::default();
    cache.refresh(state);
    let columns = Columns::of(state, &cache);
    let fitting = columns.fitting(state, &mut cache, spec, &mut Refused::default(), None);
    let mut own = Own::default();
    own.count(state, service, version, now);
    let allowed = fitting.iter().filter(|handle| own.allows(*handle, spec));
    let keys = allowed.map(|node| own.key(node, &columns)).collect();
    Domain::of(keys, &cache.preferences(state, &spec.task.placement.preferences)).place(&mut |_| None)
}

/// Nobody waits any more: the reason is history.
fn forget_explanations(state: &State, plan: &mut Plan) {
    for (handle, spec_version, _) in state.explanations() {
        let service = state.services().at(handle).and_then(|s| state.services().reference(s.id));
        if let Some(service) = service.filter(|s| state.unplaced_of(*s, spec_version).next().is_none()) {
            plan.groups.push(Group::of(Change::Explain { service, spec_version, text: String::new() }));
        }
    }
}

/// One plan in the making.
struct Round<'a> {
    state: &'a State,
    now: Timestamp,
    cache: &'a mut Cache,
    columns: Columns,
    own: Own,
    pins: Pins,
    plan: Plan,
}

/// Tasks of the service being placed, by node: a scratch column, undone after each spec.
#[derive(Default)]
struct Own {
    tasks: Vec<u32>,
    failures: Vec<u32>,
    used: Vec<u32>,
}

impl Own {
    fn count(&mut self, state: &State, service: ServiceRef, version: u64, now: Timestamp) {
        self.used.drain(..).for_each(|handle| (self.tasks[handle as usize], self.failures[handle as usize]) = (0, 0));
        self.tasks.resize(state.nodes().handles(), 0);
        self.failures.resize(state.nodes().handles(), 0);
        for (_, row) in state.rows_of_service(service) {
            let Some(node) = row.node else { continue };
            let is_failure = || {
                row.spec_version == version
                    && matches!(row.state, TaskState::Failed | TaskState::Rejected)
                    && now.since(Timestamp(row.updated_ms)) < FAILURE_MEMORY
            };
            let at = node.handle() as usize;
            if row.is_live() && row.occupies_node() {
                self.tasks[at] += 1;
            } else if is_failure() {
                self.failures[at] += 1;
            } else {
                continue;
            }
            self.used.push(node.handle());
        }
    }

    fn take(&mut self, handle: u32) {
        self.tasks[handle as usize] += 1;
        self.used.push(handle);
    }

    /// Whether one node may have another task of the service.
    fn allows(&self, handle: u32, spec: &SharedSpec) -> bool {
        let most = spec.task.placement.max_replicas;
        most == 0 || u64::from(self.tasks[handle as usize]) < most
    }

    fn key(&self, node: u32, columns: &Columns) -> Key {
        Key { failures: self.failures(node), own: self.tasks[node as usize], tasks: columns.tasks[node as usize], node }
    }

    fn failures(&self, handle: u32) -> u32 {
        Some(self.failures[handle as usize]).filter(|n| *n >= FAILURES_THAT_COUNT).unwrap_or_default()
    }
}

impl Round<'_> {
    fn place(&mut self, service: ServiceRef, version: u64) {
        let state = self.state;
        let Some(spec) = state.spec(service, version) else { return };
        let rows: Vec<(u32, &TaskRow)> = state.unplaced_of(service, version).take(ROUND).collect();
        let (bound, mut unbound): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, row)| row.node.is_some());
        let mut counted = false;
        for (handle, row) in bound {
            if !std::mem::replace(&mut counted, true) {
                self.own.count(state, service, version, self.now);
            }
            self.place_bound(handle, row, spec);
        }
        if unbound.is_empty() {
            return;
        }
        unbound.sort_unstable_by_key(|(handle, row)| (row.slot, *handle));
        if pins::pins(&spec.task) {
            if !counted {
                self.own.count(state, service, version, self.now);
            }
            unbound.into_iter().for_each(|(handle, row)| self.place_pinned(handle, row, spec));
            return;
        }
        let mut refused = Refused::default();
        let fitting = self.columns.fitting(state, self.cache, spec, &mut refused, None);
        let mut placed = 0;
        // Where no node fits, the service's other tasks need not be walked.
        if !fitting.is_empty() {
            if !counted {
                self.own.count(state, service, version, self.now);
            }
            placed = self.place_on(&fitting, &unbound, spec, &mut refused);
        }
        let text = if placed < unbound.len() { refused.explain() } else { String::new() };
        if text != state.explanation(service, version).map_or("", |known| known) {
            self.plan.groups.push(Group::of(Change::Explain { service, spec_version: version, text }));
        }
    }

    /// Gives the tasks to the nodes that fit, best first. Returns how many got one.
    fn place_on(
        &mut self,
        fitting: &Bits,
        tasks: &[(u32, &TaskRow)],
        spec: &SharedSpec,
        refused: &mut Refused,
    ) -> usize {
        let (state, columns, own) = (self.state, &mut self.columns, &mut self.own);
        let (allowed, full): (Vec<u32>, Vec<u32>) = fitting.iter().partition(|handle| own.allows(*handle, spec));
        refused.add(Filter::MaxReplicas, full.len());
        let keys = allowed.into_iter().map(|node| own.key(node, columns));
        let preferences = self.cache.preferences(state, &spec.task.placement.preferences);
        let mut nodes = Domain::of(keys.collect(), &preferences);
        let mut placed = 0;
        for (handle, row) in tasks {
            let node = nodes.place(&mut |key| {
                columns.take(key.node, spec);
                own.take(key.node);
                let filter = columns.refusal(state, key.node, spec);
                let filter = filter.or_else(|| (!own.allows(key.node, spec)).then_some(Filter::MaxReplicas));
                if let Some(filter) = filter {
                    refused.add(filter, 1);
                    return None;
                }
                Some(Key { own: key.own + 1, tasks: key.tasks + 1, ..key })
            });
            let Some(node) = node.and_then(|node| self.cache.node(node)) else { break };
            self.plan.groups.push(assign(*handle, row, node));
            placed += 1;
        }
        placed
    }

    /// A task that uses a volume runs where it is; without one yet, anywhere, and the volume is there from then on.
    fn place_pinned(&mut self, handle: u32, row: &TaskRow, spec: &SharedSpec) {
        let names = pins::names(&spec.task, &spec.service.spec.annotations.name, row.slot);
        let home = self.pins.home(self.state, &names);
        let only = home.as_ref().map(|(_, node)| {
            let mut only = Bits::default();
            only.set(node.handle(), true);
            only
        });
        let mut refused = Refused::default();
        let fitting = self.columns.fitting(self.state, self.cache, spec, &mut refused, only.as_ref());
        let before = self.plan.groups.len();
        self.place_on(&fitting, &[(handle, row)], spec, &mut refused);
        let placed =
            self.plan.groups[before..].iter().flat_map(|group| &group.changes).find_map(|change| match change {
                Change::Assign { node, .. } => Some(*node),
                _ => None,
            });
        if let Some(node) = placed {
            self.pins.settle(self.state, names, node);
            return;
        }
        let text = match home {
            Some((volume, node)) => {
                let node = self.state.nodes().lookup(node).map_or_else(String::new, |n| n.description.hostname.clone());
                format!("the volume {volume} is on node {node}: {}", refused.explain())
            }
            None => refused.explain(),
        };
        if self.state.extra(handle).is_none_or(|e| e.error != text) {
            let task = row.reference(handle);
            self.plan.groups.push(Group::of(Change::ExplainTask { task, if_version: row.version, text }));
        }
    }

    /// A task of a global service has its node; it only has to fit there.
    fn place_bound(&mut self, handle: u32, row: &TaskRow, spec: &SharedSpec) {
        let Some(node) = row.node.filter(|node| self.state.nodes().lookup(*node).is_some()) else { return };
        let mut only = Bits::default();
        only.set(node.handle(), true);
        let mut refused = Refused::default();
        let mut fits = self.columns.fitting(self.state, self.cache, spec, &mut refused, Some(&only));
        if !self.own.allows(node.handle(), spec) {
            refused.add(Filter::MaxReplicas, 1);
            fits = Bits::default();
        }
        if fits.has(node.handle()) {
            self.columns.take(node.handle(), spec);
            self.own.take(node.handle());
            self.plan.groups.push(assign(handle, row, node));
            return;
        }
        let text = refused.explain();
        if self.state.extra(handle).is_none_or(|e| e.error != text) {
            let task = row.reference(handle);
            self.plan.groups.push(Group::of(Change::ExplainTask { task, if_version: row.version, text }));
        }
    }
}

fn assign(handle: u32, row: &TaskRow, node: NodeRef) -> Group {
    Group::of(Change::Assign { task: row.reference(handle), if_version: row.version, node })
}
