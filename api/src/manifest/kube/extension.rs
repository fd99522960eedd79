//! What Kubernetes has no word for: annotations of skep's own, which Kubernetes passes by.
//!
//! `skep stack export -o kube` writes them where they are needed; they may be written by hand.
//!
//! | annotation | of | says |
//! |---|---|---|
//! | [`DEFAULTS`] | a workload | `docker`: what the manifest leaves open is as Docker has it, not as Kubernetes has it |
//! | [`NAME`] | a workload, a Service | its name in the stack, where Kubernetes allows no such name |
//! | [`NETWORKS`] | a workload | its networks and what they are like, as JSON by their names; `null` for one that must exist |
//! | [`SPEC`] | a workload | what its service's spec has besides, as a JSON merge patch (RFC 7396) of the form in which specs are compared |
//! | [`FILES`] | a ConfigMap, a Secret | names in the cluster of the configs or secrets that hold its keys, as JSON; they must exist where the key has no value |

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skep_proto::model::{Annotations, NetworkSpec, ServiceSpec};

use crate::docker::requests;
use crate::manifest::plan::{canonical, plain};
use crate::manifest::problem::Problems;
use crate::manifest::stack::STACK_LABEL;

use super::meta::Meta;

/// Whose defaults hold.
pub const DEFAULTS: &str = "skep.defaults";
/// The value of [`DEFAULTS`].
pub const DOCKER: &str = "docker";
/// Name in the stack.
pub const NAME: &str = "skep.name";
/// Networks.
pub const NETWORKS: &str = "skep.networks";
/// The rest of a spec.
pub const SPEC: &str = "skep.spec";
/// Names of configs and secrets.
pub const FILES: &str = "skep.files";
/// A label of pods that is there to be selected by, and is not one of the containers.
pub const SELECTED: &str = "skep.service";

/// Whether a label or annotation is read here, and thus is no label of the service or its containers.
pub fn is_ours(key: &str) -> bool {
    let of_selectors = key.strip_prefix(SELECTED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    of_selectors || [DEFAULTS, NAME, NETWORKS, SPEC, FILES].contains(&key)
}

impl Meta {
    /// Docker's defaults hold.
    pub fn is_docker(&self) -> bool {
        self.annotations.get(DEFAULTS).is_some_and(|value| value == DOCKER)
    }

    /// The name that it has in the stack.
    pub fn stack_name(&self) -> &str {
        self.annotations.get(NAME).map_or(&self.name, String::as_str)
    }

    /// Says what is wrong in [`DEFAULTS`] and [`NAME`].
    pub fn check(&self, problems: &mut Problems) {
        if let Some(other) = self.annotations.get(DEFAULTS).filter(|value| *value != DOCKER) {
            problems.add(self.place, format!("the annotation {DEFAULTS} is {DOCKER}, not {other:?}"));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some(name) = self.annotations.get(NAME)
            && (name.is_empty() || name.len() > 63 || !name.chars().all(is_allowed))
        {
            problems.add(self.place, format!("the annotation {NAME} is a name of a service, not {name:?}"));
        }
    }

    fn json(&self, key: &str, problems: &mut Problems) -> Option<Map<String, Value>> {
        match serde_json::from_str(self.annotations.get(key)?) {
            Ok(Value::Object(map)) => Some(map),
            Ok(_) => {
                problems.add(self.place, format!("the annotation {key} is a mapping in JSON"));
                None
            }
            Err(error) => {
                problems.add(self.place, format!("the annotation {key} is no JSON: {error}"));
                None
            }
        }
    }

    /// The names in [`FILES`], by key.
    pub fn files(&self, problems: &mut Problems) -> BTreeMap<String, String> {
        let named = self.json(FILES, problems).unwrap_or_default().into_iter();
        named.filter_map(|(key, name)| Some((key, name.as_str()?.to_owned()))).collect()
    }

    /// The networks in [`NETWORKS`], by name; `None` for one that must exist.
    pub fn networks(&self, stack: &str, problems: &mut Problems) -> Option<BTreeMap<String, Option<NetworkSpec>>> {
        let declared = self.json(NETWORKS, problems)?;
        let mut networks = BTreeMap::new();
        for (name, body) in declared {
            let spec = match body {
                Value::Null => None,
                body => match requests::read_network(&name, body) {
                    Ok(mut spec) => {
                        spec.annotations.labels.insert(STACK_LABEL.to_owned(), stack.to_owned());
                        Some(spec)
                    }
                    Err(reason) => {
                        problems.add(self.place, format!("the network {name} of the annotation {NETWORKS}: {reason}"));
                        continue;
                    }
                },
            };
            networks.insert(name, spec);
        }
        Some(networks)
    }

    /// Changes a spec as [`SPEC`] says.
    pub fn change(&self, spec: &mut ServiceSpec, problems: &mut Problems) {
        let Some(patch) = self.json(SPEC, problems) else { return };
        let mut shown = canonical(&requests::service_spec(spec));
        merge(&mut shown, &Value::Object(patch));
        match requests::read_service_spec(plain(&shown)) {
            Ok(mut changed) => {
                // A patch says what the task is like, not which it is.
                changed.annotations = Annotations { name: spec.annotations.name.clone(), ..changed.annotations };
                *spec = changed;
            }
            Err(reason) => problems.add(self.place, format!("the annotation {SPEC} makes no spec: {reason}")),
        }
    }
}

/// Merges a patch into a value (RFC 7396, section 2).
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(map) = value else { return };
    for (key, member) in members {
        if member.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), member);
        }
    }
}

/// The patch that makes `to` of `from`; `None` when they are equal. Both are in the form in which specs are compared.
pub fn difference(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (from, to) else { return Some(to.clone()) };
    let mut patch = Map::new();
    for (key, value) in new {
        // Variables without a value are null where specs are compared, which a patch cannot say: all lines instead.
        let all_lines = key == "Env" && value.as_object().is_some_and(|env| env.values().any(Value::is_null));
        let old = old.get(key).unwrap_or(&Value::Null);
        let part = if all_lines && old != value {
            plain(&Value::Object(Map::from_iter([(key.clone(), value.clone())]))).get(key).cloned()
        } else {
            difference(old, value)
        };
        if let Some(part) = part {
            patch.insert(key.clone(), part);
        }
    }
    patch.extend(old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null)));
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_says_what_differs_and_no_more() {
        let (from, to) = (json!({"a": {"b": 1, "c": 2}, "d": [1]}), json!({"a": {"b": 1, "e": {}}, "d": [1]}));
        assert_eq!(difference(&from, &to), Some(json!({"a": {"c": null, "e": {}}})));
        assert_eq!(difference(&to, &to), None);
    }

    #[test]
    fn variables_without_a_value_are_written_as_lines() {
        let (from, to) = (json!({"Env": {"A": "1"}}), json!({"Env": {"A": "1", "B": null}}));
        assert_eq!(difference(&from, &to), Some(json!({"Env": ["A=1", "B"]})));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_value_to_the_other(from in tree(), to in tree()) {
            let mut value = json!({"x": from});
            let to = json!({"x": to});
            if let Some(patch) = difference(&value, &to) {
                merge(&mut value, &patch);
            }
            prop_assert_eq!(value, to);
        }
    }
}
