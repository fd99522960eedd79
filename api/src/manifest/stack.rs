//! A stack: what files want, whatever their format. Readers make it, the plan compares it with what the cluster has.

use std::collections::BTreeMap;
use std::fmt;

use skep_proto::model::container::VolumeOptions;
pub use skep_proto::model::dependency::{Condition, Dependency};
pub use skep_proto::model::schedule::{Concurrency, Schedule};
use skep_proto::model::{Labels, NetworkSpec, ServiceSpec, dependency};

use super::problem::{Place, Problems};

/// The label by which Docker knows the objects of a stack.
pub const STACK_LABEL: &str = "com.docker.stack.namespace";
/// The label that keeps an image as it was written.
pub const IMAGE_LABEL: &str = "com.docker.stack.image";

/// A stack, as specs. Objects are named by their names in the cluster (`STACK_NAME`), in specs too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub parts: Parts,
    /// What works, but perhaps not as the author thinks: lines for people.
    pub warnings: Vec<String>,
}

/// What one reader contributes to a stack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Networks to make, by name in the cluster.
    pub networks: Vec<NetworkSpec>,
    /// Networks that must exist.
    pub external_networks: Vec<String>,
    /// Secrets and configs to make or to find. Specs name them by [`DeclaredFile::name`]; the ids there are zero.
    pub files: Vec<DeclaredFile>,
    /// Volumes that services mount. Nodes make them when they first need them.
    pub volumes: Vec<DeclaredVolume>,
    /// Services to make.
    pub services: Vec<StackService>,
}

/// A service of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackService {
    /// Its name in the file.
    pub key: String,
    /// Where it is declared.
    pub place: Place,
    /// What the cluster is asked for, without what the fields below say: see [`Self::whole_spec`].
    pub spec: ServiceSpec,
    /// What it waits for, by names in the cluster.
    pub depends_on: Vec<Dependency>,
    /// When it runs again; for jobs.
    pub schedule: Option<Schedule>,
}

impl StackService {
    /// The spec that the cluster is asked for: dependencies and schedule are labels of it.
    pub fn whole_spec(&self) -> ServiceSpec {
        let mut spec = self.spec.clone();
        if !self.depends_on.is_empty() {
            spec.annotations.labels.insert(dependency::LABEL.to_owned(), dependency::write(&self.depends_on));
        }
        if let Some(schedule) = &self.schedule {
            schedule.write(&mut spec.annotations.labels);
        }
        spec
    }
}

/// A volume that services mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredVolume {
    /// Key in the file.
    pub key: String,
    /// Its name on the nodes.
    pub name: String,
    /// How it is made; `None` for one that must exist.
    pub options: Option<VolumeOptions>,
}

/// Secret or config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// Its content has fewer bytes than this (swarmkit `api/validation/secrets.go`, `manager/controlapi/config.go`).
    pub fn limit(self) -> usize {
        match self {
            Self::Secret => 500 * 1024,
            Self::Config => 1000 * 1024,
        }
    }
}

/// Content of a secret or config. Its `Debug` prints none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(pub Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.0.len())
    }
}

/// A secret or config that files declare and a service uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredFile {
    /// Which of the two.
    pub kind: FileKind,
    /// Key in the file.
    pub key: String,
    /// Where it is declared.
    pub place: Place,
    /// Name in the cluster. When its content changes, a number is added to it there (`NAME-2`).
    pub name: String,
    /// The name was given in the file: then it is the file's to change when the content changes.
    pub is_named: bool,
    /// Its labels.
    pub labels: Labels,
    /// `golang` when the content is a template.
    pub template_driver: Option<String>,
    /// What it holds; `None` for one that must exist.
    pub content: Option<Content>,
}

impl Parts {
    /// Adds what another reader has read. The same name from two of them is a problem.
    pub fn absorb(&mut self, other: Self, problems: &mut Problems) {
        let mut names: BTreeMap<String, Place> =
            self.services.iter().map(|s| (s.spec.annotations.name.clone(), s.place)).collect();
        for service in other.services {
            if let Some(first) = names.insert(service.spec.annotations.name.clone(), service.place) {
                let first = format!("{}:{}", problems.name(first.file), first.line);
                problems.add(service.place, format!("the service {} is declared twice: first in {first}", service.key));
            }
            self.services.push(service);
        }
        let mut names: BTreeMap<(FileKind, String), Place> =
            self.files.iter().map(|f| ((f.kind, f.name.clone()), f.place)).collect();
        for file in other.files {
            if let Some(first) = names.insert((file.kind, file.name.clone()), file.place) {
                let first = format!("{}:{}", problems.name(first.file), first.line);
                let word = file.kind.word();
                problems.add(file.place, format!("the {word} {} is declared twice: first in {first}", file.key));
            }
            self.files.push(file);
        }
        // Readers share the stack's default network, and may name the same volume.
        for network in other.networks {
            if !self.networks.iter().any(|n| n.annotations.name == network.annotations.name) {
                self.networks.push(network);
            }
        }
        for name in other.external_networks {
            if !self.external_networks.contains(&name) {
                self.external_networks.push(name);
            }
        }
        for volume in other.volumes {
            if !self.volumes.iter().any(|v| v.name == volume.name) {
                self.volumes.push(volume);
            }
        }
    }
}
