//! The file of a backup: the state, sealed with a key that follows from a passphrase.
//!
//! ```text
//! "skep backup 1\n" | salt 16 | nonce 24 | ciphertext and tag (XChaCha20-Poly1305 over the state)
//! ```
//! Head and salt are authenticated with the rest: a file that was changed anywhere does not open.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ring::pbkdf2;

const HEAD: &[u8] = b"skep backup 1\n";
const SALT: usize = 16;
const NONCE: usize = 24;
const PREFIX: &str = "SKEPBAK-1-";
/// OWASP's figure of 2023 for PBKDF2 with HMAC-SHA-256.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");

/// Seals a state. Without a passphrase a key is drawn and returned, to be shown to the operator.
pub fn seal(state: &[u8], passphrase: Option<&str>) -> anyhow::Result<(Vec<u8>, Option<String>)> {
    let drawn = passphrase.is_none().then(|| format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())));
    let passphrase = passphrase.or(drawn.as_deref()).unwrap_or_default();
    let (salt, nonce): ([u8; SALT], [u8; NONCE]) = (rand::random(), rand::random());
    let mut file = [HEAD, &salt].concat();
    let payload = Payload { msg: state, aad: &file };
    let sealed = cipher(passphrase, &salt).encrypt(&XNonce::from(nonce), payload);
    let sealed = sealed.map_err(|_| anyhow::anyhow!("the state is too large to be sealed"))?;
    file.extend_from_slice(&nonce);
    file.extend_from_slice(&sealed);
    Ok((file, drawn))
}

/// Opens a file.
///
/// # Errors
/// When it is no backup, was changed, or the passphrase is not the one.
pub fn open(file: &[u8], passphrase: &str) -> anyhow::Result<Vec<u8>> {
    let whole = file.strip_prefix(HEAD).filter(|rest| rest.len() > SALT + NONCE);
    let rest = whole.ok_or_else(|| anyhow::anyhow!("this is not a backup that this release of skep reads"))?;
    let (salt, rest) = rest.split_at(SALT);
    let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or_else(|| anyhow::anyhow!("the backup is cut off"))?;
    let payload = Payload { msg: sealed, aad: &file[..HEAD.len() + SALT] };
    let opened = cipher(passphrase, salt).decrypt(&XNonce::from(*nonce), payload);
    opened.map_err(|_| anyhow::anyhow!("the backup does not open: the passphrase is another, or the file was changed"))
}

fn cipher(passphrase: &str, salt: &[u8]) -> XChaCha20Poly1305 {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, salt, passphrase.as_bytes(), &mut key);
    XChaCha20Poly1305::new(&key.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_opens_with_its_passphrase_and_only_unchanged() {
        let (file, drawn) = seal(b"state", Some("secret")).unwrap();
        assert_eq!(drawn, None);
        assert_eq!(open(&file, "secret").unwrap(), b"state");
        assert!(open(&file, "other").is_err());
        for at in [0, HEAD.len(), file.len() - 1] {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(open(&changed, "secret").is_err(), "byte {at}");
        }
        assert!(open(&file[..20], "secret").is_err());
    }

    #[test]
    fn a_key_is_drawn_where_no_passphrase_is_given() {
        let (file, drawn) = seal(b"state", None).unwrap();
        assert_eq!(open(&file, &drawn.unwrap()).unwrap(), b"state");
    }
}
