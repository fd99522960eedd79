//! The shells: what the planners want, done in the kernel.
//!
//! No lock is held over kernel work of several sandboxes: each sandbox and each switch has its own, and the
//! bookkeeping in [`state::State`] is locked for moments only. Kernel work runs on threads that may block, each in the
//! namespace that it names; the process's own namespace is never changed.

mod apply;
mod asking;
mod bridges;
mod conntrack;
mod cuts;
mod doctor;
mod encryption;
mod kept;
mod lifecycle;
mod links;
mod names;
mod node;
mod place;
mod pool;
mod ports;
mod recover;
mod reshape;
mod sandbox;
mod sight;
mod state;
mod switch;
mod sysctl;
mod watch;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::model::view::NetworkView;
use skep_proto::model::{NetworkId, NodeId};
use tokio::sync::{Mutex as AsyncMutex, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cuts::Cuts;
pub use self::encryption::Encryption;
use self::names::Published;
use self::node::Node;
use self::sandbox::Live;
use self::state::State;
pub use self::state::{Bridge, Bridge6};
use self::switch::Switch;
use crate::config::{Config, Place};
use crate::error::{NetworkError, Step};
use crate::keys::Keys;
use crate::names::Names;
use crate::spec::{BridgeSpec, Sandbox, SandboxId, SandboxSpec};
use crate::sys::netns::Netns;

/// Sandboxes that are removed at once when all go: the kernel ends namespaces together that are due together.
const REMOVED_AT_ONCE: usize = 16;

/// The network of a node. Clones share one.
#[derive(Clone)]
pub struct NodeNetwork {
    inner: Arc<Inner>,
}

type LiveCell = Arc<AsyncMutex<Option<Live>>>;
type SwitchCell = Arc<Mutex<Option<Switch>>>;

struct Inner {
    config: Config,
    /// The node's namespace.
    netns: Netns,
    names: Arc<dyn Names>,
    state: Mutex<State>,
    node: Mutex<Node>,
    switches: Mutex<BTreeMap<NetworkId, SwitchCell>>,
    live: Mutex<BTreeMap<SandboxId, LiveCell>>,
    /// Sandboxes that are being made, changed or removed, or wait for that, and by how many.
    moving: Mutex<BTreeMap<SandboxId, usize>>,
    /// Sandboxes that were moving when a view came, and that somebody waits for.
    late: Mutex<BTreeSet<SandboxId>>,
    /// Raised after each change of the view, for those who wait for their network.
    changed: channel::Sender<u64>,
    /// MTU of the data path's link in bytes, as of the last look.
    mtu: AtomicU32,
    /// The node's WireGuard keys, once they were asked for.
    keys: Mutex<Option<Keys>>,
    /// One view at a time.
    applying: AsyncMutex<()>,
    /// Something of the last view could not be done.
    behind: AtomicBool,
    /// Whether the name server was asked for sandboxes that are no more.
    names_checked: AtomicBool,
    /// What the name server is told.
    published: AsyncMutex<Published>,
    /// Connections to be cut.
    cuts: Cuts,
}

/// A sandbox that is being made, changed or removed as long as this is held.
struct Moving(Arc<Inner>, SandboxId);

impl Moving {
    fn new(inner: &Arc<Inner>, id: &SandboxId) -> Self {
        *lock(&inner.moving).entry(id.clone()).or_default() += 1;
        Self(inner.clone(), id.clone())
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut moving = lock(&self.0.moving);
        if let Some(count) = moving.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                moving.remove(&self.1);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics leaves half a change behind a lock here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(NetworkError::Stopped))
}

impl NodeNetwork {
    /// Takes over the network of the calling thread's network namespace: finds what an earlier process made, removes
    /// what is left over of unfinished work, makes the default bridge. Blocks for a few milliseconds.
    ///
    /// A `place` without a node means that it is not known yet whether the node is in a cluster: what an earlier process
    /// was told goes on until [`NodeNetwork::enter`] or [`NodeNetwork::leave`].
    ///
    /// # Errors
    /// [`NetworkError::Config`] for settings that cannot be, [`NetworkError::Address`] when a subnet of this host
    /// overlaps ours, and those of the kernel.
    pub fn start(config: Config, place: Place, names: Arc<dyn Names>) -> Result<Self, NetworkError> {
        config.validate()?;
        place.validate()?;
        let netns = Netns::current().step("open the node's network namespace")?;
        let inner = recover::recover(config, place, netns, names)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes the node's place in a cluster. Sandboxes and bridges stay. The same place again changes nothing; with another
    /// address, links between nodes are brought there.
    ///
    /// # Errors
    /// [`NetworkError::Config`] for a data path that cannot be, and those of the kernel.
    pub async fn enter(&self, node: NodeId, data_path: Vec<IpAddr>) -> Result<(), NetworkError> {
        let place = Place { node: Some(node), data_path };
        place.validate()?;
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.move_to(place).await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// Leaves the cluster: its networks, names and ports are forgotten, local bridges go on.
    ///
    /// # Errors
    /// The first step that failed; the others were tried as well.
    pub async fn leave(&self) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.leave().await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// What the managers told last.
    pub fn view(&self) -> Arc<NetworkView> {
        self.inner.state().view.clone()
    }

    /// Brings the node to what the managers want: `view` is all of it. Until it tells of this node itself there is nothing
    /// to be done. Repeating it is harmless and restores rules that others removed.
    ///
    /// # Errors
    /// The first step that failed; the others were tried as well.
    pub async fn apply(&self, view: Arc<NetworkView>) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.apply(view).await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// Makes a sandbox, or finds the one that was made for the same specification. Waits up to 5 seconds for the
    /// managers to tell of its networks.
    ///
    /// # Errors
    /// [`NetworkError::UnknownNetwork`] and [`NetworkError::NoIndex`] after that time, [`NetworkError::Differs`] for an
    /// id in use, and what keeps addresses, ports or links from being made; then nothing is left of it.
    ///
    /// # Cancel safety
    /// The work goes on; asking again for the same id waits for it.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, NetworkError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.create(spec).await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// Removes a sandbox and all it had. One that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses; asking again goes on with the rest.
    ///
    /// # Cancel safety
    /// The work goes on.
    pub async fn delete_sandbox(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        tokio::spawn(async move { inner.delete(&id).await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// Gives a sandbox that is there other networks or other names on them. Links that stay are not touched, and their
    /// connections go on.
    ///
    /// # Errors
    /// [`NetworkError::UnknownSandbox`], [`NetworkError::Differs`] when anything but networks and names is other, and what
    /// keeps links from being made; then the sandbox has the networks that both have in common.
    ///
    /// # Cancel safety
    /// The work goes on.
    pub async fn reshape_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, NetworkError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.reshape(spec).await }).await.unwrap_or(Err(NetworkError::Stopped))
    }

    /// The sandboxes that are there, in the order of their ids.
    pub async fn sandboxes(&self) -> Vec<Sandbox> {
        let live = self.inner.live_cells();
        let mut found = Vec::new();
        for (id, cell) in live {
            // Waits for one that is being made.
            if cell.lock().await.is_some()
                && let Some(record) = self.inner.state().records.get(&id)
            {
                found.push(record.sandbox(&self.inner.config));
            }
        }
        found
    }

    /// Makes a local bridge.
    ///
    /// # Errors
    /// [`NetworkError::Bridge`] when the name is taken, [`NetworkError::Address`] when the subnet overlaps another.
    pub async fn create_bridge(&self, spec: BridgeSpec) -> Result<Bridge, NetworkError> {
        let inner = self.inner.clone();
        let bridge = blocking(move || inner.create_bridge(spec)).await?;
        self.inner.publish_zones().await;
        Ok(bridge)
    }

    /// Removes a local bridge. One that is not there is no error.
    ///
    /// # Errors
    /// [`NetworkError::Bridge`] for the default one, and while sandboxes are on it.
    pub async fn remove_bridge(&self, name: &str) -> Result<(), NetworkError> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || inner.remove_bridge(&name)).await?;
        self.inner.publish_zones().await;
        Ok(())
    }

    /// The local bridges, the default one included.
    pub fn bridges(&self) -> Vec<Bridge> {
        self.inner.state().bridges.values().cloned().collect()
    }

    /// Brings back, until `stop`, what somebody else takes away: rules, links, addresses of links, forwarding entries. It
    /// hears of each change from the kernel and looks twice a second; without changes that costs one system call per namespace.
    pub async fn watch(&self, stop: CancellationToken) {
        watch::run(&self.inner, stop).await;
    }

    /// Removes everything that this layer made: sandboxes, switches, links, rules, records. For a node that leaves.
    ///
    /// # Errors
    /// The first step that failed; the others were tried as well.
    pub async fn clear(&self) -> Result<(), NetworkError> {
        let ids: Vec<SandboxId> = self.inner.state().records.keys().cloned().collect();
        let (mut result, mut removing) = (Ok(()), JoinSet::new());
        for id in ids {
            if removing.len() == REMOVED_AT_ONCE
                && let Some(removed) = removing.join_next().await
            {
                result = result.and(removed.unwrap_or(Err(NetworkError::Stopped)));
            }
            let inner = self.inner.clone();
            removing.spawn(async move { inner.delete(&id).await });
        }
        while let Some(removed) = removing.join_next().await {
            result = result.and(removed.unwrap_or(Err(NetworkError::Stopped)));
        }
        result = result.and(self.inner.clear_tunnel().await);
        let inner = self.inner.clone();
        result.and(blocking(move || inner.clear()).await)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn is_moving(&self, id: &SandboxId) -> bool {
        lock(&self.moving).contains_key(id)
    }

    /// Number of the view that counts: a later one is higher.
    fn view_number(&self) -> u64 {
        *self.changed.borrow()
    }

    fn live_cells(&self) -> Vec<(SandboxId, LiveCell)> {
        lock(&self.live).iter().map(|(id, cell)| (id.clone(), cell.clone())).collect()
    }

    fn live_cell(&self, id: &SandboxId) -> LiveCell {
        lock(&self.live).entry(id.clone()).or_default().clone()
    }

    fn switch(&self, network: NetworkId) -> SwitchCell {
        lock(&self.switches).entry(network).or_default().clone()
    }

    fn bridge(&self, name: &str) -> Result<Bridge, NetworkError> {
        let found = self.state().bridges.get(name).cloned();
        found.ok_or_else(|| NetworkError::UnknownBridge { name: name.to_owned() })
    }

    fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    fn record_path(&self, id: &SandboxId) -> std::path::PathBuf {
        self.config.sandbox_dir().join(format!("{id}.record"))
    }
}
