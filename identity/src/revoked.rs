//! Nodes that were removed from the cluster, though their certificates are still valid.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_proto::model::NodeId;
use tokio::sync::watch;

/// The removed nodes, shared by all who check certificates. Cheap to clone; all clones are one list.
///
/// It is a list of those refused, not of those admitted: a manager that lags behind must still talk to a node that it
/// has not heard of.
#[derive(Debug, Clone)]
pub struct Revoked(Arc<watch::Sender<Arc<BTreeSet<NodeId>>>>);

impl Default for Revoked {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::default())))
    }
}

impl Revoked {
    /// Whether `node` was removed.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.borrow().contains(&node)
    }

    /// Adds one node.
    pub fn insert(&self, node: NodeId) {
        self.0.send_if_modified(|set| !set.contains(&node) && Arc::make_mut(set).insert(node));
    }

    /// Replaces the list.
    pub fn replace(&self, nodes: BTreeSet<NodeId>) {
        self.0.send_if_modified(|set| {
            let changed = **set != nodes;
            if changed {
                *set = Arc::new(nodes);
            }
            changed
        });
    }

    /// Completes once `node` is removed.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_for(&self, node: NodeId) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|set| set.contains(&node)).await;
    }
}
