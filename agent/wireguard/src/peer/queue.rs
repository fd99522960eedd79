//! Packets that wait for the first handshake: bounded, the oldest goes first.

use std::collections::VecDeque;

/// Packets that may wait: a window of a fresh TCP connection, and more.
const MAX_PACKETS: usize = 256;
/// Bytes that may wait, as 1000 silent peers must not take the memory.
const MAX_BYTES: usize = 384 << 10;

/// The packets.
#[derive(Default)]
pub struct Queue {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

impl Queue {
    /// False if older ones were dropped for it.
    pub fn push(&mut self, packet: &[u8]) -> bool {
        let before = self.dropped;
        while self.packets.len() >= MAX_PACKETS || (self.bytes + packet.len() > MAX_BYTES && !self.packets.is_empty()) {
            self.pop();
            self.dropped += 1;
        }
        self.bytes += packet.len();
        self.packets.push_back(packet.to_vec());
        self.dropped == before
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.dropped += self.packets.len() as u64;
        self.packets.clear();
        self.bytes = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_packets_stay_and_the_bounds_hold() {
        let mut queue = Queue::default();
        for i in 0..MAX_PACKETS + 10 {
            assert_eq!(queue.push(&[(i % 251) as u8]), i < MAX_PACKETS);
        }
        assert_eq!((queue.take_dropped(), queue.take_dropped()), (10, 0));
        assert_eq!(queue.pop(), Some(vec![10]));
        queue.clear();
        for _ in 0..20 {
            queue.push(&[0; 65_000]);
        }
        assert!(queue.bytes <= MAX_BYTES && queue.packets.len() == 6);
    }
}
