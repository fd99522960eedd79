//! A stack of the cluster as Kubernetes manifests that apply to "no changes".
//!
//! What has a word in Kubernetes is written with it. The text is then read by the reader of this crate, and what differs from
//! the cluster goes into annotations of skep's own ([`super::extension`]), which a second reading proves right: nothing is lost
//! in silence. A service that no Kubernetes manifest made is written with [`extension::DEFAULTS`], so that what it leaves open
//! stays open.

mod container;
mod data;
mod names;
mod pod;
mod reach;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use skep_proto::model::{Labels, ServiceSpec};

use crate::docker::requests;
use crate::manifest::export::{Export, Exported};
use crate::manifest::plan::{Wanted, canonical, full_image, with_names};
use crate::manifest::reader::{self, Disk, Input, Options};
use crate::manifest::stack::{FileKind, IMAGE_LABEL};
use crate::manifest::yaml_text::{self, Dollar};

use super::extension;
use super::meta::DEFAULT;
use super::workload::Kind;

/// The files, as one text of many documents.
///
/// # Errors
/// Everything that cannot be written, a line each.
pub fn export(from: &Export<'_>) -> Result<Exported, String> {
    let mut services = Vec::new();
    let mut problems = Vec::new();
    for (name, seen) in &from.services {
        let shown = as_written(seen);
        match requests::read_service_spec(shown.clone()) {
            Ok(spec) if name.starts_with(&format!("{}_", from.stack)) => services.push((spec, shown)),
            Ok(_) => problems.push(format!("service {name}: its name does not begin with {}_", from.stack)),
            Err(reason) => problems.push(format!("service {name}: {reason}")),
        }
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let mut writer = Writer::new(from, &services);
    for (spec, _) in &services {
        writer.service(spec);
    }
    let mut documents = writer.documents();
    let found = read_again(from.stack, &documents)?;
    let mut notes = Vec::new();
    for (index, (spec, shown)) in services.iter().enumerate() {
        let name = &spec.annotations.name;
        let Some(found) = found.services.get(name) else {
            return Err(format!("service {name}: its manifest makes no service"));
        };
        let Some(patch) = extension::difference(&writer.seen(found), &canonical(shown)) else { continue };
        let mut members = Vec::new();
        leaves(&patch, &mut Vec::new(), &mut members);
        notes.push(format!(
            "service {name}: kept in the annotation {}, as Kubernetes has no word for it: {}",
            extension::SPEC,
            members.join(", ")
        ));
        let workload = &mut documents[writer.workloads[index]];
        workload["metadata"]["annotations"][extension::SPEC] = json!(patch.to_string());
    }
    let found = read_again(from.stack, &documents)?;
    for (spec, shown) in &services {
        let name = &spec.annotations.name;
        let again = found.services.get(name).map(|found| writer.seen(found));
        let left = extension::difference(&again.unwrap_or_default(), &canonical(shown));
        let mut members = Vec::new();
        leaves(&left.unwrap_or_default(), &mut Vec::new(), &mut members);
        problems.extend(members.iter().map(|path| format!("service {name}: {path} cannot be written in a manifest")));
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let mut text = format!("# skep apply --stack {} -f FILE\n", from.stack);
    text.extend(writer.warnings.iter().chain(&notes).map(|line| format!("# {line}\n")));
    if !notes.is_empty() {
        let count = notes.len();
        writer.warnings.push(format!(
            "{count} of {} services have what Kubernetes has no word for, kept in annotations: the comments at the top name it",
            services.len()
        ));
    }
    if documents.iter().any(|document| document["kind"] == "PersistentVolumeClaim") {
        text.push_str("# Kubernetes wants sizes of claims, which volumes of skep do not have\n");
    }
    if documents.iter().any(|document| document["kind"] == "Service" && document["spec"]["ports"].is_null()) {
        text.push_str("# Kubernetes wants ports of Services, of which skep needs only those that are published or led elsewhere\n");
    }
    for document in &documents {
        text.push_str("---\n");
        text.push_str(&yaml_text::write(document, Dollar::Plain));
    }
    Ok(Exported { text, warnings: writer.warnings })
}

/// Manifests that are exported name no files.
struct NoDisk;

impl Disk for NoDisk {
    fn read(&self, _: &Path, _: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn read_again(stack: &str, documents: &[Value]) -> Result<Wanted, String> {
    let texts: Vec<String> = documents.iter().map(|document| yaml_text::write(document, Dollar::Plain)).collect();
    let input = Input { name: "export".to_owned(), text: texts.join("---\n"), directory: "/".into() };
    let options = Options { stack: Some(stack.to_owned()), ..Options::default() };
    let stack = reader::read(&[input], &options, &NoDisk).map_err(|problems| problems.to_string())?;
    Ok(Wanted::from(&stack))
}

/// A spec without what clients add to what was written: the digest of an image, and its platforms.
fn as_written(seen: &Value) -> Value {
    let mut spec = seen.clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let image = text(&spec["TaskTemplate"]["ContainerSpec"]["Image"]);
    let written = text(&spec["Labels"][IMAGE_LABEL]);
    let tagged = image.split('@').next().unwrap_or_default();
    if full_image(&written) == full_image(tagged) && image.contains('@') {
        spec["TaskTemplate"]["Placement"]["Platforms"] = Value::Null;
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(written);
    } else if full_image(&written) == full_image(&image) {
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(written);
    }
    spec
}

/// The paths of the members of a patch.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        Value::Null if path.is_empty() => {}
        _ => found.push(path.join(".")),
    }
}

/// What is written so far.
struct Writer<'a> {
    from: &'a Export<'a>,
    /// Objects that workloads refer to.
    data: data::Data,
    claims: BTreeSet<(String, String)>,
    reach: reach::Services,
    /// Workloads, in the order of the services.
    objects: Vec<Value>,
    /// Their places among the documents.
    workloads: Vec<usize>,
    /// Names of objects by kind and namespace that are taken.
    taken: BTreeSet<(&'static str, String, String)>,
    /// Namespaces of the workloads.
    namespaces: BTreeSet<String>,
    warnings: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(from: &'a Export<'a>, services: &[(ServiceSpec, Value)]) -> Self {
        let namespaces = services.iter().map(|(spec, _)| names::Origin::of(spec, from.stack).namespace).collect();
        Self {
            from,
            data: data::Data::default(),
            claims: BTreeSet::new(),
            reach: reach::Services::default(),
            objects: Vec::new(),
            workloads: Vec::new(),
            taken: BTreeSet::new(),
            namespaces,
            warnings: Vec::new(),
        }
    }

    fn service(&mut self, spec: &ServiceSpec) {
        let origin = names::Origin::of(spec, self.from.stack);
        let name = self.free("workload", &origin.namespace, &origin.name);
        let origin = origin.renamed(name, spec, self.from.stack);
        let mut labels = spec.annotations.labels.clone();
        let workload = self.workload(&origin, spec, &mut labels);
        self.objects.push(workload);
    }

    /// A name that no other object of the kind has in the namespace.
    fn free(&mut self, kind: &'static str, namespace: &str, name: &str) -> String {
        let mut is_free = |free: &String| self.taken.insert((kind, namespace.to_owned(), free.clone()));
        names::numbered(name).find(|name| is_free(name)).unwrap_or_else(|| name.to_owned())
    }

    /// Everything, in an order in which each object comes after those that it refers to.
    fn documents(&mut self) -> Vec<Value> {
        let mut documents = Vec::new();
        for namespace in self.namespaces.iter().filter(|name| *name != DEFAULT) {
            documents.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        let (data, warnings) = self.data.documents(self.from);
        documents.extend(data);
        self.warnings.extend(warnings);
        for (namespace, name) in &self.claims {
            documents.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(namespace, name),
                "spec": {"accessModes": ["ReadWriteOnce"]},
            }));
        }
        documents.extend(self.reach.documents(&mut self.objects));
        let first = documents.len();
        self.workloads = (first..first + self.objects.len()).collect();
        documents.append(&mut self.objects);
        documents
    }

    /// What was read again, as the cluster would show it.
    fn seen(&self, spec: &Value) -> Value {
        canonical(&with_names(spec, &self.data.in_cluster))
    }
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({"name": name});
    if namespace != DEFAULT {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

/// Puts pairs into `labels` where Kubernetes takes them as such, else into `annotations`.
fn put_labels(metadata: &mut Value, pairs: &Labels) {
    for (key, value) in pairs {
        if names::is_label(key, value) {
            metadata["labels"][key] = json!(value);
        } else if names::is_qualified(key) {
            metadata["annotations"][key] = json!(value);
        }
    }
}

/// The kind that writes a service.
fn kind_of(spec: &ServiceSpec, is_scheduled: bool) -> Kind {
    use skep_proto::model::ServiceMode;
    match spec.mode {
        ServiceMode::Replicated { .. } => Kind::Deployment,
        ServiceMode::Global => Kind::DaemonSet,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob if is_scheduled => Kind::CronJob,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob => Kind::Job,
    }
}

/// Whole seconds.
fn seconds(time: std::time::Duration) -> Option<u64> {
    (time.subsec_nanos() == 0).then_some(time.as_secs())
}

/// A mapping that is not empty, put at a key.
fn put(value: &mut Value, key: &str, member: Value) {
    let is_empty = match &member {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !is_empty {
        value[key] = member;
    }
}

/// Names in the cluster of secrets and configs that are read from data, by their names without a number.
type InCluster = BTreeMap<(FileKind, String), String>;
/// A mapping under construction.
type Object = Map<String, Value>;
