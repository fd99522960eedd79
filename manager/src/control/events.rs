//! Events of the cluster's objects: the differences between two versions of the state, in Docker's words.
//!
//! Every manager finds them in its own replica, so each tells of every object whoever changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_api::ports::events::{Event, EventKind, EventLog};
use skep_proto::model::service::UpdateState;
use skep_proto::model::{Availability, Network, Node, NodeRole, NodeState, Service, ServiceMode};
use tokio_util::sync::CancellationToken;

use crate::store::{Changes, Kind, Object, State, Store, Table};

/// Records events until `stop`.
pub async fn record(store: Arc<Store>, log: Arc<EventLog>, stop: CancellationToken) {
    let (mut seen, mut watch) = store.view_and_watch();
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = watch.next() => next,
        };
        let Some((state, changes)) = next else { return };
        between(&seen, &state, &changes).into_iter().for_each(|event| log.publish(event));
        seen = state;
    }
}

/// What happened between two versions, by kind and id. A manager that was so far behind that it does not know what
/// changed tells nothing: it was not there.
fn between(old: &State, new: &State, changes: &Changes) -> Vec<Event> {
    let Changes::Some(changes) = changes else { return Vec::new() };
    let touched: BTreeSet<(Kind, u128)> =
        changes.iter().flat_map(|touched| &touched.objects).map(|object| (object.kind, object.id)).collect();
    touched.into_iter().filter_map(|(kind, id)| of_object(old, new, kind, id)).collect()
}

fn of_object(old: &State, new: &State, kind: Kind, id: u128) -> Option<Event> {
    let found = match kind {
        Kind::Service => {
            let of = |table: &Table<Service>| table.by_raw_id(id).filter(|s| !s.pending_delete).cloned();
            let change = Change::between(of(old.services()), of(new.services()))?;
            let name = |s: &Service| s.spec.annotations.name.clone();
            (EventKind::Service, change.action(), change.attributes(name, service_update), shown(&change))
        }
        Kind::Network => {
            let of = |table: &Table<Network>| table.by_raw_id(id).filter(|n| !n.pending_delete).cloned();
            let change = Change::between(of(old.networks()), of(new.networks()))?;
            let name = |n: &Network| n.spec.annotations.name.clone();
            (EventKind::Network, change.action(), change.attributes(name, |_, _| Vec::new()), shown(&change))
        }
        Kind::Node => {
            let change = Change::between(old.nodes().by_raw_id(id).cloned(), new.nodes().by_raw_id(id).cloned())?;
            let name = |n: &Node| n.description.hostname.clone();
            (EventKind::Node, change.action(), change.attributes(name, node_update), shown(&change))
        }
        Kind::Secret => {
            let change = Change::between(old.secrets().by_raw_id(id).cloned(), new.secrets().by_raw_id(id).cloned())?;
            let name = |s: &skep_proto::model::Secret| s.spec.annotations.name.clone();
            (EventKind::Secret, change.action(), change.attributes(name, |_, _| Vec::new()), shown(&change))
        }
        Kind::Config => {
            let change = Change::between(old.configs().by_raw_id(id).cloned(), new.configs().by_raw_id(id).cloned())?;
            let name = |c: &skep_proto::model::Config| c.spec.annotations.name.clone();
            (EventKind::Config, change.action(), change.attributes(name, |_, _| Vec::new()), shown(&change))
        }
        Kind::Cluster => return None,
    };
    let (kind, action, attributes, id) = found;
    Some(Event { kind, action: action.into(), id, attributes, at: new.now() })
}

/// What is told of an update: a property, what it was, what it is.
type Difference = (&'static str, Option<String>, Option<String>);

/// What became of an object.
enum Change<T> {
    Made(Arc<T>),
    Updated(Arc<T>, Arc<T>),
    Removed(Arc<T>),
}

impl<T: Object> Change<T> {
    /// `None` where nothing of it changed: a put of what was there, or why its tasks wait.
    fn between(old: Option<Arc<T>>, new: Option<Arc<T>>) -> Option<Self> {
        match (old, new) {
            (None, Some(new)) => Some(Self::Made(new)),
            (Some(old), Some(new)) if old.meta().version != new.meta().version => Some(Self::Updated(old, new)),
            (Some(old), None) => Some(Self::Removed(old)),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    fn action(&self) -> &'static str {
        match self {
            Self::Made(_) => "create",
            Self::Updated(..) => "update",
            Self::Removed(_) => "remove",
        }
    }

    fn attributes(
        &self,
        name: impl Fn(&T) -> String,
        update: impl Fn(&T, &T) -> Vec<Difference>,
    ) -> BTreeMap<String, String> {
        let (object, differences) = match self {
            Self::Made(object) | Self::Removed(object) => (object, Vec::new()),
            Self::Updated(old, new) => (new, update(old, new)),
        };
        let mut attributes = BTreeMap::from([("name".to_owned(), name(object))]);
        for (what, old, new) in differences.into_iter().filter(|(_, old, new)| old != new) {
            attributes.extend(old.map(|value| (format!("{what}.old"), value)));
            attributes.extend(new.map(|value| (format!("{what}.new"), value)));
        }
        attributes
    }
}

fn shown<T: Object>(change: &Change<T>) -> String {
    match change {
        Change::Made(object) | Change::Updated(_, object) | Change::Removed(object) => {
            skep_proto::model::ServiceId(object.id().into().0).to_string()
        }
    }
}

/// What dockerd tells of a service's update (`daemon/cluster` of moby): replicas, image, and where the update stands.
fn service_update(old: &Service, new: &Service) -> Vec<Difference> {
    let replicas = |s: &Service| match s.spec.mode {
        ServiceMode::Replicated { replicas } => Some(replicas.to_string()),
        ServiceMode::Global | ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => None,
    };
    let image = |s: &Service| s.spec.task.containers.first().map(|c| c.image.clone());
    let state = |s: &Service| s.update_status.as_ref().map(|u| update_word(u.state).to_owned());
    vec![
        ("image", image(old), image(new)),
        ("replicas", replicas(old), replicas(new)),
        ("updatestate", state(old), state(new)),
    ]
}

fn update_word(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

fn node_update(old: &Node, new: &Node) -> Vec<Difference> {
    let availability = |n: &Node| match n.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = |n: &Node| match n.spec.role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    };
    let state = |n: &Node| match n.state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    };
    let words = [
        ("availability", availability(old), availability(new)),
        ("role", role(old), role(new)),
        ("state", state(old), state(new)),
    ];
    words.into_iter().map(|(what, old, new)| (what, Some(old.to_owned()), Some(new.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn told(world: &World, since: &State) -> Vec<(String, String, BTreeMap<String, String>)> {
        let new = world.view();
        let objects = |state: &State| {
            let services = state.services().values().map(|s| (Kind::Service, s.id.0));
            services.chain(state.nodes().values().map(|n| (Kind::Node, n.id.0))).collect::<Vec<_>>()
        };
        let touched: BTreeSet<(Kind, u128)> = objects(since).into_iter().chain(objects(&new)).collect();
        let events = touched.into_iter().filter_map(|(kind, id)| of_object(since, &new, kind, id));
        events.map(|e| (e.kind.as_str().to_owned(), e.action, e.attributes)).collect()
    }

    fn attributes(parts: &[(&str, &str)]) -> BTreeMap<String, String> {
        parts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_event_says_what_changed_and_a_removed_service_is_told_once() {
        let mut world = World::new().nodes(1);
        let before = world.view();
        let id = world.add_service("web", ServiceMode::Replicated { replicas: 1 }, |_| {});
        assert_eq!(told(&world, &before), [("service".into(), "create".into(), attributes(&[("name", "web")]))]);

        let before = world.view();
        world.update_service(id, |s| s.spec.mode = ServiceMode::Replicated { replicas: 3 });
        let scaled = attributes(&[("name", "web"), ("replicas.old", "1"), ("replicas.new", "3")]);
        assert_eq!(told(&world, &before), [("service".into(), "update".into(), scaled)]);

        let (before, node) = (world.view(), world.view().nodes().values().next().unwrap().id);
        world.update_node(node, |n| n.spec.availability = Availability::Drain);
        let drained = attributes(&[("name", "n1"), ("availability.old", "active"), ("availability.new", "drain")]);
        assert_eq!(told(&world, &before), [("node".into(), "update".into(), drained)]);

        let before = world.view();
        world.update_service(id, |s| s.pending_delete = true);
        assert_eq!(told(&world, &before), [("service".into(), "remove".into(), attributes(&[("name", "web")]))]);
        let before = world.view();
        world.settle();
        assert!(world.service(id).is_none());
        assert_eq!(told(&world, &before), []);
    }
}
