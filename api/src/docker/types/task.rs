//! Tasks (Engine API, `Task`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::network::ClusterNetwork;
use super::service::{PortConfig, TaskSpec};
use super::{Meta, is_default};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Task {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: Meta,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub spec: TaskSpec,
    #[serde(rename = "ServiceID", skip_serializing_if = "String::is_empty")]
    pub service_id: String,
    #[serde(skip_serializing_if = "is_default")]
    pub slot: u32,
    #[serde(rename = "NodeID", skip_serializing_if = "String::is_empty")]
    pub node_id: String,
    pub status: TaskStatus,
    pub desired_state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<super::ObjectVersion>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks_attachments: Vec<Attachment>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TaskStatus {
    pub timestamp: String,
    pub state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_status: Option<ContainerStatus>,
    pub port_status: PortStatus,
}

#[derive(Debug, Serialize)]
pub(crate) struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    #[serde(rename = "PID")]
    pub pid: u32,
    #[serde(rename = "ExitCode")]
    pub exit_code: i32,
}

#[derive(Debug, Serialize)]
pub(crate) struct PortStatus {
    #[serde(rename = "Ports", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Attachment {
    pub network: ClusterNetwork,
    pub addresses: Vec<String>,
}
