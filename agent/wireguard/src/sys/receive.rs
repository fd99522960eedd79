//! Receiving many datagrams in one call: recvmmsg(2) with `UDP_GRO` (udp(7)).

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::RawAddress;

/// Messages in one call, and the room for each: a UDP datagram, or a run of them, is below 64 KB.
const MESSAGES: usize = 8;
const ROOM: usize = 1 << 16;
/// Messages in one call while they are long runs: what is received together should still be in the processor's cache
/// when it is opened and written, and another thread may work on the next.
const LONG_MESSAGES: usize = 2;
/// Bytes of a message from which it is a long run.
const LONG: usize = ROOM / 4;

/// A run of datagrams from one sender: all of `segment` bytes but the last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    pub from: SocketAddr,
    pub start: usize,
    pub len: usize,
    pub segment: usize,
}

/// Room for what one call receives.
pub struct Inbox {
    room: Vec<u8>,
    received: Vec<Received>,
    /// Messages to ask for.
    ask: usize,
}

/// Room for the control message of `UDP_GRO` (an int), aligned as a cmsghdr.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Inbox {
    pub fn new() -> Inbox {
        Inbox { room: vec![0; MESSAGES * ROOM], received: Vec::with_capacity(MESSAGES), ask: MESSAGES }
    }

    /// Takes what is there without waiting; none is the error `WouldBlock`. See [`Inbox::parts`].
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.received.clear();
        // SAFETY: iovec and mmsghdr are plain data for which all zeros (null pointers, no lengths) is a valid value.
        let (mut iovecs, mut messages): ([libc::iovec; MESSAGES], [libc::mmsghdr; MESSAGES]) = unsafe { mem::zeroed() };
        let mut addresses = [RawAddress::empty(); MESSAGES];
        let mut controls = [Control([0; 64]); MESSAGES];
        for (i, room) in self.room.chunks_exact_mut(ROOM).enumerate() {
            iovecs[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: ROOM };
            let header = &mut messages[i].msg_hdr;
            header.msg_name = (&raw mut addresses[i].storage).cast();
            header.msg_namelen = addresses[i].len;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[i]).cast();
            header.msg_controllen = mem::size_of::<Control>() as _;
        }
        // SAFETY: all messages are filled; what they point to (addresses, iovecs, controls, disjoint parts of the room)
        // lives until after the call and may be written by the kernel up to the lengths given.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                self.ask as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for (i, message) in messages[..count as usize].iter().enumerate() {
            let len = (message.msg_len as usize).min(ROOM);
            let truncated = message.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
            let Some(from) = addresses[i].get() else { continue };
            // An empty datagram is nothing, and would be a run of segments of no size.
            if truncated || len == 0 {
                continue;
            }
            let segment = segment_of(&message.msg_hdr).filter(|size| *size > 0).unwrap_or(len);
            self.received.push(Received { from, start: i * ROOM, len, segment });
        }
        let has_long = self.received.iter().any(|message| message.len >= LONG);
        self.ask = if has_long { LONG_MESSAGES } else { MESSAGES };
        Ok(())
    }

    /// The bytes that were received last, and what lies where.
    pub fn parts(&mut self) -> (&mut [u8], &[Received]) {
        (&mut self.room, &self.received)
    }
}

/// The size of the datagrams in a run, if it is one.
fn segment_of(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has written the control messages and their length into a buffer of ours that is still alive;
    // the macros stay within that length, and data of UDP_GRO is an int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                return usize::try_from(libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned()).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
