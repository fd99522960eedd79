use std::time::Duration;

use proptest::prelude::*;
use skep_proto::model::service::{FailureAction, PreviousSpec, UpdateConfig, UpdateOrder, UpdateState};
use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{Availability, NodeId, NodeState, ServiceId, ServiceMode, ServiceSpec, TaskState};

use crate::world::World;

fn replicated(world: &mut World, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
    world.add_service("web", ServiceMode::Replicated { replicas }, change)
}

fn scale(world: &mut World, id: ServiceId, replicas: u64) {
    world.update_service(id, |s| s.spec.mode = ServiceMode::Replicated { replicas });
    world.settle();
}

fn change_args(world: &mut World, id: ServiceId, args: &str) {
    world.update_service(id, |s| {
        s.previous = Some(Box::new(PreviousSpec { spec: s.spec.clone(), spec_version: s.spec_version }));
        s.spec.task.containers[0].args = vec![args.into()];
    });
}

#[test]
fn a_service_gets_its_tasks_spread_evenly() {
    let mut world = World::new().nodes(3);
    let id = replicated(&mut world, 6, |_| {});
    world.settle();
    assert_eq!(world.spread(id).into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn scaling_down_takes_from_the_fullest_nodes_and_forgets_the_tasks() {
    let mut world = World::new().nodes(2);
    let id = replicated(&mut world, 3, |_| {});
    world.settle();
    scale(&mut world, id, 2);
    assert_eq!(world.spread(id).into_values().collect::<Vec<_>>(), [1, 1]);
    assert_eq!(world.tasks(id).len(), 2);
    scale(&mut world, id, 0);
    assert_eq!(world.tasks(id).len(), 0);
}

#[test]
fn a_failed_task_is_replaced_after_the_delay_and_stays_in_the_history() {
    let mut world = World::new().nodes(1);
    let id = replicated(&mut world, 1, |_| {});
    world.settle();
    world.end(&world.running(id)[0], TaskState::Failed, "task: non-zero exit (1)");
    world.settle();
    assert_eq!(world.running(id).len(), 0);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.running(id).len(), 0);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.running(id).len(), 1);
    let old: Vec<_> = world.tasks(id).into_iter().filter(|t| t.status.state == TaskState::Failed).collect();
    assert_eq!(
        (old.len(), old[0].desired, old[0].status.error.as_str()),
        (1, TaskState::Shutdown, "task: non-zero exit (1)")
    );
}

#[test]
fn no_more_than_the_allowed_attempts_are_made() {
    let mut world = World::new().nodes(1);
    let policy = RestartPolicy {
        condition: RestartCondition::OnFailure,
        delay: Some(Duration::ZERO),
        max_attempts: Some(2),
        window: None,
    };
    let id = replicated(&mut world, 1, |s| s.task.restart = Some(policy));
    for _ in 0..5 {
        world.pass(Duration::from_secs(1));
        if let Some(task) = world.running(id).first() {
            world.end(task, TaskState::Failed, "exit");
        }
    }
    world.settle();
    assert_eq!(world.tasks(id).len(), 3, "the first and two attempts more");
}

#[test]
fn history_is_kept_as_long_as_the_cluster_wants() {
    let mut world = World::new().nodes(1);
    let policy = RestartPolicy { delay: Some(Duration::ZERO), ..RestartPolicy::default() };
    let id = replicated(&mut world, 1, |s| s.task.restart = Some(policy));
    for _ in 0..12 {
        world.pass(Duration::from_secs(1));
        world.end(&world.running(id)[0], TaskState::Failed, "exit");
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.tasks(id).len(), 5, "the one that runs and four before it");
}

#[test]
fn a_lost_node_s_tasks_are_replaced_at_once_and_stop_when_it_returns() {
    let mut world = World::new().nodes(2);
    let id = replicated(&mut world, 4, |_| {});
    world.settle();
    let lost = world.running(id)[0].node.unwrap();
    world.update_node(lost, |n| n.state = NodeState::Down);
    world.settle();
    assert_eq!(world.spread(id).into_values().filter(|n| *n == 4).count(), 1);
    world.update_node(lost, |n| n.state = NodeState::Ready);
    world.settle();
    assert_eq!(world.running(id).len(), 4);
    assert!(world.tasks(id).iter().all(|t| t.desired <= TaskState::Running || t.status.state.is_terminal()));
}

#[test]
fn draining_moves_tasks_and_pausing_keeps_them() {
    let mut world = World::new().nodes(2);
    let id = replicated(&mut world, 4, |_| {});
    world.settle();
    let node = world.running(id)[0].node.unwrap();
    world.update_node(node, |n| n.spec.availability = Availability::Pause);
    scale(&mut world, id, 6);
    let on = |world: &World, node: NodeId| world.running(id).iter().filter(|t| t.node == Some(node)).count();
    assert_eq!(on(&world, node), 2);
    world.update_node(node, |n| n.spec.availability = Availability::Drain);
    world.settle();
    assert_eq!((on(&world, node), world.running(id).len()), (0, 6));
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("agent", ServiceMode::Global, |s| {
        s.task.placement.constraints = vec!["node.labels.no!=yes".into()];
    });
    world.settle();
    assert_eq!(world.running(id).len(), 2);
    let new = world.add_node("n3", |_| {});
    world.settle();
    assert_eq!(world.running(id).len(), 3);
    world.update_node(new, |n| drop(n.spec.annotations.labels.insert("no".into(), "yes".into())));
    world.settle();
    assert_eq!(world.running(id).len(), 2);
    let lost = world.running(id)[0].node.unwrap();
    world.update_node(lost, |n| n.state = NodeState::Down);
    world.settle();
    assert_eq!(world.tasks(id).iter().filter(|t| t.desired == TaskState::Running).count(), 2, "it may still run there");
}

#[test]
fn an_update_changes_one_task_at_a_time_and_never_runs_two_in_a_slot() {
    let mut world = World::new().nodes(3);
    let id = replicated(&mut world, 4, |_| {});
    world.settle();
    change_args(&mut world, id, "new");
    let version = world.service(id).unwrap().spec_version;
    let mut least = 4;
    for _ in 0..200 {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        if groups.is_empty() {
            break;
        }
        world.propose(groups);
        least = least.min(world.running(id).len());
        let mut slots: Vec<u32> = world.running(id).iter().map(|t| t.slot).collect();
        slots.dedup();
        assert_eq!(slots.len(), world.running(id).len(), "one running task a slot");
    }
    assert!(least >= 3, "{least}");
    assert!(world.running(id).iter().all(|t| t.spec_version == version));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.service(id).unwrap().update_status.as_ref().unwrap().state, UpdateState::Completed);
}

#[test]
fn a_start_first_update_never_has_fewer_than_wanted() {
    let mut world = World::new().nodes(3);
    let config = UpdateConfig { order: UpdateOrder::StartFirst, parallelism: 2, ..UpdateConfig::default() };
    let id = replicated(&mut world, 4, |s| s.update = Some(config));
    world.settle();
    change_args(&mut world, id, "new");
    for _ in 0..200 {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        if groups.is_empty() {
            break;
        }
        world.propose(groups);
        assert!(world.running(id).len() >= 4);
    }
    world.pass(Duration::from_secs(6));
    assert_eq!(world.running(id).len(), 4);
    assert_eq!(world.service(id).unwrap().update_status.as_ref().unwrap().state, UpdateState::Completed);
}

#[test]
fn an_update_that_fails_is_paused() {
    let mut world = World::new().nodes(3);
    let config = UpdateConfig { failure_action: FailureAction::Pause, ..UpdateConfig::default() };
    let id = replicated(&mut world, 4, |s| s.update = Some(config));
    world.settle();
    change_args(&mut world, id, "broken");
    let version = world.service(id).unwrap().spec_version;
    for _ in 0..50 {
        let groups = world.plans().groups;
        world.propose(groups);
        let broken: Vec<_> = world
            .tasks(id)
            .into_iter()
            .filter(|t| t.spec_version == version && t.status.state == TaskState::Assigned)
            .collect();
        for task in broken {
            world.end(&task, TaskState::Rejected, "No such image: image");
        }
        let obeyed: Vec<_> = world.obey();
        world.propose(obeyed);
    }
    let service = world.service(id).unwrap();
    assert_eq!(service.update_status.as_ref().unwrap().state, UpdateState::Paused);
    assert!(world.running(id).len() >= 3, "the others were left alone");
}

/// Rejects every task of the present spec, until nothing is left to do.
fn reject_all(world: &mut World, id: ServiceId) {
    let broken = world.service(id).unwrap().spec_version;
    for _ in 0..100 {
        let groups = world.plans().groups;
        world.propose(groups);
        for task in world.tasks(id).into_iter().filter(|t| t.spec_version == broken) {
            if (TaskState::Assigned..=TaskState::Running).contains(&task.status.state) {
                world.end(&task, TaskState::Rejected, "No such image: image");
            }
        }
        let obeyed: Vec<_> = world.obey();
        world.propose(obeyed);
    }
}

#[test]
fn an_update_that_fails_is_rolled_back_and_leaves_the_others_alone() {
    let mut world = World::new().nodes(3);
    let config = UpdateConfig { failure_action: FailureAction::Rollback, ..UpdateConfig::default() };
    let id = replicated(&mut world, 4, |s| s.update = Some(config));
    world.settle();
    let before: Vec<_> = world.running(id).iter().map(|t| t.id).collect();
    change_args(&mut world, id, "broken");
    reject_all(&mut world, id);
    world.pass(Duration::from_secs(20));
    let service = world.service(id).unwrap();
    let status = service.update_status.as_ref().unwrap();
    assert_eq!((status.state, status.message.as_str()), (UpdateState::RollbackCompleted, "rollback completed"));
    assert!(service.spec.task.containers[0].args.is_empty());
    let kept = world.running(id).iter().filter(|t| before.contains(&t.id)).count();
    assert_eq!((world.running(id).len(), kept), (4, 3));
}

#[test]
fn a_task_that_was_long_in_coming_and_then_fails_at_once_is_a_failed_update() {
    let mut world = World::new().nodes(1);
    let id = replicated(&mut world, 2, |_| {});
    world.settle();
    change_args(&mut world, id, "slow image");
    let version = world.service(id).unwrap().spec_version;
    // The node fetches the image for a minute.
    world.agents_obey = false;
    for _ in 0..6 {
        world.pass(Duration::from_secs(10));
    }
    world.agents_obey = true;
    let is_new = |t: &&skep_proto::model::Task| t.spec_version == version;
    while !world.running(id).iter().any(|t| is_new(&t)) {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        world.propose(groups);
    }
    world.now = world.now.after(Duration::from_secs(1));
    let new = world.running(id).iter().find(is_new).unwrap().clone();
    world.end(&new, TaskState::Failed, "task: non-zero exit (1)");
    world.settle();
    let status = world.service(id).unwrap().update_status.clone().unwrap();
    assert_eq!(status.state, UpdateState::Paused);
    assert_eq!(status.message, format!("update paused due to failure or early termination of task {}", new.id));
}

#[test]
fn a_changed_task_that_keeps_failing_is_the_only_one_under_way() {
    let mut world = World::new().nodes(3);
    let config = UpdateConfig { failure_action: FailureAction::Continue, ..UpdateConfig::default() };
    let id = replicated(&mut world, 4, |s| s.update = Some(config));
    world.settle();
    change_args(&mut world, id, "broken");
    let version = world.service(id).unwrap().spec_version;
    for _ in 0..30 {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        world.propose(groups);
        for task in world.running(id).iter().filter(|t| t.spec_version == version) {
            world.end(task, TaskState::Failed, "x");
        }
        world.now = world.now.after(Duration::from_secs(2));
        assert_eq!(world.running(id).len(), if world.tasks(id).len() == 4 { 4 } else { 3 });
    }
}

#[test]
fn a_start_first_update_that_keeps_failing_is_not_in_a_hurry() {
    let mut world = World::new().nodes(2);
    let failure_action = FailureAction::Continue;
    let config = UpdateConfig { order: UpdateOrder::StartFirst, failure_action, ..UpdateConfig::default() };
    let id = replicated(&mut world, 1, |s| s.update = Some(config));
    world.settle();
    change_args(&mut world, id, "broken");
    let version = world.service(id).unwrap().spec_version;
    let (mut failures, begin) = (0, world.now);
    while world.now.since(begin) < Duration::from_secs(21) {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        world.propose(groups);
        for task in world.running(id).iter().filter(|t| t.spec_version == version) {
            world.end(task, TaskState::Failed, "x");
            failures += 1;
        }
        world.now = world.now.after(Duration::from_millis(100));
        assert!(world.running(id).iter().any(|t| t.spec_version != version), "the old one runs on");
    }
    assert!((4..=5).contains(&failures), "{failures} attempts in 21 s with a delay of 5 s");
}

#[test]
fn a_node_whose_clock_is_late_does_not_take_the_restart_delay_away() {
    let mut world = World::new().nodes(1);
    let id = replicated(&mut world, 1, |_| {});
    world.settle();
    let task = world.view().reference(world.running(id)[0].id).unwrap();
    world.apply(crate::store::Change::Status { task, state: TaskState::Failed, at_ms: 1, exit: Some(1) });
    world.pass(Duration::from_millis(4900));
    assert_eq!(world.running(id).len(), 0);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.running(id).len(), 1);
}

#[test]
fn the_pause_between_two_groups_is_kept() {
    let mut world = World::new().nodes(3);
    let config = UpdateConfig { delay: Duration::from_secs(30), parallelism: 2, ..UpdateConfig::default() };
    let id = replicated(&mut world, 4, |s| s.update = Some(config));
    world.settle();
    change_args(&mut world, id, "new");
    let version = world.service(id).unwrap().spec_version;
    let new = |world: &World| world.running(id).iter().filter(|t| t.spec_version == version).count();
    world.settle();
    assert_eq!(new(&world), 2);
    world.pass(Duration::from_secs(29));
    assert_eq!(new(&world), 2);
    world.pass(Duration::from_secs(2));
    assert_eq!(new(&world), 4);
}

#[test]
fn a_removed_service_goes_with_its_tasks_and_its_name_is_free_at_once() {
    let mut world = World::new().nodes(2);
    let id = replicated(&mut world, 3, |_| {});
    world.settle();
    world.update_service(id, |s| s.pending_delete = true);
    let second = replicated(&mut world, 1, |_| {});
    world.settle();
    assert!(world.service(id).is_none());
    assert_eq!(world.running(second).len(), 1);
}

/// Things that happen to a cluster.
#[derive(Debug, Clone)]
enum Event {
    Scale(u64),
    Change(u8),
    Fail(usize),
    Node(usize, u8),
    Pass(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u64..8).prop_map(Event::Scale),
        any::<u8>().prop_map(Event::Change),
        (0usize..8).prop_map(Event::Fail),
        (0usize..3, 0u8..4).prop_map(|(n, s)| Event::Node(n, s)),
        (0u16..8000).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_happens_the_world_settles_with_exactly_the_wanted_tasks(
        events in prop::collection::vec(event(), 1..25), start_first: bool, parallelism in 0u64..4,
    ) {
        let mut world = World::new().nodes(3);
        let nodes: Vec<NodeId> = world.view().nodes().values().map(|n| n.id).collect();
        let order = if start_first { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let config = UpdateConfig { order, parallelism, failure_action: FailureAction::Continue, ..UpdateConfig::default() };
        let network = world.add_network("net");
        let id = replicated(&mut world, 3, |s| {
            s.update = Some(config);
            let target = network.to_string();
            s.task.networks = vec![skep_proto::model::task::NetworkAttachmentSpec { target, ..Default::default() }];
        });
        let mut wanted = 3;
        for event in events {
            match event {
                Event::Scale(n) => { wanted = n; world.update_service(id, |s| s.spec.mode = ServiceMode::Replicated { replicas: n }); }
                Event::Change(n) => change_args(&mut world, id, &n.to_string()),
                Event::Fail(n) => if let Some(task) = world.running(id).get(n) { world.end(&task.clone(), TaskState::Failed, "x") },
                Event::Node(n, state) => world.update_node(nodes[n], |node| match state {
                    0 => node.state = NodeState::Down,
                    1 => node.state = NodeState::Ready,
                    2 => node.spec.availability = Availability::Drain,
                    _ => node.spec.availability = Availability::Active,
                }),
                Event::Pass(ms) => world.pass(Duration::from_millis(ms.into())),
            }
        }
        for node in nodes {
            world.update_node(node, |n| { n.state = NodeState::Ready; n.spec.availability = Availability::Active; });
        }
        world.pass(Duration::from_secs(60));
        let version = world.service(id).unwrap().spec_version;
        let running = world.running(id);
        prop_assert_eq!(running.len() as u64, wanted);
        prop_assert!(running.iter().all(|t| t.spec_version == version));
        let addresses: std::collections::BTreeSet<_> = running.iter().flat_map(|t| &t.attachments).flat_map(|a| a.addresses.clone()).collect();
        prop_assert_eq!(addresses.len() as u64, wanted, "each task has an address of its own");
        prop_assert_eq!(world.plans().groups, vec![]);
        world.view().check().map_err(TestCaseError::fail)?;
        // What a replica reads back from a snapshot is the same state: same digest, same objects.
        let reopened = world.reopened();
        prop_assert_eq!(reopened.digest(), world.view().digest());
        prop_assert_eq!(crate::world::ids(reopened.services()), crate::world::ids(world.view().services()));
        prop_assert_eq!(reopened.tasks().collect::<Vec<_>>(), world.view().tasks().collect::<Vec<_>>());
    }
}
