//! Secrets and configs: small files given to tasks.

use std::fmt;

use bytes::Bytes;

use super::container::Driver;
use super::{Annotations, ConfigId, Meta, SecretId};

/// Name of the only template engine: Go's `text/template`, as far as `crate::template` knows it.
pub const TEMPLATE_DRIVER: &str = "golang";

/// A secret's content. Its `Debug` prints nothing.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretData(pub Bytes);

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretData({} bytes)", self.0.len())
    }
}

/// What the operator gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecretSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// The content; at most 500 KiB.
    pub data: SecretData,
    /// External store; unsupported, kept so that it can be refused by name.
    pub driver: Option<Driver>,
    /// Template engine (`golang`), when the content is a template.
    pub templating: Option<Driver>,
}

/// A secret as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Identity.
    pub id: SecretId,
    /// Version and times.
    pub meta: Meta,
    /// What the operator gave.
    pub spec: SecretSpec,
}

/// What the operator gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// The content; at most 1000 KiB.
    pub data: Bytes,
    /// Template engine (`golang`), when the content is a template.
    pub templating: Option<Driver>,
}

/// A config as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Identity.
    pub id: ConfigId,
    /// Version and times.
    pub meta: Meta,
    /// What the operator gave.
    pub spec: ConfigSpec,
}
