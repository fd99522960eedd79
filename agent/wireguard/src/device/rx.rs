//! From the socket to the interface: receive, open in place, check, join, write. Handshake messages go to their own
//! thread.
//!
//! `wg-rx` receives. While there is nothing more to receive, it also does all the rest; when more is there already, it goes
//! on receiving, and helpers open, join and write. What was received first is written first, and what a peer is told
//! follows the same order.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::Guard;

use super::{
    PAUSE,
    doorman::Knock,
    line::Stages,
    send::send_messages,
    shared::{Remote, Shared, Table, count, lock},
};
use crate::{
    gso::{
        coalesce::{FRAME_HEADER, Joiner},
        packet::source,
    },
    noise::{
        message::Message,
        session::{Refused, Session},
    },
    peer::Outbox,
    sys::receive::{Inbox, Received},
};

/// What came in one call.
pub struct Haul {
    inbox: Inbox,
    joiner: Joiner,
    /// What the peers are to be told.
    heard: Vec<Heard>,
}

/// Authentic messages of one session, from one place.
struct Heard {
    remote: Arc<Remote>,
    index: u32,
    from: SocketAddr,
    bytes: u64,
    /// Those that were not empty.
    packets: u64,
}

/// What is done with each haul.
struct In<'a> {
    shared: &'a Shared,
}

impl Stages<Haul> for In<'_> {
    fn work(&self, haul: &mut Haul) {
        let (room, received) = haul.inbox.parts();
        let mut reader = Reader {
            shared: self.shared,
            table: self.shared.table.load(),
            joiner: &mut haul.joiner,
            heard: &mut haul.heard,
            run: None,
        };
        for message in received {
            reader.datagrams(room, message);
        }
        haul.joiner.finish(room);
    }

    fn leave(&self, haul: &mut Haul) {
        let (room, _) = haul.inbox.parts();
        let refused = haul.joiner.frames().filter(|(header, parts)| !write(self.shared, header, room, parts)).count();
        count(&self.shared.tally.write_failed, refused as u64);
        haul.joiner.clear();
        for heard in haul.heard.drain(..) {
            tell(self.shared, &heard);
        }
    }
}

/// A helper, until the device ends.
pub fn help(shared: &Shared) {
    shared.incoming.help(&In { shared });
}

/// The thread that receives, until the device ends.
pub fn run(shared: &Shared) {
    let stages = In { shared };
    let line = &shared.incoming;
    // What a panic has left.
    line.finish(&stages);
    let mut haul = empty(shared, &stages);
    while !shared.is_ending.load(Ordering::Relaxed) {
        match haul.inbox.receive(shared.udp.as_fd()) {
            Ok(()) => {
                // There was more to receive, so what was received before is for others.
                line.call();
                line.put(haul);
                haul = empty(shared, &stages);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if !line.finish(&stages) && !shared.wait(Some(shared.udp.as_fd()), None) {
                    break;
                }
            }
            // Errors that a datagram sent before has brought back say nothing about receiving.
            Err(_) => {
                line.finish(&stages);
                if !shared.wait(None, Some(PAUSE)) {
                    break;
                }
            }
        }
    }
    line.finish(&stages);
}

/// A haul to fill.
fn empty(shared: &Shared, stages: &In<'_>) -> Haul {
    shared.incoming.job(stages, || Haul {
        inbox: Inbox::new(),
        joiner: Joiner::new(shared.tap_offload, &shared.tuning.vxlan_ports, shared.mac),
        heard: vec![],
    })
}

/// Opens and checks messages.
struct Reader<'a> {
    shared: &'a Shared,
    table: Guard<Arc<Table>>,
    joiner: &'a mut Joiner,
    heard: &'a mut Vec<Heard>,
    run: Option<Run>,
}

/// Consecutive messages of one session.
struct Run {
    index: u32,
    remote: Arc<Remote>,
    session: Arc<Session>,
    /// Bytes of authentic messages.
    bytes: u64,
    /// Those that were not empty, and those of them whose packet was taken.
    packets: u64,
    taken: u64,
    /// The last inner source that was found to be the peer's.
    source: Option<IpAddr>,
}

impl Reader<'_> {
    /// Takes datagrams of one sender.
    fn datagrams(&mut self, room: &mut [u8], received: &Received) {
        let now = self.shared.now();
        let end = received.start + received.len;
        for start in (received.start..end).step_by(received.segment) {
            let range = start..(start + received.segment).min(end);
            match Message::parse(&room[range.clone()]) {
                Some(Message::Transport { receiver, counter }) => {
                    self.transport(room, range, receiver, counter, received.from, now);
                }
                Some(_) => {
                    let knock = Knock::new(&room[range], received.from);
                    if knock.is_none_or(|knock| self.shared.door.try_send(knock).is_err()) {
                        count(&self.shared.tally.handshakes_limited, 1);
                    }
                }
                None => count(&self.shared.tally.unknown, 1),
            }
        }
        self.end_run(received.from);
    }

    fn transport(
        &mut self,
        room: &mut [u8],
        range: Range<usize>,
        index: u32,
        counter: u64,
        from: SocketAddr,
        now: Duration,
    ) {
        let tally = &self.shared.tally;
        if self.run.as_ref().is_none_or(|run| run.index != index) {
            self.end_run(from);
            self.run = self.table.by_slot.get(&(index >> 8)).and_then(|remote| {
                let session = lock(&remote.core).session(index, now)?;
                Some(Run { index, remote: remote.clone(), session, bytes: 0, packets: 0, taken: 0, source: None })
            });
        }
        let Some(run) = &mut self.run else { return count(&tally.unknown, 1) };
        let message = &mut room[range.clone()];
        let limit = self.shared.timers.reject_after_messages;
        let data = match run.session.open(message, counter, limit) {
            Ok(data) => range.start + data.start..range.start + data.end,
            Err(Refused::Forged) => return count(&tally.forged, 1),
            Err(Refused::Replayed) => return count(&tally.replayed, 1),
        };
        run.bytes += range.len() as u64;
        if data.is_empty() {
            return;
        }
        run.packets += 1;
        let Some((len, source)) = source(&room[data.clone()]) else { return count(&tally.malformed_peer, 1) };
        if run.source != Some(source) {
            if !self.table.routes.find(source).is_some_and(|owner| Arc::ptr_eq(owner, &run.remote)) {
                return count(&tally.wrong_source, 1);
            }
            run.source = Some(source);
        }
        run.taken += 1;
        self.joiner.add(room, data.start..data.start + len);
    }

    fn end_run(&mut self, from: SocketAddr) {
        let Some(run) = self.run.take().filter(|run| run.bytes > 0) else { return };
        count(&self.shared.tally.packets_received, run.taken);
        let Run { remote, index, bytes, packets, .. } = run;
        self.heard.push(Heard { remote, index, from, bytes, packets });
    }
}

/// Tells the peer what came, and learns where it is now.
fn tell(shared: &Shared, heard: &Heard) {
    let remote = &heard.remote;
    count(&remote.received, heard.bytes);
    *lock(&remote.endpoint) = Some(heard.from);
    let mut out = Outbox::new();
    shared.with_env(|env| lock(&remote.core).received(heard.index, heard.packets > 0, env, &mut out));
    send_messages(shared, remote, &out);
}

/// Writes one frame; false if the interface refused it.
fn write(shared: &Shared, header: &[u8; FRAME_HEADER], room: &[u8], parts: &[Range<usize>]) -> bool {
    let mut slices = Vec::with_capacity(parts.len() + 1);
    slices.push(IoSlice::new(header));
    slices.extend(parts.iter().map(|part| IoSlice::new(&room[part.clone()])));
    rustix::io::writev(&shared.tap, &slices).is_ok()
}
