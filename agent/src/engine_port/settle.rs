//! What follows a container's end and the daemon's start: sandboxes, volumes and images are given back, or taken again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use skep_api::ports::EngineError;
use skep_engine::containers::EventKind;
use skep_proto::model::ContainerId;
use skep_proto::model::engine::{Container, NetworkMode};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connect::{is_live, sandbox_id};
use super::prepare::{anonymous, remove_anonymous};
use super::{Held, NodeEngine, errors};
use crate::chain;

/// How often all sandboxes are looked at, for those whose container ended unnoticed.
const SWEEP: Duration = Duration::from_secs(60);
/// Pause between two attempts to start what should run since the daemon's start.
const RETRY: Duration = Duration::from_secs(2);
/// Containers started at a time after the daemon's start.
const STARTS: usize = 8;

impl NodeEngine {
    /// After the daemon's start: holds the images of all containers, takes away what ended meanwhile, and starts the
    /// containers that their policy wants to run. Failures of single containers are logged and shown in their state.
    ///
    /// # Errors
    /// When the network layer does not answer.
    pub async fn recover(&self) -> Result<(), EngineError> {
        self.recover_networks().await;
        for container in self.inner.containers.list(true) {
            self.hold_again(&container);
        }
        self.sweep().await?;
        self.warn_of_lost_sandboxes().await?;
        let shares = |id: &ContainerId| {
            let container = self.inner.containers.inspect(*id);
            container.is_ok_and(|c| matches!(c.config.network, NetworkMode::Container(_)))
        };
        // A container that shares another's network needs that one to run.
        let (second, first): (Vec<_>, Vec<_>) = self.inner.containers.wanting_start().into_iter().partition(shares);
        for ids in [first, second] {
            futures_util::stream::iter(ids).for_each_concurrent(STARTS, |id| self.start_wanting(id)).await;
        }
        Ok(())
    }

    async fn start_wanting(&self, id: ContainerId) {
        match self.start_container(id).await {
            Ok(_) => drop(self.late().remove(&id)),
            Err(error) => {
                // Networks of the cluster are known only when a manager was heard.
                let is_late = matches!(error, EngineError::Internal { .. });
                let is_known = match is_late {
                    true => !self.late().insert(id),
                    false => {
                        self.late().remove(&id);
                        false
                    }
                };
                if !is_known {
                    tracing::error!(container.id = %id, error = %chain(&error), retried = is_late,
                        "starting a container after the daemon's start");
                }
            }
        }
    }

    /// Tries again to start those that could not be started after the daemon's start.
    async fn start_late(&self) {
        let late: Vec<ContainerId> = self.late().iter().copied().collect();
        for id in late {
            // Unless it was stopped, started or removed by hand meanwhile.
            if self.late().contains(&id) {
                self.start_wanting(id).await;
            }
        }
    }

    /// Follows the containers' ends, and records events, until `stop`. To be run beside [`skep_api::ports::Engine`]'s calls, by one task.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.follow_ends(stop.clone()), self.record_events(stop));
    }

    async fn follow_ends(&self, stop: CancellationToken) {
        let mut events = self.inner.containers.events();
        // A container that takes long to start holds up its own settling, not that of others.
        let mut settling = JoinSet::new();
        let mut clock = tokio::time::interval(SWEEP);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut starting = JoinSet::new();
        loop {
            let all = tokio::select! {
                () = stop.cancelled() => return,
                // The first tick is at once: for what happened before the subscription.
                _ = clock.tick() => true,
                _ = retry.tick(), if starting.is_empty() => {
                    let this = self.clone();
                    starting.spawn(async move {
                        this.start_late().await;
                        if this.inner.owes_places.load(Ordering::Relaxed) {
                            this.keep_places().await;
                        }
                    });
                    false
                }
                Some(started) = starting.join_next() => {
                    if let Err(error) = started {
                        tracing::error!(%error, "starting containers that are late");
                    }
                    false
                }
                Some(settled) = settling.join_next() => {
                    if let Err(error) = settled {
                        tracing::error!(%error, "settling a container");
                    }
                    false
                }
                event = events.recv() => match event {
                    Ok(event) => {
                        if matches!(event.kind, EventKind::Die { .. } | EventKind::Destroy) {
                            let this = self.clone();
                            settling.spawn(async move { this.settle(event.id).await });
                        }
                        false
                    }
                    Err(RecvError::Lagged(_)) => true,
                    Err(RecvError::Closed) => return,
                },
            };
            if all {
                self.inner.owes_places.store(true, Ordering::Relaxed);
            }
            if all && let Err(error) = self.sweep().await {
                tracing::warn!(error = %chain(&error), "looking for sandboxes that nobody uses");
            }
        }
    }

    /// Gives back what a container that has ended, or is gone, does not need any more. Does nothing for one that runs.
    pub(super) async fn settle(&self, id: ContainerId) {
        if self.settle_in_turn(id).await {
            self.leave_places(id).await;
        }
    }

    /// Returns whether it has ended.
    async fn settle_in_turn(&self, id: ContainerId) -> bool {
        let _turn = self.turn(id).await;
        let container = self.inner.containers.inspect(id).ok();
        let held = match &container {
            Some(container) if is_live(container.state.status) => return false,
            // Its sandbox and its volumes are the agent's.
            Some(container) if container.config.task.is_some() => return false,
            Some(container) => {
                self.release(&sandbox_id(&container.config)).await;
                self.unmount_unused(container).await;
                return true;
            }
            None => self.held().remove(&id),
        };
        self.release(&id.to_string()).await;
        if let Some(held) = held {
            remove_anonymous(&self.inner.volumes, self.unused(held.volumes)).await;
        }
        self.turns().remove(&id);
        true
    }

    async fn release(&self, sandbox: &str) {
        if let Err(error) = self.inner.sandboxes.remove(sandbox).await {
            tracing::warn!(sandbox, error = %chain(&error), "removing a sandbox; tried again within a minute");
        }
    }

    /// Settles all containers that ended and those that are gone.
    async fn sweep(&self) -> Result<(), EngineError> {
        let sandboxes = self.inner.sandboxes.list().await.map_err(errors::sandbox)?;
        // Ids of tasks are of another form.
        let mut ids: Vec<ContainerId> = sandboxes.iter().filter_map(|sandbox| sandbox.id.parse().ok()).collect();
        ids.extend(self.held().keys().filter(|id| self.inner.containers.inspect(**id).is_err()));
        futures_util::stream::iter(ids).for_each_concurrent(STARTS, |id| self.settle(id)).await;
        Ok(())
    }

    fn hold_again(&self, container: &Container) {
        let image = self.inner.images.hold(&container.image_id);
        if let Err(error) = &image {
            tracing::warn!(container.id = %container.config.id, image = %container.image_id, error = %chain(error),
                "the image of a container cannot be held");
        }
        let volumes = match container.config.auto_remove {
            true => anonymous(container.config.id, &container.mounts),
            false => Vec::new(),
        };
        self.held().insert(container.config.id, Held { _image: image.ok(), volumes });
    }

    /// A container that runs cannot be given another sandbox: only a restart helps.
    async fn warn_of_lost_sandboxes(&self) -> Result<(), EngineError> {
        let sandboxes = self.inner.sandboxes.list().await.map_err(errors::sandbox)?;
        for container in self.inner.containers.list(false) {
            let config = &container.config;
            let own = config.task.is_none() && matches!(config.network, NetworkMode::Bridge | NetworkMode::Networks(_));
            if own && !sandboxes.iter().any(|sandbox| sandbox.id == sandbox_id(config)) {
                tracing::error!(container.id = %config.id, "the network of a running container is lost; restart it");
            }
        }
        Ok(())
    }

    /// Unmounts those volumes of an ended container that no other container uses now.
    async fn unmount_unused(&self, ended: &Container) {
        if !ended.mounts.iter().any(|mount| mount.kind == "volume") {
            return;
        }
        // Alone: a container that is being started may have mounted the volume already.
        let _alone = self.inner.mounting.write().await;
        let live: Vec<Container> =
            self.inner.containers.list(true).into_iter().filter(|c| is_live(c.state.status)).collect();
        for mount in ended.mounts.iter().filter(|mount| mount.kind == "volume") {
            if live.iter().any(|c| c.mounts.iter().any(|m| m.kind == "volume" && m.name == mount.name)) {
                continue;
            }
            if let Err(error) = self.inner.volumes.unmount(&mount.name).await {
                tracing::warn!(volume = %mount.name, error = %chain(&error), "unmounting a volume");
            }
        }
    }

    /// Those of the volumes that no container has.
    fn unused(&self, mut volumes: Vec<String>) -> Vec<String> {
        volumes.retain(|volume| self.users_of_volume(volume).is_empty());
        volumes
    }
}
