//! Placeholders of tasks: what they may name, and where they are expanded (swarmkit `template/context.go`, `expand.go`).

use std::collections::BTreeMap;

use super::{NoFunctions, TemplateError, Value, parse};
use crate::model::{Annotations, ContainerSpec, Labels};

/// Bytes that one expanded field has at most.
const MOST_BYTES: usize = 64 * 1024;

/// What templates of a task may name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskContext {
    /// Id of the service.
    pub service_id: String,
    /// Name of the service.
    pub service_name: String,
    /// Labels of the service.
    pub service_labels: Labels,
    /// Id of the node.
    pub node_id: String,
    /// Host name of the node.
    pub hostname: String,
    /// Architecture of the node.
    pub architecture: String,
    /// Operating system of the node.
    pub os: String,
    /// Id of the task.
    pub task_id: String,
    /// Name of the task.
    pub task_name: String,
    /// Slot of the task; the node's id for a task of a global service.
    pub slot: String,
    /// Address of the task on its first network; empty when it has none of its own.
    pub address: String,
    /// Address of the node.
    pub node_address: String,
}

impl TaskContext {
    /// What is known of a task of a service by its slot alone.
    pub fn of_slot(service_name: &str, slot: u32) -> Self {
        Self { service_name: service_name.to_owned(), slot: slot.to_string(), ..Self::default() }
    }

    fn ordinal(&self) -> String {
        self.slot.parse::<u32>().map_or_else(|_| self.slot.clone(), |slot| slot.saturating_sub(1).to_string())
    }

    /// The dot of a template.
    pub fn root(&self) -> Value {
        let labels: BTreeMap<String, String> = self.service_labels.clone().into_iter().collect();
        let platform =
            Value::record([("Architecture", Value::text(&self.architecture)), ("OS", Value::text(&self.os))]);
        Value::record([
            (
                "Service",
                Value::record([
                    ("ID", Value::text(&self.service_id)),
                    ("Name", Value::text(&self.service_name)),
                    ("Labels", Value::Labels(labels)),
                ]),
            ),
            (
                "Node",
                Value::record([
                    ("ID", Value::text(&self.node_id)),
                    ("Hostname", Value::text(&self.hostname)),
                    // Ours, not Swarm's.
                    ("Address", Value::text(&self.node_address)),
                    ("Platform", platform),
                ]),
            ),
            (
                "Task",
                Value::record([
                    ("ID", Value::text(&self.task_id)),
                    ("Name", Value::text(&self.task_name)),
                    ("Slot", Value::text(&self.slot)),
                    // Ours, not Swarm's: slots count from 1, the members of a Kubernetes StatefulSet from 0.
                    ("Ordinal", Value::text(self.ordinal())),
                    ("Address", Value::text(&self.address)),
                ]),
            ),
        ])
    }
}

/// A field of a container that cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expanding {field} failed: {source} {text:?}")]
pub struct ExpandError {
    /// Which: `hostname`, `env`, `mounts`.
    pub field: &'static str,
    /// The template.
    pub text: String,
    /// Why.
    source: TemplateError,
}

/// Expands host name, environment, and the names of volumes with their labels and options.
///
/// # Errors
/// The first that cannot be.
pub fn expand(container: &ContainerSpec, context: &TaskContext) -> Result<ContainerSpec, ExpandError> {
    let mut expanded = container.clone();
    let mut texts: Vec<(&'static str, &mut String)> = vec![("hostname", &mut expanded.hostname)];
    texts.extend(expanded.env.iter_mut().map(|line| ("env", line)));
    if expanded.pod.is_some() {
        // Kubernetes lets a command name variables, and those may be placeholders.
        texts.extend(expanded.command.iter_mut().chain(&mut expanded.args).map(|word| ("command", word)));
    }
    for mount in &mut expanded.mounts {
        texts.push(("mounts", &mut mount.source));
        if let Some(volume) = &mut mount.volume {
            texts.extend(volume.labels.values_mut().map(|value| ("mounts", value)));
            if let Some(driver) = &mut volume.driver {
                texts.extend(driver.options.values_mut().map(|value| ("mounts", value)));
            }
        }
    }
    let root = context.root();
    for (field, text) in texts.into_iter().filter(|(_, text)| is_template(text)) {
        *text = expand_with(text, &root).map_err(|source| ExpandError { field, text: text.clone(), source })?;
    }
    Ok(expanded)
}

/// Whether a text has something to be expanded.
pub fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// Expands one text.
///
/// # Errors
/// When it is no template, or names what is not there.
pub fn expand_text(text: &str, context: &TaskContext) -> Result<String, TemplateError> {
    if is_template(text) { expand_with(text, &context.root()) } else { Ok(text.to_owned()) }
}

fn expand_with(text: &str, root: &Value) -> Result<String, TemplateError> {
    parse(text)?.expand(root, &NoFunctions, MOST_BYTES)
}

/// Whether the templates of a container can be expanded, as far as that can be known before there is a task.
///
/// # Errors
/// As [`expand`].
pub fn check(service: &Annotations, container: &ContainerSpec) -> Result<(), ExpandError> {
    let word = || "x".to_owned();
    let context = TaskContext {
        service_id: word(),
        service_name: service.name.clone(),
        service_labels: service.labels.clone(),
        node_id: word(),
        hostname: word(),
        architecture: word(),
        os: word(),
        task_id: word(),
        task_name: word(),
        slot: "1".into(),
        address: word(),
        node_address: word(),
    };
    expand(container, &context).map(drop)
}
