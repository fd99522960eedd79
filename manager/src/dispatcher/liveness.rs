//! Until when each node must be heard of. Pure.

use std::collections::{BTreeSet, HashMap};

use skep_proto::model::NodeId;
use tokio::time::Instant;

/// Deadlines of nodes.
#[derive(Debug, Default)]
pub struct Deadlines {
    by_node: HashMap<NodeId, Instant>,
    by_time: BTreeSet<(Instant, NodeId)>,
}

impl Deadlines {
    /// `node` counts as alive until `until`.
    pub fn set(&mut self, node: NodeId, until: Instant) {
        self.remove(node);
        self.by_node.insert(node, until);
        self.by_time.insert((until, node));
    }

    /// The same for a node that has no deadline yet.
    pub fn set_if_absent(&mut self, node: NodeId, until: Instant) {
        if !self.by_node.contains_key(&node) {
            self.set(node, until);
        }
    }

    /// Whether `node` has a deadline.
    pub fn contains(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Waits no more for `node`.
    pub fn remove(&mut self, node: NodeId) {
        if let Some(until) = self.by_node.remove(&node) {
            self.by_time.remove(&(until, node));
        }
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// Removes and returns the nodes whose deadline is not after `now`, the longest silent first.
    pub fn take_expired(&mut self, now: Instant) -> Vec<NodeId> {
        let mut expired = Vec::new();
        while let Some((until, node)) = self.by_time.first().copied().filter(|(until, _)| *until <= now) {
            self.by_time.remove(&(until, node));
            self.by_node.remove(&node);
            expired.push(node);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_expires_at_its_last_deadline_and_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(NodeId(1), at(6));
        deadlines.set(NodeId(2), at(5));
        deadlines.set(NodeId(1), at(8));
        deadlines.set_if_absent(NodeId(2), at(100));
        deadlines.set(NodeId(3), at(1));
        deadlines.remove(NodeId(3));
        assert_eq!(deadlines.next(), Some(at(5)));
        assert_eq!(deadlines.take_expired(at(7)), [NodeId(2)]);
        assert_eq!(deadlines.take_expired(at(8)), [NodeId(1)]);
        assert_eq!((deadlines.next(), deadlines.take_expired(at(1000))), (None, vec![]));
    }
}
