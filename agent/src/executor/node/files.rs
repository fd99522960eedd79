//! What is made for one task from its spec: expanded templates, and the files of its secrets and configs. Pure.

use skep_engine::containers::ContainerFile;
use skep_proto::model::container::{ContainerSpec, FileTarget};
use skep_proto::model::session::{FileContent, FileId};
use skep_proto::template::task::{ExpandError, TaskContext, expand};
use skep_proto::template::{self, Functions, TemplateError};

use crate::executor::files::Contents;
use crate::executor::{ExecutorError, TaskUnit};

/// Where secrets appear that name no absolute path.
const SECRETS: &str = "/run/secrets";
/// Bytes of an expanded secret or config at most: those of the largest that is not a template.
const MOST_BYTES: usize = 1000 * 1024;

/// A secret or config that a task cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It was removed.
    #[error("{kind} {name} does not exist any more")]
    Gone {
        /// `secret` or `config`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It is a template that cannot be expanded.
    #[error("expanding {kind} {name} failed: {source}")]
    Template {
        /// As above.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Why.
        source: TemplateError,
    },
    /// It is a template, and no text.
    #[error("expanding {kind} {name} failed: it is not text in UTF-8")]
    NotText {
        /// As above.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

impl From<FileError> for ExecutorError {
    fn from(error: FileError) -> Self {
        Self::Permanent(error.to_string())
    }
}

impl From<ExpandError> for ExecutorError {
    fn from(error: ExpandError) -> Self {
        Self::Permanent(error.to_string())
    }
}

/// A secret or config as a container refers to it.
struct Wanted<'a> {
    kind: &'static str,
    id: FileId,
    name: &'a str,
    file: FileTarget,
}

fn wanted(spec: &ContainerSpec) -> impl Iterator<Item = Wanted<'_>> {
    let target = |file: &Option<FileTarget>, name: &str| {
        file.clone().unwrap_or_else(|| FileTarget { name: name.to_owned(), mode: 0o444, ..FileTarget::default() })
    };
    let secrets = spec.secrets.iter().map(move |secret| Wanted {
        kind: "secret",
        id: FileId::Secret(secret.id),
        name: &secret.name,
        file: target(&secret.file, &secret.name),
    });
    let configs = spec.configs.iter().map(move |config| Wanted {
        kind: "config",
        id: FileId::Config(config.id),
        name: &config.name,
        file: target(&config.file, &config.name),
    });
    secrets.chain(configs)
}

/// Secrets and configs that the task's containers use.
pub(super) fn ids(unit: &TaskUnit) -> Vec<FileId> {
    unit.spec.task.containers.iter().flat_map(wanted).map(|wanted| wanted.id).collect()
}

/// Name of one of them, for people.
pub(super) fn gone(unit: &TaskUnit, id: FileId) -> FileError {
    let found = unit.spec.task.containers.iter().flat_map(wanted).find(|wanted| wanted.id == id);
    found.map_or(FileError::Gone { kind: "secret", name: String::new() }, |wanted| FileError::Gone {
        kind: wanted.kind,
        name: wanted.name.to_owned(),
    })
}

/// The containers of a task with their templates expanded.
pub(super) fn containers(unit: &TaskUnit, context: &TaskContext) -> Result<Vec<ContainerSpec>, ExpandError> {
    unit.spec.task.containers.iter().map(|spec| expand(spec, context)).collect()
}

/// The files of a container whose spec is expanded.
pub(super) fn of_container(
    spec: &ContainerSpec,
    context: &TaskContext,
    contents: &Contents,
) -> Result<Vec<ContainerFile>, FileError> {
    let functions = InFiles { spec, contents };
    wanted(spec)
        .map(|wanted| {
            let Wanted { kind, id, name, file } = &wanted;
            let FileContent { data, template } =
                contents.get(id).ok_or_else(|| FileError::Gone { kind, name: (*name).to_owned() })?;
            let data = if *template {
                let text =
                    std::str::from_utf8(&data.0).map_err(|_| FileError::NotText { kind, name: (*name).to_owned() })?;
                let expanded = template::parse(text)
                    .and_then(|template| template.expand(&context.root(), &functions, MOST_BYTES))
                    .map_err(|source| FileError::Template { kind, name: (*name).to_owned(), source })?;
                expanded.into()
            } else {
                data.0.clone()
            };
            Ok(ContainerFile {
                target: target(id, file),
                uid: file.uid.parse().unwrap_or(0),
                gid: file.gid.parse().unwrap_or(0),
                mode: file.mode,
                data,
            })
        })
        .collect()
}

fn target(id: &FileId, file: &FileTarget) -> String {
    match (file.name.starts_with('/'), id) {
        (true, _) => file.name.clone(),
        (false, FileId::Secret(_)) => format!("{SECRETS}/{}", file.name),
        (false, FileId::Config(_)) => format!("/{}", file.name),
    }
}

/// Functions of templates in secrets and configs (swarmkit `template/context.go`, `PayloadContext`).
struct InFiles<'a> {
    spec: &'a ContainerSpec,
    contents: &'a Contents,
}

impl InFiles<'_> {
    fn by_target(&self, kind: &str, target: &str) -> Result<String, String> {
        let missing = || format!("{kind} target {target} not found");
        let found = wanted(self.spec).find(|w| w.kind == kind && w.file.name == target).ok_or_else(missing)?;
        let content = self.contents.get(&found.id).ok_or_else(missing)?;
        String::from_utf8(content.data.0.to_vec()).map_err(|_| format!("{kind} {target} is not text in UTF-8"))
    }
}

impl Functions for InFiles<'_> {
    fn env(&self, name: &str) -> Result<String, String> {
        let value = self.spec.env.iter().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(value.unwrap_or_default().to_owned())
    }
    fn secret(&self, target: &str) -> Result<String, String> {
        self.by_target("secret", target)
    }
    fn config(&self, target: &str) -> Result<String, String> {
        self.by_target("config", target)
    }
}
