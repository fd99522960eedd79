//! Which tasks a service has: as many as are wanted, of the spec in force, replaced when they end.
//!
//! [`plan`] decides for one service. Each *place* (a slot of a replicated service, a node of a global one) is judged by
//! its tasks alone ([`place`]); the number of places, and how fast an update goes through them, is decided over all
//! ([`replicated`], [`global`], [`job`], [`update`]).

pub mod dependency;
#[cfg(test)]
mod dependency_tests;
mod global;
pub mod job;
#[cfg(test)]
mod job_tests;
pub mod place;
pub mod rebalance;
#[cfg(test)]
mod rebalance_tests;
mod replicated;
pub mod restart;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeSet;

use skep_proto::model::{Availability, Node, NodeState, Service, ServiceMode, TaskState};

use crate::reconcile::{Env, Plan, Planner};
use crate::scheduler::filter::fits_for_ever;
use crate::store::{Change, Group, Kind, NodeRef, Reference, ServiceRef, State, TaskRow, Touched};

/// The planner; its key is a service.
#[derive(Debug, Default)]
pub struct Orchestrator {
    /// Services that wait for others: what happens to any service may concern them.
    waiting: BTreeSet<u32>,
}

impl Planner for Orchestrator {
    type Key = u32;
    const NAME: &'static str = "orchestrator";

    fn keys(&self, state: &State) -> Vec<u32> {
        state.services().iter().map(|(reference, _)| reference.handle()).collect()
    }

    fn touched(&self, touched: &Touched, state: &State) -> Vec<u32> {
        // A node may concern every service that has, or could have, a task on it.
        if touched.objects.iter().any(|o| o.kind == Kind::Node) {
            return self.keys(state);
        }
        let services = touched.objects.iter().filter(|o| o.kind == Kind::Service).map(|o| o.handle);
        let mut keys: Vec<u32> = services.chain(touched.tasks.iter().filter_map(|t| t.service)).collect();
        if !keys.is_empty() {
            keys.extend(&self.waiting);
        }
        keys
    }

    fn plan(&mut self, state: &State, key: u32, env: &mut Env<'_>) -> Plan {
        let waits = state.services().at(key).is_some_and(|service| dependency::waits(state, service));
        if waits {
            self.waiting.insert(key);
        } else {
            self.waiting.remove(&key);
        }
        plan(state, key, env)
    }
}

/// One service, as its planners see it.
pub(crate) struct Input<'a> {
    pub state: &'a State,
    pub reference: ServiceRef,
    pub service: &'a Service,
    /// Its tasks must not start yet.
    pub waits: bool,
}

/// What the service at that handle lacks.
pub fn plan(state: &State, handle: u32, env: &mut Env<'_>) -> Plan {
    let found = state.services().at(handle).and_then(|s| Some((s, state.services().reference(s.id)?)));
    let Some((service, reference)) = found else { return Plan::default() };
    let input = Input { state, reference, service, waits: dependency::waits(state, service) };
    if service.pending_delete {
        return remove_all(&input);
    }
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicated::plan(&input, replicas, env),
        ServiceMode::Global => global::plan(&input, env),
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => job::plan(&input, env),
    }
}

/// Tasks of a service that goes are removed; the record follows them.
fn remove_all(input: &Input<'_>) -> Plan {
    let rows: Vec<(u32, &TaskRow)> = input.state.rows_of_service(input.reference).collect();
    let groups = if rows.is_empty() {
        vec![Group::of(Change::delete(input.service))]
    } else {
        rows.into_iter().filter_map(|(handle, row)| remove(handle, row)).map(Group::of).collect()
    };
    Plan { groups, recheck_at: None }
}

/// Withdraws a task for good, unless that was done.
pub(crate) fn remove(handle: u32, row: &TaskRow) -> Option<Change> {
    desire(handle, row, TaskState::Remove)
}

/// Changes what is wanted of a task, unless that or more is wanted already.
pub(crate) fn desire(handle: u32, row: &TaskRow, to: TaskState) -> Option<Change> {
    (row.desired < to).then(|| Change::Desire { task: row.reference(handle), if_version: row.version, to })
}

/// Why a task on a node cannot stay there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Homeless {
    /// The node is lost, or was removed.
    Lost,
    /// The node is drained, or does not satisfy the constraints any more.
    Unwanted,
}

/// Whether a task must leave its node. A task that has none has nowhere to leave.
pub(crate) fn homeless(state: &State, row: &TaskRow) -> Option<Homeless> {
    let node = row.node?;
    let Some(node) = state.nodes().lookup(node) else { return Some(Homeless::Lost) };
    if matches!(node.state, NodeState::Down | NodeState::Disconnected) {
        return Some(Homeless::Lost);
    }
    let fits = || state.spec_of(row).is_none_or(|spec| fits_for_ever(node, &spec.task.placement));
    (node.spec.availability == Availability::Drain || !fits()).then_some(Homeless::Unwanted)
}

/// A node that new tasks of a service may go to, as far as the node alone says.
pub(crate) fn takes_tasks(node: &Node) -> bool {
    node.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Makes a task in a place.
pub(crate) struct Creation {
    pub slot: u32,
    pub node: Option<NodeRef>,
    pub place: u32,
    pub start: Start,
    pub restarts: Vec<u64>,
}

/// When a new task may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// As soon as it can.
    Now,
    /// Not before this time, in milliseconds.
    At(u64),
    /// When the others of its place have stopped.
    AfterOthers,
}

impl Input<'_> {
    pub(crate) fn create(&self, creation: Creation, env: &mut Env<'_>) -> Change {
        let (desired, start_ms) = match creation.start {
            // Its time has come, and it starts when it need not wait any more.
            Start::Now if self.waits => (TaskState::Ready, env.now.0.max(1)),
            Start::Now => (TaskState::Running, 0),
            Start::At(at) => (TaskState::Ready, at),
            Start::AfterOthers => (TaskState::Ready, 0),
        };
        Change::CreateTask {
            id: env.task_id(),
            service: self.reference,
            spec_version: self.service.spec_version,
            slot: creation.slot,
            node: creation.node,
            desired,
            start_ms,
            restarts: creation.restarts,
            after: self.state.newest_in_place(self.reference, creation.place),
        }
    }
}
