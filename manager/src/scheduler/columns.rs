//! What nodes are and have left, by handle: bitmaps for what depends on the node alone, columns for what tasks take.
//!
//! A filter over all nodes is one AND of bitmaps, and the popcount of what it removes is the explanation. Bitmaps are
//! kept between plans and patched where a node's record changed; columns are counted down while a plan places tasks.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::model::node::Allowance;
use skep_proto::model::service::Protocol;
use skep_proto::model::task::Platform;
use skep_proto::model::{Availability, Node, NodeState, TaskSpec};

use super::constraint::{self, Constraint};
use super::filter::{Filter, allowances, plugins, runs_platform};
use super::rank;
use crate::store::{NodeRef, Reference, SharedSpec, State};

/// Classes of specs remembered at most; past it all are forgotten and made again as they are asked for.
const MOST_CLASSES: usize = 4096;

/// One bit a node handle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn set(&mut self, handle: u32, is: bool) {
        let (word, bit) = (handle as usize / 64, 1u64 << (handle % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if is {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    pub(super) fn has(&self, handle: u32) -> bool {
        self.0.get(handle as usize / 64).is_some_and(|word| word & (1 << (handle % 64)) != 0)
    }

    /// Keeps what `filter` has too. Returns how many were removed.
    fn and(&mut self, filter: &Self) -> usize {
        let mut lost = 0;
        for (at, word) in self.0.iter_mut().enumerate() {
            let kept = *word & filter.0.get(at).copied().unwrap_or_default();
            lost += (*word ^ kept).count_ones() as usize;
            *word = kept;
        }
        lost
    }

    /// Keeps those that pass. Returns how many were removed.
    fn retain(&mut self, mut passes: impl FnMut(u32) -> bool) -> usize {
        let refused: Vec<u32> = self.iter().filter(|handle| !passes(*handle)).collect();
        refused.iter().for_each(|handle| self.set(*handle, false));
        refused.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.0).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    at * 64 + bit
                })
            })
        })
    }
}

/// What a spec asks of the node alone. Specs that ask the same share its bitmaps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    plugins: Vec<(String, String)>,
    constraints: Vec<String>,
    platforms: Vec<(String, String)>,
    allowances: Vec<Allowance>,
}

impl Class {
    fn of(spec: &TaskSpec) -> Self {
        let platform = |p: &Platform| (p.architecture.clone(), p.os.clone());
        Self {
            plugins: plugins(spec),
            constraints: spec.placement.constraints.clone(),
            platforms: spec.placement.platforms.iter().map(platform).collect(),
            allowances: allowances(spec),
        }
    }
}

/// The answers for a class, and what is needed to ask again.
#[derive(Debug, Clone)]
struct Answers {
    /// Unreadable constraints are refused when a service is made; one that got in by an older release matches nothing.
    constraints: Option<Vec<Constraint>>,
    spec: TaskSpec,
    has_plugins: Bits,
    satisfies: Bits,
    runs: Bits,
    /// For each allowance of the class, in its order.
    allows: Vec<Bits>,
}

impl Answers {
    fn new(class: &Class, spec: &TaskSpec) -> Self {
        Self {
            constraints: class.constraints.iter().map(|text| constraint::parse(text).ok()).collect(),
            spec: TaskSpec { placement: spec.placement.clone(), ..TaskSpec::default() },
            has_plugins: Bits::default(),
            satisfies: Bits::default(),
            runs: Bits::default(),
            allows: vec![Bits::default(); class.allowances.len()],
        }
    }

    fn ask(&mut self, class: &Class, handle: u32, node: Option<&Node>) {
        let has = |node: &Node| class.plugins.iter().all(|needed| node.description.plugins.contains(needed));
        let satisfies = |node: &Node| self.constraints.as_ref().is_some_and(|all| all.iter().all(|c| c.matches(node)));
        self.has_plugins.set(handle, node.is_some_and(has));
        self.satisfies.set(handle, node.is_some_and(satisfies));
        self.runs.set(handle, node.is_some_and(|node| runs_platform(node, &self.spec.placement)));
        for (what, allows) in class.allowances.iter().zip(&mut self.allows) {
            allows.set(handle, node.is_some_and(|node| node.spec.allows(*what)));
        }
    }
}

/// What is remembered between plans. It can be thrown away at any time.
#[derive(Debug, Default)]
pub struct Cache {
    nodes_index: u64,
    /// The node at each handle, and the version of its record that was asked.
    known: Vec<Option<(NodeRef, u64)>>,
    present: Bits,
    ready: Bits,
    nano_cpus: Vec<i64>,
    memory: Vec<i64>,
    classes: BTreeMap<Class, Answers>,
    preferences: BTreeMap<String, Values>,
}

/// The value of a preference on each node, as a small number.
#[derive(Debug, Default)]
struct Values {
    column: Vec<u32>,
    numbers: BTreeMap<String, u32>,
}

impl Values {
    fn ask(&mut self, preference: &str, handle: u32, node: Option<&Node>) {
        let value = node.map_or("", |node| rank::value(preference, node));
        let known = self.numbers.get(value).copied();
        let number = known.unwrap_or_else(|| {
            let next = u32::try_from(self.numbers.len()).expect("fewer values than nodes");
            self.numbers.insert(value.to_owned(), next);
            next
        });
        let at = handle as usize;
        if self.column.len() <= at {
            self.column.resize(at + 1, 0);
        }
        self.column[at] = number;
    }
}

impl Cache {
    /// Asks again of every node whose record changed.
    pub(super) fn refresh(&mut self, state: &State) {
        if self.nodes_index == state.nodes_index() && self.known.len() == state.nodes().handles() {
            return;
        }
        self.nodes_index = state.nodes_index();
        let handles = state.nodes().handles();
        self.known.resize(handles, None);
        self.nano_cpus.resize(handles, 0);
        self.memory.resize(handles, 0);
        let mut there: Vec<Option<(NodeRef, &Node)>> = vec![None; handles];
        for (reference, node) in state.nodes().iter() {
            there[reference.handle() as usize] = Some((reference, node));
        }
        for (handle, node) in (0u32..).zip(there) {
            let at = handle as usize;
            let seen = node.map(|(reference, node)| (reference, node.meta.version.0));
            if self.known[at] == seen {
                continue;
            }
            self.known[at] = seen;
            let node = node.map(|(_, node)| node);
            self.present.set(handle, node.is_some());
            let is_ready = |n: &Node| n.state == NodeState::Ready && n.spec.availability == Availability::Active;
            self.ready.set(handle, node.is_some_and(is_ready));
            self.nano_cpus[at] = node.map_or(0, |n| n.description.nano_cpus);
            self.memory[at] = node.map_or(0, |n| n.description.memory);
            for (class, answers) in &mut self.classes {
                answers.ask(class, handle, node);
            }
            for (preference, values) in &mut self.preferences {
                values.ask(preference, handle, node);
            }
        }
    }

    pub(super) fn node(&self, handle: u32) -> Option<NodeRef> {
        self.known.get(handle as usize).copied().flatten().map(|(reference, _)| reference)
    }

    /// The columns of a spec's preferences, the outermost first.
    pub(super) fn preferences(&mut self, state: &State, wanted: &[String]) -> Vec<&[u32]> {
        if self.preferences.len() >= MOST_CLASSES {
            self.preferences.clear();
        }
        for preference in wanted {
            self.preferences.entry(preference.clone()).or_insert_with(|| {
                let mut values = Values::default();
                state.nodes().iter().for_each(|(r, node)| values.ask(preference, r.handle(), Some(node)));
                values
            });
        }
        wanted.iter().filter_map(|preference| Some(self.preferences.get(preference)?.column.as_slice())).collect()
    }

    fn answers(&mut self, state: &State, spec: &TaskSpec) -> &Answers {
        if self.classes.len() >= MOST_CLASSES {
            self.classes.clear();
        }
        let class = Class::of(spec);
        self.classes.entry(class.clone()).or_insert_with(|| {
            let mut answers = Answers::new(&class, spec);
            state.nodes().iter().for_each(|(r, node)| answers.ask(&class, r.handle(), Some(node)));
            answers
        })
    }
}

/// How many nodes each filter refused.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Refused([usize; Filter::ALL.len()]);

impl Refused {
    pub(super) fn add(&mut self, filter: Filter, nodes: usize) {
        self.0[filter as usize] += nodes;
    }

    /// The counts in words, the largest first (swarmkit's form).
    pub(super) fn explain(&self) -> String {
        let mut counts: Vec<(usize, Filter)> = Filter::ALL.map(|f| (self.0[f as usize], f)).to_vec();
        counts.retain(|(count, _)| *count > 0);
        counts.sort_by_key(|(count, filter)| (std::cmp::Reverse(*count), *filter));
        if counts.is_empty() {
            return "no suitable node".into();
        }
        let parts: Vec<String> = counts.into_iter().map(|(count, filter)| filter.explain(count)).collect();
        format!("no suitable node ({})", parts.join("; "))
    }
}

/// What nodes have left, counted down while a plan places tasks.
#[derive(Debug)]
pub(super) struct Columns {
    nano_cpus: Vec<i64>,
    memory: Vec<i64>,
    /// Tasks of every service.
    pub tasks: Vec<u32>,
    /// Generic resources given by this plan, by node and kind.
    generic: BTreeMap<(u32, String), u64>,
    /// Host-mode ports given by this plan.
    ports: BTreeSet<(u32, Protocol, u16)>,
}

impl Columns {
    pub(super) fn of(state: &State, cache: &Cache) -> Self {
        let (mut nano_cpus, mut memory) = (cache.nano_cpus.clone(), cache.memory.clone());
        let mut tasks = vec![0; cache.known.len()];
        for (handle, load) in state.loads() {
            let at = handle as usize;
            if at < tasks.len() {
                nano_cpus[at] = nano_cpus[at].saturating_sub(load.nano_cpus);
                memory[at] = memory[at].saturating_sub(load.memory);
                tasks[at] = load.tasks;
            }
        }
        Self { nano_cpus, memory, tasks, generic: BTreeMap::new(), ports: BTreeSet::new() }
    }

    /// The nodes that can take a task of `spec`, as far as the service's other tasks do not matter. The others are
    /// counted at the first filter that refuses them.
    pub(super) fn fitting(
        &self,
        state: &State,
        cache: &mut Cache,
        spec: &SharedSpec,
        refused: &mut Refused,
        within: Option<&Bits>,
    ) -> Bits {
        let mut alive = within.unwrap_or(&cache.present).clone();
        refused.add(Filter::Ready, alive.and(&cache.ready));
        if spec.nano_cpus > 0 || spec.memory > 0 || spec.generic().next().is_some() {
            refused.add(Filter::Resources, alive.retain(|handle| self.has_room(state, handle, spec)));
        }
        let answers = cache.answers(state, &spec.task);
        refused.add(Filter::Plugins, alive.and(&answers.has_plugins));
        refused.add(Filter::Constraints, alive.and(&answers.satisfies));
        refused.add(Filter::Platform, alive.and(&answers.runs));
        for (what, allows) in allowances(&spec.task).into_iter().zip(&answers.allows) {
            let filter = match what {
                Allowance::Privileged => Filter::Privileged,
                Allowance::Device => Filter::Device,
            };
            refused.add(filter, alive.and(allows));
        }
        if !spec.host_ports.is_empty() {
            refused.add(Filter::HostPorts, alive.retain(|handle| self.has_ports(state, handle, spec)));
        }
        alive
    }

    /// The filter that refuses a node after it took a task of `spec`; `None` while it can take another.
    pub(super) fn refusal(&self, state: &State, handle: u32, spec: &SharedSpec) -> Option<Filter> {
        if !self.has_room(state, handle, spec) {
            Some(Filter::Resources)
        } else if !self.has_ports(state, handle, spec) {
            Some(Filter::HostPorts)
        } else {
            None
        }
    }

    fn has_room(&self, state: &State, handle: u32, spec: &SharedSpec) -> bool {
        let at = handle as usize;
        let generic = || {
            // Most specs ask for none: the node is then not looked up.
            let node = spec.generic().next().and_then(|_| state.nodes().at(handle));
            spec.generic().all(|(kind, amount)| {
                let total = node.and_then(|n| n.description.generic.get(kind)).copied().unwrap_or_default();
                let given = self.generic.get(&(handle, kind.clone())).copied().unwrap_or_default();
                let reference = node.and_then(|n| state.nodes().reference(n.id));
                let used = reference.map_or(0, |r| state.generic_load(r, kind));
                used.saturating_add(given).saturating_add(*amount) <= total
            })
        };
        (spec.nano_cpus == 0 || spec.nano_cpus <= self.nano_cpus[at])
            && (spec.memory == 0 || spec.memory <= self.memory[at])
            && generic()
    }

    fn has_ports(&self, state: &State, handle: u32, spec: &SharedSpec) -> bool {
        let reference = || state.nodes().at(handle).and_then(|n| state.nodes().reference(n.id));
        spec.host_ports.iter().all(|(protocol, port)| {
            !self.ports.contains(&(handle, *protocol, *port))
                && reference().is_none_or(|r| state.host_port_holder(r, *protocol, *port).is_none())
        })
    }

    pub(super) fn take(&mut self, handle: u32, spec: &SharedSpec) {
        let at = handle as usize;
        self.nano_cpus[at] = self.nano_cpus[at].saturating_sub(spec.nano_cpus);
        self.memory[at] = self.memory[at].saturating_sub(spec.memory);
        self.tasks[at] += 1;
        for (kind, amount) in spec.generic() {
            *self.generic.entry((handle, kind.clone())).or_default() += amount;
        }
        self.ports.extend(spec.host_ports.iter().map(|(protocol, port)| (handle, *protocol, *port)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bitmaps_are_sets(a in prop::collection::btree_set(0u32..300, 0..80), b in prop::collection::btree_set(0u32..300, 0..80)) {
            let bits = |set: &BTreeSet<u32>| {
                let mut bits = Bits::default();
                set.iter().for_each(|handle| bits.set(*handle, true));
                bits
            };
            let mut both = bits(&a);
            let lost = both.and(&bits(&b));
            let wanted: Vec<u32> = a.intersection(&b).copied().collect();
            prop_assert_eq!(lost, a.len() - wanted.len());
            prop_assert_eq!(both.is_empty(), wanted.is_empty());
            prop_assert!((0..300).all(|h| both.has(h) == wanted.contains(&h)));
            prop_assert_eq!(both.iter().collect::<Vec<_>>(), wanted);
        }
    }
}
