use skep_proto::model::service::{EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::task::Reservations;
use skep_proto::model::{Availability, ServiceMode, ServiceSpec};

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
