//! Names of a network and their addresses, as the name server serves them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    /// The same of IPv6. It travels and is kept behind all zones ([`ipv6_of`]), where older processes leave it.
    #[serde(skip)]
    ipv6: Names6,
}

/// What a zone has of IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names6 {
    /// Addresses by lower-case name.
    names: BTreeMap<String, Vec<Ipv6Addr>>,
    /// First name of an address.
    addresses: BTreeMap<Ipv6Addr, String>,
}

/// All zones, as they are kept on disk.
pub type Zones = BTreeMap<ZoneKey, Zone>;
/// What they have of IPv6.
pub type Zones6 = BTreeMap<ZoneKey, Names6>;

/// What zones have of IPv6.
pub fn ipv6_of(zones: &Zones) -> Zones6 {
    let some = zones.iter().filter(|(_, zone)| zone.ipv6 != Names6::default());
    some.map(|(key, zone)| (key.clone(), zone.ipv6.clone())).collect()
}

/// Puts it back into them.
pub fn complete(zones: &mut Zones, ipv6: Zones6) {
    for (key, part) in ipv6 {
        if let Some(zone) = zones.get_mut(&key) {
            zone.ipv6 = part;
        }
    }
}

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
        Self { network: network.to_ascii_lowercase(), ..Self::default() }
    }

    /// Adds an address to a name.
    pub fn add(&mut self, name: &str, address: impl Into<IpAddr>) {
        if name.is_empty() {
            return;
        }
        let name = name.to_ascii_lowercase();
        // A name of IPv6 alone is known too.
        self.names.entry(name.clone()).or_default();
        match address.into() {
            IpAddr::V4(address) => note(&mut self.names, &mut self.addresses, name, address),
            IpAddr::V6(address) => note(&mut self.ipv6.names, &mut self.ipv6.addresses, name, address),
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
    pub fn resolve(&self, name: &str) -> Option<Known<'_>> {
        let short = || name.strip_suffix(&self.network)?.strip_suffix('.');
        let key = if self.names.contains_key(name) { name } else { short()? };
        let v4 = self.names.get(key)?;
        Some(Known { v4, v6: self.ipv6.names.get(key).map(Vec::as_slice).unwrap_or_default() })
    }

    /// The name of an address, with the network's name behind it.
    pub fn reverse(&self, address: IpAddr) -> Option<String> {
        let name = match address {
            IpAddr::V4(address) => self.addresses.get(&address),
            IpAddr::V6(address) => self.ipv6.addresses.get(&address),
        };
        name.map(|name| format!("{name}.{}", self.network))
    }
}

fn note<A: Copy + Ord>(
    names: &mut BTreeMap<String, Vec<A>>,
    addresses: &mut BTreeMap<A, String>,
    name: String,
    address: A,
) {
    addresses.entry(address).or_insert_with(|| name.clone());
    let all = names.entry(name).or_default();
    if !all.contains(&address) {
        all.push(address);
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
    fn ipv6_travels_behind_the_zones() {
        let mut zone = Zone::new("back");
        zone.add("web", Ipv4Addr::new(10, 0, 1, 5));
        let v4 = zone.clone();
        zone.add("six", "fd00::5".parse::<Ipv6Addr>().unwrap());
        let key = ZoneKey::Bridge("back".into());
        let zones = Zones::from([(key.clone(), zone), (ZoneKey::Bridge("other".into()), v4)]);
        let bytes = postcard::to_stdvec(&zones).unwrap();
        let mut read: Zones = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read[&key].resolve("six"), Some(Known::default()));
        complete(&mut read, ipv6_of(&zones));
        assert_eq!(read, zones);
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
