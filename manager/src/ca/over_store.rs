//! The authority, and who is who, over the replicated store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skep_identity::{Identity, Revoked};
use skep_proto::model::{Annotations, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState};
use tokio_util::sync::CancellationToken;

use super::{CaStore, CaStoreError, ClusterCa, NewNode};
use crate::control::Propose;
use crate::dispatcher::derive;
use crate::raft::Raft;
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
        Ok(ClusterCa {
            id: cluster.id,
            root: cluster.root_ca.clone(),
            tokens: cluster.join_tokens.clone(),
            cert_expiry: cluster.spec.cert_expiry,
        })
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
pub struct StoreRoles(pub Arc<Store>);

impl Roles for StoreRoles {
    fn role(&self, certificate: &Identity) -> Option<NodeRole> {
        self.0.view().nodes().get(certificate.node).map(|node| derive::certificate_role(node))
    }
}

/// Refuses the certificates of nodes whose records go, until `stop`. What was removed before this manager started is kept
/// out by [`StoreRoles`]: an unknown node may call nothing that matters.
pub async fn refuse_removed(store: Arc<Store>, revoked: Revoked, stop: CancellationToken) {
    let ids = |state: &State| -> BTreeSet<NodeId> { state.nodes().values().map(|node| node.id).collect() };
    let (state, mut watch) = store.view_and_watch();
    let mut known = ids(&state);
    while let Some(state) = next(&mut watch, &stop).await {
        if state.nodes().len() == known.len() && known.iter().all(|id| state.nodes().get(*id).is_some()) {
            continue;
        }
        let now = ids(&state);
        for gone in known.difference(&now) {
            tracing::info!(node.id = %gone, "node was removed: its certificate is refused from now on");
            revoked.insert(*gone);
        }
        known = now;
    }
}

async fn next(watch: &mut Watch, stop: &CancellationToken) -> Option<Arc<State>> {
    tokio::select! {
        () = stop.cancelled() => None,
        next = watch.next() => next.map(|(state, _)| state),
    }
}
