//! `v1` ConfigMap and Secret: named data.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::manifest::decode::{entries, text};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::{Content, FileKind};
use crate::manifest::yaml::Node;

use super::meta::Meta;
use super::rest::Rest;

/// A ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Which of the two.
    pub kind: FileKind,
    /// Who it is.
    pub meta: Meta,
    /// A Secret's type.
    pub of_type: String,
    /// Values by key, with their places.
    pub values: BTreeMap<String, (Content, Place)>,
    /// Names in the cluster by key, where they are not made from the object's; a key without a value must exist there.
    pub names: BTreeMap<String, String>,
}

/// Reads the object's keys beside `metadata`.
pub fn read(kind: FileKind, node: &Node, meta: Meta, problems: &mut Problems) -> Data {
    let what = if kind == FileKind::Secret { "a Secret" } else { "a ConfigMap" };
    let rest = Rest {
        what,
        known: &["data", "stringData", "binaryData", "type", "immutable", "metadata", "kind", "apiVersion"],
        refused: &[],
        left_out: &[],
    };
    let names = meta.files(problems);
    let mut data = Data { kind, meta, of_type: String::new(), values: BTreeMap::new(), names };
    let mut plain = BTreeMap::new();
    for field in entries(node, what, problems) {
        let is_secret = kind == FileKind::Secret;
        match field.key.as_str() {
            "data" => add(&field.value, is_secret, &mut data.values, problems),
            "binaryData" if !is_secret => add(&field.value, true, &mut data.values, problems),
            // Wins over `data`.
            "stringData" if is_secret => add(&field.value, false, &mut plain, problems),
            "type" if is_secret => data.of_type = text(&field.value, "type", problems),
            // The content of configs and secrets never changes in the cluster: a changed one is another.
            "immutable" | "metadata" | "kind" | "apiVersion" => {}
            _ => rest.take(field, problems),
        }
    }
    data.values.extend(plain);
    data
}

fn add(node: &Node, encoded: bool, values: &mut BTreeMap<String, (Content, Place)>, problems: &mut Problems) {
    for entry in entries(node, "data", problems) {
        let key = &entry.key;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.is_empty() || key.len() > 253 || !key.chars().all(allowed) || matches!(key.as_str(), "." | "..") {
            problems.add(entry.place, format!("{key:?} is no key of data: letters, digits, -, _ and . are"));
            continue;
        }
        let written = if entry.value.is_null() { String::new() } else { text(&entry.value, key, problems) };
        let content = if encoded {
            let compact: String = written.chars().filter(|c| !c.is_whitespace()).collect();
            match BASE64_STANDARD.decode(compact) {
                Ok(content) => content,
                Err(_) => {
                    let hint = "it is written in base64 here; stringData takes text";
                    problems.add(entry.value.place, format!("the value of {key} cannot be decoded: {hint}"));
                    continue;
                }
            }
        } else {
            written.into_bytes()
        };
        values.insert(key.clone(), (Content(content), entry.value.place));
    }
}
