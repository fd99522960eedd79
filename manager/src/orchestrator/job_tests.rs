use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{Availability, NodeState, ServiceId, ServiceMode, ServiceSpec, Task, TaskState};

use crate::world::World;

fn job(world: &mut World, most: u64, total: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
    let mode = ServiceMode::ReplicatedJob { max_concurrent: most, total_completions: total };
    world.add_service("job", mode, change)
}

fn run_again(world: &mut World, id: ServiceId) {
    world.update_service(id, |s| s.spec.task.force_update += 1);
}

fn completed(world: &World, id: ServiceId) -> Vec<Task> {
    let is_done = |t: &Task| t.status.state == TaskState::Complete && t.desired == TaskState::Running;
    world.tasks(id).into_iter().filter(is_done).collect()
}

fn complete_all(world: &mut World, id: ServiceId) {
    for task in world.running(id) {
        world.end(&task, TaskState::Complete, "");
    }
    world.settle();
}

fn fast(condition: RestartCondition, max_attempts: Option<u64>) -> RestartPolicy {
    RestartPolicy { condition, delay: Some(Duration::ZERO), max_attempts, window: None }
}

#[test]
fn a_job_runs_so_many_at_a_time_until_so_many_have_completed() {
    let mut world = World::new().nodes(2);
    let id = job(&mut world, 2, 5, |_| {});
    world.settle();
    for (running, done) in [(2, 0), (2, 2), (1, 4), (0, 5)] {
        assert_eq!((world.running(id).len(), completed(&world, id).len()), (running, done));
        complete_all(&mut world, id);
    }
    world.pass(Duration::from_secs(3600));
    let slots: BTreeSet<u32> = completed(&world, id).iter().map(|t| t.slot).collect();
    assert_eq!((slots, world.tasks(id).len()), ((1..=5).collect(), 5), "what completed stays in the history");
}

#[test]
fn a_completed_task_is_not_run_again_even_where_the_policy_says_any() {
    let mut world = World::new().nodes(1);
    let id = job(&mut world, 1, 1, |s| s.task.restart = Some(fast(RestartCondition::Any, None)));
    world.settle();
    complete_all(&mut world, id);
    world.pass(Duration::from_secs(60));
    assert_eq!((world.running(id).len(), world.tasks(id).len()), (0, 1));
}

#[test]
fn a_failed_task_is_tried_again_in_its_slot_as_often_as_the_policy_allows() {
    let mut world = World::new().nodes(1);
    let id = job(&mut world, 1, 2, |s| s.task.restart = Some(fast(RestartCondition::OnFailure, Some(1))));
    for _ in 0..4 {
        world.pass(Duration::from_secs(1));
        if let Some(task) = world.running(id).first() {
            world.end(task, TaskState::Failed, "exit");
        }
    }
    world.pass(Duration::from_secs(60));
    let slots: Vec<u32> = world.tasks(id).iter().map(|t| t.slot).collect();
    assert_eq!((world.running(id).len(), slots), (0, vec![1, 1, 2, 2]), "each slot has one attempt more");
}

#[test]
fn an_update_begins_a_new_iteration_and_removes_the_tasks_of_the_old_one() {
    let mut world = World::new().nodes(1);
    let id = job(&mut world, 2, 2, |_| {});
    world.settle();
    complete_all(&mut world, id);
    run_again(&mut world, id);
    world.settle();
    assert_eq!((world.running(id).len(), world.tasks(id).len()), (2, 2), "only the new iteration is left");
    run_again(&mut world, id);
    world.settle();
    let iteration = world.service(id).unwrap().spec_version;
    assert!(world.tasks(id).iter().all(|t| t.spec_version == iteration), "the tasks that ran were stopped");
    assert_eq!(world.running(id).len(), 2);
}

#[test]
fn a_job_that_returns_to_an_earlier_spec_runs_again() {
    let mut world = World::new().nodes(1);
    let id = job(&mut world, 1, 1, |_| {});
    world.settle();
    complete_all(&mut world, id);
    let old = world.service(id).unwrap();
    run_again(&mut world, id);
    world.settle();
    complete_all(&mut world, id);
    world.update_service(id, |s| s.spec = old.spec.clone());
    world.settle();
    assert_eq!(world.running(id).len(), 1);
    assert!(world.service(id).unwrap().spec_version > old.spec_version);
}

#[test]
fn a_task_that_a_drain_stopped_has_not_completed() {
    let mut world = World::new().nodes(2);
    let id = job(&mut world, 1, 1, |_| {});
    world.settle();
    let node = world.running(id)[0].node.unwrap();
    world.update_node(node, |n| n.spec.availability = Availability::Drain);
    world.settle();
    let running = world.running(id);
    assert_eq!((running.len(), completed(&world, id).len()), (1, 0));
    assert_ne!(running[0].node, Some(node));
}

#[test]
fn a_global_job_completes_once_on_each_node_also_on_those_that_come_later() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("job", ServiceMode::GlobalJob, |s| {
        s.task.placement.constraints = vec!["node.labels.no!=yes".into()];
    });
    world.settle();
    assert_eq!(world.running(id).len(), 2);
    complete_all(&mut world, id);
    world.add_node("n3", |_| {});
    world.add_node("n4", |n| drop(n.spec.annotations.labels.insert("no".into(), "yes".into())));
    world.settle();
    assert_eq!((world.running(id).len(), completed(&world, id).len()), (1, 2));
    run_again(&mut world, id);
    world.settle();
    assert_eq!((world.running(id).len(), world.tasks(id).len()), (3, 3));
}

#[test]
fn a_global_job_waits_for_a_lost_node_and_leaves_a_drained_one() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("job", ServiceMode::GlobalJob, |_| {});
    world.settle();
    let [first, second] = [0, 1].map(|at| world.running(id)[at].node.unwrap());
    world.update_node(first, |n| n.state = NodeState::Down);
    world.update_node(second, |n| n.spec.availability = Availability::Drain);
    world.settle();
    assert_eq!(world.running(id).iter().map(|t| t.node.unwrap()).collect::<Vec<_>>(), [first]);
    world.update_node(second, |n| n.spec.availability = Availability::Active);
    world.settle();
    assert_eq!(world.running(id).len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever ends how: never more than allowed run, no slot completes twice, and a job whose tasks succeed completes.
    #[test]
    fn a_job_keeps_its_limits_and_completes(most in 1u64..4, total in 0u64..7, ends in prop::collection::vec(0u8..4, 0..20)) {
        let mut world = World::new().nodes(3);
        let id = job(&mut world, most, total, |s| s.task.restart = Some(fast(RestartCondition::OnFailure, None)));
        for end in ends {
            world.pass(Duration::from_secs(1));
            prop_assert!(world.running(id).len() as u64 <= most);
            if let Some(task) = world.running(id).first() {
                match end {
                    0 => world.end(task, TaskState::Failed, "exit"),
                    1 => {
                        let node = task.node.unwrap();
                        world.update_node(node, |n| n.state = NodeState::Down);
                        world.settle();
                        world.update_node(node, |n| n.state = NodeState::Ready);
                    }
                    _ => world.end(task, TaskState::Complete, ""),
                }
            }
        }
        for _ in 0..=total {
            world.pass(Duration::from_secs(1));
            complete_all(&mut world, id);
        }
        let done = completed(&world, id);
        let slots: BTreeSet<u32> = done.iter().map(|t| t.slot).collect();
        prop_assert_eq!((slots.len() as u64, done.len() as u64), (total, total));
        prop_assert!(world.plans().groups.is_empty(), "a settled world plans nothing");
    }
}
