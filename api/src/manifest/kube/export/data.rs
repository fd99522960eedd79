//! ConfigMaps and Secrets: the configs and secrets that containers of the stack have as files.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::manifest::export::Export;
use crate::manifest::kube::build::{cluster_name, file_name};
use crate::manifest::kube::extension::FILES;
use crate::manifest::plan::version_of;
use crate::manifest::stack::{Content, FileKind};

use super::{InCluster, Object, metadata, names};

/// The objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Data {
    objects: BTreeMap<(FileKind, String, String), BTreeMap<String, Held>>,
    /// Where each config and secret is, by kind, namespace and name in the cluster.
    places: BTreeMap<(FileKind, String, String), (String, String)>,
    /// Names in the cluster, by those that the manifests give them.
    pub in_cluster: InCluster,
}

/// A key of an object.
#[derive(Debug, Clone)]
struct Held {
    /// Its name, where the object does not say it.
    name: Option<String>,
    content: Option<Content>,
}

impl Data {
    /// The object and key that stand for a config or secret.
    pub fn place(
        &mut self,
        from: &Export<'_>,
        kind: FileKind,
        namespace: &str,
        name: &str,
        path: &str,
    ) -> (String, String) {
        let whole = (kind, namespace.to_owned(), name.to_owned());
        if let Some(place) = self.places.get(&whole) {
            return place.clone();
        }
        let seen = from.files.get(&(kind, name.to_owned())).cloned().unwrap_or_default();
        let label = seen.key.as_deref().unwrap_or_default();
        let content = seen.content.filter(|_| !seen.is_template);
        // What a manifest of Kubernetes made says its object and key.
        let made = label.split_once('/').map(|(object, key)| (object.to_owned(), key.to_owned()));
        let made = made.filter(|(object, key)| {
            let base = file_name(&format!("{}.{key}", cluster_name(from.stack, namespace, object)));
            version_of(name, &base).is_some()
        });
        let (object, key, base) = match made {
            Some((object, key)) => {
                let base = file_name(&format!("{}.{key}", cluster_name(from.stack, namespace, &object)));
                (object, key, base)
            }
            None => {
                let of_label = format!("{}_{label}", from.stack);
                let base =
                    if !label.is_empty() && version_of(name, &of_label).is_some() { of_label } else { name.to_owned() };
                let own = base.strip_prefix(&format!("{}_", from.stack)).unwrap_or(&base);
                let key = names::data_key(path.rsplit('/').next().unwrap_or_default());
                (names::object_name(own), key, base)
            }
        };
        let follows = file_name(&format!("{}.{key}", cluster_name(from.stack, namespace, &object))) == base;
        // Of two numbers of one content only one can be made by its name.
        let is_other = self.in_cluster.get(&(kind, base.clone())).is_some_and(|known| known != name);
        let held = if content.is_some() && !is_other {
            self.in_cluster.insert((kind, base.clone()), name.to_owned());
            Held { name: (!follows).then_some(base), content }
        } else {
            Held { name: Some(name.to_owned()), content: None }
        };
        let place = self.insert(kind, namespace, (object, key), held);
        self.places.insert(whole, place.clone());
        place
    }

    fn insert(
        &mut self,
        kind: FileKind,
        namespace: &str,
        (object, key): (String, String),
        held: Held,
    ) -> (String, String) {
        let mut name = object.clone();
        let mut number = 2;
        loop {
            let keys = self.objects.entry((kind, namespace.to_owned(), name.clone())).or_default();
            if !keys.contains_key(&key) {
                keys.insert(key.clone(), held);
                return (name, key);
            }
            name = format!("{object}-{number}");
            number += 1;
        }
    }

    /// The documents, and what is to be said of them.
    pub fn documents(&self, from: &Export<'_>) -> (Vec<Value>, Vec<String>) {
        let (mut documents, mut warnings) = (Vec::new(), Vec::new());
        for ((kind, namespace, object), keys) in &self.objects {
            let word = if *kind == FileKind::Secret { "Secret" } else { "ConfigMap" };
            let mut metadata = metadata(namespace, object);
            let names: Object =
                keys.iter().filter_map(|(key, held)| Some((key.clone(), json!(held.name.as_ref()?)))).collect();
            if !names.is_empty() {
                metadata["annotations"][FILES] = json!(Value::Object(names).to_string());
            }
            let mut document = json!({"apiVersion": "v1", "kind": word, "metadata": metadata});
            for (key, held) in keys {
                match &held.content {
                    Some(Content(content)) => match std::str::from_utf8(content) {
                        Ok(text) => document["data"][key] = json!(text),
                        Err(_) => document["binaryData"][key] = json!(BASE64_STANDARD.encode(content)),
                    },
                    None => {
                        let name = held.name.as_deref().unwrap_or_default();
                        let why = match (kind, from.files.get(&(*kind, name.to_owned()))) {
                            (FileKind::Secret, _) => "the content of a secret is shown to nobody",
                            (FileKind::Config, Some(_)) => "a template has no word in Kubernetes",
                            (FileKind::Config, None) => "it is not the stack's",
                        };
                        warnings.push(format!("{} {name}: it must exist where this is applied: {why}", kind.word()));
                    }
                }
            }
            documents.push(document);
        }
        (documents, warnings)
    }
}
