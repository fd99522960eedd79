//! Packets for one peer, laid out as they go on the wire: `[header | data, padded | tag]`, one after another.

use crate::{
    noise::{
        message::{TRANSPORT_HEADER, TRANSPORT_OVERHEAD, padded},
        session::Session,
    },
    sys::send::Run,
};

/// Bytes of a batch: a run, and a message that does not belong to it.
const CAPACITY: usize = 128 << 10;
/// Bytes and datagrams of one `UDP_SEGMENT` send (udp(7): what one datagram may have over IPv4; 64 segments before
/// Linux 6.9).
const RUN_BYTES: usize = 65_507;
const RUN_PACKETS: usize = 64;

/// See the module's text.
pub struct Batch {
    room: Vec<u8>,
    end: usize,
    messages: Vec<Message>,
    mtu: usize,
}

struct Message {
    start: usize,
    /// On the wire.
    len: usize,
    /// Without padding.
    plain: usize,
}

impl Batch {
    pub fn new(mtu: usize) -> Batch {
        Batch { room: vec![0; CAPACITY], end: 0, messages: Vec::with_capacity(256), mtu }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether the batch fills a run, or its packets would wait too long for more. Each run is a way through the kernels of
    /// both sides, whose cost hardly depends on its length: so what one read leaves over goes with what the next brings.
    pub fn is_full(&self) -> bool {
        let next = self.messages.last().map_or(0, |message| message.len);
        self.end + next > RUN_BYTES || self.messages.len() >= RUN_PACKETS
    }

    /// Bytes on the wire.
    pub fn bytes(&self) -> usize {
        self.end
    }

    /// Room for a packet's data. None when there is none left: send what there is first.
    pub fn push(&mut self, plain: usize) -> Option<&mut [u8]> {
        let size = padded(plain, self.mtu);
        let (start, len) = (self.end, size + TRANSPORT_OVERHEAD);
        let data = self.room.get_mut(start..start + len)?;
        let data = &mut data[TRANSPORT_HEADER..TRANSPORT_HEADER + size];
        // The room was used before; padding is zero (paper, section 5.4.6).
        data[plain..].fill(0);
        self.end += len;
        self.messages.push(Message { start, len, plain });
        Some(&mut data[..plain])
    }

    /// The packets before they are sealed.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(|message| {
            let start = message.start + TRANSPORT_HEADER;
            &self.room[start..start + message.plain]
        })
    }

    /// Seals all with consecutive numbers.
    pub fn seal(&mut self, session: &Session, first: u64) {
        for (message, counter) in self.messages.iter().zip(first..) {
            session.seal(counter, &mut self.room[message.start..message.start + message.len]);
        }
    }

    /// The messages on the wire, and how to send them: in runs, or each by itself.
    pub fn wire(&self, in_runs: bool) -> (&[u8], Vec<Run>) {
        let mut runs: Vec<Run> = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            if let Some(run) = runs.last_mut().filter(|_| in_runs)
                && run.len % run.segment == 0
                && run.len / run.segment < RUN_PACKETS
                && message.len <= run.segment
                && run.len + message.len <= RUN_BYTES
            {
                run.len += message.len;
            } else {
                runs.push(Run { start: message.start, len: message.len, segment: message.len });
            }
        }
        (&self.room[..self.end], runs)
    }

    pub fn clear(&mut self) {
        self.end = 0;
        self.messages.clear();
    }
}

/// A run's datagrams, each by itself.
pub fn split(run: &Run) -> Vec<Run> {
    let end = run.start + run.len;
    let starts = (run.start..end).step_by(run.segment);
    starts
        .map(|start| {
            let len = run.segment.min(end - start);
            Run { start, len, segment: len }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_messages_are_one_run_that_ends_with_a_shorter_one() {
        let mut batch = Batch::new(1420);
        for plain in [1420, 1420, 100, 1420, 1424] {
            batch.push(plain).unwrap();
        }
        let (bytes, runs) = batch.wire(true);
        let lens: Vec<_> = runs.iter().map(|run| (run.len, run.segment)).collect();
        assert_eq!(lens, [(1452 * 2 + 144, 1452), (1452, 1452), (1456, 1456)]);
        assert_eq!(bytes.len(), runs.iter().map(|run| run.len).sum::<usize>());
        assert_eq!(split(&runs[0]).iter().map(|run| run.len).collect::<Vec<_>>(), [1452, 1452, 144]);
    }

    #[test]
    fn a_batch_of_equal_packets_is_full_when_it_is_one_whole_run() {
        for (mtu, plain, packets) in [(1420, 1420, 45), (1420, 100, 64), (65_455, 65_400, 1)] {
            let mut batch = Batch::new(mtu);
            while !batch.is_full() {
                batch.push(plain).unwrap();
            }
            assert_eq!((batch.len(), batch.wire(true).1.len()), (packets, 1), "{plain}");
        }
    }

    proptest! {
        #[test]
        fn runs_cover_all_messages_in_order(sizes in proptest::collection::vec(0usize..3000, 0..200)) {
            let mut batch = Batch::new(1420);
            let mut pushed = vec![];
            for size in sizes {
                if batch.push(size).is_some() {
                    pushed.push(padded(size, 1420) + TRANSPORT_OVERHEAD);
                }
            }
            let (_, runs) = batch.wire(true);
            prop_assert!(runs.iter().all(|run| run.len <= RUN_BYTES.max(run.segment)));
            let single: Vec<usize> = runs.iter().flat_map(split).map(|run| run.len).collect();
            prop_assert_eq!(single, pushed);
        }
    }
}
