//! What a device is told: options when it is made, configuration at any time, and constants that tests shorten.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{PresharedKey, PrivateKey, PublicKey, TapOffload};

/// The whole wanted state. [`Device::configure`](crate::Device::configure) compares it with the present one; sessions
/// of unchanged peers go on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The device's key. Another key ends all sessions.
    pub private_key: PrivateKey,
    /// All peers; those that are missing are forgotten at once, with their keys.
    pub peers: Vec<Peer>,
}

/// One peer as wanted.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its key, by which it is known.
    pub public_key: PublicKey,
    /// A further shared secret. Changing it ends the peer's sessions.
    pub preshared_key: Option<PresharedKey>,
    /// Where it listens; without one it has to speak first. A peer that speaks from elsewhere is answered there, until
    /// the configuration names another endpoint than it did before.
    pub endpoint: Option<SocketAddr>,
    /// The inner addresses it may send from, and whose packets it is sent. No two peers may have the same prefix; the
    /// longest prefix wins.
    pub allowed_ips: Vec<IpNet>,
    /// Send something at least this often, so that a firewall on the way keeps the path open. None: only when needed.
    pub keepalive: Option<Duration>,
}

/// How a device is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The interface's name, made in the network namespace of the calling thread; 1 to 15 bytes.
    pub name: String,
    /// Address and port of the UDP socket. `[::]` takes IPv4 too; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// MTU of the interface in bytes: the path's MTU less 60 (IPv4) or 80 (IPv6).
    pub mtu: u32,
}

/// What only tests and measurements change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// The protocol's constants.
    pub timers: Timers,
    /// When handshakes are answered by a cookie.
    pub limits: Limits,
    /// Use less than the kernel has.
    pub offload: OffloadLimit,
    /// UDP ports whose datagrams may be joined as VXLAN (RFC 7348): IANA's, that of skep's encrypted networks, Linux'.
    pub vxlan_ports: Vec<u16>,
    /// Threads that seal, and as many that open; at least one. None: as many as the machine's processors suggest.
    pub threads: Option<usize>,
}

impl Tuning {
    /// Threads each way besides the one that reads.
    pub(crate) fn helpers(&self) -> usize {
        // Half of the processors each way: those whose packets these are need some, too. One or two processors have none to
        // spare, and eight or more carry what a link carries with four.
        let usual = || (std::thread::available_parallelism().map_or(1, usize::from) / 2).clamp(1, MAX_THREADS);
        self.threads.unwrap_or_else(usual).saturating_sub(1)
    }
}

/// Threads each way.
const MAX_THREADS: usize = 4;

/// Constants of the protocol (WireGuard paper, section 6.1). All devices of a network keep the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timers {
    /// The initiator of a session makes a new one when it sends after this time.
    pub rekey_after: Duration,
    /// No session is used after this time; three times this, and all keys are wiped.
    pub reject_after: Duration,
    /// An initiation without an answer is repeated after this time, plus up to `rekey_jitter`.
    pub rekey_timeout: Duration,
    /// See `rekey_timeout`; so that two peers do not collide for ever.
    pub rekey_jitter: Duration,
    /// After this time without an answer the handshake is given up until there is something to send.
    pub rekey_attempt: Duration,
    /// Who received data and has had nothing to send for this time sends an empty packet.
    pub keepalive: Duration,
    /// A new session after this many messages.
    pub rekey_after_messages: u64,
    /// No session is used beyond this many messages.
    pub reject_after_messages: u64,
}

/// Protection against strangers that make the device work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Above this many handshake messages a second, a sender must first show by a cookie that it is where it says.
    pub handshakes_per_second: u32,
    /// Of those that showed it, each address (IPv6: each /64) may send this many a second …
    pub per_address_per_second: u32,
    /// … and this many at once.
    pub per_address_burst: u32,
}

/// The most that is asked of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadLimit {
    /// On the interface.
    pub tap: TapOffload,
    /// On the socket, both ways.
    pub udp: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            timers: Timers::default(),
            limits: Limits::default(),
            offload: OffloadLimit { tap: TapOffload::Tunnel, udp: true },
            vxlan_ports: vec![4789, 4790, 8472],
            threads: None,
        }
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            rekey_after: Duration::from_secs(120),
            reject_after: Duration::from_secs(180),
            rekey_timeout: Duration::from_secs(5),
            rekey_jitter: Duration::from_millis(333),
            rekey_attempt: Duration::from_secs(90),
            keepalive: Duration::from_secs(10),
            rekey_after_messages: 1 << 60,
            // The replay window must not reach beyond the last number (paper, section 6.1: 2^64 - 2^13 - 1).
            reject_after_messages: u64::MAX - (1 << 13),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        // An initiation costs some 0.1 ms: 256 a second are 3 % of a core. A cluster whose nodes all come back at
        // once is slowed by one cookie each, no more.
        Limits { handshakes_per_second: 256, per_address_per_second: 20, per_address_burst: 5 }
    }
}
