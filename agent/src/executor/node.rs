//! The node itself: images, containers and volumes of the engine, sandboxes of the network layer.
//!
//! What is made is named after the task, so that every operation finds what an earlier one, or an earlier process, left.

mod files;
mod mounts;
pub mod plan;
mod resources;
pub mod sandbox;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, select_all, try_join_all};
use skep_engine::containers::{
    ContainerError, ContainerFile, Containers as EngineContainers, EtcContents, StartWith, WaitCondition,
};
use skep_engine::images::{CollectPolicy, ImageError, ImageRef, Images, PullPolicy};
use skep_engine::volumes::Volumes;
use skep_proto::model::engine::{Container, ContainerConfig, NetworkMode};
use skep_proto::model::{ContainerId, ContainerSpec, Health, HealthStatus, NodeDescription, NodeId, TaskId};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use self::plan::Connection;
use self::sandbox::{Sandbox, SandboxError, SandboxRequest, Sandboxes};
use super::files::Files;
use super::{Containers, Executor, ExecutorError, Exit, Running, TaskUnit};
use crate::engine_port::{etc, prepare};

/// How long a registry's word on a tag holds, so that a hundred replicas ask once. Docker's agents ask for each.
const TAG_HOLDS: Duration = Duration::from_secs(60);
/// Images go when the disk is fuller than this share, as the kubelet does it.
const FULL: f64 = 0.85;
/// And only those that nothing used for this time.
const UNUSED_FOR: Duration = Duration::from_secs(3600);

/// What the executor works with.
#[derive(Clone)]
pub struct NodeParts {
    /// This node.
    pub node: NodeId,
    /// What it tells of itself, for templates.
    pub description: NodeDescription,
    /// Secrets and configs of its tasks.
    pub files: Files,
    /// The daemon's root directory, whose disk must not fill.
    pub root: PathBuf,
    /// Images.
    pub images: Images,
    /// Containers.
    pub containers: EngineContainers,
    /// Volumes.
    pub volumes: Volumes,
    /// Sandboxes.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Containers made or started at a time.
    pub parallel_starts: usize,
    /// Named generic resources of the node, as (kind, name).
    pub named_resources: Vec<(String, String)>,
}

/// Runs tasks on this node.
pub struct NodeExecutor {
    parts: NodeParts,
    starts: Semaphore,
    prepared: Mutex<HashMap<TaskId, Prepared>>,
    /// Images of containers of tasks: they stay while the container does, whoever untags them.
    held: Mutex<HashMap<ContainerId, ImageRef>>,
    /// When a registry was last asked about a tag.
    asked: Mutex<HashMap<String, Instant>>,
    /// One task at a time chooses among the named resources.
    choosing: tokio::sync::Mutex<()>,
}

/// What preparing a task gave. It exists only in this process: preparing again finds it again.
#[derive(Clone)]
struct Prepared {
    /// One for each container. Holding them keeps the images.
    images: Vec<ImageRef>,
    /// `None` for a task that uses the node's own network, or none.
    sandbox: Option<Sandbox>,
    connection: Connection,
    /// The task's containers with their templates expanded, and the files that each is given.
    containers: Vec<(ContainerSpec, Vec<ContainerFile>)>,
}

impl NodeExecutor {
    /// An executor over `parts`. Images of existing containers of tasks are held from now on; those of plain containers are
    /// for whoever runs them to hold, before the first collection.
    pub fn new(parts: NodeParts) -> Self {
        let starts = Semaphore::new(parts.parallel_starts.max(1));
        let mut held = HashMap::new();
        for container in parts.containers.list(true).into_iter().filter(|found| found.config.task.is_some()) {
            match parts.images.hold(&container.image_id) {
                Ok(image) => {
                    held.insert(container.config.id, image);
                }
                Err(error) => {
                    warn!(container.id = %container.config.id, %error, "the image of a container is gone");
                }
            }
        }
        Self {
            parts,
            starts,
            prepared: Mutex::default(),
            held: Mutex::new(held),
            asked: Mutex::default(),
            choosing: tokio::sync::Mutex::default(),
        }
    }

    fn ids(unit: &TaskUnit) -> impl Iterator<Item = ContainerId> + '_ {
        (0..unit.spec.task.containers.len()).map(|index| unit.container_id(index))
    }

    /// Those containers of the task that exist.
    fn existing(&self, unit: &TaskUnit) -> Vec<Container> {
        Self::ids(unit).filter_map(|id| self.parts.containers.inspect(id).ok()).collect()
    }

    async fn running(&self, task: TaskId) -> Result<Running, ExecutorError> {
        let sandbox = self.parts.sandboxes.find(task).await?;
        Ok(sandbox.map_or_else(Running::default, |sandbox| Running {
            pid: 0,
            mesh: sandbox.mesh,
            host_ports: sandbox.host_ports,
            health: None,
        }))
    }

    async fn together(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        let existing = self.existing(unit);
        let running = if existing.iter().any(|container| container.state.pid != 0) {
            self.running(unit.task.id).await?
        } else {
            Running::default()
        };
        Ok(plan::together(&existing, unit.spec.task.containers.len(), running))
    }

    async fn image(&self, unit: &TaskUnit, index: usize) -> Result<ImageRef, ExecutorError> {
        let spec = &unit.spec.task.containers[index];
        let policy = self.policy(&spec.image);
        self.parts.images.resolve(&spec.image, policy, spec.registry_auth.as_ref()).await.map_err(image_error)
    }

    /// A tag may have moved since it was fetched; a digest cannot.
    fn policy(&self, image: &str) -> PullPolicy {
        if image.contains('@') {
            return PullPolicy::IfNotPresent;
        }
        let now = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, at| now.duration_since(*at) < TAG_HOLDS);
        match asked.insert(image.to_owned(), now) {
            Some(at) => {
                asked.insert(image.to_owned(), at);
                PullPolicy::IfNotPresent
            }
            None => PullPolicy::Always,
        }
    }

    async fn sandbox(&self, unit: &TaskUnit) -> Result<(Connection, Option<Sandbox>), ExecutorError> {
        let sandboxes = &self.parts.sandboxes;
        let connection = plan::connection(unit, |network| sandboxes.is_internal(network))
            .map_err(|error| ExecutorError::Permanent(error.to_string()))?;
        let Connection::Sandbox { bridge, mesh } = connection else { return Ok((connection, None)) };
        let request = SandboxRequest {
            task: unit.task.id,
            name: unit.name(self.parts.node),
            attachments: unit.task.attachments.clone(),
            bridge,
            mesh,
            host_ports: plan::host_ports(unit).cloned().collect(),
            dns: unit.spec.task.containers.first().and_then(|spec| spec.dns.clone()).unwrap_or_default(),
        };
        Ok((connection, Some(sandboxes.ensure(request).await?)))
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<TaskId, Prepared>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ContainerId, ImageRef>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepared_of(&self, unit: &TaskUnit) -> Result<Prepared, ExecutorError> {
        let prepared = self.prepared().get(&unit.task.id).cloned();
        prepared.ok_or_else(|| ExecutorError::Temporary("the task is not prepared".into()))
    }

    async fn create_one(&self, unit: &TaskUnit, prepared: &Prepared, index: usize) -> Result<(), ExecutorError> {
        if self.parts.containers.inspect(unit.container_id(index)).is_ok() {
            return Ok(());
        }
        let image = &prepared.images[index];
        let network = match (&prepared.connection, &prepared.sandbox) {
            (Connection::Host, _) => NetworkMode::Host,
            (_, Some(sandbox)) => NetworkMode::Sandbox(sandbox.netns.clone()),
            (_, None) => NetworkMode::None,
        };
        let spec = prepared.containers[index].0.clone();
        let mut config =
            plan::container_config(unit, spec, self.parts.node, index, network, &self.parts.description.hostname);
        // Until the container exists, and with it the record of what it has.
        let _choosing = self.choose_resources(unit, &mut config).await?;
        let new = prepare::new_container(&self.parts.volumes, config, image).await?;
        self.held().insert(new.config.id, image.clone());
        self.parts.containers.create(new).await.map_err(create_error)
    }

    /// Gives the task its generic resources. All its containers share those of the first.
    async fn choose_resources(
        &self,
        unit: &TaskUnit,
        config: &mut ContainerConfig,
    ) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, ExecutorError> {
        let Some(reserved) = &unit.spec.task.resources.reservations else { return Ok(None) };
        if reserved.generic.is_empty() {
            return Ok(None);
        }
        let choosing = self.choosing.lock().await;
        let all = self.parts.containers.list(true);
        let others: Vec<_> =
            all.into_iter().filter(|c| c.config.task.as_ref().is_none_or(|t| t.task != unit.task.id)).collect();
        let held = resources::held(&others);
        let environment = resources::environment(&reserved.generic, &self.parts.named_resources, &held);
        config.spec.env.extend(environment.map_err(|error| ExecutorError::Temporary(error.to_string()))?);
        Ok(Some(choosing))
    }

    async fn start_one(&self, unit: &TaskUnit, prepared: &Prepared, index: usize) -> Result<(), ExecutorError> {
        let id = unit.container_id(index);
        let known = self.parts.containers.inspect(id).map_err(create_error)?;
        prepare::mount_again(&self.parts.volumes, &known.mounts).await.map_err(mounts::volume_error)?;
        let etc = prepared.sandbox.as_ref().map(|sandbox| {
            let hostname = known.process.hostname.clone();
            EtcContents {
                hosts: etc::hosts(&hostname, &unit.spec.task.containers[index].hosts, &sandbox.addresses),
                hostname: format!("{hostname}\n"),
                resolv_conf: sandbox.resolv_conf.clone(),
            }
        });
        let files = prepared.containers[index].1.clone();
        let with = StartWith { network: known.config.network, etc, files };
        // A start is asked for once: whatever went wrong, the task is over.
        let failed = |error: ContainerError| {
            ExecutorError::Permanent(format!("starting container failed: {}", crate::chain(&error)))
        };
        self.parts.containers.start(id, with).await.map(|_| ()).map_err(failed)
    }

    /// How the containers ended, once one has and the others have been stopped.
    async fn stop_rest(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError> {
        let stops = Self::ids(unit).map(|id| self.parts.containers.stop(id, None, None));
        for stopped in join_all(stops).await {
            match stopped {
                Ok(_) | Err(ContainerError::NotFound(_)) => {}
                Err(error) => return Err(ExecutorError::Temporary(crate::chain(&error).to_string())),
            }
        }
        match plan::together(&self.existing(unit), unit.spec.task.containers.len(), Running::default()) {
            Containers::Ended(exit) => Ok(exit),
            // Removed by hand meanwhile, or never started: they do not run, which is what was asked for.
            Containers::Absent | Containers::Created => Ok(Exit::default()),
            Containers::Running(_) => Err(ExecutorError::Temporary("the container still runs".into())),
        }
    }

    /// The task's containers, also those that its spec does not name any more.
    fn leftovers(&self, task: TaskId) -> Vec<Container> {
        let owned = |container: &Container| container.config.task.is_some_and(|owner| owner.task == task);
        self.parts.containers.list(true).into_iter().filter(owned).collect()
    }
}

#[async_trait]
impl Executor for NodeExecutor {
    async fn tasks(&self) -> Result<Vec<TaskId>, ExecutorError> {
        let containers = self.parts.containers.list(true);
        let mut tasks: Vec<TaskId> =
            containers.iter().filter_map(|container| container.config.task.map(|owner| owner.task)).collect();
        tasks.extend(self.parts.sandboxes.tasks().await?);
        tasks.sort_unstable();
        tasks.dedup();
        Ok(tasks)
    }

    async fn observe(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        self.together(unit).await
    }

    async fn prepare(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        let wanted = unit.spec.task.containers.len();
        if wanted == 0 {
            return Err(ExecutorError::Permanent("the task has no container".into()));
        }
        let contents = self.parts.files.get(&files::ids(unit)).await.map_err(|id| files::gone(unit, id))?;
        let context = plan::context(unit, self.parts.node, &self.parts.description);
        let containers = files::containers(unit, &context)?
            .into_iter()
            .map(|spec| files::of_container(&spec, &context, &contents).map(|files| (spec, files)))
            .collect::<Result<_, _>>()?;
        let images = try_join_all((0..wanted).map(|index| self.image(unit, index))).await?;
        let (connection, sandbox) = self.sandbox(unit).await?;
        self.prepared().insert(unit.task.id, Prepared { images, sandbox, connection, containers });
        Ok(())
    }

    async fn create(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        let prepared = self.prepared_of(unit)?;
        let _turn = self.starts.acquire().await.map_err(|_| stopping())?;
        for index in 0..unit.spec.task.containers.len() {
            self.create_one(unit, &prepared, index).await?;
        }
        Ok(())
    }

    async fn start(&self, unit: &TaskUnit) -> Result<Running, ExecutorError> {
        let prepared = self.prepared_of(unit)?;
        let _turn = self.starts.acquire().await.map_err(|_| stopping())?;
        for index in 0..unit.spec.task.containers.len() {
            self.start_one(unit, &prepared, index).await?;
        }
        if let Some(prepared) = self.prepared().get_mut(&unit.task.id) {
            // They are in the containers now. Nothing starts twice.
            prepared.containers.iter_mut().for_each(|(_, files)| files.clear());
        }
        let existing = self.existing(unit);
        let pid = existing.first().map_or(0, |found| found.state.pid);
        let (mesh, host_ports) =
            prepared.sandbox.map_or((None, Vec::new()), |sandbox| (sandbox.mesh, sandbox.host_ports));
        Ok(Running { pid, mesh, host_ports, health: plan::health(&existing) })
    }

    async fn wait(&self, unit: &TaskUnit, seen: Option<HealthStatus>) -> Result<Containers, ExecutorError> {
        let gone = |error: ContainerError| ExecutorError::Temporary(error.to_string());
        let mut changes: Vec<BoxFuture<'_, ()>> = Vec::new();
        for id in Self::ids(unit) {
            let end = self.parts.containers.wait(id, WaitCondition::NotRunning).map_err(gone)?;
            changes.push(end.map(drop).boxed());
            let mut health = self.parts.containers.health(id).map_err(gone)?;
            // Beside `seen` it may have changed already, or this container is not the one that it speaks of.
            let before = health.borrow_and_update().as_ref().map(|health| health.status);
            changes.push(
                async move {
                    let other = |now: &Option<Health>| now.as_ref().map(|health| health.status) != before;
                    if health.wait_for(other).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                .boxed(),
            );
        }
        let now = plan::health(&self.existing(unit));
        if now == seen {
            select_all(changes).await;
        }
        match self.together(unit).await? {
            Containers::Ended(exit) if unit.spec.task.containers.len() > 1 => {
                self.stop_rest(unit).await?;
                Ok(Containers::Ended(exit))
            }
            Containers::Absent | Containers::Created => {
                Err(ExecutorError::Temporary("the container ended and left no trace".into()))
            }
            found @ (Containers::Running(_) | Containers::Ended(_)) => Ok(found),
        }
    }

    async fn stop(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError> {
        self.stop_rest(unit).await
    }

    async fn release(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.prepared().remove(&task);
        self.parts.sandboxes.remove(task).await?;
        let all = self.parts.containers.list(true);
        mounts::release(&self.parts.volumes, &all, |container| {
            container.config.task.is_some_and(|owner| owner.task == task)
        })
        .await;
        Ok(())
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.prepared().remove(&task);
        for container in self.leftovers(task) {
            match self.parts.containers.remove(container.config.id, true).await {
                Ok(()) | Err(ContainerError::NotFound(_)) => {}
                Err(error) => return Err(ExecutorError::Temporary(crate::chain(&error).to_string())),
            }
            self.held().remove(&container.config.id);
            let volumes = prepare::anonymous(container.config.id, &container.mounts);
            prepare::remove_anonymous(&self.parts.volumes, volumes).await;
        }
        self.parts.sandboxes.remove(task).await?;
        Ok(())
    }

    async fn collect(&self, _keep: &[TaskUnit]) -> Result<(), ExecutorError> {
        let root = self.parts.root.clone();
        let used = tokio::task::spawn_blocking(move || used_share(&root))
            .await
            .map_err(|_| stopping())?
            .map_err(|error| ExecutorError::Temporary(format!("cannot see how full the disk is: {error}")))?;
        if used < FULL {
            return Ok(());
        }
        warn!(used_percent = (used * 100.0).round(), "the disk is nearly full; unused images go");
        // Images of containers and prepared tasks are held by leases.
        let collected = self.parts.images.collect(CollectPolicy::UnusedFor(UNUSED_FOR)).await.map_err(image_error)?;
        info!(images = collected.deleted.len(), bytes = collected.reclaimed, "unused images were removed");
        Ok(())
    }
}

/// Share of the disk under `root` that is used, of what ordinary processes may use: blocks that the file system keeps
/// for root count neither way (as df(1) counts).
fn used_share(root: &std::path::Path) -> std::io::Result<f64> {
    let disk = rustix::fs::statvfs(root)?;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    let usable = used.saturating_add(disk.f_bavail).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a share, not a count")]
    Ok(used as f64 / usable as f64)
}

fn stopping() -> ExecutorError {
    ExecutorError::Temporary("the agent is stopping".into())
}

fn image_error(error: ImageError) -> ExecutorError {
    let text = crate::chain(&error).to_string();
    if error.is_temporary() { ExecutorError::Temporary(text) } else { ExecutorError::Permanent(text) }
}

fn create_error(error: ContainerError) -> ExecutorError {
    let text = crate::chain(&error).to_string();
    match error {
        ContainerError::Internal { .. } | ContainerError::NotFound(_) => ExecutorError::Temporary(text),
        ContainerError::NoSuchExec(_)
        | ContainerError::Conflict(_)
        | ContainerError::Invalid(_)
        | ContainerError::StartFailed(_) => ExecutorError::Permanent(text),
    }
}

impl From<SandboxError> for ExecutorError {
    fn from(error: SandboxError) -> Self {
        if error.temporary { Self::Temporary(error.message) } else { Self::Permanent(error.message) }
    }
}
