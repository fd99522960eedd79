//! Names and labels, as far as Kubernetes takes them.

use skep_proto::model::{ServiceSpec, schedule};

use crate::manifest::kube::build::{OBJECT_LABEL, cluster_name};
use crate::manifest::kube::meta::DEFAULT;
use crate::manifest::kube::workload::Kind;

/// The object that a service was made from, or may be written as.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service's name in the stack, where that does not follow from the object's.
    pub stack_name: Option<String>,
    /// No manifest of Kubernetes made it: Docker's defaults hold.
    pub is_docker: bool,
}

impl Origin {
    /// What the label of the service says, or what its name and mode suggest.
    pub fn of(spec: &ServiceSpec, stack: &str) -> Self {
        let labels = &spec.annotations.labels;
        let service = &spec.annotations.name;
        let own = own_name(service, stack);
        let written = labels.get(OBJECT_LABEL).and_then(|object| {
            let (kind, path) = object.split_once(' ')?;
            let (namespace, name) = path.split_once('/')?;
            Some((Kind::of(kind)?, namespace.to_owned(), name.to_owned()))
        });
        let is_docker = written.is_none();
        let (kind, namespace, name) = written.unwrap_or_else(|| {
            let kind = super::kind_of(spec, labels.contains_key(schedule::LABEL));
            (kind, DEFAULT.to_owned(), object_name(own))
        });
        let mut origin = Self { kind, namespace, name, stack_name: None, is_docker };
        origin.keep_stack_name(spec, stack);
        origin
    }

    /// The same service as an object of another name.
    #[must_use]
    pub fn renamed(mut self, name: String, spec: &ServiceSpec, stack: &str) -> Self {
        self.name = name;
        self.keep_stack_name(spec, stack);
        self
    }

    fn keep_stack_name(&mut self, spec: &ServiceSpec, stack: &str) {
        let service = &spec.annotations.name;
        let follows = cluster_name(stack, &self.namespace, &self.name) == *service;
        self.stack_name = (!follows).then(|| own_name(service, stack).to_owned());
    }
}

/// A service's name in its stack.
fn own_name<'a>(service: &'a str, stack: &str) -> &'a str {
    service.strip_prefix(stack).and_then(|rest| rest.strip_prefix('_')).unwrap_or(service)
}

/// A name that any object may have (RFC 1123, a label): what is not allowed becomes a dash.
pub fn object_name(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let plain: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let trimmed = plain.trim_matches('-');
    if trimmed.is_empty() { "x".to_owned() } else { trimmed.to_owned() }
}

/// A name, and others like it for when it is taken.
pub fn numbered(name: &str) -> impl Iterator<Item = String> + '_ {
    std::iter::once(name.to_owned()).chain((2..).map(move |number: u32| format!("{name}-{number}")))
}

/// Whether it is a key of labels and annotations (apimachinery, "qualified name").
pub fn is_qualified(key: &str) -> bool {
    let (domain, name) = key.rsplit_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    is_word(name) && !name.is_empty() && domain.is_none_or(crate::manifest::kube::meta::is_name)
}

/// Whether it can be a label.
pub fn is_label(key: &str, value: &str) -> bool {
    is_qualified(key) && is_word(value)
}

fn is_word(text: &str) -> bool {
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && (text.is_empty() || (text.starts_with(is_edge) && text.ends_with(is_edge)))
        && text.chars().all(|c| is_edge(c) || "-_.".contains(c))
}

/// A key of data: letters, digits, `-`, `_` and `.`.
pub fn data_key(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    if plain.is_empty() || plain.chars().all(|c| c == '.') { "data".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_that_kubernetes_takes() {
        assert_eq!(object_name("My_App.v2-"), "my-app-v2");
        assert_eq!(object_name("__"), "x");
        assert!(is_label("app.kubernetes.io/name", "web") && is_label("a", ""));
        assert!(!is_label("a", "Host(`x`)") && !is_label("a/b/c", "x") && !is_qualified("a b"));
        assert_eq!((data_key("a/b c").as_str(), data_key("..").as_str()), ("a-b-c", "data"));
    }
}
