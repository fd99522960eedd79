//! Names, restarts, pauses, logs and many containers at once, on a real kernel.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use skep_engine::containers::{ContainerError, NewContainer, WaitCondition, Wanted};
use skep_proto::model::container::Driver;
use skep_proto::model::engine::{ContainerRestart, ContainerStatus, ExecConfig, LogQuery};

use crate::support::{self, Node, eventually, read, within};

const ALL: LogQuery =
    LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None };

#[tokio::test]
#[ignore = "needs root"]
async fn names_are_unique_and_containers_are_found_by_name_and_prefix() {
    let node = Node::new().await;
    let first = node.config(&["true"]);
    let mut second = node.config(&["true"]);
    second.name = first.name.clone();
    let (name, id) = (first.name.clone(), node.create(first).await);
    let new = NewContainer { config: second.clone(), image: node.image.clone(), mounts: Vec::new() };
    assert!(
        matches!(node.containers.create(new.clone()).await, Err(ContainerError::Conflict(t)) if t.starts_with("Conflict. The container name"))
    );
    assert_eq!(node.containers.find(&name).unwrap(), id);
    node.containers.rename(id, "other").unwrap();
    assert_eq!(node.containers.find("/other").unwrap(), id);
    assert_eq!(node.containers.find(&id.to_string()[..16]).unwrap(), id);
    node.containers.create(new).await.unwrap();
    assert!(matches!(node.containers.find(&id.to_string()[..8]), Err(ContainerError::Invalid(_))));
    for id in [id, second.id] {
        node.containers.remove(id, false).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_failing_container_is_restarted_as_often_as_its_policy_says() {
    let node = Node::new().await;
    let mut config = node.config(&["sh", "-c", "echo run; exit 3"]);
    config.restart = ContainerRestart::OnFailure(2);
    let id = node.create(config).await;
    node.start(id).await;
    assert_eq!(node.wait(id).await, 3);
    let container = node.containers.inspect(id).unwrap();
    assert_eq!((container.restart_count, container.state.status), (2, ContainerStatus::Exited));
    let lines: Vec<_> = node.containers.logs(id, ALL).unwrap().collect().await;
    assert_eq!(lines.len(), 3);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_auto_removed_container_tells_its_code_when_it_is_gone() {
    let node = Node::new().await;
    let mut config = node.config(&["sh", "-c", "exit 5"]);
    config.auto_remove = true;
    let id = node.create(config).await;
    let gone = node.containers.wait(id, WaitCondition::Removed).unwrap();
    node.start(id).await;
    assert_eq!(within(gone).await.0, 5);
    assert!(node.containers.inspect(id).is_err());
    eventually("its files are gone", || std::fs::read_dir(&node.config.root).unwrap().count() == 0).await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_paused_container_stands_still_and_can_be_stopped() {
    let node = Node::new().await;
    let id = node.create(node.config(&["sh", "-c", "trap 'exit 4' TERM; while :; do echo x; sleep 0.01; done"])).await;
    node.start(id).await;
    let count = async || node.containers.logs(id, ALL).unwrap().count().await;
    let mut lines = 0;
    while lines < 5 {
        lines = count().await;
    }
    node.containers.pause(id, true).await.unwrap();
    assert_eq!(node.containers.inspect(id).unwrap().state.status, ContainerStatus::Paused);
    let exec = ExecConfig { command: vec!["true".into()], ..ExecConfig::default() };
    assert!(matches!(node.containers.exec_create(id, exec), Err(ContainerError::Conflict(_))));
    // What was written before the pause may still be in the shim's pipe: the count must come to a stand, and stay there.
    let mut before = count().await;
    let mut unchanged = 0;
    let deadline = Instant::now() + support::PATIENCE;
    while unchanged < 10 {
        assert!(Instant::now() < deadline, "a paused container writes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = count().await;
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
    }
    node.containers.pause(id, false).await.unwrap();
    let deadline = Instant::now() + support::PATIENCE;
    while count().await == before {
        assert!(Instant::now() < deadline);
    }
    node.containers.pause(id, true).await.unwrap();
    node.containers.stop(id, None, None).await.unwrap();
    assert_eq!(node.containers.inspect(id).unwrap().state.exit_code, 4);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_client_that_takes_nothing_does_not_hold_the_container_up() {
    let node = Node::new().await;
    // More than all buffers between the process and the client together.
    let mut config = node.config(&["sh", "-c", "head -c 8m /dev/zero | tr '\\0' x | fold -w 100; echo done >&2"]);
    config.log = Some(Driver { name: "none".into(), ..Driver::default() });
    let id = node.create(config).await;
    let stuck = node.containers.attach(id, Wanted { stdin: false, stdout: true, stderr: false }).await.unwrap();
    let both = node.containers.attach(id, Wanted { stdin: false, stdout: true, stderr: true }).await.unwrap();
    let since = Instant::now();
    node.start(id).await;
    let (out, err) = read(both).await;
    assert_eq!(err, "done\n");
    assert_eq!(out.bytes().filter(|b| *b == b'x').count(), 8 << 20, "the client that reads gets everything");
    assert_eq!(node.wait(id).await, 0);
    assert!(since.elapsed() < Duration::from_secs(20));
    drop(stuck);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn logs_are_rotated_and_followed_to_the_end() {
    let node = Node::new().await;
    let mut config = node.config(&["sh", "-c", "i=0; while test $i -lt 2000; do echo $i; i=$((i+1)); done"]);
    let options = [("max-size", "20k"), ("max-file", "4")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    config.log = Some(Driver { name: "json-file".into(), options: options.into() });
    let id = node.create(config).await;
    node.start(id).await;
    node.wait(id).await;
    let lines: Vec<u32> = node
        .containers
        .logs(id, LogQuery { follow: true, ..ALL })
        .unwrap()
        .map(|l| std::str::from_utf8(&l.unwrap().bytes).unwrap().trim().parse::<u32>().unwrap())
        .collect()
        .await;
    assert_eq!(lines.last(), Some(&1999));
    assert_eq!(lines, (lines[0]..2000).collect::<Vec<_>>(), "what was kept has no holes");
    let files = std::fs::read_dir(node.config.root.join(id.to_string())).unwrap();
    let logs = files.filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().contains("-json.log")).count();
    assert_eq!(logs, 4);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_hundred_containers_live_side_by_side_and_leave_nothing() {
    let node = std::sync::Arc::new(Node::new().await);
    let mut runs = tokio::task::JoinSet::new();
    for n in 0..100 {
        let node = node.clone();
        runs.spawn(async move {
            let id = node
                .create(node.config(&["sh", "-c", &format!("while ! test -e /tmp/go; do sleep 0.05; done; exit {n}")]))
                .await;
            node.start(id).await;
            let command = vec!["echo".to_owned(), n.to_string()];
            let (code, out, _) = node.exec(id, ExecConfig { command, ..ExecConfig::default() }).await;
            assert_eq!((code, out), (0, format!("{n}\n")));
            let pid = node.containers.inspect(id).unwrap().state.pid;
            std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
            assert_eq!(node.wait(id).await, n);
            node.containers.remove(id, false).await.unwrap();
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
    assert!(node.containers.list(true).is_empty());
    let root = node.config.root.display().to_string();
    eventually("no file is left", || std::fs::read_dir(&node.config.root).unwrap().count() == 0).await;
    eventually("no mount is left", || !std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&root)).await;
    let left = |d: std::path::PathBuf| {
        std::fs::read_dir(d.parent().unwrap()).is_ok_and(|d| d.flatten().any(|e| e.path().is_dir()))
    };
    assert!(!node.cgroups().dirs("x").into_iter().any(left), "no cgroup is left");
}
