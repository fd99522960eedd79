//! Secrets and configs.

use bytes::Bytes;

use super::DecodeError;
use super::error::At;
use super::field::{Field, message, record};
use crate::model::secret::SecretData;
use crate::model::{Config, ConfigSpec, Secret, SecretSpec};
use crate::wire::objects as wire;

record!(Secret { id, meta, spec });
record!(SecretSpec { annotations, data, driver, templating });
record!(Config { id, meta, spec });
record!(ConfigSpec { annotations, data, templating });

impl From<&SecretData> for wire::SecretData {
    fn from(value: &SecretData) -> Self {
        Self { value: value.0.clone() }
    }
}

impl TryFrom<wire::SecretData> for SecretData {
    type Error = DecodeError;
    fn try_from(message: wire::SecretData) -> Result<Self, DecodeError> {
        Bytes::from_wire(message.value).at("value").map(Self)
    }
}

message!(SecretData);
