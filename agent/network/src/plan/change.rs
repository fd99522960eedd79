//! What differs between two views, found at the cost of what differs, and what tasks each service has.

use std::collections::{BTreeMap, BTreeSet};

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use skep_proto::model::view::{EndpointView, NetworkView};
use skep_proto::model::{NetworkId, ServiceId, TaskId};

/// What differs between two views.
#[derive(Debug, Clone, Default)]
pub struct Change<'a> {
    /// Nodes or networks: what everything else rests on.
    pub ground: bool,
    /// Services that are new, changed or gone, by themselves or by their tasks.
    pub services: BTreeSet<ServiceId>,
    /// Tasks before and after.
    pub endpoints: Vec<(Option<&'a EndpointView>, Option<&'a EndpointView>)>,
}

impl<'a> Change<'a> {
    /// From one view to another. It costs little when one was made from a copy of the other.
    pub fn between(before: &'a NetworkView, after: &'a NetworkView) -> Self {
        let mut change =
            Self { ground: before.peers != after.peers || before.networks != after.networks, ..Self::default() };
        for item in before.services.diff(&after.services) {
            let (DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. }) = item;
            change.services.insert(*id);
        }
        for item in before.endpoints.diff(&after.endpoints) {
            change.endpoints.push(match item {
                DiffItem::Add(_, new) => (None, Some(new)),
                DiffItem::Remove(_, old) => (Some(old), None),
                DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            });
        }
        let tasks = change.endpoints.iter().flat_map(|(old, new)| old.iter().chain(new));
        change.services.extend(tasks.filter_map(|task| task.service));
        change
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        !self.ground && self.services.is_empty() && self.endpoints.is_empty()
    }

    /// `before` without the tasks that are gone, and with those that drain as such: what is over, and nothing that is new.
    pub fn withdrawn(&self, before: &NetworkView) -> NetworkView {
        let mut left = before.clone();
        for (old, new) in &self.endpoints {
            let Some(old) = old else { continue };
            match new {
                Some(new) if new.addresses == old.addresses && new.service == old.service => {
                    left.endpoints
                        .insert(old.task, EndpointView { serving: old.serving && new.serving, ..(*old).clone() });
                }
                _ => drop(left.endpoints.remove(&old.task)),
            }
        }
        left
    }

    /// Networks that the services and tasks are on, before or after.
    pub fn networks(&self, before: &NetworkView, after: &NetworkView) -> BTreeSet<NetworkId> {
        let of_tasks = self.endpoints.iter().flat_map(|(old, new)| old.iter().chain(new));
        let of_tasks = of_tasks.flat_map(|task| task.addresses.iter().map(|address| address.network));
        let services = self.services.iter().flat_map(|id| [before.services.get(id), after.services.get(id)]).flatten();
        let of_services = services.flat_map(|service| {
            service.virtual_ips.iter().map(|vip| vip.network).chain(service.aliases.keys().copied())
        });
        of_tasks.chain(of_services).collect()
    }
}

/// Tasks by service. Looking through all tasks for each service takes the square of the cluster's size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backends(OrdMap<ServiceId, OrdSet<TaskId>>);

impl Backends {
    /// Those of a view.
    pub fn of(view: &NetworkView) -> Self {
        let mut all: BTreeMap<ServiceId, Vec<TaskId>> = BTreeMap::new();
        for endpoint in view.endpoints.values() {
            if let Some(service) = endpoint.service {
                all.entry(service).or_default().push(endpoint.task);
            }
        }
        Self(all.into_iter().map(|(service, tasks)| (service, OrdSet::from(tasks))).collect())
    }

    /// Goes on to another view.
    pub fn follow(&mut self, change: &Change<'_>) {
        for old in change.endpoints.iter().filter_map(|(old, _)| *old) {
            let Some(service) = old.service else { continue };
            if let Some(tasks) = self.0.get_mut(&service) {
                tasks.remove(&old.task);
                if tasks.is_empty() {
                    self.0.remove(&service);
                }
            }
        }
        for new in change.endpoints.iter().filter_map(|(_, new)| *new) {
            if let Some(service) = new.service {
                self.0.entry(service).or_default().insert(new.task);
            }
        }
    }

    /// All tasks of a service.
    pub fn tasks(&self, service: ServiceId) -> impl Iterator<Item = TaskId> {
        self.0.get(&service).into_iter().flatten().copied()
    }

    /// Tasks of a service that get new connections, in a view that this follows.
    pub fn serving<'a>(&'a self, view: &'a NetworkView, service: ServiceId) -> impl Iterator<Item = &'a EndpointView> {
        let tasks = self.0.get(&service).into_iter().flatten();
        tasks.filter_map(|task| view.endpoints.get(task)).filter(|endpoint| endpoint.serving)
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::model::NodeId;

    use super::*;

    fn task(id: u128, serving: bool) -> EndpointView {
        let name = format!("web.{id}");
        EndpointView {
            task: TaskId(id),
            service: None,
            node: NodeId(1),
            name,
            addresses: Vec::new(),
            mesh: None,
            serving,
        }
    }

    fn view(tasks: impl IntoIterator<Item = EndpointView>) -> NetworkView {
        NetworkView { endpoints: tasks.into_iter().map(|task| (task.task, task)).collect(), ..NetworkView::default() }
    }

    #[test]
    fn what_is_over_is_withdrawn_and_nothing_new_is_there_yet() {
        let before = view([task(1, true), task(2, true), task(3, true), task(4, false)]);
        let moved = EndpointView { service: Some(ServiceId(9)), ..task(3, true) };
        let after = view([task(2, false), moved, task(4, true), task(5, true)]);
        let left = Change::between(&before, &after).withdrawn(&before);
        assert_eq!(left, view([task(2, false), task(4, false)]));
    }
}
