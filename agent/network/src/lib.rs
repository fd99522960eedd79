//! The network of a node: namespaces and links of sandboxes, local bridges, overlays, virtual addresses, the routing
//! mesh and published ports, names.
//!
//! [`NodeNetwork`] is told the whole wanted state ([`NodeNetwork::apply`]) and asked for sandboxes
//! ([`NodeNetwork::create_sandbox`]). Decisions are in [`plan`], without I/O; the shells in `engine` compare them with
//! what the kernel holds.

pub mod config;
pub mod dns;
pub mod doctor;
mod engine;
pub mod error;
mod keys;
pub mod mac;
mod names;
pub mod netd;
mod netlink;
mod nft;
mod nlattr;
pub mod plan;
mod record;
pub mod spec;
mod sys;
pub mod tunnel;

pub use config::{Config, Place};
pub use engine::{Bridge, Bridge6, Encryption, NodeNetwork};
pub use error::NetworkError;
pub use names::{DnsPorts, FakeNames, Names, SandboxDns};
pub use spec::{
    Addressing, BridgeAttachment, BridgeSpec, BridgeSpec6, DEFAULT_BRIDGE, HostPort, LinkKind, OverlayAttachment,
    Resolver, Sandbox, SandboxId, SandboxLink, SandboxSpec,
};
pub use tunnel::{TunnelPath, Tunnels};
