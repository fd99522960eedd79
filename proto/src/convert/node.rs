//! Nodes.

use super::DecodeError;
use super::error::At;
use super::field::{Field, choice, record};
use crate::model::node::{ManagerMembership, NodeTrust, WireGuard};
use crate::model::{Availability, Node, NodeDescription, NodeRole, NodeSpec, NodeState};
use crate::wire::objects as wire;

record!(Node { id, meta, spec, index, description, state, message, address, manager });
record!(NodeSpec { annotations, role, availability });
choice!(NodeRole { Worker, Manager });
choice!(Availability { Active, Pause, Drain });
choice!(NodeState { Unknown, Down, Ready, Disconnected });
record!(NodeDescription {
    hostname,
    platform,
    nano_cpus,
    memory,
    generic,
    engine_version,
    engine_labels,
    plugins,
    data_path,
    named_generic,
    trust,
    volumes,
    wireguard,
    ipv4_only,
});
record!(WireGuard { port, key, next });
record!(NodeTrust { roots, issuer });
record!(ManagerMembership { raft_id, address });

/// A plug-in: (type, name).
impl Field<wire::Plugin> for (String, String) {
    fn to_wire(&self) -> wire::Plugin {
        wire::Plugin { kind: self.0.clone(), name: self.1.clone() }
    }
    fn from_wire(wire: wire::Plugin) -> Result<Self, DecodeError> {
        Ok((String::from_wire(wire.kind).at("kind")?, String::from_wire(wire.name).at("name")?))
    }
}
