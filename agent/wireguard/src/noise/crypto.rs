//! The primitives by the names that the paper gives them (section 5.4): HASH, MAC, HMAC, KDF, AEAD, XAEAD, DH.

use blake2::{Blake2s256, Blake2sMac, Digest as _, digest::consts::U16, digest::typenum::Unsigned as _};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, aead::AeadInOut as _};
use hmac::{Mac as _, SimpleHmac};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// A key, or a chaining value from which keys are made.
pub type Secret = Zeroizing<[u8; 32]>;

/// Bytes of an AEAD's tag.
pub const TAG: usize = 16;

/// BLAKE2s with 32 bytes of output over all parts in turn.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Keyed BLAKE2s with 16 bytes of output. Keys are of 16 or 32 bytes.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    const { assert!(U16::USIZE == 16) };
    let mut mac = <Blake2sMac<U16> as hmac::Mac>::new_from_slice(key).expect("keys of 16 and 32 bytes are in range");
    for part in parts {
        hmac::Mac::update(&mut mac, part);
    }
    mac.finalize().into_bytes().into()
}

/// HMAC-BLAKE2s.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut hmac = <SimpleHmac<Blake2s256> as hmac::Mac>::new_from_slice(key).expect("HMAC takes keys of any size");
    for part in parts {
        hmac.update(part);
    }
    Zeroizing::new(hmac.finalize().into_bytes().into())
}

/// KDF of the paper: as many keys as asked for, out of a chaining value and an input.
pub fn kdf<const N: usize>(chain: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let root = hmac(chain, &[input]);
    let mut last: Option<Secret> = None;
    std::array::from_fn(|i| {
        let before: &[u8] = last.as_ref().map_or(&[], |key| key.as_slice());
        let key = hmac(root.as_slice(), &[before, &[i as u8 + 1]]);
        last = Some(key.clone());
        key
    })
}

/// Curve25519. None if the result does not depend on the secret, as with a public key of small order.
pub fn dh(secret: &StaticSecret, public: &[u8; 32]) -> Option<Secret> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
}

/// A transport or handshake key for ChaCha20-Poly1305.
pub fn aead_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has the cipher's size"))
}

/// The nonce of message `counter`: 32 zero bits and the counter, little endian.
pub fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals `plain` with nonce 0, as each key of a handshake does once; `sealed` has room for the tag.
pub fn seal_once(key: &[u8; 32], plain: &[u8], associated: &[u8], sealed: &mut [u8]) {
    let (text, tag) = sealed.split_at_mut(plain.len());
    text.copy_from_slice(plain);
    let made = aead_key(key)
        .seal_in_place_separate_tag(nonce(0), Aad::from(associated), text)
        .expect("handshake fields are far below the cipher's limit");
    tag.copy_from_slice(made.as_ref());
}

/// Opens what [`seal_once`] sealed; `N` is the plaintext's size.
pub fn open_once<const N: usize>(key: &[u8; 32], sealed: &[u8], associated: &[u8]) -> Option<[u8; N]> {
    let mut text = Zeroizing::new(sealed.to_vec());
    let plain = aead_key(key).open_in_place(nonce(0), Aad::from(associated), &mut text).ok()?;
    (&*plain).try_into().ok()
}

/// Seals a cookie with XChaCha20-Poly1305.
pub fn xseal(key: &[u8; 32], nonce: &[u8; 24], plain: &[u8; 16], associated: &[u8; 16]) -> [u8; 32] {
    let mut sealed = [0; 32];
    let (text, tag) = sealed.split_at_mut(16);
    text.copy_from_slice(plain);
    let made = XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(nonce.into(), associated, text.into())
        .expect("a cookie is far below the cipher's limit");
    tag.copy_from_slice(&made);
    sealed
}

/// Opens what [`xseal`] sealed.
pub fn xopen(key: &[u8; 32], nonce: &[u8; 24], sealed: &[u8; 32], associated: &[u8; 16]) -> Option<[u8; 16]> {
    let (mut text, mut tag) = ([0; 16], [0; 16]);
    text.copy_from_slice(&sealed[..16]);
    tag.copy_from_slice(&sealed[16..]);
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(nonce.into(), associated, text.as_mut_slice().into(), &tag.into())
        .ok()?;
    Some(text)
}

/// Compares in a time that does not depend on where the two differ.
pub fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blake2s_is_that_of_rfc_7693() {
        // RFC 7693, appendix B.
        assert_eq!(hash(&[b"a", b"bc"])[..8], [0x50, 0x8c, 0x5e, 0x8c, 0x32, 0x7c, 0x14, 0xe2]);
    }

    #[test]
    fn each_key_of_a_kdf_depends_on_the_one_before() {
        let [one] = kdf::<1>(&[1; 32], b"input");
        let [first, second, third] = kdf::<3>(&[1; 32], b"input");
        assert_eq!(one, first);
        assert!(first != second && second != third);
        assert_eq!(third, hmac(hmac(&[1; 32], &[b"input"]).as_slice(), &[second.as_slice(), &[3]]));
    }

    #[test]
    fn a_key_of_small_order_gives_no_secret() {
        assert_eq!(dh(&StaticSecret::from([7; 32]), &[0; 32]), None);
    }

    #[test]
    fn sealed_fields_open_with_the_same_key_and_data_only() {
        let mut sealed = [0; 48];
        seal_once(&[1; 32], &[2; 32], b"data", &mut sealed);
        assert_eq!(open_once::<32>(&[1; 32], &sealed, b"data"), Some([2; 32]));
        assert_eq!(open_once::<32>(&[1; 32], &sealed, b"date"), None);
        assert_eq!(open_once::<32>(&[3; 32], &sealed, b"data"), None);
        assert_eq!(open_once::<32>(&[1; 32], &sealed[..10], b"data"), None);
        let cookie = xseal(&[1; 32], &[2; 24], &[3; 16], &[4; 16]);
        assert_eq!(xopen(&[1; 32], &[2; 24], &cookie, &[4; 16]), Some([3; 16]));
        assert_eq!(xopen(&[1; 32], &[2; 24], &cookie, &[5; 16]), None);
    }
}
