//! Networks with IPv6 beside IPv4.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use skep_proto::model::addressing::unique_local;
use skep_proto::model::network::{IpamConfig, NetworkSpec};
use skep_proto::model::service::{EndpointMode, EndpointSpec};
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{ContainerId, NetworkId, ServiceMode, TaskId, TaskState};

use crate::store::{Attached, Change, Group, Outcome, Reference};
use crate::world::World;

fn on(networks: &[NetworkId]) -> Vec<NetworkAttachmentSpec> {
    let wish = |id: &NetworkId| NetworkAttachmentSpec { target: id.to_string(), ..NetworkAttachmentSpec::default() };
    networks.iter().map(wish).collect()
}

fn dual(spec: &mut NetworkSpec) {
    spec.ipv6 = true;
}

fn asking(subnets: &[&str]) -> impl FnOnce(&mut NetworkSpec) {
    let subnets: Vec<IpNet> = subnets.iter().map(|s| s.parse().unwrap()).collect();
    move |spec| {
        spec.ipv6 = true;
        spec.ipam = subnets.iter().map(|s| IpamConfig { subnet: Some(*s), ..IpamConfig::default() }).collect();
    }
}

/// Subnets and gateways of a network.
fn shown(world: &World, id: NetworkId) -> Vec<String> {
    let network = world.view().networks().get(id).unwrap().clone();
    network.subnets.iter().map(|s| format!("{} by {}", s.subnet, s.gateway)).collect()
}

#[test]
fn subnets_come_from_the_cluster_s_own_prefix_or_from_its_pools() {
    let mut world = World::new().nodes(1);
    let (a, b) = (world.make_network("a", dual), world.make_network("b", dual));
    world.settle();
    let own = unique_local(&1u128.to_be_bytes()).network().to_string();
    let own = own.trim_end_matches("::").to_owned();
    let mut both = [shown(&world, a), shown(&world, b)];
    both.sort();
    assert_eq!(both[0], ["10.0.0.0/24 by 10.0.0.1".to_owned(), format!("{own}::/64 by {own}::1")]);
    assert_eq!(both[1], ["10.0.1.0/24 by 10.0.1.1".to_owned(), format!("{own}:1::/64 by {own}:1::1")]);

    let mut world = World::new().nodes(1);
    world.update_cluster(|c| c.address_pools = vec!["fd77::/56".parse().unwrap(), "10.50.0.0/16".parse().unwrap()]);
    let first = world.make_network("a", dual);
    world.settle();
    let asked = world.make_network("b", asking(&["fd77:0:0:1::/64"]));
    world.settle();
    let third = world.make_network("c", dual);
    world.settle();
    assert_eq!(shown(&world, first), ["10.50.0.0/24 by 10.50.0.1", "fd77::/64 by fd77::1"]);
    assert_eq!(shown(&world, asked), ["10.50.1.0/24 by 10.50.1.1", "fd77:0:0:1::/64 by fd77:0:0:1::1"]);
    assert_eq!(shown(&world, third), ["10.50.2.0/24 by 10.50.2.1", "fd77:0:0:2::/64 by fd77:0:0:2::1"]);
}

#[test]
fn asked_subnets_ranges_and_gateways_are_kept_and_none_may_overlap() {
    let mut world = World::new().nodes(1);
    let id = world.make_network("a", |spec| {
        asking(&["fd01::/64", "10.9.0.0/24"])(spec);
        spec.ipam[0].range = Some("fd01::1:0/112".parse().unwrap());
        spec.ipam[0].gateway = Some("fd01::fe".parse().unwrap());
        spec.ipam[0].reserved.insert("router".into(), "fd01::1:1".parse().unwrap());
    });
    world.settle();
    assert_eq!(shown(&world, id), ["10.9.0.0/24 by 10.9.0.1", "fd01::/64 by fd01::fe"]);
    let service = world.add_service("web", ServiceMode::Replicated { replicas: 2 }, |s| s.task.networks = on(&[id]));
    world.settle();
    let mut addresses: Vec<String> =
        world.running(service).iter().map(|t| t.attachments[0].addresses[1].to_string()).collect();
    addresses.sort();
    // The first of the range, and neither the reserved one nor the one of the service.
    assert_eq!(world.service(service).unwrap().endpoint.virtual_ips[1].address.to_string(), "fd01::1:0/64");
    assert_eq!(addresses, ["fd01::1:2/64", "fd01::1:3/64"]);

    let other = world.make_network("b", asking(&["fd01::8000:0:0:0/65"]));
    let stuck = world.add_service("stuck", ServiceMode::Replicated { replicas: 1 }, |s| s.task.networks = on(&[other]));
    world.settle();
    let error = &world.tasks(stuck)[0].status.error;
    assert!(error.contains("network b has no subnet"), "{error}");
}

#[test]
fn services_and_tasks_get_one_address_of_each_family_where_there_are_both() {
    let mut world = World::new().nodes(2);
    let (dual, plain) = (world.make_network("dual", dual), world.add_network("plain"));
    world.settle();
    let replicas = ServiceMode::Replicated { replicas: 3 };
    let id = world.add_service("web", replicas, |s| s.task.networks = on(&[plain, dual]));
    let round_robin = world.add_service("rr", replicas, |s| {
        s.task.networks = on(&[dual]);
        s.endpoint = Some(EndpointSpec { mode: EndpointMode::DnsRoundRobin, ..EndpointSpec::default() });
    });
    world.settle();
    let families = |nets: &[IpNet]| nets.iter().map(|n| n.addr().is_ipv4()).collect::<Vec<_>>();
    let service = world.service(id).unwrap();
    let vips: Vec<_> = service.endpoint.virtual_ips.iter().map(|v| (v.network, v.address.addr().is_ipv4())).collect();
    assert_eq!(vips, [(plain, true), (dual, true), (dual, false)]);
    let mut all: Vec<IpNet> = service.endpoint.virtual_ips.iter().map(|v| v.address).collect();
    for task in world.running(id) {
        let [first, second] = &task.attachments[..] else { panic!("{:?}", task.attachments) };
        assert_eq!((first.network, families(&first.addresses)), (plain, vec![true]));
        assert_eq!((second.network, families(&second.addresses)), (dual, vec![true, false]));
        all.extend(first.addresses.iter().chain(&second.addresses));
    }
    assert!(world.service(round_robin).unwrap().endpoint.virtual_ips.is_empty());
    for task in world.running(round_robin) {
        assert_eq!(families(&task.attachments[0].addresses), [true, false]);
        all.extend(&task.attachments[0].addresses);
    }
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (3 + 9 + 6, 3 + 9 + 6));
    // A task on one network needs no rare part for its two addresses.
    let state = world.view();
    let handle = |t: &skep_proto::model::Task| state.reference(t.id).unwrap().handle();
    assert!(world.running(round_robin).iter().all(|t| state.extra(handle(t)).is_none()));
    // What was given stays when something else changes.
    world.update_service(id, |s| s.spec.annotations.labels = [("a".to_owned(), "b".to_owned())].into());
    world.settle();
    assert_eq!(world.service(id).unwrap().endpoint.virtual_ips, service.endpoint.virtual_ips);
    world.view().check().unwrap();
    assert_eq!(world.reopened().digest(), world.view().digest());
}

#[test]
fn a_task_does_not_run_without_its_ipv6_address() {
    let mut world = World::new().nodes(1);
    let network = world.make_network("small", asking(&["fd01::/125"]));
    world.settle();
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 9 }, |s| s.task.networks = on(&[network]));
    world.settle();
    assert_eq!(world.running(id).len(), 5, "eight less the routers', the gateway and the virtual address");
    let error = world.tasks(id).iter().map(|t| t.status.error.clone()).find(|e| !e.is_empty()).unwrap();
    assert!(error.starts_with("no free address in network small (fd01::/125)"), "{error}");
}

#[test]
fn addresses_rest_before_they_are_given_again() {
    let mut world = World::new().nodes(1);
    let network = world.make_network("net", dual);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 1 }, |s| s.task.networks = on(&[network]));
    world.settle();
    let mut seen = BTreeSet::new();
    for n in 0..50 {
        world.update_service(id, |s| s.spec.task.force_update = n);
        world.pass(std::time::Duration::from_secs(6));
        seen.extend(world.running(id)[0].attachments[0].addresses.clone());
    }
    assert_eq!(seen.len(), 100);
}

/// A plain container on a network, on the first node.
fn attach(world: &World, network: NetworkId, container: u32, asked: &[&str]) -> Change {
    let state = world.view();
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&container.to_le_bytes());
    let asked: Vec<IpAddr> = asked.iter().map(|a| a.parse().unwrap()).collect();
    let attached = Attached {
        network: state.networks().reference(network).unwrap(),
        container: ContainerId(bytes),
        name: format!("c{container}"),
        aliases: Vec::new(),
        address: asked.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None }),
    };
    let (node, id) = (state.nodes().iter().next().unwrap().0, TaskId(u128::from(container)));
    match asked.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None }) {
        None => Change::Attach { id, node, attached },
        Some(address6) => Change::AttachAt { id, node, attached, address6 },
    }
}

#[test]
fn a_plain_container_gets_the_ipv6_address_it_asked_for_or_is_told_why_not() {
    let mut world = World::new().nodes(1);
    let network = world.make_network("net", |spec| {
        asking(&["10.9.0.0/24", "fd01::/64"])(spec);
        spec.ipam[1].reserved.insert("router".into(), "fd01::99".parse().unwrap());
    });
    let plain = world.add_network("plain");
    world.settle();
    world.apply(attach(&world, network, 1, &["fd01::42"]));
    world.apply(attach(&world, network, 2, &["fd01::43", "10.9.0.7"]));
    world.settle();
    let wrong: [(u32, NetworkId, &str, &str); 6] = [
        (3, network, "fd01::42", "Address already in use"),
        (4, network, "fd01::1", "Address already in use"),
        (5, network, "fd01::", "Address already in use"),
        (6, network, "fd01::99", "Address already in use"),
        (7, network, "fd02::1", "no configured subnet or ip-range contain the IP address fd02::1"),
        (8, plain, "fd01::9", "no configured subnet or ip-range contain the IP address fd01::9"),
    ];
    for (container, network, address, _) in wrong {
        world.apply(attach(&world, network, container, &[address]));
    }
    world.settle();
    let state = world.view();
    let of = |id| {
        let task = state.task(TaskId(id)).unwrap();
        let addresses = task.attachments.iter().flat_map(|a| &a.addresses).map(ToString::to_string).collect();
        (task.status.state, addresses)
    };
    let running = |list: [&str; 2]| (TaskState::Running, list.map(String::from).to_vec());
    assert_eq!(of(1), running(["10.9.0.2/24", "fd01::42/64"]));
    assert_eq!(of(2), running(["10.9.0.7/24", "fd01::43/64"]));
    for (container, _, address, text) in wrong {
        let task = state.task(TaskId(u128::from(container))).unwrap();
        assert_eq!(task.status.state, TaskState::New);
        assert!(task.status.error.starts_with(text), "{address}: {}", task.status.error);
    }
    state.check().unwrap();
    let again = world.reopened();
    assert_eq!(again.digest(), state.digest());
    let handle = state.reference(TaskId(7)).unwrap().handle();
    assert_eq!(again.asked_address6(handle), Some("fd02::1".parse().unwrap()));
}

#[test]
fn a_network_that_is_gone_leaves_nothing_of_itself_to_the_next() {
    let mut world = World::new().nodes(1);
    let network = world.make_network("net", dual);
    world.settle();
    world.apply(attach(&world, network, 1, &[]));
    world.settle();
    let task = world.view().reference(TaskId(1)).unwrap();
    world.apply(Change::Status { task, state: TaskState::Shutdown, at_ms: 1, exit: None });
    let mut going = (**world.view().networks().get(network).unwrap()).clone();
    going.pending_delete = true;
    world.apply(Change::update(&going));
    world.settle();
    assert!(world.view().networks().get(network).is_none());
    let next = world.make_network("next", dual);
    world.settle();
    let reference = world.view().networks().reference(next).unwrap();
    assert_eq!((world.view().address_cursor(reference), world.view().address_cursor6(reference)), (None, None));
    world.view().check().unwrap();
}

/// What a release before IPv6 wrote: a snapshot, and the log that led to it.
#[test]
fn the_log_and_the_snapshot_of_a_release_without_ipv6_are_read() {
    let snapshot = include_bytes!("testdata/before-ipv6-snapshot.bin");
    let log = include_bytes!("testdata/before-ipv6-log.bin");
    let (mut replica, store) = crate::store::Replica::new();
    crate::raft::machine::Machine::restore(&mut replica, &mut snapshot.as_slice()).unwrap();
    let state = store.view();
    state.check().unwrap();
    let network = state.networks().values().next().unwrap();
    let reference = state.networks().reference(network.id).unwrap();
    assert_eq!((state.task_count(), state.addresses_used(reference)), (5, 6));
    assert!(state.is_address_used(reference, "10.0.0.99".parse().unwrap()));

    let (mut replica, store) = crate::store::Replica::new();
    let mut rest = log.as_slice();
    while let Some((head, tail)) = rest.split_first_chunk::<12>() {
        let index = u64::from_le_bytes(head[..8].try_into().unwrap());
        let (entry, tail) = tail.split_at(u32::from_le_bytes(head[8..].try_into().unwrap()) as usize);
        crate::raft::machine::Machine::apply(&mut replica, index, entry).unwrap();
        rest = tail;
    }
    crate::raft::machine::Machine::publish(&mut replica);
    assert_eq!(store.view().digest(), state.digest());
}

/// All addresses held on a network, as the tasks show them: none twice, all where they may be.
fn held(world: &World, network: NetworkId) -> BTreeSet<IpAddr> {
    let state = world.view();
    let subnets = state.networks().get(network).unwrap().subnets.clone();
    let mut all = BTreeSet::new();
    for task in state.tasks().filter(|t| !t.status.state.is_terminal()) {
        for address in task.attachments.iter().flat_map(|a| &a.addresses) {
            assert!(subnets.iter().any(|s| s.subnet.contains(&address.addr()) && s.gateway != address.addr()));
            assert!(all.insert(address.addr()), "{address} was given twice");
        }
    }
    let reference = state.networks().reference(network).unwrap();
    assert_eq!(state.addresses_used(reference), all.len(), "what is marked as used is what is held");
    all
}

/// Containers come and go in random order until 110,000 addresses were given or taken back, of both families together.
/// A third ask for an address.
#[test]
fn nothing_leaks_and_nothing_is_given_twice_in_a_hundred_thousand_random_changes() {
    let mut world = World::new().nodes(1);
    let network = world.make_network("net", asking(&["10.9.0.0/24", "fd01::/120"]));
    world.settle();
    let mut seed = 42u64;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut changes, mut next, mut rounds) = (0, 1u32, 0);
    while changes < 110_000 {
        let state = world.view();
        let mut groups = Vec::new();
        let live: Vec<_> = state.attachments_of_containers().filter(|(_, row, _)| !row.is_dead()).collect();
        // More come than go until it is full, then more go.
        let leaving = if live.len() > 240 { 3 } else { 1 };
        for (handle, row, _) in live {
            if draw(8) < leaving {
                changes += 2;
                let task = row.reference(handle);
                groups.push(Group::of(if row.state == TaskState::New {
                    Change::Desire { task, if_version: row.version, to: TaskState::Remove }
                } else {
                    Change::Status { task, state: TaskState::Shutdown, at_ms: 1, exit: None }
                }));
            }
        }
        for _ in 0..draw(80) {
            let asked = Ipv6Addr::from(0xfd01u128 << 112 | u128::from(draw(256))).to_string();
            let asked: &[&str] = if draw(3) == 0 { &[&asked] } else { &[] };
            groups.push(Group::of(attach(&world, network, next, asked)));
            next += 1;
            changes += 2;
        }
        let outcomes = world.propose(groups);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Applied { .. })), "{outcomes:?}");
        let plan = super::plan(&world.view());
        let outcomes = world.propose(plan.groups);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Applied { .. })), "{outcomes:?}");
        // The reaper's part.
        let state = world.view();
        let dead = state.removable().map(|(handle, row)| (row.reference(handle), row.version));
        let dead: Vec<Group> =
            dead.map(|(task, if_version)| Group::of(Change::DeleteTask { task, if_version })).collect();
        world.propose(dead);
        world.log.clear();
        rounds += 1;
        if rounds % 16 == 0 {
            held(&world, network);
        }
        if rounds % 256 == 0 {
            world.view().check().unwrap();
            assert_eq!(world.reopened().digest(), world.view().digest());
        }
    }
    // All go: nothing is left. All come: everything is given.
    let state = world.view();
    let rows: Vec<_> = state.attachments_of_containers().map(|(h, row, _)| (row.reference(h), row.version)).collect();
    for (task, if_version) in rows {
        world.propose(vec![Group::of(Change::Desire { task, if_version, to: TaskState::Remove })]);
        world.apply(Change::Status { task, state: TaskState::Shutdown, at_ms: 1, exit: None });
    }
    world.settle();
    assert_eq!((world.view().task_count(), held(&world, network).len()), (0, 0));
    for container in 0..300 {
        world.apply(attach(&world, network, next + container, &[]));
    }
    world.settle();
    assert_eq!(held(&world, network).len(), 2 * 253, "IPv4 is used up first: 256 less three");
    world.view().check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_world_of_both_families_settles_and_its_replicas_agree(
        ipv6: [bool; 3],
        services in prop::collection::vec((0u8..8, 0u64..6), 1..5),
    ) {
        let mut world = World::new().nodes(3);
        let mut networks = Vec::new();
        for (n, ipv6) in ipv6.into_iter().enumerate() {
            networks.push(world.make_network(&format!("n{n}"), |spec| spec.ipv6 = ipv6));
        }
        let mut wanted = 0;
        for (n, (mask, replicas)) in services.into_iter().enumerate() {
            let chosen: Vec<_> = (0..3).filter(|bit| mask & (1 << bit) != 0).collect();
            let per_task: usize = chosen.iter().map(|bit| if ipv6[*bit] { 2 } else { 1 }).sum();
            wanted += per_task * (usize::try_from(replicas).unwrap() + 1);
            let chosen: Vec<_> = chosen.into_iter().map(|bit| networks[bit]).collect();
            world.add_service(&format!("s{n}"), ServiceMode::Replicated { replicas }, |s| s.task.networks = on(&chosen));
        }
        world.settle();
        prop_assert!(super::plan(&world.view()).groups.is_empty());
        let state = world.view();
        let used: usize = networks.iter().map(|n| state.addresses_used(state.networks().reference(*n).unwrap())).sum();
        prop_assert_eq!(used, wanted);
        state.check().unwrap();
        prop_assert_eq!(world.reopened().digest(), state.digest());
    }
}
