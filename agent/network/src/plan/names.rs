//! Names: what each network's zone answers.
//!
//! Services, tasks and sandboxes of this node give names. Several may give the same one, so a [`Book`] counts who gives what
//! and goes from view to view at the cost of what differs. All zones of a view are those of a book that begins with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::model::view::{EndpointView, NetworkView, ServiceView};

use self::given::GivenNames;
use self::givers::Name;
use super::change::{Backends, Change};
use crate::dns::patch::{ZonePatch, ZonesPatch};
use crate::dns::zone::{ZoneKey, Zones};
use crate::spec::SandboxId;

mod given;
mod givers;

/// A sandbox of this node as far as names are concerned, on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalName {
    /// The zone.
    pub zone: ZoneKey,
    /// Its names there.
    pub names: Vec<String>,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
}

/// What names follow from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// What the managers told.
    pub view: Arc<NetworkView>,
    /// Tasks by service in that view.
    pub backends: Backends,
    /// Local bridges with names: all but the default one.
    pub bridges: BTreeSet<String>,
    /// Sandboxes of this node.
    pub local: BTreeMap<SandboxId, Vec<LocalName>>,
}

type Given = BTreeMap<ZoneKey, GivenNames>;

/// All zones, and who gives what is in them.
#[derive(Debug, Clone, Default)]
pub struct Book {
    sources: Sources,
    given: Given,
    zones: Zones,
}

impl Book {
    /// A book of these sources.
    pub fn of(sources: Sources) -> Self {
        let mut book = Self::default();
        book.follow(sources);
        book
    }

    /// The zones.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The view that they are of.
    pub fn view(&self) -> &NetworkView {
        &self.sources.view
    }

    /// Goes on to other sources. Gives what differs in the zones.
    pub fn follow(&mut self, after: Sources) -> ZonesPatch {
        let before = std::mem::take(&mut self.sources);
        let mut patch = ZonesPatch::default();
        let mut new = self.follow_networks(&before, &after, &mut patch);
        // Zones that stay follow what differs; those that are new are filled from everything.
        if !self.given.is_empty() {
            follow(&mut self.given, &before, &after);
        }
        if !new.is_empty() {
            fill(&mut new, &after);
        }
        self.given.append(&mut new);
        for (key, given) in &mut self.given {
            if let Some((names, pointers)) = given.differing(self.zones.get(key)) {
                let network = given.network().to_owned();
                patch.0.insert(key.clone(), ZonePatch::There { network, names, pointers });
            }
        }
        patch.apply(&mut self.zones);
        self.sources = after;
        patch
    }

    /// Closes the zones of networks that are gone; gives those of new ones.
    fn follow_networks(&mut self, before: &Sources, after: &Sources, patch: &mut ZonesPatch) -> Given {
        if before.view.networks == after.view.networks && before.bridges == after.bridges {
            return Given::new();
        }
        let overlays =
            after.view.networks.values().map(|network| (ZoneKey::Overlay(network.id), network.name.as_str()));
        let bridges = after.bridges.iter().map(|name| (ZoneKey::Bridge(name.clone()), name.as_str()));
        let mut wanted: BTreeMap<ZoneKey, &str> = overlays.chain(bridges).collect();
        self.given.retain(|key, given| {
            let stays = wanted.get(key).is_some_and(|name| given.is_of(name));
            if stays {
                wanted.remove(key);
            } else {
                self.zones.remove(key);
                patch.0.insert(key.clone(), ZonePatch::Gone);
            }
            stays
        });
        wanted.into_iter().map(|(key, network)| (key, GivenNames::new(network))).collect()
    }
}

/// Takes what differs to zones.
fn follow(zones: &mut Given, before: &Sources, after: &Sources) {
    let change = Change::between(&before.view, &after.view);
    let mut changed = BTreeSet::new();
    for (old, now) in &change.endpoints {
        if let Some(task) = old {
            changed.insert(task.task);
            givers::task(task, service_of(&before.view, task), &mut |key, it| take(zones, key, it));
        }
        if let Some(task) = now {
            changed.insert(task.task);
            givers::task(task, service_of(&after.view, task), &mut |key, it| give(zones, key, it));
        }
    }
    for id in &change.services {
        let (old, now) = (before.view.services.get(id), after.view.services.get(id));
        if givers::give_the_same(old, now) {
            continue;
        }
        // What a task gives follows from its service, too.
        let tasks = after.backends.tasks(*id).filter(|task| !changed.contains(task));
        let tasks: Vec<&EndpointView> = tasks.filter_map(|task| after.view.endpoints.get(&task)).collect();
        if let Some(service) = old {
            givers::service(service, &mut |key, it| take(zones, key, it));
        }
        if let Some(service) = now {
            givers::service(service, &mut |key, it| give(zones, key, it));
        }
        for task in tasks {
            givers::task(task, old, &mut |key, it| take(zones, key, it));
            givers::task(task, now, &mut |key, it| give(zones, key, it));
        }
    }
    let sandboxes: BTreeSet<&SandboxId> = before.local.keys().chain(after.local.keys()).collect();
    for id in sandboxes {
        let (old, now) = (before.local.get(id), after.local.get(id));
        if old != now {
            old.into_iter().flatten().for_each(|local| givers::local(local, &mut |key, it| take(zones, key, it)));
            now.into_iter().flatten().for_each(|local| givers::local(local, &mut |key, it| give(zones, key, it)));
        }
    }
}

/// Takes everything to zones.
fn fill(zones: &mut Given, from: &Sources) {
    let mut give = |key: &ZoneKey, it: Name<'_>| give(zones, key, it);
    for task in from.view.endpoints.values() {
        givers::task(task, service_of(&from.view, task), &mut give);
    }
    for service in from.view.services.values() {
        givers::service(service, &mut give);
    }
    for local in from.local.values().flatten() {
        givers::local(local, &mut give);
    }
}

fn give(zones: &mut Given, key: &ZoneKey, it: Name<'_>) {
    if let Some(zone) = zones.get_mut(key) {
        zone.count(it, true);
    }
}

fn take(zones: &mut Given, key: &ZoneKey, it: Name<'_>) {
    if let Some(zone) = zones.get_mut(key) {
        zone.count(it, false);
    }
}

fn service_of<'a>(view: &'a NetworkView, task: &EndpointView) -> Option<&'a ServiceView> {
    view.services.get(&task.service?)
}

#[cfg(test)]
mod tests;
