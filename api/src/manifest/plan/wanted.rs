//! What is wanted, in the API's form: what files say, and what a revision keeps of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::docker::requests;
use crate::manifest::stack::{FileKind, Stack};

/// A stack in the API's form. Serialised it is what a revision keeps: members are only ever added.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Bodies of `POST /networks/create`, by name.
    pub networks: BTreeMap<String, Value>,
    /// Names of networks that must exist.
    #[serde(default)]
    pub external_networks: Vec<String>,
    /// Secrets and configs; their content is not part of it.
    #[serde(default)]
    pub files: Vec<FileWanted>,
    /// Specs of services, by name.
    pub services: BTreeMap<String, Value>,
}

/// A secret or config that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileWanted {
    /// Which of the two.
    pub kind: FileKind,
    /// Key in the file.
    pub key: String,
    /// Name in the cluster, without a number.
    pub name: String,
    /// The name was given in the file.
    pub is_named: bool,
    /// It has content here; otherwise it must exist.
    pub has_content: bool,
}

impl From<&Stack> for Wanted {
    fn from(stack: &Stack) -> Self {
        let networks = stack.parts.networks.iter().map(|n| (n.annotations.name.clone(), requests::network_create(n)));
        let services = stack.parts.services.iter().map(|service| {
            let spec = service.whole_spec();
            (spec.annotations.name.clone(), requests::service_spec(&spec))
        });
        let files = stack.parts.files.iter().map(|file| FileWanted {
            kind: file.kind,
            key: file.key.clone(),
            name: file.name.clone(),
            is_named: file.is_named,
            has_content: file.content.is_some(),
        });
        Self {
            name: stack.name.clone(),
            networks: networks.collect(),
            external_networks: stack.parts.external_networks.clone(),
            files: files.collect(),
            services: services.collect(),
        }
    }
}

/// Secrets and configs that a service's spec names.
pub fn references(spec: &Value) -> impl Iterator<Item = (FileKind, String)> + '_ {
    let of = |kind, list: &str, key: &'static str| {
        let references = spec["TaskTemplate"]["ContainerSpec"][list].as_array().into_iter().flatten();
        references.filter_map(move |r| Some((kind, r[key].as_str()?.to_owned())))
    };
    of(FileKind::Secret, "Secrets", "SecretName").chain(of(FileKind::Config, "Configs", "ConfigName"))
}

impl Wanted {
    /// Secrets and configs that its services name.
    pub fn references(&self) -> impl Iterator<Item = (FileKind, String)> + '_ {
        self.services.values().flat_map(references)
    }

    /// The same, with the names that secrets and configs have in the cluster: what a revision keeps.
    pub fn resolved(&self, names: &BTreeMap<(FileKind, String), String>) -> Self {
        let services = self.services.iter().map(|(name, spec)| (name.clone(), super::with_names(spec, names)));
        Self { services: services.collect(), ..self.clone() }
    }
}
