//! Messages of a session.
//!
//! A set of assignments has no largest size, a message has: [`into_messages`] cuts, [`Assembler`] joins.

use prost::Message as _;

use super::DecodeError;
use super::error::{At, FieldError};
use super::field::{Field, MAX_ITEMS, at_most, message, record, required};
use crate::model::NodeRole;
use crate::model::session::{
    AgentMessage, AssignedFile, AssignedSpec, AssignedTask, AssignmentChange, Assignments, FileContent, FileId, Hello,
    ManagerMessage, ManagerPeer, OpenStream, SpecKey, StatusReport, TaskVitals, Welcome,
};
use crate::wire::session as wire;
use crate::wire::session::agent_message::Message as FromAgent;
use crate::wire::session::assignment_change::Change;
use crate::wire::session::manager_message::Message as FromManager;

/// Bytes after which a part of an assignment ends. One change may be larger and then travels alone; gRPC's own limit is 4 MiB.
pub const PART_BYTES: usize = 1024 * 1024;

/// Bytes of a whole set of assignments at most: far above any real one, far below what would hurt.
const MAX_SET_BYTES: usize = 64 * 1024 * 1024;

record!(Hello { description, last_index });
record!(StatusReport { task, status, vitals, mesh, unready });
record!(TaskVitals { pid, container, health });
record!(Welcome { session, heartbeat, index, data_path_port, mesh_removed });
record!(ManagerPeer { node, address });
record!(OpenStream { manager, nonce });
record!(SpecKey { service, version });
record!(AssignedSpec { key, service_name, service_labels, task, ports });
record!(AssignedFile { id, content });
record!(FileContent { data, template });
record!(AssignedTask { id, spec, slot, desired, observed, attachments });

impl From<&AgentMessage> for wire::AgentMessage {
    fn from(value: &AgentMessage) -> Self {
        let message = match value {
            AgentMessage::Hello(hello) => FromAgent::Hello(hello.into()),
            AgentMessage::Heartbeat => FromAgent::Heartbeat(wire::Heartbeat {}),
            AgentMessage::Statuses(reports) => FromAgent::Statuses(wire::Statuses { reports: reports.to_wire() }),
            AgentMessage::Describe(description) => FromAgent::Describe(description.into()),
            AgentMessage::Leaving => FromAgent::Leaving(wire::Leaving {}),
            AgentMessage::Applied { sets } => FromAgent::Applied(wire::Applied { sets: *sets }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::AgentMessage> for AgentMessage {
    type Error = DecodeError;
    fn try_from(message: wire::AgentMessage) -> Result<Self, DecodeError> {
        Ok(match required(message.message)? {
            FromAgent::Hello(hello) => Self::Hello(hello.try_into().at("hello")?),
            FromAgent::Heartbeat(wire::Heartbeat {}) => Self::Heartbeat,
            FromAgent::Statuses(statuses) => Self::Statuses(Vec::from_wire(statuses.reports).at("statuses")?),
            FromAgent::Describe(description) => Self::Describe(description.try_into().at("describe")?),
            FromAgent::Leaving(wire::Leaving {}) => Self::Leaving,
            FromAgent::Applied(wire::Applied { sets }) => Self::Applied { sets },
        })
    }
}

impl From<&AssignmentChange> for wire::AssignmentChange {
    fn from(value: &AssignmentChange) -> Self {
        let change = match value {
            AssignmentChange::PutSpec(spec) => Change::PutSpec(spec.as_ref().into()),
            AssignmentChange::PutTask(task) => Change::PutTask(task.into()),
            AssignmentChange::RemoveTask(id) => Change::RemoveTask(id.to_wire()),
            AssignmentChange::PutPeer(peer) => Change::PutPeer(peer.into()),
            AssignmentChange::RemovePeer(id) => Change::RemovePeer(id.to_wire()),
            AssignmentChange::PutNetwork(network) => Change::PutNetwork(network.into()),
            AssignmentChange::RemoveNetwork(id) => Change::RemoveNetwork(id.to_wire()),
            AssignmentChange::PutService(service) => Change::PutService(service.into()),
            AssignmentChange::RemoveService(id) => Change::RemoveService(id.to_wire()),
            AssignmentChange::PutEndpoint(endpoint) => Change::PutEndpoint(endpoint.into()),
            AssignmentChange::RemoveEndpoint(id) => Change::RemoveEndpoint(id.to_wire()),
            AssignmentChange::PutFile(file) => Change::PutFile(file.into()),
            AssignmentChange::RemoveFile(id) => Change::RemoveFile(id.into()),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<wire::AssignmentChange> for AssignmentChange {
    type Error = DecodeError;
    fn try_from(message: wire::AssignmentChange) -> Result<Self, DecodeError> {
        Ok(match required(message.change)? {
            Change::PutSpec(spec) => Self::PutSpec(Field::from_wire(spec).at("put_spec")?),
            Change::PutTask(task) => Self::PutTask(task.try_into().at("put_task")?),
            Change::RemoveTask(id) => Self::RemoveTask(Field::from_wire(id).at("remove_task")?),
            Change::PutPeer(peer) => Self::PutPeer(peer.try_into().at("put_peer")?),
            Change::RemovePeer(id) => Self::RemovePeer(Field::from_wire(id).at("remove_peer")?),
            Change::PutNetwork(network) => Self::PutNetwork(network.try_into().at("put_network")?),
            Change::RemoveNetwork(id) => Self::RemoveNetwork(Field::from_wire(id).at("remove_network")?),
            Change::PutService(service) => Self::PutService(service.try_into().at("put_service")?),
            Change::RemoveService(id) => Self::RemoveService(Field::from_wire(id).at("remove_service")?),
            Change::PutEndpoint(endpoint) => Self::PutEndpoint(endpoint.try_into().at("put_endpoint")?),
            Change::RemoveEndpoint(id) => Self::RemoveEndpoint(Field::from_wire(id).at("remove_endpoint")?),
            Change::PutFile(file) => Self::PutFile(file.try_into().at("put_file")?),
            Change::RemoveFile(id) => Self::RemoveFile(id.try_into().at("remove_file")?),
        })
    }
}

message!(AssignmentChange);

impl From<&FileId> for wire::FileId {
    fn from(value: &FileId) -> Self {
        let id = match value {
            FileId::Secret(id) => wire::file_id::Id::Secret(id.to_wire()),
            FileId::Config(id) => wire::file_id::Id::Config(id.to_wire()),
        };
        Self { id: Some(id) }
    }
}

impl TryFrom<wire::FileId> for FileId {
    type Error = DecodeError;
    fn try_from(message: wire::FileId) -> Result<Self, DecodeError> {
        Ok(match required(message.id)? {
            wire::file_id::Id::Secret(id) => Self::Secret(Field::from_wire(id).at("secret")?),
            wire::file_id::Id::Config(id) => Self::Config(Field::from_wire(id).at("config")?),
        })
    }
}

message!(FileId);

/// `message` as it travels: one message, or several when it is a large set of assignments. They must be sent in this
/// order with nothing in between.
pub fn into_messages(message: &ManagerMessage) -> Vec<wire::ManagerMessage> {
    let one = match message {
        ManagerMessage::Assignments(set) => return into_parts(set),
        ManagerMessage::Welcome(welcome) => FromManager::Welcome(welcome.into()),
        ManagerMessage::Managers(peers) => FromManager::Managers(wire::Managers { peers: peers.to_wire() }),
        ManagerMessage::OpenStream(open) => FromManager::OpenStream(open.into()),
        ManagerMessage::RenewCertificate { role } => {
            FromManager::RenewCertificate(wire::RenewCertificate { role: role.to_wire() })
        }
        ManagerMessage::Redirect { to } => FromManager::Redirect(wire::Redirect { to: to.to_wire() }),
        ManagerMessage::KeyKnown { key } => FromManager::KeyKnown(wire::KeyKnown { key: key.to_wire() }),
    };
    vec![wire::ManagerMessage { message: Some(one) }]
}

fn into_parts(set: &Assignments) -> Vec<wire::ManagerMessage> {
    let part = || wire::Assignments { index: set.index, complete: set.complete, changes: Vec::new(), more: true };
    let (mut parts, mut current, mut bytes) = (Vec::new(), part(), 0);
    for change in set.changes.iter().map(wire::AssignmentChange::from) {
        let len = change.encoded_len();
        if !current.changes.is_empty() && (bytes + len > PART_BYTES || current.changes.len() == MAX_ITEMS) {
            parts.push(std::mem::replace(&mut current, part()));
            bytes = 0;
        }
        bytes += len;
        current.changes.push(change);
    }
    parts.push(wire::Assignments { more: false, ..current });
    parts.into_iter().map(|part| wire::ManagerMessage { message: Some(FromManager::Assignments(part)) }).collect()
}

/// Joins what [`into_messages`] cut. One per session.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: Option<Assignments>,
    bytes: usize,
}

impl Assembler {
    /// Takes the next message of the session and gives it back whole, or `None` while parts are missing.
    ///
    /// # Errors
    /// When the message is not valid, or does not continue the set that was begun. The session must then end.
    pub fn push(&mut self, message: wire::ManagerMessage) -> Result<Option<ManagerMessage>, DecodeError> {
        Ok(Some(match required(message.message)? {
            FromManager::Assignments(part) => return self.join(part).at("assignments"),
            _ if self.pending.is_some() => return Err(FieldError::Interrupted.into()).at("assignments"),
            FromManager::Welcome(welcome) => ManagerMessage::Welcome(welcome.try_into().at("welcome")?),
            FromManager::Managers(managers) => ManagerMessage::Managers(Vec::from_wire(managers.peers).at("managers")?),
            FromManager::OpenStream(open) => ManagerMessage::OpenStream(open.try_into().at("open_stream")?),
            FromManager::RenewCertificate(renew) => {
                let role = NodeRole::from_wire(renew.role).at("renew_certificate.role")?;
                ManagerMessage::RenewCertificate { role }
            }
            FromManager::Redirect(redirect) => {
                ManagerMessage::Redirect { to: Field::from_wire(redirect.to).at("redirect.to")? }
            }
            FromManager::KeyKnown(known) => {
                ManagerMessage::KeyKnown { key: Field::from_wire(known.key).at("key_known.key")? }
            }
        }))
    }

    fn join(&mut self, part: wire::Assignments) -> Result<Option<ManagerMessage>, DecodeError> {
        self.bytes += part.encoded_len();
        at_most(self.bytes, MAX_SET_BYTES, "bytes")?;
        let changes = Vec::from_wire(part.changes).at("changes")?;
        let set = match self.pending.take() {
            None => Assignments { index: part.index, complete: part.complete, changes },
            Some(mut set) if (set.index, set.complete) == (part.index, part.complete) => {
                set.changes.extend::<Vec<AssignmentChange>>(changes);
                set
            }
            Some(_) => return Err(FieldError::Interrupted.into()),
        };
        if part.more {
            self.pending = Some(set);
            return Ok(None);
        }
        self.bytes = 0;
        Ok(Some(ManagerMessage::Assignments(set)))
    }
}
