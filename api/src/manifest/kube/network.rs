//! Networks of a stack, and the names that its workloads have on them.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::model::container::Driver;
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{Annotations, NetworkSpec};

use crate::manifest::stack::STACK_LABEL;

use super::meta::DEFAULT;
use super::object::Objects;

/// Networks of the stack: one for each namespace, and one for all when there are several, where only full names hold.
pub struct Networks {
    stack: String,
    has_several: bool,
    /// Namespaces with a Service that is reached by IPv6, too.
    dual: BTreeSet<String>,
    /// Those that workloads use, by name.
    pub used: BTreeMap<String, NetworkSpec>,
}

impl Networks {
    /// Those of some objects; none is used yet.
    pub fn of(objects: &Objects, stack: &str) -> Self {
        let dual = objects.services.iter().filter(|service| service.ipv6);
        Self {
            stack: stack.to_owned(),
            has_several: objects.namespaces().len() > 1,
            dual: dual.map(|service| service.meta.namespace.clone()).collect(),
            used: BTreeMap::new(),
        }
    }

    fn take(&mut self, name: String, ipv6: bool) -> String {
        self.used.entry(name.clone()).or_insert_with(|| NetworkSpec {
            annotations: Annotations {
                name: name.clone(),
                labels: [(STACK_LABEL.to_owned(), self.stack.clone())].into(),
            },
            driver: Driver { name: "overlay".into(), options: BTreeMap::new() },
            ipv6,
            ..NetworkSpec::default()
        });
        name
    }

    /// Attachments of a workload that names its networks itself; those that must exist go to `external`.
    pub fn attach_to(
        &mut self,
        declared: BTreeMap<String, Option<NetworkSpec>>,
        names: &Names,
        external: &mut Vec<String>,
    ) -> Vec<NetworkAttachmentSpec> {
        let mut attachments = Vec::new();
        for (target, spec) in declared {
            // The node's own networks know no names.
            let is_local = matches!(target.as_str(), "host" | "none" | "bridge");
            let all = names.short.iter().chain(&names.full).filter(|_| !is_local).cloned();
            let aliases = all.collect();
            match spec {
                Some(spec) => drop(self.used.insert(target.clone(), spec)),
                None if !external.contains(&target) => external.push(target.clone()),
                None => {}
            }
            attachments.push(NetworkAttachmentSpec { target, aliases, ..NetworkAttachmentSpec::default() });
        }
        attachments
    }

    /// Attachments of a workload with these names; the short ones hold in the namespace alone.
    pub fn attach(&mut self, namespace: &str, names: Names) -> Vec<NetworkAttachmentSpec> {
        let attachment =
            |target, aliases| NetworkAttachmentSpec { target, aliases, ..NetworkAttachmentSpec::default() };
        let Names { short, full } = names;
        if !self.has_several {
            let name = self.take(format!("{}_default", self.stack), !self.dual.is_empty());
            return vec![attachment(name, short.into_iter().chain(full).collect())];
        }
        let own = if namespace == self.stack { DEFAULT } else { namespace };
        let own = self.take(format!("{}_{own}", self.stack), self.dual.contains(namespace));
        let all = self.take(format!("{}_all-namespaces", self.stack), !self.dual.is_empty());
        vec![attachment(own, short.into_iter().chain(full.clone()).collect()), attachment(all, full)]
    }
}

/// Names of a workload.
#[derive(Debug, Default)]
pub struct Names {
    /// In its own namespace.
    pub short: Vec<String>,
    /// In every namespace.
    pub full: Vec<String>,
}

impl Names {
    /// Adds what Kubernetes answers for `name` in `namespace`. `suffix` ends each of them.
    pub fn add(&mut self, name: &str, namespace: &str, suffix: &str) {
        self.short.push(format!("{name}{suffix}"));
        self.add_full(name, namespace, suffix);
    }

    /// Adds those that hold in every namespace.
    pub fn add_full(&mut self, name: &str, namespace: &str, suffix: &str) {
        for domain in ["", ".svc", ".svc.cluster.local"] {
            self.full.push(format!("{name}.{namespace}{domain}{suffix}"));
        }
    }
}

/// The end of a name that makes it one of each task, held whether the task is ready or not: a placeholder for nothing.
pub const OF_EACH_TASK: &str = "{{\"\"}}";
