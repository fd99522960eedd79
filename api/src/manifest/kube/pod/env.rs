//! Environments: `env`, `envFrom`, and `$(NAME)` in what refers to them.

use crate::manifest::decode::{boolean, entries, items, text, unknown_key};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::FileKind;
use crate::manifest::yaml::Node;

use super::quantity;
use super::resources::Amount;
use super::{Context, escaped};

/// Variables in the order in which they were set; a later one of a name replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// `NAME=value` lines.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Puts values in place of `$(NAME)`; `$$` is a dollar sign, and a name that is not set stays as it is.
    pub fn expand(&self, text: &str) -> String {
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
            match name.and_then(|(name, after)| Some((self.0.iter().find(|(known, _)| known == name)?, after))) {
                Some(((_, value), after)) => {
                    out.push_str(value);
                    rest = after;
                }
                None => out.push('$'),
            }
        }
        out.push_str(rest);
        out
    }
}

/// Amounts of the container, for `resourceFieldRef`: requests and limits.
pub type Amounts = (Amount, Amount);

/// Reads `envFrom`, which comes before `env` however they are written.
pub fn from(node: &Node, context: &Context<'_>, environment: &mut Environment, problems: &mut Problems) {
    for item in items(node, "envFrom", problems) {
        let mut prefix = String::new();
        let mut found = None;
        for field in entries(item, "envFrom", problems) {
            match field.key.as_str() {
                "prefix" => prefix = text(&field.value, "prefix", problems),
                "configMapRef" => found = reference(FileKind::Config, &field.value, context, false, problems),
                "secretRef" => found = reference(FileKind::Secret, &field.value, context, false, problems),
                _ => unknown_key(field, "envFrom", &["prefix", "configMapRef", "secretRef"], problems),
            }
        }
        let Some((data, _)) = found else { continue };
        if data.kind == FileKind::Secret {
            warn_of_secret(item.place, problems);
        }
        for (key, (content, place)) in &data.values {
            let name = format!("{prefix}{key}");
            // As the kubelet: what is no name of a variable is left out.
            if !is_variable(&name) {
                problems.warn(item.place, format!("{name:?} is no name of a variable: it is left out"));
                continue;
            }
            if let Some(value) = as_text(&content.0, key, *place, problems) {
                environment.set(&name, escaped(&value));
            }
        }
    }
}

/// Reads `env`.
pub fn read(
    node: &Node,
    context: &Context<'_>,
    amounts: &Amounts,
    environment: &mut Environment,
    problems: &mut Problems,
) {
    for item in items(node, "env", problems) {
        let (mut name, mut value) = (String::new(), String::new());
        let mut is_left_out = false;
        for field in entries(item, "a variable", problems) {
            match field.key.as_str() {
                "name" => {
                    name = text(&field.value, "name", problems);
                    if !is_variable(&name) {
                        problems.add(field.value.place, format!("{name:?} is no name of a variable"));
                    }
                }
                "value" if field.value.is_null() => {}
                "value" => value = environment.expand(&escaped(&text(&field.value, "value", problems))),
                "valueFrom" => match value_from(&field.value, context, amounts, problems) {
                    Some(found) => value = found,
                    None => is_left_out = true,
                },
                _ => unknown_key(field, "a variable", &["name", "value", "valueFrom"], problems),
            }
        }
        if !is_left_out && !name.is_empty() {
            environment.set(&name, value);
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

fn value_from(node: &Node, context: &Context<'_>, amounts: &Amounts, problems: &mut Problems) -> Option<String> {
    let mut value = None;
    for field in entries(node, "valueFrom", problems) {
        let of = &field.value;
        value = match field.key.as_str() {
            "configMapKeyRef" => key_of(FileKind::Config, of, context, problems),
            "secretKeyRef" => {
                warn_of_secret(of.place, problems);
                key_of(FileKind::Secret, of, context, problems)
            }
            "fieldRef" => field_of(of, context, problems),
            "resourceFieldRef" => resource_of(of, amounts, problems),
            _ => {
                let known = ["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];
                unknown_key(field, "valueFrom", &known, problems);
                None
            }
        };
    }
    value
}

fn warn_of_secret(place: Place, problems: &mut Problems) {
    let text = "a secret in a variable is part of the service's spec, where inspection shows it: mount it as a file to keep it sealed";
    problems.warn(place, text);
}

/// The ConfigMap or Secret that a reference names, and the key if it names one. Where it is optional and not there, `None`
/// without a problem.
fn reference<'a>(
    kind: FileKind,
    node: &Node,
    context: &Context<'a>,
    needs_key: bool,
    problems: &mut Problems,
) -> Option<(&'a super::super::data::Data, String)> {
    let (mut name, mut key, mut optional) = (String::new(), String::new(), false);
    for field in entries(node, "a reference", problems) {
        match field.key.as_str() {
            "name" => name = text(&field.value, "name", problems),
            "key" if needs_key => key = text(&field.value, "key", problems),
            "optional" => optional = boolean(&field.value, "optional", problems),
            _ => unknown_key(field, "a reference", &["name", "key", "optional"], problems),
        }
    }
    let found = context.objects.data(kind, &context.owner.namespace, &name);
    if found.is_none() && !optional {
        problems.add(node.place, missing(kind, &name, context));
    }
    found.map(|data| (data, key)).filter(|(data, key)| {
        let is_there = !needs_key || data.values.contains_key(key);
        if !is_there && !optional {
            problems.add(node.place, format!("{name} has no key {key:?}"));
        }
        is_there
    })
}

/// What is said of a ConfigMap or Secret that is not in the files.
pub fn missing(kind: FileKind, name: &str, context: &Context<'_>) -> String {
    let word = if kind == FileKind::Secret { "Secret" } else { "ConfigMap" };
    format!("there is no {word} {name:?} in the namespace {}: apply it together with this", context.owner.namespace)
}

fn key_of(kind: FileKind, node: &Node, context: &Context<'_>, problems: &mut Problems) -> Option<String> {
    let (data, key) = reference(kind, node, context, true, problems)?;
    let (content, _) = data.values.get(&key)?;
    as_text(&content.0, &key, node.place, problems).map(|value| escaped(&value))
}

fn as_text(content: &[u8], key: &str, place: Place, problems: &mut Problems) -> Option<String> {
    match std::str::from_utf8(content) {
        Ok(text) if !text.contains('\0') => Some(text.to_owned()),
        _ => {
            problems.add(place, format!("the value of {key} is no text: a variable cannot hold it"));
            None
        }
    }
}

/// Fields that a pod may learn of itself (core/v1, `ObjectFieldSelector`).
pub fn field_of(node: &Node, context: &Context<'_>, problems: &mut Problems) -> Option<String> {
    let mut path = String::new();
    for field in entries(node, "fieldRef", problems) {
        match field.key.as_str() {
            "fieldPath" => path = text(&field.value, "fieldPath", problems),
            "apiVersion" => {}
            _ => unknown_key(field, "fieldRef", &["fieldPath"], problems),
        }
    }
    let in_brackets = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    let value = match path.as_str() {
        "metadata.name" => context.pod_name.clone(),
        "metadata.namespace" => context.owner.namespace.clone(),
        "metadata.uid" => "{{.Task.ID}}".to_owned(),
        "spec.nodeName" => "{{.Node.Hostname}}".to_owned(),
        "spec.serviceAccountName" => "default".to_owned(),
        "status.podIP" | "status.podIPs" => "{{.Task.Address}}".to_owned(),
        "status.hostIP" | "status.hostIPs" => "{{.Node.Address}}".to_owned(),
        _ => {
            let label = in_brackets("metadata.labels['").map(|key| context.meta.labels.get(key));
            let annotation = in_brackets("metadata.annotations['").map(|key| context.meta.annotations.get(key));
            match label.or(annotation) {
                Some(found) => escaped(found.map_or("", String::as_str)),
                None => {
                    problems.add(node.place, format!("a pod does not know its {path:?}"));
                    return None;
                }
            }
        }
    };
    Some(value)
}

fn resource_of(node: &Node, (requests, limits): &Amounts, problems: &mut Problems) -> Option<String> {
    let (mut resource, mut divisor) = (String::new(), 1000);
    for field in entries(node, "resourceFieldRef", problems) {
        match field.key.as_str() {
            "resource" => resource = text(&field.value, "resource", problems),
            "divisor" => divisor = quantity::read(&field.value, "divisor", problems).filter(|d| *d > 0).unwrap_or(1000),
            "containerName" => {
                problems.add(field.place, "containerName is not supported by skep: only the container's own")
            }
            _ => unknown_key(field, "resourceFieldRef", &["resource", "divisor"], problems),
        }
    }
    let thousandths = match resource.as_str() {
        "limits.cpu" => i128::from(limits.nano_cpus) / 1_000_000,
        "requests.cpu" => i128::from(requests.nano_cpus) / 1_000_000,
        "limits.memory" => i128::from(limits.memory) * 1000,
        "requests.memory" => i128::from(requests.memory) * 1000,
        other => {
            let known = "limits.cpu, limits.memory, requests.cpu and requests.memory";
            problems.add(node.place, format!("a container knows its {known}, not {other:?}"));
            return None;
        }
    };
    if thousandths == 0 {
        problems.add(node.place, format!("the container has no {resource}: set it, or write the value"));
        return None;
    }
    Some((thousandths / divisor + i128::from(thousandths % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_variables_are_expanded_as_kubernetes_does() {
        let environment = Environment(vec![("A".into(), "1".into()), ("B".into(), "$(A)".into())]);
        for (text, expected) in
            [("x$(A)y", "x1y"), ("$(NO) $$(A) $A $", "$(NO) $(A) $A $"), ("$(B)", "$(A)"), ("$(A", "$(A")]
        {
            assert_eq!(environment.expand(text), expected, "{text}");
        }
    }
}
