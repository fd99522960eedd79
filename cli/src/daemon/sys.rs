//! What the standard library does not offer.
#![allow(unsafe_code)] // getifaddrs(3) hands out a linked list of C structures

use std::ffi::CStr;
use std::net::Ipv4Addr;

/// IPv4 addresses of this network namespace, with the names of their interfaces. Empty when they cannot be had.
pub fn ipv4_addresses() -> Vec<(String, Ipv4Addr)> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer; on success it is freed below, exactly once.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = list;
    while !at.is_null() {
        // SAFETY: `at` is a node of the list that getifaddrs made and that has not been freed.
        let entry = unsafe { &*at };
        at = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: an address that is there begins with its family.
        let family = i32::from(unsafe { (*entry.ifa_addr).sa_family });
        if family == libc::AF_INET {
            // SAFETY: an address of family AF_INET is a sockaddr_in; it may lie unaligned.
            let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            // SAFETY: the name is a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            found.push((name, Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes())));
        }
    }
    // SAFETY: the list came from getifaddrs, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    found
}
