//! The rolling digest: a hash per row, XORed in when the row comes and out when it goes.
//!
//! Two replicas that applied the same entries have the same digest, whatever snapshots they started from. It tells
//! divergence, not tampering: the hash is fast and not secret. It is comparable between builds of one entry format.

use std::hash::{Hash, Hasher};

/// What a hash is about, so that equal contents of different tables do not cancel out.
#[derive(Clone, Copy, Hash)]
pub(super) enum Domain {
    Row,
    Extra,
    Object,
    Blocked,
    Request,
    Cursor,
    Removed,
    Attached,
    Cursor6,
    Asked6,
    Address6,
}

/// The contribution of one row.
pub(super) fn of(domain: Domain, key: impl Hash, value: impl Hash) -> u64 {
    let mut hasher = Mix(0x9e37_79b9_7f4a_7c15);
    domain.hash(&mut hasher);
    key.hash(&mut hasher);
    value.hash(&mut hasher);
    hasher.finish()
}

/// A folded-multiply hash (as wyhash and foldhash do it), with every integer taken by value so that byte order and
/// pointer width do not matter.
struct Mix(u64);

impl Mix {
    fn mix(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(0xd6e8_feb8_6659_fd93u64);
        #[expect(clippy::cast_possible_truncation, reason = "folding the two halves is the point")]
        let folded = (wide as u64) ^ ((wide >> 64) as u64);
        self.0 = folded.rotate_left(23) ^ 0xa076_1d64_78bd_642f;
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }
    fn write_u8(&mut self, n: u8) {
        self.mix(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.mix(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.mix(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }
    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken one after the other")]
    fn write_u128(&mut self, n: u128) {
        self.mix(n as u64);
        self.mix((n >> 64) as u64);
    }
    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }
    #[expect(clippy::cast_sign_loss, reason = "bits are taken as they are")]
    fn write_i32(&mut self, n: i32) {
        self.mix(n as u64);
    }
    #[expect(clippy::cast_sign_loss, reason = "bits are taken as they are")]
    fn write_isize(&mut self, n: isize) {
        self.mix(n as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ_and_domains_do_not_cancel_out() {
        let all: std::collections::BTreeSet<u64> = (0..10_000u64)
            .flat_map(|n| [of(Domain::Row, n, 0u8), of(Domain::Extra, n, 0u8), of(Domain::Row, 0u8, n + 1)])
            .collect();
        assert_eq!(all.len(), 30_000);
    }
}
