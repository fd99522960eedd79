//! Sending to a peer: batches in runs, and single messages of the protocol.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
};

use super::{
    batch::{Batch, split},
    shared::{Remote, Shared, count, lock},
};
use crate::{
    noise::session::Session,
    peer::Outbox,
    sys::send::{Run, send},
};

/// The session that seals a batch for its peer, and the first number for it. None if there is no session: then the
/// packets wait at the peer for one.
pub fn reserve(shared: &Shared, remote: &Remote, batch: &Batch) -> Option<(Arc<Session>, u64)> {
    let packets = batch.len() as u64;
    let mut out = Outbox::new();
    let reserved = {
        let mut core = lock(&remote.core);
        let reserved = shared.with_env(|env| core.sending(packets, env, &mut out));
        if reserved.is_none() {
            for packet in batch.packets() {
                core.queue(packet);
            }
            count(&shared.tally.queue_dropped, core.take_dropped());
        }
        reserved
    };
    count(&shared.tally.packets_sent, packets);
    send_messages(shared, remote, &out);
    reserved
}

/// Sends what the protocol wants sent.
pub fn send_messages(shared: &Shared, remote: &Remote, out: &Outbox) {
    if out.is_empty() {
        return;
    }
    let Some(to) = *lock(&remote.endpoint) else {
        count(&shared.tally.send_failed, out.len() as u64);
        return;
    };
    for message in out {
        count(&remote.sent, message.len() as u64);
        send_to(shared, to, message);
    }
}

/// Sends one datagram, if the socket takes it now.
pub fn send_to(shared: &Shared, to: std::net::SocketAddr, message: &[u8]) {
    let run = Run { start: 0, len: message.len(), segment: message.len() };
    if send(shared.udp.as_fd(), shared.listen.is_ipv6(), to, message, &[run], false).is_err() {
        count(&shared.tally.send_failed, 1);
    }
}

/// Sends a sealed batch to where its peer is now.
pub fn send_batch(shared: &Shared, remote: &Remote, batch: &Batch) {
    let Some(to) = *lock(&remote.endpoint) else {
        count(&shared.tally.send_failed, batch.len() as u64);
        return;
    };
    count(&remote.sent, batch.bytes() as u64);
    let (bytes, runs) = batch.wire(shared.udp_segment.load(Ordering::Relaxed));
    let mut left = runs.as_slice();
    while let Some(run) = left.first() {
        // Waits while the socket's buffer is full: then the interface's queue fills, and senders feel it.
        match send(shared.udp.as_fd(), shared.listen.is_ipv6(), to, bytes, left, true) {
            Ok(sent) => left = &left[sent.max(1).min(left.len())..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if run.is_many() && is_about_runs(shared, &error) {
                    send_singly(shared, to, bytes, run);
                } else {
                    count(&shared.tally.send_failed, run.len.div_ceil(run.segment) as u64);
                }
                left = &left[1..];
            }
        }
    }
}

/// Whether the datagrams may go one by one; notes when the way that they take cannot do runs at all.
fn is_about_runs(shared: &Shared, error: &io::Error) -> bool {
    match error.raw_os_error() {
        // The link has no checksum offload, or the kernel no segmentation (udp(7)).
        Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
            if shared.udp_segment.swap(false, Ordering::Relaxed) {
                tracing::warn!(interface = %shared.name, "no runs of datagrams on this way, sending them one by one: {error}");
            }
            true
        }
        // A datagram is larger than the way's MTU: singly it is cut by IP.
        Some(libc::EINVAL | libc::EMSGSIZE) => true,
        _ => false,
    }
}

fn send_singly(shared: &Shared, to: std::net::SocketAddr, bytes: &[u8], run: &Run) {
    let single = split(run);
    let mut left = single.as_slice();
    while !left.is_empty() {
        match send(shared.udp.as_fd(), shared.listen.is_ipv6(), to, bytes, left, true) {
            Ok(sent) => left = &left[sent.max(1).min(left.len())..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                count(&shared.tally.send_failed, 1);
                left = &left[1..];
            }
        }
    }
}
