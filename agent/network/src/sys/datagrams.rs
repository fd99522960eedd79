//! Datagrams of IPv4, some at a time: recvmmsg(2) and sendmmsg(2).

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Datagrams in one call.
pub const MOST: usize = 8;

/// Room for what one call receives.
pub struct Inbox {
    room: Vec<u8>,
    /// Bytes for one datagram.
    each: usize,
    lengths: [usize; MOST],
    senders: [libc::sockaddr_in; MOST],
    count: usize,
}

/// Datagrams to send, one behind the other in one buffer.
#[derive(Default)]
pub struct Outbox {
    /// Their bytes. What is put here belongs to the next [`Outbox::push`].
    pub room: Vec<u8>,
    /// Where each one ends, and goes.
    parts: Vec<(usize, SocketAddrV4)>,
}

impl Inbox {
    /// For datagrams of so many bytes; what is longer is cut.
    pub fn new(each: usize) -> Self {
        // Not a byte of it is touched before the kernel writes there.
        let room = Vec::with_capacity(each * MOST);
        let nobody = address(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        Self { room, each, lengths: [0; MOST], senders: [nobody; MOST], count: 0 }
    }

    /// Takes what is there without waiting, in place of what was received before: true when it took less than it could,
    /// so that nothing more was there.
    ///
    /// # Errors
    /// Those of recvmsg(2); `WouldBlock` when nothing is there. Nothing was received then.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        self.count = 0;
        // SAFETY: iovec and mmsghdr are plain data for which all zeros (null pointers, no lengths) is a valid value.
        let (mut iovecs, mut messages): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) = unsafe { mem::zeroed() };
        let room = self.room.spare_capacity_mut().chunks_exact_mut(self.each);
        for (i, room) in room.take(MOST).enumerate() {
            iovecs[i] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: self.each };
            let header = &mut messages[i].msg_hdr;
            header.msg_name = (&raw mut self.senders[i]).cast();
            header.msg_namelen = ADDRESS;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
        }
        let (most, flags) = (MOST as libc::c_uint, libc::MSG_DONTWAIT as _);
        // SAFETY: all messages are filled, as the room holds MOST datagrams; what they point to (senders, iovecs, disjoint
        // parts of the room) lives until after the call and may be written by the kernel up to the lengths given.
        let count =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), most, flags, std::ptr::null_mut()) };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (length, message) in self.lengths.iter_mut().zip(&messages[..self.count]) {
            *length = (message.msg_len as usize).min(self.each);
        }
        Ok(self.count < MOST)
    }

    /// Forgets what was received.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// What was received last, and from whom.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddrV4)> {
        (0..self.count).map(|i| {
            // SAFETY: the kernel has written so many bytes there, within the part of the room that is this datagram's.
            let bytes = unsafe { std::slice::from_raw_parts(self.room.as_ptr().add(i * self.each), self.lengths[i]) };
            let sender = self.senders[i];
            let ip = Ipv4Addr::from(sender.sin_addr.s_addr.to_ne_bytes());
            (bytes, SocketAddrV4::new(ip, u16::from_be(sender.sin_port)))
        })
    }
}

impl Outbox {
    /// Makes a datagram of what was put into the room since the last one.
    pub fn push(&mut self, to: SocketAddrV4) {
        self.parts.push((self.room.len(), to));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.room.clear();
        self.parts.clear();
    }

    /// One of them, and where it goes.
    pub fn get(&self, at: usize) -> (&[u8], SocketAddrV4) {
        let start = at.checked_sub(1).map_or(0, |before| self.parts[before].0);
        let (end, to) = self.parts[at];
        (&self.room[start..end], to)
    }

    /// Sends up to [`MOST`], from that one on, without waiting; gives how many were sent.
    ///
    /// # Errors
    /// Those of sendmsg(2) for the first one, which was not sent; `WouldBlock` when there is no room for it.
    pub fn send(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<usize> {
        // SAFETY: as in Inbox::receive; of an address, too, all zeros is a valid value.
        let (mut iovecs, mut messages, mut receivers): (
            [libc::iovec; MOST],
            [libc::mmsghdr; MOST],
            [libc::sockaddr_in; MOST],
        ) = unsafe { mem::zeroed() };
        let count = self.len().saturating_sub(from).min(MOST);
        for i in 0..count {
            let (bytes, to) = self.get(from + i);
            receivers[i] = address(to);
            iovecs[i] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let header = &mut messages[i].msg_hdr;
            header.msg_name = (&raw mut receivers[i]).cast();
            header.msg_namelen = ADDRESS;
            header.msg_iov = &raw mut iovecs[i];
            header.msg_iovlen = 1;
        }
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _;
        // SAFETY: `count` messages are filled; what they point to (receivers, iovecs, the room's bytes, which the kernel
        // only reads) lives until after the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Has the current runtime watch a socket for that alone.
///
/// # Errors
/// When it cannot be watched.
pub fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: the socket is open, owns its descriptor, gives no other one as long as it lives, and is not taken out.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Bytes of an address.
const ADDRESS: libc::socklen_t = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn address(of: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: of.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(of.ip().octets()) },
        sin_zero: [0; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::os::fd::AsFd;

    fn socket() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("not of IPv4") };
        (socket, address)
    }

    #[test]
    fn datagrams_arrive_whole_in_order_and_from_their_sender() {
        let ((left, from), (right, to)) = (socket(), socket());
        let mut outbox = Outbox::default();
        let texts: Vec<String> = (0..MOST + 3).map(|i| "x".repeat(i * 10)).collect();
        for text in &texts {
            outbox.room.extend_from_slice(text.as_bytes());
            outbox.push(to);
        }
        assert_eq!(outbox.send(left.as_fd(), 0).unwrap(), MOST);
        assert_eq!(outbox.send(left.as_fd(), MOST).unwrap(), 3);
        let mut inbox = Inbox::new(100);
        let mut heard = Vec::new();
        assert!(!inbox.receive(right.as_fd()).unwrap(), "there is more");
        heard.extend(inbox.iter().map(|(bytes, of)| (String::from_utf8(bytes.to_vec()).unwrap(), of)));
        assert!(inbox.receive(right.as_fd()).unwrap(), "that was all");
        heard.extend(inbox.iter().map(|(bytes, of)| (String::from_utf8(bytes.to_vec()).unwrap(), of)));
        assert!(heard.iter().all(|(_, of)| *of == from));
        // The last one is longer than the room.
        assert!(
            heard.iter().zip(&texts).all(|((heard, _), text)| heard == text || (heard.len(), text.len()) == (100, 110))
        );
        let nothing = inbox.receive(right.as_fd());
        assert_eq!((nothing.unwrap_err().kind(), inbox.iter().count()), (io::ErrorKind::WouldBlock, 0));
    }
}
