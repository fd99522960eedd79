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
//! | 4 | the node | uses it, and announces it alone |

use std::collections::HashMap;

use skep_proto::model::node::WireGuard;
use skep_proto::model::session::{AssignmentChange, Assignments};
use skep_proto::model::{Node, NodeId, NodeState};

/// A public key.
type Key = [u8; 32];

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

    /// The node is lost or gone.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
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

    /// Whether all nodes that count know `key` as the next one of `subject`. Nodes that are down do not count: their tasks
    /// were replaced, and they are told everything when they are back. Nor do those that do not encrypt.
    pub fn is_known<'a>(&self, subject: NodeId, key: &Key, nodes: impl IntoIterator<Item = &'a Node>) -> bool {
        let mut others = nodes.into_iter().filter(|node| {
            node.id != subject && node.state == NodeState::Ready && node.description.wireguard.is_some()
        });
        others.all(|node| {
            let told = self.nodes.get(&node.id);
            told.is_some_and(|told| told.keys.get(&subject).is_some_and(|(set, k)| *set <= told.applied && k == key))
        })
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
        assert!(!keys.is_known(A, &NEXT, &nodes), "told is not applied");
        assert_eq!(keys.applied(B, 1, 1), [A]);
        assert_eq!(keys.applied(B, 1, 1), [], "said already");
        assert!(!keys.is_known(A, &NEXT, &nodes));
        assert_eq!(keys.applied(C, 0, 1), [], "of another session");
        keys.applied(C, 1, 1);
        assert!(keys.is_known(A, &NEXT, &nodes));
        assert!(!keys.is_known(A, &[8; 32], &nodes), "another key");
    }

    #[test]
    fn nodes_that_are_down_are_not_waited_for_and_a_new_session_begins_anew() {
        let (mut keys, mut nodes) = (Keys::default(), nodes());
        keys.begin(B, 1);
        keys.sending(B, 1, &put(Some(NEXT)));
        keys.applied(B, 1, 1);
        assert!(!keys.is_known(A, &NEXT, &nodes));
        nodes[2].state = NodeState::Down;
        assert!(keys.is_known(A, &NEXT, &nodes));
        keys.begin(B, 2);
        assert!(!keys.is_known(A, &NEXT, &nodes));
        keys.sending(B, 2, &put(Some(NEXT)));
        keys.sending(B, 2, &put(None));
        keys.applied(B, 2, 2);
        assert!(!keys.is_known(A, &NEXT, &nodes), "it was taken back");
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
