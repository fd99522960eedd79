//! Create, start, stop, kill, pause, rename, remove, wait.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::engine::{ContainerStatus, NetworkMode};
use skep_proto::model::{ContainerId, HealthStatus, Timestamp};
use skep_shim::protocol::{Answer, Attach, ExitRecord, Kill, Op, Shutdown, Start, Watch};

use super::entry::{Background, Entry, Turn};
use super::record::Record;
use super::run::{self, Paths};
use super::shim::{Connection, Reader, ShimError};
use super::streams::pump;
use super::{
    ContainerError, ContainerFile, Containers, EtcContents, EventKind, NewContainer, StartWith, WaitCondition,
    blocking, copy_up, restart,
};
use crate::runtime::health;
use crate::runtime::spec::{self, Netns};
use crate::runtime::sysctl;

/// Docker's grace between the stop signal and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Beginning of the names of directories that are to be deleted.
pub(super) const TRASH: &str = "removed-";
/// How long a killed container may take to be gone: the kernel may be writing out its memory.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

impl Containers {
    /// Makes a container: its directory, its record, and the content of its new volumes.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when id or name are taken, [`ContainerError::Invalid`] for what cannot be run.
    pub async fn create(&self, new: NewContainer) -> Result<(), ContainerError> {
        let invalid = |e: spec::SpecError| ContainerError::Invalid(e.to_string());
        let process = spec::resolve_process(&new.config, &new.image.config).map_err(invalid)?;
        spec::capabilities(&new.config.spec, new.config.privileged).map_err(invalid)?;
        spec::limits(&new.config.spec.ulimits).map_err(invalid)?;
        sysctl::sysctls(&new.config, new.config.network == NetworkMode::Host).map_err(invalid)?;
        run::log_options(new.config.log.as_ref())?;
        let rules = &new.config.isolation.device_rules;
        if let Some(wrong) = rules.iter().find(|rule| crate::runtime::devices::parse_rule(rule).is_none()) {
            return Err(ContainerError::Invalid(format!("invalid device cgroup rule format: '{wrong}'")));
        }
        if new.image.layers.is_empty() {
            return Err(ContainerError::Invalid(format!("image {} has no layers", new.image.id)));
        }
        let (id, name) = (new.config.id, new.config.name.clone());
        let paths = Paths { dir: self.inner.config.root.join(id.to_string()) };
        let now = (self.inner.config.clock)();
        let record = Record::new(new.config, process, &new.image, &new.mounts, now);
        let entry = Arc::new(Entry::new(record, paths.clone()));
        // Holds the turn until everything is on disk, so that nobody starts half a container.
        let mut turn = entry.turn.lock().await;
        self.insert(&entry, &name)?;
        let written = entry.clone();
        let made = blocking(move || {
            let failed = |e| ContainerError::internal("writing the container's files", e);
            paths.make().map_err(failed)?;
            let record = written.record();
            write_etc(&paths, &default_etc(&record.process.hostname)).map_err(failed)?;
            copy_up::fill_volumes(&record, &paths).map_err(|e| ContainerError::internal("filling volumes", e))?;
            record.save(&paths.dir).map_err(failed)
        })
        .await;
        if let Err(e) = made {
            turn.removed = true;
            self.forget(&entry);
            // What is left is swept at the next opening: a directory without a record.
            let _ = fs::remove_dir_all(&entry.paths.dir);
            return Err(e);
        }
        self.publish(id, EventKind::Create);
        Ok(())
    }

    fn insert(&self, entry: &Arc<Entry>, name: &str) -> Result<(), ContainerError> {
        let mut index = self.inner.index.write().expect("nothing panics while it holds the lock");
        if let Some(other) = index.by_name.get(name) {
            return Err(ContainerError::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{other}\". You have to remove \
                 (or rename) that container to be able to reuse that name."
            )));
        }
        if index.by_id.contains_key(&entry.id) {
            return Err(ContainerError::Conflict(format!(
                "Conflict. The container id {} is already in use.",
                entry.id
            )));
        }
        index.by_name.insert(name.to_owned(), entry.id);
        index.by_id.insert(entry.id, entry.clone());
        Ok(())
    }

    /// Where a removed container's directory goes until it is deleted. Without a record there it is swept at the next
    /// opening at the latest.
    fn trash(&self, id: &str) -> Paths {
        let number = self.inner.removals.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Paths { dir: self.inner.config.root.join(format!("{TRASH}{}-{number}-{id}", std::process::id())) }
    }

    fn forget(&self, entry: &Entry) {
        let mut index = self.inner.index.write().expect("nothing panics while it holds the lock");
        index.by_id.remove(&entry.id);
        index.by_name.retain(|_, id| *id != entry.id);
    }

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

    /// Takes the run away in the background: unmounting and removing cgroups wait for the kernel.
    pub(super) fn clean_up(&self, entry: &Arc<Entry>, turn: &mut Turn, shim_is_left: bool) {
        let (inner, id, paths) = (self.inner.clone(), entry.id.to_string(), entry.paths.clone());
        let gone = tokio::sync::oneshot::channel();
        let files = entry.paths.clone();
        let processes = tokio::spawn(async move {
            if shim_is_left && let Ok(mut shim) = Connection::open(&paths.run()).await {
                // It answers by leaving.
                let _ = tokio::time::timeout(KILL_PATIENCE, shim.ask(Op::Shutdown(Shutdown {}))).await;
            }
            let ended = on_thread(move || run::end_processes(&inner.cgroups, &id)).await;
            // The other half waits for nothing else.
            let _ = gone.0.send(());
            ended
        });
        let files = tokio::spawn(async move {
            // Also when the other half panicked.
            let _ = gone.1.await;
            on_thread(move || run::end_files(&files)).await
        });
        turn.cleanup = Some((processes, files));
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

    /// Sends the stop signal, after the grace SIGKILL, and waits for the end. `Ok(false)`: it did not run.
    ///
    /// # Errors
    /// When even SIGKILL did not end it.
    pub async fn stop(
        &self,
        id: ContainerId,
        signal: Option<i32>,
        grace: Option<Duration>,
    ) -> Result<bool, ContainerError> {
        let entry = self.entry(id)?;
        let record = entry.record();
        entry.update(|r| r.stopped_by_hand = true);
        if record.state.status == ContainerStatus::Restarting {
            self.stop_restarting(&entry).await;
            return Ok(true);
        }
        if record.state.pid == 0 {
            return Ok(false);
        }
        let mut progress = entry.progress.subscribe();
        let exits = progress.borrow_and_update().exits;
        let signal = signal.unwrap_or(record.process.stop_signal);
        let grace = grace.or(record.config.spec.stop_grace).unwrap_or(STOP_GRACE);
        if record.state.status == ContainerStatus::Paused {
            // It takes no signal but SIGKILL's effect after the thaw.
            self.pause(id, false).await?;
        }
        // It may have ended meanwhile: the wait tells.
        let _ = self.signal(&entry, signal).await;
        let ended = async |progress: &mut tokio::sync::watch::Receiver<_>| {
            let over = |p: &super::entry::Progress| p.exits > exits || p.removed;
            progress.wait_for(over).await.map(drop)
        };
        if tokio::time::timeout(grace, ended(&mut progress)).await.is_err() {
            let _ = self.signal(&entry, libc::SIGKILL).await;
            if tokio::time::timeout(KILL_PATIENCE, ended(&mut progress)).await.is_err() {
                let text = format!("cannot stop container: {id}: it does not end after SIGKILL");
                return Err(ContainerError::internal("stopping a container", std::io::Error::other(text)));
            }
        }
        self.publish(id, EventKind::Stop);
        Ok(true)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when it does not run.
    pub async fn kill(&self, id: ContainerId, signal: i32) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let record = entry.record();
        if record.state.pid == 0 {
            return Err(ContainerError::Conflict(format!("Container {id} is not running")));
        }
        if signal == libc::SIGKILL || signal == record.process.stop_signal {
            entry.update(|r| r.stopped_by_hand = true);
        }
        self.signal(&entry, signal).await?;
        if signal == libc::SIGKILL && record.state.status == ContainerStatus::Paused {
            self.pause(id, false).await?;
        }
        if signal == libc::SIGKILL {
            let mut progress = entry.progress.subscribe();
            // As Docker: the caller finds it ended.
            let _ = tokio::time::timeout(STOP_GRACE, progress.wait_for(|p| !p.running || p.removed)).await;
        }
        Ok(())
    }

    async fn signal(&self, entry: &Entry, signal: i32) -> Result<(), ContainerError> {
        let kill = Op::Kill(Kill { exec: String::new(), signal });
        self.publish(entry.id, EventKind::Kill { signal });
        match Connection::open(&entry.paths.run()).await {
            Ok(mut shim) => match shim.ask(kill).await {
                Ok(_) | Err(ShimError::Gone(_)) => Ok(()),
                Err(ShimError::Refused(text)) if text.contains("invalid signal") => Err(ContainerError::Invalid(text)),
                Err(e) => Err(ContainerError::Conflict(format!("Container {} is not running: {e}", entry.id))),
            },
            // Its end is about to be noticed.
            Err(_) => Ok(()),
        }
    }

    /// Freezes or thaws a container.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when it is not running, or already so.
    pub async fn pause(&self, id: ContainerId, paused: bool) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let _turn = entry.turn.lock().await;
        let conflict = match (entry.state().status, paused) {
            (ContainerStatus::Running, true) | (ContainerStatus::Paused, false) => None,
            (ContainerStatus::Paused, true) => Some(format!("Container {id} is already paused")),
            (_, true) => Some(format!("Container {id} is not running")),
            (_, false) => Some(format!("Container {id} is not paused")),
        };
        if let Some(text) = conflict {
            return Err(ContainerError::Conflict(text));
        }
        let (inner, name) = (self.inner.clone(), id.to_string());
        blocking(move || {
            inner
                .cgroups
                .freeze(&name, paused)
                .map_err(|e| ContainerError::internal("freezing or thawing the container", e))
        })
        .await?;
        let status = if paused { ContainerStatus::Paused } else { ContainerStatus::Running };
        entry.update(|r| r.state.status = status);
        self.publish(id, if paused { EventKind::Pause } else { EventKind::Unpause });
        Ok(())
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when the name is taken.
    pub fn rename(&self, id: ContainerId, name: &str) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let mut index = self.inner.index.write().expect("nothing panics while it holds the lock");
        if let Some(other) = index.by_name.get(name) {
            return Err(ContainerError::Conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{other}\". You have to remove \
                 (or rename) that container to be able to reuse that name."
            )));
        }
        index.by_name.retain(|_, other| *other != id);
        index.by_name.insert(name.to_owned(), id);
        let old = entry.record().config.name;
        entry.update(|r| name.clone_into(&mut r.config.name));
        drop(index);
        self.publish(id, EventKind::Rename { old });
        Ok(())
    }

    /// Removes a container, with `force` also while it runs. Volumes are the caller's.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] for a running one without `force`.
    pub async fn remove(&self, id: ContainerId, force: bool) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let status = entry.state().status;
        if matches!(status, ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting) {
            if !force {
                let word = status.as_str();
                return Err(ContainerError::Conflict(format!(
                    "You cannot remove a {word} container {id}. Stop the container before attempting removal or force remove"
                )));
            }
            self.stop(id, Some(libc::SIGKILL), Some(KILL_PATIENCE)).await?;
        }
        let mut turn = entry.turn.lock().await;
        if turn.removed {
            return Err(entry.gone());
        }
        if entry.state().pid != 0 {
            let text = format!("container {id} was started while it was to be removed; stop it and try again");
            return Err(ContainerError::Conflict(text));
        }
        // Another container of this id may follow: cgroup and directory are free when this returns. Unmounting waits for
        // the kernel and does not need to be waited for.
        let (processes, files) = turn.cleanup.take().unzip();
        if let Some(Err(error)) = join(processes).await {
            tracing::warn!(container.id = %id, %error, "ending what the last run left");
        }
        let (inner, paths, name) = (self.inner.clone(), entry.paths.clone(), id.to_string());
        let trash = self.trash(&name);
        let moved = trash.clone();
        blocking(move || {
            let failed = |e| ContainerError::internal("removing the container", e);
            // Again, for what an earlier attempt left.
            run::end_processes(&inner.cgroups, &name).map_err(failed)?;
            fs::rename(&paths.dir, &moved.dir).map_err(failed)
        })
        .await?;
        tokio::spawn(async move {
            // It may have looked for the mount before the move or after it.
            let _ = join(files).await;
            if let Err(error) = on_thread(move || run::remove_files(&trash)).await {
                tracing::warn!(container.id = %id, %error, "removing a container's files; tried again at the next start");
            }
        });
        turn.removed = true;
        drop(entry.take_waiting());
        self.forget(&entry);
        self.forget_execs(id);
        entry.progress.send_modify(|p| p.removed = true);
        self.publish(id, EventKind::Destroy);
        Ok(())
    }

    /// Waits. The subscription exists when this returns; the future gives exit code and error text.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub fn wait(
        &self,
        id: ContainerId,
        condition: WaitCondition,
    ) -> Result<impl Future<Output = (i32, String)> + Send + 'static, ContainerError> {
        let mut progress = self.entry(id)?.progress.subscribe();
        let exits = progress.borrow().exits;
        Ok(async move {
            let over = |p: &super::entry::Progress| match condition {
                WaitCondition::NotRunning => p.removed || (!p.running && !p.restarting),
                WaitCondition::NextExit => p.removed || p.exits > exits,
                WaitCondition::Removed => p.removed,
            };
            match progress.wait_for(over).await {
                Ok(p) => p.last.clone(),
                // The container was forgotten with everything else: the daemon stops.
                Err(_) => (0, "the engine is being shut down".to_owned()),
            }
        })
    }
}

/// Waits until what the last run left is taken away.
pub(super) async fn finish_cleanup(turn: &mut Turn) -> std::io::Result<()> {
    let (processes, files) = turn.cleanup.take().unzip();
    let (processes, files) = (join(processes).await, join(files).await);
    processes.unwrap_or(Ok(())).and(files.unwrap_or(Ok(())))
}

async fn join(task: Option<Background>) -> Option<std::io::Result<()>> {
    Some(task?.await.unwrap_or_else(|e| Err(std::io::Error::other(e))))
}

async fn on_thread(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> std::io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

/// Docker's exit codes: 127 for a program that is not there, 126 for one that may not be run.
pub(super) fn code_of_failure(text: &str, other: i32) -> i32 {
    match () {
        () if text.contains("executable file not found") || text.contains("no such file or directory") => 127,
        () if text.contains("permission denied") || text.contains("is a directory") => 126,
        () => other,
    }
}

fn default_etc(hostname: &str) -> EtcContents {
    EtcContents {
        hostname: format!("{hostname}\n"),
        hosts: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
        resolv_conf: fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    }
}

/// Written in place: the files are bind mounts, which a replacement would not reach.
fn write_etc(paths: &Paths, contents: &EtcContents) -> std::io::Result<()> {
    let files = paths.etc();
    fs::write(files.hostname, &contents.hostname)?;
    fs::write(files.hosts, &contents.hosts)?;
    fs::write(files.resolv_conf, &contents.resolv_conf)
}
