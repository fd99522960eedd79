//! Which of the nodes that fit is the best.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::filter::Room;
use crate::store::NodeRef;

/// Fewest tasks of the service first, then fewest tasks, then the lowest node: total, so the order never depends on
/// chance. The order of the fields is the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    own: u32,
    tasks: u32,
    node: NodeRef,
}

/// Nodes that fit, best first.
#[derive(Debug, Default)]
pub(super) struct Queue(BinaryHeap<Reverse<Key>>);

impl Queue {
    pub(super) fn push(&mut self, node: NodeRef, room: &Room) {
        self.0.push(Reverse(Key { own: room.own, tasks: room.tasks, node }));
    }

    pub(super) fn pop(&mut self) -> Option<NodeRef> {
        self.0.pop().map(|Reverse(key)| key.node)
    }
}
