//! From the interface to the socket: read, cut, seal, send.
//!
//! `wg-tx` reads and cuts. While there is nothing more to read, it also seals and sends what it has, so that a packet on a
//! quiet link wakes one thread and no other. When more is there already, it goes on reading, and helpers seal and send.
//! Batches are sent in the order in which they were read, so the order within a flow is kept.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
};

use rustix::io::Errno;

use super::{
    PAUSE,
    batch::Batch,
    line::Stages,
    send::{reserve, send_batch},
    shared::{Remote, Shared, count},
};
use crate::{
    gso::{coalesce::FRAME_HEADER, cut::Cutter, packet::destination, virtio::Offload},
    noise::session::Session,
    sys::tap::VNET_HEADER,
};

/// Frames in a batch, so that the first of them does not wait while small ones keep coming.
const MAX_READS: usize = 64;

/// A batch on its way to a peer.
pub struct Parcel {
    batch: Batch,
    /// Who gets it, and what seals it, from which number on.
    to: Option<(Arc<Remote>, Arc<Session>, u64)>,
}

/// What is done with each parcel.
struct Out<'a> {
    shared: &'a Shared,
}

impl Stages<Parcel> for Out<'_> {
    fn work(&self, parcel: &mut Parcel) {
        if let Some((_, session, first)) = &parcel.to {
            parcel.batch.seal(session, *first);
        }
    }

    fn leave(&self, parcel: &mut Parcel) {
        // The session goes with it: its keys are to be wiped when it is over.
        if let Some((remote, _, _)) = parcel.to.take() {
            send_batch(self.shared, &remote, &parcel.batch);
        }
        parcel.batch.clear();
    }
}

/// A helper, until the device ends.
pub fn help(shared: &Shared) {
    shared.outgoing.help(&Out { shared });
}

/// The thread that reads, until the device ends.
pub fn run(shared: &Shared) {
    let mut sender = Sender::new(shared);
    let mut frame = vec![0; FRAME_HEADER + (1 << 16)];
    let mut is_lost = false;
    // What a panic has left.
    sender.finish();
    while !shared.is_ending.load(Ordering::Relaxed) {
        match rustix::io::read(&shared.tap, &mut frame) {
            Ok(len) => {
                sender.frame(&mut frame[..len]);
                is_lost = false;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if !sender.finish() && !shared.wait(Some(shared.tap.as_fd()), None) {
                    break;
                }
            }
            Err(error) => {
                if !is_lost {
                    tracing::error!(interface = %shared.name, "reading the interface: {error}");
                }
                is_lost = true;
                sender.finish();
                if !shared.wait(None, Some(PAUSE)) {
                    break;
                }
            }
        }
    }
    sender.finish();
}

struct Sender<'a> {
    shared: &'a Shared,
    stages: Out<'a>,
    parcel: Parcel,
    to: Option<Arc<Remote>>,
    reads: usize,
}

impl<'a> Sender<'a> {
    fn new(shared: &'a Shared) -> Sender<'a> {
        let stages = Out { shared };
        let parcel = empty(shared, &stages);
        Sender { shared, stages, parcel, to: None, reads: 0 }
    }

    fn frame(&mut self, frame: &mut [u8]) {
        // There was more to read, so what was read before is for others.
        self.shared.outgoing.call();
        let tally = &self.shared.tally;
        let Some((head, packet)) = frame.split_at_mut_checked(FRAME_HEADER) else {
            return count(&tally.malformed_inside, 1);
        };
        let Some(to) = destination(packet) else {
            return count(&tally.malformed_inside, 1);
        };
        let table = self.shared.table.load();
        let Some(remote) = table.routes.find(to) else {
            return count(&tally.no_route, 1);
        };
        if self.to.as_ref().is_some_and(|old| !Arc::ptr_eq(old, remote)) {
            self.flush();
        }
        if self.to.is_none() {
            self.to = Some(remote.clone());
        }
        let offload = head.first_chunk::<VNET_HEADER>().and_then(Offload::parse);
        let Some(mut cutter) = offload.and_then(|offload| Cutter::new(offload, packet)) else {
            return count(&tally.malformed_inside, 1);
        };
        while let Some(len) = cutter.next_len() {
            if self.parcel.batch.is_full() {
                self.put(remote);
            } else if let Some(slot) = self.parcel.batch.push(len) {
                cutter.write(slot);
            } else if self.parcel.batch.len() > 0 {
                self.put(remote);
            } else {
                // A packet larger than the whole room: there is none.
                return count(&tally.malformed_inside, 1);
            }
        }
        self.reads += 1;
        if self.parcel.batch.is_full() || self.reads >= MAX_READS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some(remote) = self.to.take() {
            self.put(&remote);
        }
        self.reads = 0;
    }

    /// Gives the batch its numbers and puts it on the line; or its packets wait at the peer until there is a session.
    fn put(&mut self, remote: &Arc<Remote>) {
        if self.parcel.batch.len() == 0 {
            return;
        }
        match reserve(self.shared, remote, &self.parcel.batch) {
            Some((session, first)) => {
                self.parcel.to = Some((remote.clone(), session, first));
                let next = empty(self.shared, &self.stages);
                self.shared.outgoing.put(std::mem::replace(&mut self.parcel, next));
            }
            None => self.parcel.batch.clear(),
        }
    }

    /// Does all that can be done here; false if there was nothing.
    fn finish(&mut self) -> bool {
        self.flush();
        self.shared.outgoing.finish(&self.stages)
    }
}

/// A parcel to fill.
fn empty(shared: &Shared, stages: &Out<'_>) -> Parcel {
    shared.outgoing.job(stages, || Parcel { batch: Batch::new(shared.mtu as usize), to: None })
}
