//! What has to be done so that the cluster matches a stack: wanted minus observed.
//!
//! [`plan`] is pure. Three states meet in it: what is wanted now, what the cluster has, and what the last apply wanted. A
//! member in which the cluster differs from the wanted although the wanted has not changed since was changed by hand: it is
//! *drift*, told and left alone unless it is to be taken back.

mod canonical;
mod diff;
#[cfg(test)]
mod tests;
mod text;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

pub use canonical::{canonical, full_image, plain};
pub use diff::Field;
pub use wanted::{FileWanted, Wanted, each_reference};

use super::stack::FileKind;

/// What the cluster has of a stack. Specs name networks, secrets and configs; [`ServiceSeen::spec`] is the API's.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Services with the stack's label, by name.
    pub services: BTreeMap<String, ServiceSeen>,
    /// Networks with the stack's label, by name.
    pub networks: BTreeMap<String, NetworkSeen>,
    /// Secrets and configs with the stack's label.
    pub files: Vec<FileSeen>,
    /// Services of nobody or of other stacks whose names are wanted: name and stack (empty for none).
    pub foreign: BTreeMap<String, String>,
    /// What the last apply wanted; `None` when there was none.
    pub last: Option<Wanted>,
    /// Secrets and configs that revisions hold, by name.
    pub held: BTreeSet<(FileKind, String)>,
}

/// A service of the cluster.
#[derive(Debug, Clone)]
pub struct ServiceSeen {
    /// Its id.
    pub id: String,
    /// Its version, which a change names.
    pub version: u64,
    /// Its spec.
    pub spec: Value,
}

/// A network of the cluster.
#[derive(Debug, Clone)]
pub struct NetworkSeen {
    /// Its id.
    pub id: String,
    /// As the API shows it.
    pub shown: Value,
}

/// A secret or config of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSeen {
    /// Which of the two.
    pub kind: FileKind,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The file of the stack whose content it has now, by name: it need not be made.
    pub same_as: Option<String>,
    /// An apply made it; only then it is one that collecting may remove.
    pub is_ours: bool,
}

/// How to plan.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Take back what was changed by hand.
    pub force: bool,
    /// Remove what an earlier apply owned and is not wanted any more.
    pub prune: Prune,
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prune {
    /// Nothing.
    #[default]
    Nothing,
    /// What the last apply owned.
    Owned,
    /// Everything with the stack's label.
    Labelled,
}

/// One thing to do, so complete that doing it needs no choice. Ids of secrets and configs that are made before are put into
/// references by name.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make a network.
    MakeNetwork {
        /// Its name.
        name: String,
        /// The body of the request.
        body: Value,
    },
    /// Make a secret or config.
    MakeFile {
        /// Which of the two.
        kind: FileKind,
        /// Its name.
        name: String,
        /// Index in [`Wanted::files`].
        file: usize,
    },
    /// Make a service.
    MakeService {
        /// Its name.
        name: String,
        /// Its spec.
        spec: Value,
    },
    /// Change a service.
    ChangeService {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
        /// The version that was seen.
        version: u64,
        /// Its new spec.
        spec: Value,
        /// What changes.
        fields: Vec<Field>,
    },
    /// Remove a service.
    RemoveService {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
    /// Remove a network.
    RemoveNetwork {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
    /// Remove a secret or config that nothing needs any more.
    RemoveFile {
        /// Which of the two.
        kind: FileKind,
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
}

/// What was changed by hand.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// The service.
    pub service: String,
    /// What differs: `old` is what the cluster has, `new` what the files say.
    pub fields: Vec<Field>,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The stack.
    pub stack: String,
    /// In the order in which they are done.
    pub steps: Vec<Step>,
    /// What was changed by hand and is left alone.
    pub drift: Vec<Drift>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// What makes the plan impossible; nothing is done then.
    pub refusals: Vec<String>,
    /// Names of secrets and configs in the cluster, by kind and name in the stack.
    pub names: BTreeMap<(FileKind, String), String>,
}

/// Plans.
pub fn plan(wanted: &Wanted, observed: &Observed, how: How) -> Plan {
    let mut plan = Plan { stack: wanted.name.clone(), ..Plan::default() };
    plan.networks(wanted, observed);
    plan.files(wanted, observed);
    for (name, spec) in &wanted.services {
        let spec = with_names(spec, &plan.names);
        match observed.services.get(name) {
            Some(seen) => plan.change(name, &spec, seen, observed, how),
            None => plan.create(name, spec, observed),
        }
    }
    plan.removals(wanted, observed, how.prune);
    plan
}

impl Plan {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn networks(&mut self, wanted: &Wanted, observed: &Observed) {
        for (name, body) in &wanted.networks {
            let Some(seen) = observed.networks.get(name) else {
                self.steps.push(Step::MakeNetwork { name: name.clone(), body: body.clone() });
                continue;
            };
            for key in ["Attachable", "Internal", "EnableIPv6"] {
                let (is, should) = (seen.shown[key] == true, body[key] == true);
                if is != should {
                    self.notes.push(format!(
                        "network {name}: {key} is {is}, and {should} is wanted: networks do not change; remove it to have it made again"
                    ));
                }
            }
        }
    }

    /// Which secret or config of the cluster stands for each file: one with the same content, or a new one.
    fn files(&mut self, wanted: &Wanted, observed: &Observed) {
        for (index, file) in wanted.files.iter().enumerate() {
            let key = (file.kind, file.name.clone());
            if !file.has_content {
                self.names.insert(key, file.name.clone());
                continue;
            }
            let of_file = |seen: &&FileSeen| seen.kind == file.kind && version_of(&seen.name, &file.name).is_some();
            let versions: Vec<&FileSeen> = observed.files.iter().filter(of_file).collect();
            let number = |seen: &&FileSeen| version_of(&seen.name, &file.name).unwrap_or(0);
            let same = versions.iter().filter(|v| v.same_as.as_deref() == Some(&file.name)).max_by_key(|v| number(v));
            if let Some(same) = same {
                self.names.insert(key, same.name.clone());
                continue;
            }
            let last = versions.iter().map(number).max();
            let name = match last {
                Some(_) if file.is_named => {
                    let word = file.kind.word();
                    self.refusals.push(format!(
                        "the {word} {} has another content in the cluster, where content never changes: give it another name, or remove name:",
                        file.name
                    ));
                    file.name.clone()
                }
                None => file.name.clone(),
                Some(last) => format!("{}-{}", file.name, last + 1),
            };
            self.steps.push(Step::MakeFile { kind: file.kind, name: name.clone(), file: index });
            self.names.insert(key, name);
        }
    }

    fn create(&mut self, name: &str, spec: Value, observed: &Observed) {
        if let Some(stack) = observed.foreign.get(name) {
            let of = if stack.is_empty() { "no stack".to_owned() } else { format!("the stack {stack}") };
            self.refusals.push(format!(
                "the service {name} exists and is of {of}: remove or rename it, or choose another name for the stack"
            ));
            return;
        }
        self.steps.push(Step::MakeService { name: name.to_owned(), spec });
    }

    fn change(&mut self, name: &str, wanted: &Value, seen: &ServiceSeen, observed: &Observed, how: How) {
        let new = canonical(wanted);
        let old = like(&canonical(&seen.spec), &new);
        let last = observed.last.as_ref().and_then(|last| last.services.get(name)).map(canonical);
        let (mut changes, mut drift) = (Vec::new(), Vec::new());
        for field in diff::diff(&old, &new) {
            let was_wanted = last.as_ref().is_some_and(|last| diff::at(last, &field.path) == field.new.as_ref());
            if was_wanted && !how.force { drift.push(field) } else { changes.push(field) }
        }
        let mode = |spec: &Value| spec["Mode"].as_object().and_then(|m| m.keys().next().cloned());
        if mode(&old) != mode(&new) {
            self.refusals.push(format!(
                "the service {name} has another mode in the cluster, and a mode does not change: `skep service rm {name}` first"
            ));
            return;
        }
        let mut spec = wanted.clone();
        if !drift.is_empty() {
            let mut kept = new.clone();
            drift.iter().for_each(|field| diff::set(&mut kept, &field.path, field.old.as_ref()));
            spec = plain(&kept);
            self.drift.push(Drift { service: name.to_owned(), fields: drift });
        }
        if changes.is_empty() {
            return;
        }
        keep(&mut spec, &seen.spec);
        let (id, version) = (seen.id.clone(), seen.version);
        self.steps.push(Step::ChangeService { name: name.to_owned(), id, version, spec, fields: changes });
    }

    fn removals(&mut self, wanted: &Wanted, observed: &Observed, prune: Prune) {
        let owned = |name: &String, of: fn(&Wanted) -> &BTreeMap<String, Value>| match prune {
            Prune::Nothing => false,
            Prune::Labelled => true,
            Prune::Owned => observed.last.as_ref().is_some_and(|last| of(last).contains_key(name)),
        };
        for (name, seen) in observed.services.iter().filter(|(name, _)| !wanted.services.contains_key(*name)) {
            if owned(name, |w| &w.services) {
                self.steps.push(Step::RemoveService { name: name.clone(), id: seen.id.clone() });
            } else {
                self.notes.push(format!("service {name} is not in the files and is left alone; --prune removes it"));
            }
        }
        for (name, seen) in observed.networks.iter().filter(|(name, _)| !wanted.networks.contains_key(*name)) {
            if owned(name, |w| &w.networks) {
                self.steps.push(Step::RemoveNetwork { name: name.clone(), id: seen.id.clone() });
            }
        }
        if prune == Prune::Nothing {
            return;
        }
        let used = self.used_files(observed);
        for seen in &observed.files {
            let key = (seen.kind, seen.name.clone());
            let is_current = self.names.values().any(|name| *name == seen.name);
            let is_owned = seen.is_ours || prune == Prune::Labelled;
            if is_owned && !is_current && !used.contains(&key) && !observed.held.contains(&key) {
                self.steps.push(Step::RemoveFile { kind: seen.kind, name: seen.name.clone(), id: seen.id.clone() });
            }
        }
    }

    /// What services of the stack will go on to use.
    fn used_files(&self, observed: &Observed) -> BTreeSet<(FileKind, String)> {
        let removed: BTreeSet<&str> = self
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::RemoveService { name, .. } | Step::ChangeService { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let kept = observed.services.iter().filter(|(name, _)| !removed.contains(name.as_str())).map(|(_, s)| &s.spec);
        let changed = self.steps.iter().filter_map(|step| match step {
            Step::ChangeService { spec, .. } | Step::MakeService { spec, .. } => Some(spec),
            _ => None,
        });
        kept.chain(changed).flat_map(wanted::references).collect()
    }
}

/// `NAME` is version 1, `NAME-2` the second.
pub(crate) fn version_of(name: &str, file: &str) -> Option<u64> {
    match name.strip_prefix(file)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok().filter(|n| *n > 1),
    }
}

/// The spec with the names that secrets and configs have in the cluster.
pub(crate) fn with_names(spec: &Value, names: &BTreeMap<(FileKind, String), String>) -> Value {
    let mut spec = spec.clone();
    wanted::each_reference(&mut spec, |kind, reference, key, _| {
        let name = reference[key].as_str().map(str::to_owned).unwrap_or_default();
        if let Some(in_cluster) = names.get(&(kind, name)) {
            reference[key] = Value::from(in_cluster.clone());
        }
    });
    spec
}

/// What the cluster has, without what other clients add to what the files leave open: a digest, platforms.
fn like(old: &Value, new: &Value) -> Value {
    let mut old = old.clone();
    let image = ["TaskTemplate", "ContainerSpec", "Image"].map(str::to_owned);
    let text = |v: &Value| diff::at(v, &image).and_then(Value::as_str).map(str::to_owned);
    if let (Some(is), Some(wanted)) = (text(&old), text(new))
        && !wanted.contains('@')
        && let Some((name, _)) = is.split_once('@')
    {
        diff::set(&mut old, &image, Some(&Value::from(full_image(name))));
    }
    let platforms = ["TaskTemplate", "Placement", "Platforms"].map(str::to_owned);
    if diff::at(new, &platforms).is_none() {
        diff::set(&mut old, &platforms, None);
    }
    old
}

/// What a change must not lose: how often tasks were replaced on request, labels of the cluster, and a digest that other
/// clients found for the same image.
fn keep(spec: &mut Value, seen: &Value) {
    let force = &seen["TaskTemplate"]["ForceUpdate"];
    if !force.is_null() {
        spec["TaskTemplate"]["ForceUpdate"] = force.clone();
    }
    let container = |v: &Value| v["TaskTemplate"]["ContainerSpec"]["Image"].as_str().map(str::to_owned);
    if let (Some(new), Some(old)) = (container(spec), container(seen))
        && !new.contains('@')
        && old.split_once('@').is_some_and(|(name, _)| full_image(name) == full_image(&new))
    {
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = Value::from(old);
    }
}
