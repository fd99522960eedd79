//! Control plane of skep.

pub mod raft;
