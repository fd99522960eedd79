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

/// Calls `act` with each reference of a service's spec to a secret or config, and the keys of its name and id. Those of the
/// first container are in the API's form, those of further ones in the model's.
pub fn each_reference(spec: &mut Value, mut act: impl FnMut(FileKind, &mut Value, &str, &str)) {
    // What is not there is not made by looking at it.
    let Some(task) = spec.get_mut("TaskTemplate") else { return };
    for (kind, list, name, id) in [
        (FileKind::Secret, "Secrets", "SecretName", "SecretID"),
        (FileKind::Config, "Configs", "ConfigName", "ConfigID"),
    ] {
        let first = task.get_mut("ContainerSpec").and_then(|c| c.get_mut(list)).and_then(Value::as_array_mut);
        first.into_iter().flatten().for_each(|reference| act(kind, reference, name, id));
        let further = task.get_mut("Pod").and_then(|pod| pod.get_mut("Containers")).and_then(Value::as_array_mut);
        for container in further.into_iter().flatten() {
            let references = container.get_mut(list.to_lowercase()).and_then(Value::as_array_mut);
            references.into_iter().flatten().for_each(|reference| act(kind, reference, "name", "id"));
        }
    }
}

/// Secrets and configs that a service's spec names.
pub fn references(spec: &Value) -> Vec<(FileKind, String)> {
    let mut found = Vec::new();
    each_reference(&mut spec.clone(), |kind, reference, name, _| {
        found.extend(reference[name].as_str().map(|name| (kind, name.to_owned())));
    });
    found
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
