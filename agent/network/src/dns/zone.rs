//! Names of a network and their addresses, as the name server serves them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use skep_proto::model::NetworkId;

use crate::dns::patch::NamePatch;

/// Names a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ZoneKey {
    /// Of a network of the cluster.
    Overlay(NetworkId),
    /// Of a local bridge.
    Bridge(String),
}

/// Names of one network. Copies share what is equal in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Zone {
    /// Name of the network: `web` and `web.NETWORK` are the same.
    network: Arc<str>,
    /// Addresses by lower-case name.
    names: OrdMap<Arc<str>, Addresses>,
    /// First name of an address, for reverse questions.
    pointers: OrdMap<IpAddr, Arc<str>>,
}

/// Addresses of a name, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Addresses {
    v4: Arc<[Ipv4Addr]>,
    v6: Arc<[Ipv6Addr]>,
}

/// Addresses by name.
pub type Names = BTreeMap<String, (Vec<Ipv4Addr>, Vec<Ipv6Addr>)>;
/// All zones.
pub type Zones = BTreeMap<ZoneKey, Zone>;

/// Addresses of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known<'a> {
    /// Of IPv4.
    pub v4: &'a [Ipv4Addr],
    /// Of IPv6.
    pub v6: &'a [Ipv6Addr],
}

impl Known<'_> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl Zone {
    /// A zone without names.
    pub fn new(network: &str) -> Self {
        Self { network: network.to_ascii_lowercase().into(), ..Self::default() }
    }

    /// Name of its network, in lower case.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Adds an address to a name.
    pub fn add(&mut self, name: &str, address: impl Into<IpAddr>) {
        if name.is_empty() {
            return;
        }
        let (name, address) = (name.to_ascii_lowercase(), address.into());
        self.set(&name, &NamePatch { known: true, gone: Vec::new(), new: vec![address] });
        self.pointers.entry(address).or_insert_with(|| name.into());
    }

    /// Makes a name known that has no address yet, or none any more: there is nobody to ask about it.
    pub fn declare(&mut self, name: &str) {
        if !name.is_empty() {
            self.set(&name.to_ascii_lowercase(), &NamePatch { known: true, ..NamePatch::default() });
        }
    }

    /// Changes a name in lower case.
    pub(super) fn set(&mut self, name: &str, patch: &NamePatch) {
        if !patch.known {
            self.names.remove(name);
            return;
        }
        let put = |known: &mut Addresses| {
            change(&mut known.v4, v4(&patch.gone), v4(&patch.new));
            change(&mut known.v6, v6(&patch.gone), v6(&patch.new));
        };
        match self.names.get_mut(name) {
            Some(known) => put(known),
            None => {
                let mut known = Addresses::default();
                put(&mut known);
                self.names.insert(name.into(), known);
            }
        }
    }

    /// Sets or removes the first name of an address.
    pub(super) fn point(&mut self, address: IpAddr, name: Option<&str>) {
        match name {
            Some(name) => drop(self.pointers.insert(address, name.into())),
            None => drop(self.pointers.remove(&address)),
        }
    }

    /// A zone with these names in lower case, and the first name of each address.
    pub fn from_parts(network: String, names: Names, pointers: BTreeMap<IpAddr, String>) -> Self {
        let addresses = |(mut v4, mut v6): (Vec<Ipv4Addr>, Vec<Ipv6Addr>)| {
            v4.sort();
            v4.dedup();
            v6.sort();
            v6.dedup();
            Addresses { v4: v4.into(), v6: v6.into() }
        };
        Self {
            network: network.into(),
            names: names.into_iter().map(|(name, both)| (Arc::from(name), addresses(both))).collect(),
            pointers: pointers.into_iter().map(|(address, name)| (address, Arc::from(name))).collect(),
        }
    }

    /// Its names.
    pub fn names(&self) -> impl Iterator<Item = (&str, Known<'_>)> {
        self.names.iter().map(|(name, known)| (&**name, Known { v4: &known.v4, v6: &known.v6 }))
    }

    /// First names of addresses.
    pub fn pointers(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.pointers.iter().map(|(address, name)| (*address, &**name))
    }

    /// Whether a name in lower case can be nobody else's: behind it stands the network's name, which is no top level of
    /// the internet. One that could be (`net`, `app`) does not keep containers from what is below it there.
    pub fn owns(&self, name: &str) -> bool {
        let below = |rest: &str| rest.ends_with('.') && rest.len() > 1;
        is_ours_alone(&self.network) && name.strip_suffix(&*self.network).is_some_and(below)
    }

    /// Addresses of a name in lower case, with or without the network's name behind it.
    pub fn resolve(&self, name: &str) -> Option<Known<'_>> {
        let short = || self.known(name.strip_suffix(&*self.network)?.strip_suffix('.')?);
        self.known(name).or_else(short)
    }

    /// Addresses of a name in lower case as it stands; each family in order.
    pub fn known(&self, name: &str) -> Option<Known<'_>> {
        self.names.get(name).map(|known| Known { v4: &known.v4, v6: &known.v6 })
    }

    /// First name of an address, without the network's name.
    pub fn pointer(&self, address: IpAddr) -> Option<&str> {
        self.pointers.get(&address).map(|name| &**name)
    }

    /// The name of an address, with the network's name behind it.
    pub fn reverse(&self, address: IpAddr) -> Option<String> {
        self.pointer(address).map(|name| format!("{name}.{}", self.network))
    }
}

fn v4(addresses: &[IpAddr]) -> Vec<Ipv4Addr> {
    addresses.iter().filter_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None }).collect()
}

fn v6(addresses: &[IpAddr]) -> Vec<Ipv6Addr> {
    addresses.iter().filter_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None }).collect()
}

/// Takes some addresses out of a list in order and puts others in.
fn change<A: Copy + Ord>(all: &mut Arc<[A]>, mut gone: Vec<A>, mut new: Vec<A>) {
    if gone.is_empty() && new.is_empty() {
        return;
    }
    gone.sort();
    new.extend(all.iter().filter(|address| gone.binary_search(address).is_err()));
    // What is there already is in order, so this is quick.
    new.sort();
    new.dedup();
    *all = new.into();
}

/// Whether a name cannot be, or be below, a top level of the internet: those have letters only, or begin with `xn--`
/// (RFC 1123 section 2.1, RFC 5890 section 2.3.2.1). Names of stacks' networks and services have an underscore.
pub fn is_ours_alone(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    !last.is_empty() && !last.starts_with("xn--") && last.bytes().any(|byte| !byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_resolves_in_any_case_and_with_the_network_behind_it() {
        let mut zone = Zone::new("Back");
        let address = Ipv4Addr::new(10, 0, 1, 5);
        zone.add("Web", address);
        zone.add("web", address);
        let six = "fd00::5".parse().unwrap();
        zone.add("web", six);
        let known = Some(Known { v4: &[address], v6: &[six] });
        assert_eq!(zone.resolve("web"), known);
        assert_eq!(zone.resolve("web.back"), known);
        assert_eq!(zone.resolve("webback"), None);
        assert_eq!(zone.resolve("back"), None);
        assert_eq!(zone.reverse(address.into()), Some("web.back".into()));
        assert_eq!(zone.reverse(six.into()), Some("web.back".into()));
    }

    #[test]
    fn a_declared_name_is_known_and_has_nothing() {
        let mut zone = Zone::new("back");
        zone.declare("tasks.Web");
        assert_eq!(zone.resolve("tasks.web"), Some(Known::default()));
        zone.add("tasks.web", Ipv4Addr::new(10, 0, 1, 5));
        zone.declare("tasks.web");
        assert_eq!(zone.resolve("tasks.web").map(|known| known.v4.len()), Some(1));
    }

    #[test]
    fn names_below_a_network_are_its_own_unless_the_internet_may_have_them() {
        let zone = Zone::new("Shop_back");
        assert!(zone.owns("nobody.shop_back") && zone.owns("tasks.nobody.shop_back"));
        assert!(!zone.owns("shop_back") && !zone.owns(".shop_back") && !zone.owns("nobody.myshop_back"));
        assert!(!Zone::new("net").owns("example.net") && !Zone::new("xn--p1ai").owns("a.xn--p1ai"));
        assert!(!Zone::new("net2.org").owns("a.net2.org") && Zone::new("net2").owns("a.net2"));
    }
}
