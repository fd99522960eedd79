//! What must not be collected now, and who works on what.
//!
//! A user pins a digest *before* it looks whether the content is there, and the collector removes content only while it
//! holds the pins' lock and sees none: so nothing is removed between the look and the use.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::digest::Digest;

/// How many hold each digest. Images (by configuration), blobs and layers (by diffID) share the table.
#[derive(Debug, Default)]
pub struct Pins(Mutex<HashMap<Digest, usize>>);

impl Pins {
    /// A lease that holds nothing yet.
    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease { pins: self.clone(), held: Mutex::default() }
    }

    /// Runs `remove` with the digests that are held; none can be taken meanwhile.
    pub fn while_locked<T>(&self, remove: impl FnOnce(&dyn Fn(&Digest) -> bool) -> T) -> T {
        let counts = self.lock();
        remove(&|digest| counts.contains_key(digest))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        // Counts are changed by single steps that cannot panic half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps content from being collected until it is dropped.
#[derive(Debug)]
pub struct Lease {
    pins: Arc<Pins>,
    held: Mutex<HashSet<Digest>>,
}

impl Lease {
    /// Holds `digest` too.
    pub fn hold(&self, digest: Digest) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.insert(digest) {
            *self.pins.lock().entry(digest).or_default() += 1;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = std::mem::take(self.held.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut counts = self.pins.lock();
        for digest in held {
            if let Some(count) = counts.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&digest);
                }
            }
        }
    }
}

/// One lock per key: the first to take it does the work, the others find it done. When the first is cancelled, the next
/// goes on.
#[derive(Debug)]
pub struct KeyLocks<K>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

impl<K> Default for KeyLocks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> KeyLocks<K> {
    /// Waits for the lock of `key`. The guard can move into blocking work, which outlives a cancelled caller.
    pub async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    locks.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::<tokio::sync::Mutex<()>>::default();
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_held_until_its_last_lease_ends() {
        let pins = Arc::<Pins>::default();
        let digest = Digest::of(b"a");
        let (first, second) = (pins.lease(), pins.lease());
        first.hold(digest);
        first.hold(digest);
        second.hold(digest);
        drop(first);
        assert!(pins.while_locked(|is_held| is_held(&digest)));
        drop(second);
        assert!(!pins.while_locked(|is_held| is_held(&digest)));
    }

    #[tokio::test]
    async fn one_at_a_time_works_on_a_key_and_others_are_not_held_up() {
        let locks = KeyLocks::default();
        let guard = locks.lock(1).await;
        let mut same = std::pin::pin!(locks.lock(1));
        assert!(futures_util::poll!(&mut same).is_pending());
        drop(locks.lock(2).await);
        drop(guard);
        drop(same.await);
    }
}
