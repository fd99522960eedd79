//! Addresses that tasks leave, whose connections would otherwise hang until their time-out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use skep_proto::model::NetworkId;
use skep_proto::model::view::{EndpointView, NetworkView};

use super::change::Change;
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

/// Which of these places tasks serve at.
pub fn serving(view: &NetworkView, at: &[&Places]) -> Places {
    let mut all = Places::default();
    for endpoint in view.endpoints.values().filter(|endpoint| endpoint.serving) {
        all.overlay.extend(overlay(endpoint).filter(|place| at.iter().any(|places| places.overlay.contains(place))));
        all.node.extend(mesh(endpoint).filter(|place| at.iter().any(|places| places.node.contains(place))));
    }
    all
}

/// Where the tasks that changed got new connections before and get none now.
pub fn drained(change: &Change<'_>) -> Places {
    let serves = |endpoint: &&&EndpointView| endpoint.serving;
    let before = change.endpoints.iter().filter_map(|(old, _)| old.as_ref()).filter(serves);
    let after: Vec<_> = change.endpoints.iter().filter_map(|(_, new)| new.as_ref()).filter(serves).collect();
    places(before).without(&places(after.iter().copied()))
}

/// Where tasks were known before and are no longer. A place that another task has counts too.
pub fn vanished(change: &Change<'_>) -> Places {
    let mut gone = Places::default();
    for (old, new) in &change.endpoints {
        let old = places(old.iter());
        gone.add(old.without(&places(new.iter())));
    }
    gone
}

/// Where tasks that are new or changed get connections: an address that was left can only be one of theirs now.
pub fn heirs(change: &Change<'_>) -> Places {
    places(change.endpoints.iter().filter_map(|(_, new)| new.as_ref()).filter(|endpoint| endpoint.serving))
}

fn places<'a>(endpoints: impl Iterator<Item = &'a &'a EndpointView> + Clone) -> Places {
    Places {
        overlay: endpoints.clone().flat_map(|e| overlay(e)).collect(),
        node: endpoints.flat_map(|e| mesh(e)).collect(),
    }
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
