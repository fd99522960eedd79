//! The certificate authority: root, join tokens, and who gets a certificate with which role.
//!
//! Of a request only the public key is taken. Name, role and cluster come from the token or the store; a node's id is a
//! digest of the key it joins with ([`skep_identity::key::node_of`]). [`root`] and [`admission`] are pure; [`service`]
//! answers the calls; the store is behind [`CaStore`].
//!
//! A root is replaced by a new one whose key the old one signs: certificates of the new root carry that link, so who trusts
//! the old root alone accepts them. [`trust`] says what each node should trust, the dispatcher has nodes renew their
//! certificates until they do, and [`rotation`] then drops the old root.

pub mod admission;
#[cfg(test)]
pub(crate) mod fake;
pub mod limit;
pub mod over_store;
pub mod root;
pub mod rotation;
pub mod service;
#[cfg(test)]
mod tests;
pub mod trust;

use std::time::Duration;

use async_trait::async_trait;
use skep_proto::model::cluster::{JoinTokens, RootCa};
use skep_proto::model::{Availability, Cluster, ClusterId, NodeId, NodeRole};

pub use over_store::{StoreCa, StoreRoles, refuse_removed};
pub use root::{Bootstrap, Signer, SignerError, begin_rotation, bootstrap, first_manager, new_tokens, rotate_token};
pub use service::CaService;

/// What the authority needs of the cluster's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterCa {
    /// The cluster.
    pub id: ClusterId,
    /// Root certificates, that of the key first, and the key that signs.
    pub root: RootCa,
    /// What links new certificates to an older root, PEM; empty unless the root is being replaced.
    pub link: String,
    /// Current join tokens.
    pub tokens: JoinTokens,
    /// Life of a new certificate.
    pub cert_expiry: Duration,
}

impl From<&Cluster> for ClusterCa {
    fn from(cluster: &Cluster) -> Self {
        let signing = cluster.rotation.as_ref().map_or(&cluster.root_ca, |rotation| &rotation.root);
        Self {
            id: cluster.id,
            root: RootCa { certificates: trust::roots(cluster), key: signing.key.clone() },
            link: cluster.rotation.as_ref().map(|r| r.cross_signed.clone()).unwrap_or_default(),
            tokens: cluster.join_tokens.clone(),
            cert_expiry: cluster.spec.cert_expiry,
        }
    }
}

/// A node that asks to join and has shown a valid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// Its id.
    pub id: NodeId,
    /// The role that the token gives.
    pub role: NodeRole,
    /// What its operator asked for.
    pub availability: Availability,
}

/// The store, as the authority uses it. Every method works on any manager; writes go to the leader.
#[async_trait]
pub trait CaStore: Send + Sync + 'static {
    /// The cluster's record, not older than the call: a token that was rotated away must not work on a manager that
    /// lags behind.
    ///
    /// # Errors
    /// When no leader confirms it.
    async fn cluster(&self) -> Result<ClusterCa, CaStoreError>;

    /// Makes the node's record, unless it is there, and returns the role that the record has.
    ///
    /// # Errors
    /// When it cannot be committed, or the node was removed.
    async fn admit(&self, node: NewNode) -> Result<NodeRole, CaStoreError>;

    /// The role for the node's next certificate, not older than the call. A node that is being demoted counts as
    /// manager until it has left the Raft group.
    ///
    /// # Errors
    /// When no leader confirms it, or the node was removed or never was.
    async fn role(&self, node: NodeId) -> Result<NodeRole, CaStoreError>;
}

/// The store cannot answer the authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaStoreError {
    /// No leader, or no quorum. Worth another try.
    #[error("the cluster cannot decide now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The node is not of this cluster any more.
    #[error("node {node} is not part of the cluster (it may have been removed): leave, then join again")]
    NotAMember {
        /// Which.
        node: NodeId,
    },
}
