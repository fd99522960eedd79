//! The zones as they travel to the process and lie on disk, and changes of them.
//!
//! Behind the value is what came later: IPv6 and the edition. Older processes leave it, and newer ones do without.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::dns::patch::ZonesPatch;
use crate::dns::zone::{Names, Zone, ZoneKey, Zones};

/// Names one state of the zones. No two states that a process is told ever have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// Who told it: drawn at random when a client starts.
    pub by: u64,
    /// Its number among those of this client.
    pub number: u64,
}

/// All zones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// The zones.
    pub zones: Zones,
    /// Their edition; `None` from a client that gives none.
    pub edition: Option<Edition>,
}

/// What leads from one edition to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The one that it rests on.
    pub base: Edition,
    /// The one that it leads to.
    pub next: Edition,
    /// What differs.
    pub patch: ZonesPatch,
}

impl Told {
    /// Goes on to the next edition, and says whether the update rests on this one.
    pub fn follow(&mut self, update: &Update) -> bool {
        let is_next = self.edition == Some(update.base);
        if is_next {
            update.patch.apply(&mut self.zones);
            self.edition = Some(update.next);
        }
        is_next
    }

    /// Reads zones with what is behind them.
    ///
    /// # Errors
    /// For what is no such value.
    pub fn parse(bytes: &[u8]) -> postcard::Result<Self> {
        let (mut told, rest) = postcard::take_from_bytes::<Self>(bytes)?;
        told.complete(rest)?;
        Ok(told)
    }

    /// Puts back what was behind the value.
    ///
    /// # Errors
    /// For what is no such value.
    pub fn complete(&mut self, behind: &[u8]) -> postcard::Result<()> {
        if behind.is_empty() {
            return Ok(());
        }
        let (ipv6, rest) = postcard::take_from_bytes::<BTreeMap<ZoneKey, Family<Ipv6Addr>>>(behind)?;
        for (key, part) in ipv6 {
            if let Some(zone) = self.zones.get_mut(&key) {
                let (mut names, mut pointers) = parts(zone);
                for (name, addresses) in part.names {
                    names.entry(name).or_default().1 = addresses;
                }
                pointers.extend(part.pointers.into_iter().map(|(address, name)| (IpAddr::V6(address), name)));
                *zone = Zone::from_parts(zone.network().to_owned(), names, pointers);
            }
        }
        self.edition = if rest.is_empty() { None } else { postcard::from_bytes(rest)? };
        Ok(())
    }

    /// What goes behind the value; empty when there is nothing to say.
    pub fn behind(&self) -> postcard::Result<Vec<u8>> {
        let some = self.zones.iter().map(|(key, zone)| (key, Family::<Ipv6Addr>::of(zone)));
        let ipv6: BTreeMap<&ZoneKey, Family<Ipv6Addr>> =
            some.filter(|(_, part)| !part.names.is_empty() || !part.pointers.is_empty()).collect();
        match (ipv6.is_empty(), self.edition) {
            (true, None) => Ok(Vec::new()),
            (false, None) => postcard::to_stdvec(&ipv6),
            (_, edition) => postcard::to_stdvec(&(ipv6, edition)),
        }
    }
}

/// What a zone has of one version of IP.
#[derive(Serialize, Deserialize)]
struct Family<A: Ord> {
    names: BTreeMap<String, Vec<A>>,
    pointers: BTreeMap<A, String>,
}

/// A zone without its IPv6.
#[derive(Serialize, Deserialize)]
struct Zone4 {
    network: String,
    family: Family<Ipv4Addr>,
}

impl Family<Ipv4Addr> {
    /// All names, also those without an address of IPv4.
    fn of(zone: &Zone) -> Self {
        let pointers = zone.pointers().filter_map(|(address, name)| match address {
            IpAddr::V4(address) => Some((address, name.to_owned())),
            IpAddr::V6(_) => None,
        });
        let names = zone.names().map(|(name, known)| (name.to_owned(), known.v4.to_vec()));
        Self { names: names.collect(), pointers: pointers.collect() }
    }
}

impl Family<Ipv6Addr> {
    /// Names with an address of IPv6.
    fn of(zone: &Zone) -> Self {
        let pointers = zone.pointers().filter_map(|(address, name)| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some((address, name.to_owned())),
        });
        let names = zone.names().filter(|(_, known)| !known.v6.is_empty());
        let names = names.map(|(name, known)| (name.to_owned(), known.v6.to_vec()));
        Self { names: names.collect(), pointers: pointers.collect() }
    }
}

fn parts(zone: &Zone) -> (Names, BTreeMap<IpAddr, String>) {
    let names = zone.names().map(|(name, known)| (name.to_owned(), (known.v4.to_vec(), known.v6.to_vec())));
    (names.collect(), zone.pointers().map(|(address, name)| (address, name.to_owned())).collect())
}

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let zone4 = |zone: &Zone| Zone4 { network: zone.network().to_owned(), family: Family::<Ipv4Addr>::of(zone) };
        serializer.collect_map(self.zones.iter().map(|(key, zone)| (key, zone4(zone))))
    }
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let zones = BTreeMap::<ZoneKey, Zone4>::deserialize(deserializer)?;
        let whole = |Zone4 { network, family }: Zone4| {
            let names = family.names.into_iter().map(|(name, v4)| (name, (v4, Vec::new())));
            let pointers = family.pointers.into_iter().map(|(address, name)| (IpAddr::V4(address), name));
            Zone::from_parts(network, names.collect(), pointers.collect())
        };
        Ok(Self { zones: zones.into_iter().map(|(key, zone)| (key, whole(zone))).collect(), edition: None })
    }
}

#[cfg(test)]
mod tests;
