//! The daemons of a lab's nodes.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal};

use super::network;
use super::state::{LabState, NodeState, ProcessId};

/// Lines of a daemon's log that are shown when the lab does not come up.
const TAIL_LINES: usize = 15;

/// Starts a node's daemon in its namespace, as a session leader whose parent may die.
pub fn spawn(dir: &Path, state: &mut LabState, name: &str) -> anyhow::Result<()> {
    let cgroup = state.cgroup();
    let registries = state.insecure_registries.clone();
    let more = state.daemon_args.clone();
    let node = state.node_mut(name)?;
    let home = dir.join(&node.name);
    std::fs::create_dir_all(&home)?;
    let log =
        OpenOptions::new().create(true).append(true).open(log_path(dir, name)).context("opening the daemon's log")?;
    let mut command = Command::new(std::env::current_exe().context("finding the path of skep")?);
    command.arg("daemon");
    command.arg("--root").arg(home.join("root")).arg("--run-dir").arg(home.join("run"));
    command.args(["--node-name", &node.name]);
    command.arg("--host").arg(node.docker_host());
    command.args(["--listen-addr", &format!("{}:2377", node.address), "--advertise-addr", &node.address.to_string()]);
    command.args(["--cgroup-parent", &format!("/{cgroup}/{}", node.name)]);
    for registry in &registries {
        command.args(["--insecure-registry", registry]);
    }
    command.args(&more);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = std::thread::scope(|scope| {
        scope
            .spawn(|| network::enter(dir, name).and_then(|()| command.spawn().context("starting a daemon")))
            .join()
            .expect("the thread does not panic")
    })?;
    let pid = i32::try_from(child.id()).context("a pid fits an i32")?;
    node.process = Some(ProcessId { pid, started: start_time(pid).context("the daemon ended at once")? });
    Ok(())
}

/// SIGKILL. False when it does not run.
pub fn kill(node: &mut NodeState) -> anyhow::Result<bool> {
    if !is_running(node) {
        return Ok(false);
    }
    if let Some(pid) = node.process.take().and_then(|p| Pid::from_raw(p.pid)) {
        rustix::process::kill_process(pid, Signal::KILL).context("killing the daemon")?;
    }
    Ok(true)
}

/// Whether the process that was started still lives (and is not a zombie or another of the same pid).
pub fn is_running(node: &NodeState) -> bool {
    node.process.is_some_and(|p| start_time(p.pid) == Some(p.started))
}

/// Start time of a process that is no zombie: proc(5), `stat`, field 22.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The file that a daemon writes to.
fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name).join("daemon.log")
}

/// Last lines of a daemon's log.
pub fn log_tail(dir: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(log_path(dir, name)).ok()?;
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    (!tail.is_empty()).then_some(tail)
}
