use std::time::Duration;

use proptest::prelude::*;
use skep_proto::model::container::{ContainerSpec, Mount, MountKind, Privileges, VolumeOptions};
use skep_proto::model::isolation::DeviceMapping;
use skep_proto::model::node::ALLOW_LABEL;
use skep_proto::model::service::{EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::task::Reservations;
use skep_proto::model::{Availability, ServiceMode, ServiceSpec, TaskState};

use super::{Cache, plan};
use crate::world::World;

fn error_of(world: &World, id: skep_proto::model::ServiceId) -> String {
    world.tasks(id).iter().map(|t| t.status.error.clone()).find(|e| !e.is_empty()).unwrap_or_default()
}

fn place(world: &mut World, replicas: u64, change: impl FnOnce(&mut ServiceSpec)) -> skep_proto::model::ServiceId {
    let id = world.add_service("web", ServiceMode::Replicated { replicas }, change);
    world.settle();
    id
}

#[test]
fn a_pending_task_says_which_filter_refused_how_many_nodes() {
    let mut world = World::new().nodes(3);
    world.add_node("n4", |n| n.spec.availability = Availability::Drain);
    let id = place(&mut world, 1, |s| s.task.placement.constraints = vec!["node.labels.disk==ssd".into()]);
    assert_eq!(
        error_of(&world, id),
        "no suitable node (scheduling constraints not satisfied on 3 nodes; 1 node not available for new tasks)"
    );
    let node = world.view().nodes().values().next().unwrap().id;
    world.update_node(node, |n| drop(n.spec.annotations.labels.insert("disk".into(), "ssd".into())));
    world.settle();
    assert_eq!((error_of(&world, id), world.running(id).len()), (String::new(), 1));
}

#[test]
fn privileged_tasks_and_devices_go_only_where_the_node_allows_them() {
    let mut world = World::new().nodes(3);
    let asked = |privileges: Privileges| {
        move |s: &mut ServiceSpec| {
            let container = ContainerSpec { privileges: Some(privileges), ..s.task.containers[0].clone() };
            s.task.containers = vec![container];
        }
    };
    let all = Privileges { privileged: true, devices: vec![DeviceMapping::default()], ..Privileges::default() };
    let id = place(&mut world, 1, asked(all));
    assert_eq!(error_of(&world, id), "no suitable node (3 nodes do not allow privileged containers)");
    let nodes: Vec<_> = world.view().nodes().values().map(|n| n.id).collect();
    let mut allow = |node, words: &str| {
        world.update_node(node, |n| drop(n.spec.annotations.labels.insert(ALLOW_LABEL.into(), words.into())));
        world.settle();
        (error_of(&world, id), world.running(id).len())
    };
    let text = "no suitable node (2 nodes do not allow privileged containers; 1 node does not allow devices in tasks)";
    assert_eq!(allow(nodes[0], "privileged"), (text.to_owned(), 0));
    assert_eq!(allow(nodes[1], "device, privileged"), (String::new(), 1));
}

#[test]
fn reservations_are_never_exceeded() {
    let mut world = World::new().nodes(2);
    let id = place(&mut world, 10, |s| {
        s.task.resources.reservations = Some(Reservations { nano_cpus: 1_500_000_000, ..Reservations::default() });
    });
    assert_eq!(world.running(id).len(), 4);
    assert_eq!(error_of(&world, id), "no suitable node (insufficient resources on 2 nodes)");
}

#[test]
fn a_host_port_is_taken_once_a_node() {
    let mut world = World::new().nodes(2);
    let port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(8080),
        mode: PublishMode::Host,
    };
    let id = place(&mut world, 3, |s| s.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() }));
    assert_eq!(world.running(id).len(), 2);
    assert_eq!(error_of(&world, id), "no suitable node (host-mode port already in use on 2 nodes)");
}

#[test]
fn no_node_gets_more_tasks_than_it_may() {
    let mut world = World::new().nodes(2);
    let id = place(&mut world, 5, |s| s.task.placement.max_replicas = 2);
    assert_eq!(world.spread(id).into_values().collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn tasks_are_spread_over_the_values_of_a_label_before_nodes() {
    let mut world = World::new();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
        world.add_node(name, |n| drop(n.spec.annotations.labels.insert("zone".into(), zone.into())));
    }
    let id = place(&mut world, 6, |s| s.task.placement.preferences = vec!["node.labels.zone".into()]);
    let spread: Vec<_> = world.spread(id).into_iter().collect();
    assert_eq!(spread, [("a1".into(), 1), ("a2".into(), 1), ("a3".into(), 1), ("b1".into(), 3)]);
}

#[test]
fn a_node_on_which_a_task_keeps_failing_comes_last() {
    let mut world = World::new().nodes(2);
    let policy = skep_proto::model::task::RestartPolicy { delay: Some(Duration::ZERO), ..Default::default() };
    let id = place(&mut world, 1, |s| s.task.restart = Some(policy));
    let bad = world.running(id)[0].node.unwrap();
    let mut rounds = 0;
    // It is the emptiest node each time until its failures speak against it.
    while world.running(id)[0].node == Some(bad) {
        world.end(&world.running(id)[0], TaskState::Failed, "x");
        world.pass(Duration::from_millis(10));
        rounds += 1;
        assert!(rounds < 20);
    }
    assert_ne!(world.running(id)[0].node, Some(bad));
}

#[test]
fn two_services_do_not_share_a_node_s_port_in_one_plan() {
    let port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(8080),
        mode: PublishMode::Host,
    };
    let mut world = World::new().nodes(2);
    let endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
    let ids = ["a", "b"].map(|name| {
        world.add_service(name, ServiceMode::Replicated { replicas: 1 }, |s| s.endpoint = endpoint.clone())
    });
    world.settle();
    let nodes = ids.map(|id| world.running(id)[0].node);
    assert_ne!(nodes[0], nodes[1]);
}

fn with_volume(source: &str) -> impl FnOnce(&mut ServiceSpec) {
    let volume = VolumeOptions { pinned: true, ..VolumeOptions::default() };
    let mount = Mount {
        kind: MountKind::Volume,
        source: source.to_owned(),
        target: "/data".into(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: Some(volume),
        tmpfs: None,
    };
    move |spec| spec.task.containers[0].mounts = vec![mount]
}

#[test]
fn tasks_that_share_a_pinned_volume_run_together_and_those_with_their_own_do_not_have_to() {
    let mut world = World::new().nodes(3);
    let shared = place(&mut world, 3, with_volume("data"));
    assert_eq!(world.spread(shared).into_values().collect::<Vec<_>>(), [3]);
    let own = world.add_service("own", ServiceMode::Replicated { replicas: 3 }, with_volume("data-{{.Task.Slot}}"));
    world.settle();
    assert_eq!(world.spread(own).len(), 3);
}

#[test]
fn a_task_comes_back_to_its_volume_or_waits_for_its_node() {
    let mut world = World::new().nodes(3);
    let id = place(&mut world, 1, with_volume("data-{{.Task.Ordinal}}"));
    let home = world.running(id)[0].node.unwrap();
    // The node has told of it meanwhile; nothing else remembers where the task was.
    world.update_node(home, |node| node.description.volumes = vec!["data-0".into()]);
    let scale = |world: &mut World, replicas| {
        world.update_service(id, |s| s.spec.mode = ServiceMode::Replicated { replicas });
        world.settle();
    };
    scale(&mut world, 0);
    scale(&mut world, 1);
    assert_eq!(world.running(id)[0].node, Some(home));
    world.update_node(home, |node| node.spec.availability = Availability::Drain);
    world.settle();
    assert_eq!(world.running(id).len(), 0);
    let text = error_of(&world, id);
    assert!(text.starts_with("the volume data-0 is on node ") && text.contains("not available"), "{text}");
    world.update_node(home, |node| node.spec.availability = Availability::Active);
    world.settle();
    assert_eq!(world.running(id)[0].node, Some(home));
}

#[test]
fn a_reason_goes_with_the_last_task_that_waited() {
    let mut world = World::new().nodes(1);
    let id = place(&mut world, 1, |s| s.task.placement.constraints = vec!["node.labels.no==where".into()]);
    assert_eq!(world.view().explanations().count(), 1);
    world.update_service(id, |s| s.spec.mode = ServiceMode::Replicated { replicas: 0 });
    world.settle();
    assert_eq!(world.view().explanations().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_remembered_between_plans_never_changes_a_decision(
        changes in prop::collection::vec((0usize..6, 0u8..4, 1u64..5), 1..12),
    ) {
        let mut world = World::new().nodes(6);
        let nodes: Vec<_> = world.view().nodes().values().map(|n| n.id).collect();
        world.agents_obey = false;
        for (n, (node, change, replicas)) in changes.into_iter().enumerate() {
            world.update_node(nodes[node], |node| match change {
                0 => node.spec.availability = Availability::Drain,
                1 => node.spec.availability = Availability::Active,
                2 => drop(node.spec.annotations.labels.insert("disk".into(), "ssd".into())),
                _ => node.description.nano_cpus = 1_000_000_000,
            });
            world.add_service(&format!("s{n}"), ServiceMode::Replicated { replicas }, |s| {
                s.task.placement.constraints = vec!["node.labels.disk==ssd".into()];
                s.task.resources.reservations = Some(Reservations { nano_cpus: 700_000_000, ..Reservations::default() });
            });
            for _ in 0..3 {
                let fresh = plan(&world.view(), &mut Cache::default(), world.now);
                let groups = world.plans().groups;
                prop_assert!(fresh.groups.iter().all(|group| groups.contains(group)));
                world.propose(groups);
            }
            world.view().check().map_err(TestCaseError::fail)?;
        }
    }
}
