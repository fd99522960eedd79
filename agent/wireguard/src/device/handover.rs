//! The state that goes to another process: all but sessions, whose numbers must never be used twice.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    configure::Kept,
    shared::{Shared, lock},
};
use crate::{Config, Error, Peer, PresharedKey, PrivateKey, PublicKey, peer::Times};

/// First byte of the state. Fields are only added at the end, with a new number.
const FORMAT: u8 = 1;

/// What is written (postcard).
#[derive(Serialize, Deserialize)]
pub struct Saved {
    /// MTU for which the device was made.
    pub mtu: u32,
    /// Offload of the interface, as a number.
    pub tap: u8,
    /// The socket sends runs.
    pub udp_segment: bool,
    /// The socket receives runs.
    pub udp_gro: bool,
    config: Option<SavedConfig>,
}

#[derive(Serialize, Deserialize)]
struct SavedConfig {
    private_key: [u8; 32],
    peers: Vec<SavedPeer>,
}

#[derive(Serialize, Deserialize)]
struct SavedPeer {
    public_key: [u8; 32],
    preshared_key: Option<[u8; 32]>,
    /// As configured.
    wanted_endpoint: Option<SocketAddr>,
    /// Where it was heard.
    endpoint: Option<SocketAddr>,
    allowed_ips: Vec<IpNet>,
    keepalive: Option<Duration>,
    times: Times,
}

impl Drop for SavedConfig {
    fn drop(&mut self) {
        self.private_key.zeroize();
        for peer in &mut self.peers {
            peer.preshared_key.zeroize();
        }
    }
}

/// What a state says.
pub struct Restored {
    pub saved: Saved,
    /// The configuration, and each peer's last known endpoint.
    pub config: Option<(Config, Vec<Option<SocketAddr>>)>,
    pub kept: Kept,
}

/// The state of a device.
pub fn save(shared: &Shared) -> Vec<u8> {
    let config = lock(&shared.config);
    let table = shared.table.load();
    let config = config.as_ref().map(|config| SavedConfig {
        private_key: config.private_key.to_bytes(),
        peers: config
            .peers
            .iter()
            .map(|peer| {
                let remote = table.by_key.get(&peer.public_key);
                SavedPeer {
                    public_key: peer.public_key.to_bytes(),
                    preshared_key: peer.preshared_key.as_ref().map(PresharedKey::to_bytes),
                    wanted_endpoint: peer.endpoint,
                    endpoint: remote.and_then(|remote| *lock(&remote.endpoint)),
                    allowed_ips: peer.allowed_ips.clone(),
                    keepalive: peer.keepalive,
                    times: remote.map(|remote| lock(&remote.core).times()).unwrap_or_default(),
                }
            })
            .collect(),
    });
    let udp_segment = shared.udp_segment.load(std::sync::atomic::Ordering::Relaxed);
    let saved = Saved { mtu: shared.mtu, tap: shared.tap_offload as u8, udp_segment, udp_gro: shared.udp_gro, config };
    let body = Zeroizing::new(postcard::to_stdvec(&saved).expect("plain values in memory have an encoding"));
    [&[FORMAT], body.as_slice()].concat()
}

/// Reads a state. It comes from a process of ours, but perhaps of another version.
pub fn restore(state: &[u8]) -> Result<Restored, Error> {
    let refused = |reason| Error::Handover { reason };
    let (format, body) = state.split_first().ok_or(refused("it is empty"))?;
    if *format != FORMAT {
        return Err(refused("it is of another version"));
    }
    let saved: Saved = postcard::from_bytes(body).map_err(|_| refused("it is damaged"))?;
    let mut kept = Kept::new();
    let config = saved.config.as_ref().map(|config| {
        let mut endpoints = vec![];
        let peers = config.peers.iter().map(|peer| {
            let public_key = PublicKey::from_bytes(peer.public_key);
            kept.insert(public_key, peer.times);
            endpoints.push(peer.endpoint);
            Peer {
                public_key,
                preshared_key: peer.preshared_key.map(PresharedKey::from_bytes),
                endpoint: peer.wanted_endpoint,
                allowed_ips: peer.allowed_ips.clone(),
                keepalive: peer.keepalive,
            }
        });
        let peers = peers.collect();
        (Config { private_key: PrivateKey::from_bytes(config.private_key), peers }, endpoints)
    });
    Ok(Restored { saved, config, kept })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_state_of_another_version_or_damaged_is_refused() {
        assert!(restore(&[]).is_err());
        assert!(restore(&[9, 0, 0]).is_err());
        assert!(restore(&[FORMAT, 0xff, 0xff]).is_err());
    }

    #[test]
    fn a_state_comes_back_whole() {
        let peer = SavedPeer {
            public_key: [1; 32],
            preshared_key: Some([2; 32]),
            wanted_endpoint: Some("1.2.3.4:5".parse().unwrap()),
            endpoint: Some("[::1]:7".parse().unwrap()),
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            keepalive: Some(Duration::from_secs(25)),
            times: Times { sent: crate::noise::tai64n::Tai64n::new(Duration::from_secs(9)), ..Times::default() },
        };
        let config = Some(SavedConfig { private_key: [3; 32], peers: vec![peer] });
        let saved = Saved { mtu: 1420, tap: 3, udp_segment: true, udp_gro: false, config };
        let state = [&[FORMAT], postcard::to_stdvec(&saved).unwrap().as_slice()].concat();
        let restored = restore(&state).unwrap();
        let (config, endpoints) = restored.config.unwrap();
        assert_eq!(endpoints, [Some("[::1]:7".parse().unwrap())]);
        assert_eq!(config.private_key.to_bytes(), PrivateKey::from_bytes([3; 32]).to_bytes());
        assert_eq!(config.peers[0].allowed_ips.len(), 2);
        assert_eq!(config.peers[0].endpoint, Some("1.2.3.4:5".parse().unwrap()));
        assert!(restored.kept[&PublicKey::from_bytes([1; 32])].sent > Times::default().sent);
    }

    proptest! {
        #[test]
        fn any_state_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = restore(&[&[FORMAT], bytes.as_slice()].concat());
        }
    }
}
