//! `metadata` of an object (apimachinery `meta/v1`, `ObjectMeta`).

use std::collections::BTreeMap;

use crate::manifest::decode::{entries, pairs, text};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::yaml::Node;

use super::rest::Rest;

/// The namespace of objects that name none.
pub const DEFAULT: &str = "default";

/// Who an object is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Name; empty only where a problem was reported.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Where it is declared.
    pub place: Place,
}

const REST: Rest<'_> = Rest {
    what: "metadata",
    known: &["name", "namespace", "labels", "annotations"],
    refused: &[("generateName", "give the object a name: a second apply must find it again")],
    left_out: &[
        ("finalizers", "nothing waits for anybody when an object goes"),
        ("ownerReferences", "objects of a stack go with the stack"),
    ],
};

/// Keys that an API server writes.
const OF_SERVER: [&str; 8] = [
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
    "deletionGracePeriodSeconds",
];

/// Reads `metadata`. A pod template needs no name.
pub fn read(node: Option<&Node>, place: Place, needs_name: bool, problems: &mut Problems) -> Meta {
    let mut meta = Meta { namespace: DEFAULT.to_owned(), place, ..Meta::default() };
    for field in node.map(|node| entries(node, "metadata", problems)).unwrap_or_default() {
        let value = &field.value;
        match field.key.as_str() {
            "name" => {
                meta.name = text(value, "name", problems);
                meta.place = value.place;
                if !is_name(&meta.name) {
                    problems.add(
                        value.place,
                        format!("{:?} is no name of an object: lower-case letters, digits, - and . are", meta.name),
                    );
                }
            }
            "namespace" if !value.is_null() => {
                meta.namespace = text(value, "namespace", problems);
                if !is_name(&meta.namespace) || meta.namespace.contains('.') {
                    problems.add(value.place, format!("{:?} is no name of a namespace", meta.namespace));
                }
            }
            "labels" => meta.labels = pairs(value, "labels", problems),
            "annotations" => meta.annotations = pairs(value, "annotations", problems),
            key if OF_SERVER.contains(&key) => {}
            _ => REST.take(field, problems),
        }
    }
    if needs_name && meta.name.is_empty() && problems.count() == 0 {
        problems.add(place, "the object has no name: add metadata.name");
    }
    meta
}

/// A DNS subdomain (RFC 1123), as Kubernetes has names.
pub fn is_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 253
        && name.starts_with(edge)
        && name.ends_with(edge)
        && name.chars().all(|c| edge(c) || c == '-' || c == '.')
}
