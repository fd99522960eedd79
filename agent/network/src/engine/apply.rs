//! A view of the managers, brought to the node, its switches, its sandboxes and the name server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_proto::model::NetworkId;
use skep_proto::model::service::Protocol;
use skep_proto::model::view::NetworkView;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use super::cuts::Due;
use super::node::Own;
use super::sandbox::Live;
use super::state::{Bridge, Remembered, State};
use super::{Inner, LiveCell, SwitchCell, blocking, lock, node, sysctl};
use crate::error::{NetworkError, Step};
use crate::netlink::Rtnl;
use crate::plan;
use crate::plan::change::{Backends, Change};
use crate::plan::leaving::Places;
use crate::plan::vip::Changed;
use crate::spec::SandboxId;

/// Sandboxes that are changed at once.
const AT_ONCE: usize = 4;

impl Inner {
    pub(super) async fn apply(self: Arc<Self>, told: Arc<NetworkView>) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        let view = self.see(told);
        let (before, place, known, mut backends) = {
            let state = self.state();
            let known = (state.remembered.index, state.remembered.underlay);
            (state.view.clone(), state.place.clone(), known, state.backends.clone())
        };
        let Some(own) = place.node.and_then(|node| view.peers.get(&node)) else { return Ok(()) };
        let change = Change::between(&before, &view);
        // The same view again is for what others may have changed, and one after a failure for what was left undone.
        let is_step = !change.ground
            && !change.is_empty()
            && !self.behind.load(Ordering::Relaxed)
            && known == (Some(own.index), place.underlay());
        let result = if is_step {
            backends.follow(&change);
            self.step(&before, &view, (backends, &change)).await
        } else {
            let ingress = self.state().remembered.ingress.clone();
            let remembered = Remembered {
                index: Some(own.index),
                underlay: place.underlay(),
                peers: plan::node::peers(&view, place.node),
                mesh: plan::encryption::Mesh::of(&view, self.config.vxlan_port),
                ingress: plan::ingress::ingress(&view, &Backends::of(&view), &ingress),
                ipv4_only: plan::node::ipv4_only(&view),
            };
            self.bring(remembered, view).await
        };
        self.behind.store(result.is_err(), Ordering::Relaxed);
        result
    }

    /// Goes on to a view in which some tasks and services are others, and does no more than follows from that. The caller
    /// holds `applying`.
    async fn step(
        self: &Arc<Self>,
        before: &Arc<NetworkView>,
        view: &Arc<NetworkView>,
        (backends, change): (Backends, &Change<'_>),
    ) -> Result<(), NetworkError> {
        let (mut vips, mut ingress) = {
            let state = self.state();
            (state.vips.clone(), state.remembered.ingress.clone())
        };
        let changed = Arc::new(plan::vip::follow(&mut vips, (before, view), &backends, change));
        let published = plan::ingress::follow(&mut ingress, (before, view), &backends, change);
        let opened = published.iter().filter(|(_, (before, after))| before.is_none() && after.is_some());
        let opened = udp_ports(opened.map(|(port, _)| port));
        let networks = change.networks(before, view);
        self.take(|state| {
            state.withdraw(change);
            (state.view, state.backends, state.vips) = (view.clone(), backends, vips);
            state.remembered.ingress = ingress;
        });
        // Beside the rest: a name server that does not answer holds up no rules.
        let withdrawn = self.withdraw_names();
        let (gone, inherited) = self.cut_inherited(change).await;
        let mut result = match published.is_empty() {
            true => Ok(()),
            false => {
                let inner = self.clone();
                blocking(move || inner.follow_node(&published)).await
            }
        };
        let (inner, views, on) = (self.clone(), (before.clone(), view.clone()), networks.clone());
        result = result.and(blocking(move || inner.follow_switches(&views.0, &views.1, &on)).await);
        result = result.and(self.follow_sandboxes(&networks, &changed).await);
        let _ = withdrawn.await;
        self.state().left = None;
        self.publish_zones().await;
        self.cut_later(Due { gone, opened, ..Due::default() }, plan::leaving::drained(change));
        result.and(inherited)
    }

    /// Brings sandboxes on these networks to what changed of virtual addresses, some at a time.
    async fn follow_sandboxes(
        self: &Arc<Self>,
        networks: &BTreeSet<NetworkId>,
        changed: &Arc<Changed>,
    ) -> Result<(), NetworkError> {
        let mut following = JoinSet::new();
        let mut result = Ok(());
        for (id, cell) in self.live_cells() {
            let record = self.state().records.get(&id).cloned();
            let Some(record) = record.filter(|record| !record.networks().is_disjoint(networks)) else { continue };
            if self.is_moving(&id) {
                self.follow_later(id, cell);
                continue;
            }
            let mut live = cell.lock_owned().await;
            if following.len() == AT_ONCE
                && let Some(followed) = following.join_next().await
            {
                result = result.and(followed.unwrap_or(Err(NetworkError::Stopped)));
            }
            let (inner, changed) = (self.clone(), changed.clone());
            following.spawn_blocking(move || match live.as_mut() {
                Some(there) => there.follow(&inner, &record, &changed),
                None => Ok(()),
            });
        }
        while let Some(followed) = following.join_next().await {
            result = result.and(followed.unwrap_or(Err(NetworkError::Stopped)));
        }
        result
    }

    /// Brings a sandbox to the newest view once whoever makes, changes or removes it is done: nobody else waits for that, least
    /// of all the names of tasks that are gone.
    fn follow_later(self: &Arc<Self>, id: SandboxId, cell: LiveCell) {
        if !lock(&self.late).insert(id.clone()) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            let mut live = cell.lock_owned().await;
            // Whoever comes from now on wants something newer than what is read below.
            lock(&inner.late).remove(&id);
            let served = match live.as_mut() {
                Some(there) => inner.serve_names(&id, there).await,
                None => Ok(()),
            };
            let followed = served.and(inner.refresh(&id, live).await);
            if let Err(error) = inner.or_behind(followed) {
                tracing::warn!(%error, sandbox.id = %id, "a sandbox is behind the managers' last word; tried again");
            }
            inner.forget_cell(&id);
        });
    }

    /// Has the next view do all anew after a failure.
    pub(super) fn or_behind<T>(&self, result: Result<T, NetworkError>) -> Result<T, NetworkError> {
        if result.is_err() {
            self.behind.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Makes a view the one that counts from now on, with what follows from it.
    fn take(&self, view: impl FnOnce(&mut State)) {
        view(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Brings the node's rules to published ports that changed.
    fn follow_node(&self, changed: &plan::ingress::Changed) -> Result<(), NetworkError> {
        let remembered = self.state().remembered.clone();
        remembered.write(&self.config.state_dir.join("node.record"))?;
        if lock(&self.node).follow(&self.config.names(), &self.netns, changed)? {
            return Ok(());
        }
        self.load_node_rules()
    }

    /// Cuts what was led to a task that left and must not go on to its heir: before the heir has connections that could be
    /// mistaken. Gives all places that were left.
    async fn cut_inherited(self: &Arc<Self>, change: &Change<'_>) -> (Places, Result<(), NetworkError>) {
        let gone = plan::leaving::vanished(change);
        let heirs = gone.clone().among(&plan::leaving::heirs(change));
        let cut = match heirs.is_empty() {
            true => Ok(()),
            false => self.cut_all(Due { gone: heirs, ..Due::default() }).await,
        };
        (gone, cut)
    }

    /// Brings everything to a view and what follows from it. The caller holds `applying`.
    pub(super) async fn bring(
        self: &Arc<Self>,
        remembered: Remembered,
        view: Arc<NetworkView>,
    ) -> Result<(), NetworkError> {
        self.note_ports(&view);
        let index = remembered.index;
        let (before, known, udp_before, keep) = {
            let state = self.state();
            // After a failure it may not have been written.
            let is_other = state.remembered != remembered || self.behind.load(Ordering::Relaxed);
            let keep = is_other.then(|| remembered.clone());
            (state.view.clone(), state.vips.clone(), udp_ports(state.remembered.ingress.keys()), keep)
        };
        let backends = Backends::of(&view);
        let vips = plan::vip::vips(&view, &backends, &known);
        let opened = udp_ports(remembered.ingress.keys()).difference(&udp_before).copied().collect();
        let change = Change::between(&before, &view);
        self.take(|state| {
            state.withdraw(&change);
            (state.view, state.backends, state.vips) = (view.clone(), backends, vips);
            state.remembered = remembered;
        });
        let withdrawn = self.withdraw_names();
        let (gone, inherited) = self.cut_inherited(&change).await;
        let inner = self.clone();
        let node = blocking(move || {
            if let Some(remembered) = keep {
                remembered.write(&inner.config.state_dir.join("node.record"))?;
            }
            inner.sync_node()
        })
        .await;
        // After the rules that keep its traffic on it.
        let tunnel = match index {
            Some(index) => self.sync_tunnel(index, &view).await,
            None => self.clear_tunnel().await,
        };
        let inner = self.clone();
        let switches = blocking(move || inner.sync_switches()).await;
        let mut names = self.forget_unknown_names().await;
        let mut sandboxes = Ok(());
        for (id, cell) in self.live_cells() {
            if self.is_moving(&id) {
                self.follow_later(id, cell);
                continue;
            }
            let mut live = cell.lock_owned().await;
            // A name server that does not answer is not waited for again and again.
            if names.is_ok()
                && let Some(there) = live.as_mut()
            {
                names = self.serve_names(&id, there).await;
            }
            sandboxes = sandboxes.and(self.refresh(&id, live).await);
        }
        let _ = withdrawn.await;
        self.state().left = None;
        self.publish_all_zones().await;
        self.cut_later(Due { gone, opened, ..Due::default() }, plan::leaving::drained(&change));
        node.and(tunnel).and(switches).and(sandboxes).and(inherited).and(names)
    }

    /// Has the name server forget the sandboxes that are no more, once after a start.
    pub(super) async fn forget_unknown_names(&self) -> Result<(), NetworkError> {
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
    pub(super) async fn serve_names(&self, id: &SandboxId, live: &mut Live) -> Result<(), NetworkError> {
        let Some(record) = self.state().records.get(id).cloned() else { return Ok(()) };
        if !live.names_confirmed {
            let ports = self.names.put_sandbox(record.dns(&self.config)).await;
            live.dns = ports.map_err(|source| NetworkError::Names { id: id.to_string(), source })?;
            live.names_confirmed = true;
        }
        Ok(())
    }

    /// Brings one sandbox to what the managers want.
    pub(super) async fn refresh(
        self: &Arc<Self>,
        id: &SandboxId,
        mut live: OwnedMutexGuard<Option<Live>>,
    ) -> Result<(), NetworkError> {
        let record = self.state().records.get(id).cloned();
        let Some(record) = record else { return Ok(()) };
        let inner = self.clone();
        blocking(move || {
            let Some(there) = live.as_mut() else { return Ok(()) };
            there.load_rules(&inner, &record)?;
            inner.fit(there, &record)
        })
        .await
    }

    pub(super) fn sync_node(&self) -> Result<(), NetworkError> {
        let mut node = lock(&self.node);
        let ipv6 = sysctl::has_ipv6(&self.netns);
        let (index, underlay, facts, bridges) = {
            let mut state = self.state();
            state.ipv6 = ipv6;
            let bridges: Vec<Bridge> = state.bridges.values().map(|bridge| state.with_twin(bridge)).collect();
            let underlay = state.place.underlay().preferred();
            (state.remembered.index, underlay, state.facts(&self.config), bridges)
        };
        sysctl::write(&self.netns, &sysctl::NODE).step("let the node forward packets")?;
        if ipv6 && (index.is_some() || bridges.iter().any(|bridge| bridge.ipv6.is_some())) {
            sysctl::forward6(&self.netns).step("let the node forward packets of IPv6")?;
        }
        let mtu = node::underlay_mtu(underlay, &mut Rtnl::open(&self.netns).step("open rtnetlink")?)?;
        self.mtu.store(mtu, Ordering::Relaxed);
        for bridge in bridges {
            let attached = self.state().neighbours_on(&bridge.name);
            node::ensure_bridge(&self.config, &self.netns, &bridge, mtu, &attached)?;
        }
        let own = match index {
            Some(index) => Some(Own { index, path: self.mesh_path(index, mtu)?, ipv6 }),
            None => None,
        };
        node.sync(&self.config, &self.netns, own, &facts)
    }

    pub(super) fn load_node_rules(&self) -> Result<(), NetworkError> {
        let mut node = lock(&self.node);
        // Read under the lock: whoever comes later has seen more.
        let facts = self.state().facts(&self.config);
        node.load_rules(&self.netns, &facts)
    }

    pub(super) fn sync_switches(&self) -> Result<(), NetworkError> {
        let cells: Vec<(NetworkId, SwitchCell)> =
            lock(&self.switches).iter().map(|(id, cell)| (*id, cell.clone())).collect();
        let mut result = Ok(());
        for (network, cell) in cells {
            let mut switch = lock(&cell);
            let (view, node) = {
                let state = self.state();
                (state.view.clone(), state.place.node)
            };
            if let Some(switch) = switch.as_mut() {
                result = result.and(self.sync_path(network, switch, &view));
                result = result.and(switch.sync(&view, node));
            }
        }
        result
    }

    fn follow_switches(
        &self,
        before: &NetworkView,
        view: &NetworkView,
        networks: &BTreeSet<NetworkId>,
    ) -> Result<(), NetworkError> {
        let change = Change::between(before, view);
        let mut result = Ok(());
        for network in networks {
            let Some(cell) = lock(&self.switches).get(network).cloned() else { continue };
            let mut switch = lock(&cell);
            let node = self.state().place.node;
            if let Some(switch) = switch.as_mut() {
                result = result.and(switch.follow(&change, view, node));
            }
        }
        result
    }
}

/// Those of UDP.
fn udp_ports<'a>(ports: impl Iterator<Item = &'a plan::ingress::Port>) -> BTreeSet<u16> {
    ports.filter(|(protocol, _)| *protocol == Protocol::Udp).map(|(_, port)| *port).collect()
}
