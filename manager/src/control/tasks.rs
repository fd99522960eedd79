//! Tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_api::ports::control::{ControlError, TaskFilter, TaskView};
use skep_proto::model::session::TaskVitals;
use skep_proto::model::{ContainerId, NodeId, ServiceId, Task, TaskId, TaskState};

use futures_util::stream::{BoxStream, StreamExt};

use super::lookup::{has_labels, starts_with_any};
use super::{Control, lookup};
use crate::store::{Changes, Reference, State, Store};

impl Control {
    pub(super) async fn list_tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, ControlError> {
        let state = self.read().await?;
        let wanted = Wanted::resolve(filter, &state);
        // The narrowest index that the filter allows.
        let candidates: Vec<Task> = match (&wanted.services, &wanted.nodes) {
            (Some(services), _) => services.iter().flat_map(|id| state.tasks_of_service(*id)).collect(),
            (None, Some(nodes)) => nodes.iter().flat_map(|id| state.tasks_on_node(*id)).collect(),
            (None, None) => state.tasks().collect(),
        };
        let matching = candidates.into_iter().filter(|task| wanted.accepts(task, &state));
        let sorted: BTreeMap<TaskId, Task> = matching.map(|task| (task.id, task)).collect();
        let running: Vec<TaskId> =
            sorted.values().filter(|t| t.status.state == TaskState::Running).map(|t| t.id).collect();
        let mut vitals = if running.is_empty() { BTreeMap::new() } else { self.parts.vitals.of_tasks(&running).await };
        Ok(sorted.into_iter().map(|(id, task)| view_of(task, vitals.remove(&id).unwrap_or_default(), &state)).collect())
    }

    pub(super) async fn get_task(&self, reference: &str) -> Result<TaskView, ControlError> {
        let state = self.read().await?;
        let mut ids = state.task_ids_by_prefix(reference);
        let not_found = || ControlError::NotFound { kind: "task", reference: reference.to_owned() };
        let first = ids.next().filter(|_| !reference.is_empty()).ok_or_else(not_found)?;
        let others = ids.count();
        if others > 0 {
            return Err(ControlError::Ambiguous { kind: "task", reference: reference.to_owned(), matches: others + 1 });
        }
        let task = state.task(first).ok_or_else(not_found)?;
        let vitals = self.parts.vitals.of_tasks(&[first]).await.remove(&first).unwrap_or_default();
        Ok(view_of(task, vitals, &state))
    }
}

/// See [`skep_api::ports::ControlPlane::started_tasks`].
pub(super) fn started(store: &Arc<Store>, service: ServiceId) -> BoxStream<'static, TaskView> {
    let (state, watch) = store.view_and_watch();
    let begin = (Some((state, Changes::All)), watch, BTreeSet::new());
    futures_util::stream::unfold(begin, move |(first, mut watch, mut known)| async move {
        let (state, changes) = match first {
            Some(first) => first,
            None => watch.next().await?,
        };
        let news = news(&state, &changes, service, &mut known);
        Some((futures_util::stream::iter(news), (None, watch, known)))
    })
    .flatten()
    .boxed()
}

/// Tasks of the service that have a container and are not `known` yet.
fn news(state: &State, changes: &Changes, service: ServiceId, known: &mut BTreeSet<TaskId>) -> Vec<TaskView> {
    let handle = state.services().reference(service).map(Reference::handle);
    let is_touched = match changes {
        Changes::All => true,
        Changes::Some(touched) => {
            touched.iter().flat_map(|t| &t.tasks).any(|t| t.service.is_some() && t.service == handle)
        }
    };
    if !is_touched {
        return Vec::new();
    }
    let views = state.tasks_of_service(service).into_iter().map(|task| view_of(task, TaskVitals::default(), state));
    let found: Vec<TaskView> = views.filter(|view| view.container.is_some()).collect();
    // Those that are history may be forgotten.
    let ids: BTreeSet<TaskId> = found.iter().map(|view| view.task.id).collect();
    let news = found.into_iter().filter(|view| !known.contains(&view.task.id)).collect();
    *known = ids;
    news
}

fn view_of(mut task: Task, vitals: TaskVitals, state: &State) -> TaskView {
    if let Some(node) = task.node.and_then(|id| state.nodes().get(id)) {
        task.attachments.iter_mut().for_each(|own| own.addresses.retain(|address| node.description.has(address)));
    }
    let started = task.status.state >= TaskState::Starting && task.node.is_some();
    let container = started.then(|| ContainerId::of_task(task.id, 0));
    let networks = task.attachments.iter().filter_map(|a| state.networks().get(a.network).cloned()).collect();
    let job_iteration = is_of_job(&task, state).then_some(task.spec_version);
    TaskView { container, vitals, networks, job_iteration, task: Arc::new(task) }
}

/// What faces show as wanted: see [`TaskView::desired`].
fn shown_desired(task: &Task, state: &State) -> TaskState {
    if task.desired == TaskState::Running && is_of_job(task, state) { TaskState::Complete } else { task.desired }
}

fn is_of_job(task: &Task, state: &State) -> bool {
    task.service.and_then(|id| state.services().get(id)).is_some_and(|s| s.spec.mode.is_job())
}

/// Name of a task as `docker service ps` and container names have it: `SERVICE.SLOT.ID`, for global services
/// `SERVICE.NODE.ID`.
pub fn task_name(task: &Task) -> String {
    match (task.slot, task.node) {
        (0, Some(node)) => format!("{}.{node}.{}", task.service_name, task.id),
        (slot, _) => format!("{}.{slot}.{}", task.service_name, task.id),
    }
}

/// A filter whose services and nodes were looked up.
struct Wanted<'a> {
    filter: &'a TaskFilter,
    services: Option<BTreeSet<ServiceId>>,
    nodes: Option<BTreeSet<NodeId>>,
}

impl<'a> Wanted<'a> {
    fn resolve(filter: &'a TaskFilter, state: &State) -> Self {
        let services = (!filter.services.is_empty()).then(|| {
            let found =
                filter.services.iter().filter_map(|r| lookup::find(state.services(), "service", r, |_| true).ok());
            found.map(|s| s.id).collect()
        });
        let nodes = (!filter.nodes.is_empty()).then(|| {
            let is_meant = |n: &skep_proto::model::Node| {
                filter.nodes.iter().any(|r| n.description.hostname == *r || n.id.to_string().starts_with(r.as_str()))
            };
            state.nodes().values().filter(|n| is_meant(n)).map(|n| n.id).collect()
        });
        Self { filter, services, nodes }
    }

    fn accepts(&self, task: &Task, state: &State) -> bool {
        let filter = self.filter;
        let is_of_service = self.services.as_ref().is_none_or(|ids| task.service.is_some_and(|id| ids.contains(&id)));
        let is_on_node = self.nodes.as_ref().is_none_or(|ids| task.node.is_some_and(|id| ids.contains(&id)));
        let is_up_to_date = !filter.up_to_date
            || task.service.and_then(|id| state.services().get(id)).is_some_and(|s| s.iteration() == task.spec_version);
        // As with Docker, places of plain containers on networks are not listed.
        task.service.is_some()
            && is_of_service
            && is_on_node
            && is_up_to_date
            && (filter.desired.is_empty() || filter.desired.contains(&shown_desired(task, state)))
            && starts_with_any(&filter.ids, || task.id.to_string())
            && starts_with_any(&filter.names, || task_name(task))
            && has_labels(&filter.labels, &task.service_labels)
    }
}
