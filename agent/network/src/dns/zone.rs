//! Names of a network and their addresses, as the name server serves them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use skep_proto::model::NetworkId;

/// Names a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ZoneKey {
    /// Of a network of the cluster.
    Overlay(NetworkId),
    /// Of a local bridge.
    Bridge(String),
}

/// Names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Zone {
    /// Name of the network: `web` and `web.NETWORK` are the same.
    network: String,
    /// Addresses by lower-case name.
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// First name of an address, for reverse questions.
    addresses: BTreeMap<Ipv4Addr, String>,
}

/// All zones, as they are kept on disk.
pub type Zones = BTreeMap<ZoneKey, Zone>;

impl Zone {
    /// A zone without names.
    pub fn new(network: &str) -> Self {
        Self { network: network.to_ascii_lowercase(), ..Self::default() }
    }

    /// Adds an address to a name.
    pub fn add(&mut self, name: &str, address: Ipv4Addr) {
        if name.is_empty() {
            return;
        }
        let name = name.to_ascii_lowercase();
        self.addresses.entry(address).or_insert_with(|| name.clone());
        let addresses = self.names.entry(name).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// Makes a name known that has no address yet, or none any more: there is nobody to ask about it.
    pub fn declare(&mut self, name: &str) {
        if !name.is_empty() {
            self.names.entry(name.to_ascii_lowercase()).or_default();
        }
    }

    /// Whether a name in lower case can be nobody else's: behind it stands the network's name, which is no top level of
    /// the internet. One that could be (`net`, `app`) does not keep containers from what is below it there.
    pub fn owns(&self, name: &str) -> bool {
        let below = |rest: &str| rest.ends_with('.') && rest.len() > 1;
        is_ours_alone(&self.network) && name.strip_suffix(&self.network).is_some_and(below)
    }

    /// Addresses of a name in lower case, with or without the network's name behind it.
    pub fn resolve(&self, name: &str) -> Option<&[Ipv4Addr]> {
        let short = || name.strip_suffix(&self.network)?.strip_suffix('.');
        self.names.get(name).or_else(|| self.names.get(short()?)).map(Vec::as_slice)
    }

    /// The name of an address, with the network's name behind it.
    pub fn reverse(&self, address: Ipv4Addr) -> Option<String> {
        self.addresses.get(&address).map(|name| format!("{name}.{}", self.network))
    }
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
        assert_eq!(zone.resolve("web"), Some(&[address][..]));
        assert_eq!(zone.resolve("web.back"), Some(&[address][..]));
        assert_eq!(zone.resolve("webback"), None);
        assert_eq!(zone.resolve("back"), None);
        assert_eq!(zone.reverse(address), Some("web.back".into()));
    }

    #[test]
    fn a_declared_name_is_known_and_has_nothing() {
        let mut zone = Zone::new("back");
        zone.declare("tasks.Web");
        assert_eq!(zone.resolve("tasks.web"), Some(&[][..]));
        zone.add("tasks.web", Ipv4Addr::new(10, 0, 1, 5));
        zone.declare("tasks.web");
        assert_eq!(zone.resolve("tasks.web").map(<[_]>::len), Some(1));
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
