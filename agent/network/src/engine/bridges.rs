//! Local bridges, and the end of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::state::{Bridge, Bridge6, Record};
use super::{Inner, lock, node, recover, sysctl};
use crate::config::{twin_net, twins};
use crate::error::{NetworkError, Step};
use crate::record;
use crate::spec::{Addressing, BridgeSpec, BridgeSpec6, DEFAULT_BRIDGE};

impl Inner {
    pub(super) fn create_bridge(&self, spec: BridgeSpec) -> Result<Bridge, NetworkError> {
        let BridgeSpec { name, subnet, addressing, internal, ipv6 } = spec;
        let foreign = node::foreign_subnets(&self.config, &self.netns)?;
        let bridge = {
            let mut state = self.state();
            let refuse = |reason: String| NetworkError::Bridge { name: name.clone(), reason };
            if let Some(there) = state.bridges.get(&name) {
                return Err(refuse(format!("it exists with subnet {}", there.subnet)));
            }
            let ours = state.bridges.values().flat_map(Bridge::subnets);
            let overlays = state.view.networks.values().flat_map(|n| n.subnets.iter().map(|s| s.subnet));
            let infra = infra_ranges(self.config.infra).chain([IpNet::V6(twins())]);
            let mut taken: Vec<IpNet> = foreign.iter().copied().chain(ours).chain(infra).collect();
            let subnet = match subnet {
                Some(subnet) if subnet.prefix_len() > 29 => {
                    return Err(refuse("its subnet is smaller than /29".into()));
                }
                Some(subnet) => {
                    node::refuse_overlap(subnet.trunc().into(), &taken)?;
                    subnet.trunc()
                }
                None => {
                    taken.extend(overlays);
                    free_subnet(&taken).ok_or_else(|| refuse("no subnet is left; ask for one".into()))?
                }
            };
            let outside = |what: &str, net: Ipv4Net| refuse(format!("{what} {net} is not inside the subnet {subnet}"));
            if let Some(range) = addressing.range.filter(|range| !subnet.contains(range)) {
                return Err(outside("the ip-range", range));
            }
            let gateway = addressing.gateway.filter(|address| {
                !subnet.contains(address) || [subnet.network(), subnet.broadcast()].contains(address)
            });
            if let Some(gateway) = gateway {
                return Err(outside("the gateway", gateway.into()));
            }
            let ipv6 = match ipv6 {
                Some(_) if !state.ipv6 => return Err(refuse("this node has no IPv6".into())),
                Some(asked) => Some(bridge6(&name, asked, &taken, rand::random())?),
                None => None,
            };
            let used: BTreeSet<u32> = state.bridges.values().map(|bridge| bridge.number).collect();
            let number = (1..).find(|number| !used.contains(number)).expect("fewer bridges than numbers");
            let bridge = Bridge { name: name.clone(), number, subnet, internal, addressing, ipv6 };
            state.bridges.insert(name.clone(), bridge.clone());
            bridge
        };
        let forwarded = match bridge.ipv6 {
            Some(_) => sysctl::forward6(&self.netns).step("let the node forward packets of IPv6"),
            None => Ok(()),
        };
        let made = forwarded
            .and_then(|()| node::ensure_bridge(&self.config, &self.netns, &bridge, self.mtu(), &[]))
            .and_then(|()| self.write_bridges())
            .and_then(|()| self.load_node_rules());
        match made {
            Ok(()) => Ok(bridge),
            Err(error) => {
                self.state().bridges.remove(&name);
                let undone = node::delete_bridge(&self.config, &self.netns, &bridge).and(self.write_bridges());
                if let Err(error) = undone {
                    tracing::warn!(%error, "cannot take back a bridge that could not be made");
                }
                Err(error)
            }
        }
    }

    /// Has a bridge without IPv6 lead to the twins of the addresses on it.
    pub(super) fn open_twins(&self, bridge: &Bridge) -> Result<(), NetworkError> {
        let (bridge, attached) = {
            let state = self.state();
            (state.with_twin(bridge), state.neighbours_on(&bridge.name))
        };
        sysctl::forward6(&self.netns).step("let the node forward packets of IPv6")?;
        node::ensure_bridge(&self.config, &self.netns, &bridge, self.mtu(), &attached)
    }

    pub(super) fn remove_bridge(&self, name: &str) -> Result<(), NetworkError> {
        let refuse = |reason: &str| NetworkError::Bridge { name: name.to_owned(), reason: reason.to_owned() };
        if name == DEFAULT_BRIDGE {
            return Err(refuse("the default bridge cannot be removed"));
        }
        let bridge = {
            let mut state = self.state();
            let attached = |r: &Record| r.spec.bridges.iter().any(|b| b.bridge == name);
            if state.records.values().any(attached) {
                return Err(refuse("containers are on it; remove them first"));
            }
            match state.bridges.remove(name) {
                Some(bridge) => bridge,
                None => return Ok(()),
            }
        };
        self.load_node_rules()?;
        node::delete_bridge(&self.config, &self.netns, &bridge)?;
        self.write_bridges()
    }

    pub(super) fn write_bridges(&self) -> Result<(), NetworkError> {
        let bridges: Vec<Bridge> = self.state().bridges.values().cloned().collect();
        let asked: BTreeMap<String, Addressing> = bridges
            .iter()
            .filter(|bridge| bridge.addressing != Addressing::default())
            .map(|bridge| (bridge.name.clone(), bridge.addressing))
            .collect();
        record::write(&self.config.state_dir.join("addressing.record"), &asked)?;
        let ipv6: Vec<Option<Bridge6>> = bridges.iter().map(|bridge| bridge.ipv6).collect();
        record::write(&self.config.state_dir.join("bridges.record"), &(bridges, ipv6))
    }

    pub(super) fn clear(&self) -> Result<(), NetworkError> {
        let bridges: Vec<Bridge> = std::mem::take(&mut self.state().bridges).into_values().collect();
        let mut result = lock(&self.node).clear(&self.config, &self.netns);
        for bridge in bridges {
            result = result.and(node::delete_bridge(&self.config, &self.netns, &bridge));
        }
        result.and(recover::forget(&self.config))
    }
}

/// The infrastructure range and its twin.
pub(super) fn infra_ranges(infra: IpNet) -> impl Iterator<Item = IpNet> {
    let twin = if let IpNet::V4(infra) = infra { Some(IpNet::V6(twin_net(infra))) } else { None };
    std::iter::once(infra).chain(twin)
}

/// The IPv6 half of a bridge, as asked for. `random` makes the subnet of one that nobody chose (RFC 4193 section 3.2.2).
fn bridge6(name: &str, asked: BridgeSpec6, taken: &[IpNet], random: u64) -> Result<Bridge6, NetworkError> {
    let refuse = |reason: String| NetworkError::Bridge { name: name.to_owned(), reason };
    let subnet = match asked.subnet {
        Some(subnet) if subnet.prefix_len() > 126 => {
            return Err(refuse("its IPv6 subnet is smaller than /126".into()));
        }
        Some(subnet) if subnet.network().is_multicast() || subnet.network().is_unicast_link_local() => {
            return Err(refuse(format!("containers cannot have addresses of {subnet}")));
        }
        Some(subnet) => subnet.trunc(),
        None => local_subnet(random),
    };
    node::refuse_overlap(subnet.into(), taken)?;
    let gateway = asked.gateway.unwrap_or_else(|| Ipv6Addr::from_bits(subnet.network().to_bits() + 1));
    let outside = |what: &str, net: Ipv6Net| refuse(format!("{what} {net} is not inside the subnet {subnet}"));
    if !subnet.contains(&gateway) || gateway == subnet.network() {
        return Err(outside("the gateway", gateway.into()));
    }
    if let Some(range) = asked.range.filter(|range| !subnet.contains(range)) {
        return Err(outside("the ip-range", range));
    }
    Ok(Bridge6 { subnet, gateway, range: asked.range })
}

/// A /64 of unique local addresses: `fd`, and 40 bits and a subnet's 16 by chance (RFC 4193 section 3.1).
fn local_subnet(random: u64) -> Ipv6Net {
    let network = (0xfd_u128 << 120) | (u128::from(random >> 8) << 64);
    Ipv6Net::new(Ipv6Addr::from_bits(network), 64).expect("64 is a prefix length")
}

/// The first of Docker's local subnets that overlaps nothing.
fn free_subnet(taken: &[IpNet]) -> Option<Ipv4Net> {
    let candidates = (18..=31).map(|second| Ipv4Net::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let more = (0..=240).step_by(16).map(|third| Ipv4Net::new(Ipv4Addr::new(192, 168, third, 0), 20));
    candidates.chain(more).flatten().find(|subnet| node::refuse_overlap((*subnet).into(), taken).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(subnet: &str) -> BridgeSpec6 {
        BridgeSpec6 { subnet: Some(subnet.parse().unwrap()), ..BridgeSpec6::default() }
    }

    #[test]
    fn an_ipv6_subnet_has_its_gateway_inside_and_overlaps_nothing() {
        let made = bridge6("n", asked("2001:db8:1::7/64"), &[], 0).unwrap();
        assert_eq!(
            (made.subnet.to_string(), made.gateway.to_string()),
            ("2001:db8:1::/64".into(), "2001:db8:1::1".into())
        );
        let refused = |spec, taken: &[IpNet]| bridge6("n", spec, taken, 0).unwrap_err().to_string();
        assert!(refused(asked("2001:db8::/127"), &[]).contains("smaller than /126"));
        assert!(refused(asked("fe80::/64"), &[]).contains("cannot have"));
        assert!(refused(asked("2001:db8::/48"), &["2001:db8::/64".parse().unwrap()]).contains("overlaps"));
        let gateway = Some("2001:db8:2::1".parse().unwrap());
        assert!(refused(BridgeSpec6 { gateway, ..asked("2001:db8:1::/64") }, &[]).contains("the gateway"));
        let range = Some("2001:db8:2::/80".parse().unwrap());
        assert!(refused(BridgeSpec6 { range, ..asked("2001:db8:1::/64") }, &[]).contains("the ip-range"));
    }

    proptest! {
        #[test]
        fn a_chosen_subnet_is_a_unique_local_one(random: u64) {
            let made = bridge6("n", BridgeSpec6::default(), &[], random).unwrap();
            prop_assert_eq!((made.subnet.prefix_len(), made.subnet.network().octets()[0]), (64, 0xfd));
            prop_assert_eq!(made.subnet.trunc(), made.subnet);
            prop_assert!(made.subnet.contains(&made.gateway));
        }
    }
}
