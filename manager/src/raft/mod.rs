//! Consensus.
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

pub use facade::{Member, Raft, RaftError, StartError};
pub use inspect::LogSummary;
pub use leadership::Leader;
pub use proposer::{Applied, EntryCodec, Group, ProposeError, Proposer};
