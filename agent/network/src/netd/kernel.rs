//! The kernel's WireGuard, where it has it: a link of that kind, configured over generic netlink
//! (`wireguard-control`; kernel: include/uapi/linux/wireguard.h).
//!
//! What changes is decided without the kernel ([`difference`]): peers that stay as they are are not touched, so their
//! sessions go on.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use ipnet::IpNet;
use skep_wireguard::{Config, Peer};
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, Key as KernelKey, PeerConfigBuilder};

use crate::netlink::{Requests, Rtnl};
use crate::sys::netns::Netns;
use crate::tunnel::{Key, Tunnel, TunnelPath, TunnelPeerStatus, TunnelStatus};

/// A link of the kernel's.
pub struct Kernel {
    name: InterfaceName,
    /// Peers as they were set last, by key.
    set: BTreeMap<Key, Set>,
    key: Option<Key>,
}

/// A peer as it was set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    endpoint: Option<SocketAddr>,
    allowed: Vec<IpNet>,
}

/// What changes among the peers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Difference {
    gone: Vec<Key>,
    /// Peers to set; the endpoint only where it is another than before, for a peer that moved is followed by the kernel.
    put: Vec<(Key, Set)>,
}

fn difference(before: &BTreeMap<Key, Set>, wanted: &BTreeMap<Key, Set>) -> Difference {
    let gone = before.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
    let mut put: Vec<(Key, Set)> = Vec::new();
    for (key, set) in wanted {
        let known = before.get(key);
        if known != Some(set) {
            let is_same = known.is_some_and(|known| known.endpoint == set.endpoint);
            put.push((*key, Set { endpoint: set.endpoint.filter(|_| !is_same), allowed: set.allowed.clone() }));
        }
    }
    // An address that goes from one peer to another is taken by who is set last.
    put.sort_by_key(|(_, set)| set.allowed.len());
    Difference { gone, put }
}

fn wanted(peers: &[Peer]) -> BTreeMap<Key, Set> {
    let set = |peer: &Peer| Set { endpoint: peer.endpoint, allowed: peer.allowed_ips.clone() };
    peers.iter().map(|peer| (peer.public_key.to_bytes(), set(peer))).collect()
}

impl Kernel {
    /// Makes the link, down.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no WireGuard; others are the kernel's.
    pub fn make(tunnel: &Tunnel) -> io::Result<Self> {
        let name = name(&tunnel.link)?;
        let mut rtnl = Rtnl::open(&Netns::current()?)?;
        rtnl.send(Requests::new().add_wireguard(&tunnel.link, tunnel.mtu))?;
        Ok(Self { name, set: BTreeMap::new(), key: None })
    }

    /// Finds the link of an earlier process.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn find(link: &str) -> io::Result<Self> {
        let name = name(link)?;
        let device = Device::get(&name, Backend::Kernel)?;
        // Where they are by now is not what they were set to: it is told again.
        let set =
            device.peers.iter().map(|peer| (peer.config.public_key.0, Set { endpoint: None, allowed: Vec::new() }));
        Ok(Self { name, set: set.collect(), key: device.public_key.map(|key| key.0) })
    }

    /// Brings key, port and peers to what is wanted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn configure(&mut self, tunnel: &Tunnel, config: &Config) -> io::Result<()> {
        let wanted = wanted(&config.peers);
        let difference = difference(&self.set, &wanted);
        let mut update = DeviceUpdate::new();
        if self.key != Some(tunnel.key) {
            let key = KernelKey(config.private_key.to_bytes());
            update = update.set_private_key(key).set_listen_port(tunnel.listen.port());
        }
        for gone in &difference.gone {
            update = update.remove_peer_by_key(&KernelKey(*gone));
        }
        for (key, set) in &difference.put {
            let mut peer = PeerConfigBuilder::new(&KernelKey(*key)).replace_allowed_ips();
            if let Some(endpoint) = set.endpoint {
                peer = peer.set_endpoint(endpoint);
            }
            for net in &set.allowed {
                peer = peer.add_allowed_ip(net.addr(), net.prefix_len());
            }
            update = update.add_peer(peer);
        }
        update.apply(&self.name, Backend::Kernel)?;
        (self.set, self.key) = (wanted, Some(tunnel.key));
        Ok(())
    }

    /// The link as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn status(&self, key: Key) -> io::Result<TunnelStatus> {
        let device = Device::get(&self.name, Backend::Kernel)?;
        let peers = device.peers.iter().map(|peer| TunnelPeerStatus {
            key: peer.config.public_key.0,
            endpoint: peer.config.endpoint,
            handshake_ms: peer.stats.last_handshake_time.and_then(|at| {
                let since = at.duration_since(UNIX_EPOCH).ok().filter(|since| !since.is_zero())?;
                u64::try_from(since.as_millis()).ok()
            }),
            received: peer.stats.rx_bytes,
            sent: peer.stats.tx_bytes,
        });
        Ok(TunnelStatus { path: TunnelPath::Kernel, key, peers: peers.collect() })
    }
}

fn name(link: &str) -> io::Result<InterfaceName> {
    link.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{link}: {error:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(endpoint: &str, allowed: &[&str]) -> Set {
        Set {
            endpoint: Some(endpoint.parse().unwrap()),
            allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn only_what_differs_is_told_and_a_peer_that_moved_by_itself_is_left_where_it_is() {
        let before = BTreeMap::from([
            ([1; 32], set("192.0.2.1:1", &["10.0.0.1/32"])),
            ([2; 32], set("192.0.2.2:1", &["10.0.0.2/32"])),
            ([3; 32], set("192.0.2.3:1", &[])),
            ([4; 32], set("192.0.2.4:1", &[])),
        ]);
        let mut after = before.clone();
        after.remove(&[4; 32]);
        after.insert([2; 32], set("192.0.2.9:1", &["10.0.0.2/32"]));
        after.insert([5; 32], set("192.0.2.5:1", &[]));
        let found = difference(&before, &after);
        assert_eq!(found.gone, [[4; 32]]);
        let put = vec![([5; 32], set("192.0.2.5:1", &[])), ([2; 32], set("192.0.2.9:1", &["10.0.0.2/32"]))];
        assert_eq!(found.put, put);
        assert_eq!(difference(&before, &before), Difference::default());
    }

    #[test]
    fn an_address_goes_from_the_former_key_to_the_next_in_one_step() {
        let before =
            BTreeMap::from([([1; 32], set("192.0.2.1:1", &[])), ([2; 32], set("192.0.2.1:1", &["10.0.0.1/32"]))]);
        let after =
            BTreeMap::from([([1; 32], set("192.0.2.1:1", &["10.0.0.1/32"])), ([2; 32], set("192.0.2.1:1", &[]))]);
        let keys: Vec<u8> = difference(&before, &after).put.iter().map(|(key, _)| key[0]).collect();
        assert_eq!(keys, [2, 1], "who gives it up comes first");
        assert!(difference(&before, &after).put.iter().all(|(_, set)| set.endpoint.is_none()));
    }
}
