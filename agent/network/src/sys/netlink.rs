//! Netlink sockets of a given network namespace, used synchronously.
//!
//! The kernel handles rtnetlink and netfilter requests within sendmsg(2), so the answers are waiting when it returns:
//! no request ever waits for an event loop, and one system call carries a whole list of requests.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};

use super::netns::Netns;

/// Families of netlink that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nf_tables and conntrack.
    Netfilter,
}

/// Room for requests and their answers, in bytes: a map of 1000 backends takes 28 KiB, a dump comes in pieces.
const BUFFER: usize = 8 << 20;
/// Size of one read. The kernel's dump messages are at most 32 KiB (netlink_dump), errors repeat the request's header.
const READ: usize = 64 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const HEADER: usize = 16;

/// A netlink socket.
#[derive(Debug)]
pub struct NetlinkSocket {
    fd: OwnedFd,
}

/// What the kernel answered.
#[derive(Debug, Default)]
pub struct Answer {
    /// Payloads of messages other than errors, in order, without the netlink header.
    pub messages: Vec<Vec<u8>>,
    /// Requests that were refused: sequence number and error.
    pub errors: Vec<(u32, io::Error)>,
    /// Requests that were acknowledged.
    pub acknowledged: usize,
}

impl NetlinkSocket {
    /// A socket in the namespace. It stays there, whatever thread uses it.
    ///
    /// # Errors
    /// Those of setns(2), socket(2) and bind(2).
    pub fn open(netns: &Netns, protocol: Protocol) -> io::Result<Self> {
        netns.enter(|| Self::open_here(protocol))?
    }

    /// A socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn open_here(protocol: Protocol) -> io::Result<Self> {
        use rustix::net::netlink;
        let protocol = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_send_buffer_size_force(&fd, BUFFER)?;
        sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER)?;
        Ok(Self { fd })
    }

    /// Sends one or more requests and reads until nothing more is waiting and no dump is unfinished.
    ///
    /// # Errors
    /// Those of the socket. Refusals of single requests are in the answer.
    pub fn request(&mut self, bytes: &[u8]) -> io::Result<Answer> {
        send(&self.fd, bytes, SendFlags::empty())?;
        let mut answer = Answer::default();
        let mut buffer = vec![0; READ];
        let mut unfinished = false;
        loop {
            let flags = if unfinished { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
            let length = match recv(&self.fd, &mut buffer[..], flags) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(answer),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            unfinished = read_messages(&buffer[..length], &mut answer);
        }
    }

    /// Sends a transaction of nf_tables.
    ///
    /// # Errors
    /// The first refusal; then nothing of the transaction took effect.
    pub fn batch(&mut self, bytes: &[u8]) -> io::Result<()> {
        let answer = self.request(bytes)?;
        match answer.errors.into_iter().next() {
            Some((sequence, error)) => {
                tracing::debug!(sequence, %error, "the kernel refused a change of rules");
                Err(error)
            }
            None if answer.acknowledged == 0 => Err(io::Error::other("the kernel did not acknowledge the transaction")),
            None => Ok(()),
        }
    }
}

/// Takes the messages of one read apart; true when a dump goes on.
fn read_messages(mut bytes: &[u8], answer: &mut Answer) -> bool {
    let mut unfinished = false;
    while let Some(header) = bytes.get(..HEADER) {
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let Some(payload) = bytes.get(HEADER..length) else { break };
        match kind {
            NLMSG_ERROR => {
                unfinished = false;
                match payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes) {
                    Some(0) => answer.acknowledged += 1,
                    code => answer.errors.push((word(8), io::Error::from_raw_os_error(-code.unwrap_or(-5)))),
                }
            }
            NLMSG_DONE => unfinished = false,
            _ => {
                unfinished = flags & NLM_F_MULTI != 0;
                answer.messages.push(payload.to_vec());
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    unfinished
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_messages(&bytes, &mut Answer::default());
        }
    }
}
