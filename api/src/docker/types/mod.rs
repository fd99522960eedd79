//! JSON shapes of the Docker Engine API: names, casing, zeros and nulls as dockerd writes them. No behaviour.

pub(crate) mod container;
pub(crate) mod host_config;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod service;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod task;
pub(crate) mod volume;

use serde::{Deserialize, Serialize};

/// `{}`: Go's empty struct.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Empty {}

/// For `skip_serializing_if`: Go's `omitempty`.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `Version` of a cluster object.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct ObjectVersion {
    #[serde(rename = "Index", skip_serializing_if = "is_default")]
    pub index: u64,
}

/// Version and times of a cluster object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Meta {
    pub version: ObjectVersion,
    pub created_at: String,
    pub updated_at: String,
}

impl From<skep_proto::model::Meta> for Meta {
    fn from(meta: skep_proto::model::Meta) -> Self {
        Self {
            version: ObjectVersion { index: meta.version.0 },
            created_at: super::time::rfc3339(meta.created_at),
            updated_at: super::time::rfc3339(meta.updated_at),
        }
    }
}

/// `{"ID": …}`, the answer to most creates of cluster objects.
#[derive(Debug, Serialize)]
pub(crate) struct CreatedId {
    #[serde(rename = "ID")]
    pub id: String,
}
