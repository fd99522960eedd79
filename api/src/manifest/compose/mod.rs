//! Compose files: services, networks, volumes, secrets and configs of a stack.
//!
//! What is supported is what the cluster does today; any other key is a problem with its place. Names of a stack's
//! objects are `STACK_NAME`, as `docker stack deploy` makes them, so that both manage the same stack.

mod decode;
mod files;
mod network;
mod service;

use std::collections::BTreeMap;
use std::rc::Rc;

use skep_proto::model::{NetworkSpec, ServiceSpec};

use super::problem::{Place, Problems};
use super::yaml::{self, Entry, Node};
use decode::{entries, text, unknown_key};
pub use files::{DeclaredFile, FileKind, Source};

/// The label by which Docker knows the objects of a stack.
pub const STACK_LABEL: &str = "com.docker.stack.namespace";
/// The label that keeps an image as it was written.
pub const IMAGE_LABEL: &str = "com.docker.stack.image";

/// A stack, as specs. Networks are named by their names in the cluster, in specs too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// Networks to make, by name in the cluster.
    pub networks: Vec<NetworkSpec>,
    /// Networks that must exist.
    pub external_networks: Vec<String>,
    /// Secrets and configs that services use. Their specs name them by their names here; the ids there are zero.
    pub files: Vec<DeclaredFile>,
    /// Services to make.
    pub services: Vec<ServiceSpec>,
}

/// What the services of a file may refer to.
struct Scope {
    stack: String,
    /// Key in the file -> volume.
    volumes: BTreeMap<String, network::Volume>,
}

const TOP_LEVEL: [&str; 7] = ["version", "name", "services", "networks", "volumes", "secrets", "configs"];

/// Reads a Compose file. `name` wins over the file's own; `fallback` is used when both are silent.
///
/// # Errors
/// Every problem of the file.
pub fn read(file: &str, content: &str, name: Option<&str>, fallback: &str) -> Result<Stack, Problems> {
    let documents = yaml::parse(file, content)?;
    let mut problems = Problems::of(file, content);
    let [document] = documents.as_slice() else {
        let place = documents.get(1).map_or(Place { line: 1, column: 1 }, |second| second.place);
        problems.add(place, "a Compose file is one document");
        return Err(problems.into_error());
    };
    let top = TopLevel::read(document, &mut problems);
    let own = top.name.map(|node| text(node, "name", &mut problems));
    let stack = name.map(str::to_owned).or(own).unwrap_or_else(|| fallback.to_owned());
    if !is_stack_name(&stack) {
        let place = top.name.map_or(document.place, |node| node.place);
        problems.add(
            place,
            format!(
                "{stack:?} is no name of a stack: lower-case letters, digits, - and _, beginning with a letter or digit"
            ),
        );
    }
    let mut networks = network::read_networks(top.networks, &stack, &mut problems);
    let volumes = network::read_volumes(top.volumes, &stack, &mut problems);
    let scope = Scope { stack: stack.clone(), volumes };
    let mut files = files::Files::default();
    files.declare(FileKind::Secret, top.secrets, &stack, &mut problems);
    files.declare(FileKind::Config, top.configs, &stack, &mut problems);
    if top.services.is_empty() {
        problems.add(document.place, "the file has no services");
    }
    let services: Vec<ServiceSpec> = top
        .services
        .iter()
        .map(|entry| service::read(entry, &scope, &mut networks, &mut files, &mut problems))
        .collect();
    let stack = Stack {
        name: stack,
        networks: networks.specs(),
        external_networks: networks.external,
        files: files.used(),
        services,
    };
    problems.finish(stack)
}

#[derive(Default)]
struct TopLevel<'a> {
    name: Option<&'a Node>,
    services: &'a [Entry],
    networks: &'a [Entry],
    volumes: &'a [Entry],
    secrets: &'a [Entry],
    configs: &'a [Entry],
}

impl<'a> TopLevel<'a> {
    fn read(document: &'a Rc<Node>, problems: &mut Problems) -> Self {
        let mut top = Self::default();
        for entry in entries(document, "a Compose file", problems) {
            match entry.key.as_str() {
                "services" => top.services = entries(&entry.value, "services", problems),
                "networks" => top.networks = entries(&entry.value, "networks", problems),
                "volumes" => top.volumes = entries(&entry.value, "volumes", problems),
                "secrets" => top.secrets = entries(&entry.value, "secrets", problems),
                "configs" => top.configs = entries(&entry.value, "configs", problems),
                "name" => top.name = Some(&entry.value),
                // Obsolete in the Compose Specification, and without meaning.
                "version" => {}
                key if key.starts_with("x-") => {}
                _ => unknown_key(entry, "a Compose file", &TOP_LEVEL, problems),
            }
        }
        top
    }
}

fn is_stack_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.len() <= 63
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}

#[cfg(test)]
mod tests;
