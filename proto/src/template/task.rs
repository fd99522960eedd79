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
}

impl TaskContext {
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
                    ("Platform", platform),
                ]),
            ),
            (
                "Task",
                Value::record([
                    ("ID", Value::text(&self.task_id)),
                    ("Name", Value::text(&self.task_name)),
                    ("Slot", Value::text(&self.slot)),
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
    for (field, text) in texts.into_iter().filter(|(_, text)| text.contains("{{")) {
        let result = parse(text).and_then(|template| template.expand(&root, &NoFunctions, MOST_BYTES));
        *text = result.map_err(|source| ExpandError { field, text: text.clone(), source })?;
    }
    Ok(expanded)
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
    };
    expand(container, &context).map(drop)
}
