//! Which nodes know the WireGuard key that a node announced as its next one. Pure.
//!
//! A node goes over to a new key when the others have it in force: until then they would not answer. They say so as for
//! everything else they were told, by the number of the set that they have applied.
//!
//! | step | who | does |
//! |---|---|---|
//! | 1 | the node | announces `next` beside the key that it uses |
//! | 2 | every other node | takes both keys in force, acknowledges the set |
//! | 3 | the leader | tells the node that its next key is known ([`Keys::is_known`]) |
//! | 4 | the node | uses it, forgets the former one, and announces it alone |
//!
//! A node whose daemon is down goes on speaking, by what it was told last. One that was told the next key before is no
//! hindrance: what it acknowledged holds beyond its session. One that was not would lose the node that changes its key, so
//! the change waits for it: until it is back, is removed, or has been down for [`DOWN_COUNTS`].

use std::collections::HashMap;
use std::time::Duration;

use skep_proto::model::node::WireGuard;
use skep_proto::model::session::{AssignmentChange, Assignments};
use skep_proto::model::{Node, NodeId, NodeState, Timestamp};

/// A public key.
type Key = [u8; 32];

/// How long others wait with their next key for a node that is down and does not know it. A day: somebody repairs it, or
/// removes it. It bounds how long a node that is held down by somebody may keep others from changing a key.
pub const DOWN_COUNTS: Duration = Duration::from_secs(24 * 3600);

/// What each node was told of keys that others will use next. Empty but while keys change.
#[derive(Debug, Default)]
pub struct Keys {
    nodes: HashMap<NodeId, Told>,
}

#[derive(Debug, Default)]
struct Told {
    session: u64,
    /// Sets that were sent.
    sets: u64,
    /// Keys by their node, with the number of the set that told it.
    keys: HashMap<NodeId, (u64, Key)>,
    /// Sets that the node has applied.
    applied: u64,
}

impl Keys {
    /// A session begins; its first set is whole.
    pub fn begin(&mut self, node: NodeId, session: u64) {
        self.nodes.insert(node, Told { session, ..Told::default() });
    }

    /// The node has no session any more. What it has applied, it goes by; what it was told besides may not have come.
    pub fn lost(&mut self, node: NodeId) {
        let Some(told) = self.nodes.get_mut(&node) else { return };
        let applied = told.applied;
        told.keys.retain(|_, (set, _)| *set <= applied);
    }

    /// Only these nodes are left.
    pub fn retain(&mut self, is_left: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| is_left(*node));
    }

    /// A set is about to be sent.
    pub fn sending(&mut self, node: NodeId, session: u64, set: &Assignments) {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.session == session) else { return };
        told.sets += 1;
        for change in &set.changes {
            match change {
                AssignmentChange::PutPeer(peer) => match peer.wireguard.as_ref().and_then(|own| own.next) {
                    Some(next) => {
                        told.keys.insert(peer.node, (told.sets, next));
                    }
                    None => {
                        told.keys.remove(&peer.node);
                    }
                },
                AssignmentChange::RemovePeer(gone) => {
                    told.keys.remove(gone);
                }
                _ => {}
            }
        }
    }

    /// The node has applied so many sets. Returns the nodes of which it knows the next key by that.
    pub fn applied(&mut self, node: NodeId, session: u64, sets: u64) -> Vec<NodeId> {
        let Some(told) = self.nodes.get_mut(&node).filter(|told| told.session == session) else { return Vec::new() };
        let now = sets.max(told.applied);
        let before = std::mem::replace(&mut told.applied, now);
        let told = &*told;
        let news = told.keys.iter().filter(|(_, (set, _))| (before + 1..=told.applied).contains(set));
        news.map(|(subject, _)| *subject).collect()
    }

    /// Whether all nodes that count know `key` as the next one of `subject`. Nodes that do not encrypt do not count, those that
    /// left among them, nor at the time `now` those that have been down for `down_counts`.
    pub fn is_known<'a>(
        &self,
        subject: NodeId,
        key: &Key,
        nodes: impl IntoIterator<Item = &'a Node>,
        now: Timestamp,
        down_counts: Duration,
    ) -> bool {
        let mut others = nodes.into_iter().filter(|node| {
            node.id != subject && node.description.wireguard.is_some() && !is_long_down(node, now, down_counts)
        });
        others.all(|node| {
            let told = self.nodes.get(&node.id);
            told.is_some_and(|told| told.keys.get(&subject).is_some_and(|(set, k)| *set <= told.applied && k == key))
        })
    }
}

/// Nothing changes the record of a node that is down but an operator: its last change is when it went down, or later.
fn is_long_down(node: &Node, now: Timestamp, limit: Duration) -> bool {
    match node.state {
        NodeState::Down | NodeState::Disconnected => now >= node.meta.updated_at.after(limit),
        NodeState::Ready | NodeState::Unknown => false,
    }
}

/// Whether one of the keys is another node's: a node may set its own only, or it would take the other off the network.
pub fn is_taken<'a>(of: NodeId, announced: &WireGuard, nodes: impl IntoIterator<Item = &'a Node>) -> bool {
    let keys = |own: &WireGuard| std::iter::once(own.key).chain(own.next);
    let others = nodes.into_iter().filter(|node| node.id != of).filter_map(|node| node.description.wireguard.as_ref());
    let taken: Vec<Key> = others.flat_map(keys).collect();
    keys(announced).any(|key| taken.contains(&key))
}

#[cfg(test)]
mod tests {
    use skep_proto::model::view::Peer;

    use super::super::fake;
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const NEXT: Key = [7; 32];
    const NOW: Timestamp = Timestamp(1_000_000_000);
    const LIMIT: Duration = Duration::from_secs(1000);

    fn known(keys: &Keys, key: &Key, nodes: &[Node]) -> bool {
        keys.is_known(A, key, nodes, NOW, LIMIT)
    }

    fn put(next: Option<Key>) -> Assignments {
        let wireguard = Some(WireGuard { port: 51820, key: [1; 32], next });
        let peer = Peer { node: A, index: 1, data_path: Vec::new(), wireguard, ipv4_only: false };
        Assignments { index: 1, complete: false, changes: vec![AssignmentChange::PutPeer(peer)] }
    }

    fn nodes() -> Vec<Node> {
        [A, B, C]
            .map(|id| {
                let mut node = fake::node(id.0);
                node.description.wireguard =
                    Some(WireGuard { port: 51820, key: [u8::try_from(id.0).unwrap(); 32], next: None });
                node
            })
            .to_vec()
    }

    #[test]
    fn a_key_is_known_when_every_other_node_has_applied_the_set_that_told_it() {
        let (mut keys, nodes) = (Keys::default(), nodes());
        for node in [B, C] {
            keys.begin(node, 1);
            keys.sending(node, 1, &put(Some(NEXT)));
        }
        assert!(!known(&keys, &NEXT, &nodes), "told is not applied");
        assert_eq!(keys.applied(B, 1, 1), [A]);
        assert_eq!(keys.applied(B, 1, 1), [], "said already");
        assert!(!known(&keys, &NEXT, &nodes));
        assert_eq!(keys.applied(C, 0, 1), [], "of another session");
        keys.applied(C, 1, 1);
        assert!(known(&keys, &NEXT, &nodes));
        assert!(!known(&keys, &[8; 32], &nodes), "another key");
    }

    #[test]
    fn a_node_that_is_down_is_waited_for_until_it_is_removed_or_long_down() {
        let (mut keys, mut nodes) = (Keys::default(), nodes());
        keys.begin(B, 1);
        keys.sending(B, 1, &put(Some(NEXT)));
        keys.applied(B, 1, 1);
        assert!(!known(&keys, &NEXT, &nodes));
        nodes[2].meta.updated_at = NOW;
        for state in [NodeState::Down, NodeState::Unknown, NodeState::Disconnected, NodeState::Ready] {
            nodes[2].state = state;
            assert!(!known(&keys, &NEXT, &nodes), "{state:?}");
        }
        assert!(known(&keys, &NEXT, &nodes[..2]), "it was removed");
        nodes[2].description.wireguard = None;
        assert!(known(&keys, &NEXT, &nodes), "it left");
        nodes[2].description.wireguard = nodes[1].description.wireguard.clone();
        nodes[2].state = NodeState::Down;
        let at = |after: Duration| keys.is_known(A, &NEXT, &nodes, NOW.after(after), LIMIT);
        assert_eq!([at(LIMIT - Duration::from_millis(1)), at(LIMIT)], [false, true]);
    }

    #[test]
    fn what_a_node_has_applied_holds_when_it_is_lost_and_a_new_session_begins_anew() {
        let (mut keys, mut nodes) = (Keys::default(), nodes());
        nodes.truncate(2);
        keys.begin(B, 1);
        keys.sending(B, 1, &put(Some(NEXT)));
        keys.applied(B, 1, 1);
        keys.sending(B, 1, &put(Some([9; 32])));
        keys.lost(B);
        assert!(!known(&keys, &[9; 32], &nodes), "told, and perhaps never heard");
        keys.begin(B, 2);
        keys.sending(B, 2, &put(Some(NEXT)));
        keys.applied(B, 2, 1);
        keys.lost(B);
        (nodes[1].state, nodes[1].meta.updated_at) = (NodeState::Down, NOW);
        assert!(known(&keys, &NEXT, &nodes));
        keys.retain(|node| node != B);
        assert!(!known(&keys, &NEXT, &nodes));
        keys.begin(B, 3);
        assert!(!known(&keys, &NEXT, &nodes));
        keys.sending(B, 3, &put(Some(NEXT)));
        keys.sending(B, 3, &put(None));
        keys.applied(B, 3, 2);
        assert!(!known(&keys, &NEXT, &nodes), "it was taken back");
    }

    #[test]
    fn a_node_cannot_announce_a_key_of_another() {
        let nodes = nodes();
        let mine = WireGuard { port: 51820, key: [1; 32], next: Some([9; 32]) };
        assert!(!is_taken(A, &mine, &nodes));
        assert!(is_taken(A, &WireGuard { key: [2; 32], ..mine.clone() }, &nodes));
        assert!(is_taken(A, &WireGuard { next: Some([3; 32]), ..mine }, &nodes));
    }
}
