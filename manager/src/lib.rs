//! Control plane of skep: store, raft, orchestration, scheduling, dispatch, certificates.

pub mod allocator;
pub mod anew;
pub mod ca;
pub mod control;
pub mod dispatcher;
pub mod lock;
pub mod manager;
pub mod membership;
pub mod orchestrator;
pub mod raft;
pub mod reaper;
pub mod reconcile;
pub mod rpc;
pub mod schedule;
pub mod scheduler;
pub mod store;
#[cfg(test)]
mod world;

pub use manager::{Birth, Config, Manager, ManagerError};
