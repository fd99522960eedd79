//! The protocol's cryptography (WireGuard paper, section 5.4; Noise_IKpsk2 of the Noise specification, revision 34):
//! handshake, cookies, transport keys, replay window. No I/O, clock or source of randomness: all are given.

pub mod cookie;
pub mod crypto;
pub mod gate;
pub mod handshake;
pub mod message;
pub mod replay;
pub mod session;
pub mod tai64n;
