//! The thread from the interface to the socket: read, cut, seal, send; to the end with each batch, so that the order
//! within a flow is kept.

use std::{os::fd::AsFd as _, sync::Arc, time::Duration};

use rustix::io::Errno;

use super::{
    batch::{Batch, FULL},
    send::flush,
    shared::{Remote, Shared, count},
};
use crate::{
    gso::{coalesce::FRAME_HEADER, cut::Cutter, packet::destination, virtio::Offload},
    sys::tap::VNET_HEADER,
};

/// Frames in a batch, so that the first of them does not wait while small ones keep coming.
const MAX_READS: usize = 64;
/// After an error of the interface: it may have been taken away, or comes back.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs until the device ends.
pub fn run(shared: &Shared) {
    let mut frame = vec![0; FRAME_HEADER + (1 << 16)];
    let mut sender = Sender { shared, batch: Batch::new(shared.mtu as usize), to: None, reads: 0 };
    let mut is_lost = false;
    loop {
        match rustix::io::read(&shared.tap, &mut frame) {
            Ok(len) => {
                sender.frame(&mut frame[..len]);
                is_lost = false;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if sender.to.is_some() => sender.flush(),
            Err(Errno::AGAIN) => {
                if !shared.wait(Some(shared.tap.as_fd()), None) {
                    return;
                }
            }
            Err(error) => {
                if !is_lost {
                    tracing::error!(interface = %shared.name, "reading the interface: {error}");
                }
                is_lost = true;
                sender.flush();
                if !shared.wait(None, Some(PAUSE)) {
                    return;
                }
            }
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    batch: Batch,
    to: Option<Arc<Remote>>,
    reads: usize,
}

impl Sender<'_> {
    fn frame(&mut self, frame: &mut [u8]) {
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
            if let Some(slot) = self.batch.push(len) {
                cutter.write(slot);
            } else if self.batch.len() > 0 {
                flush(self.shared, remote, &mut self.batch);
            } else {
                // A packet larger than the whole room: there is none.
                return count(&tally.malformed_inside, 1);
            }
        }
        self.reads += 1;
        if self.batch.len() >= FULL || self.reads >= MAX_READS {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some(remote) = self.to.take() {
            flush(self.shared, &remote, &mut self.batch);
        }
        self.reads = 0;
    }
}
