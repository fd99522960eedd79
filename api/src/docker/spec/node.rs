//! Nodes: `NodeSpec` of the API and of the model, and nodes as the API shows them.

use skep_proto::model::annotations::Annotations;
use skep_proto::model::node::{Availability, NodeDescription, NodeRole, NodeSpec, NodeState};

use super::{cluster, refuse, service};
use crate::docker::error::ApiError;
use crate::docker::types::service::{GenericResource, NamedResource, Platform};
use crate::docker::types::swarm as json;
use crate::ports::control::NodeStatus;

/// Reads a node's spec.
///
/// # Errors
/// 400 for unknown roles and availabilities.
pub(crate) fn read(spec: json::NodeSpec) -> Result<NodeSpec, ApiError> {
    refuse("NodeSpec", &spec.rest)?;
    Ok(NodeSpec {
        role: match spec.role.to_lowercase().as_str() {
            "worker" => NodeRole::Worker,
            "manager" => NodeRole::Manager,
            _ => return Err(ApiError::bad_request(format!("invalid Role: \"{}\"", spec.role))),
        },
        availability: read_availability(&spec.availability)?
            .ok_or_else(|| ApiError::bad_request("invalid Availability: \"\""))?,
        annotations: Annotations { name: spec.name, labels: spec.labels },
    })
}

/// Reads an availability; `None` when it is empty.
///
/// # Errors
/// 400 for unknown words.
pub(crate) fn read_availability(text: &str) -> Result<Option<Availability>, ApiError> {
    match text.to_lowercase().as_str() {
        "" => Ok(None),
        "active" => Ok(Some(Availability::Active)),
        "pause" => Ok(Some(Availability::Pause)),
        "drain" => Ok(Some(Availability::Drain)),
        _ => Err(ApiError::bad_request(format!("invalid Availability: \"{text}\""))),
    }
}

/// Shows a node.
pub(crate) fn show(status: &NodeStatus) -> json::Node {
    let node = &status.node;
    let description = &node.description;
    json::Node {
        id: node.id.to_string(),
        meta: node.meta.into(),
        spec: json::NodeSpec {
            name: node.spec.annotations.name.clone(),
            labels: node.spec.annotations.labels.clone(),
            role: role_word(node.spec.role).into(),
            availability: match node.spec.availability {
                Availability::Active => "active",
                Availability::Pause => "pause",
                Availability::Drain => "drain",
            }
            .into(),
            ..Default::default()
        },
        description: json::NodeDescription {
            hostname: description.hostname.clone(),
            platform: Platform {
                architecture: description.platform.architecture.clone(),
                os: description.platform.os.clone(),
            },
            resources: json::NodeResources {
                nano_cpus: description.nano_cpus,
                memory_bytes: description.memory,
                generic_resources: show_generic(description),
            },
            engine: json::EngineDescription {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: description
                    .plugins
                    .iter()
                    .map(|(kind, name)| json::PluginDescription { kind: kind.clone(), name: name.clone() })
                    .collect(),
            },
            tls_info: cluster::show_tls(status.tls.trust_root.clone(), &status.tls.issuer),
        },
        status: json::NodeStatus {
            state: match node.state {
                NodeState::Unknown => "unknown",
                NodeState::Down => "down",
                NodeState::Ready => "ready",
                NodeState::Disconnected => "disconnected",
            },
            message: node.message.clone(),
            addr: node.address.map(|a| a.to_string()).unwrap_or_default(),
        },
        manager_status: status.manager.map(|m| json::ManagerStatus {
            leader: m.leader,
            reachability: if m.reachable { "reachable" } else { "unreachable" },
            addr: m.address.to_string(),
        }),
    }
}

/// `worker` or `manager`.
pub(crate) fn role_word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// Named resources one by one, the others by their amount.
fn show_generic(description: &NodeDescription) -> Vec<GenericResource> {
    let named = &description.named_generic;
    let mut counted = description.generic.clone();
    counted.retain(|kind, _| !named.iter().any(|(k, _)| k == kind));
    let one = |(kind, value): &(String, String)| GenericResource {
        named_resource_spec: Some(NamedResource { kind: kind.clone(), value: value.clone() }),
        ..Default::default()
    };
    named.iter().map(one).chain(service::show_generic(&counted)).collect()
}
