//! The cluster itself.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;

use super::{Annotations, ClusterId, Meta};

/// What the operator wants of the cluster (Engine API, `SwarmSpec`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Name (`default`) and labels.
    pub annotations: Annotations,
    /// Finished tasks kept per slot.
    pub task_history: u64,
    /// Raft entries between snapshots, as Docker counts them; kept for inspection, ours are counted in bytes.
    pub snapshot_interval: u64,
    /// Old snapshots kept.
    pub keep_old_snapshots: u64,
    /// Entries kept after a snapshot for slow followers.
    pub log_entries_for_slow_followers: u64,
    /// Raft's heartbeat in ticks, for inspection.
    pub heartbeat_tick: u32,
    /// Raft's election timeout in ticks, for inspection.
    pub election_tick: u32,
    /// Time between two heartbeats of a node.
    pub heartbeat_period: Duration,
    /// Life of a node certificate.
    pub cert_expiry: Duration,
    /// Managers need the unlock key after a restart.
    pub autolock: bool,
    /// Grows with each request for a new root.
    pub force_rotate: u64,
}

impl Default for ClusterSpec {
    /// Docker's defaults, but for the heartbeat: 2 s, so that a lost node is seen within 6.
    fn default() -> Self {
        Self {
            annotations: Annotations { name: "default".into(), ..Annotations::default() },
            task_history: 5,
            snapshot_interval: 10_000,
            keep_old_snapshots: 0,
            log_entries_for_slow_followers: 500,
            heartbeat_tick: 1,
            election_tick: 10,
            heartbeat_period: Duration::from_secs(2),
            cert_expiry: Duration::from_secs(90 * 24 * 3600),
            autolock: false,
            force_rotate: 0,
        }
    }
}

/// The cluster as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Identity.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// Wanted.
    pub spec: ClusterSpec,
    /// Root certificate and key.
    pub root_ca: RootCa,
    /// Tokens with which nodes join.
    pub join_tokens: JoinTokens,
    /// Pools that subnets of networks are taken from, in order.
    pub address_pools: Vec<IpNet>,
    /// Prefix length of those subnets.
    pub subnet_size: u8,
    /// UDP port of the data path.
    pub data_path_port: u16,
    /// Lowest format level that every manager understands.
    pub format: u8,
    /// The key that unlocks managers, while they are locked.
    pub unlock: Option<Unlock>,
    /// The root that is about to take the place of the present one.
    pub rotation: Option<RootRotation>,
    /// The routing mesh was removed and not made again: ports are published in host mode alone.
    pub ingress_removed: bool,
}

/// A new root on its way to every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRotation {
    /// The new root and its key, which sign from the beginning.
    pub root: RootCa,
    /// The new root's key signed by the present root, PEM: whoever trusts the present one trusts what the new one signs.
    pub cross_signed: String,
    /// Tokens that are in force afterwards: they name the new root.
    pub join_tokens: JoinTokens,
}

/// The key that unlocks managers.
#[derive(Clone, PartialEq, Eq)]
pub struct Unlock {
    /// `SWMKEY-1-…`. Sealed with the log; `Debug` prints nothing.
    pub key: String,
}

impl fmt::Debug for Unlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unlock(…)")
    }
}

/// The cluster's certificate authority.
#[derive(Clone, PartialEq, Eq)]
pub struct RootCa {
    /// Root certificates that are trusted, PEM.
    pub certificates: String,
    /// The key that signs, PEM. Sealed with the log; `Debug` prints nothing.
    pub key: String,
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootCa(…)")
    }
}

/// Tokens with which nodes join, in Docker's form `SWMTKN-1-…`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct JoinTokens {
    /// Admits workers.
    pub worker: String,
    /// Admits managers.
    pub manager: String,
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinTokens(…)")
    }
}
