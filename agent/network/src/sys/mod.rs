//! What touches the kernel directly: namespaces, netlink sockets, passing of file descriptors, runs of datagrams.
#![allow(
    unsafe_code,
    reason = "unshare(2) may change what other threads rely on; recvmmsg(2) and sendmmsg(2) have no safe wrapper"
)]

pub mod datagrams;
pub mod detach;
pub mod fds;
pub mod netlink;
pub mod netns;
pub mod notices;
