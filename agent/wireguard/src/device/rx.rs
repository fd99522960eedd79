//! The thread from the socket to the interface: receive, open in place, check, join, write. Handshakes pass here too.

use std::{
    io::IoSlice,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

use arc_swap::Guard;

use super::{
    doorman::Doorman,
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

/// After an error of the socket.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs until the device ends.
pub fn run(shared: &Shared) {
    let mut inbox = Inbox::new();
    let mut receiver = Receiver {
        shared,
        table: shared.table.load(),
        joiner: Joiner::new(shared.tap_offload, &shared.tuning.vxlan_ports, shared.mac),
        doorman: Doorman::new(shared),
        run: None,
    };
    loop {
        match inbox.receive(shared.udp.as_fd()) {
            Ok((room, received)) => {
                receiver.table = shared.table.load();
                for message in received {
                    receiver.datagrams(room, message);
                }
                let mut frames = 0;
                receiver
                    .joiner
                    .finish(room, |header, room, parts| frames += u64::from(!write(shared, header, room, parts)));
                count(&shared.tally.write_failed, frames);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if !shared.wait(Some(shared.udp.as_fd()), None) {
                    return;
                }
            }
            // Errors that a datagram sent before has brought back say nothing about receiving.
            Err(_) => {
                if !shared.wait(None, Some(PAUSE)) {
                    return;
                }
            }
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    table: Guard<Arc<Table>>,
    joiner: Joiner,
    doorman: Doorman<'a>,
    run: Option<Run>,
}

/// Consecutive messages of one session.
struct Run {
    index: u32,
    remote: Arc<Remote>,
    session: Arc<Session>,
    /// Bytes of authentic messages.
    bytes: u64,
    packets: u64,
    /// The last inner source that was found to be the peer's.
    source: Option<IpAddr>,
}

impl Receiver<'_> {
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
                    self.end_run(received.from);
                    self.doorman.handshake(&self.table, &room[range], received.from);
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
                Some(Run { index, remote: remote.clone(), session, bytes: 0, packets: 0, source: None })
            });
        }
        let Some(run) = &mut self.run else { return count(&tally.unknown, 1) };
        let message = &mut room[range.clone()];
        let limit = self.shared.timers.reject_after_messages;
        let data = match run.session.opener().open(message, counter, limit) {
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
        count(&tally.packets_received, 1);
        self.joiner.add(room, data.start..data.start + len);
    }

    /// Tells the peer what came, and learns where it is now.
    fn end_run(&mut self, from: SocketAddr) {
        let Some(run) = self.run.take().filter(|run| run.bytes > 0) else { return };
        count(&run.remote.received, run.bytes);
        *lock(&run.remote.endpoint) = Some(from);
        let mut out = Outbox::new();
        self.shared.with_env(|env| lock(&run.remote.core).received(run.index, run.packets > 0, env, &mut out));
        send_messages(self.shared, &run.remote, &out);
    }
}

/// Writes one frame; false if the interface refused it.
fn write(shared: &Shared, header: &[u8; FRAME_HEADER], room: &[u8], parts: &[Range<usize>]) -> bool {
    let mut slices = Vec::with_capacity(parts.len() + 1);
    slices.push(IoSlice::new(header));
    slices.extend(parts.iter().map(|part| IoSlice::new(&room[part.clone()])));
    rustix::io::writev(&shared.tap, &slices).is_ok()
}
