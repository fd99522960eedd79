//! Volumes that pin: a task that uses one runs where it is.
//!
//! Nodes tell which they have. Until a new one is told of, the task that was placed with it says where it will be; so
//! tasks that share a volume come together, and a member of a StatefulSet comes back to its own.

use std::collections::BTreeMap;

use skep_proto::model::TaskSpec;
use skep_proto::model::container::MountKind;
use skep_proto::template::task::{TaskContext, expand_text};

use crate::store::{NodeRef, State};

/// Where pinned volumes are.
#[derive(Debug, Default)]
pub(super) struct Pins(Option<BTreeMap<String, NodeRef>>);

/// Whether tasks of the spec use a volume that pins.
pub(super) fn pins(spec: &TaskSpec) -> bool {
    sources(spec).next().is_some()
}

fn sources(spec: &TaskSpec) -> impl Iterator<Item = &String> {
    let mounts = spec.containers.iter().flat_map(|container| &container.mounts);
    let pinned = mounts.filter(|mount| mount.kind == MountKind::Volume);
    pinned.filter(|mount| mount.volume.as_ref().is_some_and(|volume| volume.pinned)).map(|mount| &mount.source)
}

/// Names of the volumes that pin the task of a slot. One that depends on more than the slot pins nobody.
pub(super) fn names(spec: &TaskSpec, service: &str, slot: u32) -> Vec<String> {
    let context = TaskContext::of_slot(service, slot);
    let mut names: Vec<String> = sources(spec).filter_map(|source| expand_text(source, &context).ok()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Pins {
    /// The volume that decides where the task runs, and its node.
    pub(super) fn home(&mut self, state: &State, names: &[String]) -> Option<(String, NodeRef)> {
        let homes = self.homes(state);
        names.iter().find_map(|name| Some((name.clone(), *homes.get(name)?)))
    }

    /// A task with these volumes goes to a node.
    pub(super) fn settle(&mut self, state: &State, names: Vec<String>, node: NodeRef) {
        let homes = self.homes(state);
        for name in names {
            homes.entry(name).or_insert(node);
        }
    }

    fn homes(&mut self, state: &State) -> &mut BTreeMap<String, NodeRef> {
        self.0.get_or_insert_with(|| {
            let mut homes = BTreeMap::new();
            for (reference, node) in state.nodes().iter() {
                for name in &node.description.volumes {
                    homes.entry(name.clone()).or_insert(reference);
                }
            }
            for (reference, service) in state.services().iter().filter(|(_, service)| pins(&service.spec.task)) {
                for (_, row) in state.rows_of_service(reference).filter(|(_, row)| row.occupies_node()) {
                    let Some(node) = row.node else { continue };
                    for name in names(&service.spec.task, &service.spec.annotations.name, row.slot) {
                        homes.entry(name).or_insert(node);
                    }
                }
            }
            homes
        })
    }
}
