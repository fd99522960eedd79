//! Keys as values: 32 bytes each, in base64 as the tools of WireGuard write them. Secret ones print nothing and are
//! overwritten when dropped.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand::TryRngCore as _;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A text that is not 32 bytes in base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes in base64 (44 characters)")]
pub struct InvalidKey;

/// The secret key of a device (Curve25519).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

/// The public key by which a device is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A secret that two peers share besides their keys, mixed into each handshake.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PrivateKey {
    /// A new key from the random numbers of the operating system.
    ///
    /// # Panics
    /// If the operating system gives no random numbers: no key is better than a weak one.
    pub fn generate() -> PrivateKey {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::rngs::OsRng.try_fill_bytes(bytes.as_mut()).expect("the operating system gives random numbers");
        PrivateKey::from_bytes(*bytes)
    }

    /// The key of these bytes. Any 32 bytes are a key: the bits that Curve25519 fixes (RFC 7748, section 5) are set.
    pub fn from_bytes(mut bytes: [u8; 32]) -> PrivateKey {
        bytes[0] &= 0xf8;
        bytes[31] = bytes[31] & 0x7f | 0x40;
        PrivateKey(bytes)
    }

    /// The 32 bytes. They are the whole secret.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The key in base64, secret as the key itself.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    pub(crate) fn secret(&self) -> StaticSecret {
        StaticSecret::from(self.0)
    }
}

impl PresharedKey {
    /// A new key from the random numbers of the operating system.
    ///
    /// # Panics
    /// As [`PrivateKey::generate`].
    pub fn generate() -> PresharedKey {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::rngs::OsRng.try_fill_bytes(bytes.as_mut()).expect("the operating system gives random numbers");
        PresharedKey(*bytes)
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> PresharedKey {
        PresharedKey(bytes)
    }

    /// The 32 bytes. They are the whole secret.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The key in base64, secret as the key itself.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub(crate) fn same(&self, other: &PresharedKey) -> bool {
        self.0.iter().zip(&other.0).fold(0, |all, (a, b)| all | (a ^ b)) == 0
    }
}

impl PublicKey {
    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The key in base64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl From<&PrivateKey> for PublicKey {
    fn from(key: &PrivateKey) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&key.secret()).to_bytes())
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, InvalidKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| InvalidKey)?);
    Ok(Zeroizing::new(bytes.as_slice().try_into().map_err(|_| InvalidKey)?))
}

impl FromStr for PrivateKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<PrivateKey, InvalidKey> {
        decode(text).map(|bytes| PrivateKey::from_bytes(*bytes))
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<PublicKey, InvalidKey> {
        decode(text).map(|bytes| PublicKey(*bytes))
    }
}

impl FromStr for PresharedKey {
    type Err = InvalidKey;
    fn from_str(text: &str) -> Result<PresharedKey, InvalidKey> {
        decode(text).map(|bytes| PresharedKey(*bytes))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_follows_from_the_private_one() {
        // Bob's pair in RFC 7748, section 6.1.
        let private: [u8; 32] = [
            0x5d, 0xab, 0x08, 0x7e, 0x62, 0x4a, 0x8a, 0x4b, 0x79, 0xe1, 0x7f, 0x8b, 0x83, 0x80, 0x0e, 0xe6, 0x6f, 0x3b,
            0xb1, 0x29, 0x26, 0x18, 0xb6, 0xfd, 0x1c, 0x2f, 0x8b, 0x27, 0xff, 0x88, 0xe0, 0xeb,
        ];
        let public: [u8; 32] = [
            0xde, 0x9e, 0xdb, 0x7d, 0x7b, 0x7d, 0xc1, 0xb4, 0xd3, 0x5b, 0x61, 0xc2, 0xec, 0xe4, 0x35, 0x37, 0x3f, 0x83,
            0x43, 0xc8, 0x5b, 0x78, 0x67, 0x4d, 0xad, 0xfc, 0x7e, 0x14, 0x6f, 0x88, 0x2b, 0x4f,
        ];
        assert_eq!(PublicKey::from(&PrivateKey::from_bytes(private)).to_bytes(), public);
    }

    #[test]
    fn keys_go_through_base64_and_secret_ones_do_not_print() {
        let key = PrivateKey::generate();
        assert_eq!(key.to_base64().parse::<PrivateKey>().unwrap().to_bytes(), key.to_bytes());
        assert!(!format!("{key:?}").contains(key.to_base64().as_str()));
        assert_eq!("short".parse::<PublicKey>(), Err(InvalidKey));
        assert_eq!("QUJD".parse::<PublicKey>(), Err(InvalidKey));
    }
}
