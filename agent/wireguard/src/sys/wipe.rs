//! Overwriting a value's memory when it is dropped, for types that do not do so themselves.

use std::mem::{self, MaybeUninit};
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

/// A value whose memory is zeroed after its drop. Moving it leaves copies, as moving anything does: put it where it
/// stays (an `Arc`, a `Box`) at once.
pub struct Wiped<T>(MaybeUninit<T>);

impl<T> Wiped<T> {
    pub fn new(value: T) -> Wiped<T> {
        Wiped(MaybeUninit::new(value))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: made initialised in `new`, and only `drop` takes that away.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: initialised since `new`, dropped once: here.
        unsafe { self.0.assume_init_drop() };
        let start = (&raw mut self.0).cast::<u8>();
        for offset in 0..mem::size_of::<T>() {
            // SAFETY: within the value's own memory, which after its drop is only bytes. Volatile, so that the
            // compiler keeps writes that nobody reads.
            unsafe { ptr::write_volatile(start.add(offset), 0) };
        }
        compiler_fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_dropped_value() {
        let mut place = MaybeUninit::<Wiped<[u8; 64]>>::new(Wiped::new([0xa5; 64]));
        let start = place.as_mut_ptr();
        // SAFETY: initialised above; dropped in place once. Its memory stays ours, and holds bytes written by `drop`.
        let left = unsafe {
            assert_eq!((**start)[63], 0xa5);
            ptr::drop_in_place(start);
            ptr::read_volatile(start.cast::<[u8; 64]>())
        };
        assert_eq!(left, [0; 64]);
    }
}
