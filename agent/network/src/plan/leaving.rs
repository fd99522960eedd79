//! Addresses that tasks leave, whose connections would otherwise hang until their time-out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_proto::model::view::{EndpointView, NetworkView};
use skep_proto::model::{NetworkId, TaskId};

use crate::config::twin;

/// Addresses of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// On overlays: sandboxes have connections to them.
    pub overlay: BTreeSet<(NetworkId, IpAddr)>,
    /// On task links and local bridges: only nodes have.
    pub node: BTreeSet<IpAddr>,
}

impl Places {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.overlay.is_empty() && self.node.is_empty()
    }

    /// Adds others.
    pub fn add(&mut self, mut others: Self) {
        self.overlay.append(&mut others.overlay);
        self.node.append(&mut others.node);
    }

    /// Leaves others out.
    #[must_use]
    pub fn without(mut self, others: &Self) -> Self {
        self.overlay.retain(|place| !others.overlay.contains(place));
        self.node.retain(|place| !others.node.contains(place));
        self
    }

    /// Those that are among others too.
    #[must_use]
    pub fn among(mut self, others: &Self) -> Self {
        self.overlay.retain(|place| others.overlay.contains(place));
        self.node.retain(|place| others.node.contains(place));
        self
    }

    /// Those on overlays of these networks.
    pub fn on(&self, networks: &BTreeSet<NetworkId>) -> BTreeSet<IpAddr> {
        self.overlay.iter().filter(|(network, _)| networks.contains(network)).map(|(_, address)| *address).collect()
    }

    /// All addresses.
    pub fn all(&self) -> BTreeSet<IpAddr> {
        self.overlay.iter().map(|(_, address)| *address).chain(self.node.iter().copied()).collect()
    }
}

/// Where tasks that get new connections are.
pub fn serving(view: &NetworkView) -> Places {
    let there = || view.endpoints.values().filter(|endpoint| endpoint.serving);
    Places { overlay: there().flat_map(overlay).collect(), node: there().flat_map(mesh).collect() }
}

/// Where tasks got new connections in `before` and get none in `after`.
pub fn drained(before: &NetworkView, after: &NetworkView) -> Places {
    serving(before).without(&serving(after))
}

/// Where tasks were known in `before` and are no longer in `after`. A place that another task has counts too.
pub fn vanished(before: &NetworkView, after: &NetworkView) -> Places {
    let overlay_of = |view: &NetworkView| -> BTreeMap<_, TaskId> {
        view.endpoints.values().flat_map(|e| overlay(e).map(|place| (place, e.task))).collect()
    };
    let mesh_of = |view: &NetworkView| -> BTreeMap<_, TaskId> {
        view.endpoints.values().flat_map(|e| mesh(e).map(|place| (place, e.task))).collect()
    };
    Places { overlay: gone(overlay_of(before), &overlay_of(after)), node: gone(mesh_of(before), &mesh_of(after)) }
}

fn gone<K: Ord>(before: BTreeMap<K, TaskId>, after: &BTreeMap<K, TaskId>) -> BTreeSet<K> {
    before.into_iter().filter(|(place, task)| after.get(place) != Some(task)).map(|(place, _)| place).collect()
}

fn overlay(endpoint: &EndpointView) -> impl Iterator<Item = (NetworkId, IpAddr)> + '_ {
    endpoint.addresses.iter().map(|attachment| (attachment.network, attachment.address.addr()))
}

/// On the task link, with the twin.
fn mesh(endpoint: &EndpointView) -> impl Iterator<Item = IpAddr> + use<> {
    let twin = match endpoint.mesh {
        Some(IpAddr::V4(mesh)) => Some(IpAddr::V6(twin(mesh))),
        Some(IpAddr::V6(_)) | None => None,
    };
    endpoint.mesh.into_iter().chain(twin)
}
