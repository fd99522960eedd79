//! Free subnets of pools and free addresses of subnets. Pure arithmetic.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use skep_proto::model::network::Subnet;

/// The IPv4 subnet.
pub(super) fn v4(subnet: &Subnet) -> Option<Ipv4Net> {
    match subnet.subnet {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    }
}

/// The first subnet of `size` bits in one of the pools that overlaps none of those taken.
pub(super) fn next_free(pools: &[IpNet], size: u8, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    for pool in pools {
        let IpNet::V4(pool) = pool else { continue };
        let mut at = u64::from(u32::from(pool.network()));
        let end = u64::from(u32::from(pool.broadcast()));
        let step = 1u64 << (32 - u32::from(size.min(32)));
        while at + step - 1 <= end {
            let start = Ipv4Addr::from(u32::try_from(at).expect("the pool's end fits 32 bits"));
            let net = Ipv4Net::new(start, size).ok()?;
            let clash = taken.iter().find(|t| t.contains(&net.network()) || net.contains(&t.network()));
            match clash {
                None => return Some(net),
                // Behind the one that is in the way, on a boundary of the size.
                Some(other) => {
                    let behind = u64::from(u32::from(other.broadcast())) + 1;
                    at = behind.max(at + step).div_ceil(step) * step;
                }
            }
        }
    }
    None
}

/// The first free address behind `cursor`, wrapping around once. Never the network's own, the broadcast or the gateway.
pub(super) fn next_address(
    subnet: &Subnet,
    cursor: Option<Ipv4Addr>,
    is_free: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let net = v4(subnet)?;
    let range = match subnet.range {
        Some(IpNet::V4(range)) if net.contains(&range) => range,
        Some(_) | None => net,
    };
    let first = u32::from(range.network()).max(u32::from(net.network()) + 1);
    let last = u32::from(range.broadcast()).min(u32::from(net.broadcast()).saturating_sub(1));
    let gateway = match subnet.gateway {
        IpAddr::V4(gateway) => u32::from(gateway),
        IpAddr::V6(_) => 0,
    };
    let start = cursor.map(u32::from).filter(|c| (first..last).contains(c)).map_or(first, |c| c + 1);
    let candidates = (start..=last).chain(first..start);
    candidates.filter(|n| *n != gateway).map(Ipv4Addr::from).find(|address| is_free(*address))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn subnets_are_given_in_order_around_those_taken() {
        let pools: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
        let next = |taken: &[&str]| next_free(&pools, 24, &nets(taken)).map(|n| n.to_string());
        assert_eq!(next(&[]).as_deref(), Some("10.0.0.0/24"));
        assert_eq!(next(&["10.0.0.0/24", "10.0.1.0/25"]).as_deref(), Some("10.0.2.0/24"));
        assert_eq!(next(&["10.0.0.0/16"]).as_deref(), Some("10.1.0.0/24"));
        assert_eq!(next(&["10.0.0.0/8"]), None);
    }

    #[test]
    fn nothing_is_lost_after_a_million_allocations() {
        let net: Ipv4Net = "10.1.2.0/26".parse().unwrap();
        let subnet = Subnet { subnet: net.into(), range: None, gateway: Ipv4Addr::new(10, 1, 2, 1).into() };
        let at = |address: Ipv4Addr| usize::from(address.octets()[3]);
        let (mut used, mut cursor, mut seed, mut given) = ([false; 64], None, 7u64, 0u32);
        while given < 1_000_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // As many come as go, whoever they are; when it is full, all go but a few.
            used[usize::try_from(seed >> 58).unwrap()] = false;
            match next_address(&subnet, cursor, |a| !used[at(a)]) {
                Some(address) => {
                    assert!(!std::mem::replace(&mut used[at(address)], true) && net.contains(&address), "{address}");
                    (cursor, given) = (Some(address), given + 1);
                }
                None => used[8..].fill(false),
            }
        }
        while let Some(address) = next_address(&subnet, cursor, |a| !used[at(a)]) {
            used[at(address)] = true;
        }
        let used: Vec<usize> = (0..64).filter(|n| used[*n]).collect();
        assert_eq!(used.len(), 61, "all but network, broadcast and gateway");
    }

    proptest! {
        #[test]
        fn every_address_is_given_once_before_any_is_given_again(prefix in 24u8..=29, start: u8) {
            let net = Ipv4Net::new(Ipv4Addr::new(10, 1, 2, 0), prefix).unwrap();
            let subnet = Subnet { subnet: net.into(), range: None, gateway: Ipv4Addr::new(10, 1, 2, 1).into() };
            let mut used = BTreeSet::new();
            let mut cursor = Some(Ipv4Addr::new(10, 1, 2, start));
            while let Some(address) = next_address(&subnet, cursor, |a| !used.contains(&a)) {
                prop_assert!(net.contains(&address) && address != net.network() && address != net.broadcast());
                prop_assert!(used.insert(address));
                cursor = Some(address);
            }
            prop_assert_eq!(used.len(), (1usize << (32 - prefix)) - 3);
        }
    }
}
