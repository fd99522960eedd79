//! Secrets and configs of a Compose file: what is declared, and how services use it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use skep_proto::model::container::{ConfigReference, FileTarget, SecretReference};
use skep_proto::model::{ConfigId, Labels, SecretId};

use super::network::external;
use crate::manifest::Problems;
use crate::manifest::decode::{entries, items, pairs, text, unknown_key};
use crate::manifest::problem::Place;
use crate::manifest::reader::Scope;
use crate::manifest::stack::STACK_LABEL;
use crate::manifest::stack::{Content, DeclaredFile, FileKind};
use crate::manifest::yaml::{Entry, Node, Value};

/// Keys of a declaration. `content` is for configs only (Compose Specification, "Configs", "Secrets").
const KEYS: [&str; 7] = ["file", "environment", "external", "name", "labels", "template_driver", "content"];
const USE_KEYS: [&str; 5] = ["source", "target", "uid", "gid", "mode"];

/// A declaration, and whether a service uses it.
#[derive(Debug)]
struct Declared {
    file: DeclaredFile,
    source: Source,
    is_used: bool,
}

/// Secrets and configs of a file, by kind and key.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<(FileKind, String), Declared>);

impl Files {
    /// Those that a service uses: what `docker stack deploy` makes. The content of others is not looked at.
    pub fn used(self, scope: &Scope<'_>, problems: &mut Problems) -> Vec<DeclaredFile> {
        let load = |Declared { mut file, source, .. }: Declared| {
            file.content = content(file.kind, &file.key, source, scope, problems);
            file
        };
        self.0.into_values().filter(|d| d.is_used).map(load).collect()
    }

    /// Reads `secrets` or `configs` at the top.
    pub fn declare(&mut self, kind: FileKind, declared: &[Entry], scope: &Scope<'_>, problems: &mut Problems) {
        for entry in declared {
            let declared = read_declared(kind, entry, scope, problems);
            self.0.insert((kind, entry.key.clone()), declared);
        }
    }

    /// Reads `secrets` of a service. Ids are not known yet: a reference names what it means by its name in the cluster.
    pub fn secrets(&mut self, node: &Node, problems: &mut Problems) -> Vec<SecretReference> {
        let used = self.used_in(FileKind::Secret, node, problems);
        used.into_iter().map(|(name, file)| SecretReference { id: SecretId(0), name, file: Some(file) }).collect()
    }

    /// Likewise `configs`.
    pub fn configs(&mut self, node: &Node, problems: &mut Problems) -> Vec<ConfigReference> {
        let used = self.used_in(FileKind::Config, node, problems);
        used.into_iter().map(|(name, file)| ConfigReference { id: ConfigId(0), name, file: Some(file) }).collect()
    }

    fn used_in(&mut self, kind: FileKind, node: &Node, problems: &mut Problems) -> Vec<(String, FileTarget)> {
        let mut used = Vec::new();
        for item in items(node, "secrets and configs of a service", problems) {
            let mut file = FileTarget { name: String::new(), uid: "0".into(), gid: "0".into(), mode: 0o444 };
            let mut source = String::new();
            if let Value::Mapping(_) = item.value {
                for field in entries(item, "a reference", problems) {
                    let value = &field.value;
                    match field.key.as_str() {
                        "source" => source = text(value, "source", problems),
                        "target" => file.name = text(value, "target", problems),
                        "uid" => file.uid = text(value, "uid", problems),
                        "gid" => file.gid = text(value, "gid", problems),
                        "mode" => file.mode = mode(value, problems),
                        _ => unknown_key(field, "a reference", &USE_KEYS, problems),
                    }
                }
            } else {
                source = text(item, "a reference", problems);
            }
            if file.name.is_empty() {
                let root = if kind == FileKind::Config { "/" } else { "" };
                file.name = format!("{root}{source}");
            }
            used.extend(self.use_of(kind, &source, item.place, problems).map(|name| (name, file)));
        }
        used
    }

    fn use_of(&mut self, kind: FileKind, key: &str, place: Place, problems: &mut Problems) -> Option<String> {
        let Some(declared) = self.0.get_mut(&(kind, key.to_owned())) else {
            let word = kind.word();
            problems.add(place, format!("the {word} {key} is not declared: add it under {word}s"));
            return None;
        };
        declared.is_used = true;
        Some(declared.file.name.clone())
    }
}

/// A mode is octal, as YAML 1.1 read it and people write it: `0440`, `"0440"`, `0o440`.
fn mode(node: &Node, problems: &mut Problems) -> u32 {
    let written = text(node, "mode", problems);
    let digits = written.strip_prefix("0o").unwrap_or(&written);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777).unwrap_or_else(|| {
        problems.add(node.place, format!("a mode is octal, like 0440, not {written:?}"));
        0
    })
}

/// Where content comes from, and the place that says so. Its `Debug` shows no content.
enum Source {
    External,
    File(PathBuf, Place),
    Environment(String, Place),
    Content(String, Place),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::External => f.write_str("External"),
            Self::File(path, _) => write!(f, "File({})", path.display()),
            Self::Environment(name, _) => write!(f, "Environment({name})"),
            Self::Content(content, _) => write!(f, "Content({} bytes)", content.len()),
        }
    }
}

fn read_declared(kind: FileKind, entry: &Entry, scope: &Scope<'_>, problems: &mut Problems) -> Declared {
    let word = kind.word();
    let mut labels = Labels::from([(STACK_LABEL.to_owned(), scope.stack.to_owned())]);
    let (mut name, mut template_driver, mut sources) = (None, None, Vec::new());
    for field in entries(&entry.value, "a secret or config", problems) {
        let (value, place) = (&field.value, field.value.place);
        match field.key.as_str() {
            "file" => {
                let path = scope.options.directory.join(text(value, "file", problems));
                sources.push(Source::File(path, place));
            }
            "environment" => sources.push(Source::Environment(text(value, "environment", problems), place)),
            "content" if kind == FileKind::Config => {
                sources.push(Source::Content(text(value, "content", problems), place));
            }
            "external" => sources.extend(external(value, &mut name, problems).then_some(Source::External)),
            "name" => name = Some(text(value, "name", problems)),
            "labels" => labels.extend(pairs(value, "labels", problems)),
            "template_driver" => {
                let driver = text(value, "template_driver", problems);
                if driver != skep_proto::model::secret::TEMPLATE_DRIVER {
                    problems.add(value.place, format!("the only template_driver is golang, not {driver:?}"));
                }
                template_driver = Some(driver);
            }
            key if key.starts_with("x-") => {}
            _ => unknown_key(field, "a secret or config", &KEYS[..6 + usize::from(kind == FileKind::Config)], problems),
        }
    }
    let choices = if kind == FileKind::Config {
        "file, environment, content or external"
    } else {
        "file, environment or external"
    };
    let complaint = match sources.len() {
        0 => Some("no content"),
        1 => None,
        _ => Some("several contents"),
    };
    if let Some(complaint) = complaint {
        problems.add(entry.place, format!("the {word} {} has {complaint}: give one of {choices}", entry.key));
    }
    let source = sources.pop().unwrap_or(Source::External);
    let is_named = name.is_some();
    let default = match source {
        Source::External => entry.key.clone(),
        _ => format!("{}_{}", scope.stack, entry.key),
    };
    let file = DeclaredFile {
        kind,
        key: entry.key.clone(),
        place: entry.place,
        name: name.unwrap_or(default),
        is_named,
        labels,
        template_driver,
        content: None,
    };
    Declared { file, source, is_used: false }
}

/// The content; a problem at the place that says where it comes from when there is none.
fn content(kind: FileKind, key: &str, source: Source, scope: &Scope<'_>, problems: &mut Problems) -> Option<Content> {
    let (word, limit) = (kind.word(), kind.limit());
    let (content, place) = match source {
        Source::External => return None,
        Source::Content(text, place) => (text.into_bytes(), place),
        Source::Environment(name, place) => match scope.options.environment.get(&name) {
            Some(value) => (value.clone().into_bytes(), place),
            None => {
                problems.add(place, format!("the {word} {key} is the variable {name}, which is not set: set it"));
                return None;
            }
        },
        Source::File(path, place) => match scope.disk.read(&path, limit) {
            Ok(content) => (content, place),
            Err(error) => {
                problems.add(place, format!("the {word} {key} cannot be read from {}: {error}", path.display()));
                return None;
            }
        },
    };
    if content.is_empty() || content.len() >= limit {
        let length = content.len();
        problems
            .add(place, format!("the {word} {key} has {length} bytes; it must have at least 1 and fewer than {limit}"));
    }
    Some(Content(content))
}
