//! Which of the nodes that fit is the best.
//!
//! Spread preferences come first: they make a tree of domains (the values of a label), and a task goes down to the branch
//! with the fewest tasks of its service. In a domain a heap gives out the nodes, best first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use skep_proto::model::Node;

/// The order of the fields is the ranking. The node is last, so it is total and never depends on chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Tasks of the spec that failed there lately; zero below the number that counts.
    pub failures: u32,
    /// Tasks of the service.
    pub own: u32,
    /// Tasks of every service.
    pub tasks: u32,
    /// The node.
    pub node: u32,
}

/// The nodes that fit, in their domains.
#[derive(Debug)]
pub(super) enum Domain {
    /// No preference is left.
    Nodes(BinaryHeap<Reverse<Key>>),
    /// By the value of a preference, with the tasks of the service there.
    Branches(BTreeMap<String, (u32, Domain)>),
}

/// Reads `spread=node.labels.zone`'s descriptor, `node.labels.zone`; anything else is one domain for all.
fn value(preference: &str, node: &Node) -> String {
    let label = |map: &BTreeMap<String, String>, name: &str| map.get(name).cloned().unwrap_or_default();
    if let Some(name) = preference.strip_prefix("node.labels.") {
        label(&node.spec.annotations.labels, name)
    } else if let Some(name) = preference.strip_prefix("engine.labels.") {
        label(&node.description.engine_labels, name)
    } else {
        String::new()
    }
}

impl Domain {
    /// Arranges the nodes by the values of the preferences, the outermost first.
    pub(super) fn of<'a>(
        keys: impl Iterator<Item = Key>,
        preferences: &[String],
        node: impl Fn(u32) -> Option<&'a Node> + Copy,
    ) -> Self {
        let Some((first, rest)) = preferences.split_first() else {
            return Self::Nodes(keys.map(Reverse).collect());
        };
        let mut groups: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for key in keys {
            groups.entry(node(key.node).map(|n| value(first, n)).unwrap_or_default()).or_default().push(key);
        }
        let branch = |(value, keys): (String, Vec<Key>)| {
            let own = keys.iter().map(|key| key.own).sum();
            (value, (own, Self::of(keys.into_iter(), rest, node)))
        };
        Self::Branches(groups.into_iter().map(branch).collect())
    }

    /// Takes the best node. `again` says what its key is once it has the task, or that it can take no other.
    pub(super) fn place(&mut self, again: &mut impl FnMut(Key) -> Option<Key>) -> Option<u32> {
        match self {
            Self::Nodes(heap) => {
                let mut best = heap.peek_mut()?;
                let Reverse(key) = *best;
                match again(key) {
                    Some(next) => *best = Reverse(next),
                    None => drop(std::collections::binary_heap::PeekMut::pop(best)),
                }
                Some(key.node)
            }
            Self::Branches(branches) => {
                branches.retain(|_, (_, domain)| !domain.is_empty());
                let (own, domain) = branches.values_mut().min_by_key(|(own, _)| *own)?;
                let node = domain.place(again)?;
                *own += 1;
                Some(node)
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Nodes(heap) => heap.is_empty(),
            Self::Branches(branches) => branches.values().all(|(_, domain)| domain.is_empty()),
        }
    }
}
