//! The keys of one handshake, shared by the threads: sealing takes numbers without a lock, and only the replay window is locked,
//! for a moment before and after a message is opened.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ring::aead::{Aad, LessSafeKey};

use super::{
    crypto::{TAG, aead_key, nonce},
    message::{TRANSPORT_HEADER, TRANSPORT_OVERHEAD, put_transport_header},
    replay::Replay,
};
use crate::sys::wipe::Wiped;

/// Two transport keys, by the index that each side gave the session.
pub struct Session {
    /// Ours: the other side names it in messages to us.
    pub local_index: u32,
    /// Theirs.
    pub remote_index: u32,
    /// Whether we began the handshake: only the initiator makes a new session when this one ages.
    pub is_initiator: bool,
    /// When the keys were made.
    pub made_at: Duration,
    sealing: Wiped<LessSafeKey>,
    opening: Wiped<LessSafeKey>,
    next: AtomicU64,
    replay: Mutex<Replay>,
}

/// Why a message was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its number was seen, is too old, or beyond the limit.
    Replayed,
    /// It is not what the other side sealed.
    Forged,
}

impl Session {
    /// A session out of the keys of a handshake.
    pub fn new(
        indices: (u32, u32),
        is_initiator: bool,
        made_at: Duration,
        sealing: &[u8; 32],
        opening: &[u8; 32],
    ) -> Session {
        Session {
            local_index: indices.0,
            remote_index: indices.1,
            is_initiator,
            made_at,
            sealing: Wiped::new(aead_key(sealing)),
            opening: Wiped::new(aead_key(opening)),
            next: AtomicU64::new(0),
            replay: Mutex::default(),
        }
    }

    /// Takes `count` numbers for sending; the first is returned. None if that would reach `limit`: then none of them may
    /// be used.
    pub fn reserve(&self, count: u64, limit: u64) -> Option<u64> {
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            next.checked_add(count).filter(|end| *end <= limit)
        });
        first.ok()
    }

    /// How many numbers were taken.
    pub fn sent(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Seals in place: `message` is header, padded data and room for the tag.
    pub fn seal(&self, counter: u64, message: &mut [u8]) {
        put_transport_header(message, self.remote_index, counter);
        let end = message.len() - TAG;
        let (head, tag) = message.split_at_mut(end);
        let made = self
            .sealing
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut head[TRANSPORT_HEADER..])
            .expect("a packet is far below the cipher's limit");
        tag.copy_from_slice(made.as_ref());
    }

    /// Seals one packet into a message of its own. None when all numbers are used.
    pub fn seal_one(&self, data: &[u8], padded: usize, limit: u64) -> Option<Vec<u8>> {
        let counter = self.reserve(1, limit)?;
        let mut message = vec![0; padded.max(data.len()) + TRANSPORT_OVERHEAD];
        message[TRANSPORT_HEADER..TRANSPORT_HEADER + data.len()].copy_from_slice(data);
        self.seal(counter, &mut message);
        Some(message)
    }

    /// Opens a transport message in place; the data is at the range returned. `limit`: numbers from there on are refused.
    /// Several threads may open at once: the window is looked at before and after, as opening is what takes time.
    pub fn open(&self, message: &mut [u8], counter: u64, limit: u64) -> Result<Range<usize>, Refused> {
        if counter >= limit || !self.replay().is_new(counter) {
            return Err(Refused::Replayed);
        }
        let sealed = message.get_mut(TRANSPORT_HEADER..).ok_or(Refused::Forged)?;
        let len = self.opening.open_in_place(nonce(counter), Aad::empty(), sealed).map_err(|_| Refused::Forged)?.len();
        // Of two with one number that were opened at the same time, one is marked.
        if !self.replay().mark(counter) {
            return Err(Refused::Replayed);
        }
        Ok(TRANSPORT_HEADER..TRANSPORT_HEADER + len)
    }

    fn replay(&self) -> MutexGuard<'_, Replay> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("is_initiator", &self.is_initiator)
            .field("made_at", &self.made_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Session, Session) {
        let a = Session::new((1, 2), true, Duration::ZERO, &[1; 32], &[2; 32]);
        let b = Session::new((2, 1), false, Duration::ZERO, &[2; 32], &[1; 32]);
        (a, b)
    }

    #[test]
    fn what_one_seals_the_other_opens_once() {
        let (a, b) = pair();
        let sealed = a.seal_one(b"hello", 16, 10).unwrap();
        assert_eq!(sealed[..8], [4, 0, 0, 0, 2, 0, 0, 0]);
        let mut message = sealed.clone();
        let range = b.open(&mut message, 0, 10).unwrap();
        assert_eq!(message[range], *b"hello\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(b.open(&mut sealed.clone(), 0, 10), Err(Refused::Replayed));
        // Reflected to its sender it is not opened: each direction has a key of its own.
        assert_eq!(a.open(&mut sealed.clone(), 0, 10), Err(Refused::Forged));
        // Numbers are authentic too: another one makes another nonce.
        assert_eq!(b.open(&mut sealed.clone(), 1, 10), Err(Refused::Forged));
    }

    #[test]
    fn numbers_end_at_the_limit() {
        let (a, b) = pair();
        assert_eq!(
            (a.reserve(3, 4), a.reserve(2, 4), a.reserve(1, 4), a.reserve(1, 4)),
            (Some(0), None, Some(3), None)
        );
        assert_eq!(b.open(&mut [0; 32], 4, 4), Err(Refused::Replayed));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(data in proptest::collection::vec(any::<u8>(), 0..100), at in 0usize..200, bit in 0u8..8) {
            let (a, b) = pair();
            let mut message = a.seal_one(&data, data.len(), 9).unwrap();
            // The header's type and receiver choose the key; all else is covered by it, the counter as nonce.
            let at = 16 + at % (message.len() - 16);
            message[at] ^= 1 << bit;
            prop_assert_eq!(b.open(&mut message, 0, 9), Err(Refused::Forged));
        }

        #[test]
        fn cut_messages_are_refused(len in 0usize..60) {
            let (a, b) = pair();
            let mut message = a.seal_one(&[7; 48], 48, 9).unwrap();
            message.truncate(len);
            prop_assert_eq!(b.open(&mut message, 0, 9), Err(Refused::Forged));
        }
    }
}
