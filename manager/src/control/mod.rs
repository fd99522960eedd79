//! The control plane as faces call it: [`ControlPlane`] over the replicated store.
//!
//! Every read begins with a barrier, so that it sees every write acknowledged before it, on any manager. A change is one
//! group of the log: checked here for sense, and once more against the state where it is applied; only one that is refused
//! needs the barrier.

mod attachments;
mod cluster;
mod containers;
pub mod events;
mod files;
mod ingress;
mod latest;
mod lookup;
mod names;
mod networks;
mod nodes;
mod pods;
mod reach;
mod refusal;
mod secrets;
mod services;
mod tasks;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::stream::BoxStream;
use skep_api::ports::BoxDuplex;
use skep_api::ports::control::{
    ContainerLocation, ControlError, ControlPlane, NodeStatus, ObjectFilter, Reference, Rotations, ServiceStatus,
    ServiceUpdate, TaskFilter, TaskView,
};
use skep_api::ports::events::{EventFeed, EventLog};
use skep_api::ports::usage::NetworkUsage;
use skep_proto::model::session::TaskVitals;
use skep_proto::model::{
    Cluster, ClusterSpec, Config, ConfigId, ConfigSpec, Network, NetworkId, NetworkSpec, NodeId, NodeSpec, Secret,
    SecretId, SecretSpec, ServiceId, ServiceSpec, TaskId, Version,
};

use crate::membership::Membership;
use crate::raft::{Raft, RaftError};
use crate::store::{Change, Group, Outcome, Refusal, State, Store};

pub use attachments::{AttachError, AttachRequest, Place};
pub use cluster::{check_settings, new_unlock_key};
pub use refusal::from_proposal;

/// How long a call waits for the other managers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Puts changes into the log. Implemented by the proposer.
#[async_trait]
pub trait Propose: Send + Sync + 'static {
    /// Commits a group and waits until this manager has applied it.
    async fn propose(&self, group: Group) -> Result<Outcome, ProposeError>;
}

/// A group was not committed, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// There is no leader, or it cannot be reached.
    #[error("the cluster has no leader that this manager can reach")]
    NoLeader,
    /// No answer in time; it may have been committed.
    #[error("the managers did not answer in time")]
    Timeout,
    /// It can never be committed.
    #[error("{0}")]
    Refused(String),
}

/// Connections to the engines of nodes, wherever their sessions are.
#[async_trait]
pub trait EngineStreams: Send + Sync + 'static {
    /// Opens one.
    async fn open(&self, node: NodeId) -> Result<BoxDuplex, ControlError>;
}

/// Volatile facts of tasks, which only the manager that holds the sessions knows.
#[async_trait]
pub trait Vitals: Send + Sync + 'static {
    /// Of these tasks, as far as they can be had now.
    async fn of_tasks(&self, tasks: &[TaskId]) -> BTreeMap<TaskId, TaskVitals>;
}

/// What the control plane is made of.
pub struct Parts {
    /// The state.
    pub store: Arc<Store>,
    /// The group.
    pub raft: Raft,
    /// The way into the log.
    pub proposer: Arc<dyn Propose>,
    /// Joins and departures of managers.
    pub membership: Arc<Membership>,
    /// Connections to engines.
    pub streams: Arc<dyn EngineStreams>,
    /// Volatile facts.
    pub vitals: Arc<dyn Vitals>,
    /// What happened to the cluster's objects.
    pub events: Arc<EventLog>,
}

/// The control plane of one manager.
pub struct Control {
    parts: Parts,
}

impl Control {
    /// Of these parts.
    pub fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// A state that holds every write acknowledged before this call.
    async fn read(&self) -> Result<Arc<State>, ControlError> {
        self.parts.raft.read_index(PATIENCE).await.map_err(|error| match error {
            RaftError::Timeout(_) => ControlError::Timeout,
            _ => ControlError::NoLeader,
        })?;
        Ok(self.parts.store.view())
    }

    /// Commits one change.
    async fn change(&self, change: Change) -> Result<(), ControlError> {
        self.propose(change).await?.map_err(refusal::to_control_error)
    }

    /// The log's answer: made or refused. An error says that it was not asked, or what it said is not known.
    async fn propose(&self, change: Change) -> Result<Result<(), Refusal>, ControlError> {
        let outcome = self.parts.proposer.propose(Group::of(change)).await.map_err(from_proposal)?;
        Ok(match outcome {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused(refusal) => Err(refusal),
        })
    }

    /// Commits what `make` says of the state. What this manager holds is nearly always the newest, and whether the change fits
    /// is decided where it is applied; so the other managers are asked only when it was refused: the refusal may rest on
    /// what is not so any more.
    async fn change_seen(
        &self,
        make: impl Fn(&State) -> Result<Change, ControlError> + Send,
    ) -> Result<(), ControlError> {
        if let Ok(change) = make(&self.parts.store.view())
            && self.propose(change).await?.is_ok()
        {
            return Ok(());
        }
        let state = self.read().await?;
        self.change(make(&state)?).await
    }

    /// The same for requests that name no version, and for which nothing may be left to do: when another changed the object
    /// in between, it is read again. The client has read nothing that could be out of date.
    async fn change_latest(
        &self,
        make: impl Fn(&State) -> Result<Option<Change>, ControlError> + Send + Sync,
    ) -> Result<(), ControlError> {
        self.change_latest_together(|state| Ok(make(state)?.map(Group::of))).await
    }

    /// The same with changes that are applied together.
    async fn change_latest_together(
        &self,
        make: impl Fn(&State) -> Result<Option<Group>, ControlError> + Send + Sync,
    ) -> Result<(), ControlError> {
        latest::commit(&*self.parts.proposer, self.parts.store.view(), || self.read().boxed(), make).await
    }
}

#[async_trait]
impl ControlPlane for Control {
    async fn cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        self.get_cluster().await
    }
    async fn update_cluster(&self, at: Version, spec: ClusterSpec, rotate: Rotations) -> Result<(), ControlError> {
        self.change_cluster(at, spec, rotate).await
    }

    async fn unlock_key(&self) -> Result<String, ControlError> {
        self.get_unlock_key().await
    }

    async fn backup(&self) -> Result<Vec<u8>, ControlError> {
        self.write_backup().await
    }

    async fn nodes(&self) -> Result<Vec<NodeStatus>, ControlError> {
        self.list_nodes().await
    }
    async fn node(&self, reference: &Reference) -> Result<NodeStatus, ControlError> {
        self.get_node(reference).await
    }
    async fn update_node(&self, id: NodeId, at: Version, spec: NodeSpec) -> Result<(), ControlError> {
        self.change_node(id, at, spec).await
    }
    async fn remove_node(&self, reference: &Reference, force: bool) -> Result<(), ControlError> {
        self.delete_node(reference, force).await
    }

    async fn services(&self, filter: &ObjectFilter) -> Result<Vec<ServiceStatus>, ControlError> {
        self.list_services(filter).await
    }
    async fn service(&self, reference: &Reference) -> Result<ServiceStatus, ControlError> {
        self.get_service(reference).await
    }
    async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        self.make_service(spec).await
    }
    async fn update_service(&self, reference: &Reference, update: ServiceUpdate) -> Result<(), ControlError> {
        self.change_service(reference, update).await
    }
    async fn remove_service(&self, reference: &Reference) -> Result<(), ControlError> {
        self.delete_service(reference).await
    }

    async fn rebalance_service(&self, reference: &Reference) -> Result<(), ControlError> {
        self.even_out_service(reference).await
    }

    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, ControlError> {
        self.list_tasks(filter).await
    }
    fn started_tasks(&self, service: ServiceId) -> BoxStream<'static, TaskView> {
        tasks::started(&self.parts.store, service)
    }
    async fn task(&self, reference: &Reference) -> Result<TaskView, ControlError> {
        self.get_task(reference).await
    }

    async fn networks(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Network>>, ControlError> {
        self.list_networks(filter).await
    }
    async fn network(&self, reference: &Reference) -> Result<Arc<Network>, ControlError> {
        self.get_network(reference).await
    }
    async fn network_usage(&self, reference: &Reference) -> Result<NetworkUsage, ControlError> {
        self.usage_of_network(reference).await
    }
    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        self.make_network(spec).await
    }
    async fn remove_network(&self, reference: &Reference) -> Result<(), ControlError> {
        self.delete_network(reference).await
    }

    async fn secrets(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Secret>>, ControlError> {
        self.list_secrets(filter).await
    }
    async fn secret(&self, reference: &Reference) -> Result<Arc<Secret>, ControlError> {
        self.get_secret(reference).await
    }
    async fn create_secret(&self, spec: SecretSpec) -> Result<SecretId, ControlError> {
        self.make_secret(spec).await
    }
    async fn update_secret(&self, reference: &Reference, at: Version, spec: SecretSpec) -> Result<(), ControlError> {
        self.change_secret(reference, at, spec).await
    }
    async fn remove_secret(&self, reference: &Reference) -> Result<(), ControlError> {
        self.delete_secret(reference).await
    }

    async fn configs(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Config>>, ControlError> {
        self.list_configs(filter).await
    }
    async fn config(&self, reference: &Reference) -> Result<Arc<Config>, ControlError> {
        self.get_config(reference).await
    }
    async fn create_config(&self, spec: ConfigSpec) -> Result<ConfigId, ControlError> {
        self.make_config(spec).await
    }
    async fn update_config(&self, reference: &Reference, at: Version, spec: ConfigSpec) -> Result<(), ControlError> {
        self.change_config(reference, at, spec).await
    }
    async fn remove_config(&self, reference: &Reference) -> Result<(), ControlError> {
        self.delete_config(reference).await
    }

    async fn locate_container(&self, reference: &Reference) -> Result<Option<ContainerLocation>, ControlError> {
        self.find_container(reference).await
    }

    fn events(&self) -> EventFeed {
        self.parts.events.feed()
    }

    async fn open_engine(&self, node: NodeId) -> Result<BoxDuplex, ControlError> {
        self.parts.streams.open(node).await
    }
}
