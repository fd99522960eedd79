//! The node itself: images, containers and volumes of the engine, sandboxes of the network layer.
//!
//! What is made is named after the task, so that every operation finds what an earlier one, or an earlier process, left.

mod act;
mod again;
mod files;
mod mounts;
pub mod plan;
mod pod;
mod probe;
mod resources;
mod run;
pub mod sandbox;
mod tls;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use skep_engine::containers::{ContainerError, ContainerFile, Containers as EngineContainers};
use skep_engine::images::{CollectPolicy, ImageError, ImageRef, Images, PullPolicy};
use skep_engine::volumes::Volumes;
use skep_proto::model::engine::Container;
use skep_proto::model::pod::Pull;
use skep_proto::model::{ContainerId, ContainerSpec, NodeDescription, NodeId, TaskId};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use self::plan::Connection;
use self::sandbox::{Sandbox, SandboxError, SandboxRequest, Sandboxes};
use super::files::Files;
use super::{Containers, Executor, ExecutorError, Exit, Running, Seen, TaskUnit};
use crate::engine_port::prepare;

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
    starts: Arc<Semaphore>,
    prepared: Mutex<HashMap<TaskId, Prepared>>,
    /// Images of containers of tasks: they stay while the container does, whoever untags them.
    held: Mutex<HashMap<ContainerId, ImageRef>>,
    /// When a registry was last asked about a tag.
    asked: Mutex<HashMap<String, Instant>>,
    /// One task at a time chooses among the named resources.
    choosing: tokio::sync::Mutex<()>,
    /// Probes of running containers.
    watchers: watch::Shared,
    /// Pauses before containers of tasks are started again.
    pauses: again::Pauses,
    /// Held while containers of a task are started: a start goes on when its caller does not wait any more.
    turns: Mutex<HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>>,
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
        let starts = Arc::new(Semaphore::new(parts.parallel_starts.max(1)));
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
            watchers: watch::Shared::default(),
            pauses: again::Pauses::default(),
            turns: Mutex::default(),
        }
    }

    async fn image(&self, unit: &TaskUnit, index: usize) -> Result<ImageRef, ExecutorError> {
        let spec = &unit.spec.task.containers[index];
        let policy = match spec.pod.as_ref().and_then(|pod| pod.pull) {
            Some(Pull::Never) => PullPolicy::Never,
            Some(Pull::IfNotPresent) => PullPolicy::IfNotPresent,
            Some(Pull::Always) | None => self.policy(&spec.image),
        };
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

    fn turns(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<tokio::sync::Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, task: TaskId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.turns().entry(task).or_default())
    }

    fn prepared_of(&self, unit: &TaskUnit) -> Result<Prepared, ExecutorError> {
        let prepared = self.prepared().get(&unit.task.id).cloned();
        prepared.ok_or_else(|| ExecutorError::Temporary("the task is not prepared".into()))
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
        tasks.extend(mounts::tasks_with_scratch(&self.parts.volumes));
        tasks.sort_unstable();
        tasks.dedup();
        Ok(tasks)
    }

    async fn observe(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        self.settled(unit).await
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
        self.advance(unit).await?;
        match self.together(unit).await? {
            Containers::Running(running) => Ok(running),
            // It ran and has ended meanwhile: waiting for its end tells how.
            Containers::Absent | Containers::Created | Containers::Ended(_) => self.sandbox_of(unit.task.id).await,
        }
    }

    async fn wait(&self, unit: &TaskUnit, seen: Seen) -> Result<Containers, ExecutorError> {
        self.wait_for_change(unit, seen).await
    }

    async fn stop(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError> {
        self.stop_all(unit).await
    }

    async fn release(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.prepared().remove(&task);
        self.watchers.forget(task);
        self.parts.sandboxes.remove(task).await?;
        let all = self.parts.containers.list(true);
        mounts::release(&self.parts.volumes, &all, |container| {
            container.config.task.is_some_and(|owner| owner.task == task)
        })
        .await;
        mounts::remove_scratch(&self.parts.volumes, task).await
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.prepared().remove(&task);
        self.watchers.forget(task);
        // A start that goes on ends first.
        let _turn = self.turn(task).lock_owned().await;
        let leftovers = self.leftovers(task);
        self.pauses.forget(leftovers.iter().map(|container| container.config.id));
        for container in leftovers {
            match self.parts.containers.remove(container.config.id, true).await {
                Ok(()) | Err(ContainerError::NotFound(_)) => {}
                Err(error) => return Err(ExecutorError::Temporary(crate::chain(&error).to_string())),
            }
            self.held().remove(&container.config.id);
            let volumes = prepare::anonymous(container.config.id, &container.mounts);
            prepare::remove_anonymous(&self.parts.volumes, volumes).await;
        }
        self.parts.sandboxes.remove(task).await?;
        mounts::remove_scratch(&self.parts.volumes, task).await?;
        self.turns().remove(&task);
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
