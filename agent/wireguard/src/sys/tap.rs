//! The network interface: a TAP with virtio-net headers (Linux `Documentation/networking/tuntap.rst`).
//!
//! TAP and not TUN: the kernel takes a packet whose inner TCP is to be segmented below VXLAN only with an Ethernet
//! header before it. The interface has NOARP, so the Ethernet addresses mean nothing.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::TapOffload;

/// Bytes of `struct virtio_net_hdr_v1_hash_tunnel` (linux/virtio_net.h), before each frame in both directions.
pub const VNET_HEADER: usize = 24;

// linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8_u32 as libc::Ioctl;
const TUN_F_CSUM_TSO_ECN: libc::c_uint = 0x0f;
const TUN_F_USO: libc::c_uint = 0x60;
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x180;

/// A step that failed, for the error's text.
pub type Failed = (&'static str, io::Error);

/// Makes the interface in the calling thread's network namespace, with the most offload up to `limit` that the kernel
/// has. It is not up, has the MTU and no address; it is gone when the last copy of the descriptor is closed.
pub fn open(name: &str, mtu: u32, limit: TapOffload) -> Result<(OwnedFd, TapOffload), Failed> {
    // SAFETY: a constant path with a terminating zero; the result is checked and then owned here alone.
    let tap = unsafe {
        let raw = libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC);
        if raw < 0 {
            return Err(("opening /dev/net/tun", io::Error::last_os_error()));
        }
        OwnedFd::from_raw_fd(raw)
    };
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as i16;
    ioctl(tap.as_fd(), TUNSETIFF, &mut request).map_err(|error| ("making it", error))?;
    let mut size = VNET_HEADER as libc::c_int;
    ioctl(tap.as_fd(), TUNSETVNETHDRSZ, &mut size).map_err(|error| ("setting the size of packet headers", error))?;
    let offload = set_offload(tap.as_fd(), limit)?;

    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| ("opening a socket to set it up", error.into()))?;
    let mut request = named(name);
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    ioctl(socket.as_fd(), libc::SIOCSIFMTU as libc::Ioctl, &mut request).map_err(|error| ("setting its MTU", error))?;
    let mut request = named(name);
    ioctl(socket.as_fd(), libc::SIOCGIFFLAGS as libc::Ioctl, &mut request)
        .map_err(|error| ("reading its flags", error))?;
    // SAFETY: the kernel has just written the flags; any value of the union's short is valid.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_NOARP as i16 };
    ioctl(socket.as_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &mut request)
        .map_err(|error| ("setting it to work without ARP", error))?;
    Ok((tap, offload))
}

/// Asks for `limit`, then for one step less at a time. The versions of the kernel are not asked: distributions take
/// features back.
fn set_offload(tap: BorrowedFd<'_>, limit: TapOffload) -> Result<TapOffload, Failed> {
    let steps = [
        (TapOffload::Tunnel, TUN_F_CSUM_TSO_ECN | TUN_F_USO | TUN_F_UDP_TUNNEL_GSO),
        (TapOffload::Uso, TUN_F_CSUM_TSO_ECN | TUN_F_USO),
        (TapOffload::Tso, TUN_F_CSUM_TSO_ECN),
        (TapOffload::None, 0),
    ];
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for (offload, bits) in steps.into_iter().filter(|(offload, _)| *offload <= limit) {
        // SAFETY: this request takes its argument by value.
        if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(bits)) } == 0 {
            return Ok(offload);
        }
        last = io::Error::last_os_error();
    }
    Err(("setting its offloads", last))
}

/// The interface's name and Ethernet address, asked by the descriptor: true in any network namespace.
pub fn identity(tap: BorrowedFd<'_>) -> io::Result<(String, [u8; 6])> {
    let mut request = named("");
    ioctl(tap, TUNGETIFF, &mut request)?;
    let name: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    ioctl(tap, libc::SIOCGIFHWADDR as libc::Ioctl, &mut request)?;
    // SAFETY: the kernel has just written the address; any bytes are valid.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok((String::from_utf8_lossy(&name).into_owned(), std::array::from_fn(|i| data[i] as u8)))
}

fn named(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// An ioctl whose argument the kernel reads and may write: by `&mut`, or the compiler believes it unchanged.
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller pairs the request with the type that the kernel reads and writes for it (ifreq or int), and
    // the reference is valid for the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
