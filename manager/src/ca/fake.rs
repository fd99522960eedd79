//! A store of nodes in memory and a clock that tests move.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use skep_identity::Clock;
use skep_proto::model::{NodeId, NodeRole, Timestamp};

use super::{CaStore, CaStoreError, ClusterCa, NewNode};

/// 2026-01-01.
pub(crate) const START: Timestamp = Timestamp(1_767_225_600_000);

#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(at: Timestamp) -> Self {
        Self(AtomicU64::new(at.0))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn go_back(&self, by: Duration) {
        self.0.fetch_sub(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Debug)]
pub(crate) struct MemoryStore {
    pub(crate) cluster: Mutex<ClusterCa>,
    pub(crate) nodes: Mutex<BTreeMap<NodeId, NewNode>>,
}

#[async_trait]
impl CaStore for MemoryStore {
    async fn cluster(&self) -> Result<ClusterCa, CaStoreError> {
        Ok(self.cluster.lock().unwrap().clone())
    }

    async fn admit(&self, node: NewNode) -> Result<NodeRole, CaStoreError> {
        Ok(self.nodes.lock().unwrap().entry(node.id).or_insert(node).role)
    }

    async fn role(&self, node: NodeId) -> Result<NodeRole, CaStoreError> {
        let nodes = self.nodes.lock().unwrap();
        nodes.get(&node).map(|n| n.role).ok_or(CaStoreError::NotAMember { node })
    }
}
