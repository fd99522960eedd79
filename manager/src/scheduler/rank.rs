//! Which of the nodes that fit is the best.
//!
//! Spread preferences come first: they make a tree of domains (the values of a label), and a task goes down to the branch
//! with the fewest tasks of its service. In a domain a heap gives out the nodes, best first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

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
    Branches(Vec<(u32, Domain)>),
}

/// What a preference spreads tasks over. The prefix is compared without case, the label's name with it (swarmkit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread<'a> {
    /// The values of a label of nodes.
    NodeLabel(&'a str),
    /// The values of a label of daemons.
    EngineLabel(&'a str),
}

impl<'a> Spread<'a> {
    /// Reads `node.labels.zone`.
    pub fn parse(preference: &'a str) -> Option<Self> {
        let name = |prefix: &str| {
            let (head, name) = preference.split_at_checked(prefix.len())?;
            (head.eq_ignore_ascii_case(prefix) && !name.is_empty()).then_some(name)
        };
        name("node.labels.").map(Self::NodeLabel).or_else(|| name("engine.labels.").map(Self::EngineLabel))
    }
}

/// The value of a preference on a node. Nodes without the label are one domain.
pub fn value<'a>(preference: &str, node: &'a Node) -> &'a str {
    let (labels, name) = match Spread::parse(preference) {
        Some(Spread::NodeLabel(name)) => (&node.spec.annotations.labels, name),
        Some(Spread::EngineLabel(name)) => (&node.description.engine_labels, name),
        None => return "",
    };
    labels.get(name).map_or("", String::as_str)
}

impl Domain {
    /// Arranges the nodes by the values of the preferences, the outermost first. Each preference is a column by node of
    /// small numbers that stand for its values.
    pub(super) fn of(keys: Vec<Key>, preferences: &[&[u32]]) -> Self {
        let Some((first, rest)) = preferences.split_first() else {
            return Self::Nodes(keys.into_iter().map(Reverse).collect());
        };
        let mut groups: Vec<Vec<Key>> = Vec::new();
        for key in keys {
            let value = first[key.node as usize] as usize;
            if groups.len() <= value {
                groups.resize_with(value + 1, Vec::new);
            }
            groups[value].push(key);
        }
        let branch = |keys: Vec<Key>| (keys.iter().map(|key| key.own).sum(), Self::of(keys, rest));
        Self::Branches(groups.into_iter().filter(|keys| !keys.is_empty()).map(branch).collect())
    }

    /// Takes the best node. `again` says what its key is once it has the task, or that it can take no other.
    pub(super) fn place(&mut self, again: &mut impl FnMut(Key) -> Option<Key>) -> Option<u32> {
        match self {
            Self::Nodes(heap) => {
                let mut best = heap.peek_mut()?;
                let Reverse(key) = *best;
                match again(key) {
                    Some(next) => *best = Reverse(next),
                    None => drop(PeekMut::pop(best)),
                }
                Some(key.node)
            }
            Self::Branches(branches) => {
                // Where two have as few tasks, the better node decides.
                let rank = |(own, domain): &(u32, Self)| Some((*own, domain.best()?));
                let (_, best) = branches.iter().zip(0usize..).filter_map(|(b, at)| Some((rank(b)?, at))).min()?;
                let (own, domain) = &mut branches[best];
                let node = domain.place(again)?;
                *own += 1;
                Some(node)
            }
        }
    }

    /// The key of the node that would be taken.
    fn best(&self) -> Option<Key> {
        match self {
            Self::Nodes(heap) => heap.peek().map(|Reverse(key)| *key),
            Self::Branches(branches) => {
                branches.iter().filter_map(|(own, domain)| Some((*own, domain.best()?))).min().map(|(_, key)| key)
            }
        }
    }
}
