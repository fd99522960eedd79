//! Sandboxes and bridges as the engine needs them: the border to the network layer.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::IpNet;
use skep_proto::model::NetworkId;
use skep_proto::model::container::DnsConfig;
use skep_proto::model::doctor::{Check, Known, Question};
use skep_proto::model::engine::PortBinding;
use skep_proto::model::network::Subnet;

/// A sandbox to be made for a container that no task owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxRequest {
    /// Its id: the container's, 64 hexadecimal digits.
    pub id: String,
    /// Networks of the cluster that it joins, in the order of its links.
    pub overlays: Vec<OverlayJoin>,
    /// Bridges that it joins; their links follow.
    pub bridges: Vec<BridgeJoin>,
    /// Ports of the node that lead into it. Without a `host_port` the network layer chooses one.
    pub ports: Vec<PortBinding>,
    /// Resolver settings; empty ones are the node's.
    pub dns: DnsConfig,
}

/// A wish to join a network of the cluster, for which the managers gave an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayJoin {
    /// The network.
    pub network: NetworkId,
    /// Its addresses there, with the network's prefix length: at least one.
    pub addresses: Vec<IpNet>,
    /// Names that others on this node resolve to it.
    pub names: Vec<String>,
}

/// A wish to join a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeJoin {
    /// The bridge's name; `bridge` is the default one, which always exists.
    pub bridge: String,
    /// Addresses asked for; none for the next free one.
    pub addresses: Vec<IpAddr>,
    /// Names that others on the bridge resolve to it. Empty on the default bridge, as with Docker.
    pub names: Vec<String>,
}

/// A sandbox as it is: a container's or a task's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sandbox {
    /// A container's id, or a task's.
    pub id: String,
    /// The file that keeps its namespace.
    pub netns: PathBuf,
    /// Its links, in order.
    pub links: Vec<Link>,
    /// Open ports, each with its number.
    pub ports: Vec<PortBinding>,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// A link of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where it leads.
    pub to: LinkTo,
    /// Addresses with the network's prefix length.
    pub addresses: Vec<IpNet>,
    /// Gateways, one per family.
    pub gateways: Vec<IpAddr>,
    /// Ethernet address.
    pub mac: [u8; 6],
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkTo {
    /// To the bridge of that name.
    Bridge(String),
    /// To a network of the cluster.
    Cluster {
        /// Its id.
        id: NetworkId,
        /// Its name.
        name: String,
    },
    /// To the node itself: the way of the routing mesh, which is shown to nobody.
    Node,
}

/// A bridge to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeRequest {
    /// Its name.
    pub name: String,
    /// Subnets asked for, one per family at most; the others are chosen.
    pub subnets: Vec<Subnet>,
    /// No way out.
    pub internal: bool,
    /// IPv6 beside IPv4.
    pub ipv6: bool,
}

/// A bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its subnets, IPv4 first, with the node's address as the gateway.
    pub subnets: Vec<Subnet>,
}

/// What the network layer refuses or fails to do.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A port or an address is taken (`Bind for 0.0.0.0:8080 failed: port is already allocated`).
    #[error("{0}")]
    Taken(String),
    /// The request makes no sense: an address outside its subnet, subnets that overlap.
    #[error("{0}")]
    Invalid(String),
    /// No bridge of that name.
    #[error("network {0} not found")]
    NoSuchBridge(String),
    /// Sandboxes are on the bridge.
    #[error("{0}")]
    InUse(String),
    /// Something broke on this side.
    #[error("{context}")]
    Failed {
        /// What was being done.
        context: String,
        /// What broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Sandboxes and bridges of this node. Every call may be repeated.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Makes a sandbox, or gives the one that has the id.
    ///
    /// # Cancel safety
    /// A dropped call may have made it; [`Self::remove`] takes it away.
    async fn ensure(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError>;

    /// Gives a sandbox that is there other networks or other names on them; links that stay are not touched.
    ///
    /// # Cancel safety
    /// A dropped call goes on.
    async fn reshape(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError>;

    /// Takes a sandbox away, if it is there. Its ports and addresses are free when this returns.
    async fn remove(&self, id: &str) -> Result<(), SandboxError>;

    /// All sandboxes, also those of tasks. Called for each list of containers: it reads memory only.
    async fn list(&self) -> Result<Vec<Sandbox>, SandboxError>;

    /// Networks of the cluster that the managers told of: those that this node uses.
    fn overlays(&self) -> Vec<NetworkId>;

    /// Subnets of the routing mesh.
    fn mesh_subnets(&self) -> Vec<IpNet> {
        Vec::new()
    }

    /// Makes a bridge, or gives the one that has the name.
    async fn ensure_bridge(&self, request: BridgeRequest) -> Result<Bridge, SandboxError>;

    /// Removes a bridge that no sandbox is on, if it is there.
    async fn remove_bridge(&self, name: &str) -> Result<(), SandboxError>;

    /// All bridges, the default one among them.
    async fn bridges(&self) -> Result<Vec<Bridge>, SandboxError>;

    /// How traffic between nodes is protected.
    async fn encryption(&self) -> Encryption {
        Encryption::default()
    }

    /// What `skep doctor` says of the node's network.
    async fn examine(&self, _question: &Question) -> Examined {
        Examined::default()
    }
}

/// What was seen of the node's network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Examined {
    /// This node's id, in a cluster.
    pub node: Option<String>,
    /// What was looked at, what matters most first.
    pub checks: Vec<Check>,
    /// What the node knows of the cluster.
    pub known: Option<Known>,
}

/// How traffic between nodes is protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encryption {
    /// What encrypts, in one word; `None` when nothing does.
    pub path: Option<String>,
    /// What an operator must know.
    pub warnings: Vec<String>,
}
