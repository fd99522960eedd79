//! `imagePullSecrets`: credentials for the registries of a pod's images (core/v1, `Secret` of type `kubernetes.io/dockerconfigjson`).
//!
//! They go to the managers with the service, sealed, and are no part of what is compared, kept or shown.

use serde_json::Value;

use crate::credentials::Credentials;
use crate::manifest::decode::{items, text};
use crate::manifest::problem::Problems;
use crate::manifest::stack::FileKind;
use crate::manifest::yaml::Node;

use super::Context;

/// The types of Secrets that hold credentials, and the keys that they are in.
const TYPES: [(&str, &str); 2] =
    [("kubernetes.io/dockerconfigjson", ".dockerconfigjson"), ("kubernetes.io/dockercfg", ".dockercfg")];

/// Reads the list.
pub fn secrets(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Vec<Credentials> {
    let mut found = Vec::new();
    for item in items(node, "imagePullSecrets", problems) {
        let name = item.get("name").map(|node| text(node, "name", problems)).unwrap_or_default();
        let Some(secret) = context.objects.data(FileKind::Secret, &context.owner.namespace, &name) else {
            let advice =
                "the cluster shows secrets to nobody: apply it together with this, or use --with-registry-auth";
            problems.warn(item.place, format!("there is no Secret {name:?} in the files: {advice}"));
            continue;
        };
        let Some((of_type, key)) = TYPES.iter().find(|(of_type, _)| *of_type == secret.of_type) else {
            let [(json, _), _] = TYPES;
            problems.add(
                item.place,
                format!("the Secret {name} is of type {:?}: credentials are in one of type {json}", secret.of_type),
            );
            continue;
        };
        let content = secret.values.get(*key);
        let json: Option<Value> = content.and_then(|(content, _)| serde_json::from_slice(&content.0).ok());
        // The older type has the registries themselves.
        let auths = json.as_ref().map(|json| if *of_type == TYPES[0].0 { &json["auths"] } else { json });
        match auths.and_then(Value::as_object) {
            Some(auths) => found.push(Credentials::of(auths)),
            // Not at its place: the excerpt would show it.
            None => {
                problems.add(
                    item.place,
                    format!("{key} of the Secret {name} is no JSON of credentials: {{\"auths\": {{REGISTRY: {{…}}}}}}"),
                );
            }
        }
    }
    found
}
