use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use skep_proto::model::secret::SecretData;
use skep_proto::model::session::{AssignedFile, AssignmentChange, Assignments, FileContent, FileId, ManagerPeer};
use skep_proto::model::view::{OverlayNetwork, Peer};
use skep_proto::model::{NetworkId, NodeId, SecretId, TaskId, TaskState};

use super::held::{Held, RefusedSet};
use super::*;
use crate::test_support::{address, database, report, spec, task};

fn set(index: u64, complete: bool, changes: Vec<AssignmentChange>) -> Assignments {
    Assignments { index, complete, changes }
}

fn put(id: u128) -> AssignmentChange {
    AssignmentChange::PutTask(task(id, TaskState::Running))
}

fn put_spec() -> AssignmentChange {
    AssignmentChange::PutSpec(spec())
}

fn peer(id: u128) -> AssignmentChange {
    AssignmentChange::PutPeer(Peer {
        node: NodeId(id),
        index: 1,
        data_path: vec![address(1).ip()],
        wireguard: None,
        ipv4_only: false,
    })
}

/// The set after `sets`, in memory and as a restart would find it.
async fn after(sets: Vec<Assignments>) -> (Held, Held) {
    let database = database();
    let (state, loaded, writer) = with_database(Arc::clone(&database), "memory", Placement::Inline).unwrap();
    tokio::spawn(writer.run());
    let mut held = Held::from(&loaded);
    for set in sets {
        let writes = held.apply(set).unwrap();
        state.write(writes).await.unwrap();
    }
    (held, Held::from(&load::load(&database).unwrap()))
}

#[tokio::test]
async fn a_restart_finds_what_was_held() {
    let steps = [
        set(3, true, vec![put_spec(), put(1), put(2), peer(1), peer(2)]),
        set(4, false, vec![AssignmentChange::RemoveTask(TaskId(1)), AssignmentChange::RemovePeer(NodeId(1)), put(3)]),
        set(5, true, vec![put_spec(), put(3), peer(4)]),
    ];
    for count in 0..=steps.len() {
        let (held, restored) = after(steps[..count].to_vec()).await;
        assert_eq!(held, restored, "after {count} sets");
    }
}

fn changes() -> impl Strategy<Value = Vec<AssignmentChange>> {
    let network = |id| {
        AssignmentChange::PutNetwork(OverlayNetwork {
            id: NetworkId(id),
            name: "web".into(),
            vni: 4097,
            subnets: Vec::new(),
            internal: false,
            encrypted: false,
            mtu: None,
            port: 0,
        })
    };
    let change = prop_oneof![
        (0..4u128).prop_map(put),
        (0..4u128).prop_map(|id| AssignmentChange::RemoveTask(TaskId(id))),
        (0..4u128).prop_map(peer),
        (0..4u128).prop_map(|id| AssignmentChange::RemovePeer(NodeId(id))),
        (0..4u128).prop_map(network),
        (0..4u128).prop_map(|id| AssignmentChange::RemoveNetwork(NetworkId(id))),
    ];
    prop::collection::vec(change, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_assigned_and_forgotten_the_disk_and_memory_agree(
        sets in prop::collection::vec((any::<bool>(), changes()), 1..6),
        forgotten in 0..4u128,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let database = database();
            let (state, loaded, writer) = with_database(Arc::clone(&database), "memory", Placement::Inline).unwrap();
            tokio::spawn(writer.run());
            let mut held = Held::from(&loaded);
            for (index, (complete, changes)) in (1..).zip(sets) {
                let changes = std::iter::once(put_spec()).chain(changes).collect();
                state.write(held.apply(set(index, complete, changes)).unwrap()).await.unwrap();
                state.write(held.forget(TaskId(forgotten))).await.unwrap();
                state.write(held.drop_unused_specs()).await.unwrap();
                prop_assert_eq!(&held, &Held::from(&load::load(&database).unwrap()));
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn what_a_complete_set_does_not_name_goes_but_tasks_stay_until_they_are_removed() {
    let (mut held, _) = after(vec![
        set(3, true, vec![put_spec(), put(1), put(2), peer(1)]),
        set(4, true, vec![put_spec(), put(2), peer(2)]),
    ])
    .await;
    let gone: BTreeMap<_, _> = held.tasks.iter().map(|(id, task)| (id.0, task.gone)).collect();
    assert_eq!(gone, [(1, true), (2, false)].into());
    assert_eq!(held.view.peers.keys().collect::<Vec<_>>(), [&NodeId(2)]);
    assert!(held.forget(TaskId(2)).is_empty());
    assert!(!held.forget(TaskId(1)).is_empty());
    assert_eq!(held.tasks.keys().collect::<Vec<_>>(), [&TaskId(2)]);
}

#[test]
fn a_refused_set_changes_nothing() {
    let mut held = Held::default();
    held.apply(set(5, true, vec![put_spec(), put(1)])).unwrap();
    let before = held.clone();
    assert_eq!(held.apply(set(4, true, vec![])), Err(RefusedSet::Behind { found: 4, seen: 5 }));
    let mut stranger = task(2, TaskState::Running);
    stranger.spec.version = 9;
    let refused = held.apply(set(6, true, vec![AssignmentChange::PutTask(stranger)]));
    assert_eq!(refused, Err(RefusedSet::UnknownSpec { task: TaskId(2) }));
    held.incomplete = true;
    assert_eq!(held.apply(set(6, false, vec![put(3)])), Err(RefusedSet::Part));
    held.incomplete = false;
    assert_eq!(held, before);
}

#[test]
fn a_spec_stays_for_the_session_and_goes_with_the_next_one_when_no_task_refers_to_it() {
    let mut held = Held::default();
    held.apply(set(5, true, vec![put_spec()])).unwrap();
    held.apply(set(6, false, vec![put(1)])).unwrap();
    assert!(held.drop_unused_specs().is_empty());
    held.apply(set(7, false, vec![AssignmentChange::RemoveTask(TaskId(1))])).unwrap();
    held.forget(TaskId(1));
    assert_eq!(held.drop_unused_specs(), [Write::delete_spec(spec().key)]);
}

#[tokio::test]
async fn a_status_that_the_managers_have_is_forgotten_and_a_newer_one_is_not() {
    let database = database();
    let (state, _, writer) = with_database(Arc::clone(&database), "memory", Placement::Inline).unwrap();
    tokio::spawn(writer.run());
    let forget = Write::ForgetStatus { task: TaskId(1), up_to: TaskState::Running };
    state.write(vec![Write::status(&report(1, TaskState::Failed)), forget.clone()]).await.unwrap();
    assert_eq!(load::load(&database).unwrap().statuses.len(), 1);
    state.write(vec![Write::status(&report(1, TaskState::Running)), forget]).await.unwrap();
    assert!(load::load(&database).unwrap().statuses.is_empty());
}

#[tokio::test]
async fn a_file_keeps_what_was_written_and_a_later_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.redb");
    let manager = ManagerPeer { node: NodeId(1), address: address(1) };
    let (state, _, writer) = open(&path).unwrap();
    let running = tokio::spawn(writer.run());
    state.write(vec![Write::manager(&manager), Write::number("index", 9)]).await.unwrap();
    drop(state);
    running.await.unwrap();

    let (state, loaded, writer) = open(&path).unwrap();
    assert_eq!((loaded.index, loaded.managers), (9, vec![manager]));
    let running = tokio::spawn(writer.run());
    state.write(vec![Write::number("format", FORMAT + 1)]).await.unwrap();
    drop(state);
    running.await.unwrap();
    assert!(matches!(open(&path).map(|_| ()), Err(StateError::Format { found: 2, .. })));
}

#[tokio::test]
async fn a_damaged_row_makes_the_agent_ask_for_everything() {
    let database = database();
    let damage = Write::Put { table: Table::Tasks, key: vec![1; 16], value: bytes::Bytes::from_static(b"\0garbage") };
    write::commit(&database, &[Write::number("index", 9), damage]).unwrap();
    let loaded = load::load(&database).unwrap();
    assert_eq!((loaded.index, loaded.incomplete, loaded.tasks.len()), (9, true, 0));
}

#[test]
fn secrets_and_configs_are_held_in_memory_and_never_written() {
    let id = FileId::Secret(SecretId(3));
    let content = FileContent { data: SecretData("hush".into()), template: false };
    let put_file = AssignmentChange::PutFile(AssignedFile { id, content: Some(content.clone()) });
    let (mut with, mut without) = (Held::default(), Held::default());
    let plain = without.apply(set(1, true, vec![put_spec(), put(1)])).unwrap();
    assert_eq!(with.apply(set(1, true, vec![put_spec(), put(1), put_file])).unwrap(), plain);
    assert_eq!(*with.files, [(id, Some(content))].into());
    with.apply(set(2, false, vec![AssignmentChange::RemoveFile(id)])).unwrap();
    assert_eq!(with.files, without.files);
}
