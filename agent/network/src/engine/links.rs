//! Which links a sandbox has, and what changes when it joins or leaves networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use skep_proto::model::NetworkId;

use super::pool::Pool;
use super::state::{Bridge, Record, State, net};
use crate::config::{Config, twin, twin_net};
use crate::error::NetworkError;
use crate::mac::Mac;
use crate::spec::{BridgeAttachment, HostPort, LinkKind, OverlayAttachment, SandboxLink, SandboxSpec};

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
                return Err(NetworkError::Unsupported { what: format!("{} without an IPv4 address", overlay.address) });
            };
            let kind = LinkKind::Overlay(overlay.network);
            if !is_there(&links, &kind) {
                let (name, mac) = (free_name(&links), Mac::of(address.addr()));
                let address6 = overlay.address6.filter(|_| self.ipv6);
                links.push(SandboxLink { name, kind, address, mac, gateway: None, address6, gateway6: None });
            }
        }
        let needs_twin = !needs_task_link && spec.host_ports.iter().any(HostPort::is_on_ipv6);
        for attachment in &spec.bridges {
            let bridge = self.bridges.get(&attachment.bridge).cloned();
            let bridge = bridge.ok_or_else(|| NetworkError::UnknownBridge { name: attachment.bridge.clone() })?;
            let kind = LinkKind::Bridge(bridge.name.clone());
            if is_there(&links, &kind) {
                continue;
            }
            let address = match attachment.address {
                Some(address) => self.claim(bridge.pool(), address)?,
                None => self.next_free(bridge.pool())?,
            };
            let gateway = (!bridge.internal).then(|| bridge.gateway());
            let (mut address6, mut gateway6) = self.address6(&bridge, attachment)?;
            if self.ipv6 && bridge.ipv6.is_none() && needs_twin {
                // Its published ports are open on IPv6 as well, and nothing else of it.
                let prefix_len = twin_net(bridge.subnet).prefix_len();
                address6 = Some(Ipv6Net::new(twin(address), prefix_len).expect("the length is another subnet's"));
                gateway6 = gateway.map(twin);
            }
            let (address, mac) = (net(address, bridge.subnet.prefix_len()), Mac::of(address));
            links.push(SandboxLink { name: free_name(&links), kind, address, mac, gateway, address6, gateway6 });
        }
        if needs_task_link && !is_there(&links, &LinkKind::Task) {
            let node = self.addresses(config)?;
            let address = self.next_free(Pool::of_tasks(&node))?;
            links.push(task_link(free_name(&links), address, node.gateway(), self.ipv6));
        }
        Ok(links)
    }

    fn address6(
        &mut self,
        bridge: &Bridge,
        attachment: &BridgeAttachment,
    ) -> Result<(Option<Ipv6Net>, Option<Ipv6Addr>), NetworkError> {
        let Some(ipv6) = bridge.ipv6.filter(|_| self.ipv6) else {
            return match attachment.address6 {
                Some(address) => {
                    let (address, reason) = (IpAddr::V6(address), "the network or this node has no IPv6");
                    Err(NetworkError::Address { address, reason })
                }
                None => Ok((None, None)),
            };
        };
        let address = match attachment.address6 {
            Some(address) => self.claim(ipv6.pool(), address)?,
            None => self.next_free(ipv6.pool())?,
        };
        let address = Ipv6Net::new(address, ipv6.subnet.prefix_len()).expect("the length is another subnet's");
        Ok((Some(address), (!bridge.internal).then_some(ipv6.gateway)))
    }

    /// A record without the links that `spec` does not want, and without those networks in its own specification.
    pub fn without(&self, record: &Record, spec: &SandboxSpec) -> Record {
        let mut left = record.clone();
        left.spec
            .overlays
            .retain(|old| spec.overlays.iter().any(|new| same_overlay(old.network, old.address, old.address6, new)));
        left.spec.bridges.retain(|old| spec.bridges.iter().any(|new| new.bridge == old.bridge));
        left.spec.mesh &= spec.mesh;
        let needs_task_link = self.needs_task_link(spec);
        left.links.retain(|link| wants(spec, needs_task_link, link));
        left
    }
}

/// A task link. With `ipv6` it has the twins of its addresses too.
pub(super) fn task_link(name: String, address: Ipv4Addr, gateway: Ipv4Addr, ipv6: bool) -> SandboxLink {
    let address6 = ipv6.then(|| Ipv6Net::from(twin(address)));
    let gateway6 = ipv6.then(|| twin(gateway));
    let (kind, mac) = (LinkKind::Task, Mac::of(address));
    SandboxLink { name, kind, address: net(address, 32), mac, gateway: Some(gateway), address6, gateway6 }
}

fn same_overlay(network: NetworkId, address: IpNet, address6: Option<Ipv6Net>, new: &OverlayAttachment) -> bool {
    (network, address, address6) == (new.network, new.address, new.address6)
}

/// Whether a link that is there is still wanted, as it is.
fn wants(spec: &SandboxSpec, needs_task_link: bool, link: &SandboxLink) -> bool {
    match &link.kind {
        LinkKind::Overlay(network) => {
            let address = IpNet::V4(link.address);
            spec.overlays.iter().any(|new| {
                let asked = OverlayAttachment { address6: link.address6.and(new.address6), ..new.clone() };
                same_overlay(*network, address, link.address6, &asked)
            })
        }
        LinkKind::Bridge(name) => {
            let same = |new: &BridgeAttachment| {
                let own6 = link.address6.map(|net| net.addr());
                new.address.is_none_or(|address| address == link.address.addr())
                    && new.address6.is_none_or(|address| Some(address) == own6)
            };
            spec.bridges.iter().any(|new| new.bridge == *name && same(new))
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
