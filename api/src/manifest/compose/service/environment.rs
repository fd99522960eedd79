//! Variables and labels of a service, and the files that hold more of them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::manifest::Problems;
use crate::manifest::compose::{Names, dotenv};
use crate::manifest::decode::{boolean, entries, text, unknown_key};
use crate::manifest::problem::Place;
use crate::manifest::yaml::{Node, Value};

/// `NAME=VALUE` lines in the order of their names, as `docker stack deploy` sends them. Those of `environment` win over those
/// of files, and of files the last.
pub fn lines(
    files: Option<&Node>,
    environment: Option<&Node>,
    names: &Names<'_>,
    problems: &mut Problems,
) -> Vec<String> {
    let mut variables = files.map(|node| from_files(node, names, problems)).unwrap_or_default();
    if let Some(node) = environment {
        for (name, value, place) in pairs(node, problems) {
            match value.or_else(|| names.variables.get(&name).cloned()) {
                Some(value) => drop(variables.insert(name, value)),
                None => {
                    let message =
                        format!("{name} has no value here and is not set where this is run: containers do not get it");
                    problems.warn(place, message);
                    variables.remove(&name);
                }
            }
        }
    }
    variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn pairs(node: &Node, problems: &mut Problems) -> Vec<(String, Option<String>, Place)> {
    match &node.value {
        Value::Sequence(list) => {
            let item = |item: &std::rc::Rc<Node>, problems: &mut Problems| {
                let line = text(item, "environment", problems);
                let (name, value) = line.split_once('=').map_or((line.as_str(), None), |(n, v)| (n, Some(v)));
                (name.to_owned(), value.map(str::to_owned), item.place)
            };
            list.iter().map(|i| item(i, problems)).collect()
        }
        _ => entries(node, "environment", problems)
            .iter()
            .map(|e| {
                let value = (!e.value.is_null()).then(|| text(&e.value, "a variable", problems));
                (e.key.clone(), value, e.place)
            })
            .collect(),
    }
}

/// A path, or a list of paths or of mappings (Compose Specification, `env_file`).
fn from_files(node: &Node, names: &Names<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let single = [std::rc::Rc::new(node.clone())];
    let list = if let Value::Sequence(list) = &node.value { list.as_slice() } else { &single };
    for item in list {
        let (mut path, mut is_required, mut is_raw) = (String::new(), true, false);
        if let Value::Mapping(_) = item.value {
            for field in entries(item, "env_file", problems) {
                match field.key.as_str() {
                    "path" => path = text(&field.value, "path", problems),
                    "required" => is_required = boolean(&field.value, "required", problems),
                    "format" => match text(&field.value, "format", problems).as_str() {
                        "raw" => is_raw = true,
                        other => problems.add(field.value.place, format!("a format is raw or absent, not {other:?}")),
                    },
                    _ => unknown_key(field, "env_file", &["path", "required", "format"], problems),
                }
            }
        } else {
            path = text(item, "env_file", problems);
        }
        if path.is_empty() {
            problems.add(item.place, "env_file needs the path of a file");
            continue;
        }
        let content = match names.scope.disk.read(Path::new(&path), dotenv::MOST_BYTES) {
            Ok(content) => String::from_utf8_lossy(&content).into_owned(),
            Err(error) if !is_required && error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                problems.add(item.place, format!("the file {path} cannot be read: {error}"));
                continue;
            }
        };
        let file = problems.file(&path, &content);
        let read = if is_raw { dotenv::read_raw } else { dotenv::read };
        read(file, &content, names.variables, &mut variables, problems);
    }
    variables
}

/// Labels of `label_file`.
pub fn labels_of_files(node: &Node, names: &Names<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    from_files(node, names, problems)
}
