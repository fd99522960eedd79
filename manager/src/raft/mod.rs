//! Consensus: one replicated log for all managers, and the way into it and out of it.
//!
//! ```text
//! Proposer ──entry──► openraft ──► LogStore ──► disk
//!    ▲                   │ ▲
//!    │                   │ └── network: one stream per follower, votes, snapshots
//!    └──own write seen── StateMachine ──► Machine (the store), snapshots
//! ```
//! It must never acknowledge what is not on disk on a majority, never let two managers lead one term, and never start
//! from a log that it cannot vouch for. What it replicates is opaque to it ([`machine::Machine`]), as is the transport
//! ([`network::Connector`]) and the disk ([`disk::Disk`]). See README.md beside this file.

pub mod anew;
mod compact;
pub mod config;
pub mod disk;
mod facade;
mod forward;
mod inspect;
pub mod keys;
mod leadership;
pub mod log;
pub mod machine;
pub mod network;
mod node;
pub mod proposer;
pub mod quorum;
pub mod runtime;
pub mod seal;
mod snapshot;
pub mod types;

pub use compact::Retention;
pub use config::{Config, Timing};
pub use facade::{Member, Raft, RaftError, StartError};
pub use inspect::LogSummary;
pub use leadership::Leader;
pub use machine::{Halt, Machine, SnapshotSource};
pub use network::{ConnectError, Connector};
pub use proposer::{Applied, EntryCodec, Group, ProposeError, Proposer};
pub use types::{Peer, RaftId};
