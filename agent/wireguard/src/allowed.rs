//! Which peer an address belongs to: the longest prefix wins ("cryptokey routing", WireGuard paper, section 2).

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

/// Prefixes and their values. A look-up costs one hash per length of prefix in use, of which a cluster has one or two.
#[derive(Debug, Clone)]
pub struct Allowed<T> {
    v4: Vec<(u8, HashMap<u128, T>)>,
    v6: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> Default for Allowed<T> {
    fn default() -> Allowed<T> {
        Allowed { v4: vec![], v6: vec![] }
    }
}

impl<T> Allowed<T> {
    /// Adds a prefix; bits beyond it do not count. Returns the value that the prefix had.
    pub fn insert(&mut self, net: IpNet, value: T) -> Option<T> {
        let (tables, bits) = match net {
            IpNet::V4(_) => (&mut self.v4, number(net.addr())),
            IpNet::V6(_) => (&mut self.v6, number(net.addr())),
        };
        let len = net.prefix_len();
        let at = match tables.binary_search_by(|(other, _)| len.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                tables.insert(at, (len, HashMap::new()));
                at
            }
        };
        tables[at].1.insert(masked(bits, len), value)
    }

    /// The value of the longest prefix around the address.
    pub fn find(&self, address: IpAddr) -> Option<&T> {
        let tables = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let bits = number(address);
        tables.iter().find_map(|(len, table)| table.get(&masked(bits, *len)))
    }
}

/// The address in the upper bits.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn masked(bits: u128, len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut allowed = Allowed::default();
        for (i, text) in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.0/24", "10.1.2.3/32", "2001:db8::/32"].iter().enumerate() {
            assert_eq!(allowed.insert(net(text), i), None);
        }
        assert_eq!(allowed.insert(net("10.1.2.77/24"), 9), Some(2));
        let find = |text: &str| allowed.find(text.parse().unwrap()).copied();
        assert_eq!(find("10.1.2.3"), Some(3));
        assert_eq!(find("10.1.2.4"), Some(9));
        assert_eq!(find("10.9.9.9"), Some(1));
        assert_eq!(find("9.9.9.9"), Some(0));
        assert_eq!(find("2001:db8:1::1"), Some(4));
        assert_eq!(find("2001:db9::1"), None);
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_of_all_finds(
            nets in proptest::collection::vec((any::<u8>(), 0u8..=32), 1..30), address in any::<u8>(),
        ) {
            let nets: Vec<IpNet> = nets
                .iter()
                .map(|(low, len)| IpNet::new([10, 0, low & 3, *low].into(), *len).unwrap().trunc())
                .collect();
            let address = IpAddr::from([10, 0, address & 3, address]);
            let mut allowed = Allowed::default();
            for net in &nets {
                allowed.insert(*net, *net);
            }
            let wanted = nets.iter().filter(|net| net.contains(&address)).max_by_key(|net| net.prefix_len());
            prop_assert_eq!(allowed.find(address), wanted);
        }
    }
}
