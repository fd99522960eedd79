//! Control plane of skep: store, raft, orchestration, scheduling, dispatch, certificates.

pub mod ca;
pub mod control;
pub mod dispatcher;
pub mod membership;
pub mod raft;
pub mod rpc;
pub mod scheduler;
pub mod store;
