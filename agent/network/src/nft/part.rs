//! A part of a table: some of its chains and elements as they should be, whatever else it has. What changes in a table of a
//! thousand services is mostly one of them.

use std::collections::{BTreeMap, BTreeSet};

use super::table::{Chain, Family, MapTo, Set, Table, Value};

/// Some chains and elements of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub name: String,
    chains: BTreeMap<String, Option<Chain>>,
    elements: BTreeMap<String, BTreeMap<Vec<u8>, Option<Value>>>,
}

impl Part {
    /// No part of a table yet.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), chains: BTreeMap::new(), elements: BTreeMap::new() }
    }

    /// Family and name of the table.
    pub fn key(&self) -> (Family, String) {
        (self.family, self.name.clone())
    }

    /// With the end of those chains of `table` that maps led to and that none leads to any more once `table` is brought to
    /// this. No rule leads to a chain by itself.
    pub fn with_left_chains(mut self, table: &Table) -> Self {
        let elements = self.elements.iter().filter_map(|(name, elements)| Some((table.sets.get(name)?, elements)));
        let before = elements.flat_map(|(set, elements)| elements.keys().filter_map(|key| set.elements.get(key)));
        let mut left: BTreeSet<String> = before.filter_map(Value::chain).cloned().collect();
        if left.is_empty() {
            return self;
        }
        let after = self.elements.values().flat_map(|elements| elements.values().flatten());
        for name in after.filter_map(Value::chain) {
            left.remove(name);
        }
        for (name, set) in table.sets.iter().filter(|(_, set)| set.to == Some(MapTo::Verdict)) {
            let named = self.elements.get(name);
            let kept = set.elements.iter().filter(|(key, _)| named.is_none_or(|named| !named.contains_key(*key)));
            for name in kept.filter_map(|(_, value)| value.chain()) {
                left.remove(name);
            }
        }
        self.chains.extend(left.into_iter().map(|name| (name, None)));
        self
    }

    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.elements.is_empty()
    }

    /// A chain as it should be; `None`: it should not be.
    pub fn chain(&mut self, name: impl Into<String>, chain: Option<Chain>) {
        self.chains.insert(name.into(), chain);
    }

    /// An element of a set or map as it should be; `None`: it should not be.
    pub fn element(&mut self, set: &str, key: Vec<u8>, value: Option<Value>) {
        self.elements.entry(set.into()).or_default().insert(key, value);
    }

    /// A table with nothing but what this names, as it is in `table`. Sets that `table` lacks are not there.
    pub fn of(&self, table: &Table) -> Table {
        let mut part = Table::new(self.family, self.name.clone());
        let chains = self.chains.keys().filter_map(|name| table.chains.get_key_value(name));
        part.chains = chains.map(|(name, chain)| (name.clone(), chain.clone())).collect();
        for (name, keys) in &self.elements {
            let Some(set) = table.sets.get(name) else { continue };
            let elements = keys.keys().filter_map(|key| set.elements.get_key_value(key));
            let elements = elements.map(|(key, value)| (key.clone(), value.clone())).collect();
            part.sets.insert(name.clone(), Set { key: set.key.clone(), to: set.to.clone(), elements });
        }
        part
    }

    /// Brings `table` to it. False when it lacks a set that this has elements for: then it is another table, and nothing
    /// was changed.
    pub fn put_into(&self, table: &mut Table) -> bool {
        if !self.elements.keys().all(|set| table.sets.contains_key(set)) {
            return false;
        }
        for (name, chain) in &self.chains {
            match chain {
                Some(chain) => drop(table.chains.insert(name.clone(), chain.clone())),
                None => drop(table.chains.remove(name)),
            }
        }
        for (set, elements) in &self.elements {
            let Some(set) = table.sets.get_mut(set) else { continue };
            for (key, value) in elements {
                match value {
                    Some(value) => drop(set.elements.insert(key.clone(), value.clone())),
                    None => drop(set.elements.remove(key)),
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::expr::Verdict;
    use super::super::rule::Rule;
    use super::super::table::Field;
    use super::*;

    #[test]
    fn a_chain_goes_with_the_last_element_that_leads_to_it() {
        let goto = |name: &str| Value::Verdict(Verdict::Goto(name.into()));
        let table = |elements: &[(u8, &str)], chains: &[&str]| {
            let mut table = Table::new(Family::Ipv4, "t");
            let mut map = Set::map([Field::Address], MapTo::Verdict);
            elements.iter().for_each(|(key, to)| map.put(vec![*key], goto(to)));
            table.sets.insert("map".into(), map);
            chains.iter().for_each(|name| table.chain(*name, vec![Rule::new().accept()]));
            table
        };
        let step = |before: &Table, key: u8, to: Option<&str>| {
            let mut part = Part::new(Family::Ipv4, "t");
            part.element("map", vec![key], to.map(goto));
            let (part, mut after) = (part.with_left_chains(before), before.clone());
            assert!(part.put_into(&mut after));
            after
        };
        let both = table(&[(1, "a"), (2, "a"), (3, "b")], &["a", "b"]);
        assert_eq!(step(&both, 1, Some("b")), table(&[(1, "b"), (2, "a"), (3, "b")], &["a", "b"]));
        assert_eq!(step(&both, 3, None), table(&[(1, "a"), (2, "a")], &["a"]));
        assert_eq!(step(&both, 3, Some("b")), both);
        assert_eq!(step(&step(&both, 1, Some("b")), 2, Some("b")), table(&[(1, "b"), (2, "b"), (3, "b")], &["b"]));
    }
}
