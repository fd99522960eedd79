//! Encryption of what this manager writes to its disk: log entries and snapshot chunks.
//!
//! XChaCha20-Poly1305. The nonce is 16 random bytes drawn when the process starts and an 8-byte counter, so no pair of
//! messages ever shares one under a key. What a message *is* (cluster, place in the log, place in the snapshot) goes in
//! as associated data: a valid record moved elsewhere does not open.
//!
//! The cipher is put together here as draft-irtf-cfrg-xchacha-03, section 2.3 has it: HChaCha20 of the key and the nonce's
//! first 16 bytes is the key of ChaCha20-Poly1305 (RFC 8439) with four zero bytes and the nonce's last eight. The first half
//! is the same for all that a process seals. The second is ring's assembler: generic code of the crate `chacha20poly1305`
//! is compiled into this one, and without optimisation a manager spends most of its time in it.

use std::sync::atomic::{AtomicU64, Ordering};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN as INNER_NONCE_LEN, Nonce, Tag, UnboundKey};

/// Bytes that sealing adds: key number, nonce, tag.
pub const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;

const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

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
    keys: Vec<(u8, SecretKey)>,
    /// The number of the newest key, and that key for nonces that begin with `prefix`.
    newest: (u8, LessSafeKey),
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
        let (number, key) = keys.last().expect("a sealer needs a data key");
        let newest = (*number, inner_key(key, &prefix));
        Self { keys: keys.to_vec(), newest, prefix, counter: AtomicU64::new(0) }
    }

    /// Appends the sealed form of `message` to `out`. `place` must be given again to open it.
    ///
    /// # Panics
    /// When the message has more than 256 GiB, the cipher's limit.
    pub fn seal(&self, place: &[u8], message: &[u8], out: &mut Vec<u8>) {
        let (number, key) = &self.newest;
        let counter = self.counter.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        out.reserve(OVERHEAD + message.len());
        out.push(*number);
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(&counter);
        let start = out.len();
        out.extend_from_slice(message);
        let tag = key
            .seal_in_place_separate_tag(inner_nonce(counter), Aad::from(place), &mut out[start..])
            .expect("messages are far below the cipher's limit of 256 GiB");
        out.extend_from_slice(tag.as_ref());
    }

    /// The message that [`Sealer::seal`] was given, if `place` is the same and no byte changed.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        if sealed.len() < OVERHEAD {
            return Err(OpenError::TooShort { length: sealed.len() });
        }
        let key = sealed[0];
        let (nonce, sealed) = sealed[1..].split_at(NONCE_LEN);
        let (prefix, counter) = nonce.split_at(16);
        let prefix = prefix.try_into().expect("the slice has 16 bytes");
        let counter = counter.try_into().expect("the slice has the other 8 of 24 bytes");
        let (_, secret) = self.keys.iter().find(|(number, _)| *number == key).ok_or(OpenError::UnknownKey { key })?;
        let (message, tag) = sealed.split_at(sealed.len() - TAG_LEN);
        let tag = Tag::try_from(tag).expect("the slice has the tag's length");
        let mut message = message.to_vec();
        inner_key(secret, prefix)
            .open_in_place_separate_tag(inner_nonce(counter), Aad::from(place), tag, &mut message, 0..)
            .map_err(|_| OpenError::Forged { key })?;
        Ok(message)
    }
}

/// The key for nonces that begin with `prefix`.
fn inner_key(key: &SecretKey, prefix: &[u8; 16]) -> LessSafeKey {
    let derived = chacha20::hchacha::<chacha20::R20>(&key.0.into(), &(*prefix).into());
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &derived).expect("the key has 32 bytes"))
}

fn inner_nonce(counter: [u8; 8]) -> Nonce {
    let mut nonce = [0; INNER_NONCE_LEN];
    nonce[4..].copy_from_slice(&counter);
    Nonce::assume_unique_for_key(nonce)
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
    fn it_is_xchacha20_poly1305() {
        use chacha20poly1305::aead::{Aead, KeyInit, Payload};
        use chacha20poly1305::{XChaCha20Poly1305, XNonce};
        let (ours, theirs) = (sealer(&[1]), XChaCha20Poly1305::new(&[1; 32].into()));
        for length in [0, 1, 15, 16, 17, 63, 64, 65, 1000, 70_000] {
            let message: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
            let sealed = seal(&ours, b"here", &message);
            let nonce = XNonce::try_from(&sealed[1..=NONCE_LEN]).unwrap();
            let payload = Payload { msg: &sealed[1 + NONCE_LEN..], aad: b"here" };
            assert_eq!(theirs.decrypt(&nonce, payload).unwrap(), message);
            // A nonce that another process drew.
            let nonce = XNonce::from([9; NONCE_LEN]);
            let payload = Payload { msg: &message, aad: b"here" };
            let foreign = [&[1][..], &nonce, &theirs.encrypt(&nonce, payload).unwrap()].concat();
            assert_eq!(ours.open(b"here", &foreign).unwrap(), message);
        }
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
