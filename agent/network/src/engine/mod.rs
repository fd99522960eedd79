//! The shells: what the planners want, done in the kernel.
//!
//! No lock is held over kernel work of several sandboxes: each sandbox and each switch has its own, and the
//! bookkeeping in [`state::State`] is locked for moments only. Kernel work runs on threads that may block, each in the
//! namespace that it names; the process's own namespace is never changed.

mod conntrack;
mod node;
mod ports;
mod recover;
mod sandbox;
mod state;
mod switch;
mod sysctl;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use skep_proto::model::NetworkId;
use skep_proto::model::view::NetworkView;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};

use self::node::Node;
use self::sandbox::Live;
pub use self::state::Bridge;
use self::state::{OnDisk, Record, Remembered, State};
use self::switch::Switch;
use crate::config::Config;
use crate::dns::zone::Zones;
use crate::error::{NetworkError, Step};
use crate::names::Names;
use crate::netlink::Rtnl;
use crate::plan;
use crate::record;
use crate::spec::{DEFAULT_BRIDGE, Sandbox, SandboxId, SandboxSpec};
use crate::sys::netns::Netns;

/// How long a new sandbox waits for the managers to tell of its networks.
const NETWORK_WAIT: Duration = Duration::from_secs(5);

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
    /// Raised after each change of the view, for those who wait for their network.
    changed: watch::Sender<u64>,
    /// MTU of the data path's link in bytes, as of the last look.
    mtu: AtomicU32,
    /// One view at a time.
    applying: AsyncMutex<()>,
    /// Whether the name server was asked for sandboxes that are no more.
    names_checked: AtomicBool,
    /// What the name server was told last.
    zones: AsyncMutex<Option<Zones>>,
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
    /// # Errors
    /// [`NetworkError::Config`] for settings that cannot be, [`NetworkError::Address`] when a subnet of this host
    /// overlaps ours, and those of the kernel.
    pub fn start(config: Config, names: Arc<dyn Names>) -> Result<Self, NetworkError> {
        config.validate()?;
        let netns = Netns::current().step("open the node's network namespace")?;
        let inner = recover::recover(config, netns, names)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings the node to what the managers want: `view` is all of it, and `index` is this node's. Repeating it is
    /// harmless and restores rules that others removed.
    ///
    /// # Errors
    /// The first step that failed; the others were tried as well.
    pub async fn apply(&self, index: u16, view: Arc<NetworkView>) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.apply(index, view).await }).await.unwrap_or(Err(NetworkError::Stopped))
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

    /// Makes a local bridge; `subnet` is chosen if not given.
    ///
    /// # Errors
    /// [`NetworkError::Bridge`] when the name is taken, [`NetworkError::Address`] when the subnet overlaps another.
    pub async fn create_bridge(
        &self,
        name: &str,
        subnet: Option<Ipv4Net>,
        internal: bool,
    ) -> Result<Bridge, NetworkError> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        let bridge = blocking(move || inner.create_bridge(&name, subnet, internal)).await?;
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

    /// Removes everything that this layer made: sandboxes, switches, links, rules, records. For a node that leaves.
    ///
    /// # Errors
    /// The first step that failed; the others were tried as well.
    pub async fn clear(&self) -> Result<(), NetworkError> {
        let ids: Vec<SandboxId> = self.inner.state().records.keys().cloned().collect();
        let mut result = Ok(());
        for id in ids {
            result = result.and(self.delete_sandbox(&id).await);
        }
        let inner = self.inner.clone();
        result.and(blocking(move || inner.clear()).await)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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

    async fn apply(self: Arc<Self>, index: u16, view: Arc<NetworkView>) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        let remembered = Remembered {
            index: Some(index),
            underlay: self.config.underlay(),
            peers: plan::node::peers(&view, self.config.node),
            ingress: plan::node::ingress(&view),
        };
        let (before, keep) = {
            let mut state = self.state();
            let keep = (state.remembered != remembered).then(|| remembered.clone());
            state.remembered = remembered;
            (std::mem::replace(&mut state.view, view.clone()), keep)
        };
        self.changed.send_modify(|count| *count += 1);
        let inner = self.clone();
        let node = blocking(move || {
            if let Some(remembered) = keep {
                record::write(&inner.config.state_dir.join("node.record"), &remembered)?;
            }
            inner.sync_node()
        })
        .await;
        let (inner, gone) = (self.clone(), plan::overlay::vanished(&before, &view));
        let switches = blocking(move || inner.sync_switches()).await;
        let mut names = self.forget_unknown_names().await;
        let mut sandboxes = Ok(());
        for (id, cell) in self.live_cells() {
            let mut live = cell.lock_owned().await;
            // A name server that does not answer is not waited for again and again.
            if names.is_ok()
                && let Some(there) = live.as_mut()
            {
                names = self.serve_names(&id, there).await;
            }
            sandboxes = sandboxes.and(self.refresh(&id, live, &gone).await);
        }
        let inner = self.clone();
        let cut = blocking(move || {
            conntrack::cut(&inner.netns, &gone).step("cut connections to tasks that are gone").map(drop)
        })
        .await;
        self.publish_zones().await;
        node.and(switches).and(sandboxes).and(cut).and(names)
    }

    /// Has the name server forget the sandboxes that are no more, once after a start.
    async fn forget_unknown_names(&self) -> Result<(), NetworkError> {
        if self.names_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let failed = |id: &str| {
            let id = id.to_owned();
            move |source| NetworkError::Names { id, source }
        };
        for id in self.names.sandboxes().await.map_err(failed("of an earlier process"))? {
            if !self.state().records.contains_key(&id) {
                self.names.remove_sandbox(&id).await.map_err(failed(id.as_str()))?;
            }
        }
        self.names_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure, once after a start, that the name server serves a sandbox.
    async fn serve_names(&self, id: &SandboxId, live: &mut Live) -> Result<(), NetworkError> {
        let Some(record) = self.state().records.get(id).cloned() else { return Ok(()) };
        if !live.names_confirmed {
            let ports = self.names.put_sandbox(record.dns(&self.config)).await;
            live.dns = ports.map_err(|source| NetworkError::Names { id: id.to_string(), source })?;
            live.names_confirmed = true;
        }
        Ok(())
    }

    /// Brings one sandbox to what the managers want.
    async fn refresh(
        self: &Arc<Self>,
        id: &SandboxId,
        mut live: OwnedMutexGuard<Option<Live>>,
        gone: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let record = self.state().records.get(id).cloned();
        let Some(record) = record else { return Ok(()) };
        let (inner, gone) = (self.clone(), gone.clone());
        blocking(move || {
            let Some(there) = live.as_mut() else { return Ok(()) };
            there.load_rules(&inner, &record)?;
            conntrack::cut(&there.netns, &gone).step("cut connections to tasks that are gone").map(drop)
        })
        .await
    }

    async fn create(self: Arc<Self>, spec: SandboxSpec) -> Result<Sandbox, NetworkError> {
        let id = spec.id.clone();
        let live = self.live_cell(&id).lock_owned().await;
        let result = self.create_in(spec, live).await;
        if result.is_err() {
            self.forget_cell(&id);
        }
        self.publish_zones().await;
        result
    }

    /// Makes a sandbox whose cell is locked.
    async fn create_in(
        self: &Arc<Self>,
        spec: SandboxSpec,
        mut live: OwnedMutexGuard<Option<Live>>,
    ) -> Result<Sandbox, NetworkError> {
        let id = spec.id.clone();
        let known = self.state().records.get(&id).cloned();
        if let (Some(record), true) = (&known, live.is_some()) {
            return match record.spec == spec {
                true => Ok(record.sandbox(&self.config)),
                false => Err(NetworkError::Differs { id: id.to_string() }),
            };
        }
        self.wait_for_networks(&spec).await?;
        // Of a creation that could not be taken back; making it again replaces it.
        self.state().records.remove(&id);
        let record = {
            let inner = self.clone();
            blocking(move || inner.reserve(spec)).await?
        };
        match self.clone().make(record.clone()).await {
            Ok(made) => {
                *live = Some(made);
                Ok(record.sandbox(&self.config))
            }
            Err(error) => {
                self.unmake(record).await;
                Err(error)
            }
        }
    }

    fn reserve(&self, spec: SandboxSpec) -> Result<Record, NetworkError> {
        // In the node's namespace, for the check whether a program of the node has a port.
        let checked = self.netns.enter(|| self.state().reserve(spec, &self.config, ports::is_free));
        checked.step("look for free ports")?
    }

    async fn make(self: Arc<Self>, record: Record) -> Result<Live, NetworkError> {
        let (inner, wanted) = (self.clone(), record.clone());
        let netns = blocking(move || sandbox::build(&inner, &wanted)).await?;
        let ports = self.names.put_sandbox(record.dns(&self.config)).await;
        let dns = ports.map_err(|source| NetworkError::Names { id: record.spec.id.to_string(), source })?;
        blocking(move || {
            let mut made = Live::new(netns, dns, true);
            made.load_rules(&self, &record)?;
            self.load_node_rules()?;
            record::write(&self.record_path(&record.spec.id), &OnDisk { record, dns })?;
            Ok(made)
        })
        .await
    }

    /// Takes back what a failed creation made.
    async fn unmake(self: &Arc<Self>, record: Record) {
        let inner = self.clone();
        let id = record.spec.id.clone();
        if let Err(error) = self.names.remove_sandbox(&id).await {
            tracing::debug!(%error, sandbox.id = %id, "the name server cannot forget a sandbox");
        }
        let undone = blocking(move || {
            let removed = sandbox::remove(&inner, &record);
            let deleted = record::delete(&inner.record_path(&record.spec.id));
            inner.state().records.remove(&record.spec.id);
            removed.and(deleted).and(inner.load_node_rules())
        })
        .await;
        if let Err(error) = undone {
            tracing::warn!(%error, sandbox.id = %id, "cannot take back a sandbox that could not be made");
        }
    }

    fn forget_cell(&self, id: &SandboxId) {
        let mut cells = lock(&self.live);
        let unused = |cell: &LiveCell| cell.try_lock().is_ok_and(|live| live.is_none());
        // Somebody who waits for the cell goes on with it.
        if cells.get(id).is_some_and(|cell| Arc::strong_count(cell) == 1 && unused(cell)) {
            cells.remove(id);
        }
    }

    async fn wait_for_networks(&self, spec: &SandboxSpec) -> Result<(), NetworkError> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                let ready = self.state().ready_for(spec, &self.config);
                if ready.is_ok() || changed.changed().await.is_err() {
                    return ready;
                }
            }
        };
        match tokio::time::timeout(NETWORK_WAIT, wait).await {
            Ok(ready) => ready,
            Err(_) => self.state().ready_for(spec, &self.config),
        }
    }

    async fn delete(self: Arc<Self>, id: &SandboxId) -> Result<(), NetworkError> {
        let cell = self.live_cell(id);
        let mut live = cell.lock_owned().await;
        let Some(record) = self.state().records.get(id).cloned() else {
            drop(live);
            self.forget_cell(id);
            return Ok(());
        };
        if let Err(error) = self.names.remove_sandbox(id).await {
            tracing::warn!(%error, sandbox.id = %id, "the name server cannot forget a sandbox");
        }
        let inner = self.clone();
        blocking(move || {
            // Its sockets would keep the namespace alive.
            *live = None;
            sandbox::remove(&inner, &record)?;
            record::delete(&inner.record_path(&record.spec.id))?;
            inner.state().records.remove(&record.spec.id);
            inner.load_node_rules()?;
            let addresses = record.task_address().into_iter().chain(record.links.iter().map(|l| l.address.addr()));
            conntrack::cut(&inner.netns, &addresses.collect()).step("cut connections to a sandbox").map(drop)
        })
        .await?;
        self.forget_cell(id);
        self.publish_zones().await;
        Ok(())
    }

    fn sync_node(&self) -> Result<(), NetworkError> {
        let mut node = lock(&self.node);
        let (index, facts, bridges) = {
            let state = self.state();
            let bridges: Vec<Bridge> = state.bridges.values().cloned().collect();
            (state.remembered.index, state.facts(&self.config), bridges)
        };
        sysctl::write(&self.netns, &sysctl::NODE).step("let the node forward packets")?;
        let mtu = node::underlay_mtu(&self.config, &mut Rtnl::open(&self.netns).step("open rtnetlink")?)?;
        self.mtu.store(mtu, Ordering::Relaxed);
        for bridge in bridges {
            node::ensure_bridge(&self.config, &self.netns, &bridge)?;
        }
        node.sync(&self.config, &self.netns, index, &facts)
    }

    fn load_node_rules(&self) -> Result<(), NetworkError> {
        let mut node = lock(&self.node);
        // Read under the lock: whoever comes later has seen more.
        let facts = self.state().facts(&self.config);
        node.load_rules(&self.netns, &facts)
    }

    fn sync_switches(&self) -> Result<(), NetworkError> {
        let cells: Vec<SwitchCell> = lock(&self.switches).values().cloned().collect();
        let mut result = Ok(());
        for cell in cells {
            let mut switch = lock(&cell);
            let view = self.state().view.clone();
            if let Some(switch) = switch.as_mut() {
                result = result.and(switch.sync(&view, self.config.node));
            }
        }
        result
    }

    /// Tells the name server the zones, if they changed. It is asked again at the next change when it does not answer.
    async fn publish_zones(&self) {
        let mut told = self.zones.lock().await;
        let zones = {
            let state = self.state();
            let bridges: Vec<String> = state.bridges.keys().filter(|b| *b != DEFAULT_BRIDGE).cloned().collect();
            plan::names::zones(&state.view, &bridges, &state.local_names())
        };
        if told.as_ref() == Some(&zones) {
            return;
        }
        match self.names.put_zones(zones.clone()).await {
            Ok(()) => *told = Some(zones),
            Err(error) => tracing::warn!(%error, "the name server cannot be told the names"),
        }
    }

    fn create_bridge(&self, name: &str, subnet: Option<Ipv4Net>, internal: bool) -> Result<Bridge, NetworkError> {
        let foreign = node::foreign_subnets(&self.config, &self.netns)?;
        let bridge = {
            let mut state = self.state();
            let refuse = |reason: String| NetworkError::Bridge { name: name.to_owned(), reason };
            if let Some(there) = state.bridges.get(name) {
                return Err(refuse(format!("it exists with subnet {}", there.subnet)));
            }
            let ours = state.bridges.values().map(|bridge| bridge.subnet);
            let overlays = state.view.networks.values().flat_map(|n| n.subnets.iter().map(|s| s.subnet));
            let overlays = overlays.filter_map(|net| if let ipnet::IpNet::V4(net) = net { Some(net) } else { None });
            let infra = if let ipnet::IpNet::V4(net) = self.config.infra { Some(net) } else { None };
            let mut taken: Vec<Ipv4Net> = foreign.iter().copied().chain(ours).chain(infra).collect();
            let subnet = match subnet {
                Some(subnet) if subnet.prefix_len() > 29 => {
                    return Err(refuse("its subnet is smaller than /29".into()));
                }
                Some(subnet) => {
                    node::refuse_overlap(subnet.trunc(), &taken)?;
                    subnet.trunc()
                }
                None => {
                    taken.extend(overlays);
                    free_subnet(&taken).ok_or_else(|| refuse("no subnet is left; ask for one".into()))?
                }
            };
            let used: BTreeSet<u32> = state.bridges.values().map(|bridge| bridge.number).collect();
            let number = (1..).find(|number| !used.contains(number)).expect("fewer bridges than numbers");
            let bridge = Bridge { name: name.to_owned(), number, subnet, internal };
            state.bridges.insert(name.to_owned(), bridge.clone());
            bridge
        };
        let made = node::ensure_bridge(&self.config, &self.netns, &bridge)
            .and_then(|()| self.write_bridges())
            .and_then(|()| self.load_node_rules());
        match made {
            Ok(()) => Ok(bridge),
            Err(error) => {
                self.state().bridges.remove(name);
                let undone = node::delete_bridge(&self.config, &self.netns, &bridge).and(self.write_bridges());
                if let Err(error) = undone {
                    tracing::warn!(%error, "cannot take back a bridge that could not be made");
                }
                Err(error)
            }
        }
    }

    fn remove_bridge(&self, name: &str) -> Result<(), NetworkError> {
        let refuse = |reason: &str| NetworkError::Bridge { name: name.to_owned(), reason: reason.to_owned() };
        if name == DEFAULT_BRIDGE {
            return Err(refuse("the default bridge cannot be removed"));
        }
        let bridge = {
            let mut state = self.state();
            let attached = |r: &Record| r.spec.bridges.iter().any(|b| b.bridge == name);
            if state.records.values().any(attached) {
                return Err(refuse("containers are on it; remove them first"));
            }
            match state.bridges.remove(name) {
                Some(bridge) => bridge,
                None => return Ok(()),
            }
        };
        self.load_node_rules()?;
        node::delete_bridge(&self.config, &self.netns, &bridge)?;
        self.write_bridges()
    }

    fn write_bridges(&self) -> Result<(), NetworkError> {
        let bridges: Vec<Bridge> = self.state().bridges.values().cloned().collect();
        record::write(&self.config.state_dir.join("bridges.record"), &bridges)
    }

    fn clear(&self) -> Result<(), NetworkError> {
        let bridges: Vec<Bridge> = std::mem::take(&mut self.state().bridges).into_values().collect();
        let mut result = lock(&self.node).clear(&self.config, &self.netns);
        for bridge in bridges {
            result = result.and(node::delete_bridge(&self.config, &self.netns, &bridge));
        }
        result.and(recover::forget(&self.config))
    }
}

/// The first of Docker's local subnets that overlaps nothing.
fn free_subnet(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let candidates = (18..=31).map(|second| Ipv4Net::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let more = (0..=240).step_by(16).map(|third| Ipv4Net::new(Ipv4Addr::new(192, 168, third, 0), 20));
    candidates.chain(more).flatten().find(|subnet| node::refuse_overlap(*subnet, taken).is_ok())
}
