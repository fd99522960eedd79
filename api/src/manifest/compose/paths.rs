//! Paths in files: relative ones are relative to the directory of the file, or to the project directory that `include`
//! gives, so they are made absolute before files are merged. `~` is the caller's home.

use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use crate::manifest::yaml::{Entry, Node, Value};

/// What paths are relative to.
pub struct Base<'a> {
    /// The directory, absolute.
    pub directory: &'a Path,
    /// The caller's home, if there is one.
    pub home: Option<&'a str>,
}

/// The tree of a Compose file with absolute paths.
pub fn absolute(tree: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    fields(tree, |entry| match entry.key.as_str() {
        "services" => Some(fields(&entry.value, |service| Some(of_service(&service.value, base)))),
        "secrets" | "configs" => Some(fields(&entry.value, |file| {
            Some(fields(&file.value, |field| (field.key == "file").then(|| whole(&field.value, base))))
        })),
        "volumes" => Some(fields(&entry.value, |volume| Some(of_volume(&volume.value, base)))),
        _ => None,
    })
}

/// A service of a Compose file with absolute paths.
pub fn of_service(service: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    fields(service, |field| match field.key.as_str() {
        "volumes" => Some(items(&field.value, |item| of_mount(item, base))),
        "env_file" | "label_file" => Some(match &field.value.value {
            Value::Sequence(_) => items(&field.value, |item| of_env_file(item, base)),
            _ => of_env_file(&field.value, base),
        }),
        _ => None,
    })
}

fn of_env_file(node: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    match node.value {
        Value::Mapping(_) => fields(node, |field| (field.key == "path").then(|| whole(&field.value, base))),
        _ => whole(node, base),
    }
}

/// A mount in its short or its long form.
fn of_mount(node: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    let Some(text) = node.as_text() else {
        let is_bind = node.get("type").and_then(|t| t.as_text()) == Some("bind");
        return fields(node, |field| (is_bind && field.key == "source").then(|| whole(&field.value, base)));
    };
    match text.split_once(':') {
        Some((source, rest)) if is_path(source) => with_text(node, format!("{}:{rest}", join(source, base))),
        _ => node.clone(),
    }
}

/// A directory of the host that is mounted as a volume (`o: bind`, `device: ./data`).
fn of_volume(node: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    let is_bind = |options: &Node| options.get("o").and_then(|o| o.as_text()).is_some_and(|o| o.contains("bind"));
    fields(node, |field| {
        (field.key == "driver_opts" && is_bind(&field.value)).then(|| {
            fields(&field.value, |option| {
                let is_relative = option.key == "device" && option.value.as_text().is_some_and(is_path);
                is_relative.then(|| whole(&option.value, base))
            })
        })
    })
}

fn is_path(text: &str) -> bool {
    text.starts_with(['.', '~'])
}

fn whole(node: &Rc<Node>, base: &Base<'_>) -> Rc<Node> {
    match node.as_text() {
        Some(text) if !text.starts_with('/') => with_text(node, join(text, base)),
        _ => node.clone(),
    }
}

/// A path on the base, without `.` and `..`.
pub fn join(path: &str, base: &Base<'_>) -> String {
    let home = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let joined = match (home, base.home) {
        (Some(rest), Some(home)) => PathBuf::from(format!("{home}{rest}")),
        _ => base.directory.join(path),
    };
    let mut clean = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean.to_string_lossy().into_owned()
}

fn with_text(node: &Rc<Node>, text: String) -> Rc<Node> {
    Rc::new(Node::new(node.place, Value::Scalar { text, quoted: true }, node.tag))
}

fn fields(node: &Rc<Node>, change: impl Fn(&Entry) -> Option<Rc<Node>>) -> Rc<Node> {
    let Value::Mapping(entries) = &node.value else { return node.clone() };
    let changed = entries.iter().map(|e| Entry { value: change(e).unwrap_or_else(|| e.value.clone()), ..e.clone() });
    Rc::new(Node::new(node.place, Value::Mapping(changed.collect()), node.tag))
}

fn items(node: &Rc<Node>, change: impl Fn(&Rc<Node>) -> Rc<Node>) -> Rc<Node> {
    let Value::Sequence(list) = &node.value else { return node.clone() };
    Rc::new(Node::new(node.place, Value::Sequence(list.iter().map(change).collect()), node.tag))
}
