//! Socket addresses as the kernel writes them.

use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for an IPv4 or IPv6 socket address, and how much of it is used.
#[derive(Clone, Copy)]
pub struct RawAddress {
    pub storage: libc::sockaddr_storage,
    pub len: libc::socklen_t,
}

impl RawAddress {
    /// An empty one, for the kernel to fill.
    pub fn empty() -> RawAddress {
        // SAFETY: sockaddr_storage is plain data for which all zeros is a valid value.
        let storage = unsafe { mem::zeroed() };
        RawAddress { storage, len: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// As a socket of this family takes it: an IPv6 socket takes IPv4 addresses mapped (RFC 4291, section 2.5.5.2).
    /// None for an IPv6 address on an IPv4 socket.
    pub fn new(address: SocketAddr, v6_socket: bool) -> Option<RawAddress> {
        let mut raw = RawAddress::empty();
        match (address, v6_socket) {
            (SocketAddr::V4(v4), false) => {
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                raw.put(value);
            }
            (SocketAddr::V4(v4), true) => raw.put(v6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))),
            (SocketAddr::V6(address), true) => raw.put(v6(address)),
            (SocketAddr::V6(_), false) => return None,
        }
        Some(raw)
    }

    fn put<T: Copy>(&mut self, value: T) {
        const { assert!(mem::size_of::<T>() <= mem::size_of::<libc::sockaddr_storage>()) };
        // SAFETY: T (sockaddr_in or sockaddr_in6) is plain data, no larger than the storage (checked above) and no
        // more aligned: sockaddr_storage is made for every sockaddr.
        unsafe { (&raw mut self.storage).cast::<T>().write(value) };
        self.len = mem::size_of::<T>() as libc::socklen_t;
    }

    /// What the kernel wrote; mapped IPv4 addresses come out as IPv4. None for another family.
    pub fn get(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds a sockaddr_in; it is large and aligned enough.
                let value = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(value.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(value.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that the storage holds a sockaddr_in6; it is large and aligned enough.
                let value = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                let (ip, port) = (Ipv6Addr::from(value.sin6_addr.s6_addr), u16::from_be(value.sin6_port));
                Some(match ip.to_ipv4_mapped() {
                    Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                    None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, value.sin6_scope_id)),
                })
            }
            _ => None,
        }
    }
}

fn v6(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for (text, v6_socket) in [("1.2.3.4:5", false), ("1.2.3.4:5", true), ("[2001:db8::1]:51820", true)] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::new(address, v6_socket).unwrap().get(), Some(address));
        }
        assert!(RawAddress::new("[::1]:1".parse().unwrap(), false).is_none());
        assert_eq!(RawAddress::empty().get(), None);
    }
}
