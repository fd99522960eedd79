//! What of the managers' view holds on this node: not every node speaks IPv6, and not every node reaches each other.
//!
//! A task may have been given an address that it does not have, as its node has no IPv6, or live where this node's packets
//! do not get. Such addresses are left out here, once, so that names, virtual addresses, published ports and forwarding
//! entries lead to no place that does not answer, and none of their planners has to know.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use skep_proto::model::view::{EndpointView, NetworkView, Peer, ServiceView};
use skep_proto::model::{NetworkId, NodeId};

use crate::config::Underlay;

/// Where the view is looked at from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standpoint {
    /// This node.
    pub node: Option<NodeId>,
    /// Its addresses on the underlay.
    pub underlay: Underlay,
    /// Whether it speaks IPv6 for its sandboxes.
    pub ipv6: bool,
}

/// A node whose tasks are not reached from here: on one network that is not encrypted, or, without a network, by all that is.
pub type CutOff = (NodeId, Option<NetworkId>);

/// The last view, as told and as it holds here.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    told: Arc<NetworkView>,
    seen: Arc<NetworkView>,
    from: Standpoint,
    limits: Limits,
}

/// What is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Limits {
    /// All of IPv6: this node has none.
    no_ipv6: bool,
    /// IPv6 of tasks of these nodes.
    ipv4_only: BTreeSet<NodeId>,
    /// What is encrypted, of these nodes: WireGuard has no way to them.
    far: BTreeSet<NodeId>,
    /// What is not, of these nodes.
    far_plain: BTreeSet<NodeId>,
    /// Networks that are not encrypted.
    plain: BTreeSet<NetworkId>,
}

impl Sight {
    /// Takes a view in and gives what of it holds here. Costs as much as what changed, while nodes and networks are the same.
    pub fn see(&mut self, told: Arc<NetworkView>, from: Standpoint) -> Arc<NetworkView> {
        let same = from == self.from && told.peers == self.told.peers && told.networks == self.told.networks;
        if !same {
            self.limits = Limits::of(&told, &from);
        }
        self.seen = match (self.limits.is_none(), same) {
            (true, _) => Arc::clone(&told),
            (false, true) => Arc::new(self.followed(&told)),
            (false, false) => Arc::new(self.limits.whole(&told)),
        };
        (self.told, self.from) = (told, from);
        Arc::clone(&self.seen)
    }

    /// The view as it was told.
    pub fn told(&self) -> &Arc<NetworkView> {
        &self.told
    }

    /// Nodes whose tasks are left out as nothing gets there from here.
    pub fn cut_off(&self) -> BTreeSet<CutOff> {
        let limits = &self.limits;
        let mut cut_off: BTreeSet<CutOff> = limits.far.iter().map(|node| (*node, None)).collect();
        if limits.plain.is_empty() || limits.far_plain.is_empty() {
            return cut_off;
        }
        for task in self.told.endpoints.values().filter(|task| limits.far_plain.contains(&task.node)) {
            let plain = task.addresses.iter().filter(|own| limits.plain.contains(&own.network));
            cut_off.extend(plain.map(|own| (task.node, Some(own.network))));
        }
        cut_off
    }

    fn followed(&self, told: &NetworkView) -> NetworkView {
        let mut seen = NetworkView::clone(&self.seen);
        for item in self.told.services.diff(&told.services) {
            match item {
                DiffItem::Remove(id, _) => drop(seen.services.remove(id)),
                DiffItem::Add(id, new) | DiffItem::Update { new: (id, new), .. } => {
                    seen.services.insert(*id, self.limits.service(new).unwrap_or_else(|| new.clone()));
                }
            }
        }
        for item in self.told.endpoints.diff(&told.endpoints) {
            match item {
                DiffItem::Remove(id, _) => drop(seen.endpoints.remove(id)),
                DiffItem::Add(id, new) | DiffItem::Update { new: (id, new), .. } => {
                    seen.endpoints.insert(*id, self.limits.endpoint(new).unwrap_or_else(|| new.clone()));
                }
            }
        }
        seen
    }
}

impl Limits {
    fn of(view: &NetworkView, from: &Standpoint) -> Self {
        let nodes = |is: &dyn Fn(&Peer) -> bool| view.peers.values().filter(|p| is(p)).map(|p| p.node).collect();
        let is_other = |peer: &Peer| Some(peer.node) != from.node && from.underlay.preferred().is_some();
        let plain = view.networks.values().filter(|network| !network.encrypted);
        Self {
            no_ipv6: !from.ipv6,
            ipv4_only: nodes(&|peer| peer.ipv4_only),
            far: nodes(&|peer| is_other(peer) && from.underlay.reaches(&Underlay::of(&peer.data_path)).is_none()),
            far_plain: nodes(&|peer| is_other(peer) && !from.underlay.speaks_with(&Underlay::of(&peer.data_path))),
            plain: plain.map(|network| network.id).collect(),
        }
    }

    fn is_none(&self) -> bool {
        let plain = self.far_plain.is_empty() || self.plain.is_empty();
        !self.no_ipv6 && self.ipv4_only.is_empty() && self.far.is_empty() && plain
    }

    fn whole(&self, told: &NetworkView) -> NetworkView {
        let mut seen = told.clone();
        for service in told.services.values().filter_map(|service| self.service(service)) {
            seen.services.insert(service.id, service);
        }
        for endpoint in told.endpoints.values().filter_map(|endpoint| self.endpoint(endpoint)) {
            seen.endpoints.insert(endpoint.task, endpoint);
        }
        seen
    }

    /// A service with less; `None` when all of it holds.
    fn service(&self, told: &ServiceView) -> Option<ServiceView> {
        let holds = |address: IpAddr| address.is_ipv4() || !self.no_ipv6;
        if told.virtual_ips.iter().all(|vip| holds(vip.address.addr())) {
            return None;
        }
        let mut seen = told.clone();
        seen.virtual_ips.retain(|vip| holds(vip.address.addr()));
        Some(seen)
    }

    /// A task with less; `None` when all of it holds.
    fn endpoint(&self, told: &EndpointView) -> Option<EndpointView> {
        let ipv6 = !self.no_ipv6 && !self.ipv4_only.contains(&told.node);
        let (far, far_plain) = (self.far.contains(&told.node), self.far_plain.contains(&told.node));
        let reached = |network: &NetworkId| if self.plain.contains(network) { !far_plain } else { !far };
        let mut seen = told.clone();
        seen.addresses.retain(|own| (ipv6 || own.address.addr().is_ipv4()) && reached(&own.network));
        // The routing mesh is encrypted.
        seen.mesh = told.mesh.filter(|_| !far);
        (seen != *told).then_some(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use skep_proto::model::service::{EndpointMode, VirtualIp};
    use skep_proto::model::view::{EndpointAddress, OverlayNetwork};
    use skep_proto::model::{ServiceId, TaskId};

    use super::*;

    const ENCRYPTED: NetworkId = NetworkId(1);
    const PLAIN: NetworkId = NetworkId(2);

    fn network(id: NetworkId) -> OverlayNetwork {
        OverlayNetwork {
            id,
            name: format!("net{}", id.0),
            vni: 4097,
            subnets: Vec::new(),
            internal: false,
            encrypted: id == ENCRYPTED,
            mtu: None,
            port: 0,
        }
    }

    fn peer(number: u8, data_path: &[&str], ipv4_only: bool) -> Peer {
        Peer {
            node: NodeId(number.into()),
            index: number.into(),
            data_path: data_path.iter().map(|address| address.parse().unwrap()).collect(),
            wireguard: None,
            ipv4_only,
        }
    }

    /// A task with both families on both networks.
    fn task(number: u8, node: u8) -> EndpointView {
        let own = |network: NetworkId, address: String| EndpointAddress {
            network,
            address: address.parse().unwrap(),
            aliases: Vec::new(),
            names: Vec::new(),
        };
        EndpointView {
            task: TaskId(number.into()),
            service: Some(ServiceId(1)),
            node: NodeId(node.into()),
            name: format!("task{number}"),
            addresses: [ENCRYPTED, PLAIN]
                .into_iter()
                .flat_map(|id| {
                    [own(id, format!("10.0.{}.{number}/24", id.0)), own(id, format!("fd00:{}::{number}/64", id.0))]
                })
                .collect(),
            mesh: Some(IpAddr::V4(Ipv4Addr::new(100, 64, 64, number))),
            serving: true,
        }
    }

    fn service() -> ServiceView {
        let vips = ["10.0.1.200/24", "fd00:1::200/64"].map(|net| net.parse().unwrap());
        ServiceView {
            id: ServiceId(1),
            name: "web".into(),
            mode: EndpointMode::Vip,
            virtual_ips: vips.into_iter().map(|address| VirtualIp { network: ENCRYPTED, address }).collect(),
            aliases: BTreeMap::new(),
            ports: Vec::new(),
            redirects: Vec::new(),
        }
    }

    fn view(peers: Vec<Peer>, tasks: Vec<EndpointView>) -> NetworkView {
        NetworkView {
            peers: peers.into_iter().map(|peer| (peer.node, peer)).collect(),
            networks: [ENCRYPTED, PLAIN].map(|id| (id, network(id))).into_iter().collect(),
            services: [(ServiceId(1), service())].into_iter().collect(),
            endpoints: tasks.into_iter().map(|task| (task.task, task)).collect(),
        }
    }

    fn from(underlay: &[&str], ipv6: bool) -> Standpoint {
        let underlay: Vec<IpAddr> = underlay.iter().map(|address| address.parse().unwrap()).collect();
        Standpoint { node: Some(NodeId(1)), underlay: Underlay::of(&underlay), ipv6 }
    }

    fn left(view: &NetworkView, task: u8) -> (Vec<String>, bool) {
        let seen = &view.endpoints[&TaskId(task.into())];
        (seen.addresses.iter().map(|own| own.address.addr().to_string()).collect(), seen.mesh.is_some())
    }

    #[test]
    fn where_all_is_alike_the_view_is_taken_as_it_is() {
        let told =
            Arc::new(view(vec![peer(1, &["192.0.2.1"], false), peer(2, &["192.0.2.2"], false)], vec![task(1, 2)]));
        let mut sight = Sight::default();
        assert!(Arc::ptr_eq(&sight.see(Arc::clone(&told), from(&["192.0.2.1"], true)), &told));
        assert!(sight.cut_off().is_empty());
    }

    #[test]
    fn a_task_of_a_node_without_ipv6_has_ipv4_and_a_node_without_it_sees_none_of_it() {
        let peers = vec![peer(1, &["192.0.2.1"], false), peer(2, &["192.0.2.2"], true), peer(3, &["192.0.2.3"], false)];
        let told = Arc::new(view(peers, vec![task(1, 1), task(2, 2), task(3, 3)]));
        let mut sight = Sight::default();
        let seen = sight.see(Arc::clone(&told), from(&["192.0.2.1"], true));
        assert_eq!(left(&seen, 1).0, ["10.0.1.1", "fd00:1::1", "10.0.2.1", "fd00:2::1"]);
        assert_eq!(left(&seen, 2), (vec!["10.0.1.2".into(), "10.0.2.2".into()], true));
        assert_eq!(seen.services[&ServiceId(1)].virtual_ips.len(), 2);
        let seen = sight.see(told, from(&["192.0.2.1"], false));
        assert_eq!(left(&seen, 3).0, ["10.0.1.3", "10.0.2.3"]);
        let vips: Vec<String> =
            seen.services[&ServiceId(1)].virtual_ips.iter().map(|vip| vip.address.to_string()).collect();
        assert_eq!(vips, ["10.0.1.200/24"]);
    }

    #[test]
    fn what_does_not_get_to_a_node_is_led_to_none_of_its_tasks_and_said() {
        let both = ["192.0.2.1", "2001:db8::1"];
        let peers = vec![peer(1, &both, false), peer(2, &["2001:db8::2"], false), peer(3, &["192.0.2.3"], false)];
        let told = Arc::new(view(peers, vec![task(2, 2), task(3, 3)]));
        let mut sight = Sight::default();
        // WireGuard goes over IPv6 there; a network without it speaks IPv4 from here.
        let seen = sight.see(Arc::clone(&told), from(&both, true));
        assert_eq!(left(&seen, 2), (vec!["10.0.1.2".into(), "fd00:1::2".into()], true));
        assert_eq!(left(&seen, 3).0.len(), 4);
        assert_eq!(sight.cut_off(), [(NodeId(2), Some(PLAIN))].into());
        // No version of IP in common: nothing gets there.
        let seen = sight.see(Arc::clone(&told), from(&both[..1], true));
        assert_eq!(left(&seen, 2), (Vec::new(), false));
        assert_eq!(sight.cut_off(), [(NodeId(2), None), (NodeId(2), Some(PLAIN))].into());
        // A node whose own addresses are not known yet concludes nothing.
        assert_eq!(sight.see(Arc::clone(&told), from(&[], true)), told);
    }

    proptest! {
        #[test]
        fn step_by_step_is_as_all_at_once(
            rounds in prop::collection::vec((0u8..6, 1u8..4, any::<bool>(), any::<bool>(), any::<bool>()), 1..12),
        ) {
            let mut told = view(
                vec![peer(1, &["192.0.2.1"], false), peer(2, &["192.0.2.2"], true), peer(3, &["2001:db8::3"], false)],
                Vec::new(),
            );
            let mut sight = Sight::default();
            for (number, node, stays, has_service, ipv6) in rounds {
                let id = TaskId(number.into());
                if stays { drop(told.endpoints.insert(id, task(number, node))) } else { drop(told.endpoints.remove(&id)) }
                if has_service { drop(told.services.insert(ServiceId(1), service())) } else { told.services.clear() }
                let place = from(&["192.0.2.1"], ipv6 || number > 2);
                let seen = sight.see(Arc::new(told.clone()), place);
                prop_assert_eq!(seen, Sight::default().see(Arc::new(told.clone()), place));
            }
        }
    }
}
