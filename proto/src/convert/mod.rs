//! Model to wire and back, at the edge.
//!
//! [`encode`] and [`decode`] turn whole objects into bytes and back; `From<&Model>` and `TryFrom<Message>` do the same for
//! messages. Decoding trusts nothing: sizes are bounded, enums and lengths checked, what must be there is there, and an
//! error names the path of the field. Presence is kept exactly, and equal objects have equal bytes.
//!
//! A field that an older release does not know is dropped by it, so nothing new is written before every manager
//! understands it (the cluster's `format`).

mod cluster;
mod common;
mod container;
mod error;
mod field;
mod network;
mod node;
mod pod;
mod secret;
mod service;
mod session;
mod task;
mod view;

#[cfg(test)]
mod strategies;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use prost::Message;

pub use error::{DecodeError, FieldError};
pub use session::{Assembler, PART_BYTES, into_messages};

use crate::model::session::{AgentMessage, AssignedSpec, AssignedTask, ManagerPeer, StatusReport};
use crate::model::view::{EndpointView, OverlayNetwork, Peer, ServiceView};
use crate::model::{Cluster, Config, Network, Node, NodeDescription, Secret, Service, ServiceSpec, TaskSpec};
use crate::wire::{objects, session as session_wire};

/// A model value with a message of its own, which may be stored or sent alone.
pub trait WireForm: Sized {
    /// The message.
    type Message: Message + Default + for<'a> From<&'a Self> + TryInto<Self, Error = DecodeError>;
    /// The kind, for errors.
    const KIND: &'static str;
    /// Bytes that a valid value has at most.
    const MAX_BYTES: usize;
}

/// The bytes of `value`.
pub fn encode<T: WireForm>(value: &T) -> Bytes {
    T::Message::from(value).encode_to_vec().into()
}

/// The value that `bytes` hold.
///
/// # Errors
/// When the bytes are too many, are no message of the kind, or a field holds what it must not.
pub fn decode<T: WireForm>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > T::MAX_BYTES {
        return Err(DecodeError::TooLarge { kind: T::KIND, bytes: bytes.len(), limit: T::MAX_BYTES });
    }
    T::Message::decode(bytes).map_err(|source| DecodeError::Malformed { kind: T::KIND, source })?.try_into()
}

const MIB: usize = 1024 * 1024;

macro_rules! wire_form {
    ($($name:ident as $module:ident, $kind:literal, $max:expr;)+) => {$(
        impl WireForm for $name {
            type Message = $module::$name;
            const KIND: &'static str = $kind;
            const MAX_BYTES: usize = $max;
        }
    )+};
}

wire_form! {
    Service as objects, "service", 2 * MIB;
    ServiceSpec as objects, "service spec", MIB;
    TaskSpec as objects, "task spec", MIB;
    Node as objects, "node", MIB;
    NodeDescription as objects, "node description", MIB;
    Network as objects, "network", MIB;
    Cluster as objects, "cluster", MIB;
    Secret as objects, "secret", MIB;
    Config as objects, "config", 2 * MIB;
    AgentMessage as session_wire, "message of an agent", 4 * MIB;
    AssignedSpec as session_wire, "assigned spec", 2 * MIB;
    AssignedTask as session_wire, "assigned task", MIB;
    StatusReport as session_wire, "status report", MIB;
    ManagerPeer as session_wire, "manager", MIB;
    Peer as session_wire, "peer", MIB;
    OverlayNetwork as session_wire, "overlay network", MIB;
    ServiceView as session_wire, "service view", MIB;
    EndpointView as session_wire, "endpoint view", MIB;
}
