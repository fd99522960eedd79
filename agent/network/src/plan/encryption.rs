//! Encryption of what passes between nodes: VXLAN at the nodes' WireGuard addresses, and the rules that keep it there.
//!
//! ```text
//! vx0 (UDP 4790, local = WireGuard address) -> PREFIX-wg -> WireGuard (UDP 51820 at the data path) -> other node
//! ```
//!
//! What must hold, whatever fails: nothing for a WireGuard address leaves the node by another link (it would be readable),
//! nothing is taken for encrypted VXLAN that did not come through WireGuard (anybody could have sent it), and no container
//! speaks on that link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use skep_proto::model::view::{NetworkView, OverlayNetwork, Peer};

use super::node::NodeFacts;
use crate::config::{
    Config, ENCRYPTED_PORT, IPV6_HEADER_MORE, NodeAddresses, Place, Underlay, VXLAN_OVERHEAD, WIREGUARD_OVERHEAD,
    node_addresses, wireguard_range,
};
use crate::nft::rule::{Rule, UDP};
use crate::nft::table::Ip;
use crate::tunnel::{Key, Tunnel, TunnelPeer};

/// How the VXLAN of a network gets to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Source address of its packets.
    pub local: IpAddr,
    /// UDP port, ours and the peers'.
    pub port: u16,
    /// MTU of the network, in bytes.
    pub mtu: u32,
}

impl Path {
    /// Whether it leads through WireGuard.
    pub fn is_encrypted(&self) -> bool {
        self.port == ENCRYPTED_PORT
    }

    /// The same with packets that are not larger than what was asked for, in bytes.
    pub fn within(self, asked: Option<u32>) -> Self {
        Self { mtu: asked.map_or(self.mtu, |asked| asked.min(self.mtu)), ..self }
    }
}

/// MTU of a WireGuard link over an underlay with that MTU, both in bytes.
pub fn tunnel_mtu(underlay: u32) -> u32 {
    underlay.saturating_sub(WIREGUARD_OVERHEAD)
}

/// How the routing mesh gets to other nodes. Kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Through WireGuard.
    pub encrypted: bool,
    /// Its packets are not larger than this, in bytes.
    pub mtu: Option<u32>,
    /// UDP port where it is not encrypted.
    pub port: u16,
}

impl Default for Mesh {
    /// The one that every cluster has from the beginning.
    fn default() -> Self {
        Self { encrypted: true, mtu: None, port: ENCRYPTED_PORT }
    }
}

impl Mesh {
    /// That of a view. `usual` is the port of networks that are not encrypted and name none.
    pub fn of(view: &NetworkView, usual: u16) -> Self {
        match view.ingress() {
            Some(network) if network.encrypted => Self { mtu: network.mtu, ..Self::default() },
            Some(network) => Self { encrypted: false, mtu: network.mtu, port: plain_port(network, usual) },
            None => Self::default(),
        }
    }
}

/// The path of everything that is encrypted.
pub fn encrypted_path(addresses: &NodeAddresses, underlay_mtu: u32) -> Path {
    let mtu = tunnel_mtu(underlay_mtu).saturating_sub(VXLAN_OVERHEAD);
    Path { local: IpAddr::V4(addresses.wireguard), port: ENCRYPTED_PORT, mtu }
}

/// The path of what is not encrypted, at that UDP port.
pub fn plain_path(port: u16, underlay: IpAddr, underlay_mtu: u32) -> Path {
    let overhead = if underlay.is_ipv4() { VXLAN_OVERHEAD } else { VXLAN_OVERHEAD + IPV6_HEADER_MORE };
    Path { local: underlay, port, mtu: underlay_mtu.saturating_sub(overhead) }
}

/// UDP port of a network that is not encrypted. `usual` is the port of those that name none.
pub fn plain_port(network: &OverlayNetwork, usual: u16) -> u16 {
    // The port of encrypted networks means that the source was authenticated; no network may borrow it.
    if matches!(network.port, 0 | ENCRYPTED_PORT) { usual } else { network.port }
}

/// UDP ports of the networks that are not encrypted.
pub fn plain_ports(view: &NetworkView, usual: u16) -> BTreeSet<u16> {
    let plain = view.networks.values().filter(|network| !network.encrypted);
    plain.map(|network| plain_port(network, usual)).collect()
}

/// Where another node's end of the path `own` is; `None` while it has none. A VXLAN link speaks one version of IP: a node
/// that has the other one alone is not reached by it.
pub fn remote_end(peer: &Peer, own: &Path, infra: ipnet::IpNet) -> Option<IpAddr> {
    if own.is_encrypted() {
        peer.wireguard.as_ref()?;
        return node_addresses(infra, peer.index).map(|addresses| IpAddr::V4(addresses.wireguard));
    }
    Underlay::of(&peer.data_path).alike(own.local)
}

/// The node's WireGuard link; `None` when its index is outside of the range.
///
/// A key that two nodes announce belongs to neither but the first by index: the managers let nobody announce another's.
pub fn tunnel(
    config: &Config,
    place: &Place,
    view: &NetworkView,
    index: u16,
    underlay_mtu: u32,
    key: Key,
) -> Option<Tunnel> {
    let addresses = node_addresses(config.infra, index)?;
    let by_index: BTreeMap<u16, &Peer> = view.peers.values().map(|peer| (peer.index, peer)).collect();
    let mut taken = BTreeSet::from([key]);
    let mut peers = Vec::new();
    for peer in by_index.into_values().filter(|peer| Some(peer.node) != place.node && peer.index != index) {
        let there = node_addresses(config.infra, peer.index).map(|addresses| addresses.wireguard);
        let at = place.underlay().reaches(&Underlay::of(&peer.data_path));
        let (Some(own), Some(address), Some(at)) = (&peer.wireguard, there, at) else {
            continue;
        };
        if own.port == 0 || !taken.insert(own.key) {
            continue;
        }
        let next = own.next.filter(|next| taken.insert(*next));
        let endpoint = SocketAddr::new(at, own.port);
        peers.push(TunnelPeer { key: own.key, next, endpoint, address });
    }
    Some(Tunnel {
        link: config.names().wireguard(),
        listen: listen(place.underlay().preferred()?, config.wireguard_port, &peers),
        mtu: tunnel_mtu(underlay_mtu),
        address: addresses.wireguard,
        range: wireguard_range(config.infra)?,
        keys: config.key_dir(),
        key,
        peers,
    })
}

/// The address of the data path, as long as it reaches all the others. Where they are of both versions of IP, all addresses
/// of both.
fn listen(own: IpAddr, port: u16, peers: &[TunnelPeer]) -> SocketAddr {
    let alike = peers.iter().all(|peer| peer.endpoint.is_ipv4() == own.is_ipv4());
    SocketAddr::new(if alike { own } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) }, port)
}

/// Bytes of a packet on the underlay that WireGuard fills: where some node is reached over IPv6 alone, its header is larger.
/// All nodes are sent the same, so that one size holds for a network.
pub fn tunnel_underlay(own: Underlay, peers: &BTreeMap<u16, Underlay>, mtu: u32) -> u32 {
    let over_ipv6 = |peer: &Underlay| matches!(own.reaches(peer), Some(IpAddr::V6(_)));
    if own.v4.is_none() || peers.values().any(over_ipv6) { mtu.saturating_sub(IPV6_HEADER_MORE) } else { mtu }
}

/// The key that speaks for a node that goes over from one to another: the one that it made a handshake with last.
/// `handshake` tells when that was, in any unit.
pub fn key_in_use(peer: &TunnelPeer, handshake: impl Fn(&Key) -> Option<u64>) -> Key {
    match peer.next {
        Some(next) if handshake(&next).is_some() && handshake(&next) >= handshake(&peer.key) => next,
        _ => peer.key,
    }
}

/// What may come in, before anything else looks at it. Every packet of the node passes here: what is cheap to tell and leaves few
/// comes first in each rule, routes are asked last.
pub fn incoming(ip: Ip, facts: &NodeFacts) -> Vec<Rule> {
    let link = facts.names.wireguard();
    let mut rules = vec![
        Rule::of(ip).destination_port(UDP, ENCRYPTED_PORT).iif_not(&link).destination_is_local().drop(),
        Rule::of(ip).iif(&link).goto(FROM_TUNNEL),
    ];
    for port in &facts.vxlan_ports {
        // Before the VXLAN links exist: only nodes of the cluster may send to their port.
        rules.push(Rule::of(ip).destination_port(UDP, *port).source_not_in("nodes").destination_is_local().drop());
    }
    rules
}

/// Chain of what came through WireGuard.
pub const FROM_TUNNEL: &str = "from-tunnel";

/// Nodes speak VXLAN on it, and tell each other of packets that are too large. It opens nothing else of the host.
pub fn from_tunnel(ip: Ip) -> Vec<Rule> {
    vec![
        Rule::of(ip).destination_port(UDP, ENCRYPTED_PORT).accept(),
        Rule::of(ip).protocol(ip.icmp()).accept(),
        Rule::new().drop(),
    ]
}

/// What may leave the node itself: while the link is away, the way to its addresses would be another one.
pub fn outgoing(ip: Ip, facts: &NodeFacts) -> Vec<Rule> {
    let link = facts.names.wireguard();
    let ranges = facts.tunnels.iter().filter(|_| ip == Ip::V4);
    ranges.map(|range| Rule::of(ip).destination(*range).oif_not(&link).oif_not("lo").drop()).collect()
}

/// What may pass through the node: nothing of this. Who could send here would be taken for the node by the others.
pub fn forwarded(ip: Ip, facts: &NodeFacts) -> Vec<Rule> {
    let link = facts.names.wireguard();
    let mut rules = vec![Rule::of(ip).iif(&link).drop(), Rule::of(ip).oif(&link).drop()];
    let ranges = facts.tunnels.iter().filter(|_| ip == Ip::V4);
    rules.extend(ranges.map(|range| Rule::of(ip).destination(*range).drop()));
    rules
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use skep_proto::model::NodeId;
    use skep_proto::model::network::INGRESS_VNI;
    use skep_proto::model::node::WireGuard;

    use super::*;

    fn config() -> Config {
        Config {
            state_dir: "/state".into(),
            run_dir: "/run".into(),
            vxlan_port: 4789,
            wireguard_port: 51821,
            prefix: "sk".into(),
            bridge_subnet: "172.17.0.0/16".parse().unwrap(),
            infra: "100.64.0.0/10".parse().unwrap(),
            netd_exe: "/bin/skep".into(),
        }
    }

    fn place() -> Place {
        Place { node: Some(NodeId(1)), data_path: vec!["192.0.2.1".parse().unwrap()] }
    }

    fn peer(index: u16, key: u8, next: Option<u8>) -> Peer {
        Peer {
            node: NodeId(index.into()),
            index,
            data_path: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(index).unwrap()))],
            wireguard: Some(WireGuard { port: 51820, key: [key; 32], next: next.map(|next| [next; 32]) }),
            ipv4_only: false,
        }
    }

    fn view(peers: impl IntoIterator<Item = Peer>) -> NetworkView {
        NetworkView { peers: peers.into_iter().map(|peer| (peer.node, peer)).collect(), ..NetworkView::default() }
    }

    #[test]
    fn the_link_knows_every_other_node_by_its_own_address_alone() {
        let mut silent = peer(4, 4, None);
        silent.wireguard = None;
        let view = view([peer(1, 1, None), peer(2, 2, None), peer(3, 3, Some(33)), silent]);
        let link = tunnel(&config(), &place(), &view, 1, 1500, [1; 32]).unwrap();
        assert_eq!((link.link.as_str(), link.mtu, link.listen.to_string()), ("sk-wg", 1440, "192.0.2.1:51821".into()));
        assert_eq!(
            (link.address.to_string(), link.range.to_string()),
            ("100.127.192.1".into(), "100.127.192.0/18".into())
        );
        let seen: Vec<_> = link.peers.iter().map(|p| (p.key[0], p.next.map(|n| n[0]), p.address.to_string())).collect();
        assert_eq!(seen, [(2, None, "100.127.192.2".into()), (3, Some(33), "100.127.192.3".into())]);
        assert_eq!(link.peers[0].endpoint.to_string(), "192.0.2.2:51820");
    }

    #[test]
    fn a_node_is_reached_over_ipv4_or_else_over_ipv6_and_the_link_listens_on_both_if_it_must() {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), "2001:db8::1".parse::<IpAddr>().unwrap());
        let six = |index: u16| Peer {
            data_path: vec![IpAddr::V6(Ipv6Addr::from_bits(u128::from(index)))],
            ..peer(index, 3, None)
        };
        let made = |own: &[IpAddr], peers: Vec<Peer>| {
            let place = Place { node: Some(NodeId(1)), data_path: own.to_vec() };
            let link = tunnel(&config(), &place, &view(peers), 1, 1500, [1; 32]).unwrap();
            (link.listen.to_string(), link.peers.iter().map(|p| p.endpoint.to_string()).collect::<Vec<_>>())
        };
        let both = || Peer { data_path: vec!["2001:db8::2".parse().unwrap(), v4], ..peer(2, 2, None) };
        assert_eq!(made(&[v4, v6], vec![both()]), ("192.0.2.1:51821".into(), vec!["192.0.2.1:51820".into()]));
        assert_eq!(made(&[v6], vec![both()]), ("[2001:db8::1]:51821".into(), vec!["[2001:db8::2]:51820".into()]));
        let (listen, peers) = made(&[v4, v6], vec![both(), six(3)]);
        assert_eq!((listen.as_str(), peers.len()), ("[::]:51821", 2));
        // Who has the other version alone is not reached.
        assert_eq!(made(&[v4], vec![six(3)]).1, Vec::<String>::new());
        let told = |peers: &[Peer]| peers.iter().map(|p| (p.index, Underlay::of(&p.data_path))).collect();
        let size = |own: &[IpAddr], peers: &[Peer]| tunnel_underlay(Underlay::of(own), &told(peers), 1500);
        assert_eq!((size(&[v4, v6], &[both()]), size(&[v4, v6], &[both(), six(3)])), (1500, 1480));
        assert_eq!((size(&[v6], &[]), size(&[v4], &[six(3)])), (1480, 1500));
    }

    #[test]
    fn a_key_of_another_node_or_of_this_one_is_not_believed() {
        let view = view([peer(2, 2, None), peer(3, 2, Some(9)), peer(4, 1, None), peer(5, 5, Some(2))]);
        let link = tunnel(&config(), &place(), &view, 1, 1500, [1; 32]).unwrap();
        let seen: Vec<_> = link.peers.iter().map(|p| (p.key[0], p.next, p.address.octets()[3])).collect();
        assert_eq!(seen, [(2, None, 2), (5, None, 5)]);
    }

    #[test]
    fn a_node_speaks_by_the_key_of_its_last_handshake() {
        let both = TunnelPeer {
            key: [1; 32],
            next: Some([2; 32]),
            endpoint: "192.0.2.2:1".parse().unwrap(),
            address: Ipv4Addr::LOCALHOST,
        };
        let seen = |old: Option<u64>, new: Option<u64>| key_in_use(&both, |key| if key[0] == 1 { old } else { new })[0];
        assert_eq!([seen(None, None), seen(Some(1), None), seen(Some(1), Some(2))], [1, 1, 2]);
        assert_eq!([seen(Some(3), Some(2)), seen(None, Some(2)), seen(Some(2), Some(2))], [1, 2, 2]);
        let one = TunnelPeer { next: None, ..both.clone() };
        assert_eq!(key_in_use(&one, |_| Some(1)), [1; 32]);
    }

    #[test]
    fn the_mesh_is_encrypted_unless_the_operator_made_one_that_is_not() {
        let mut network = OverlayNetwork {
            id: skep_proto::model::NetworkId(1),
            name: "outside".into(),
            vni: INGRESS_VNI,
            subnets: Vec::new(),
            internal: false,
            encrypted: true,
            mtu: Some(1200),
            port: 0,
        };
        let mesh = |network: Option<&OverlayNetwork>| {
            let networks = network.map(|network| (network.id, network.clone())).into_iter().collect();
            Mesh::of(&NetworkView { networks, ..NetworkView::default() }, 4789)
        };
        assert_eq!(mesh(None), Mesh { encrypted: true, mtu: None, port: ENCRYPTED_PORT });
        assert_eq!(mesh(Some(&network)), Mesh { encrypted: true, mtu: Some(1200), port: ENCRYPTED_PORT });
        network.encrypted = false;
        assert_eq!(mesh(Some(&network)), Mesh { encrypted: false, mtu: Some(1200), port: 4789 });
        network.vni = 4097;
        assert_eq!(mesh(Some(&network)), Mesh::default(), "another network says nothing of it");
    }

    #[test]
    fn each_path_leaves_room_for_its_headers() {
        let addresses = node_addresses("100.64.0.0/10".parse().unwrap(), 7).unwrap();
        assert_eq!(encrypted_path(&addresses, 1500).mtu, 1390);
        assert_eq!(encrypted_path(&addresses, 9000).mtu, 8890);
        let mut network = OverlayNetwork {
            id: skep_proto::model::NetworkId(1),
            name: "n".into(),
            vni: 4097,
            subnets: Vec::new(),
            internal: false,
            encrypted: false,
            mtu: None,
            port: 0,
        };
        let plain = |network: &OverlayNetwork| plain_path(plain_port(network, 4789), Ipv4Addr::LOCALHOST.into(), 1500);
        assert_eq!((plain(&network).port, plain(&network).mtu), (4789, 1450));
        network.port = 5000;
        assert_eq!(plain(&network).port, 5000);
        network.port = ENCRYPTED_PORT;
        assert_eq!((plain(&network).port, plain(&network).is_encrypted()), (4789, false));
    }
}
