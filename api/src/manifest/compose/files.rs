//! Secrets and configs of a Compose file: what is declared, and how services use it.

use std::collections::BTreeMap;

use skep_proto::model::container::{ConfigReference, FileTarget, SecretReference};
use skep_proto::model::{ConfigId, Labels, SecretId};

use super::decode::{boolean, entries, items, pairs, text, unknown_key};
use super::{Problems, STACK_LABEL};
use crate::manifest::problem::Place;
use crate::manifest::yaml::{Entry, Node, Value};

/// Keys of a declaration. `content` is for configs only (Compose Specification, "Configs", "Secrets").
const KEYS: [&str; 7] = ["file", "environment", "external", "name", "labels", "template_driver", "content"];
const USE_KEYS: [&str; 5] = ["source", "target", "uid", "gid", "mode"];

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// Content that nobody is shown.
    Secret,
    /// Content that may be shown.
    Config,
}

impl FileKind {
    /// The word for one.
    pub fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }
}

/// Where content comes from. Its `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// It is in the cluster.
    External,
    /// A file, relative to the Compose file.
    File(String),
    /// A variable of the caller.
    Environment(String),
    /// It stands in the Compose file.
    Content(String),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::External => f.write_str("External"),
            Self::File(path) => write!(f, "File({path})"),
            Self::Environment(name) => write!(f, "Environment({name})"),
            Self::Content(content) => write!(f, "Content({} bytes)", content.len()),
        }
    }
}

/// A secret or config that a file declares and a service uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredFile {
    /// Which of the two.
    pub kind: FileKind,
    /// Key in the file.
    pub key: String,
    /// Name in the cluster.
    pub name: String,
    /// The name was given: another content needs another name, which is then the file's to give.
    pub is_named: bool,
    /// Its labels.
    pub labels: Labels,
    /// `golang` when the content is a template.
    pub template_driver: Option<String>,
    /// Where its content comes from.
    pub source: Source,
    used: bool,
}

/// Secrets and configs of a file, by kind and key.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<(FileKind, String), DeclaredFile>);

impl Files {
    /// Those that a service uses: what `docker stack deploy` makes.
    pub fn used(self) -> Vec<DeclaredFile> {
        self.0.into_values().filter(|file| file.used).collect()
    }

    /// Reads `secrets` or `configs` at the top.
    pub fn declare(&mut self, kind: FileKind, declared: &[Entry], stack: &str, problems: &mut Problems) {
        for entry in declared {
            let file = read_declared(kind, entry, stack, problems);
            self.0.insert((kind, entry.key.clone()), file);
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
        let Some(file) = self.0.get_mut(&(kind, key.to_owned())) else {
            let word = kind.word();
            problems.add(place, format!("the {word} {key} is not declared: add it under {word}s"));
            return None;
        };
        file.used = true;
        Some(file.name.clone())
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

fn read_declared(kind: FileKind, entry: &Entry, stack: &str, problems: &mut Problems) -> DeclaredFile {
    let word = kind.word();
    let mut labels = Labels::from([(STACK_LABEL.to_owned(), stack.to_owned())]);
    let (mut name, mut template_driver, mut sources) = (None, None, Vec::new());
    for field in entries(&entry.value, "a secret or config", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "file" => sources.push(Source::File(text(value, "file", problems))),
            "environment" => sources.push(Source::Environment(text(value, "environment", problems))),
            "content" if kind == FileKind::Config => sources.push(Source::Content(text(value, "content", problems))),
            "external" => {
                if boolean(value, "external", problems) {
                    sources.push(Source::External);
                }
            }
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
    let source = match (sources.pop(), sources.is_empty()) {
        (Some(source), true) => source,
        (None, _) => {
            problems.add(entry.place, format!("the {word} {} has no content: give one of {choices}", entry.key));
            Source::External
        }
        (Some(source), false) => {
            problems.add(entry.place, format!("the {word} {} has several contents: give one of {choices}", entry.key));
            source
        }
    };
    let is_named = name.is_some();
    let default = if source == Source::External { entry.key.clone() } else { format!("{stack}_{}", entry.key) };
    DeclaredFile {
        kind,
        key: entry.key.clone(),
        name: name.unwrap_or(default),
        is_named,
        labels,
        template_driver,
        source,
        used: false,
    }
}
