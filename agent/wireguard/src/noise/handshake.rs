//! The handshake: two messages, after which both sides have the same two keys (paper, sections 5.4.2 to 5.4.5).
//!
//! Functions of their input; the caller gives ephemeral keys, times and indices, and keeps what lies between.

use x25519_dalek::{PublicKey as Point, StaticSecret};
use zeroize::Zeroizing;

use super::{
    crypto::{Secret, dh, hash, kdf, mac, open_once, seal_once},
    message::{INITIATION, RESPONSE, field},
    tai64n::Tai64n,
};
use crate::{PrivateKey, PublicKey};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";

/// The device's own key, with what follows from it.
pub struct Identity {
    secret: StaticSecret,
    public: [u8; 32],
    /// Key of mac1 in messages to us.
    pub mac1_key: [u8; 32],
}

/// What both sides know of each other before a handshake.
pub struct Pair {
    /// The other side's key.
    pub remote: [u8; 32],
    static_static: Secret,
    preshared: Secret,
    /// Key of mac1 in messages to it.
    pub mac1_key: [u8; 32],
}

/// The running hash and chaining key.
#[derive(Clone)]
struct Symmetric {
    hash: [u8; 32],
    chain: Secret,
}

/// An initiator between its two messages.
pub struct Initiated {
    ephemeral: StaticSecret,
    symmetric: Symmetric,
}

/// An initiation of which only the sender's key is known: it is authentic, because its timestamp could be opened.
pub struct Opened {
    symmetric: Symmetric,
    sender: u32,
    ephemeral: [u8; 32],
    /// When it says it was made.
    pub timestamp: Tai64n,
}

/// An initiation whose sender has named its key, not yet proved it.
pub struct Claimed<'a> {
    symmetric: Symmetric,
    message: &'a [u8; INITIATION],
    /// The key that it says is its own.
    pub remote: [u8; 32],
}

/// The keys of a session as one side uses them.
pub struct Keys {
    /// The index that the other side gave the session.
    pub remote_index: u32,
    /// Seals what we send.
    pub sealing: Secret,
    /// Opens what we receive.
    pub opening: Secret,
}

impl Identity {
    /// What follows from the key.
    pub fn new(key: &PrivateKey) -> Identity {
        let secret = key.secret();
        let public = Point::from(&secret).to_bytes();
        Identity { secret, public, mac1_key: mac1_key(&public) }
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        PublicKey::from_bytes(self.public)
    }

    /// What both know of each other. None if the other key keeps no secret.
    pub fn pair(&self, remote: PublicKey, preshared: Option<&[u8; 32]>) -> Option<Pair> {
        let remote = remote.to_bytes();
        let static_static = dh(&self.secret, &remote)?;
        let preshared = Zeroizing::new(preshared.copied().unwrap_or_default());
        Some(Pair { remote, static_static, preshared, mac1_key: mac1_key(&remote) })
    }

    /// Writes an initiation, without its macs.
    pub fn initiate(
        &self,
        pair: &Pair,
        ephemeral: StaticSecret,
        index: u32,
        time: Tai64n,
    ) -> Option<([u8; INITIATION], Initiated)> {
        let mut message = [0; INITIATION];
        message[0] = 1;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        let mut symmetric = Symmetric::new(&pair.remote);
        let public = Point::from(&ephemeral).to_bytes();
        message[8..40].copy_from_slice(&public);
        symmetric.mix_ephemeral(&public);
        let key = symmetric.mix_key(&*dh(&ephemeral, &pair.remote)?);
        symmetric.seal(&key, &self.public, &mut message[40..88]);
        let key = symmetric.mix_key(&*pair.static_static);
        symmetric.seal(&key, &time.to_bytes(), &mut message[88..116]);
        Some((message, Initiated { ephemeral, symmetric }))
    }

    /// The first half of reading an initiation: who says it is from. Costs one multiplication.
    pub fn claim<'a>(&self, message: &'a [u8; INITIATION]) -> Option<Claimed<'a>> {
        let mut symmetric = Symmetric::new(&self.public);
        let ephemeral: [u8; 32] = field(message, 8);
        symmetric.mix_ephemeral(&ephemeral);
        let key = symmetric.mix_key(&*dh(&self.secret, &ephemeral)?);
        let remote = symmetric.open(&key, &message[40..88])?;
        Some(Claimed { symmetric, message, remote })
    }

    /// Reads the response to our initiation.
    pub fn finish(&self, pair: &Pair, initiated: &Initiated, message: &[u8; RESPONSE]) -> Option<Keys> {
        let mut symmetric = initiated.symmetric.clone();
        let ephemeral: [u8; 32] = field(message, 12);
        symmetric.mix_ephemeral(&ephemeral);
        symmetric.mix_chain(&*dh(&initiated.ephemeral, &ephemeral)?);
        symmetric.mix_chain(&*dh(&self.secret, &ephemeral)?);
        let key = symmetric.mix_preshared(&pair.preshared);
        let [] = symmetric.open(&key, &message[44..60])?;
        let [sealing, opening] = kdf(&symmetric.chain, &[]);
        Some(Keys { remote_index: u32::from_le_bytes(field(message, 4)), sealing, opening })
    }
}

impl Claimed<'_> {
    /// The second half: only the owner of that key can have sealed the timestamp.
    pub fn open(self, pair: &Pair) -> Option<Opened> {
        let mut symmetric = self.symmetric;
        let key = symmetric.mix_key(&*pair.static_static);
        let time = symmetric.open(&key, &self.message[88..116])?;
        Some(Opened {
            symmetric,
            sender: u32::from_le_bytes(field(self.message, 4)),
            ephemeral: field(self.message, 8),
            timestamp: Tai64n::from_bytes(time),
        })
    }
}

impl Opened {
    /// Writes the response, without its macs, and has the keys.
    pub fn respond(self, pair: &Pair, own: &StaticSecret, index: u32) -> Option<([u8; RESPONSE], Keys)> {
        let mut message = [0; RESPONSE];
        message[0] = 2;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        let mut symmetric = self.symmetric;
        let public = Point::from(own).to_bytes();
        message[12..44].copy_from_slice(&public);
        symmetric.mix_ephemeral(&public);
        symmetric.mix_chain(&*dh(own, &self.ephemeral)?);
        symmetric.mix_chain(&*dh(own, &pair.remote)?);
        let key = symmetric.mix_preshared(&pair.preshared);
        symmetric.seal(&key, &[], &mut message[44..60]);
        let [opening, sealing] = kdf(&symmetric.chain, &[]);
        Some((message, Keys { remote_index: self.sender, sealing, opening }))
    }
}

impl Symmetric {
    fn new(responder: &[u8; 32]) -> Symmetric {
        let chain = hash(&[CONSTRUCTION]);
        let start = hash(&[&chain, IDENTIFIER]);
        Symmetric { hash: hash(&[&start, responder]), chain: Zeroizing::new(chain) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_chain(&mut self, input: &[u8]) {
        [self.chain] = kdf(&self.chain, input);
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_chain(public);
        self.mix_hash(public);
    }

    fn mix_key(&mut self, input: &[u8]) -> Secret {
        let [chain, key] = kdf(&self.chain, input);
        self.chain = chain;
        key
    }

    fn mix_preshared(&mut self, preshared: &[u8; 32]) -> Secret {
        let [chain, middle, key] = kdf(&self.chain, preshared);
        self.chain = chain;
        self.mix_hash(middle.as_slice());
        key
    }

    fn seal(&mut self, key: &[u8; 32], plain: &[u8], sealed: &mut [u8]) {
        seal_once(key, plain, &self.hash, sealed);
        self.mix_hash(sealed);
    }

    fn open<const N: usize>(&mut self, key: &[u8; 32], sealed: &[u8]) -> Option<[u8; N]> {
        let plain = open_once(key, sealed, &self.hash)?;
        self.mix_hash(sealed);
        Some(plain)
    }
}

fn mac1_key(public: &[u8; 32]) -> [u8; 32] {
    hash(&[LABEL_MAC1, public])
}

/// Writes both macs at the end of a handshake message; without a cookie mac2 is zero (paper, section 5.4.4). Returns
/// mac1, by which a cookie reply is bound to this message.
pub fn put_macs(message: &mut [u8], mac1_key: &[u8; 32], cookie: Option<&[u8; 16]>) -> [u8; 16] {
    let at = message.len() - 32;
    let mac1 = mac(mac1_key, &[&message[..at]]);
    message[at..at + 16].copy_from_slice(&mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| mac(cookie, &[&message[..at + 16]]));
    message[at + 16..].copy_from_slice(&mac2);
    mac1
}
