//! The UDP socket and its options.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// Bytes of either buffer: some 5 ms at 10 Gbit/s, so that a thread may be away for a moment.
const BUFFER: libc::c_int = 8 << 20;

/// A socket that is bound, and what it can do.
pub struct Socket {
    pub fd: OwnedFd,
    pub listen: SocketAddr,
    pub udp_segment: bool,
    pub udp_gro: bool,
}

/// Makes and binds the socket; `offload` false leaves its runs of datagrams off.
pub fn open(listen: SocketAddr, offload: bool) -> Result<Socket, (&'static str, io::Error)> {
    let family = if listen.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let fd = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| ("opening it", error.into()))?;
    if listen.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, false).map_err(|error| ("taking IPv4 too", error.into()))?;
    }
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // Without CAP_NET_ADMIN over the initial namespace the system's limit stands. Slower, not wrong.
        if set(fd.as_fd(), libc::SOL_SOCKET, force, BUFFER).is_err() {
            let _ = set(fd.as_fd(), libc::SOL_SOCKET, plain, BUFFER);
        }
    }
    // Datagrams may be cut on the way, as those of the kernel's WireGuard: an unauthenticated ICMP message must not
    // shrink the path. Old kernels may refuse; then the path's MTU is honoured.
    let _ = set(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    if listen.is_ipv6() {
        let _ = set(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    }
    let udp_segment = offload && can_segment(fd.as_fd());
    let udp_gro = offload && set(fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
    bind(&fd, &listen).map_err(|error| ("binding it", error.into()))?;
    let listen = address(fd.as_fd()).map_err(|error| ("reading its address", error))?;
    Ok(Socket { fd, listen, udp_segment, udp_gro })
}

/// Where a socket is bound.
pub fn address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    SocketAddr::try_from(getsockname(fd)?).map_err(|_| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

fn set(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: all options set here take an int; the pointer is to one that lives during the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn can_segment(fd: BorrowedFd<'_>) -> bool {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int; value and size live during the call and say how much may be written.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw mut value).cast(), &raw mut size)
    };
    result == 0
}
