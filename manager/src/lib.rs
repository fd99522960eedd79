//! Control plane of skep: store, raft, orchestration, scheduling, dispatch, certificates.

pub mod ca;
pub mod raft;
pub mod rpc;
