//! A part of a table: some of its chains and elements as they should be, whatever else it has. What changes in a table of a
//! thousand services is mostly one of them.

use std::collections::BTreeMap;

use super::table::{Chain, Family, Set, Table, Value};

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
