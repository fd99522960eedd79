//! The border to the WireGuard device, which is in the process beside the daemon: it goes on when the daemon restarts.
//!
//! Private keys do not cross it: both sides read them from the node's folder of keys, by the public key as name.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A public key of WireGuard (Curve25519).
pub type Key = [u8; 32];

/// The whole wanted state of the node's WireGuard link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Name of the link.
    pub link: String,
    /// Where others reach it. Where the address is not one of the host, it listens on all.
    pub listen: SocketAddr,
    /// MTU of the link in bytes.
    pub mtu: u32,
    /// The node's address on it.
    pub address: Ipv4Addr,
    /// All nodes' addresses: they are reached by this link.
    pub range: Ipv4Net,
    /// Folder of the node's keys.
    pub keys: PathBuf,
    /// Which of them to use.
    pub key: Key,
    /// The other nodes. No two have a key, or an address, in common.
    pub peers: Vec<TunnelPeer>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelPeer {
    /// The key that it announced first.
    pub key: Key,
    /// The key that it goes over to: used from its first handshake on.
    pub next: Option<Key>,
    /// Where it is reached.
    pub endpoint: SocketAddr,
    /// Its address on the link. It may send as that and nothing else.
    pub address: Ipv4Addr,
}

/// What encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TunnelPath {
    /// The kernel's WireGuard.
    Kernel,
    /// Our own, in `skep net`.
    Userspace,
}

impl TunnelPath {
    /// One word, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// The link as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// What encrypts.
    pub path: TunnelPath,
    /// The key in use.
    pub key: Key,
    /// The other nodes.
    pub peers: Vec<TunnelPeerStatus>,
}

/// Another node, as the link sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelPeerStatus {
    /// Its key.
    pub key: Key,
    /// Where it was heard last.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was finished, in milliseconds since 1970.
    pub handshake_ms: Option<u64>,
    /// Bytes that came from it.
    pub received: u64,
    /// Bytes that went to it.
    pub sent: u64,
}

/// Keeps the node's WireGuard link.
#[async_trait::async_trait]
pub trait Tunnels: Send + Sync {
    /// Brings the link to that state, and keeps it there.
    ///
    /// # Errors
    /// When the host cannot, which the text explains, or nobody is there to do it.
    async fn put_tunnel(&self, tunnel: Tunnel) -> io::Result<TunnelStatus>;

    /// Removes the link, if there is one.
    ///
    /// # Errors
    /// When nobody is there to do it.
    async fn remove_tunnel(&self) -> io::Result<()>;

    /// The link; `None` when there is none.
    ///
    /// # Errors
    /// When nobody is there to tell.
    async fn tunnel(&self) -> io::Result<Option<TunnelStatus>>;
}
