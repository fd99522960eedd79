//! Time as initiations carry it (TAI64N: cr.yp.to/libtai/tai64.html): a responder refuses one that is not newer than
//! the last of that peer, so that a recorded initiation is worth nothing.

use std::time::Duration;

/// Twelve bytes that compare as the times do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
pub struct Tai64n([u8; 12]);

/// Nanoseconds to which times are cut, so that a timestamp does not tell how long cryptography took: some 16 ms.
const GRAIN: u32 = 1 << 24;

impl Tai64n {
    /// From the time since 1970. TAI is 10 seconds ahead of it there, and leap seconds do not matter here.
    pub fn new(wall: Duration) -> Tai64n {
        Tai64n::raw((1 << 62) + 10 + wall.as_secs(), wall.subsec_nanos() / GRAIN * GRAIN)
    }

    /// From the bytes of a message.
    pub fn from_bytes(bytes: [u8; 12]) -> Tai64n {
        Tai64n(bytes)
    }

    /// The bytes of a message.
    pub fn to_bytes(self) -> [u8; 12] {
        self.0
    }

    /// The next one that compares greater, for a clock that stood still or was set back.
    pub fn next(self) -> Tai64n {
        let seconds = u64::from_be_bytes(self.0[..8].try_into().expect("8 bytes"));
        let nanos = u32::from_be_bytes(self.0[8..].try_into().expect("4 bytes"));
        match nanos.checked_add(GRAIN).filter(|nanos| *nanos < 1_000_000_000) {
            Some(nanos) => Tai64n::raw(seconds, nanos),
            None => Tai64n::raw(seconds.saturating_add(1), 0),
        }
    }

    fn raw(seconds: u64, nanos: u32) -> Tai64n {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Tai64n(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_times_are_greater_and_next_is_always_greater() {
        let at = |millis| Tai64n::new(Duration::from_millis(millis));
        assert!(at(1_000) < at(1_020) && at(1_999) < at(2_000));
        assert_eq!(at(0).to_bytes(), [0x40, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
        let mut time = at(5_900);
        for _ in 0..100 {
            assert!(time.next() > time);
            time = time.next();
        }
    }
}
