//! Control plane of skep: store, raft, orchestration, scheduling, dispatch, certificates.

pub mod ca;
pub mod rpc;
