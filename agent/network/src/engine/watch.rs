//! What others take away comes back: rules that somebody flushed, links that somebody deleted.
//!
//! An event says only which namespace to look at; looking is the same as after a start. Our own changes are heard, too, and
//! cost one look in vain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use ipnet::IpNet;
use skep_proto::model::NetworkId;
use tokio_util::sync::CancellationToken;

use super::node::{MAIN_TABLE, Node, index_of};
use super::sandbox::{self, Live};
use super::state::Record;
use super::switch::Switch;
use super::{Inner, SwitchCell, blocking, lock};
use crate::error::{NetworkError, Step};
use crate::netlink::{Link, Requests, Route, Rtnl, Via};
use crate::spec::{LinkKind, SandboxId, SandboxLink};
use crate::sys::notices::{Heard, Notices};

/// How often it is looked whether anything changed.
const LOOK: Duration = Duration::from_millis(500);

/// Where something changed.
#[derive(Debug, Default)]
struct Changed {
    node: bool,
    switches: BTreeSet<NetworkId>,
    sandboxes: BTreeSet<SandboxId>,
}

/// What the node's namespace holds.
#[derive(Debug)]
struct There {
    links: BTreeMap<String, Link>,
    addresses: BTreeSet<(u32, IpNet)>,
    routes: BTreeSet<Route>,
}

impl There {
    /// Whether the node's end of a task link has its addresses and routes.
    fn is_set_up(&self, index: u32, link: &SandboxLink) -> bool {
        let has_route = |address| self.routes.contains(&(IpNet::from(address), Via::Link(index), MAIN_TABLE));
        let has_address = |address| self.addresses.contains(&(index, IpNet::from(address)));
        link.addresses().all(has_route) && link.gateways().all(has_address)
    }
}

pub async fn run(inner: &Arc<Inner>, stop: CancellationToken) {
    let mut notices = Notices::default();
    // What was told last of what does not come back: not said twice a second.
    let mut told = String::new();
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = clock.tick() => {}
        }
        let heard = notices.changed(&inner.netns, true);
        let changed = inner.listen(heard, !told.is_empty());
        if !changed.node && changed.switches.is_empty() && changed.sandboxes.is_empty() {
            continue;
        }
        let restored = inner.restore(&changed).await;
        // What could not be brought back is looked at again, and so is everything else.
        let text = restored.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if let Err(error) = restored
            && text != told
        {
            tracing::warn!(%error, source = ?std::error::Error::source(&error),
                "something of the network was changed by others and is not back yet; tried again");
        }
        told = text;
    }
}

impl Inner {
    /// Where something changed since the last look; everywhere if `all`. What is being made or removed is left out, and
    /// looked at next time.
    fn listen(&self, heard: Heard, all: bool) -> Changed {
        let are_rules_ours = |mut node: MutexGuard<'_, Node>| node.is_last_change_ours(&self.netns);
        // Who changes them just now may not be the last who did.
        let rules = heard.rules && !self.node.try_lock().is_ok_and(are_rules_ours);
        let mut changed = Changed { node: heard.links || rules || all, ..Changed::default() };
        let cells: Vec<(NetworkId, SwitchCell)> =
            lock(&self.switches).iter().map(|(id, cell)| (*id, cell.clone())).collect();
        for (id, cell) in cells {
            if let Ok(mut switch) = cell.try_lock()
                && switch.as_mut().is_some_and(|switch| switch.is_changed() || all)
            {
                changed.switches.insert(id);
            }
        }
        for (id, cell) in self.live_cells() {
            if let Ok(mut live) = cell.try_lock()
                && live.as_mut().is_some_and(|live| live.is_changed() || all)
            {
                changed.sandboxes.insert(id);
            }
        }
        changed
    }

    /// Brings back what is missing where something changed.
    async fn restore(self: &Arc<Self>, changed: &Changed) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        let mut result = Ok(());
        if changed.node {
            lock(&self.node).distrust();
            let inner = self.clone();
            result = result.and(blocking(move || inner.sync_node()).await);
        }
        let (inner, switches) = (self.clone(), changed.switches.clone());
        result = result.and(blocking(move || inner.restore_switches(&switches)).await);
        if changed.node || !changed.switches.is_empty() {
            result = result.and(self.restore_links().await);
        }
        for (id, cell) in self.live_cells() {
            if !changed.sandboxes.contains(&id) {
                continue;
            }
            let Ok(live) = cell.try_lock_owned() else { continue };
            result = result.and(self.refresh(&id, live).await);
        }
        result
    }

    fn restore_switches(&self, changed: &BTreeSet<NetworkId>) -> Result<(), NetworkError> {
        let mut result = Ok(());
        for network in changed {
            let cell = self.switch(*network);
            let mut slot = lock(&cell);
            let Some(switch) = slot.as_mut() else { continue };
            if let Err(error) = switch.look() {
                tracing::warn!(%error, network.id = %network, "a switch is broken and is made again");
                // Its links in sandboxes go with it, and are made again as any that is missing.
                result = result.and(slot.take().map_or(Ok(()), Switch::remove));
                continue;
            }
            let (view, node) = {
                let state = self.state();
                (state.view.clone(), state.place.node)
            };
            // Until the managers are heard, what the kernel holds is all that is known.
            if view.networks.contains_key(network) {
                result = result.and(switch.sync(&view, node));
            }
        }
        result
    }

    /// Makes links of sandboxes again that are not there any more.
    async fn restore_links(self: &Arc<Self>) -> Result<(), NetworkError> {
        let inner = self.clone();
        let node_links = blocking(move || {
            let mut node = Rtnl::open(&inner.netns).step("open rtnetlink")?;
            let links = node.links().step("read links")?;
            Ok(There {
                links: links.into_iter().map(|link| (link.name.clone(), link)).collect(),
                addresses: node.addresses().step("read addresses")?.into_iter().collect(),
                routes: node.routes().step("read routes")?,
            })
        });
        let node_links = Arc::new(node_links.await?);
        let mut result = Ok(());
        for (id, cell) in self.live_cells() {
            // One that is being made or taken away is its maker's.
            let Ok(live) = cell.try_lock_owned() else { continue };
            let Some(record) = self.state().records.get(&id).cloned() else { continue };
            let (inner, node_links) = (self.clone(), node_links.clone());
            let restored = blocking(move || {
                let Some(there) = live.as_ref() else { return Ok(()) };
                inner.restore_links_of(there, &record, &node_links)
            });
            result = result.and(restored.await);
        }
        result
    }

    fn restore_links_of(&self, live: &Live, record: &Record, there: &There) -> Result<(), NetworkError> {
        let names = self.config.names();
        let node_links = &there.links;
        let mut missing: Vec<SandboxLink> = Vec::new();
        for link in &record.links {
            let is_there = match &link.kind {
                LinkKind::Overlay(network) => {
                    let cell = self.switch(*network);
                    let switch = lock(&cell);
                    switch.as_ref().is_some_and(|switch| switch.has(&record.spec.id))
                }
                LinkKind::Task => match node_links.get(&names.task_link(record.slot)) {
                    Some(ours) if ours.up => {
                        if !there.is_set_up(ours.index, link) {
                            let mut node = Rtnl::open(&self.netns).step("open rtnetlink")?;
                            sandbox::set_up_task_link(self, &mut node, &ours.name, link)?;
                        }
                        true
                    }
                    _ => false,
                },
                LinkKind::Bridge(bridge) => {
                    let there = node_links.get(&names.bridge_port(record.slot, link.number()));
                    let wanted = node_links.get(&names.bridge(self.bridge(bridge)?.number));
                    match (there, wanted) {
                        (Some(there), Some(wanted)) if there.bridge != Some(wanted.index) || !there.up => {
                            self.attach_again(there.index, &wanted.name)?;
                            true
                        }
                        (there, _) => there.is_some(),
                    }
                }
            };
            if !is_there {
                missing.push(link.clone());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        tracing::warn!(sandbox.id = %record.spec.id, links = missing.len(), "links of a sandbox were gone and are made again");
        // What is left of them, on either side.
        sandbox::remove_links(self, record, &missing)?;
        let mut inside = Rtnl::open(&live.netns).step("open rtnetlink")?;
        let mut leftovers = Requests::new();
        for link in &missing {
            leftovers.delete_link(&link.name);
        }
        inside.send(&leftovers).step("delete what is left of a link")?;
        sandbox::add_links(self, &live.netns, record, &missing)
    }

    /// A port whose bridge was made again, or that was set down.
    fn attach_again(&self, port: u32, bridge: &str) -> Result<(), NetworkError> {
        let mut node = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let bridge = index_of(&mut node, bridge)?;
        let hairpin = vec![netlink_packet_route::link::InfoBridgePort::HairpinMode(true)];
        let mut requests = Requests::new();
        requests.set_bridge(port, bridge).set_port(port, hairpin).set_up(port);
        node.send(&requests).step("attach a port to its bridge again")
    }
}
