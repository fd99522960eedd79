//! What can go wrong where the caller has to know.

use std::{io, net::SocketAddr};

use ipnet::IpNet;

use crate::PublicKey;

/// Why a device could not be made, configured or handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name does not fit the kernel's limit or characters.
    #[error("interface name {name:?} must have 1 to 15 bytes, none of them a slash or a space")]
    Name {
        /// The name given.
        name: String,
    },
    /// The MTU is outside what IPv6 needs and a packet can hold.
    #[error("MTU {mtu} is outside 1280 to 65455")]
    Mtu {
        /// The MTU given.
        mtu: u32,
    },
    /// The interface could not be made.
    #[error("interface {name}: {step} (is /dev/net/tun there, is the name free, has the process CAP_NET_ADMIN?)")]
    Interface {
        /// Its name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The UDP socket could not be made.
    #[error("UDP socket {listen}: {step}")]
    Socket {
        /// The address wanted.
        listen: SocketAddr,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or its wake-up could not be made.
    #[error("thread {name} of the WireGuard device")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// One public key is named by two peers.
    #[error("peer {peer} is in the configuration twice")]
    PeerTwice {
        /// The key.
        peer: PublicKey,
    },
    /// A peer has the device's own key.
    #[error("peer {peer} has this device's own key")]
    OwnKey {
        /// The key.
        peer: PublicKey,
    },
    /// A public key that would give the same secret with every private key (RFC 7748, section 6.1).
    #[error("peer {peer} has a key that keeps no secret")]
    WeakKey {
        /// The key.
        peer: PublicKey,
    },
    /// Two peers claim the same addresses.
    #[error("addresses {net} are allowed to both {first} and {second}")]
    AllowedTwice {
        /// The addresses.
        net: IpNet,
        /// The peer that has them.
        first: PublicKey,
        /// The peer that wants them too.
        second: PublicKey,
    },
    /// More peers than a device can tell apart.
    #[error("{count} peers, a device can have {limit}")]
    TooManyPeers {
        /// How many were given.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The handed over state is not one that this version reads.
    #[error("the handed over state cannot be taken over: {reason}; start the device anew")]
    Handover {
        /// Why.
        reason: &'static str,
    },
    /// The kernel refused a file descriptor's copy.
    #[error("cannot copy a file descriptor of the device")]
    Duplicate {
        /// What the kernel said.
        source: io::Error,
    },
}
