//! What touches the kernel directly: namespaces, netlink sockets, passing of file descriptors.
#![allow(unsafe_code, reason = "unshare(2) may change what other threads rely on, and has no safe wrapper")]

pub mod detach;
pub mod fds;
pub mod netlink;
pub mod netns;
pub mod notices;
