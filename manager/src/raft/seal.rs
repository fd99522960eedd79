//! Encryption of what this manager writes to its disk: log entries and snapshot chunks.
//!
//! XChaCha20-Poly1305. The nonce is 16 random bytes drawn when the process starts and an 8-byte counter, so no pair of
//! messages ever shares one under a key. What a message *is* (cluster, place in the log, place in the snapshot) goes in
//! as associated data: a valid record moved elsewhere does not open.

use std::sync::atomic::{AtomicU64, Ordering};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

/// Bytes that sealing adds: key number, nonce, tag.
pub const OVERHEAD: usize = 1 + NONCE_LEN + 16;

const NONCE_LEN: usize = 24;

/// A key of 32 bytes. Prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(pub(crate) [u8; 32]);

impl SecretKey {
    /// A new key from the operating system's random source.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// A key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// A sealed message did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Fewer bytes than sealing adds.
    #[error("the sealed message is too short ({length} bytes)")]
    TooShort {
        /// Bytes that there were.
        length: usize,
    },
    /// Sealed with a data key that this manager no longer has.
    #[error("the message was sealed with data key {key}, which is not in the key file")]
    UnknownKey {
        /// Number of the key.
        key: u8,
    },
    /// Wrong key, changed bytes, or a message moved from another place.
    #[error("the message does not open with data key {key}: it was changed, moved, or sealed by another manager")]
    Forged {
        /// Number of the key.
        key: u8,
    },
}

/// Seals with the newest data key, opens with any that the key file holds.
pub struct Sealer {
    keys: Vec<(u8, XChaCha20Poly1305)>,
    prefix: [u8; 16],
    counter: AtomicU64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// Takes data keys by number, the one to seal with last, and 16 bytes that no earlier process drew.
    ///
    /// # Panics
    /// If there is no key.
    pub fn new(keys: &[(u8, SecretKey)], prefix: [u8; 16]) -> Self {
        assert!(!keys.is_empty(), "a sealer needs a data key");
        let keys = keys.iter().map(|(number, key)| (*number, XChaCha20Poly1305::new(&key.0.into()))).collect();
        Self { keys, prefix, counter: AtomicU64::new(0) }
    }

    /// Appends the sealed form of `message` to `out`. `place` must be given again to open it.
    pub fn seal(&self, place: &[u8], message: &[u8], out: &mut Vec<u8>) {
        let (number, cipher) = self.keys.last().expect("checked in new");
        let mut nonce = [0; NONCE_LEN];
        nonce[..16].copy_from_slice(&self.prefix);
        nonce[16..].copy_from_slice(&self.counter.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: message, aad: place })
            .expect("messages are far below the cipher's limit of 256 GiB");
        out.push(*number);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
    }

    /// The message that [`Sealer::seal`] was given, if `place` is the same and no byte changed.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        if sealed.len() < OVERHEAD {
            return Err(OpenError::TooShort { length: sealed.len() });
        }
        let key = sealed[0];
        let nonce: [u8; NONCE_LEN] = sealed[1..=NONCE_LEN].try_into().expect("the slice has the nonce's length");
        let (_, cipher) = self.keys.iter().find(|(number, _)| *number == key).ok_or(OpenError::UnknownKey { key })?;
        cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: &sealed[1 + NONCE_LEN..], aad: place })
            .map_err(|_| OpenError::Forged { key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(keys: &[u8]) -> Sealer {
        let keys: Vec<_> = keys.iter().map(|k| (*k, SecretKey([*k; 32]))).collect();
        Sealer::new(&keys, [7; 16])
    }

    fn seal(sealer: &Sealer, place: &[u8], message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(place, message, &mut out);
        out
    }

    #[test]
    fn a_message_opens_only_at_its_own_place() {
        let s = sealer(&[1]);
        let sealed = seal(&s, b"term 1 index 2", b"secret");
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(s.open(b"term 1 index 2", &sealed).unwrap(), b"secret");
        assert_eq!(s.open(b"term 1 index 3", &sealed), Err(OpenError::Forged { key: 1 }));
    }

    #[test]
    fn a_changed_byte_anywhere_is_refused() {
        let s = sealer(&[1]);
        let sealed = seal(&s, b"here", b"secret");
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(s.open(b"here", &bad).is_err(), "byte {i}");
        }
        for length in 0..sealed.len() {
            assert!(s.open(b"here", &sealed[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn no_two_messages_share_a_nonce() {
        let s = sealer(&[1]);
        let nonces: std::collections::BTreeSet<_> = (0..100).map(|_| seal(&s, b"", b"")[1..25].to_vec()).collect();
        assert_eq!(nonces.len(), 100);
    }

    #[test]
    fn old_messages_open_after_a_key_rotation() {
        let sealed = seal(&sealer(&[1]), b"here", b"old");
        let rotated = sealer(&[1, 2]);
        assert_eq!(rotated.open(b"here", &sealed).unwrap(), b"old");
        assert_eq!(seal(&rotated, b"here", b"new")[0], 2);
        assert_eq!(sealer(&[2]).open(b"here", &sealed), Err(OpenError::UnknownKey { key: 1 }));
    }
}
