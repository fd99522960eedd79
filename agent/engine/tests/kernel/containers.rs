//! Containers on a real kernel: life cycle, streams, protections, the daemon's and the shim's death.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::time::Duration;

use skep_engine::containers::{ContainerError, WaitCondition, Wanted};
use skep_proto::model::engine::{ContainerStatus, ExecConfig};

use crate::support::{Node, eventually, read, within};

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_runs_from_create_to_delete() {
    let node = Node::new().await;
    let (code, out, err) = node.sh("echo hello; echo sorry >&2; exit 7").await;
    assert_eq!((code, out.as_str(), err.as_str()), (7, "hello\n", "sorry\n"));
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_running_container_takes_further_processes_and_signals() {
    let node = Node::new().await;
    let id = node.create(node.config(&["sleep", "1000"])).await;
    node.start(id).await;
    let command = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let script = "echo $A; pwd; id -u; id -G; exit 3";
    let (code, out, _) = node
        .exec(
            id,
            ExecConfig {
                command: command(&["sh", "-c", script]),
                env: vec!["A=b".into()],
                user: "web".into(),
                dir: "/tmp".into(),
                ..ExecConfig::default()
            },
        )
        .await;
    assert_eq!((code, out.as_str()), (3, "b\n/tmp\n33\n34 29\n"));
    let missing = node.containers.exec_create(id, ExecConfig { command: command(&["nope"]), ..ExecConfig::default() });
    let missing = missing.unwrap();
    match node.containers.exec_start(&missing, false, false, None).await {
        Err(ContainerError::StartFailed(text)) => assert_eq!(
            text,
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \"nope\": executable file \
             not found in $PATH: unknown"
        ),
        _ => panic!("a missing program must not start"),
    }
    assert_eq!(node.containers.exec_inspect(&missing).unwrap().exit_code, Some(127));
    node.containers.kill(id, libc::SIGKILL).await.unwrap();
    assert_eq!(node.wait(id).await, 137);
    node.containers.remove(id, false).await.unwrap();
    assert!(node.containers.list(true).is_empty());
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_program_that_is_missing_or_forbidden_fails_the_start_in_the_runtimes_words() {
    let node = Node::new().await;
    for (word, text, code) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH", 127),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory", 127),
        ("/bin/data", "exec: \"/bin/data\": permission denied", 126),
    ] {
        let id = node.create(node.config(&[word])).await;
        let Err(ContainerError::StartFailed(got)) = node.containers.start(id, Node::start_with()).await else {
            panic!("{word} must not start")
        };
        assert!(got.ends_with(&format!("{text}: unknown")), "{got}");
        let state = node.containers.inspect(id).unwrap().state;
        assert_eq!((state.status, state.exit_code), (ContainerStatus::Created, code));
        node.containers.remove(id, false).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn stdin_reaches_the_process_and_its_end_too() {
    use tokio::io::AsyncWriteExt;
    let node = Node::new().await;
    let mut config = node.config(&["sh", "-c", "cat; echo end"]);
    config.spec.open_stdin = true;
    config.stdin_once = true;
    let id = node.create(config).await;
    let mut attached = node.containers.attach(id, Wanted { stdin: true, stdout: true, stderr: true }).await.unwrap();
    node.start(id).await;
    let mut input = attached.input.take().unwrap();
    input.write_all(b"typed\n").await.unwrap();
    drop(input);
    assert_eq!(read(attached).await.0, "typed\nend\n");
    assert_eq!(node.wait(id).await, 0);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn terminals_have_a_size_and_a_name_inside() {
    let node = Node::new().await;
    let mut config = node.config(&["sh", "-c", "test -c /dev/console && tty"]);
    config.spec.tty = true;
    let (code, out, _) = node.run(config).await;
    assert_eq!((code, out.as_str()), (0, "/dev/pts/0\r\n"));
    let id = node.create(node.config(&["sleep", "1000"])).await;
    node.start(id).await;
    let command = ["sh", "-c", "stty size; tty"].map(str::to_owned).to_vec();
    let exec = node.containers.exec_create(id, ExecConfig { command, tty: true, ..ExecConfig::default() }).unwrap();
    let attached = node.containers.exec_start(&exec, false, true, Some((33, 101))).await.unwrap().unwrap();
    assert_eq!(read(attached).await.0, "33 101\r\n/dev/pts/0\r\n");
    node.containers.remove(id, true).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn init_and_exec_are_filtered_and_have_dockers_capabilities() {
    let node = Node::new().await;
    let script =
        "grep -E '^(Seccomp|CapEff|CapBnd|CapInh|NoNewPrivs):' /proc/self/status; unshare -m true 2>&1 | tail -1";
    let want = "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n\
                unshare: unshare(0x20000): Operation not permitted\n";
    let (_, out, err) = node.sh(script).await;
    assert_eq!(out, want, "{err}");
    let id = node.create(node.config(&["sleep", "1000"])).await;
    node.start(id).await;
    let command = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let (_, out, err) = node.exec(id, ExecConfig { command: command.clone(), ..ExecConfig::default() }).await;
    assert_eq!(out, want, "{err}");
    // Another user has the bounding set, and nothing effective.
    let (_, out, _) = node.exec(id, ExecConfig { command, user: "web".into(), ..ExecConfig::default() }).await;
    assert!(out.contains("CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb"), "{out}");
    node.containers.remove(id, true).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn stop_asks_first_and_kills_after_the_grace() {
    let node = Node::new().await;
    let id =
        node.create(node.config(&["sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done"])).await;
    node.start(id).await;
    // Without its handler a pid 1 takes no notice of the signal.
    node.has_logged(id, 1).await;
    assert!(node.containers.stop(id, None, None).await.unwrap());
    assert_eq!(node.containers.inspect(id).unwrap().state.exit_code, 42);
    assert!(!node.containers.stop(id, None, None).await.unwrap());
    node.start(id).await;
    // A signal that it does not act on, as many programs do as pid 1.
    node.containers.stop(id, Some(libc::SIGWINCH), Some(Duration::from_millis(50))).await.unwrap();
    assert_eq!(node.containers.inspect(id).unwrap().state.exit_code, 137);
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_outlives_the_daemon_and_its_end_is_found_later() {
    let mut node = Node::new().await;
    let stays = node.create(node.config(&["sleep", "1000"])).await;
    let ends = node.create(node.config(&["sh", "-c", "while ! test -e /tmp/go; do sleep 0.01; done; exit 9"])).await;
    node.start(stays).await;
    node.start(ends).await;
    let pid = node.containers.inspect(stays).unwrap().state.pid;
    // A second daemon on the same directory stands for one that was restarted: the first is asked nothing any more.
    let upper = node.config.root.join(ends.to_string()).join("upper/tmp");
    std::fs::create_dir_all(&upper).unwrap();
    let run = node.run_dir(ends);
    let old = node.containers.clone();
    old.exec_create(ends, ExecConfig { command: vec!["true".into()], ..ExecConfig::default() }).unwrap();
    node.reopen().await;
    assert_eq!(node.containers.inspect(stays).unwrap().state.pid, pid);
    let (code, out, _) =
        node.exec(stays, ExecConfig { command: vec!["echo".into(), "here".into()], ..ExecConfig::default() }).await;
    assert_eq!((code, out.as_str()), (0, "here\n"));
    let command = vec!["touch".into(), "/tmp/go".into()];
    node.exec(ends, ExecConfig { command, ..ExecConfig::default() }).await;
    assert_eq!(node.wait(ends).await, 9);
    drop(run);
    for id in [stays, ends] {
        node.containers.remove(id, true).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_dead_shim_takes_its_container_with_it_within_a_second() {
    let node = Node::new().await;
    let id = node.create(node.config(&["sleep", "1000"])).await;
    node.start(id).await;
    let pid = node.containers.inspect(id).unwrap().state.pid;
    let shim = rustix::process::Pid::from_raw(node.shim_of(id)).unwrap();
    let since = std::time::Instant::now();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let (code, error) = within(node.containers.wait(id, WaitCondition::NotRunning).unwrap()).await;
    assert_eq!((code, error.as_str()), (137, "shim died"));
    // A zombie is dead: whoever runs as pid 1 here collects it in its own time.
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
    eventually("the container's process is gone", || !alive()).await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    node.containers.remove(id, false).await.unwrap();
}
