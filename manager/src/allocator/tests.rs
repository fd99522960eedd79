use skep_proto::model::service::{EndpointMode, EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{ContainerId, ServiceMode, TaskId, TaskState};

use crate::store::{Attached, Change, Group, Outcome, Refusal};
use crate::world::World;

fn on(network: skep_proto::model::NetworkId) -> Vec<NetworkAttachmentSpec> {
    vec![NetworkAttachmentSpec { target: network.to_string(), ..NetworkAttachmentSpec::default() }]
}

#[test]
fn networks_get_identifiers_and_subnets_that_do_not_overlap() {
    let mut world = World::new().nodes(1);
    let (a, b) = (world.add_network("a"), world.add_network("b"));
    world.settle();
    let view = world.view();
    let of =
        |id| (view.networks().get(id).unwrap().vni, view.networks().get(id).unwrap().subnets[0].subnet.to_string());
    let mut both = [of(a), of(b)];
    both.sort();
    assert_eq!(both, [(Some(4097), "10.0.0.0/24".into()), (Some(4098), "10.0.1.0/24".into())]);
}

#[test]
fn a_service_gets_a_virtual_address_and_its_tasks_one_each() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("net");
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 2 }, |s| s.task.networks = on(network));
    world.settle();
    let service = world.service(id).unwrap();
    assert_eq!(service.endpoint.virtual_ips.len(), 1);
    let mut all: Vec<_> = world.running(id).iter().map(|t| t.attachments[0].addresses[0]).collect();
    all.push(service.endpoint.virtual_ips[0].address);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 3);
}

#[test]
fn a_service_with_dnsrr_has_no_virtual_address() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("net");
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 1 }, |s| {
        s.task.networks = on(network);
        s.endpoint = Some(EndpointSpec { mode: EndpointMode::DnsRoundRobin, ..EndpointSpec::default() });
    });
    world.settle();
    assert_eq!((world.service(id).unwrap().endpoint.virtual_ips.len(), world.running(id).len()), (0, 1));
}

#[test]
fn ports_that_nobody_chose_are_taken_from_30000_on_and_kept() {
    let mut world = World::new().nodes(1);
    let port = |published| PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published,
        mode: PublishMode::Ingress,
    };
    let publish = |ports: Vec<PortConfig>| Some(EndpointSpec { ports, ..EndpointSpec::default() });
    let a = world.add_service("a", ServiceMode::Replicated { replicas: 1 }, |s| s.endpoint = publish(vec![port(None)]));
    let b = world.add_service("b", ServiceMode::Replicated { replicas: 1 }, |s| s.endpoint = publish(vec![port(None)]));
    world.settle();
    let of = |world: &World, id| {
        world.service(id).unwrap().endpoint.ports.iter().filter_map(|p| p.published).collect::<Vec<_>>()
    };
    let before = (of(&world, a), of(&world, b));
    let mut both = [before.0.clone(), before.1.clone()].concat();
    both.sort_unstable();
    assert_eq!(both, [30000, 30001]);
    world.update_service(a, |s| s.spec.task.force_update = 1);
    world.settle();
    assert_eq!((of(&world, a), of(&world, b)), before);
}

#[test]
fn a_full_network_says_so() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("small");
    world.settle();
    let mut small = (**world.view().networks().get(network).unwrap()).clone();
    small.subnets[0].subnet = "10.9.0.0/29".parse().unwrap();
    small.subnets[0].gateway = "10.9.0.1".parse().unwrap();
    world.apply(crate::store::Change::update(&small));
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 9 }, |s| s.task.networks = on(network));
    world.settle();
    assert_eq!(world.running(id).len(), 4, "six hosts less the gateway and the virtual address");
    let error = world.tasks(id).iter().map(|t| t.status.error.clone()).find(|e| !e.is_empty()).unwrap();
    assert!(error.starts_with("no free address in network small"), "{error}");
}

#[test]
fn a_network_whose_subnet_is_taken_holds_up_only_its_own_tasks() {
    let mut world = World::new().nodes(1);
    let first = world.add_network("first");
    world.settle();
    let second = world.add_network("second");
    let mut asking = (**world.view().networks().get(second).unwrap()).clone();
    let subnet = Some("10.0.0.0/16".parse().unwrap());
    asking.spec.ipam = vec![skep_proto::model::network::IpamConfig { subnet, ..Default::default() }];
    world.apply(crate::store::Change::update(&asking));
    let stuck = world.add_service("stuck", ServiceMode::Replicated { replicas: 3 }, |s| s.task.networks = on(second));
    let fine = world.add_service("fine", ServiceMode::Replicated { replicas: 3 }, |s| s.task.networks = on(first));
    world.settle();
    assert_eq!((world.running(stuck).len(), world.running(fine).len()), (0, 3));
    let error = &world.tasks(stuck)[0].status.error;
    assert!(error.starts_with("service stuck: network second has no subnet"), "{error}");
}

#[test]
fn a_task_s_address_rests_before_it_is_given_again() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("net");
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 1 }, |s| s.task.networks = on(network));
    world.settle();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..50 {
        world.update_service(id, |s| s.spec.task.force_update = n);
        world.pass(std::time::Duration::from_secs(6));
        seen.insert(world.running(id)[0].attachments[0].addresses[0]);
    }
    assert_eq!(seen.len(), 50);
}

/// A plain container on a network, on the first node.
fn attach(world: &World, network: skep_proto::model::NetworkId, container: u8, address: Option<&str>) -> Change {
    let state = world.view();
    let attached = Attached {
        network: state.networks().reference(network).unwrap(),
        container: ContainerId([container; 32]),
        name: format!("c{container}"),
        aliases: vec!["db".into()],
        address: address.map(|a| a.parse().unwrap()),
    };
    let node = state.nodes().iter().next().unwrap().0;
    Change::Attach { id: TaskId(u128::from(container)), node, attached }
}

#[test]
fn a_plain_container_gets_the_address_it_asked_for_or_is_told_why_not() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("net");
    world.settle();
    let changes = [attach(&world, network, 1, Some("10.0.0.9")), attach(&world, network, 2, Some("10.0.0.9"))];
    changes.into_iter().for_each(|change| world.apply(change));
    world.settle();
    let state = world.view();
    let first = state.task(TaskId(1)).unwrap();
    let shown = first.attachments.iter().map(|a| (a.addresses[0].to_string(), a.aliases.clone())).collect::<Vec<_>>();
    assert_eq!((first.status.state, shown), (TaskState::Running, vec![("10.0.0.9/24".into(), vec!["db".into()])]));
    let second = state.task(TaskId(2)).unwrap();
    assert_eq!((second.status.state, second.status.error.as_str()), (TaskState::New, "Address already in use"));
    // A container has one place on a network.
    let Change::Attach { node, attached, .. } = attach(&world, network, 1, None) else { panic!("not an attachment") };
    let again = Change::Attach { id: TaskId(3), node, attached };
    assert!(matches!(world.propose(vec![Group::of(again)])[..], [Outcome::Refused(_)]));
    state.check().unwrap();
    assert_eq!(world.reopened().digest(), state.digest());
}

#[test]
fn a_network_with_a_plain_container_stays_until_the_container_s_node_is_removed() {
    let mut world = World::new().nodes(1);
    let network = world.add_network("net");
    world.settle();
    world.apply(attach(&world, network, 1, None));
    world.settle();
    let mut going = (**world.view().networks().get(network).unwrap()).clone();
    going.pending_delete = true;
    let outcome = world.propose(vec![Group::of(Change::update(&going))]);
    assert!(matches!(&outcome[..], [Outcome::Refused(Refusal::InUse { by, .. })] if *by == [TaskId(1).to_string()]));
    let node = world.view().nodes().values().next().unwrap().clone();
    world.apply(Change::delete(&*node));
    world.settle();
    assert_eq!(world.view().task(TaskId(1)), None);
    world.apply(Change::update(&going));
    world.settle();
    assert!(world.view().networks().get(network).is_none());
}
