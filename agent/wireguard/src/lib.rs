//! A WireGuard device in userspace, for kernels that have none.
//!
//! [`Device::open`] makes a network interface (a TAP) and a UDP socket and starts its threads; [`Device::configure`]
//! gives it key and peers; [`Device::status`] tells what it sees. It speaks the protocol of the WireGuard paper
//! (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", NDSS 2017) and works with any other implementation.
//!
//! What makes it fast is batching: packets cross the interface and the socket in runs of some 45 (virtio-net headers
//! with TCP, UDP and VXLAN segmentation on one side, `UDP_SEGMENT` and `UDP_GRO` on the other), and are sealed in place.
//!
//! The protocol is a value without I/O, clock or randomness of its own (`peer`, `noise`), and so are cutting
//! and joining of packets (`gso`); `device` are the threads around them and `sys` the calls to the kernel.

mod allowed;
mod config;
mod device;
mod error;
mod gso;
mod keys;
mod noise;
mod peer;
mod status;
mod sys;

pub use config::{Config, Limits, OffloadLimit, Options, Peer, Timers, Tuning};
pub use device::{Device, Handover};
pub use error::Error;
pub use keys::{InvalidKey, PresharedKey, PrivateKey, PublicKey};
pub use status::{Counters, Offloads, PeerStatus, Status, TapOffload};
