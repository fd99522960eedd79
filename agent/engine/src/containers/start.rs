//! From the order to start to the end of what was started.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::engine::{ContainerStatus, NetworkMode};
use skep_proto::model::{ContainerId, HealthStatus, Timestamp};
use skep_shim::protocol::{Answer, Attach, ExitRecord, Op, Start, Watch};

use super::entry::{Entry, Turn};
use super::lifecycle::{finish_cleanup, write_etc};
use super::run;
use super::shim::{Connection, Reader, ShimError};
use super::streams::pump;
use super::{ContainerError, ContainerFile, Containers, EventKind, StartWith, blocking, restart};
use crate::runtime::health;
use crate::runtime::spec::Netns;

impl Containers {
    /// Starts a container. `Ok(false)`: it runs already.
    ///
    /// # Errors
    /// [`ContainerError::StartFailed`] with an OCI runtime's words when its process cannot be started.
    pub async fn start(&self, id: ContainerId, with: StartWith) -> Result<bool, ContainerError> {
        let entry = self.entry(id)?;
        let mut turn = entry.turn.lock().await;
        // Before the start, as the container may end at once.
        if matches!(entry.state().status, ContainerStatus::Created | ContainerStatus::Exited) {
            turn.failures = 0;
            entry.update(|r| {
                r.restart_count = if with.again { r.restart_count.saturating_add(1) } else { 0 };
                r.stopped_by_hand = false;
                r.network.clone_from(&with.network);
            });
        }
        let started = self.start_in_turn(&entry, &mut turn, with).await;
        drop(turn);
        if let Err(ContainerError::StartFailed(_) | ContainerError::Internal { .. }) = &started
            && entry.record().config.auto_remove
            && let Err(error) = self.remove(id, true).await
        {
            tracing::warn!(container.id = %id, %error, "removing a container that could not be started");
        }
        started
    }

    pub(super) async fn start_in_turn(
        &self,
        entry: &Arc<Entry>,
        turn: &mut Turn,
        with: StartWith,
    ) -> Result<bool, ContainerError> {
        if turn.removed {
            return Err(entry.gone());
        }
        match entry.state().status {
            ContainerStatus::Running => return Ok(false),
            ContainerStatus::Paused => {
                let text = "cannot start a paused container, try unpause instead".to_owned();
                return Err(ContainerError::Conflict(text));
            }
            ContainerStatus::Removing | ContainerStatus::Dead => {
                let text = "container is marked for removal and cannot be started".to_owned();
                return Err(ContainerError::Conflict(text));
            }
            ContainerStatus::Created | ContainerStatus::Exited | ContainerStatus::Restarting => {}
        }
        let netns = self.netns(&with.network)?;
        let ipc = self.ipc(with.ipc_of)?;
        let files = with.files;
        turn.with = StartWith { files: Vec::new(), ..with };
        if let Err(error) = finish_cleanup(turn).await {
            tracing::warn!(container.id = %entry.id, %error, "taking away what the last run left");
        }
        let begun = self.begin(entry, turn, (netns, ipc), files).await;
        if let Err(e) = &begun {
            self.start_failed(entry, turn, e);
        }
        begun.map(|()| true)
    }

    async fn begin(
        &self,
        entry: &Arc<Entry>,
        turn: &mut Turn,
        (netns, ipc): (Netns, Option<PathBuf>),
        files: Vec<ContainerFile>,
    ) -> Result<(), ContainerError> {
        let inner = self.inner.clone();
        let (record, paths, etc) = (entry.record(), entry.paths.clone(), turn.with.etc.clone());
        blocking(move || {
            if let Some(etc) = etc {
                write_etc(&paths, &etc).map_err(|e| ContainerError::internal("writing the container's files", e))?;
            }
            run::begin(&inner.config, &inner.cgroups, &record, &paths, (&netns, ipc.as_deref()), &files)
        })
        .await?;
        let failed = |e: ShimError| match e {
            ShimError::Refused(text) => ContainerError::StartFailed(format!(
                "failed to create task for container: failed to create shim task: OCI runtime create failed: unable to \
                 start container process: {text}: unknown"
            )),
            e => ContainerError::internal("starting the container", std::io::Error::other(e)),
        };
        let run = entry.paths.run();
        let mut watch = Connection::open(&run).await.map_err(failed)?;
        watch.ask(Op::Watch(Watch {})).await.map_err(failed)?;
        for ends in entry.take_waiting() {
            let mut connection = Connection::open(&run).await.map_err(failed)?;
            let wanted = ends.wanted;
            let attach = Attach { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr };
            connection.ask(Op::Attach(attach)).await.map_err(failed)?;
            tokio::spawn(pump(connection, ends, |_| ()));
        }
        let answer = Connection::open(&run).await.map_err(failed)?.ask(Op::Start(Start {})).await.map_err(failed)?;
        let Answer::Started(started) = answer else { return Err(failed(ShimError::Unexpected)) };
        self.note_running(entry, started.pid, started.at_nanos);
        self.publish(entry.id, EventKind::Start);
        turn.supervisor = Some(self.supervise(entry.clone(), watch));
        turn.prober = self.probe_from_start(entry);
        Ok(())
    }

    pub(super) fn note_running(&self, entry: &Entry, pid: u32, at_nanos: u64) {
        entry.update(|r| {
            r.state.status = ContainerStatus::Running;
            r.state.pid = pid;
            r.state.exit_code = 0;
            r.state.error.clear();
            r.state.oom_killed = false;
            r.state.started_at = Some(Timestamp(at_nanos / 1_000_000));
            r.boot = super::adopt::boot_id();
            r.health = health::Check::of(r.process.healthcheck.as_ref()).map(|_| HealthStatus::Starting);
        });
        entry.health_begins();
        entry.progress.send_modify(|p| {
            p.running = true;
            p.restarting = false;
        });
    }

    fn start_failed(&self, entry: &Arc<Entry>, turn: &mut Turn, error: &ContainerError) {
        let text = error.to_string();
        let code = code_of_failure(&text, 128);
        drop(entry.take_waiting());
        entry.update(|r| {
            r.state.status = ContainerStatus::Created;
            r.state.exit_code = code;
            r.state.error.clone_from(&text);
        });
        entry.progress.send_modify(|p| {
            p.running = false;
            p.restarting = false;
            p.exits += 1;
            p.last = (code, text);
        });
        self.clean_up(entry, turn, true);
    }

    fn netns(&self, network: &NetworkMode) -> Result<Netns, ContainerError> {
        match network {
            NetworkMode::Host => Ok(Netns::Host),
            NetworkMode::None => Ok(Netns::New),
            NetworkMode::Sandbox(path) => Ok(Netns::Path(path.clone())),
            NetworkMode::Container(other) => match self.entry(*other)?.state().pid {
                0 => Err(ContainerError::Conflict(format!("cannot join network of a non running container: {other}"))),
                pid => Ok(Netns::Path(format!("/proc/{pid}/ns/net").into())),
            },
            NetworkMode::Bridge | NetworkMode::Networks(_) => {
                let text = "a bridge or named network must be given as a sandbox at the start".to_owned();
                Err(ContainerError::Invalid(text))
            }
        }
    }

    fn ipc(&self, of: Option<ContainerId>) -> Result<Option<PathBuf>, ContainerError> {
        let Some(other) = of else { return Ok(None) };
        match self.entry(other)?.state().pid {
            0 => Err(ContainerError::Conflict(format!("cannot join IPC of a non running container: {other}"))),
            pid => Ok(Some(format!("/proc/{pid}/ns/ipc").into())),
        }
    }

    /// Reads the shim's events until the container's end, and does what follows from it.
    pub(super) fn supervise(&self, entry: Arc<Entry>, watch: Connection) -> tokio::task::JoinHandle<()> {
        let containers = self.clone();
        tokio::spawn(async move {
            // The sending half stays: its end would be taken for the daemon's leave.
            let Connection { mut reader, writer: _writer } = watch;
            let exit = containers.follow(&mut reader).await.or_else(|| entry.paths.exit_record());
            // Not in the supervisor's own task, which a following start replaces.
            tokio::spawn(async move { containers.ended(entry, exit, true).await });
        })
    }

    async fn follow(&self, reader: &mut Reader) -> Option<ExitRecord> {
        while let Ok(Some(answer)) = reader.next().await {
            match answer {
                Answer::Exited(exited) if exited.exec.is_empty() => return exited.exit,
                Answer::Exited(exited) => self.exec_ended(&exited.exec, exited.exit.map_or(0, |e| e.code)),
                _ => {}
            }
        }
        None
    }

    /// The container has ended; `None`: its shim died without telling how. `restarts`: its policy is followed here, which
    /// needs what it was started with.
    pub(super) async fn ended(&self, entry: Arc<Entry>, exit: Option<ExitRecord>, restarts: bool) {
        let (inner, id) = (self.inner.clone(), entry.id.to_string());
        if exit.is_none() {
            // Before anything else: nobody holds the processes' streams any more.
            let _ = tokio::task::spawn_blocking(move || inner.cgroups.kill_all(&id)).await;
        }
        let mut turn = entry.turn.lock().await;
        let state = entry.state();
        if turn.removed || state.pid == 0 {
            return;
        }
        let now = (self.inner.config.clock)();
        let (code, oom, error, at) = match &exit {
            Some(e) => (e.code, e.oom, "", Timestamp(e.at_nanos / 1_000_000)),
            None => (137, false, "shim died", now),
        };
        self.execs_of_ended(entry.id);
        if let Some(prober) = turn.prober.take() {
            prober.abort();
        }
        self.clean_up(&entry, &mut turn, false);
        let record = entry.record();
        let ran = state.started_at.map_or(Duration::ZERO, |s| at.since(s));
        let next = restart::decide(&record, code, ran, turn.failures).filter(|_| restarts);
        turn.failures = next.as_ref().map_or(0, |n| n.failures);
        entry.ended(code, oom, error, at, next.is_some());
        if oom {
            self.publish(entry.id, EventKind::Oom);
        }
        self.publish(entry.id, EventKind::Die { exit_code: code });
        let remove = record.config.auto_remove && next.is_none();
        drop(turn);
        if let Some(next) = next {
            self.restart_later(entry, next.delay);
        } else if remove && let Err(error) = self.remove(entry.id, true).await {
            tracing::error!(container.id = %entry.id, %error, "removing a container after its end");
        }
    }
}

/// Docker's exit codes: 127 for a program that is not there, 126 for one that may not be run.
pub(super) fn code_of_failure(text: &str, other: i32) -> i32 {
    match () {
        () if text.contains("executable file not found") || text.contains("no such file or directory") => 127,
        () if text.contains("permission denied") || text.contains("is a directory") => 126,
        () => other,
    }
}
