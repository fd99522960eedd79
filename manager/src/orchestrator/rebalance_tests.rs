use std::time::Duration;

use proptest::prelude::*;
use skep_proto::model::service::{UpdateConfig, UpdateOrder};
use skep_proto::model::{Availability, NodeState, ServiceId, ServiceMode, ServiceSpec, TaskState};

use super::rebalance::{AUTO, LABEL, ONCE};
use crate::world::World;

fn web(world: &mut World, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
    let id = world.add_service("web", ServiceMode::Replicated { replicas }, change);
    world.settle();
    id
}

fn ask(spec: &mut ServiceSpec, how: &str) {
    spec.annotations.labels.insert(LABEL.into(), how.into());
}

/// Lets time pass and looks each time that as many run as are wanted.
fn pass_with(world: &mut World, id: ServiceId, seconds: u64, at_least: usize) {
    for _ in 0..seconds * 4 {
        world.pass(Duration::from_millis(250));
        assert!(world.running(id).len() >= at_least, "{} run", world.running(id).len());
    }
}

fn spread(world: &World, id: ServiceId) -> Vec<usize> {
    world.spread(id).into_values().collect()
}

#[test]
fn a_service_that_asks_for_it_is_evened_out_when_a_node_joins() {
    let mut world = World::new().nodes(2);
    let auto = web(&mut world, 6, |s| ask(s, AUTO));
    let other = world.add_service("other", ServiceMode::Replicated { replicas: 6 }, |_| {});
    world.settle();
    world.add_node("n3", |_| {});
    pass_with(&mut world, auto, 10, 6);
    assert_eq!(spread(&world, auto), [2, 2, 2]);
    assert_eq!(spread(&world, other), [3, 3], "nobody asked for it");
    assert_eq!(world.running(auto).len(), 6);
}

#[test]
fn a_single_request_ends_when_the_service_is_even() {
    let mut world = World::new().nodes(1);
    let id = web(&mut world, 4, |_| {});
    world.add_node("n2", |_| {});
    world.update_service(id, |s| ask(&mut s.spec, ONCE));
    pass_with(&mut world, id, 10, 4);
    assert_eq!(spread(&world, id), [2, 2]);
    assert!(!world.service(id).unwrap().spec.annotations.labels.contains_key(LABEL));
    world.add_node("n3", |_| {});
    pass_with(&mut world, id, 10, 4);
    assert_eq!(spread(&world, id), [2, 2]);
}

#[test]
fn moves_follow_the_spread_over_domains_before_that_over_nodes() {
    let mut world = World::new();
    let zone = |world: &mut World, name: &str, zone: &str| {
        let zone = zone.to_owned();
        world.add_node(name, |n| drop(n.spec.annotations.labels.insert("zone".into(), zone)))
    };
    for name in ["a1", "a2", "a3"] {
        zone(&mut world, name, "a");
    }
    let id = web(&mut world, 6, |s| {
        ask(s, AUTO);
        s.task.placement.preferences = vec!["node.labels.zone".into()];
    });
    zone(&mut world, "b1", "b");
    pass_with(&mut world, id, 20, 6);
    assert_eq!(spread(&world, id), [1, 1, 1, 3]);
    assert!(world.plans().groups.is_empty());
}

#[test]
fn nothing_moves_to_a_node_that_has_no_room() {
    let mut world = World::new().nodes(1);
    let id = web(&mut world, 4, |s| {
        ask(s, AUTO);
        s.task.resources.reservations =
            Some(skep_proto::model::task::Reservations { nano_cpus: 1_000_000_000, ..Default::default() });
    });
    world.add_node("n2", |n| n.description.nano_cpus = 500_000_000);
    pass_with(&mut world, id, 10, 4);
    assert_eq!((spread(&world, id), world.tasks(id).len()), (vec![4], 4));
}

#[test]
fn a_drain_starts_tasks_elsewhere_first_where_the_update_order_says_so() {
    let start_first = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    let mut world = World::new().nodes(2);
    let id = web(&mut world, 4, |s| s.update = Some(start_first));
    let node = world.running(id)[0].node.unwrap();
    world.update_node(node, |n| n.spec.availability = Availability::Drain);
    // Round by round: never fewer than are wanted, though all must move.
    for _ in 0..20 {
        let mut groups = world.plans().groups;
        groups.extend(world.obey());
        world.propose(groups);
        assert!(world.running(id).len() >= 4, "{} run", world.running(id).len());
    }
    world.settle();
    let running = world.running(id);
    assert_eq!((running.len(), running.iter().filter(|t| t.node == Some(node)).count()), (4, 0));
}

#[test]
fn a_task_that_fails_elsewhere_leaves_the_drained_one_running_and_is_followed_after_the_delay() {
    let start_first = UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    let mut world = World::new().nodes(2);
    let id = web(&mut world, 1, |s| s.update = Some(start_first));
    let old = world.running(id)[0].clone();
    world.agents_obey = false;
    world.update_node(old.node.unwrap(), |n| n.spec.availability = Availability::Drain);
    world.settle();
    let new = world.tasks(id).into_iter().find(|t| t.id != old.id).unwrap();
    world.end(&new, TaskState::Failed, "exit");
    world.settle();
    assert_eq!(world.running(id), [old]);
    let ready = world.tasks(id).into_iter().filter(|t| t.desired == TaskState::Ready).count();
    assert_eq!((ready, world.tasks(id).len()), (1, 3), "one that waits for its time, not one after the other");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever nodes come and go: it comes to an end, even, and meanwhile as many run as are wanted.
    #[test]
    fn rebalancing_settles_and_never_goes_below_what_is_wanted(
        replicas in 1u64..9, zones in prop::collection::vec(0u8..3, 1..6), prefers: bool,
    ) {
        let mut world = World::new().nodes(1);
        let id = web(&mut world, replicas, |s| {
            ask(s, AUTO);
            if prefers {
                s.task.placement.preferences = vec!["node.labels.zone".into()];
            }
        });
        for (n, zone) in zones.into_iter().enumerate() {
            world.add_node(&format!("j{n}"), |node| drop(node.spec.annotations.labels.insert("zone".into(), zone.to_string())));
            world.pass(Duration::from_secs(1));
            prop_assert!(world.running(id).len() as u64 >= replicas);
        }
        for _ in 0..40 {
            world.pass(Duration::from_secs(1));
            prop_assert!(world.running(id).len() as u64 >= replicas);
        }
        prop_assert_eq!(world.plans().groups, vec![]);
        prop_assert_eq!(world.running(id).len() as u64, replicas);
        if !prefers {
            let state = world.view();
            let nodes = state.nodes().values().filter(|n| n.state == NodeState::Ready).count() as u64;
            let most = world.spread(id).into_values().max().unwrap() as u64;
            prop_assert_eq!(most, replicas.div_ceil(nodes));
        }
    }
}
