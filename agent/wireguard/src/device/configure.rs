//! From one configuration to the next: a table is made whole, then put in the place of the old one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use zeroize::Zeroizing;

use super::shared::{Os, Remote, Shared, Table, lock};
use crate::{
    Config, Error, Peer, PublicKey,
    noise::handshake::{Identity, Pair},
    peer::{Core, Entropy as _, Setting, Times},
};

/// Peers of a device: their slots are 24 bits drawn at random, which must stay sparse.
pub const MAX_PEERS: usize = 1 << 16;

/// What a change of process leaves behind of a peer.
pub type Kept = BTreeMap<PublicKey, Times>;

/// Brings the device to `config`; `kept` are the times of peers that the process before knew.
pub fn configure(shared: &Shared, config: Config, kept: &Kept) -> Result<(), Error> {
    let mut before = lock(&shared.config);
    let old = shared.table.load();
    let same_key = before.as_ref().filter(|old| old.private_key.to_bytes() == config.private_key.to_bytes());
    let identity = match (&old.identity, same_key) {
        (Some(identity), Some(_)) => identity.clone(),
        _ => Arc::new(Identity::new(&config.private_key)),
    };
    let was: HashMap<PublicKey, &Peer> =
        same_key.map(|old| old.peers.iter().map(|peer| (peer.public_key, peer)).collect()).unwrap_or_default();
    let pairs = check(&config, &identity, &was)?;

    let mut table = Table { identity: Some(identity.clone()), ..Table::default() };
    for (peer, pair) in config.peers.iter().zip(pairs) {
        let remote = match (pair, old.by_key.get(&peer.public_key)) {
            (None, Some(remote)) => {
                update(shared, remote, was.get(&peer.public_key).copied(), peer);
                remote.clone()
            }
            (pair, _) => {
                // `check` makes no pair only for peers that stay.
                let Some(pair) = pair.or_else(|| identity.pair(peer.public_key, preshared(peer).as_deref())) else {
                    return Err(Error::WeakKey { peer: peer.public_key });
                };
                Arc::new(remote(shared, &identity, &old, &table, peer, pair, kept))
            }
        };
        table.by_slot.insert(lock(&remote.core).slot(), remote.clone());
        for net in &peer.allowed_ips {
            table.routes.insert(*net, remote.clone());
        }
        table.by_key.insert(peer.public_key, remote);
    }
    shared.table.store(Arc::new(table));
    *before = Some(config);
    Ok(())
}

/// Checks the whole configuration before anything changes. Gives what both sides know of each other, for all peers
/// that are new or whose secrets changed.
fn check(config: &Config, identity: &Identity, was: &HashMap<PublicKey, &Peer>) -> Result<Vec<Option<Pair>>, Error> {
    if config.peers.len() > MAX_PEERS {
        return Err(Error::TooManyPeers { count: config.peers.len(), limit: MAX_PEERS });
    }
    let mut keys = BTreeMap::new();
    let mut nets = BTreeMap::new();
    let mut pairs = Vec::with_capacity(config.peers.len());
    for peer in &config.peers {
        let key = peer.public_key;
        if key == identity.public() {
            return Err(Error::OwnKey { peer: key });
        }
        if keys.insert(key, ()).is_some() {
            return Err(Error::PeerTwice { peer: key });
        }
        for net in &peer.allowed_ips {
            if let Some(first) = nets.insert(net.trunc(), key).filter(|first| *first != key) {
                return Err(Error::AllowedTwice { net: net.trunc(), first, second: key });
            }
        }
        let stays = was.get(&key).is_some_and(|was| match (&was.preshared_key, &peer.preshared_key) {
            (None, None) => true,
            (Some(was), Some(is)) => was.same(is),
            _ => false,
        });
        pairs.push(match stays {
            true => None,
            false => Some(identity.pair(key, preshared(peer).as_deref()).ok_or(Error::WeakKey { peer: key })?),
        });
    }
    Ok(pairs)
}

fn preshared(peer: &Peer) -> Option<Zeroizing<[u8; 32]>> {
    peer.preshared_key.as_ref().map(|key| Zeroizing::new(key.to_bytes()))
}

/// A keepalive of zero means none, as with the tools of WireGuard.
fn keepalive(peer: &Peer) -> Option<Duration> {
    peer.keepalive.filter(|every| !every.is_zero())
}

fn update(shared: &Shared, remote: &Remote, was: Option<&Peer>, is: &Peer) {
    // Where the peer was heard is newer than a configuration that says what it said before.
    if is.endpoint.is_some() && was.is_none_or(|was| was.endpoint != is.endpoint) {
        *lock(&remote.endpoint) = is.endpoint;
    }
    lock(&remote.core).set_persistent(keepalive(is), shared.now());
}

fn remote(
    shared: &Shared,
    identity: &Arc<Identity>,
    old: &Table,
    new: &Table,
    peer: &Peer,
    pair: Pair,
    kept: &Kept,
) -> Remote {
    // Random, so that an index does not tell which node it is; none that messages may still be under way for.
    let slot = loop {
        let mut random = [0; 4];
        Os.fill(&mut random);
        let slot = u32::from_le_bytes(random) >> 8;
        if !old.by_slot.contains_key(&slot) && !new.by_slot.contains_key(&slot) {
            break slot;
        }
    };
    // A peer whose secrets changed keeps its times, or its recorded initiations would be new again.
    let same_identity = old.identity.as_ref().is_some_and(|old| Arc::ptr_eq(old, identity));
    let times = match old.by_key.get(&peer.public_key).filter(|_| same_identity) {
        Some(remote) => lock(&remote.core).times(),
        None => kept.get(&peer.public_key).copied().unwrap_or_default(),
    };
    let setting = Setting { identity: identity.clone(), timers: shared.timers.clone(), mtu: shared.mtu as usize };
    Remote {
        public_key: peer.public_key,
        endpoint: Mutex::new(peer.endpoint),
        core: Mutex::new(Core::new(setting, pair, slot, keepalive(peer), times)),
        received: 0.into(),
        sent: 0.into(),
    }
}
