//! What a device tells about itself.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::PublicKey;

/// How packets cross the interface, from fastest to slowest. Which one it is depends on the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TapOffload {
    /// Whole packets only, with finished checksums.
    None,
    /// TCP in runs of up to 64 KB.
    Tso,
    /// And UDP in runs (Linux 6.2), which carries VXLAN too.
    Uso,
    /// And TCP inside VXLAN in runs (Linux 6.17).
    Tunnel,
}

/// What the kernel lets the device do in runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// On the interface.
    pub tap: TapOffload,
    /// The socket sends runs of datagrams in one call (`UDP_SEGMENT`, Linux 4.18).
    pub udp_segment: bool,
    /// The socket receives runs of datagrams in one call (`UDP_GRO`, Linux 5.0).
    pub udp_gro: bool,
}

/// Counts since the device was made or taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that came from the interface and were sealed or queued.
    pub packets_sent: u64,
    /// Packets that were opened and written to the interface.
    pub packets_received: u64,
    /// Packets from the interface to an address that is no peer's.
    pub no_route: u64,
    /// Packets from the interface that were malformed.
    pub malformed_inside: u64,
    /// Packets dropped because no session came up: the queue was full or the peer silent.
    pub queue_dropped: u64,
    /// Sealed packets that the socket refused.
    pub send_failed: u64,
    /// Datagrams that are no message of WireGuard, or whose session is unknown.
    pub unknown: u64,
    /// Transport messages that could not be opened: forged, damaged or of another key.
    pub forged: u64,
    /// Transport messages whose number was seen before, or is too old.
    pub replayed: u64,
    /// Opened packets whose inner source is not the sending peer's.
    pub wrong_source: u64,
    /// Opened packets that are no IP packet.
    pub malformed_peer: u64,
    /// Frames that the interface refused.
    pub write_failed: u64,
    /// Handshake messages whose first code (mac1) was wrong: from someone who does not know the public key.
    pub handshakes_alien: u64,
    /// Handshake messages on which public-key cryptography was spent.
    pub handshakes_tried: u64,
    /// Handshake messages that were refused after that.
    pub handshakes_refused: u64,
    /// Handshake messages dropped because their sender was above its rate.
    pub handshakes_limited: u64,
    /// Cookies sent instead of an answer, because there was much to do.
    pub cookies_sent: u64,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its key.
    pub public_key: PublicKey,
    /// Where it was heard last, else where the configuration says it is.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake was finished.
    pub latest_handshake: Option<SystemTime>,
    /// How long ago that was by a clock that is not set back.
    pub handshake_age: Option<Duration>,
    /// Bytes received in messages that were authentic, as on the wire without IP and UDP.
    pub received_bytes: u64,
    /// Bytes sent, counted likewise.
    pub sent_bytes: u64,
}

/// The device now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The interface's name.
    pub name: String,
    /// Where the socket is bound; the port is the real one if 0 was asked for.
    pub listen: SocketAddr,
    /// What the kernel lets it do.
    pub offloads: Offloads,
    /// Counts.
    pub counters: Counters,
    /// The peers, by key.
    pub peers: Vec<PeerStatus>,
}
