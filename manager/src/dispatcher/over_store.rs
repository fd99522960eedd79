//! The dispatcher's ports over the replicated store.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use skep_api::ports::BoxDuplex;
use skep_api::ports::control::ControlError;
use skep_proto::model::secret::SecretData;
use skep_proto::model::session::{AssignedSpec, FileContent, FileId, SpecKey, TaskVitals};
use skep_proto::model::{Cluster, Network, NetworkId, Node, NodeId, Service, ServiceId, TaskId, TaskStatus};

use super::ports::{
    Changes, ClusterStore, ClusterView, ClusterWatch, NodeChange, ProposeError, StatusUpdate, TaskFacts, Touched,
    TouchedTask,
};
use super::{StreamError, Streams};
use crate::control::{self, EngineStreams, Propose, Vitals};
use crate::store::{
    self, Change, Group, HostPort, Kind, NodeRef, Outcome, Reference, Refusal, ServiceRef, State, Store, TaskRow,
    usual_message,
};

/// Bytes of text that a proposal of statuses carries at most: half of an entry, the rest is encoding.
const BATCH_BYTES: usize = store::MAX_ENTRY_BYTES / 2;
/// Bytes of a message or an error that are kept.
const MAX_TEXT: usize = 4096;
/// Tries to change a node's record while others change it too.
const TRIES: usize = 5;

impl ClusterView for State {
    fn index(&self) -> u64 {
        Self::index(self)
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        Self::cluster(self).cloned()
    }

    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes().get(id).cloned()
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        Self::nodes(self).values().cloned().collect()
    }

    fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.services().get(id).cloned()
    }

    fn services(&self) -> Vec<Arc<Service>> {
        Self::services(self).values().cloned().collect()
    }

    fn network(&self, id: NetworkId) -> Option<Arc<Network>> {
        self.networks().get(id).cloned()
    }

    fn ingress(&self) -> Option<NetworkId> {
        Self::ingress(self).map(|network| network.id)
    }

    fn task_at(&self, handle: u32) -> Option<TaskFacts> {
        self.row_at(handle).map(|row| facts(self, handle, row))
    }

    fn task(&self, id: TaskId) -> Option<TaskFacts> {
        let handle = self.reference(id)?.handle();
        ClusterView::task_at(self, handle)
    }

    fn tasks_on_node(&self, node: NodeId) -> Vec<TaskFacts> {
        let node: Option<NodeRef> = Self::nodes(self).reference(node);
        let rows = node.into_iter().flat_map(|node| self.rows_on_node(node));
        rows.map(|(handle, row)| facts(self, handle, row)).collect()
    }

    fn tasks_of_service(&self, service: ServiceId) -> Vec<TaskFacts> {
        let service: Option<ServiceRef> = Self::services(self).reference(service);
        let rows = service.into_iter().flat_map(|service| self.rows_of_service(service));
        rows.map(|(handle, row)| facts(self, handle, row)).collect()
    }

    fn tasks_without_service(&self) -> Vec<TaskFacts> {
        self.attachments_of_containers().map(|(handle, row, _)| facts(self, handle, row)).collect()
    }

    fn spec(&self, key: SpecKey) -> Option<Arc<AssignedSpec>> {
        let services = Self::services(self);
        let shared = Self::spec(self, services.reference(key.service)?, key.version)?;
        let current = services.get(key.service)?;
        Some(Arc::new(AssignedSpec {
            key,
            service_name: shared.service.spec.annotations.name.clone(),
            service_labels: shared.service.spec.annotations.labels.clone(),
            task: (*shared.task).clone(),
            ports: current.endpoint.ports.clone(),
        }))
    }

    fn file(&self, id: FileId) -> Option<FileContent> {
        let (data, templating) = match id {
            FileId::Secret(id) => {
                let spec = &self.secrets().get(id)?.spec;
                (spec.data.clone(), &spec.templating)
            }
            FileId::Config(id) => {
                let spec = &self.configs().get(id)?.spec;
                (SecretData(spec.data.clone()), &spec.templating)
            }
        };
        Some(FileContent { data, template: templating.is_some() })
    }
}

fn facts(state: &State, handle: u32, row: &TaskRow) -> TaskFacts {
    TaskFacts {
        handle,
        id: row.id,
        service: row.service.and_then(|service| state.services().lookup(service)).map(|service| service.id),
        name: state.attached(handle).map(|attached| attached.name.clone()),
        node: row.node.and_then(|node| state.nodes().lookup(node)).map(|node| node.id),
        slot: row.slot,
        spec_version: row.spec_version,
        desired: row.desired,
        state: row.state,
        attachments: state.attachments(handle, row),
        mesh: row.mesh.map(Into::into),
    }
}

/// [`ClusterStore`] over the store and the way into the log.
pub struct Replicated {
    store: Arc<Store>,
    proposer: Arc<dyn Propose>,
}

impl Replicated {
    /// Over these parts.
    pub fn new(store: Arc<Store>, proposer: Arc<dyn Propose>) -> Self {
        Self { store, proposer }
    }
}

#[async_trait]
impl ClusterStore for Replicated {
    fn view(&self) -> Arc<dyn ClusterView> {
        self.store.view()
    }

    fn watch(&self) -> Box<dyn ClusterWatch> {
        let (_, watch) = self.store.view_and_watch();
        Box::new(Watch(watch))
    }

    async fn report(&self, batch: Vec<StatusUpdate>) -> Result<(), ProposeError> {
        let state = self.store.view();
        for changes in into_changes(&state, &batch) {
            match self.proposer.propose(Group::from(changes)).await {
                Ok(Outcome::Applied { .. }) => {}
                // Observations are never refused; a refusal is a defect, and repeating it would not mend it.
                Ok(Outcome::Refused(refusal)) => tracing::error!(%refusal, "statuses were refused"),
                Err(control::ProposeError::Refused(reason)) => tracing::error!(reason, "statuses were refused"),
                Err(error) => return Err(propose_error(error)),
            }
        }
        Ok(())
    }

    async fn change_node(&self, change: NodeChange) -> Result<(), ProposeError> {
        for _ in 0..TRIES {
            let Some(node) = self.store.view().nodes().get(change.node).cloned() else { return Ok(()) };
            let changed = apply(&node, &change);
            if changed == *node {
                return Ok(());
            }
            match self.proposer.propose(Group::of(Change::update(&changed))).await.map_err(propose_error)? {
                Outcome::Applied { .. } | Outcome::Refused(Refusal::NotFound { .. }) => return Ok(()),
                Outcome::Refused(Refusal::OutOfSequence { .. }) => {}
                Outcome::Refused(refusal) => return Err(ProposeError::Unavailable { reason: refusal.to_string() }),
            }
        }
        Err(ProposeError::Unavailable { reason: "the node's record changes too often".into() })
    }
}

fn apply(node: &Node, change: &NodeChange) -> Node {
    let mut changed = node.clone();
    changed.state = change.state;
    changed.message.clone_from(&change.message);
    if let Some(description) = &change.description {
        changed.description = description.clone();
    }
    changed.address = change.address.or(changed.address);
    changed
}

fn propose_error(error: control::ProposeError) -> ProposeError {
    // Whether this manager still leads, the leadership tells; until then everything is worth another try.
    ProposeError::Unavailable { reason: error.to_string() }
}

/// Statuses as changes of the log, in groups that fit an entry. Tasks that are gone or elsewhere are left out.
fn into_changes(state: &State, batch: &[StatusUpdate]) -> Vec<Vec<Change>> {
    let mut groups: Vec<Vec<Change>> = Vec::new();
    let mut bytes = usize::MAX;
    for update in batch {
        let Some(task) = state.reference(update.task) else { continue };
        let Some(row) = state.row(task) else { continue };
        let node = row.node.and_then(|node| state.nodes().lookup(node)).map(|node| node.id);
        if node != Some(update.node) {
            continue;
        }
        let text = clip(&update.status.message).len()
            + clip(&update.status.error).len()
            + 64 * (1 + update.status.host_ports.len());
        let len = groups.last().map_or(usize::MAX, Vec::len);
        if bytes.saturating_add(text) > BATCH_BYTES || len >= store::MAX_ENTRY_CHANGES - 1 {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += text;
        let group = groups.last_mut().expect("one was pushed for the first update");
        if update.status.state > row.state {
            group.push(status_change(task, &update.status));
        }
        if update.mesh != row.mesh.map(Into::into) {
            group.push(Change::Mesh { task, address: update.mesh });
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

fn status_change(task: store::TaskRef, status: &TaskStatus) -> Change {
    let TaskStatus { state, at, message, error, exit_code, host_ports } = status;
    let (state, at_ms, exit) = (*state, at.0, *exit_code);
    let message = if message == usual_message(state) { "" } else { clip(message) };
    let error = clip(error);
    if message.is_empty() && error.is_empty() && host_ports.is_empty() {
        return Change::Status { task, state, at_ms, exit };
    }
    let ports = host_ports.iter().filter_map(|port| {
        let published = port.published?;
        Some(HostPort { name: port.name.clone(), protocol: port.protocol, target: port.target, published })
    });
    Change::Report {
        task,
        state,
        at_ms,
        exit,
        message: message.to_owned(),
        error: error.to_owned(),
        host_ports: ports.collect(),
    }
}

/// The beginning of a text: what people read of it. Nodes may send more than the log should carry.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

struct Watch(store::Watch);

#[async_trait]
impl ClusterWatch for Watch {
    async fn next(&mut self) -> Option<Changes> {
        let (state, changes) = self.0.next().await?;
        Some(match changes {
            store::Changes::All => Changes::All,
            store::Changes::Some(touched) => Changes::Some(by_id(&state, &touched)),
        })
    }
}

/// Changes by id. They name positions, and a position may have been used again since: then every object that had it is
/// marked, which costs a look and no more.
fn by_id(state: &State, touched: &[Arc<store::Touched>]) -> Touched {
    let objects = || touched.iter().flat_map(|touched| &touched.objects);
    let ids = |kind: Kind| objects().filter(move |object| object.kind == kind).map(|object| object.id);
    let gone = |kind: Kind, handle: u32| {
        objects().filter(move |object| object.kind == kind && object.handle == handle).map(|object| object.id)
    };
    let mut out = Touched {
        tasks: Vec::new(),
        services: ids(Kind::Service).map(ServiceId).collect(),
        networks: ids(Kind::Network).map(NetworkId).collect(),
        nodes: ids(Kind::Node).map(NodeId).collect(),
        cluster: ids(Kind::Cluster).next().is_some(),
    };
    for task in touched.iter().flat_map(|touched| &touched.tasks) {
        let services = task.service.map_or_else(
            || vec![None],
            |handle| {
                let now = state.services().at(handle).map(|service| service.id);
                let mut all: Vec<_> =
                    now.into_iter().chain(gone(Kind::Service, handle).map(ServiceId)).map(Some).collect();
                all.dedup();
                all
            },
        );
        let node = |handle: Option<u32>| {
            let handle = handle?;
            state.nodes().at(handle).map(|node| node.id).or_else(|| gone(Kind::Node, handle).map(NodeId).next())
        };
        let (old_node, new_node) = (node(task.old_node), node(task.new_node));
        out.tasks.extend(services.into_iter().map(|service| TouchedTask {
            handle: task.handle,
            service,
            old_node,
            new_node,
        }));
    }
    out
}

#[async_trait]
impl EngineStreams for Streams {
    async fn open(&self, node: NodeId) -> Result<BoxDuplex, ControlError> {
        Self::open(self, node).await.map_err(|error| match error {
            StreamError::NoLeader => ControlError::NoLeader,
            StreamError::NotConnected { .. }
            | StreamError::Busy { .. }
            | StreamError::Leader { .. }
            | StreamError::Timeout { .. }
            | StreamError::NoRandomness => ControlError::NodeUnreachable { node, reason: error.to_string() },
        })
    }
}

#[async_trait]
impl Vitals for super::Relay {
    async fn of_tasks(&self, tasks: &[TaskId]) -> BTreeMap<TaskId, TaskVitals> {
        self.vitals(tasks).await
    }
}
