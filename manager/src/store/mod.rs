//! The replicated state: one value with structural sharing, changed only by entries of the log.
//!
//! ```text
//! proposer ──Entry──► raft ──► Replica::apply ──► State (a new version) ──publish──► Store::view / Watch
//! ```
//! [`State`] is what readers hold; [`Replica`] is the one writer, driven by Raft; [`Store`] is where the two meet.
//! `apply` is deterministic and never fails: what cannot be done is a [`Refusal`].

mod addresses;
mod apply;
mod attach;
pub mod codec;
mod derived;
mod digest;
mod entry;
mod propose;
mod put;
mod refs;
mod removed;
mod replica;
mod row;
mod rows;
mod snapshot;
mod spec;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod touched;
mod view;

pub use derived::{NodeLoad, ServiceCount};
pub use entry::{
    Change, DecodeError, Entry, FORMAT, Group, INGRESS, Kind, MAX_ENTRY_BYTES, MAX_ENTRY_CHANGES, NodeReason, Outcome,
    Refusal,
};
pub use propose::{Codec, Proposals};
pub use refs::{ClusterRef, ConfigRef, NetworkRef, NodeRef, Reference, SecretRef, ServiceRef, TaskRef};
pub use replica::Replica;
pub use row::{Attached, Attachment, ExtraAttachment, HostPort, TaskExtra, TaskRow, usual_message};
pub use spec::{SharedSpec, host_ports, same_tasks};
pub use state::State;
pub use table::{Object, RawId, Table};
pub use touched::{Changes, Touched, TouchedObject, TouchedTask};
pub use view::{Store, Watch};
