//! What differs between two states of the zones: small where they are large.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::dns::zone::{Zone, ZoneKey, Zones};

/// What differs between two states of all zones. To apply it again changes nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ZonesPatch(pub BTreeMap<ZoneKey, ZonePatch>);

/// What differs in one zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZonePatch {
    /// It is no more.
    Gone,
    /// It is there. One that was not, or was of another network, had nothing.
    There {
        /// Name of its network.
        network: String,
        /// Names that differ, in lower case.
        names: BTreeMap<String, NamePatch>,
        /// Addresses whose first name differs; `None` for one that has none any more.
        pointers: BTreeMap<IpAddr, Option<String>>,
    },
}

/// What differs of a name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamePatch {
    /// Whether it is known, with or without addresses.
    pub known: bool,
    /// Addresses that it has no more.
    pub gone: Vec<IpAddr>,
    /// Addresses that it has now.
    pub new: Vec<IpAddr>,
}

impl ZonesPatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Brings zones to the other state.
    pub fn apply(&self, zones: &mut Zones) {
        for (key, patch) in &self.0 {
            match patch {
                ZonePatch::Gone => drop(zones.remove(key)),
                ZonePatch::There { network, names, pointers } => {
                    let zone = zones.entry(key.clone()).or_insert_with(|| Zone::new(network));
                    if zone.network() != network {
                        *zone = Zone::new(network);
                    }
                    for (name, patch) in names {
                        zone.set(name, patch);
                    }
                    for (address, name) in pointers {
                        zone.point(*address, name.as_deref());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(network: &str, name: &str, patch: NamePatch) -> ZonesPatch {
        let names = BTreeMap::from([(name.to_owned(), patch)]);
        let zone = ZonePatch::There { network: network.into(), names, pointers: BTreeMap::new() };
        ZonesPatch(BTreeMap::from([(ZoneKey::Bridge("back".into()), zone)]))
    }

    #[test]
    fn a_patch_adds_and_takes_away_and_may_be_applied_twice() {
        let (one, two, six) = ("10.0.1.1".parse().unwrap(), "10.0.1.2".parse().unwrap(), "fd00::2".parse().unwrap());
        let mut zones = Zones::new();
        let patch = NamePatch { known: true, gone: Vec::new(), new: vec![two, one, six, one] };
        there("back", "web", patch).apply(&mut zones);
        let key = ZoneKey::Bridge("back".into());
        let known = zones[&key].resolve("web").unwrap();
        assert_eq!((known.v4.len(), known.v6.len()), (2, 1));

        let patch = there("back", "web", NamePatch { known: true, gone: vec![one, six], new: vec![two] });
        patch.apply(&mut zones);
        let once = zones.clone();
        patch.apply(&mut zones);
        assert_eq!(zones, once);
        let known = zones[&key].resolve("web.back").unwrap();
        assert_eq!((known.v4.to_vec(), known.v6.len()), (vec!["10.0.1.2".parse().unwrap()], 0));

        there("back", "web", NamePatch::default()).apply(&mut zones);
        assert_eq!(zones[&key].resolve("web"), None);
    }

    #[test]
    fn a_zone_of_another_network_begins_empty_and_one_that_is_gone_stays_gone() {
        let known = NamePatch { known: true, ..NamePatch::default() };
        let mut zones = Zones::new();
        there("back", "a", known.clone()).apply(&mut zones);
        there("other", "b", known).apply(&mut zones);
        let key = ZoneKey::Bridge("back".into());
        assert_eq!((zones[&key].resolve("a"), zones[&key].resolve("b.other").is_some()), (None, true));
        let gone = ZonesPatch(BTreeMap::from([(key, ZonePatch::Gone)]));
        gone.apply(&mut zones);
        gone.apply(&mut zones);
        assert!(zones.is_empty());
    }
}
