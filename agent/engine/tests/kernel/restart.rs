//! A daemon that is killed, and another one that takes its place: real processes.
#![allow(clippy::unwrap_used)] // A test may panic.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use skep_engine::containers::Containers;
use skep_proto::model::engine::{ContainerStatus, LogQuery};

use crate::support::{self, Node, eventually};

const ROOT: &str = "SKEP_TEST_ROOT";

/// The daemon of the test below: a process of its own, started by that test. Alone it does nothing.
#[tokio::test]
#[ignore = "needs root"]
async fn daemon() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let mut node = Node::new().await;
    node.config.root = root.into();
    node.config.cgroup_parent = std::env::var("SKEP_TEST_CGROUP").unwrap();
    node.containers = Containers::open(node.config.clone()).await.unwrap();
    node.image.layers =
        vec![node.config.root.parent().unwrap().join("layer"), node.config.root.parent().unwrap().join("empty")];
    let forever = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let until = "while ! test -e /go/on; do sleep 0.01; done; echo last; exit 9";
    for script in [forever, until, "sleep 1000"] {
        let id = node.create(node.config(&["sh", "-c", script])).await;
        node.start(id).await;
        println!("started {id} {}", node.containers.inspect(id).unwrap().state.pid);
    }
    // Killed by the test.
    std::future::pending::<()>().await;
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_killed_daemon_costs_no_container_anything_and_missed_ends_are_found() {
    let mut node = Node::new().await;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "restart::daemon", "--ignored", "--nocapture"])
        .env(ROOT, &node.config.root)
        .env("SKEP_TEST_CGROUP", &node.config.cgroup_parent)
        .env("SKEP_SHIM", support::shim())
        .env("SKEP_TEST_TMP", node.dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut daemon = Daemon(child);
    let lines = BufReader::new(daemon.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let started: Vec<(String, u32)> = lines
        .filter_map(|l| {
            let (id, pid) = l.split_once("started ")?.1.split_once(' ')?;
            Some((id.to_owned(), pid.parse().unwrap()))
        })
        .take(3)
        .collect();
    drop(daemon);

    // While nobody looks one container ends by itself, and one's shim is killed.
    let ids: Vec<_> = started.iter().map(|(id, _)| id.parse().unwrap()).collect();
    std::fs::create_dir_all(format!("/proc/{}/root/go", started[1].1)).unwrap();
    std::fs::write(format!("/proc/{}/root/go/on", started[1].1), "").unwrap();
    let exit = node.run_dir(ids[1]).join("exit");
    eventually("the shim recorded the end", || exit.exists()).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", started[2].1)).unwrap();
    let shim: i32 = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(shim).unwrap(), rustix::process::Signal::KILL)
        .unwrap();

    node.reopen().await;
    let state = |n: usize| node.containers.inspect(ids[n]).unwrap().state;
    assert_eq!((state(0).status, state(0).pid), (ContainerStatus::Running, started[0].1));
    assert_eq!((node.wait(ids[1]).await, state(1).error.as_str()), (9, ""));
    assert_eq!((node.wait(ids[2]).await, state(2).error.as_str()), (137, "shim died"));
    let all = LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None };
    node.containers.stop(ids[0], Some(libc::SIGKILL), None).await.unwrap();
    use futures_util::StreamExt;
    let lines: Vec<u32> = node
        .containers
        .logs(ids[0], all)
        .unwrap()
        .map(|l| std::str::from_utf8(&l.unwrap().bytes).unwrap().trim().parse::<u32>().unwrap())
        .collect()
        .await;
    assert!(lines.len() > 1);
    let count = u32::try_from(lines.len()).unwrap();
    assert_eq!(lines, (0..count).collect::<Vec<_>>(), "the log has no hole");
    for id in ids {
        node.containers.remove(id, true).await.unwrap();
    }
}
