//! What the cluster has of a stack, for writing it as files.

use std::collections::BTreeMap;

use serde_json::Value;

use super::stack::{Content, FileKind};

/// Docker's name for the option that carries the VXLAN network identifier, which the cluster gives a network.
pub const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// What the cluster has of a stack, in the API's form; names in place of ids.
#[derive(Debug, Clone, Default)]
pub struct Export<'a> {
    /// The stack.
    pub stack: &'a str,
    /// Specs of services, by name.
    pub services: BTreeMap<String, Value>,
    /// Networks of the stack as the API shows them, by name.
    pub networks: BTreeMap<String, Value>,
    /// Secrets and configs of the stack, by name.
    pub files: BTreeMap<(FileKind, String), ExportedFile>,
}

/// A secret or config of the cluster.
#[derive(Debug, Clone, Default)]
pub struct ExportedFile {
    /// The key under which an apply made it.
    pub key: Option<String>,
    /// What it holds, as far as anybody is shown that.
    pub content: Option<Content>,
    /// Its content has placeholders.
    pub is_template: bool,
}

/// A stack as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The file.
    pub text: String,
    /// What works, but perhaps not as the reader thinks: lines for people.
    pub warnings: Vec<String>,
}
