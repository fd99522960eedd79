//! Addresses of networks: which are in use, and where the search for the next one goes on.
//!
//! Both are kept apart by family. IPv4 addresses are few bytes and many, so theirs are the dense tables that were there
//! first; IPv6 ones cost only the networks that have them. A task's address on its first network is in its row, the IPv6
//! address there in a table of its own (some 20 bytes, where the rare part takes 200), all others are in its rare part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::{OrdMap, OrdSet};

use super::digest::{self, Domain};
use super::entry::Refusal;
use super::refs::{NetworkRef, Reference};
use super::state::State;

/// Addresses in use, of tasks and services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    /// By (network, address).
    v4: OrdSet<(u32, u32)>,
    /// The same.
    v6: OrdSet<(u32, Ipv6Addr)>,
}

impl Addresses {
    pub(super) fn insert(&mut self, network: NetworkRef, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => drop(self.v4.insert((network.handle(), v4.into()))),
            IpAddr::V6(v6) => drop(self.v6.insert((network.handle(), v6))),
        }
    }

    pub(super) fn remove(&mut self, network: NetworkRef, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => drop(self.v4.remove(&(network.handle(), v4.into()))),
            IpAddr::V6(v6) => drop(self.v6.remove(&(network.handle(), v6))),
        }
    }

    fn contains(&self, network: NetworkRef, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&(network.handle(), v4.into())),
            IpAddr::V6(v6) => self.v6.contains(&(network.handle(), v6)),
        }
    }

    fn count(&self, network: NetworkRef) -> usize {
        let handle = network.handle();
        let v6 = (handle, Ipv6Addr::UNSPECIFIED)..=(handle, Ipv6Addr::from(u128::MAX));
        self.v4.range((handle, 0)..=(handle, u32::MAX)).count() + self.v6.range(v6).count()
    }
}

/// By network, the address of each family that was given last, so that a freed one rests before it is given again.
#[derive(Clone, Default)]
pub(super) struct Cursors {
    pub v4: OrdMap<u32, u32>,
    pub v6: OrdMap<u32, Ipv6Addr>,
}

impl Cursors {
    /// Sets one; what the digest changes by.
    fn set(&mut self, network: u32, address: IpAddr) -> u64 {
        match address {
            IpAddr::V4(v4) => {
                let new = u32::from(v4);
                let old = self.v4.insert(network, new);
                digest_of(Domain::Cursor, network, new) ^ old.map_or(0, |old| digest_of(Domain::Cursor, network, old))
            }
            IpAddr::V6(new) => {
                let old = self.v6.insert(network, new);
                digest_of(Domain::Cursor6, network, new) ^ old.map_or(0, |old| digest_of(Domain::Cursor6, network, old))
            }
        }
    }

    /// Forgets those of a network; what the digest changes by.
    fn remove(&mut self, network: u32) -> u64 {
        let v4 = self.v4.remove(&network).map_or(0, |old| digest_of(Domain::Cursor, network, old));
        let v6 = self.v6.remove(&network).map_or(0, |old| digest_of(Domain::Cursor6, network, old));
        v4 ^ v6
    }

    /// Their part of the digest, counted again.
    pub(super) fn digest(&self) -> u64 {
        let v4 = self.v4.iter().fold(0, |sum, (n, address)| sum ^ digest_of(Domain::Cursor, *n, *address));
        self.v6.iter().fold(v4, |sum, (n, address)| sum ^ digest_of(Domain::Cursor6, *n, *address))
    }
}

fn digest_of(domain: Domain, network: u32, address: impl std::hash::Hash) -> u64 {
    digest::of(domain, network, address)
}

impl State {
    /// Whether an address of a network belongs to a task or a service.
    pub fn is_address_used(&self, network: NetworkRef, address: IpAddr) -> bool {
        self.derived.addresses.contains(network, address)
    }

    /// The IPv4 address of a network that was given last: the search for the next one starts behind it.
    pub fn address_cursor(&self, network: NetworkRef) -> Option<Ipv4Addr> {
        self.cursors.v4.get(&network.handle()).map(|address| (*address).into())
    }

    /// The same of IPv6.
    pub fn address_cursor6(&self, network: NetworkRef) -> Option<Ipv6Addr> {
        self.cursors.v6.get(&network.handle()).copied()
    }

    /// A task has an IPv6 address beside its row's address.
    pub(super) fn put_address6(&mut self, handle: u32, address: Ipv6Addr) {
        self.digest ^= digest::of(Domain::Address6, handle, address);
        self.addresses6.insert(handle, address);
    }

    /// The task is gone.
    pub(super) fn remove_address6(&mut self, handle: u32) {
        if let Some(address) = self.addresses6.remove(&handle) {
            self.digest ^= digest::of(Domain::Address6, handle, address);
        }
    }

    /// How many addresses of a network tasks and services hold, of both families.
    pub fn addresses_used(&self, network: NetworkRef) -> usize {
        self.derived.addresses.count(network)
    }

    /// Whether an address can be given to somebody.
    pub(super) fn check_address(&self, network: NetworkRef, address: IpAddr) -> Result<(), Refusal> {
        let Some(object) = self.networks.lookup(network) else {
            return Err(Refusal::Invalid { reason: "an address names a network that is gone".into() });
        };
        let name = &object.spec.annotations.name;
        if !object.subnets.iter().any(|s| s.subnet.contains(&address)) {
            return Err(Refusal::Invalid { reason: format!("address {address} is outside of network {name}") });
        }
        if self.is_address_used(network, address) || object.subnets.iter().any(|s| s.gateway == address) {
            return Err(Refusal::AddressInUse { network: name.clone(), address });
        }
        Ok(())
    }

    /// The search for the next address goes on behind this one.
    pub(super) fn move_cursor(&mut self, network: NetworkRef, address: IpAddr) {
        self.digest ^= self.cursors.set(network.handle(), address);
    }

    /// A network is gone; another may get its handle.
    pub(super) fn forget_cursors(&mut self, network: NetworkRef) {
        self.digest ^= self.cursors.remove(network.handle());
    }

    /// Takes a cursor of a snapshot.
    pub(super) fn restore_cursor(&mut self, network: u32, address: IpAddr) {
        self.digest ^= self.cursors.set(network, address);
    }
}
