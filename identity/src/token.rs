//! Join tokens in Docker's form: `SWMTKN-1-<root digest>-<secret>`.
//!
//! The digest lets a joining node recognise the cluster before it shows the secret; the secret admits it. Digest and
//! secret are base36, zero-padded to 50 and 25 characters, as `docker swarm join-token` prints them.

use std::fmt;
use std::str::FromStr;

use rand::CryptoRng;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
/// 36^50 > 2^256.
const DIGEST_LEN: usize = 50;
/// 36^25 > 2^128.
const SECRET_LEN: usize = 25;

/// SHA-256 of a root certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RootDigest(pub [u8; 32]);

impl RootDigest {
    /// The digest of `root`.
    pub fn of(root: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(root).into())
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base36(&self.0, DIGEST_LEN))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Admits nodes to one cluster with one role. `Debug` keeps the secret.
#[derive(Clone, Copy)]
pub struct JoinToken {
    /// Which cluster.
    pub root: RootDigest,
    secret: [u8; 16],
}

impl JoinToken {
    /// A new token for the cluster of `root`.
    pub fn random(root: RootDigest, rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut secret = [0; 16];
        rng.fill_bytes(&mut secret);
        Self { root, secret }
    }

    /// Whether `self` and `other` carry the same secret. Takes no longer when they share a beginning: digests are
    /// compared, which a guesser cannot steer.
    pub fn same_secret(&self, other: &Self) -> bool {
        Sha256::digest(self.secret) == Sha256::digest(other.secret)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", self.root, to_base36(&self.secret, SECRET_LEN))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, …)", self.root)
    }
}

/// A text is no join token. The text itself is never shown: it may be a token with a slip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token: expected the form SWMTKN-1-<50 characters>-<25 characters>")]
pub struct ParseTokenError;

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let parts: Vec<&str> = text.split('-').collect();
        let [PREFIX, VERSION, digest, secret] = parts[..] else { return Err(ParseTokenError) };
        if digest.len() != DIGEST_LEN || secret.len() != SECRET_LEN {
            return Err(ParseTokenError);
        }
        let root = RootDigest(from_base36(digest).ok_or(ParseTokenError)?);
        Ok(Self { root, secret: from_base36(secret).ok_or(ParseTokenError)? })
    }
}

/// The bytes as one big-endian number in base36, padded with zeros to `len` digits.
fn to_base36(bytes: &[u8], len: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; len];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0u16;
        for byte in &mut number {
            let value = rest << 8 | u16::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[usize::from(rest)];
    }
    String::from_utf8(digits).expect("base36 digits are ASCII")
}

/// The number as big-endian bytes, or `None` when a character is no digit or the number does not fit.
fn from_base36<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut number = [0u8; N];
    for c in text.chars() {
        let digit = match c {
            '0'..='9' => c as u16 - '0' as u16,
            'a'..='z' => c as u16 - 'a' as u16 + 10,
            _ => return None,
        };
        let mut carry = digit;
        for byte in number.iter_mut().rev() {
            let value = u16::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_text_form_returns_the_same_token(root: [u8; 32], secret: [u8; 16]) {
            let token = JoinToken { root: RootDigest(root), secret };
            let read: JoinToken = token.to_string().parse().unwrap();
            prop_assert_eq!((read.root.0, read.secret), (root, secret));
            prop_assert_eq!(token.to_string().len(), "SWMTKN-1-".len() + 50 + 1 + 25);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(SWMTKN-1-)?[0-9a-z-]{0,80}|.{0,90}") {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let text = format!("SWMTKN-1-{}-{}", "z".repeat(50), "0".repeat(25));
        assert_eq!(text.parse::<JoinToken>().unwrap_err(), ParseTokenError);
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let token = JoinToken { root: RootDigest([1; 32]), secret: [2; 16] };
        assert!(!format!("{token:?}").contains(&to_base36(&[2; 16], 25)));
    }
}
