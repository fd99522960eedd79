//! Making, starting, stopping and removing containers.

use std::time::Duration;

use skep_api::ports::engine::{Created, EngineError, WaitCondition, WaitHandle};
use skep_engine::containers::{self as engine, EtcContents, StartWith};
use skep_engine::images::{ImageError, ImageRef, PullPolicy, Reference as ImageReference};
use skep_proto::model::ContainerId;
use skep_proto::model::container::DnsConfig;
use skep_proto::model::engine::{Container, ContainerConfig, ContainerStatus, NetworkMode};

use super::connect::{self, Plan, is_live};
use super::etc::{self, NodeEtc};
use super::prepare::{self, anonymous, remove_anonymous};
use super::{Held, NodeEngine, errors};

impl NodeEngine {
    pub(super) fn find(&self, reference: &str) -> Result<ContainerId, EngineError> {
        self.inner.containers.find(reference).map_err(errors::container)
    }

    fn inspect(&self, id: ContainerId) -> Result<Container, EngineError> {
        self.inner.containers.inspect(id).map_err(errors::container)
    }

    pub(super) async fn list_containers(&self, all: bool) -> Result<Vec<Container>, EngineError> {
        let sandboxes = self.inner.sandboxes.list().await.map_err(errors::sandbox)?;
        let networks = self.list_networks().await?;
        // One that waits for its restart counts as running, as Docker counts it.
        let containers = self.inner.containers.list(true).into_iter().filter(|c| all || is_live(c.state.status));
        Ok(containers.map(|container| connect::show(container, &sandboxes, &networks)).collect())
    }

    pub(super) async fn show_container(&self, id: ContainerId) -> Result<Container, EngineError> {
        let sandboxes = self.inner.sandboxes.list().await.map_err(errors::sandbox)?;
        let networks = self.list_networks().await?;
        Ok(connect::show(self.inspect(id)?, &sandboxes, &networks))
    }

    pub(super) async fn create_container(&self, mut config: ContainerConfig) -> Result<Created, EngineError> {
        check_name(&config.name)?;
        if config.privileged && !self.inner.facts.allow_privileged {
            return Err(EngineError::Invalid("privileged containers are not allowed on this node".to_owned()));
        }
        let networks = self.list_networks().await?;
        let places = self.check_networks(&config, &networks).await?;
        let plan = connect::plan(&config, "", &networks, &places)?;
        let mut warnings = Vec::new();
        match plan {
            Plan::Host => {
                if !config.ports.is_empty() {
                    warnings.push("Published ports are discarded when using host network mode".to_owned());
                }
                if config.spec.hostname.is_empty() {
                    config.spec.hostname.clone_from(&self.inner.facts.name);
                }
            }
            Plan::Shared(other) => {
                let hostname = self.inspect(other)?.process.hostname;
                if config.spec.hostname.is_empty() {
                    config.spec.hostname = hostname;
                }
            }
            Plan::Sandbox(_) | Plan::Nothing | Plan::Given(_) => {}
        }
        let image = self.inner.images.resolve(&config.spec.image, PullPolicy::Never, None).await;
        let image = image.map_err(|error| no_such_image(error, &config.spec.image))?;
        let id = self.make(config, image).await?;
        Ok(Created { id, warnings })
    }

    /// Makes the container of a task from an image that the agent resolved: `config.task` names the task, `config.network`
    /// is the task's sandbox, the node's network or none.
    ///
    /// # Errors
    /// As [`skep_api::ports::Engine::create`]; [`EngineError::Conflict`] when it exists.
    pub async fn create_task(&self, config: ContainerConfig, image: ImageRef) -> Result<ContainerId, EngineError> {
        self.make(config, image).await
    }

    async fn make(&self, config: ContainerConfig, image: ImageRef) -> Result<ContainerId, EngineError> {
        let (id, auto_remove) = (config.id, config.auto_remove);
        // A volume that is found must not be removed before the container that uses it is known.
        let _mounting = self.inner.mounting.read().await;
        let new = prepare::new_container(&self.inner.volumes, config, &image).await.map_err(errors::prepare)?;
        let own = anonymous(id, &new.mounts);
        match self.inner.containers.create(new).await {
            Ok(()) => {
                let volumes = if auto_remove { own } else { Vec::new() };
                self.held().insert(id, Held { _image: Some(image), volumes });
                Ok(id)
            }
            Err(error) => {
                // Another container of this id would have the same volumes.
                if self.inner.containers.inspect(id).is_err() {
                    remove_anonymous(&self.inner.volumes, own).await;
                }
                Err(errors::container(error))
            }
        }
    }

    /// Starts the container of a task, with these files. `Ok(false)`: it runs already.
    ///
    /// # Errors
    /// [`EngineError::StartFailed`] with an OCI runtime's words.
    pub async fn start_task(&self, id: ContainerId, etc: EtcContents) -> Result<bool, EngineError> {
        let container = self.inspect(id)?;
        prepare::mount_again(&self.inner.volumes, &container.mounts).await.map_err(errors::volume)?;
        let with = StartWith { network: container.config.network, etc: Some(etc), ..StartWith::default() };
        self.inner.containers.start(id, with).await.map_err(errors::container)
    }

    /// Starts a container that no task owns.
    pub(super) async fn start_container(&self, id: ContainerId) -> Result<bool, EngineError> {
        let started = {
            let _turn = self.turn(id).await;
            self.start_in_turn(id).await
        };
        if started.is_err() {
            self.settle(id).await;
        }
        started
    }

    async fn start_in_turn(&self, id: ContainerId) -> Result<bool, EngineError> {
        let container = self.inspect(id)?;
        match container.state.status {
            ContainerStatus::Running => return Ok(false),
            ContainerStatus::Paused => {
                let text = "cannot start a paused container, try unpause instead";
                return Err(EngineError::Conflict(text.to_owned()));
            }
            ContainerStatus::Created
            | ContainerStatus::Restarting
            | ContainerStatus::Exited
            | ContainerStatus::Removing
            | ContainerStatus::Dead => {}
        }
        if let Some(owner) = &container.config.task {
            let text = format!(
                "container {} belongs to task {}, which is never started again: the cluster replaces it",
                container.config.name, owner.task
            );
            return Err(EngineError::Conflict(text));
        }
        let _mounting = self.inner.mounting.read().await;
        let with = match self.arrange(&container).await {
            Ok(with) => with,
            Err(error) => {
                // As the engine does it when the process cannot be started.
                if container.config.auto_remove && !is_live(container.state.status) {
                    self.inner.containers.remove(id, true).await.map_err(errors::container)?;
                }
                return Err(error);
            }
        };
        self.inner.containers.start(id, with).await.map_err(errors::container)
    }

    /// Mounts the container's volumes and connects it.
    async fn arrange(&self, container: &Container) -> Result<StartWith, EngineError> {
        let config = &container.config;
        for mount in container.mounts.iter().filter(|mount| mount.kind == "bind") {
            if tokio::fs::metadata(&mount.source).await.is_err() {
                let text = format!("bind source path does not exist: {}", mount.source.display());
                return Err(EngineError::Invalid(format!("invalid mount config for type \"bind\": {text}")));
            }
        }
        prepare::mount_again(&self.inner.volumes, &container.mounts).await.map_err(errors::volume)?;
        let hostname = &container.process.hostname;
        let _attaching = self.inner.attaching.read().await;
        let networks = self.list_networks().await?;
        let places = self.take_places(config, hostname, &networks).await?;
        let plan = connect::plan(config, hostname, &networks, &places)?;
        let (extra, dns) = (&config.spec.hosts, config.spec.dns.clone().unwrap_or_default());
        let etc = match &plan {
            Plan::Sandbox(request) => {
                if !is_live(container.state.status) {
                    // That of the last run may not be gone yet.
                    self.inner.sandboxes.remove(&request.id).await.map_err(errors::sandbox)?;
                }
                let made = self.inner.sandboxes.ensure(request.clone()).await;
                let sandbox = made.map_err(|error| errors::connecting(&config.name, error))?;
                let etc = etc::of_sandbox(hostname, extra, &sandbox);
                let network = NetworkMode::Sandbox(sandbox.netns);
                return Ok(StartWith { network, etc: Some(etc), ..StartWith::default() });
            }
            Plan::Host => etc::of_host(hostname, extra, &dns, &node_etc().await),
            Plan::Nothing => etc::of_nothing(hostname, extra, &dns, &node_etc().await),
            Plan::Shared(other) => self.etc_of(*other, hostname).await?,
            Plan::Given(_) => etc::of_nothing(hostname, extra, &DnsConfig::default(), &node_etc().await),
        };
        let with = connect::start_with(&plan).unwrap_or_default();
        Ok(StartWith { etc: Some(etc), ..with })
    }

    /// The files of the container whose network another one shares: it has the same names, too.
    async fn etc_of(&self, other: ContainerId, hostname: &str) -> Result<EtcContents, EngineError> {
        let files = self.inspect(other)?.etc;
        let read = async |path: &std::path::Path| {
            let text = tokio::fs::read_to_string(path).await;
            text.map_err(|e| errors::internal(format!("reading {}", path.display()), e))
        };
        Ok(EtcContents {
            hostname: format!("{hostname}\n"),
            hosts: read(&files.hosts).await?,
            resolv_conf: read(&files.resolv_conf).await?,
        })
    }

    pub(super) async fn stop_container(
        &self,
        id: ContainerId,
        signal: Option<i32>,
        grace: Option<u64>,
    ) -> Result<bool, EngineError> {
        self.late().remove(&id);
        let stopped = self.inner.containers.stop(id, signal, grace.map(Duration::from_secs)).await;
        // Ports and addresses are free when the caller reads the answer.
        self.settle(id).await;
        stopped.map_err(errors::container)
    }

    pub(super) async fn restart_container(
        &self,
        id: ContainerId,
        signal: Option<i32>,
        grace: Option<u64>,
    ) -> Result<(), EngineError> {
        let container = self.inspect(id)?;
        if container.config.auto_remove && is_live(container.state.status) {
            return Err(EngineError::Unsupported("restarting a container that is removed at its end".to_owned()));
        }
        if let Some(owner) = &container.config.task {
            let text = format!("container {id} belongs to task {}: update its service instead", owner.task);
            return Err(EngineError::Conflict(text));
        }
        self.stop_container(id, signal, grace).await?;
        self.start_container(id).await.map(drop)
    }

    pub(super) async fn remove_container(
        &self,
        id: ContainerId,
        force: bool,
        volumes: bool,
    ) -> Result<(), EngineError> {
        let container = self.inspect(id)?;
        self.late().remove(&id);
        if volumes {
            self.held().entry(id).or_default().volumes = anonymous(id, &container.mounts);
        }
        let removed = self.inner.containers.remove(id, force).await;
        if removed.is_err()
            && volumes
            && !container.config.auto_remove
            && let Some(held) = self.held().get_mut(&id)
        {
            held.volumes.clear();
        }
        self.settle(id).await;
        removed.map_err(errors::container)
    }

    pub(super) async fn kill_container(&self, id: ContainerId, signal: i32) -> Result<(), EngineError> {
        let killed = self.inner.containers.kill(id, signal).await;
        self.settle(id).await;
        killed.map_err(errors::container)
    }

    pub(super) fn rename_container(&self, id: ContainerId, name: &str) -> Result<(), EngineError> {
        let name = name.strip_prefix('/').unwrap_or(name);
        check_name(name)?;
        if self.inspect(id)?.config.name == name {
            let text = "Renaming a container with the same name as its current name";
            return Err(EngineError::Invalid(text.to_owned()));
        }
        self.inner.containers.rename(id, name).map_err(errors::container)
    }

    pub(super) fn wait_for(&self, id: ContainerId, condition: WaitCondition) -> Result<WaitHandle, EngineError> {
        let condition = match condition {
            WaitCondition::NotRunning => engine::WaitCondition::NotRunning,
            WaitCondition::NextExit => engine::WaitCondition::NextExit,
            WaitCondition::Removed => engine::WaitCondition::Removed,
        };
        let ended = self.inner.containers.wait(id, condition).map_err(errors::container)?;
        let this = self.clone();
        Ok(Box::pin(async move {
            let (code, error) = ended.await;
            this.settle(id).await;
            Ok((code, error))
        }))
    }
}

/// Docker's rule for names of containers.
fn check_name(name: &str) -> Result<(), EngineError> {
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match name.as_bytes() {
        [first, rest @ ..] if first.is_ascii_alphanumeric() && !rest.is_empty() && rest.iter().all(inner) => Ok(()),
        _ => {
            let text = format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
            Err(EngineError::Invalid(text))
        }
    }
}

/// Docker names the image with its tag; clients pull it then.
fn no_such_image(error: ImageError, reference: &str) -> EngineError {
    match error {
        ImageError::NotFound(_) => {
            let parsed = reference.parse::<ImageReference>();
            EngineError::NoSuchImage(parsed.map_or_else(|_| reference.to_owned(), |parsed| parsed.familiar()))
        }
        other => errors::image(other),
    }
}

async fn node_etc() -> NodeEtc {
    let read = async |path| tokio::fs::read_to_string(path).await.unwrap_or_default();
    NodeEtc { hosts: read("/etc/hosts").await, resolv_conf: read("/etc/resolv.conf").await }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["web", "a1", "A_b.c-d", "0x"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "-web", "we b", "web/", "wéb", "_a"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_that_is_not_here_is_named_with_its_tag() {
        let text = |name: &str| no_such_image(ImageError::NotFound(name.into()), name).to_string();
        assert_eq!(text("nosuch"), "No such image: nosuch:latest");
        assert_eq!(text("r.example/a:1"), "No such image: r.example/a:1");
    }
}
