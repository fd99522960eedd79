//! This node's engine as the faces see it: containers, images, volumes and local networks, put together.
//!
//! [`NodeEngine`] is the one implementation of [`skep_api::ports::Engine`]. It decides what a container is made from
//! ([`prepare`]) and how it is connected (`connect`, `etc`), and leaves the work to the engine's parts and to the network
//! layer behind [`sandboxes::Sandboxes`].
//!
//! A container that no task owns gets its sandbox at the start and loses it at its end, before anybody who waits for that
//! end is told: its ports and addresses are free then. Containers of tasks are seen through the same engine (inspection,
//! logs, exec, attach, stop, removal), but their sandboxes, volumes and starts are the agent's, which makes them with
//! [`NodeEngine::create_task`] and [`NodeEngine::start_task`] or with the engine's parts themselves.
//!
//! Invariant: while a container is there its image is held, and while it runs, or waits for its restart, its sandbox and
//! its volumes stay.

pub mod cluster;
mod connect;
mod containers;
mod doctor;
mod errors;
pub mod etc;
mod events;
mod images;
mod info;
mod join;
mod networks;
mod port;
pub mod prepare;
pub mod sandboxes;
mod settle;
mod streams;
mod volumes;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_api::ports::EngineError;
use skep_api::ports::events::EventLog;
use skep_engine::containers::Containers;
use skep_engine::images::{Clock, ImageRef, Images};
use skep_engine::volumes::Volumes;
use skep_proto::model::{ContainerId, Labels};
use tokio::sync::{OwnedMutexGuard, RwLock};

use self::cluster::Cluster;
use self::networks::Networks;
use self::sandboxes::Sandboxes;

/// What the engine works with.
pub struct Parts {
    /// Images.
    pub images: Images,
    /// Containers.
    pub containers: Containers,
    /// Volumes.
    pub volumes: Volumes,
    /// Sandboxes and bridges.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// The managers, for places on networks of the cluster.
    pub cluster: Cluster,
    /// What is told of the node.
    pub facts: NodeFacts,
    /// The clock.
    pub clock: Clock,
}

/// What the daemon knows of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Stable name of the engine.
    pub id: String,
    /// Host name; also that of containers on the node's own network.
    pub name: String,
    /// The daemon's root directory.
    pub root: PathBuf,
    /// Labels of the daemon.
    pub labels: Labels,
    /// Registries that may be spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Logical CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Containers may ask for every capability and device.
    pub allow_privileged: bool,
    /// What an operator should know: missing protections, missing kernel features.
    pub warnings: Vec<String>,
}

/// The engine of this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct NodeEngine {
    inner: Arc<Inner>,
}

struct Inner {
    images: Images,
    containers: Containers,
    volumes: Volumes,
    sandboxes: Arc<dyn Sandboxes>,
    cluster: Cluster,
    facts: NodeFacts,
    clock: Clock,
    networks: Networks,
    /// What happened to containers, images, volumes and networks.
    events: EventLog,
    /// Of each container, what must outlive its record.
    held: Mutex<HashMap<ContainerId, Held>>,
    /// One operation at a time makes or takes away the sandbox of a container.
    turns: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers that the daemon's start should have started, and whose networks were not there yet.
    late: Mutex<BTreeSet<ContainerId>>,
    /// Containers that may have places on networks of the cluster.
    attached: Mutex<BTreeSet<ContainerId>>,
    /// Shared by those who take or give back such a place; alone for telling the managers of all.
    attaching: RwLock<()>,
    /// The managers may know places that are not there any more.
    owes_places: AtomicBool,
    /// Shared by starts, which mount volumes; alone for unmounting those that nobody uses.
    mounting: RwLock<()>,
}

/// What must outlive a container's record, to be given back after its removal.
#[derive(Default)]
struct Held {
    /// Keeps the image's layers; `None` when the image was lost.
    _image: Option<ImageRef>,
    /// Volumes that nobody named, to be removed with the container.
    volumes: Vec<String>,
}

impl NodeEngine {
    /// Puts the engine together. [`Self::recover`] follows before anything else is asked of it.
    ///
    /// # Errors
    /// When the record of networks, `network/local.json` in the root, cannot be read or written.
    pub async fn open(parts: Parts) -> Result<Self, EngineError> {
        let (path, now) = (parts.facts.root.join("network/local.json"), (parts.clock)());
        let networks = tokio::task::spawn_blocking(move || Networks::open(path, now))
            .await
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| errors::internal("reading the record of networks", e))?;
        let Parts { images, containers, volumes, sandboxes, cluster, facts, clock } = parts;
        let inner = Inner {
            images,
            containers,
            volumes,
            sandboxes,
            cluster,
            facts,
            clock,
            networks,
            events: EventLog::default(),
            held: Mutex::default(),
            turns: Mutex::default(),
            late: Mutex::default(),
            attached: Mutex::default(),
            attaching: RwLock::default(),
            // An earlier daemon may have ended before it gave back what it had.
            owes_places: AtomicBool::new(true),
            mounting: RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ContainerId, Held>> {
        // Changed by single inserts and removals.
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>> {
        // As above.
        self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        // As above.
        self.inner.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attached(&self) -> MutexGuard<'_, BTreeSet<ContainerId>> {
        // As above.
        self.inner.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to make or take away a container's sandbox.
    async fn turn(&self, id: ContainerId) -> OwnedMutexGuard<()> {
        let turn = self.turns().entry(id).or_default().clone();
        turn.lock_owned().await
    }
}
