//! The ways to other nodes, as `skep doctor` tries them: echo requests in the tunnel and beside it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_proto::model::doctor::Check;
use skep_proto::model::view::Peer;

use super::Inner;
use crate::config::{Underlay, node_addresses};
use crate::doctor::{Ask, Echo, Link, Second, Seen, echo, judge_pair};
use crate::error::{NetworkError, Step};
use crate::plan;
use crate::plan::encryption::{tunnel_mtu, tunnel_underlay};
use crate::tunnel::{TunnelPeerStatus, TunnelStatus};

/// Small packets, and full ones, to each node.
const SMALL: u16 = 5;
const FULL: u16 = 3;
/// Size of a small packet in bytes: ping's.
const PING: u32 = 84;

impl Inner {
    /// Tries the ways to these nodes, each with its name. Blocks for up to two seconds.
    pub(super) fn examine_ways(
        &self,
        peers: &[(Peer, String)],
        tunnel: Option<&TunnelStatus>,
    ) -> Result<Vec<Check>, NetworkError> {
        let (own, all, told) = {
            let state = self.state();
            let told = state.place.node.and_then(|node| state.view.peers.get(&node));
            let told = told.map(|peer| Underlay::of(&peer.data_path)).unwrap_or_default();
            (state.place.underlay(), plan::node::peers(&state.view, state.place.node), told)
        };
        let mtu = self.mtu();
        let full = tunnel_mtu(tunnel_underlay(own, &all, mtu));
        let (mut asks, mut places, mut checks) = (Vec::new(), Vec::new(), Vec::new());
        for (peer, name) in peers {
            let there = Underlay::of(&peer.data_path);
            let Some(addresses) = node_addresses(self.config.infra, peer.index) else { continue };
            // Nodes without a version of IP in common are told of beside this.
            let Some(underlay) = own.reaches(&there) else { continue };
            // The managers know of an IPv6 address of both, though the tunnel does not take that way.
            let is_routed = |address: &Ipv6Addr| !address.is_unicast_link_local();
            let second =
                there.v6.filter(|v6| underlay.is_ipv4() && told.v6.as_ref().is_some_and(is_routed) && is_routed(v6));
            let second = second.map(IpAddr::V6);
            let inside = IpAddr::V4(addresses.wireguard);
            let mut ask = |to, size, count| {
                asks.push(Ask { to, size, count });
                asks.len() - 1
            };
            let first = [
                ask(inside, PING, SMALL),
                ask(inside, full, FULL),
                ask(underlay, PING, FULL),
                ask(underlay, mtu, FULL),
            ];
            let second = second.map(|to| (to, [ask(to, PING, FULL), ask(to, mtu, FULL)]));
            places.push((peer, name, underlay, first, second));
        }
        let echoes = echo::echo(&self.netns, rand::random(), &asks).step("send echo requests")?;
        let echo = |at: usize| -> Echo { echoes[at].clone() };
        let in_use = asks.iter().zip(&echoes).any(|(ask, echo)| ask.to.is_ipv6() && !echo.is_silent());
        for (peer, name, underlay, first, second) in places {
            let second = second.map(|(address, both)| {
                let [small, full] = both.map(echo);
                Second { address, small, full, in_use }
            });
            let [tunnel_small, tunnel_full, beside, beside_full] = first.map(echo);
            checks.extend(judge_pair(&Seen {
                peer: name.clone(),
                underlay,
                endpoint: peer.wireguard.as_ref().map(|own| SocketAddr::new(underlay, own.port)),
                link: link(peer, tunnel),
                mtu,
                tunnel_mtu: full,
                tunnel: tunnel_small,
                tunnel_full,
                beside,
                beside_full,
                second,
            }));
        }
        Ok(checks)
    }
}

/// How this node's link knows the other one.
fn link(peer: &Peer, tunnel: Option<&TunnelStatus>) -> Option<Link> {
    let own = peer.wireguard.as_ref()?;
    let is_theirs = |status: &&TunnelPeerStatus| own.key == status.key || own.next == Some(status.key);
    let known = tunnel.into_iter().flat_map(|tunnel| &tunnel.peers).filter(is_theirs);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Of two keys, the one that was used last.
    known.max_by_key(|status| status.handshake_ms).map(|status| Link {
        heard_at: status.endpoint,
        handshake: status.handshake_ms.map(|at| now.saturating_sub(Duration::from_millis(at))),
        received: status.received,
        sent: status.sent,
    })
}
