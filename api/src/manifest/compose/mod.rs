//! Compose files: services, networks, volumes, secrets and configs of a stack.
//!
//! What is supported is what the cluster does today; any other key is a problem with its place. Names of a stack's
//! objects are `STACK_NAME`, as `docker stack deploy` makes them, so that both manage the same stack.

mod dotenv;
pub mod export;
mod files;
pub mod interpolate;
mod load;
mod merge;
mod network;
mod paths;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::decode::{entries, text, unknown_key};
use super::problem::{Place, Problems};
use super::reader::Scope;
use super::stack::{FileKind, Parts, StackService};
use super::yaml::{Entry, Node};
use interpolate::Variables;
pub use load::load;

/// Compose files as one tree, with variables put in.
#[derive(Debug, Default)]
pub struct Project {
    /// The name that they give the stack.
    pub name: Option<String>,
    /// Where they do.
    pub name_place: Option<Place>,
    tree: Option<Rc<Node>>,
    /// The caller's variables, over those of `.env`.
    variables: Variables,
}

/// What the services of a file may refer to.
struct Names<'a> {
    scope: &'a Scope<'a>,
    variables: &'a Variables,
    /// Keys of the services.
    services: BTreeSet<&'a str>,
    /// Key in the file -> volume.
    volumes: BTreeMap<String, network::Volume>,
}

const TOP_LEVEL: [&str; 7] = ["version", "name", "services", "networks", "volumes", "secrets", "configs"];

/// Reads the tree. Nothing, when there were no Compose files.
pub fn read(project: &Project, scope: &Scope<'_>, problems: &mut Problems) -> Parts {
    let Some(tree) = &project.tree else { return Parts::default() };
    let top = TopLevel::read(tree, problems);
    let mut networks = network::read_networks(top.networks, scope.stack, problems);
    let volumes = network::read_volumes(top.volumes, scope.stack, problems);
    let mut files = files::Files::default();
    files.declare(FileKind::Secret, top.secrets, scope, problems);
    files.declare(FileKind::Config, top.configs, scope, problems);
    if top.services.is_empty() {
        problems.add(tree.place, "the file has no services");
    }
    let keys = top.services.iter().map(|entry| entry.key.as_str()).collect();
    let names = Names { scope, variables: &project.variables, services: keys, volumes };
    let mut services: Vec<StackService> =
        top.services.iter().map(|entry| service::read(entry, &names, &mut networks, &mut files, problems)).collect();
    service::check_dependencies(&mut services, problems);
    Parts {
        networks: networks.specs(),
        external_networks: networks.external,
        files: files.used(scope, problems),
        volumes: network::declared(names.volumes, &services),
        services,
    }
}

#[derive(Default)]
struct TopLevel<'a> {
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
                "name" => drop(text(&entry.value, "name", problems)),
                // Obsolete in the Compose Specification, and without meaning.
                "version" => {}
                key if key.starts_with("x-") => {}
                _ => unknown_key(entry, "a Compose file", &TOP_LEVEL, problems),
            }
        }
        top
    }
}

#[cfg(test)]
mod load_tests;
#[cfg(test)]
pub mod recorded;
#[cfg(test)]
mod tests;
