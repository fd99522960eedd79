//! How a node's key rests on disk while managers are locked: sealed with a key that only an unlocked manager has.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::{RngCore, TryRngCore, rngs::OsRng};

/// What the seal is bound to, so that nothing else sealed with the same key is taken for a node's key.
const CONTEXT: &[u8] = b"skep node key 1";

/// Seals and opens a node's key. Prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeSeal([u8; 32]);

impl NodeSeal {
    /// A seal with this key.
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Nonce, ciphertext, tag.
    pub(crate) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 24];
        OsRng.unwrap_err().fill_bytes(&mut nonce);
        let sealed = XChaCha20Poly1305::new(&self.0.into())
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: CONTEXT })
            .expect("a key is far below the cipher's limit");
        [&nonce[..], &sealed].concat()
    }

    /// `None` when it was sealed with another key, or changed since.
    pub(crate) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<24>()?;
        let cipher = XChaCha20Poly1305::new(&self.0.into());
        cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: CONTEXT }).ok()
    }
}

impl fmt::Debug for NodeSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSeal(…)")
    }
}
