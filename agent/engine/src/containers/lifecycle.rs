//! Create, rename, remove, wait for the end.

use std::fs;
use std::sync::Arc;

use skep_proto::model::ContainerId;
use skep_proto::model::engine::{ContainerStatus, NetworkMode};
use skep_shim::protocol::{Op, Shutdown};

use super::entry::{Background, Entry, Turn};
use super::record::Record;
use super::run::{self, Paths};
use super::shim::Connection;
use super::stop::KILL_PATIENCE;
use super::{ContainerError, Containers, EtcContents, EventKind, NewContainer, WaitCondition, blocking, copy_up};
use crate::runtime::spec;
use crate::runtime::sysctl;

/// Beginning of the names of directories that are to be deleted.
pub(super) const TRASH: &str = "removed-";

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

fn default_etc(hostname: &str) -> EtcContents {
    EtcContents {
        hostname: format!("{hostname}\n"),
        hosts: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
        resolv_conf: fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    }
}

/// Written in place: the files are bind mounts, which a replacement would not reach.
pub(super) fn write_etc(paths: &Paths, contents: &EtcContents) -> std::io::Result<()> {
    let files = paths.etc();
    fs::write(files.hostname, &contents.hostname)?;
    fs::write(files.hosts, &contents.hosts)?;
    fs::write(files.resolv_conf, &contents.resolv_conf)
}
