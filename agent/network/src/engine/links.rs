//! Which links a sandbox has, and what changes when it joins or leaves networks.

use ipnet::IpNet;

use super::state::{Pool, Record, State, net};
use crate::config::Config;
use crate::error::NetworkError;
use crate::mac::Mac;
use crate::spec::{LinkKind, SandboxLink, SandboxSpec};

impl State {
    /// The links for a specification. Those of `kept` that it still wants come first and stay as they are; the others get
    /// addresses and the lowest free names. Nothing is taken until a record with them is kept.
    ///
    /// # Errors
    /// When an address asked for cannot be had, or none is left.
    pub fn plan_links(
        &mut self,
        spec: &SandboxSpec,
        config: &Config,
        kept: &[SandboxLink],
    ) -> Result<Vec<SandboxLink>, NetworkError> {
        let needs_task_link = self.needs_task_link(spec);
        let mut links: Vec<SandboxLink> =
            kept.iter().filter(|link| wants(spec, needs_task_link, link)).cloned().collect();
        let is_there = |links: &[SandboxLink], kind: &LinkKind| links.iter().any(|link| link.kind == *kind);
        for overlay in &spec.overlays {
            let IpNet::V4(address) = overlay.address else {
                return Err(NetworkError::Unsupported { what: format!("the IPv6 address {}", overlay.address) });
            };
            let kind = LinkKind::Overlay(overlay.network);
            if !is_there(&links, &kind) {
                let mac = Mac::of(address.addr());
                links.push(SandboxLink {
                    name: free_name(&links),
                    kind,
                    address,
                    mac,
                    gateway: None,
                    address6: None,
                    gateway6: None,
                });
            }
        }
        for attachment in &spec.bridges {
            let bridge = self.bridges.get(&attachment.bridge).cloned();
            let bridge = bridge.ok_or_else(|| NetworkError::UnknownBridge { name: attachment.bridge.clone() })?;
            let kind = LinkKind::Bridge(bridge.name.clone());
            if is_there(&links, &kind) {
                continue;
            }
            let address = match attachment.address {
                Some(address) => self.claim(Self::pool_of(&bridge), address)?,
                None => self.next_free(Self::pool_of(&bridge))?,
            };
            let gateway = (!bridge.internal).then(|| bridge.gateway());
            let (address, mac) = (net(address, bridge.subnet.prefix_len()), Mac::of(address));
            links.push(SandboxLink {
                name: free_name(&links),
                kind,
                address,
                mac,
                gateway,
                address6: None,
                gateway6: None,
            });
        }
        if needs_task_link && !is_there(&links, &LinkKind::Task) {
            let node = self.addresses(config)?;
            let address = self.next_free(Pool::of_tasks(&node))?;
            let (kind, gateway) = (LinkKind::Task, Some(node.gateway()));
            let (address, mac) = (net(address, 32), Mac::of(address));
            links.push(SandboxLink {
                name: free_name(&links),
                kind,
                address,
                mac,
                gateway,
                address6: None,
                gateway6: None,
            });
        }
        Ok(links)
    }

    /// A record without the links that `spec` does not want, and without those networks in its own specification.
    pub fn without(&self, record: &Record, spec: &SandboxSpec) -> Record {
        let mut left = record.clone();
        left.spec.overlays.retain(|old| spec.overlays.iter().any(|new| same_overlay(old.network, old.address, new)));
        left.spec.bridges.retain(|old| spec.bridges.iter().any(|new| new.bridge == old.bridge));
        left.spec.mesh &= spec.mesh;
        let needs_task_link = self.needs_task_link(spec);
        left.links.retain(|link| wants(spec, needs_task_link, link));
        left
    }
}

fn same_overlay(network: skep_proto::model::NetworkId, address: IpNet, new: &crate::spec::OverlayAttachment) -> bool {
    (network, address) == (new.network, new.address)
}

/// Whether a link that is there is still wanted, as it is.
fn wants(spec: &SandboxSpec, needs_task_link: bool, link: &SandboxLink) -> bool {
    match &link.kind {
        LinkKind::Overlay(network) => {
            spec.overlays.iter().any(|new| same_overlay(*network, IpNet::V4(link.address), new))
        }
        LinkKind::Bridge(name) => {
            let same = |asked: Option<std::net::Ipv4Addr>| asked.is_none_or(|address| address == link.address.addr());
            spec.bridges.iter().any(|new| new.bridge == *name && same(new.address))
        }
        LinkKind::Task => needs_task_link,
    }
}

fn free_name(links: &[SandboxLink]) -> String {
    let number = (0..).find(|number| links.iter().all(|link| link.number() != *number));
    format!("eth{}", number.expect("fewer links than numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::state::tests::{config, spec, state};
    use crate::spec::BridgeAttachment;

    fn names(record: &Record) -> Vec<(String, LinkKind)> {
        record.links.iter().map(|link| (link.name.clone(), link.kind.clone())).collect()
    }

    #[test]
    fn links_keep_their_names_when_others_go_and_come() {
        let (mut state, config) = (state(), config());
        let bridge = |name: &str| LinkKind::Bridge(name.into());
        let other = crate::engine::state::Bridge {
            name: "other".into(),
            number: 1,
            subnet: "172.18.0.0/16".parse().unwrap(),
            internal: false,
            addressing: crate::spec::Addressing::default(),
            ipv6: None,
        };
        state.bridges.insert("other".into(), other);
        let first = state.reserve(spec(1), &config, |_| true).unwrap();
        let mut both = first.spec.clone();
        both.bridges.push(BridgeAttachment { bridge: "other".into(), ..BridgeAttachment::default_bridge() });
        let mut record = first.clone();
        record.links = state.plan_links(&both, &config, &first.links).unwrap();
        record.spec = both.clone();
        assert_eq!(names(&record), [("eth0".into(), bridge("bridge")), ("eth1".into(), bridge("other"))]);
        assert_eq!(record.links[0], first.links[0]);

        let mut second = both.clone();
        second.bridges.remove(0);
        let left = state.without(&record, &second);
        assert_eq!(names(&left), [("eth1".into(), bridge("other"))]);
        assert_eq!(left.spec, second);
        assert_eq!(left.way_out().unwrap().name, "eth1");

        // What joins later takes the free name, and not the way out.
        let again = state.plan_links(&both, &config, &left.links).unwrap();
        let again = Record { links: again, ..left };
        assert_eq!(names(&again), [("eth1".into(), bridge("other")), ("eth0".into(), bridge("bridge"))]);
        assert_eq!(again.way_out().unwrap().name, "eth1");
    }
}
