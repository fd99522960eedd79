//! Free subnets of pools and free addresses of subnets, of both families. Pure arithmetic on 128-bit numbers: nothing
//! here walks a subnet, only what stands in the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use skep_proto::model::addressing::{Family, overlap};
use skep_proto::model::network::Subnet;

/// The number of an address.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address of a number; `None` for one that the family does not have.
fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(Ipv4Addr::from(u32::try_from(number).ok()?).into()),
        Family::V6 => Some(Ipv6Addr::from(number).into()),
    }
}

fn bits(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// The first subnet of a family with a prefix of `size` bits, in one of the pools, that overlaps none of those taken.
pub(super) fn next_free(pools: &[IpNet], family: Family, size: u8, taken: &[IpNet]) -> Option<IpNet> {
    let width = u32::from(bits(family).checked_sub(size)?);
    let step = 1u128.checked_shl(width)?;
    for pool in pools.iter().filter(|pool| Family::of(pool.addr()) == family) {
        let (mut at, end) = (number(pool.network()), number(pool.broadcast()));
        while at.checked_add(step - 1).is_some_and(|last| last <= end) {
            let net = IpNet::new(address(family, at)?, size).ok()?;
            let Some(other) = taken.iter().find(|taken| overlap(**taken, net)) else { return Some(net) };
            // Behind the one that is in the way, on a boundary of the size.
            let behind = number(other.broadcast()).checked_add(1).zip(at.checked_add(step));
            match behind.and_then(|(behind, next)| behind.max(next).checked_next_multiple_of(step)) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    None
}

/// The first free address behind `cursor`, wrapping around once. Never the subnet's own (of an IPv6 subnet: its routers',
/// RFC 4291, section 2.6.1), an IPv4 broadcast, or the gateway. It asks `is_free` of no more addresses than are not free.
pub(super) fn next_address(
    subnet: &Subnet,
    cursor: Option<IpAddr>,
    is_free: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let net = subnet.subnet;
    let family = Family::of(net.addr());
    let range = subnet.range.filter(|range| net.contains(range)).unwrap_or(net);
    let end = match family {
        Family::V4 => number(net.broadcast()).saturating_sub(1),
        Family::V6 => number(net.broadcast()),
    };
    let first = number(range.network()).max(number(net.network()) + 1);
    let last = number(range.broadcast()).min(end);
    let cursor = cursor.filter(|cursor| Family::of(*cursor) == family).map(number);
    let start = cursor.filter(|c| (first..last).contains(c)).map_or(first, |c| c + 1);
    let candidates = (start..=last).chain(first..start).filter_map(|n| address(family, n));
    candidates.filter(|candidate| *candidate != subnet.gateway).find(|candidate| is_free(*candidate))
}

#[cfg(test)]
mod tests;
