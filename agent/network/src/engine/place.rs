//! Entering and leaving a cluster. What is on the node stays; what the cluster told is forgotten or brought elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::model::view::NetworkView;

use super::state::Remembered;
use super::{Inner, NodeNetwork, SwitchCell, blocking, lock};
use crate::config::Place;
use crate::error::{NetworkError, Step};
use crate::netlink::Rtnl;

impl NodeNetwork {
    /// Addresses of this node on the underlay that the other nodes should be told: those of its place, and the first IPv6
    /// address of the same link. By it they know that a client of theirs is a node.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn announced(&self) -> Result<Vec<IpAddr>, NetworkError> {
        let mut told = self.inner.state().place.data_path.clone();
        let mut node = Rtnl::open(&self.inner.netns).step("open rtnetlink")?;
        let all = node.addresses().step("read addresses")?;
        let link = all.iter().find(|(_, net)| told.contains(&net.addr())).map(|(link, _)| *link);
        let of_link = all.iter().filter(|(index, net)| Some(*index) == link && net.addr().is_ipv6());
        if !told.iter().any(IpAddr::is_ipv6) {
            told.extend(of_link.map(|(_, net)| net.addr()).next());
        }
        Ok(told)
    }
}

impl Inner {
    pub(super) async fn move_to(self: Arc<Self>, place: Place) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        let (before, underlay) = {
            let mut state = self.state();
            // Nothing was remembered of a node that was in no cluster.
            let underlay = state.remembered.underlay;
            (std::mem::replace(&mut state.place, place.clone()), underlay)
        };
        let other_cluster = before.node.is_some_and(|node| place.node != Some(node));
        let moved = underlay.preferred().is_some() && underlay != place.underlay();
        if !other_cluster && !moved {
            return Ok(());
        }
        let forgotten = match other_cluster {
            true => self.bring(Remembered::default(), Arc::default()).await,
            false => Ok(()),
        };
        let inner = self.clone();
        let moved = blocking(move || inner.speak_from_here()).await;
        let (index, view) = {
            let state = self.state();
            (state.remembered.index, state.view.clone())
        };
        // Not before the managers were heard: the link would lose the nodes that it knows.
        let tunnel = match index.filter(|_| !view.peers.is_empty()) {
            Some(index) => self.sync_tunnel(index, &view).await,
            None => Ok(()),
        };
        self.or_behind(forgotten.and(moved).and(tunnel))
    }

    pub(super) async fn leave(self: Arc<Self>) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        {
            let mut state = self.state();
            if state.place.node.take().is_none() && state.remembered == Remembered::default() {
                return Ok(());
            }
        }
        self.bring(Remembered::default(), Arc::new(NetworkView::default())).await
    }

    /// The links of networks that are not encrypted spoke from an address that is no longer ours. All others speak from
    /// WireGuard's, which stays; where that listens is brought there with the managers' next word.
    fn speak_from_here(&self) -> Result<(), NetworkError> {
        let (local, remembered) = {
            let mut state = self.state();
            state.remembered.underlay = state.place.underlay();
            (state.place.underlay().preferred(), state.remembered.clone())
        };
        let mut result = remembered.write(&self.config.state_dir.join("node.record"));
        result = result.and(self.sync_node());
        let Some(local) = local else { return result };
        let cells: Vec<SwitchCell> = lock(&self.switches).values().cloned().collect();
        for cell in cells {
            if let Some(switch) = lock(&cell).as_mut() {
                result = result.and(switch.speak_from(local));
            }
        }
        result
    }
}
