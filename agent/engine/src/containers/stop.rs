//! Signals, and waiting for what they do.

use std::time::Duration;

use skep_proto::model::ContainerId;
use skep_proto::model::engine::ContainerStatus;
use skep_shim::protocol::{Kill, Op};

use super::entry::Entry;
use super::shim::{Connection, ShimError};
use super::{ContainerError, Containers, EventKind, blocking};

/// Docker's grace between the stop signal and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a killed container may take to be gone: the kernel may be writing out its memory.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(30);

impl Containers {
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
}
