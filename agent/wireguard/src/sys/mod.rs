//! Calls to the kernel that have no safe wrapper: making the TAP (ioctl), runs of datagrams (sendmmsg, recvmmsg with
//! control messages), and wiping a value that does not wipe itself.
#![allow(unsafe_code, reason = "ioctl(2), sendmmsg(2), recvmmsg(2) and volatile writes have no safe wrapper here")]

mod address;
pub mod receive;
pub mod send;
pub mod socket;
pub mod tap;
pub mod wipe;
