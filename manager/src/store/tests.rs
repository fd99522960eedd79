use std::sync::Arc;

use proptest::prelude::*;
use skep_proto::model::service::{EndpointSpec, PortConfig, Protocol, PublishMode};
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{NetworkId, NodeId, ServiceId, ServiceMode, TaskId, TaskState};

use super::*;
use crate::raft::machine::Machine;
use crate::world::World;

const REPLICAS: ServiceMode = ServiceMode::Replicated { replicas: 0 };

fn reference(world: &World, id: ServiceId) -> ServiceRef {
    world.view().services().reference(id).unwrap()
}

fn create(world: &World, id: ServiceId, task: u128, slot: u32) -> Change {
    let service = reference(world, id);
    Change::CreateTask {
        id: TaskId(task),
        service,
        spec_version: world.service(id).unwrap().spec_version,
        slot,
        node: None,
        desired: TaskState::Running,
        start_ms: 0,
        restarts: Vec::new(),
        after: world.view().newest_in_place(service, slot),
    }
}

fn refused(world: &mut World, change: Change) -> Refusal {
    match world.propose(vec![Group::of(change)]).remove(0) {
        Outcome::Refused(refusal) => refusal,
        applied @ Outcome::Applied { .. } => panic!("{applied:?}"),
    }
}

#[test]
fn a_refused_group_changes_nothing_and_does_not_spoil_the_others() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let before = world.view();
    let stale = Change::Desire { task: TaskRef::new(9, 1.try_into().unwrap()), if_version: 1, to: TaskState::Remove };
    let half = Group::from(vec![create(&world, id, 1, 1), stale]);
    assert_eq!(world.propose(vec![half.clone()]), [Outcome::Refused(Refusal::TaskGone)]);
    assert_eq!((world.view().digest(), world.view().task_count()), (before.digest(), 0));
    let whole = Group::of(create(&world, id, 2, 1));
    let outcomes = world.propose(vec![half, whole]);
    assert!(
        matches!(outcomes.as_slice(), [Outcome::Refused(_), Outcome::Applied { created, .. }] if created.len() == 1)
    );
}

#[test]
fn a_second_create_from_the_same_view_is_refused() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let (first, second) = (create(&world, id, 1, 1), create(&world, id, 2, 1));
    let outcomes = world.propose(vec![Group::of(first), Group::of(second)]);
    assert_eq!(outcomes[1], Outcome::Refused(Refusal::SlotTaken { slot: 1 }));
}

#[test]
fn a_reused_row_is_not_met_by_an_old_reference() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    world.apply(create(&world, id, 1, 1));
    let old = world.view().reference(TaskId(1)).unwrap();
    let version = world.view().row(old).unwrap().version;
    world.apply(Change::Desire { task: old, if_version: version, to: TaskState::Remove });
    let version = world.view().row(old).unwrap().version;
    world.apply(Change::DeleteTask { task: old, if_version: version });
    world.apply(create(&world, id, 2, 1));
    let new = world.view().reference(TaskId(2)).unwrap();
    assert_eq!(old.handle(), new.handle());
    assert!(world.view().row(old).is_none() && world.view().row(new).is_some());
    // A status on its way from the old task's node.
    world.apply(Change::Status { task: old, state: TaskState::Running, at_ms: 1, exit: None });
    assert_eq!(world.view().row(new).unwrap().state, TaskState::New);
}

#[test]
fn a_request_that_comes_again_is_answered_and_not_repeated_for_ten_minutes() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let group = Group { request: Some(77), changes: vec![create(&world, id, 1, 1)] };
    let first = world.propose(vec![group.clone()]);
    assert_eq!(world.propose(vec![group.clone()]), first);
    assert_eq!(world.view().task_count(), 1);
    world.now = world.now.after(std::time::Duration::from_secs(601));
    assert_ne!(world.propose(vec![group]), first, "it was forgotten and is judged anew");
}

#[test]
fn states_only_go_forward_and_late_ones_are_dropped() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 1 }, |_| {});
    world.settle();
    let task = world.view().reference(world.running(id)[0].id).unwrap();
    let digest = world.view().digest();
    world.apply(Change::Status { task, state: TaskState::Starting, at_ms: 5, exit: None });
    assert_eq!(world.view().digest(), digest);
    let version = world.view().row(task).unwrap().version;
    world.apply(Change::Desire { task, if_version: version, to: TaskState::Remove });
    let version = world.view().row(task).unwrap().version;
    world.apply(Change::Desire { task, if_version: version, to: TaskState::Shutdown });
    assert_eq!(world.view().row(task).unwrap().desired, TaskState::Remove);
}

#[test]
fn names_are_unique_and_updates_name_the_version_they_read() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let service = world.service(id).unwrap();
    let twin = skep_proto::model::Service { id: ServiceId(99), ..(*service).clone() };
    let conflict = Refusal::NameConflict { kind: Kind::Service, name: "web".into(), id: id.0 };
    assert_eq!(refused(&mut world, Change::create(&twin)), conflict);
    world.apply(Change::update(&*service));
    let current = world.service(id).unwrap().meta.version.0;
    let given = service.meta.version.0;
    assert_eq!(
        refused(&mut world, Change::update(&*service)),
        Refusal::OutOfSequence { kind: Kind::Service, id: id.0, current, given }
    );
    let gone = Change::Delete { kind: Kind::Secret, id: 5, if_version: 0 };
    assert_eq!(refused(&mut world, gone), Refusal::NotFound { kind: Kind::Secret, id: 5 });
}

#[test]
fn a_service_takes_no_network_that_goes_or_is_gone() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let on = |target: &str| {
        let mut service = (*world.service(id).unwrap()).clone();
        let attachment = NetworkAttachmentSpec { target: target.into(), ..NetworkAttachmentSpec::default() };
        service.spec.task.networks = vec![attachment];
        service
    };
    let network = NetworkId(7);
    let (on_node, on_it) = (on("host"), on(&network.to_string()));
    assert_eq!(refused(&mut world, Change::update(&on_it)), Refusal::NotFound { kind: Kind::Network, id: network.0 });
    world.apply(Change::update(&on_node));
}

#[test]
fn a_port_of_the_mesh_belongs_to_one_service() {
    let port =
        |mode| PortConfig { name: String::new(), protocol: Protocol::Tcp, target: 80, published: Some(8088), mode };
    let endpoint = |mode| Some(EndpointSpec { ports: vec![port(mode)], ..EndpointSpec::default() });
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |s| s.endpoint = endpoint(PublishMode::Ingress));
    let first = world.service(id).unwrap();
    for mode in [PublishMode::Ingress, PublishMode::Host] {
        let mut other = skep_proto::model::Service { id: ServiceId(99), ..(*first).clone() };
        other.spec.annotations.name = "other".into();
        other.spec.endpoint = endpoint(mode);
        let refusal = refused(&mut world, Change::create(&other));
        let text = format!("port '8088' is already in use by service 'web' ({id}) as an ingress port");
        assert_eq!(refusal.to_string(), text);
    }
    world.update_service(id, |s| s.pending_delete = true);
    let again = world.add_service("again", REPLICAS, |s| s.endpoint = endpoint(PublishMode::Ingress));
    assert_eq!(world.view().ingress_port_holder(Protocol::Tcp, 8088).unwrap().id, again);
}

#[test]
fn a_spec_is_held_once_and_goes_with_its_last_task() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 3 }, |_| {});
    world.settle();
    let service = reference(&world, id);
    let mut versions = vec![world.service(id).unwrap().spec_version];
    for n in 0..3 {
        world.update_service(id, |s| {
            let (spec, spec_version) = (s.spec.clone(), s.spec_version);
            s.previous = Some(Box::new(skep_proto::model::service::PreviousSpec { spec, spec_version }));
            s.spec.task.force_update = n + 1;
        });
        versions.push(world.service(id).unwrap().spec_version);
    }
    let held =
        |world: &World| versions.iter().map(|v| world.view().spec(service, *v).map(|s| s.tasks)).collect::<Vec<_>>();
    assert_eq!(held(&world), [Some(3), None, Some(0), Some(0)]);
    world.pass(std::time::Duration::from_secs(10));
    // Old tasks stay in the history and keep their spec.
    assert_eq!(held(&world), [Some(3), None, Some(0), Some(3)]);
}

#[test]
fn going_back_to_the_previous_spec_keeps_its_version() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let first = world.service(id).unwrap();
    world.update_service(id, |s| {
        let (spec, spec_version) = (s.spec.clone(), s.spec_version);
        s.previous = Some(Box::new(skep_proto::model::service::PreviousSpec { spec, spec_version }));
        s.spec.task.force_update = 1;
    });
    assert_ne!(world.service(id).unwrap().spec_version, first.spec_version);
    world.update_service(id, |s| {
        s.spec = first.spec.clone();
        s.previous = None;
    });
    assert_eq!(world.service(id).unwrap().spec_version, first.spec_version);
}

#[test]
fn a_removed_node_orphans_its_tasks_and_its_index_rests() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 2 }, |_| {});
    world.settle();
    let node = world.running(id)[0].node.unwrap();
    let index = world.view().nodes().get(node).unwrap().index;
    world.apply(Change::Delete { kind: Kind::Node, id: node.0, if_version: 0 });
    let tasks = world.tasks(id);
    let orphans: Vec<_> = tasks.iter().filter(|t| t.status.state == TaskState::Orphaned).collect();
    assert_eq!((orphans.len(), orphans[0].node), (1, None));
    let new = world.add_node("n3", |_| {});
    assert!(world.view().nodes().get(new).unwrap().index > index.max(2));
}

#[tokio::test]
async fn a_watch_tells_what_was_touched_after_its_view() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let (view, mut watch) = world.store.view_and_watch();
    world.apply(create(&world, id, 1, 1));
    world.apply(create(&world, id, 2, 2));
    let (seen, Changes::Some(past)) = watch.next().await.unwrap() else { panic!("the past is known") };
    assert_eq!((view.task_count(), seen.task_count()), (0, 2), "the held view did not change");
    assert_eq!(past.iter().map(|t| t.tasks.len()).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_watch_that_is_too_far_behind_is_told_to_look_at_everything() {
    let mut ring = touched::Ring::new(0, 10);
    let touch = |index| Touched {
        index,
        tasks: vec![TouchedTask { handle: 1, service: None, old_node: None, new_node: None }; 3],
        objects: Vec::new(),
    };
    (1..=5).for_each(|index| ring.push(touch(index)));
    assert_eq!(ring.since(1), Changes::All);
    let Changes::Some(past) = ring.since(3) else { panic!("index 4 and 5 fit") };
    assert_eq!(past.iter().map(|t| t.index).collect::<Vec<_>>(), [4, 5]);
}

#[test]
fn an_entry_of_another_format_stops_the_node() {
    let (mut replica, _) = Replica::new();
    let good = Entry { at_ms: 1, proposer: NodeId(0), groups: Vec::new() }.encode();
    assert!(replica.apply(1, &good).is_ok());
    for bad in [&b""[..], &[FORMAT + 1, 0, 0, 0], &[FORMAT], &[FORMAT, 1, 0, 1, 0, 1, 200]] {
        assert!(replica.apply(2, bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn bytes_from_outside_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Entry::decode(&bytes);
        let (mut replica, _) = Replica::new();
        prop_assert!(replica.restore(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn a_damaged_snapshot_is_refused_or_the_same(at in 0usize..4000, flip in 1u8..) {
        let mut world = World::new().nodes(2);
        let network = world.add_network("net");
        world.add_service("web", ServiceMode::Replicated { replicas: 4 }, |s| {
            let target = network.to_string();
            s.task.networks = vec![skep_proto::model::task::NetworkAttachmentSpec { target, ..Default::default() }];
        });
        world.settle();
        let mut bytes = world.snapshot();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let (mut replica, store) = Replica::new();
        if replica.restore(&mut bytes.as_slice()).is_ok() {
            prop_assert_eq!(store.view().digest(), world.view().digest());
        }
    }
}

/// A change of any kind, mostly about things that exist.
fn any_change(world: &World, dice: &[u32; 4]) -> Change {
    let view = world.view();
    let [kind, a, b, c] = *dice;
    let row = view.rows().nth(a as usize % view.task_count().max(1)).map(|(h, row)| (row.reference(h), *row));
    let node = view.nodes().iter().nth(b as usize % view.nodes().len()).unwrap();
    let service = view.services().iter().nth(b as usize % view.services().len()).unwrap();
    let states = TaskState::ALL;
    match (kind % 10, row) {
        (0..=2, _) | (_, None) => create(world, service.1.id, (u128::from(a) << 32) | u128::from(c), 1 + c % 4),
        (3, Some((task, row))) => Change::Allocate { task, if_version: row.version, addresses: Vec::new() },
        (4, Some((task, row))) => Change::Assign { task, if_version: row.version, node: node.0 },
        (5 | 6, Some((task, _))) => Change::Report {
            task,
            state: states[c as usize % states.len()],
            at_ms: u64::from(b),
            exit: (c % 2 == 0).then_some(1),
            message: String::new(),
            error: if b % 3 == 0 { "broken".into() } else { String::new() },
            host_ports: Vec::new(),
        },
        (7, Some((task, row))) => {
            Change::Desire { task, if_version: row.version, to: states[c as usize % states.len()] }
        }
        (8, Some((task, row))) => Change::DeleteTask { task, if_version: row.version + u64::from(c % 5 == 0) },
        (_, Some(_)) if c % 7 == 0 => Change::Delete { kind: Kind::Node, id: node.1.id.0, if_version: 0 },
        (_, Some(_)) => {
            let mut changed = (**service.1).clone();
            changed.spec.task.force_update = u64::from(c % 3);
            changed.previous = Some(Box::new(skep_proto::model::service::PreviousSpec {
                spec: service.1.spec.clone(),
                spec_version: service.1.spec_version,
            }));
            Change::update(&changed)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn sums_equal_a_recount_and_replicas_agree_whatever_is_applied(
        dice in prop::collection::vec(prop::collection::vec(any::<[u32; 4]>(), 1..4), 1..60), cut in 0usize..60,
    ) {
        let mut world = World::new().nodes(8);
        for name in ["a", "b"] {
            world.add_service(name, REPLICAS, |s| {
                s.task.resources.reservations =
                    Some(skep_proto::model::task::Reservations { nano_cpus: 1_000_000_000, ..Default::default() });
            });
        }
        let mut restored = None;
        for (n, dice) in dice.iter().enumerate() {
            if n == cut {
                let (mut replica, store) = Replica::new();
                replica.restore(&mut world.snapshot().as_slice()).unwrap();
                restored = Some((replica, store, world.log.len()));
            }
            if world.view().nodes().len() < 2 {
                world.add_node("new", |_| {});
            }
            let changes: Vec<Change> = dice.iter().map(|d| any_change(&world, d)).collect();
            world.propose(vec![changes.into()]);
            world.view().check().map_err(TestCaseError::fail)?;
        }
        let (mut replica, store) = Replica::new();
        replay(&mut replica, &world.log);
        prop_assert_eq!(store.view().digest(), world.view().digest());
        if let Some((mut replica, store, from)) = restored {
            replay(&mut replica, &world.log[from..]);
            prop_assert_eq!(store.view().digest(), world.view().digest());
            let tasks = |view: Arc<State>| view.tasks().collect::<Vec<_>>();
            prop_assert_eq!(tasks(store.view()), tasks(world.view()));
        }
    }
}

fn replay(replica: &mut Replica, log: &[(u64, bytes::Bytes)]) {
    for (index, bytes) in log {
        replica.apply(*index, bytes).unwrap();
    }
    replica.publish();
}

#[test]
fn ids_that_begin_alike_are_told_apart() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", REPLICAS, |_| {});
    let alike: Vec<u128> = (1..=4).map(|n| (7 << 96) | n).collect();
    for (slot, task) in (1..).zip(&alike) {
        world.apply(create(&world, id, *task, slot));
    }
    let view = world.view();
    assert!(alike.iter().all(|task| view.task(TaskId(*task)).is_some_and(|t| t.id.0 == *task)));
    assert_eq!(view.reference(TaskId((7 << 96) | 9)), None);
    let prefix = TaskId(alike[0]).to_string();
    assert_eq!(view.task_ids_by_prefix(&prefix[..5]).count(), 4);
    assert_eq!(view.task_ids_by_prefix(&prefix).collect::<Vec<_>>(), [TaskId(alike[0])]);
}
