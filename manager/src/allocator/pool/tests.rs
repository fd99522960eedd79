use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use skep_proto::model::addressing::first_host;

use super::*;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn subnet(net: &str) -> Subnet {
    let net: IpNet = net.parse().unwrap();
    Subnet { subnet: net, range: None, gateway: first_host(net).unwrap() }
}

#[test]
fn subnets_are_given_in_order_around_those_taken() {
    let pools = nets(&["10.0.0.0/8", "fd12::/62"]);
    let next = |taken: &[&str]| next_free(&pools, Family::V4, 24, &nets(taken)).map(|n| n.to_string());
    assert_eq!(next(&[]).as_deref(), Some("10.0.0.0/24"));
    assert_eq!(next(&["10.0.0.0/24", "10.0.1.0/25"]).as_deref(), Some("10.0.2.0/24"));
    assert_eq!(next(&["10.0.0.0/16", "fd12::/64"]).as_deref(), Some("10.1.0.0/24"));
    assert_eq!(next(&["10.0.0.0/8"]), None);
    let next = |taken: &[&str]| next_free(&pools, Family::V6, 64, &nets(taken)).map(|n| n.to_string());
    assert_eq!(next(&[]).as_deref(), Some("fd12::/64"));
    assert_eq!(next(&["fd12::/64", "fd12:0:0:1:8000::/65", "10.0.0.0/8"]).as_deref(), Some("fd12:0:0:2::/64"));
    assert_eq!(next(&["fd12::/63", "fd12:0:0:2::/64"]).as_deref(), Some("fd12:0:0:3::/64"));
    assert_eq!(next(&["fd12::/48"]), None);
}

#[test]
fn pools_at_the_ends_of_the_address_space_are_used_up_and_no_more() {
    let top = nets(&["ffff:ffff:ffff:ffff::/64"]);
    assert_eq!(next_free(&top, Family::V6, 64, &[]), Some(top[0]));
    assert_eq!(next_free(&top, Family::V6, 64, &top), None);
    assert_eq!(next_free(&top, Family::V6, 48, &[]), None);
    assert_eq!(next_free(&nets(&["::/0"]), Family::V6, 0, &[]), None, "a subnet of everything is none");
    let top = nets(&["255.255.255.0/24"]);
    assert_eq!(next_free(&top, Family::V4, 24, &top), None);
}

#[test]
fn a_subnet_of_2_to_the_64_is_not_walked() {
    let net = subnet("fd00:1::/64");
    let (asked, used) =
        (Cell::new(0), BTreeSet::from(["fd00:1::2", "fd00:1::3"].map(|a| a.parse::<IpAddr>().unwrap())));
    let is_free = |address: IpAddr| {
        asked.set(asked.get() + 1);
        !used.contains(&address)
    };
    assert_eq!(next_address(&net, None, is_free), Some("fd00:1::4".parse().unwrap()));
    assert_eq!(asked.get(), 3);
    // Behind the last one it begins again, and skips the gateway.
    let last = "fd00:1::ffff:ffff:ffff:ffff".parse().unwrap();
    assert_eq!(next_address(&net, Some(last), is_free), Some("fd00:1::4".parse().unwrap()));
    let before = "fd00:1::ffff:ffff:ffff:fffe".parse().unwrap();
    assert_eq!(next_address(&net, Some(before), is_free), Some(last));
}

#[test]
fn a_range_is_kept_to() {
    let ranged = Subnet { range: Some("fd00:1::100/126".parse().unwrap()), ..subnet("fd00:1::/64") };
    let mut used = BTreeSet::new();
    while let Some(address) = next_address(&ranged, used.last().copied(), |a| !used.contains(&a)) {
        used.insert(address);
    }
    let shown: Vec<String> = used.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["fd00:1::100", "fd00:1::101", "fd00:1::102", "fd00:1::103"]);
}

/// Addresses come and go at random, a million of them; then all are taken: none was lost, none given twice.
fn churn(net: &str, hosts: usize) {
    let net = subnet(net);
    let base = number(net.subnet.network());
    let at = |address: IpAddr| usize::try_from(number(address) - base).unwrap();
    let (mut used, mut cursor, mut seed, mut given) = ([false; 64], None, 7u64, 0u32);
    while given < 1_000_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // As many come as go, whoever they are; when it is full, all go but a few.
        used[usize::try_from(seed >> 58).unwrap()] = false;
        match next_address(&net, cursor, |a| !used[at(a)]) {
            Some(address) => {
                assert!(!std::mem::replace(&mut used[at(address)], true), "{address}");
                assert!(net.subnet.contains(&address) && address != net.gateway, "{address}");
                (cursor, given) = (Some(address), given + 1);
            }
            None => used[8..].fill(false),
        }
    }
    while let Some(address) = next_address(&net, cursor, |a| !used[at(a)]) {
        used[at(address)] = true;
    }
    assert_eq!((0..64).filter(|n| used[*n]).count(), hosts);
}

#[test]
fn nothing_is_lost_after_a_million_allocations() {
    churn("10.1.2.0/26", 61); // All but network, broadcast and gateway.
    churn("fd00:1::/122", 62); // All but the routers' and the gateway.
}

proptest! {
    #[test]
    fn every_address_is_given_once_before_any_is_given_again(hosts in 3u8..=8, start: u8, v6: bool) {
        let (base, bits) = if v6 { ("fd00:1::", 128) } else { ("10.1.2.0", 32) };
        let net = subnet(&format!("{base}/{}", bits - hosts));
        let mut used = BTreeSet::new();
        let mut cursor = address(Family::of(net.gateway), number(net.subnet.network()) + u128::from(start));
        while let Some(address) = next_address(&net, cursor, |a| !used.contains(&a)) {
            prop_assert!(net.subnet.contains(&address) && address != net.subnet.network());
            prop_assert!(v6 || address != net.subnet.broadcast());
            prop_assert!(used.insert(address));
            cursor = Some(address);
        }
        prop_assert_eq!(used.len(), (1usize << hosts) - if v6 { 2 } else { 3 });
    }
}
