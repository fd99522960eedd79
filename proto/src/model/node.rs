//! Nodes: hosts of the cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::task::Platform;
use super::{Annotations, Labels, Meta, NodeId};

/// Label of a node that says what its tasks may be given besides what every node allows: words of [`Allowance`], separated
/// by commas.
pub const ALLOW_LABEL: &str = "io.skep.allow";

/// What a node must allow before a task of it may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowance {
    /// Privileged containers.
    Privileged,
    /// Devices of the node.
    Device,
}

impl Allowance {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Privileged, Self::Device];

    /// The word in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Device => "device",
        }
    }
}

/// What the operator wants of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name (usually empty) and labels.
    pub annotations: Annotations,
    /// Worker or manager.
    pub role: NodeRole,
    /// Whether it gets and keeps tasks.
    pub availability: Availability,
}

impl NodeSpec {
    /// Whether tasks of the node may have that.
    pub fn allows(&self, what: Allowance) -> bool {
        let allowed = self.annotations.labels.get(ALLOW_LABEL);
        allowed.is_some_and(|words| words.split(',').any(|word| word.trim() == what.as_str()))
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeRole {
    /// Runs tasks.
    Worker,
    /// Runs tasks and takes part in the control plane.
    Manager,
}

/// Whether a node gets and keeps tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Gets tasks.
    Active,
    /// Keeps its tasks and gets no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

/// What managers see of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Not heard of since a manager became leader.
    Unknown,
    /// Lost.
    Down,
    /// Has a session.
    Ready,
    /// Left, or was told to.
    Disconnected,
}

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeDescription {
    /// Host name, or `--node-name`.
    pub hostname: String,
    /// Operating system and architecture, in uname's form.
    pub platform: Platform,
    /// CPU in nano-CPUs that tasks may reserve.
    pub nano_cpus: i64,
    /// Memory in bytes that tasks may reserve.
    pub memory: i64,
    /// Generic resources by kind; of named ones, how many there are.
    pub generic: BTreeMap<String, u64>,
    /// Version of the daemon.
    pub engine_version: String,
    /// Labels of the daemon (constraint `engine.labels.*`).
    pub engine_labels: Labels,
    /// Plug-ins as (type, name): `("Network", "overlay")`.
    pub plugins: Vec<(String, String)>,
    /// Addresses at which other nodes reach its data path, one per family.
    pub data_path: Vec<IpAddr>,
    /// Named generic resources as (kind, name).
    pub named_generic: Vec<(String, String)>,
    /// What its certificate rests on; `None` until it tells.
    pub trust: Option<NodeTrust>,
    /// Its volumes whose tasks must run where they are.
    pub volumes: Vec<String>,
    /// How encrypted networks reach it; `None` while it cannot encrypt.
    pub wireguard: Option<WireGuard>,
    /// Its tasks have no addresses of IPv6, whatever the networks have. Daemons that do not tell had it.
    pub ipv4_only: bool,
}

impl NodeDescription {
    /// Whether a task of the node has an address that it was given.
    pub fn has(&self, address: &IpNet) -> bool {
        !(self.ipv4_only && matches!(address, IpNet::V6(_)))
    }
}

/// How other nodes speak WireGuard with a node. Only the node itself tells it, in a session of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WireGuard {
    /// UDP port at its data path's address.
    pub port: u16,
    /// Public key that it uses (Curve25519).
    pub key: [u8; 32],
    /// Public key that it will use once the other nodes know it.
    pub next: Option<[u8; 32]>,
}

/// What a node's certificate rests on: digests of root certificates, in the form of join tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeTrust {
    /// The roots that it trusts, in their order.
    pub roots: Vec<String>,
    /// The root that signed its certificate; empty when it is none of them.
    pub issuer: String,
}

/// A node as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Identity; the common name of its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// Wanted.
    pub spec: NodeSpec,
    /// Small number, unique among the nodes and not soon reused: zones, marks, MAC addresses and subnets derive from it.
    pub index: u16,
    /// What it told last.
    pub description: NodeDescription,
    /// Seen by the managers.
    pub state: NodeState,
    /// Why it is in that state, for people.
    pub message: String,
    /// Address its session came from.
    pub address: Option<IpAddr>,
    /// Set while it is a member of the Raft group.
    pub manager: Option<ManagerMembership>,
}

/// A node's part in the Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagerMembership {
    /// Raft's id for it; never reused.
    pub raft_id: u64,
    /// Where other managers and agents reach it.
    pub address: SocketAddr,
}
