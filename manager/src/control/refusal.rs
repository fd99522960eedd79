//! The store's refusals in Docker's words.

use skep_api::ports::control::ControlError;
use skep_proto::model::TaskId;

use super::ProposeError;
use crate::store::{Kind, RawId, Refusal};

/// Why a proposal failed, for a face.
pub fn from_proposal(error: ProposeError) -> ControlError {
    match error {
        ProposeError::NoLeader => ControlError::NoLeader,
        ProposeError::Refused(reason) => ControlError::FailedPrecondition(reason),
        ProposeError::Timeout => ControlError::Timeout,
    }
}

/// Why a group was refused, for a face.
pub fn to_control_error(refusal: Refusal) -> ControlError {
    match refusal {
        Refusal::NameConflict { kind: Kind::Service, .. } | Refusal::Exists { kind: Kind::Service, .. } => {
            ControlError::NameConflict("name conflicts with an existing object: service already exists".into())
        }
        Refusal::NameConflict { kind: Kind::Network, name, .. } => {
            ControlError::NameConflict(format!("network with name {name} already exists"))
        }
        Refusal::NameConflict { kind, name, .. } => {
            ControlError::NameConflict(format!("{} {name} already exists", kind.as_str()))
        }
        Refusal::OutOfSequence { .. } => ControlError::OutOfSequence,
        Refusal::NotFound { kind, id } => {
            ControlError::NotFound { kind: kind.as_str(), reference: RawId(id).to_string() }
        }
        Refusal::InUse { kind, name, by } => {
            if kind == Kind::Network && by.iter().all(|user| user.parse::<TaskId>().is_ok()) {
                let text = format!("network {name} is in use by task {}", by.join(", "));
                return ControlError::FailedPrecondition(text);
            }
            let plural = if by.len() == 1 { "service" } else { "services" };
            let text = match kind {
                // swarmkit's words, each kind's own.
                Kind::Network => format!("network {name} is in use by {plural} {}", by.join(", ")),
                Kind::Secret => format!("secret '{name}' is in use by the following {plural}: {}", by.join(", ")),
                Kind::Config => format!("config '{name}' is in use by the following {plural}: {}", by.join(", ")),
                Kind::Cluster | Kind::Node | Kind::Service => {
                    format!("{} {name} is in use by {}", kind.as_str(), by.join(", "))
                }
            };
            if kind == Kind::Network {
                ControlError::FailedPrecondition(text)
            } else {
                ControlError::InvalidArgument(text)
            }
        }
        refusal @ (Refusal::PortInUse { .. }
        | Refusal::AddressInUse { .. }
        | Refusal::SubnetOverlap { .. }
        | Refusal::VniInUse { .. }
        | Refusal::Exists { .. }
        | Refusal::Invalid { .. }) => ControlError::InvalidArgument(refusal.to_string()),
        refusal @ (Refusal::TaskGone
        | Refusal::LastManager
        | Refusal::NoIngress
        | Refusal::TaskChanged { .. }
        | Refusal::SlotTaken { .. }
        | Refusal::SpecGone
        | Refusal::NodeRefuses { .. }) => ControlError::FailedPrecondition(refusal.to_string()),
    }
}
