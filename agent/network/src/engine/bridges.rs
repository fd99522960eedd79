//! Local bridges, and the end of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::state::{Bridge, Bridge6, Record};
use super::{Inner, lock, node, recover};
use crate::error::NetworkError;
use crate::record;
use crate::spec::{Addressing, BridgeSpec, DEFAULT_BRIDGE};

impl Inner {
    pub(super) fn create_bridge(&self, spec: BridgeSpec) -> Result<Bridge, NetworkError> {
        let BridgeSpec { name, subnet, addressing, internal, ipv6: _ } = spec;
        let foreign = node::foreign_subnets(&self.config, &self.netns)?;
        let bridge = {
            let mut state = self.state();
            let refuse = |reason: String| NetworkError::Bridge { name: name.clone(), reason };
            if let Some(there) = state.bridges.get(&name) {
                return Err(refuse(format!("it exists with subnet {}", there.subnet)));
            }
            let ours = state.bridges.values().map(|bridge| bridge.subnet);
            let overlays = state.view.networks.values().flat_map(|n| n.subnets.iter().map(|s| s.subnet));
            let overlays = overlays.filter_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
            let infra = if let IpNet::V4(net) = self.config.infra { Some(net) } else { None };
            let mut taken: Vec<Ipv4Net> = foreign.iter().copied().chain(ours).chain(infra).collect();
            let subnet = match subnet {
                Some(subnet) if subnet.prefix_len() > 29 => {
                    return Err(refuse("its subnet is smaller than /29".into()));
                }
                Some(subnet) => {
                    node::refuse_overlap(subnet.trunc(), &taken)?;
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
            let used: BTreeSet<u32> = state.bridges.values().map(|bridge| bridge.number).collect();
            let number = (1..).find(|number| !used.contains(number)).expect("fewer bridges than numbers");
            let bridge = Bridge { name: name.clone(), number, subnet, internal, addressing, ipv6: None };
            state.bridges.insert(name.clone(), bridge.clone());
            bridge
        };
        let made = node::ensure_bridge(&self.config, &self.netns, &bridge, self.mtu())
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

/// The first of Docker's local subnets that overlaps nothing.
fn free_subnet(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let candidates = (18..=31).map(|second| Ipv4Net::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let more = (0..=240).step_by(16).map(|third| Ipv4Net::new(Ipv4Addr::new(192, 168, third, 0), 20));
    candidates.chain(more).flatten().find(|subnet| node::refuse_overlap(*subnet, taken).is_ok())
}
