//! Volumes of data: ConfigMaps, Secrets and what a pod knows of itself, as files.

use std::collections::BTreeSet;

use crate::manifest::decode::{boolean, entries, items, text, unknown_key};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::{Content, FileKind};
use crate::manifest::yaml::Node;

use super::{Context, env};

/// Permission bits of files that name none.
const MODE: u32 = 0o644;

/// A file of a volume of data.
#[derive(Debug, Clone)]
pub struct File {
    /// Path in the volume.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Secret or config.
    pub kind: FileKind,
    /// Name of the object and key in it.
    pub of: (String, String),
    /// Its name in the cluster, where the object says one.
    pub name: Option<String>,
    /// What it holds; `None` for what must exist.
    pub content: Option<Content>,
    /// It has placeholders.
    pub is_template: bool,
    /// Where it is asked for.
    pub place: Place,
}

/// Reads `configMap` and `secret`: all keys, or those that `items` names.
pub fn of_data(kind: FileKind, node: &Node, context: &Context<'_>, problems: &mut Problems) -> Vec<File> {
    let (mut name, mut optional, mut default, mut chosen) = (String::new(), false, MODE, None);
    for field in entries(node, "a volume of data", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "name" | "secretName" => name = text(value, "name", problems),
            "optional" => optional = boolean(value, "optional", problems),
            "defaultMode" => default = mode(value, problems),
            "items" => chosen = Some(value.clone()),
            _ => unknown_key(
                field,
                "a volume of data",
                &["name", "secretName", "items", "defaultMode", "optional"],
                problems,
            ),
        }
    }
    let Some(data) = context.objects.data(kind, &context.owner.namespace, &name) else {
        if !optional {
            problems.add(node.place, env::missing(kind, &name, context));
        }
        return Vec::new();
    };
    let file = |path: &str, key: &str, mode: u32, place: Place| {
        let content = data.values.get(key).map(|(content, _)| content.clone());
        let (of, named) = ((name.clone(), key.to_owned()), data.names.get(key).cloned());
        let is_known = content.is_some() || named.is_some();
        is_known.then(|| File {
            path: path.to_owned(),
            mode,
            kind,
            of,
            name: named,
            content,
            is_template: false,
            place,
        })
    };
    let Some(chosen) = chosen else {
        let keys: BTreeSet<&String> = data.values.keys().chain(data.names.keys()).collect();
        return keys.into_iter().filter_map(|key| file(key, key, default, node.place)).collect();
    };
    let mut files = Vec::new();
    for item in items(&chosen, "items", problems) {
        let (key, path, mode) = key_to_path(item, default, problems);
        match file(&path, &key, mode, item.place) {
            Some(file) => files.push(file),
            None if optional => {}
            None => problems.add(item.place, format!("{name} has no key {key:?}")),
        }
    }
    files
}

fn key_to_path(node: &Node, default: u32, problems: &mut Problems) -> (String, String, u32) {
    let (mut key, mut path, mut bits) = (String::new(), String::new(), default);
    for field in entries(node, "an item", problems) {
        match field.key.as_str() {
            "key" => key = text(&field.value, "key", problems),
            "path" => path = relative(&field.value, problems),
            "mode" => bits = mode(&field.value, problems),
            _ => unknown_key(field, "an item", &["key", "path", "mode"], problems),
        }
    }
    (key, path, bits)
}

/// A path that stays in the volume.
pub fn relative(node: &Node, problems: &mut Problems) -> String {
    let path = text(node, "path", problems);
    if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
        problems.add(node.place, format!("a path of an item is relative and stays in the volume, not {path:?}"));
    }
    path
}

/// Decimal as JSON has it, octal where YAML says so: `420`, `0644`, `0o644`.
fn mode(node: &Node, problems: &mut Problems) -> u32 {
    let written = text(node, "a mode", problems);
    let octal = written.strip_prefix("0o").or_else(|| written.strip_prefix('0').filter(|rest| !rest.is_empty()));
    let bits = octal.map_or_else(|| written.parse().ok(), |digits| u32::from_str_radix(digits, 8).ok());
    bits.filter(|bits| *bits <= 0o777).unwrap_or_else(|| {
        problems.add(node.place, format!("a mode is from 0 to 0777, not {written:?}"));
        MODE
    })
}

/// Reads `downwardAPI`: what a pod knows of itself, as files.
pub fn downward(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Vec<File> {
    let (mut files, mut default) = (Vec::new(), MODE);
    for field in entries(node, "downwardAPI", problems) {
        match field.key.as_str() {
            "defaultMode" => default = mode(&field.value, problems),
            "items" => {
                for item in items(&field.value, "items", problems) {
                    let (mut path, mut content, mut bits) = (String::new(), None, default);
                    for part in entries(item, "an item", problems) {
                        match part.key.as_str() {
                            "path" => path = relative(&part.value, problems),
                            "mode" => bits = mode(&part.value, problems),
                            "fieldRef" => {
                                content = all_of(&part.value, context)
                                    .or_else(|| env::field_of(&part.value, context, problems))
                            }
                            _ => unknown_key(part, "an item", &["path", "fieldRef", "mode"], problems),
                        }
                    }
                    let Some(content) = content else { continue };
                    let key: String = path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
                    files.push(File {
                        path,
                        mode: bits,
                        kind: FileKind::Config,
                        of: (format!("{}-pod", context.owner.name), key),
                        name: None,
                        is_template: content.contains("{{"),
                        content: Some(Content(content.into_bytes())),
                        place: item.place,
                    });
                }
            }
            _ => unknown_key(field, "downwardAPI", &["items", "defaultMode"], problems),
        }
    }
    files
}

/// All labels or annotations, a line each.
fn all_of(node: &Node, context: &Context<'_>) -> Option<String> {
    let all = match node.get("fieldPath")?.as_text()? {
        "metadata.labels" => &context.meta.labels,
        "metadata.annotations" => &context.meta.annotations,
        _ => return None,
    };
    Some(all.iter().map(|(key, value)| super::escaped(&format!("{key}={value:?}\n"))).collect())
}

/// Reads `projected`: files of several sources in one folder.
pub fn projected(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Vec<File> {
    let mut files = Vec::new();
    let mut default = None;
    for field in entries(node, "projected", problems) {
        match field.key.as_str() {
            "defaultMode" => default = Some(mode(&field.value, problems)),
            "sources" => {
                for source in items(&field.value, "sources", problems) {
                    for part in entries(source, "a source", problems) {
                        match part.key.as_str() {
                            "configMap" => files.extend(of_data(FileKind::Config, &part.value, context, problems)),
                            "secret" => files.extend(of_data(FileKind::Secret, &part.value, context, problems)),
                            "downwardAPI" => files.extend(downward(&part.value, context, problems)),
                            "serviceAccountToken" | "clusterTrustBundle" => {
                                let text = "is not supported by skep: there is no API server that a task could ask";
                                problems.add(part.place, format!("{} {text}", part.key));
                            }
                            _ => unknown_key(part, "a source", &["configMap", "secret", "downwardAPI"], problems),
                        }
                    }
                }
            }
            _ => unknown_key(field, "projected", &["sources", "defaultMode"], problems),
        }
    }
    if let Some(default) = default {
        files.iter_mut().filter(|file| file.mode == MODE).for_each(|file| file.mode = default);
    }
    files
}
