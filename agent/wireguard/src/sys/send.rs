//! Sending many datagrams in one call: sendmmsg(2) with `UDP_SEGMENT` (udp(7)).

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::RawAddress;

/// Runs in one call.
pub const MAX_RUNS: usize = 64;

/// Consecutive datagrams in a buffer: all of `segment` bytes but the last, which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub start: usize,
    pub len: usize,
    pub segment: usize,
}

impl Run {
    /// More than one datagram: needs the kernel to cut it.
    pub fn is_many(&self) -> bool {
        self.len > self.segment
    }
}

/// Room for one `UDP_SEGMENT` control message, aligned as a cmsghdr.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 24]);

/// Sends the first runs (at most [`MAX_RUNS`]) of `buffer` to one address. Returns how many were sent; the error is
/// the first run's. Does not wait: a full socket buffer is an error (`WouldBlock`).
pub fn send(
    socket: BorrowedFd<'_>,
    v6_socket: bool,
    to: SocketAddr,
    buffer: &[u8],
    runs: &[Run],
    wait: bool,
) -> io::Result<usize> {
    let Some(mut address) = RawAddress::new(to, v6_socket) else {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    };
    let count = runs.len().min(MAX_RUNS);
    // SAFETY: iovec and mmsghdr are plain data for which all zeros (null pointers, no lengths) is a valid value.
    let (mut iovecs, mut messages): ([libc::iovec; MAX_RUNS], [libc::mmsghdr; MAX_RUNS]) = unsafe { mem::zeroed() };
    let mut controls = [Control([0; 24]); MAX_RUNS];
    for (i, run) in runs[..count].iter().enumerate() {
        let bytes = &buffer[run.start..run.start + run.len];
        iovecs[i] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let header = &mut messages[i].msg_hdr;
        header.msg_name = (&raw mut address.storage).cast();
        header.msg_namelen = address.len;
        header.msg_iov = &raw mut iovecs[i];
        header.msg_iovlen = 1;
        if run.is_many() {
            header.msg_control = (&raw mut controls[i]).cast();
            // SAFETY: the control buffer is aligned as cmsghdr and has CMSG_SPACE(2) = 24 bytes, so the first header
            // and its two bytes of data are inside.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(2) as _;
                let control = libc::CMSG_FIRSTHDR(header);
                (*control).cmsg_level = libc::SOL_UDP;
                (*control).cmsg_type = libc::UDP_SEGMENT;
                (*control).cmsg_len = libc::CMSG_LEN(2) as _;
                libc::CMSG_DATA(control).cast::<u16>().write_unaligned(run.segment as u16);
            }
        }
    }
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: `count` messages are filled; what they point to (address, iovecs, controls, the buffer's bytes, which the
    // kernel only reads) lives until after the call.
    match unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, flags as _) } {
        sent if sent >= 0 => Ok(sent as usize),
        _ => Err(io::Error::last_os_error()),
    }
}
