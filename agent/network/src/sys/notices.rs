//! What the kernel tells of changes in a network namespace, by whomever: one non-blocking look costs one system call.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::netns::Netns;

/// Groups of rtnetlink (include/uapi/linux/rtnetlink.h): links, neighbours, addresses, routes and rules of both families.
const ROUTE_GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;
/// The group of nf_tables (`NFNLGRP_NFTABLES` is 7).
const NFTABLES_GROUP: u32 = 1 << 6;

/// What changed in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Rules.
    pub rules: bool,
    /// Links and what belongs to them.
    pub links: bool,
}

/// Sockets that hear of changes. They keep the namespace alive: who removes it drops them first.
#[derive(Debug, Default)]
pub struct Notices {
    sockets: Vec<OwnedFd>,
}

impl Notices {
    /// Of rules, and with `links` also of links and what belongs to them.
    ///
    /// # Errors
    /// Those of setns(2), socket(2) and bind(2).
    fn open(netns: &Netns, links: bool) -> io::Result<Self> {
        netns.enter(|| {
            let mut sockets = vec![listen(Some(netlink::NETFILTER), NFTABLES_GROUP)?];
            if links {
                sockets.push(listen(None, ROUTE_GROUPS)?);
            }
            Ok(Self { sockets })
        })?
    }

    /// What changed since the last look. At the first one everything may have.
    pub fn changed(&mut self, netns: &Netns, links: bool) -> Heard {
        if self.sockets.is_empty() {
            match Self::open(netns, links) {
                Ok(notices) => *self = notices,
                Err(error) => tracing::warn!(%error, "changes in a network namespace cannot be heard"),
            }
            return Heard { rules: true, links: true };
        }
        let mut heard = self.sockets.iter().map(drain);
        Heard { rules: heard.next().unwrap_or_default(), links: heard.next().unwrap_or_default() }
    }
}

fn listen(protocol: Option<rustix::net::Protocol>, groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    Ok(fd)
}

fn drain(socket: &OwnedFd) -> bool {
    let mut changed = false;
    loop {
        // What it was does not matter: all is looked at.
        match recv(socket, &mut [0u8; 16][..], RecvFlags::TRUNC) {
            Ok(_) => changed = true,
            Err(rustix::io::Errno::AGAIN) => return changed,
            Err(rustix::io::Errno::INTR) => {}
            // More than the socket holds: something changed, and the next look goes on.
            Err(_) => return true,
        }
    }
}
