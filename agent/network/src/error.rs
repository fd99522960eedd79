//! What can go wrong, as the agent treats it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use skep_proto::model::NetworkId;
use skep_proto::model::service::Protocol;

/// An operation on the node's network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A setting that cannot be.
    #[error("network setting: {what}")]
    Config {
        /// Which and why.
        what: String,
    },
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Kernel {
        /// What was to be done.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The managers have not told this node of the network yet.
    #[error("network {network} is not known on this node yet")]
    UnknownNetwork {
        /// The network.
        network: NetworkId,
    },
    /// No local bridge has that name.
    #[error("network {name} not found")]
    UnknownBridge {
        /// The name asked for.
        name: String,
    },
    /// A local bridge that cannot be made or removed as asked.
    #[error("network {name}: {reason}")]
    Bridge {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The managers have not told this node its index yet.
    #[error(
        "this node has no index in the cluster yet, so it has no addresses for tasks with published ports or overlays"
    )]
    NoIndex,
    /// The index is outside of what the infrastructure range holds.
    #[error("the infrastructure range {range} has no share for node index {index}; give the cluster a larger one")]
    RangeTooSmall {
        /// The range.
        range: ipnet::IpNet,
        /// The node's index.
        index: u16,
    },
    /// No address is left.
    #[error("no free address is left in {pool}")]
    PoolExhausted {
        /// The subnet.
        pool: ipnet::IpNet,
    },
    /// An address asked for cannot be had.
    #[error("address {address} is not available: {reason}")]
    Address {
        /// The address.
        address: IpAddr,
        /// Why not.
        reason: &'static str,
    },
    /// A published port is taken; in Docker's words, which clients look for.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken {
        /// Address asked for.
        address: IpAddr,
        /// Port asked for.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// A program of the node has the port, or the node does not have the address; in Docker's words.
    #[error("failed to bind host port {at}/{protocol}: {reason}")]
    PortUnusable {
        /// Address and port.
        at: SocketAddr,
        /// Its protocol.
        protocol: &'static str,
        /// Why not, in the system's words.
        reason: &'static str,
    },
    /// Every port that one could be chosen from is taken.
    #[error("Bind for {address}:{range} failed: all ports are allocated")]
    NoPortLeft {
        /// Address asked for.
        address: IpAddr,
        /// First and last port.
        range: String,
    },
    /// Ports can only be published by a sandbox that has a way out.
    #[error("sandbox {id} publishes ports but has neither a bridge nor a task link")]
    NoWayOut {
        /// The sandbox.
        id: String,
    },
    /// A sandbox of that id exists with another specification.
    #[error("sandbox {id} exists with other settings; delete it first")]
    Differs {
        /// The sandbox.
        id: String,
    },
    /// No sandbox has that id.
    #[error("sandbox {id} not found")]
    UnknownSandbox {
        /// The id asked for.
        id: String,
    },
    /// Something of IPv6 or another kind that is not built yet.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// A record on disk could not be read or written.
    #[error("cannot {step} {path}")]
    Record {
        /// What was to be done.
        step: &'static str,
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The name server is not there or refused.
    #[error("the name server of this node cannot serve sandbox {id}")]
    Names {
        /// The sandbox.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// What was to be encrypted cannot be.
    #[error(
        "network {network} is encrypted and this node cannot encrypt: {reason}; load the kernel module wireguard or tun, or make the network with --opt encrypted=false"
    )]
    NoEncryption {
        /// Name of the network.
        network: String,
        /// Why not.
        reason: String,
    },
    /// Linux gives a bridge 1,023 ports (`BR_MAX_PORTS`).
    #[error(
        "network {network} has as many containers on this node as Linux joins to one bridge, 1,023: use other nodes, too"
    )]
    Full {
        /// The network's name.
        network: String,
    },
    /// The network layer has ended.
    #[error("the network layer of this node has stopped")]
    Stopped,
}

impl NetworkError {
    /// Of a link that was to be made with a port in a network's bridge.
    pub(crate) fn of_port(source: io::Error, network: &str) -> Self {
        match source.raw_os_error() {
            Some(EXFULL) => Self::Full { network: network.to_owned() },
            _ => Self::Kernel { step: "make a link to a bridge", source },
        }
    }

    /// Whether trying again later may succeed without a change of the request.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Kernel { .. } | Self::UnknownNetwork { .. } | Self::NoIndex | Self::Record { .. } => true,
            Self::PoolExhausted { .. } | Self::PortTaken { .. } | Self::Names { .. } | Self::Stopped => true,
            Self::PortUnusable { .. } | Self::NoPortLeft { .. } | Self::Full { .. } => true,
            Self::NoEncryption { .. } => true,
            Self::Config { .. } | Self::UnknownBridge { .. } | Self::Bridge { .. } | Self::RangeTooSmall { .. } => {
                false
            }
            Self::Address { .. } | Self::NoWayOut { .. } | Self::Differs { .. } | Self::Unsupported { .. } => false,
            Self::UnknownSandbox { .. } => false,
        }
    }
}

/// What Linux says for a bridge without a port left.
const EXFULL: i32 = 54;

/// Adds what was being done to an error of the kernel.
pub trait Step<T> {
    /// Names the step.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    fn step(self, step: &'static str) -> Result<T, NetworkError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &'static str) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError::Kernel { step, source })
    }
}
