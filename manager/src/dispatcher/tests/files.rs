//! Secrets and configs on their way to nodes.

use bytes::Bytes;
use skep_proto::model::container::SecretReference;
use skep_proto::model::secret::SecretData;

use super::*;

const S: FileId = FileId::Secret(SecretId(7));

fn content(text: &str) -> FileContent {
    FileContent { data: SecretData(Bytes::copy_from_slice(text.as_bytes())), template: false }
}

/// Service `id`, whose tasks use these secrets.
fn with_secrets(id: u128, secrets: &[u128]) -> Service {
    let mut with = service(id, &[], None);
    let refer = |id: &u128| SecretReference { id: SecretId(*id), name: format!("s{id}"), file: None };
    let container = ContainerSpec { secrets: secrets.iter().map(refer).collect(), ..ContainerSpec::default() };
    with.spec.task.containers = vec![container];
    with
}

fn put_file(store: &FakeStore, id: u128, content: FileContent) {
    store.entry(|view| {
        view.files.insert(FileId::Secret(SecretId(id)), content);
        ports::Touched::default()
    });
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_a_secret_with_the_first_task_that_uses_it_and_forgets_it_with_the_last() {
    let w = World::new().await;
    put_file(&w.store, 7, content("hush"));
    w.store.put_service(with_secrets(5, &[7]));
    let (mut one, mut held) = (w.agent(1).await, Held::default());
    held.apply(&one.set().await);
    assert!(held.files.is_empty());
    for handle in [1, 2] {
        w.store.put_task(task(handle, 5, 1, &[]));
        held.apply(&one.set().await);
        assert_eq!(held.files, [(S, Some(content("hush")))].into());
    }
    w.store.change_task(1, |task| task.state = TaskState::Failed);
    held.apply(&one.set().await);
    assert_eq!(held.files.len(), 1);
    w.store.change_task(2, |task| task.desired = TaskState::Shutdown);
    held.apply(&one.set().await);
    assert!(held.files.is_empty() && held.tasks.len() == 2, "{held:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_tasks_do_not_use_a_secret_is_never_sent_it() {
    let w = World::new().await;
    put_file(&w.store, 7, content("hush"));
    w.store.put_service(with_secrets(5, &[7]));
    w.store.put_service(with_secrets(6, &[]));
    let (mut one, mut two) = (w.agent(1).await, w.agent(2).await);
    let (mut held_one, mut held_two) = (Held::default(), Held::default());
    w.store.put_task(task(1, 5, 1, &[]));
    w.store.put_task(task(2, 6, 2, &[]));
    while held_one.files.is_empty() || held_one.tasks.is_empty() {
        held_one.apply(&one.set().await);
    }
    // Every set that the other node is sent, to the one that shows that nothing is under way any more.
    w.store.put_task(task(3, 6, 2, &[]));
    while held_two.tasks.len() < 2 {
        let set = two.set().await;
        assert!(!set.changes.iter().any(|c| matches!(c, AssignmentChange::PutFile(_))), "{set:?}");
        held_two.apply(&set);
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_gone_is_told_as_gone() {
    let w = World::new().await;
    w.store.put_service(with_secrets(5, &[7]));
    w.store.put_task(task(1, 5, 1, &[]));
    let (mut one, mut held) = (w.agent(1).await, Held::default());
    held.apply(&one.set().await);
    assert_eq!(held.files, [(S, None)].into());
}

#[tokio::test(start_paused = true)]
async fn much_content_comes_in_several_sets_after_the_complete_one() {
    let w = World::new().await;
    let ids: Vec<u128> = (1..=40).collect();
    let large = "x".repeat(500_000);
    ids.iter().for_each(|id| put_file(&w.store, *id, content(&large)));
    w.store.put_service(with_secrets(5, &ids));
    w.store.put_task(task(1, 5, 1, &[]));
    let (mut one, mut held, mut sets) = (w.agent(1).await, Held::default(), 0);
    while held.files.len() < ids.len() {
        let set = one.set().await;
        assert_eq!(set.complete, sets == 0);
        held.apply(&set);
        sets += 1;
    }
    assert!(sets > 1, "20 MB came in one set");
}
