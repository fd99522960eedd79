//! Addresses that a node gives out itself: of local bridges and of its task links.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::state::State;
use crate::config::NodeAddresses;
use crate::error::NetworkError;
use crate::spec::{LinkKind, SandboxLink};

/// An address of either version of IP, as a number.
pub(super) trait Address: Copy + Ord + Into<IpAddr> {
    fn number(self) -> u128;
    fn of_number(number: u128) -> Self;
    /// That of a link.
    fn of_link(link: &SandboxLink) -> Option<Self>;
}

impl Address for Ipv4Addr {
    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn of_number(number: u128) -> Self {
        Self::from_bits(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn of_link(link: &SandboxLink) -> Option<Self> {
        Some(link.address.addr())
    }
}

impl Address for Ipv6Addr {
    fn number(self) -> u128 {
        self.to_bits()
    }

    fn of_number(number: u128) -> Self {
        Self::from_bits(number)
    }

    fn of_link(link: &SandboxLink) -> Option<Self> {
        link.address6.map(|net| net.addr())
    }
}

/// Where addresses are given from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pool<A> {
    /// First and last address of the subnet that a link may have.
    usable: (A, A),
    gateway: A,
    /// First and last address to choose from.
    range: (A, A),
    /// The range, for errors and to remember where the search goes on.
    name: IpNet,
}

impl Pool<Ipv4Addr> {
    /// Of a subnet; its first address is its own, its last one that of broadcasts.
    pub fn v4(subnet: Ipv4Net, gateway: Ipv4Addr, range: Ipv4Net) -> Self {
        let first = Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        let last = Ipv4Addr::from_bits(subnet.broadcast().to_bits().saturating_sub(1));
        let (name, range) = (range.into(), (range.network().max(first), range.broadcast().min(last)));
        Self { usable: (first, last), gateway, range, name }
    }

    /// Of task links: the node's share.
    pub fn of_tasks(node: &NodeAddresses) -> Self {
        Self::v4(node.tasks, node.gateway(), node.tasks)
    }
}

impl Pool<Ipv6Addr> {
    /// Of a subnet; its first address is that of all its routers (RFC 4291 section 2.6.1).
    pub fn v6(subnet: Ipv6Net, gateway: Ipv6Addr, range: Ipv6Net) -> Self {
        let first = Ipv6Addr::from_bits(subnet.network().to_bits().saturating_add(1));
        let last = subnet.broadcast();
        let (name, range) = (range.into(), (range.network().max(first), range.broadcast().min(last)));
        Self { usable: (first, last), gateway, range, name }
    }
}

impl State {
    fn in_use<A: Address>(&self, pool: &Pool<A>) -> BTreeSet<A> {
        let links = self.records.values().flat_map(|record| &record.links);
        let given = links.filter(|link| !matches!(link.kind, LinkKind::Overlay(_))).filter_map(A::of_link);
        given.filter(|address| (pool.usable.0..=pool.usable.1).contains(address)).collect()
    }

    /// An address that somebody asked for.
    pub(super) fn claim<A: Address>(&self, pool: Pool<A>, address: A) -> Result<A, NetworkError> {
        let refuse = |reason| Err(NetworkError::Address { address: address.into(), reason });
        if !(pool.usable.0..=pool.usable.1).contains(&address) || address == pool.gateway {
            return refuse(
                "it is outside of the network's subnet, or the network's own, its broadcast or its gateway's",
            );
        }
        if self.in_use(&pool).contains(&address) {
            return refuse("another container has it");
        }
        Ok(address)
    }

    /// The next free address; one is given again as late as possible.
    pub(super) fn next_free<A: Address>(&mut self, pool: Pool<A>) -> Result<A, NetworkError> {
        let mut used = self.in_use(&pool);
        used.insert(pool.gateway);
        let (first, last) = (pool.range.0.number(), pool.range.1.number());
        let start = self.cursors.get(&pool.name).copied().filter(|at| (first..=last).contains(at)).unwrap_or(first);
        let found = (start..=last).chain(first..start).find(|number| !used.contains(&A::of_number(*number)));
        let found = found.ok_or(NetworkError::PoolExhausted { pool: pool.name })?;
        self.cursors.insert(pool.name, found.saturating_add(1));
        Ok(A::of_number(found))
    }
}
