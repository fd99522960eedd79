//! Cookies: under load a sender must first show that it receives at the address it sends from (paper, section 5.4.7).

use std::{net::SocketAddr, time::Duration};

use zeroize::Zeroizing;

use super::{
    crypto::{Secret, hash, mac, same, xopen, xseal},
    message::{COOKIE, field},
};

const LABEL_COOKIE: &[u8] = b"cookie--";
/// The secret behind cookies changes, and a cookie is used, for this long (paper, section 5.4.7).
pub const LIFE: Duration = Duration::from_secs(120);

/// Gives out and knows again cookies for messages to us.
pub struct Baker {
    key: [u8; 32],
    secret: Secret,
    /// When `secret` was made.
    since: Duration,
}

/// The key that seals cookies which this device gives out.
fn cookie_key(public: &[u8; 32]) -> [u8; 32] {
    hash(&[LABEL_COOKIE, public])
}

/// Whether mac1 is that of someone who knows our public key.
pub fn has_mac1(message: &[u8], mac1_key: &[u8; 32]) -> bool {
    let at = message.len() - 32;
    same(&mac(mac1_key, &[&message[..at]]), &field(message, at))
}

impl Baker {
    /// For the device with this public key; the first cookie draws its secret.
    pub fn new(public: &[u8; 32], secret: [u8; 32], now: Duration) -> Baker {
        Baker { key: cookie_key(public), secret: Zeroizing::new(secret), since: now }
    }

    /// Takes a new secret if the present one is old; `draw` gives it.
    pub fn renew(&mut self, now: Duration, draw: impl FnOnce() -> [u8; 32]) {
        if now.saturating_sub(self.since) >= LIFE {
            self.secret = Zeroizing::new(draw());
            self.since = now;
        }
    }

    fn cookie(&self, from: SocketAddr) -> [u8; 16] {
        let port = from.port().to_be_bytes();
        match from {
            SocketAddr::V4(from) => mac(self.secret.as_slice(), &[&from.ip().octets(), &port]),
            SocketAddr::V6(from) => mac(self.secret.as_slice(), &[&from.ip().octets(), &port]),
        }
    }

    /// Whether a handshake message carries the cookie that we gave this address.
    pub fn has_mac2(&self, message: &[u8], from: SocketAddr) -> bool {
        let at = message.len() - 16;
        same(&mac(&self.cookie(from), &[&message[..at]]), &field(message, at))
    }

    /// The reply to a handshake message that has no cookie.
    pub fn reply(&self, message: &[u8], from: SocketAddr, nonce: [u8; 24]) -> [u8; COOKIE] {
        let mac1 = field(message, message.len() - 32);
        let mut reply = [0; COOKIE];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&message[4..8]);
        reply[8..32].copy_from_slice(&nonce);
        reply[32..].copy_from_slice(&xseal(&self.key, &nonce, &self.cookie(from), &mac1));
        reply
    }
}

/// Opens a cookie reply of the device with this public key, to our message that had this mac1.
pub fn open_reply(public: &[u8; 32], mac1: &[u8; 16], reply: &[u8; COOKIE]) -> Option<[u8; 16]> {
    xopen(&cookie_key(public), &field(reply, 8), &field(reply, 32), mac1)
}
