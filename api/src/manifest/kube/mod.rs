//! Kubernetes manifests.
//!
//! Nothing of them is read yet: each document is refused by its kind, with its place.

use std::rc::Rc;

use super::problem::Problems;
use super::reader::Scope;
use super::stack::Parts;
use super::yaml::Node;

/// Whether a document is one of Kubernetes: it says `apiVersion` and `kind`.
pub fn is_kube(document: &Node) -> bool {
    document.get("apiVersion").is_some() && document.get("kind").is_some()
}

/// Reads every Kubernetes document of the files, in their order.
pub fn read(documents: &[Rc<Node>], _scope: &Scope<'_>, problems: &mut Problems) -> Parts {
    for document in documents {
        let kind = document.get("kind").and_then(|kind| kind.as_text()).unwrap_or("nothing");
        problems.add(document.place, format!("Kubernetes manifests are not supported by skep yet: this is a {kind}"));
    }
    Parts::default()
}
