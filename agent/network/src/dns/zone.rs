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
}
