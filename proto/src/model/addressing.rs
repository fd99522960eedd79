//! Rules of addresses and subnets that managers and nodes share. Pure arithmetic.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use sha2::{Digest, Sha256};

use super::network::{IpamConfig, Subnet};

/// Prefix length of the IPv6 subnets that are given without being asked for (RFC 4291, section 2.5.4).
pub const SUBNET6: u8 = 64;
/// The smallest subnets of a network: with the gateway, and for IPv4 without network and broadcast address, some
/// addresses are left.
const LONGEST: (u8, u8) = (29, 125);

/// One of the two families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The first address that a host may have: where a gateway is put that nobody named. The very first one of an IPv6
/// subnet belongs to its routers (RFC 4291, section 2.6.1).
pub fn first_host(subnet: IpNet) -> Option<IpAddr> {
    match subnet {
        IpNet::V4(net) => net.hosts().next().map(IpAddr::V4),
        IpNet::V6(net) => {
            let first = Ipv6Addr::from(u128::from(net.network()).checked_add(1)?);
            net.contains(&first).then_some(IpAddr::V6(first))
        }
    }
}

/// Whether two subnets have an address in common.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A prefix for local use that hardly anybody else has (RFC 4193, section 3.2.2): 40 bits drawn from what names its owner.
/// The same owner gets the same prefix always, so nothing has to remember it.
pub fn unique_local(owner: &[u8]) -> Ipv6Net {
    let hash = Sha256::new().chain_update(b"skep unique local prefix\0").chain_update(owner).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&hash[..5]);
    Ipv6Net::new(Ipv6Addr::from(octets), 48).expect("48 is a prefix length")
}

/// The subnet of a network that an address asked for lies in.
///
/// # Errors
/// Docker's words when there is none.
pub fn subnet_of(address: IpAddr, subnets: &[Subnet]) -> Result<&Subnet, String> {
    let found = subnets.iter().find(|s| s.subnet.contains(&address));
    found.ok_or_else(|| format!("no configured subnet or ip-range contain the IP address {address}"))
}

/// What contradicts itself in the subnets asked of a network, or cannot be given; in Docker's words where it has some.
pub fn contradiction(ipv6: bool, asked: &[IpamConfig]) -> Option<String> {
    let families: Vec<Family> = asked.iter().filter_map(|c| c.subnet).map(|s| Family::of(s.addr())).collect();
    for family in [Family::V4, Family::V6] {
        if families.iter().filter(|f| **f == family).count() > 1 {
            return Some(format!("more than one {} subnet for a network is not supported", family.as_str()));
        }
    }
    if families.contains(&Family::V6) && !ipv6 {
        let subnet = asked.iter().find_map(|c| c.subnet.filter(|s| matches!(s, IpNet::V6(_))));
        let subnet = subnet.map(|s| s.to_string()).unwrap_or_default();
        return Some(format!("the subnet {subnet} needs IPv6 on the network: add --ipv6 (EnableIPv6)"));
    }
    asked.iter().find_map(of_one).map(|text| format!("invalid network config:\n{text}"))
}

/// What contradicts itself in one subnet.
fn of_one(config: &IpamConfig) -> Option<String> {
    let Some(subnet) = config.subnet else {
        let depends = config.range.is_some() || config.gateway.is_some() || !config.reserved.is_empty();
        return depends.then(|| "an ip-range, gateway or auxiliary address needs a subnet".to_owned());
    };
    let longest = if matches!(subnet, IpNet::V4(_)) { LONGEST.0 } else { LONGEST.1 };
    if subnet.prefix_len() > longest {
        return Some(format!("invalid subnet {subnet}: it is too small, /{longest} is the smallest"));
    }
    if let Some(why) = unusable(subnet) {
        return Some(format!("invalid subnet {subnet}: {why}"));
    }
    let strange = |address: IpAddr| Family::of(address) != Family::of(subnet.addr());
    let block = Family::of(subnet.addr()).as_str();
    let parent = || format!("parent subnet is an {block} block");
    if let Some(range) = config.range {
        if strange(range.addr()) {
            return Some(format!("invalid ip-range {range}: {}", parent()));
        }
        if !subnet.contains(&range) {
            return Some(format!("invalid ip-range {range}: parent subnet {subnet} doesn't contain ip-range"));
        }
    }
    let wrong = |address: IpAddr| match (strange(address), subnet.contains(&address)) {
        (true, _) => Some(parent()),
        (false, false) => Some(format!("parent subnet {subnet} doesn't contain this address")),
        (false, true) => None,
    };
    if let Some((gateway, why)) = config.gateway.and_then(|g| Some((g, wrong(g)?))) {
        return Some(format!("invalid gateway {gateway}: {why}"));
    }
    let aux = config.reserved.iter().find_map(|(name, address)| Some((name, address, wrong(*address)?)));
    aux.map(|(name, address, why)| format!("invalid auxiliary address {name}={address}: {why}"))
}

/// Why nobody can have addresses of a subnet.
fn unusable(subnet: IpNet) -> Option<&'static str> {
    let reserved: [(&str, &str); 9] = [
        ("224.0.0.0/4", "these addresses are for multicast"),
        ("127.0.0.0/8", "these addresses are the host's own"),
        ("169.254.0.0/16", "these addresses are link-local"),
        ("ff00::/8", "these addresses are for multicast"),
        ("fe80::/10", "these addresses are link-local"),
        ("::1/128", "these addresses are the host's own"),
        ("::ffff:0:0/96", "these addresses stand for IPv4 ones"),
        ("0.0.0.0/8", "these addresses are the host's own"),
        ("fd73:6b65:7000::/96", "these addresses are for links between nodes and tasks"),
    ];
    let known = reserved.iter().map(|(net, why)| (net.parse::<IpNet>().expect("a constant subnet"), *why));
    known.into_iter().find(|(net, _)| overlap(*net, subnet)).map(|(_, why)| why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(subnet: &str) -> IpamConfig {
        IpamConfig { subnet: Some(subnet.parse().unwrap()), ..IpamConfig::default() }
    }

    #[test]
    fn a_prefix_of_ones_own_is_local_stable_and_differs_between_owners() {
        let (a, b) = (unique_local(b"a"), unique_local(b"b"));
        assert_eq!(a, unique_local(b"a"));
        assert_ne!(a, b);
        assert!("fd00::/8".parse::<Ipv6Net>().unwrap().contains(&a) && a.prefix_len() == 48);
        assert_eq!(a.network().segments()[3..], [0; 5]);
    }

    #[test]
    fn the_first_host_is_not_the_subnet_itself() {
        let first = |net: &str| first_host(net.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(first("10.1.0.0/24").as_deref(), Some("10.1.0.1"));
        assert_eq!(first("fd00:1::/64").as_deref(), Some("fd00:1::1"));
        assert_eq!(first("fd00::1/128"), None);
        assert_eq!(first("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"), None);
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        let none = |ipv6, list: &[IpamConfig]| assert_eq!(contradiction(ipv6, list), None);
        let says = |ipv6, list: &[IpamConfig], text: &str| {
            let found = contradiction(ipv6, list).unwrap();
            assert!(found.contains(text), "{found}");
        };
        none(true, &[]);
        none(true, &[asked("fd00:1::/64"), asked("10.1.0.0/24")]);
        none(true, &[asked("fd00:1::/120")]);
        says(false, &[asked("fd00:1::/64")], "add --ipv6");
        says(false, &[asked("10.1.0.0/24"), asked("10.2.0.0/24")], "more than one IPv4 subnet");
        says(true, &[asked("fd00:1::/64"), asked("fd00:2::/64")], "more than one IPv6 subnet");
        says(true, &[asked("fd00:1::/126")], "/125 is the smallest");
        says(true, &[asked("fe80::/64")], "link-local");
        says(true, &[asked("ff02::/64")], "multicast");
        says(true, &[asked("::/0")], "invalid subnet ::/0");
        says(false, &[asked("10.0.0.0/30")], "/29 is the smallest");
        let with = |change: fn(&mut IpamConfig)| {
            let mut config = asked("fd00:1::/64");
            change(&mut config);
            [config]
        };
        says(true, &with(|c| c.gateway = Some("10.0.0.1".parse().unwrap())), "parent subnet is an IPv6 block");
        says(
            true,
            &with(|c| c.gateway = Some("fd00:2::1".parse().unwrap())),
            "invalid gateway fd00:2::1: parent subnet fd00:1::/64 doesn't contain this address",
        );
        says(true, &with(|c| c.range = Some("fd00:2::/80".parse().unwrap())), "doesn't contain ip-range");
        says(true, &with(|c| c.reserved = [("r".into(), "fd00:2::9".parse().unwrap())].into()), "r=fd00:2::9");
        let range = IpamConfig { range: Some("10.0.0.0/25".parse().unwrap()), ..IpamConfig::default() };
        says(false, &[range], "needs a subnet");
    }
}
