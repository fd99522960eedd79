//! Who gives what in one zone, counted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::givers::{Name, Rank};
use crate::dns::patch::NamePatch;
use crate::dns::zone::{Known, Zone};

/// What is given in a zone.
#[derive(Debug, Clone, Default)]
pub struct GivenNames {
    /// Name of the network, in lower case.
    network: String,
    /// How often a name is given with each address, and without any (`None`).
    names: BTreeMap<(Arc<str>, Option<IpAddr>), u32>,
    /// How often an address has a name, its first one first.
    pointers: BTreeMap<(IpAddr, Rank, Arc<str>), u32>,
    /// There is no zone of it yet, so all differs.
    is_new: bool,
    /// What may differ from the zone: names with addresses, and addresses.
    touched: BTreeMap<Arc<str>, BTreeSet<IpAddr>>,
    turned: BTreeSet<IpAddr>,
}

/// What differs from a zone: names, and first names of addresses.
type Differing = (BTreeMap<String, NamePatch>, BTreeMap<IpAddr, Option<String>>);

impl GivenNames {
    /// A zone in which nothing is given.
    pub fn new(network: &str) -> Self {
        Self { network: network.to_ascii_lowercase(), is_new: true, ..Self::default() }
    }

    /// Whether they are of the network of that name.
    pub fn is_of(&self, network: &str) -> bool {
        self.network.eq_ignore_ascii_case(network)
    }

    /// Name of the network, in lower case.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Somebody gives a name, or gives it no more.
    pub fn count(&mut self, it: Name<'_>, gives: bool) {
        let Some(name) = written(it.name) else { return };
        let address = it.to.map(|(address, _)| address);
        if count(&mut self.names, (name.clone(), address), gives) && !self.is_new {
            self.touched.entry(name.clone()).or_default().extend(address);
        }
        let Some((address, rank)) = it.to else { return };
        if count(&mut self.pointers, (address, rank, name), gives) && !self.is_new {
            self.turned.insert(address);
        }
    }

    /// What differs from the zone, which is as it was when this was asked last; `None` when nothing does.
    pub fn differing(&mut self, zone: Option<&Zone>) -> Option<Differing> {
        if std::mem::take(&mut self.is_new) {
            return Some(self.all());
        }
        let (names, pointers) = self.touched(zone);
        (!names.is_empty() || !pointers.is_empty()).then_some((names, pointers))
    }

    /// All, for a zone that has nothing.
    fn all(&self) -> Differing {
        let mut names: Vec<(String, NamePatch)> = Vec::new();
        for (name, address) in self.names.keys() {
            if names.last().is_none_or(|(last, _)| **last != **name) {
                names.push((name.to_string(), NamePatch { known: true, ..NamePatch::default() }));
            }
            if let Some((_, patch)) = names.last_mut() {
                patch.new.extend(address);
            }
        }
        let mut pointers: Vec<(IpAddr, Option<String>)> = Vec::new();
        for (address, _, name) in self.pointers.keys() {
            if pointers.last().is_none_or(|(last, _)| last != address) {
                pointers.push((*address, Some(name.to_string())));
            }
        }
        (names.into_iter().collect(), pointers.into_iter().collect())
    }

    fn touched(&mut self, zone: Option<&Zone>) -> Differing {
        let mut names = BTreeMap::new();
        for (name, addresses) in std::mem::take(&mut self.touched) {
            let was = zone.and_then(|zone| zone.known(&name));
            let known = self.names.range((name.clone(), None)..).next().is_some_and(|((first, _), _)| *first == name);
            let mut patch = NamePatch { known, ..NamePatch::default() };
            for address in addresses.into_iter().filter(|_| known) {
                let had = was.is_some_and(|was| has(was, address));
                match (had, self.names.contains_key(&(name.clone(), Some(address)))) {
                    (true, false) => patch.gone.push(address),
                    (false, true) => patch.new.push(address),
                    (true, true) | (false, false) => (),
                }
            }
            if known != was.is_some() || !patch.gone.is_empty() || !patch.new.is_empty() {
                names.insert(name.to_string(), patch);
            }
        }
        let mut pointers = BTreeMap::new();
        for address in std::mem::take(&mut self.turned) {
            let first = self.pointers.range((address, Rank::Task(0), Arc::from(""))..).next();
            let first = first.filter(|((of, ..), _)| *of == address).map(|((.., name), _)| &**name);
            if first != zone.and_then(|zone| zone.pointer(address)) {
                pointers.insert(address, first.map(str::to_owned));
            }
        }
        (names, pointers)
    }
}

/// A name as zones have it; `None` for none.
fn written(name: &str) -> Option<Arc<str>> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(name.to_ascii_lowercase().into());
    }
    (!name.is_empty()).then(|| name.into())
}

fn has(known: Known<'_>, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => known.v4.binary_search(&address).is_ok(),
        IpAddr::V6(address) => known.v6.binary_search(&address).is_ok(),
    }
}

/// Counts up or down; whether it is the first one or there is none any more.
fn count<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, up: bool) -> bool {
    match (counts.entry(key), up) {
        (Entry::Vacant(new), true) => {
            new.insert(1);
            true
        }
        (Entry::Vacant(_), false) => false,
        (Entry::Occupied(mut known), true) => {
            *known.get_mut() += 1;
            false
        }
        (Entry::Occupied(known), false) if *known.get() == 1 => {
            known.remove();
            true
        }
        (Entry::Occupied(mut known), false) => {
            *known.get_mut() -= 1;
            false
        }
    }
}
