//! What of the managers' view holds on this node, and what of it an operator should hear of.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_proto::model::NodeId;
use skep_proto::model::doctor::Check;
use skep_proto::model::view::NetworkView;

use super::{Inner, NodeNetwork};
use crate::doctor::{self, Families};
use crate::plan::sight::CutOff;

impl NodeNetwork {
    /// Whether the tasks of this node have the IPv6 addresses that they are given, for the managers.
    pub fn speaks_ipv6(&self) -> bool {
        self.inner.state().speaks_ipv6()
    }

    /// Whether all nodes speak the same versions of IP. `name` gives a node's name.
    pub fn examine_families(&self, name: impl Fn(NodeId) -> String) -> Vec<Check> {
        let state = self.inner.state();
        let told = state.sight.told();
        let other = |node: &NodeId| Some(*node) != state.place.node;
        let network = |id| told.networks.get(&id).map_or_else(String::new, |network| network.name.clone());
        let cut_off = state.sight.cut_off().into_iter().map(|(node, on)| (name(node), on.map(network)));
        doctor::judge_families(&Families {
            has_ipv6: state.ipv6,
            lacks: state.ipv6 && !state.speaks_ipv6(),
            others_have: told.peers.values().any(|peer| other(&peer.node) && !peer.ipv4_only),
            own: state.place.underlay(),
            cut_off: cut_off.collect(),
        })
    }
}

impl Inner {
    /// Takes a view in; gives what of it holds here. The log is told of nodes that nothing gets to when they are new.
    pub(super) fn see(&self, told: Arc<NetworkView>) -> Arc<NetworkView> {
        let mut state = self.state();
        let (from, before) = (state.standpoint(), state.sight.cut_off());
        let view = state.sight.see(told, from);
        let now = state.sight.cut_off();
        drop(state);
        tell(&now.difference(&before).copied().collect(), &view);
        view
    }
}

fn tell(cut_off: &BTreeSet<CutOff>, view: &NetworkView) {
    for (node, network) in cut_off {
        match network.and_then(|network| view.networks.get(&network)) {
            Some(network) => tracing::warn!(
                node.id = %node, network.name = network.name,
                "the network is not encrypted, and the data paths of this node and of that one have different versions of \
                 IP: its tasks there are not reached from here, and nothing leads to them"
            ),
            None => tracing::warn!(
                node.id = %node,
                "the data paths of this node and of that one have no version of IP in common: its tasks are not reached \
                 from here, and nothing leads to them"
            ),
        }
    }
}
