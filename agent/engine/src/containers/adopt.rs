//! After the daemon's start: finds the shims that went on without it, and the ends that it missed.

use std::fs;
use std::sync::Arc;

use skep_proto::model::Timestamp;
use skep_proto::model::engine::ContainerStatus;
use skep_shim::protocol::{Answer, Op, Watch};

use super::entry::Entry;
use super::lifecycle::{TRASH, finish_cleanup};
use super::record::Record;
use super::run::{self, Paths};
use super::shim::Connection;
use super::{ContainerError, Containers};

/// The kernel's name for this boot: after a reboot nothing of a container is left, whatever the files say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Containers {
    pub(super) async fn adopt_all(&self) -> Result<(), ContainerError> {
        let failed = |e| ContainerError::internal("reading the containers' directory", e);
        let mut adopted = Vec::new();
        for dir in fs::read_dir(&self.inner.config.root).map_err(failed)? {
            let dir = dir.map_err(failed)?.path();
            let paths = Paths { dir: dir.clone() };
            let is_removed = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(TRASH));
            match Record::load(&dir) {
                _ if is_removed => sweep(&paths),
                Ok(record) => {
                    let entry = Arc::new(Entry::new(record, paths));
                    self.index(&entry);
                    let containers = self.clone();
                    adopted.push(tokio::spawn(async move { containers.adopt(entry).await }));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => sweep(&paths),
                Err(error) => {
                    tracing::error!(path = %dir.display(), %error, "a container's record cannot be read; left alone")
                }
            }
        }
        for adoption in adopted {
            if let Err(error) = adoption.await {
                tracing::error!(%error, "adopting a container");
            }
        }
        Ok(())
    }

    fn index(&self, entry: &Arc<Entry>) {
        let mut index = self.inner.index.write().expect("nothing panics while it holds the lock");
        index.by_name.insert(entry.record().config.name, entry.id);
        index.by_id.insert(entry.id, entry.clone());
    }

    async fn adopt(&self, entry: Arc<Entry>) {
        let record = entry.record();
        let believed = record.state.status;
        if let Some((watch, pid, at_nanos)) = find_shim(&entry).await {
            let mut turn = entry.turn.lock().await;
            if record.state.pid != pid {
                self.note_running(&entry, pid, at_nanos);
            }
            turn.with.network = record.network.clone();
            turn.supervisor = Some(self.supervise(entry.clone(), watch));
            turn.prober = self.probe_again(&entry);
            return;
        }
        let exit = entry.paths.exit_record();
        if record.state.pid != 0 {
            if record.boot == boot_id() {
                // What should run again is started by whoever can make its network, see `wanting_start`.
                return self.ended(entry, exit, false).await;
            }
            // As Docker tells of containers that a reboot ended.
            entry.ended(255, false, "", (self.inner.config.clock)(), false);
        }
        let mut turn = entry.turn.lock().await;
        if matches!(believed, ContainerStatus::Restarting | ContainerStatus::Removing) {
            entry.update(|r| r.state.status = ContainerStatus::Exited);
        }
        // A start that the daemon's death cut short leaves a shim with a container that was never let run.
        if let Some(exit) = exit.filter(|_| entry.paths.run().exists() && record.state.pid == 0) {
            entry.update(|r| r.state.finished_at = Some(Timestamp(exit.at_nanos / 1_000_000)));
        }
        self.clean_up(&entry, &mut turn, true);
        if let Err(error) = finish_cleanup(&mut turn).await {
            tracing::warn!(container.id = %entry.id, %error, "taking away what an earlier run left");
        }
    }
}

/// A connection to the shim of a container that runs; its pid; when it started.
async fn find_shim(entry: &Entry) -> Option<(Connection, u32, u64)> {
    let mut watch = Connection::open(&entry.paths.run()).await.ok()?;
    match watch.ask(Op::Watch(Watch {})).await.ok()? {
        Answer::Status(status) if status.started && status.pid != 0 => {
            Some((watch, status.pid, status.started_at_nanos))
        }
        _ => None,
    }
}

/// A removed container, or a creation that did not finish.
fn sweep(paths: &Paths) {
    if paths.dir.is_dir()
        && let Err(error) = run::remove_files(paths)
    {
        tracing::warn!(path = %paths.dir.display(), %error, "removing what is left of a container");
    }
}
