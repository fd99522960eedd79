//! The node's containers: what was asked for, what runs, and how one becomes the other.
//!
//! Each container has a directory, a record in it, and while it runs a shim that is its parent. The daemon holds one
//! connection to each shim; when it is restarted it finds them again, and nothing of a container changes. Operations on
//! one container take turns; operations on different ones do not wait for each other.
//!
//! The caller resolves images, volumes and networks; this module never pulls, and makes no network but an empty one.

mod adopt;
mod attach;
mod copy_up;
mod entry;
mod exec;
mod files;
mod health;
mod lifecycle;
mod network;
mod record;
mod restart;
mod run;
mod shim;
mod start;
mod stop;
mod streams;
mod top;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use futures_util::stream::BoxStream;
use skep_proto::model::engine::{
    Container, ContainerConfig, ImageConfig, LogLine, LogQuery, NetworkMode, ResolvedMount,
};
use skep_proto::model::{ContainerId, Health, Timestamp};
use tokio::sync::{broadcast, watch};

use self::entry::Entry;
pub use self::run::DEFAULT_LOG;
pub use self::streams::{Attached, Wanted};
use crate::runtime::cgroups::{Cgroups, Usage};
use crate::runtime::rootfs::OverlayApi;

/// Events that a slow subscriber may be behind.
const EVENTS: usize = 1024;

/// What the containers of a node need.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of all containers, on a file system that overlays can use.
    pub root: PathBuf,
    /// The executable `skep-shim`.
    pub shim: PathBuf,
    /// Absolute cgroup path below which containers are put (`/skep/n1`).
    pub cgroup_parent: String,
    /// How overlays are mounted.
    pub overlay: OverlayApi,
    /// The clock.
    pub clock: fn() -> Timestamp,
}

/// An image whose layers are unpacked.
#[derive(Debug, Clone, Default)]
pub struct ImageRef {
    /// Digest of its configuration, `sha256:…`.
    pub id: String,
    /// Unpacked layers in overlay form, lowest first; at least one.
    pub layers: Vec<PathBuf>,
    /// What containers inherit.
    pub config: ImageConfig,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// As the client asked.
    pub config: ContainerConfig,
    /// Its image.
    pub image: ImageRef,
    /// Its mounts, with volumes as paths. Missing bind sources exist already if they were to be created.
    pub mounts: Vec<ResolvedMount>,
}

/// What a start needs that is known only then.
#[derive(Debug, Clone, Default)]
pub struct StartWith {
    /// `Sandbox`, `Host`, `None` or `Container`: bridges and named networks are a sandbox by now.
    pub network: NetworkMode,
    /// Content of files given to the container; `None` leaves what is there.
    pub etc: Option<EtcContents>,
    /// Files that exist in memory only, as long as the container runs. Nothing of them is kept, so that a restart by the
    /// policy does not have them: they are for containers that
    /// their owner starts.
    pub files: Vec<ContainerFile>,
    /// It ran before, and whoever it belongs to starts it again: that counts as a restart.
    pub again: bool,
    /// A running container whose System V and POSIX objects it shares; `None` for its own.
    pub ipc_of: Option<ContainerId>,
}

/// A file given to a container, read-only. Its `Debug` does not show what is in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ContainerFile {
    /// Absolute path in the container.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub data: bytes::Bytes,
}

impl std::fmt::Debug for ContainerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContainerFile({}, {} bytes)", self.target, self.data.len())
    }
}

/// Content of files given to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcContents {
    /// `/etc/hostname`.
    pub hostname: String,
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// It does not run.
    #[default]
    NotRunning,
    /// Its next end.
    NextExit,
    /// It is gone.
    Removed,
}

/// Something happened to a container. An event says where to look, not what is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The container.
    pub id: ContainerId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Create,
    /// It runs.
    Start,
    /// The kernel killed it for want of memory.
    Oom,
    /// It ended.
    Die {
        /// Exit code.
        exit_code: i32,
    },
    /// It is gone.
    Destroy,
    /// A signal was sent.
    Kill {
        /// Its number.
        signal: i32,
    },
    /// It was stopped on request.
    Stop,
    /// It was frozen.
    Pause,
    /// It was thawed.
    Unpause,
    /// It has another name.
    Rename {
        /// The former one.
        old: String,
    },
    /// A process beside the container's own was prepared.
    ExecCreate(ExecEvent),
    /// It was started.
    ExecStart(ExecEvent),
    /// It ended.
    ExecDie {
        /// The process.
        exec: ExecEvent,
        /// Its exit code.
        exit_code: i32,
    },
}

/// A process beside the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecEvent {
    /// Its id.
    pub id: String,
    /// Its words, joined by blanks.
    pub command: String,
}

/// Why something was not done. Texts are Docker's where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No container of that id or name.
    #[error("No such container: {0}")]
    NotFound(String),
    /// No exec session of that id.
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// A name is taken, or the container's state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The process could not be started.
    #[error("{0}")]
    StartFailed(String),
    /// Something broke here.
    #[error("{context}")]
    Internal {
        /// What was being done.
        context: &'static str,
        /// What broke.
        source: io::Error,
    },
}

impl ContainerError {
    pub(crate) fn internal(context: &'static str, source: io::Error) -> Self {
        Self::Internal { context, source }
    }
}

/// The containers of a node. Cheap to clone.
#[derive(Clone)]
pub struct Containers {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    cgroups: Cgroups,
    index: RwLock<Index>,
    execs: Mutex<HashMap<String, Arc<exec::Session>>>,
    /// Counts removals, for names of directories.
    removals: AtomicU64,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Index {
    by_id: HashMap<ContainerId, Arc<Entry>>,
    by_name: HashMap<String, ContainerId>,
}

impl Containers {
    /// Opens the containers under `config.root`: finds those that run, and what happened to the others meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be used or there are no cgroups. One container's broken files only cost that one.
    pub async fn open(config: Config) -> Result<Self, ContainerError> {
        let failed = |context| move |e| ContainerError::internal(context, e);
        std::fs::create_dir_all(&config.root).map_err(failed("making the containers' directory"))?;
        let cgroups = Cgroups::detect(&config.cgroup_parent).map_err(failed("finding cgroups"))?;
        let inner = Inner {
            config,
            cgroups,
            index: RwLock::default(),
            execs: Mutex::default(),
            removals: AtomicU64::default(),
            events: broadcast::channel(EVENTS).0,
        };
        let containers = Self { inner: Arc::new(inner) };
        containers.adopt_all().await?;
        Ok(containers)
    }

    /// Events from now on. A subscriber that lags looks at the list.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// All containers, newest first; only running ones unless `all`.
    pub fn list(&self, all: bool) -> Vec<Container> {
        let mut list: Vec<Container> =
            self.entries().iter().map(|e| e.view()).filter(|c| all || c.state.pid != 0).collect();
        list.sort_by_key(|c| (std::cmp::Reverse(c.created_at), c.config.id));
        list
    }

    /// One container.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub fn inspect(&self, id: ContainerId) -> Result<Container, ContainerError> {
        Ok(self.entry(id)?.view())
    }

    /// Finds a container by id, unique prefix of one, or name, in Docker's order.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`], and [`ContainerError::Invalid`] for a prefix of several.
    pub fn find(&self, reference: &str) -> Result<ContainerId, ContainerError> {
        let reference = reference.strip_prefix('/').unwrap_or(reference);
        if let Ok(id) = reference.parse::<ContainerId>() {
            return self.entry(id).map(|e| e.id);
        }
        let index = self.inner.index.read().expect("nothing panics while it holds the lock");
        if let Some(id) = index.by_name.get(reference) {
            return Ok(*id);
        }
        let prefix = reference.to_ascii_lowercase();
        let mut found = index.by_id.keys().filter(|id| !prefix.is_empty() && id.to_string().starts_with(&prefix));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(*id),
            (Some(_), Some(_)) => {
                Err(ContainerError::Invalid(format!("multiple IDs found with provided prefix: {reference}")))
            }
            _ => Err(ContainerError::NotFound(reference.to_owned())),
        }
    }

    /// A container's health, now and as it changes; `None` without a health check and before the first start.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub fn health(&self, id: ContainerId) -> Result<watch::Receiver<Option<Health>>, ContainerError> {
        Ok(self.entry(id)?.health.subscribe())
    }

    /// What a container uses now; zeros when it does not run.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub fn usage(&self, id: ContainerId) -> Result<Usage, ContainerError> {
        Ok(self.inner.cgroups.usage(&self.entry(id)?.id.to_string()))
    }

    /// Lines of a container's log. Following ends when the container does.
    ///
    /// # Errors
    /// [`ContainerError::Invalid`] when its log driver cannot be read.
    pub fn logs(
        &self,
        id: ContainerId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, io::Result<LogLine>>, ContainerError> {
        let path = self.entry(id)?.view().log_path;
        if path.as_os_str().is_empty() {
            return Err(ContainerError::Invalid("configured logging driver does not support reading".to_owned()));
        }
        let ended = self.wait(id, WaitCondition::NotRunning)?;
        Ok(crate::logs::read(path, query, async { drop(ended.await) }))
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        let index = self.inner.index.read().expect("nothing panics while it holds the lock");
        index.by_id.values().cloned().collect()
    }

    fn entry(&self, id: ContainerId) -> Result<Arc<Entry>, ContainerError> {
        let index = self.inner.index.read().expect("nothing panics while it holds the lock");
        index.by_id.get(&id).cloned().ok_or_else(|| ContainerError::NotFound(id.to_string()))
    }

    fn publish(&self, id: ContainerId, kind: EventKind) {
        // Nobody listens: nobody is told.
        let _ = self.inner.events.send(Event { id, kind });
    }
}

/// Runs blocking work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContainerError> + Send + 'static,
) -> Result<T, ContainerError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(ContainerError::internal("running blocking work", io::Error::other(e))))
}
