//! Which nodes lead new connections to which tasks, as far as is known here. Pure.
//!
//! A task that is to stop first leaves names, virtual addresses and published ports on all nodes; it is told to stop when
//! the last node that led to it has said that it does so no more. A node is counted from the moment it is told of the
//! task as one that serves, whether it has acted on that or not. One whose session ends stays as it was: its rules go on
//! without it.

use std::collections::{BTreeMap, HashMap, HashSet};

use skep_proto::model::session::{AssignmentChange, Assignments};
use skep_proto::model::{NodeId, TaskId};

/// Which nodes lead to which tasks.
#[derive(Debug, Default)]
pub struct Routing {
    nodes: HashMap<NodeId, Told>,
    /// Nodes that lead to a task; absent for none.
    count: HashMap<TaskId, u32>,
    /// Tasks that are to be told to stop: their node and their position.
    waiting: HashMap<TaskId, (NodeId, u32)>,
}

/// What one node was told in its session.
#[derive(Debug, Default)]
struct Told {
    session: u64,
    /// Sets that were sent.
    sets: u64,
    /// Tasks it leads to.
    tasks: HashSet<TaskId>,
    /// Tasks it leads to no more once it has applied the set of that number.
    withdrawn: BTreeMap<u64, Vec<TaskId>>,
}

/// A task that waited and may be told to stop now: its node and its position.
pub type Released = (NodeId, u32);

impl Routing {
    /// A session begins. What the node was told before holds until it has applied the first set, which is whole.
    pub fn begin(&mut self, node: NodeId, session: u64) {
        let told = self.nodes.entry(node).or_default();
        let before: Vec<TaskId> =
            told.withdrawn.split_off(&0).into_values().flatten().chain(told.tasks.drain()).collect();
        *told = Told { session, ..Told::default() };
        if !before.is_empty() {
            told.withdrawn.insert(1, before);
        }
    }

    /// The node is lost or gone: nobody waits for it.
    pub fn forget(&mut self, node: NodeId) -> Vec<Released> {
        let Some(told) = self.nodes.remove(&node) else { return Vec::new() };
        let all: Vec<TaskId> = told.tasks.into_iter().chain(told.withdrawn.into_values().flatten()).collect();
        self.release(all)
    }

    /// A set is about to be sent.
    pub fn sending(&mut self, node: NodeId, session: u64, set: &Assignments) {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.session == session) else { return };
        told.sets += 1;
        let mut withdrawn = Vec::new();
        for change in &set.changes {
            match change {
                AssignmentChange::PutEndpoint(endpoint) => {
                    let is_known = told.tasks.contains(&endpoint.task);
                    // A node may have been told by an earlier leader: the first set, which is whole, withdraws that.
                    if !is_known && (endpoint.serving || set.complete) {
                        *self.count.entry(endpoint.task).or_default() += 1;
                        told.tasks.insert(endpoint.task);
                    }
                    if !endpoint.serving {
                        withdrawn.extend(told.tasks.take(&endpoint.task));
                    }
                }
                AssignmentChange::RemoveEndpoint(task) => withdrawn.extend(told.tasks.take(task)),
                _ => {}
            }
        }
        if !withdrawn.is_empty() {
            told.withdrawn.entry(told.sets).or_default().extend(withdrawn);
        }
    }

    /// The node has applied so many sets.
    pub fn applied(&mut self, node: NodeId, session: u64, sets: u64) -> Vec<Released> {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.session == session) else { return Vec::new() };
        let later = told.withdrawn.split_off(&sets.saturating_add(1));
        let done = std::mem::replace(&mut told.withdrawn, later);
        self.release(done.into_values().flatten().collect())
    }

    /// Whether a node leads to the task. If so, the position is released when none does any more.
    pub fn wait(&mut self, task: TaskId, node: NodeId, handle: u32) -> bool {
        let is_routed = self.count.contains_key(&task);
        if is_routed {
            self.waiting.insert(task, (node, handle));
        }
        is_routed
    }

    fn release(&mut self, tasks: Vec<TaskId>) -> Vec<Released> {
        let mut released = Vec::new();
        for task in tasks {
            let Some(count) = self.count.get_mut(&task) else { continue };
            *count -= 1;
            if *count == 0 {
                self.count.remove(&task);
                released.extend(self.waiting.remove(&task));
            }
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::model::view::EndpointView;

    use super::*;

    const T: TaskId = TaskId(7);
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn put(serving: bool) -> Assignments {
        let endpoint = EndpointView {
            task: T,
            service: None,
            node: A,
            name: "web.1".into(),
            addresses: Vec::new(),
            mesh: None,
            serving,
        };
        Assignments { index: 1, complete: false, changes: vec![AssignmentChange::PutEndpoint(endpoint)] }
    }

    fn led_to_by_two() -> Routing {
        let mut routing = Routing::default();
        for node in [A, B] {
            routing.begin(node, 1);
            routing.sending(node, 1, &put(true));
            routing.applied(node, 1, 1);
        }
        routing
    }

    #[test]
    fn a_task_is_released_when_the_last_node_has_applied_its_withdrawal() {
        let mut routing = led_to_by_two();
        assert!(routing.wait(T, A, 3));
        routing.sending(A, 1, &put(false));
        assert_eq!(routing.applied(A, 1, 2), []);
        // The other one has not even been told; an acknowledgement of something earlier says nothing.
        assert!(routing.wait(T, A, 3));
        routing.sending(B, 1, &put(false));
        assert_eq!(routing.applied(B, 1, 1), []);
        assert_eq!(routing.applied(B, 1, 2), [(A, 3)]);
        assert!(!routing.wait(T, A, 3));
    }

    #[test]
    fn a_node_whose_session_ended_is_waited_for_until_it_is_back_or_lost() {
        let mut routing = led_to_by_two();
        routing.sending(A, 1, &put(false));
        routing.applied(A, 1, 2);
        assert!(routing.wait(T, A, 3));
        routing.begin(B, 2);
        assert_eq!(routing.applied(B, 1, 9), [], "an older session counts no more");
        routing.sending(B, 2, &put(false));
        assert_eq!(routing.applied(B, 2, 1), [(A, 3)]);

        let mut routing = led_to_by_two();
        routing.sending(A, 1, &put(false));
        routing.applied(A, 1, 2);
        assert!(routing.wait(T, A, 3));
        assert_eq!(routing.forget(B), [(A, 3)]);
        assert_eq!(routing.forget(B), []);
    }

    #[test]
    fn what_an_earlier_leader_may_have_told_holds_until_the_first_set_is_applied() {
        let mut routing = Routing::default();
        routing.begin(A, 1);
        routing.sending(A, 1, &Assignments { complete: true, ..put(false) });
        assert!(routing.wait(T, A, 3));
        assert_eq!(routing.applied(A, 1, 1), [(A, 3)]);
    }

    #[test]
    fn a_task_that_nobody_leads_to_waits_for_nobody() {
        let mut routing = Routing::default();
        routing.begin(A, 1);
        routing.sending(A, 1, &put(false));
        assert!(!routing.wait(T, A, 3));
    }

    #[test]
    fn a_session_that_says_the_same_again_counts_once() {
        let mut routing = led_to_by_two();
        routing.begin(A, 2);
        routing.sending(A, 2, &put(true));
        assert_eq!(routing.applied(A, 2, 1), []);
        routing.sending(A, 2, &put(false));
        routing.applied(A, 2, 2);
        routing.sending(B, 1, &put(false));
        assert!(routing.wait(T, A, 3));
        assert_eq!(routing.applied(B, 1, 2), [(A, 3)]);
    }
}
