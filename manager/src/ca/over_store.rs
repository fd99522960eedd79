//! The authority, and who is who, over the replicated store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skep_identity::{Identity, Revoked};
use skep_proto::model::{Annotations, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CaStore, CaStoreError, ClusterCa, NewNode};
use crate::control::Propose;
use crate::dispatcher::derive;
use crate::raft::{Leader, Raft};
use crate::rpc::Roles;
use crate::store::{Change, Group, Outcome, Refusal, State, Store, Watch};

/// For a read barrier.
const PATIENCE: Duration = Duration::from_secs(5);

/// [`CaStore`] on any manager: reads behind a barrier, writes through the proposer.
pub struct StoreCa {
    store: Arc<Store>,
    raft: Raft,
    proposer: Arc<dyn Propose>,
}

impl StoreCa {
    /// Over these parts.
    pub fn new(store: Arc<Store>, raft: Raft, proposer: Arc<dyn Propose>) -> Self {
        Self { store, raft, proposer }
    }

    async fn read(&self) -> Result<Arc<State>, CaStoreError> {
        self.raft.read_index(PATIENCE).await.map_err(unavailable)?;
        Ok(self.store.view())
    }
}

#[async_trait]
impl CaStore for StoreCa {
    async fn cluster(&self) -> Result<ClusterCa, CaStoreError> {
        let state = self.read().await?;
        let cluster = state.cluster().ok_or_else(|| CaStoreError::Unavailable { reason: "it is being made".into() })?;
        Ok(ClusterCa::from(&**cluster))
    }

    async fn admit(&self, new: NewNode) -> Result<NodeRole, CaStoreError> {
        if let Some(known) = self.store.view().nodes().get(new.id) {
            return Ok(known.spec.role);
        }
        let group = Group::of(Change::create(&record(&new)));
        match self.proposer.propose(group).await.map_err(unavailable)? {
            Outcome::Applied { .. } => Ok(new.role),
            // The same join, through another manager or a moment ago.
            Outcome::Refused(Refusal::Exists { .. }) => self.role(new.id).await,
            // Removed before, with the key that it shows again.
            Outcome::Refused(Refusal::NotFound { .. }) => Err(CaStoreError::NotAMember { node: new.id }),
            Outcome::Refused(refusal) => Err(unavailable(refusal)),
        }
    }

    async fn role(&self, node: NodeId) -> Result<NodeRole, CaStoreError> {
        let state = self.read().await?;
        state.nodes().get(node).map(|node| derive::certificate_role(node)).ok_or(CaStoreError::NotAMember { node })
    }
}

fn record(new: &NewNode) -> Node {
    Node {
        id: new.id,
        meta: Meta::default(),
        spec: NodeSpec { annotations: Annotations::default(), role: new.role, availability: new.availability },
        index: 0,
        description: NodeDescription::default(),
        state: NodeState::Unknown,
        message: String::new(),
        address: None,
        manager: None,
    }
}

fn unavailable(error: impl std::error::Error) -> CaStoreError {
    CaStoreError::Unavailable { reason: error.to_string() }
}

/// The roles that the store gives nodes. A manager that is being demoted keeps its own until it has left the Raft group.
pub struct StoreRoles {
    /// The records.
    pub store: Arc<Store>,
    /// Who leads.
    pub leader: watch::Receiver<Option<Leader>>,
}

impl Roles for StoreRoles {
    fn role(&self, certificate: &Identity) -> Option<NodeRole> {
        self.store.view().nodes().get(certificate.node).map(|node| derive::certificate_role(node))
    }

    fn is_current_without(&self, caller: NodeId) -> bool {
        let leader = self.leader.borrow().as_ref().map(|leader| leader.peer.node_id.clone());
        // A leader that this member's configuration does not name yet has no node id here.
        leader.is_some_and(|node| !node.is_empty() && node != caller.to_string())
    }
}

/// Refuses the certificates of removed nodes, until `stop`: those that the state remembers, whether they went before this
/// manager started, while it was down, or now.
pub async fn refuse_removed(store: Arc<Store>, revoked: Revoked, stop: CancellationToken) {
    let (mut known, mut watch) = store.view_and_watch();
    revoked.replace(known.removed_nodes());
    while let Some(state) = next(&mut watch, &stop).await {
        if !state.same_removed_nodes(&known) {
            let (before, now) = (known.removed_nodes(), state.removed_nodes());
            for gone in now.difference(&before) {
                tracing::info!(node.id = %gone, "node was removed: its certificate is refused from now on");
            }
            revoked.replace(now);
        }
        known = state;
    }
}

async fn next(watch: &mut Watch, stop: &CancellationToken) -> Option<Arc<State>> {
    tokio::select! {
        () = stop.cancelled() => None,
        next = watch.next() => next.map(|(state, _)| state),
    }
}
