//! Kubernetes manifests: workloads, Services, ConfigMaps, Secrets and claims, turned into services of the stack.
//!
//! ```text
//! documents -> objects, one reader for each kind ([`object`])     what refers to nothing else
//!           -> services ([`build`]): a workload with the Services that select it and the data that it uses
//! ```
//! A workload is a service, its pod template the service's task; a Service is names, a virtual address and published
//! ports of the workloads that it selects. A key without an equivalent is a problem, or a warning where it changes
//! nothing that the author would notice; `docs/kubernetes.md` has the whole list.

mod build;
mod claim;
mod data;
pub mod export;
mod extension;
mod meta;
mod object;
mod pod;
mod rest;
mod selector;
mod service;
mod workload;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub mod recorded;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use super::problem::Problems;
use super::reader::Scope;
use super::stack::Parts;
use super::yaml::Node;
use object::Objects;

/// Whether a document is one of Kubernetes: it says `apiVersion` and `kind`.
pub fn is_kube(document: &Node) -> bool {
    document.get("apiVersion").is_some() && document.get("kind").is_some()
}

/// Reads every Kubernetes document of the files, in their order.
pub fn read(documents: &[Rc<Node>], scope: &Scope<'_>, problems: &mut Problems) -> Parts {
    let mut objects = Objects::default();
    for document in documents {
        objects.read(document, problems);
    }
    build::parts(&objects, scope.stack, problems)
}
