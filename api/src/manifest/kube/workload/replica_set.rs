//! `apps/v1` ReplicaSet and `v1` ReplicationController: a replicated service.

use skep_proto::model::ServiceMode;

use crate::manifest::decode::entries;
use crate::manifest::kube::pod::template;
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::{Kind, Workload, check_selector, read_selector, replicas};

const REST: Rest<'_> = Rest {
    what: "a ReplicaSet or ReplicationController",
    known: &["replicas", "selector", "template"],
    refused: &[],
    left_out: &[("minReadySeconds", "tasks are not rolled out one after the other")],
};

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    // A ReplicationController selects by equal labels alone, and by its template's when it says nothing.
    let plain = workload.kind == Kind::ReplicationController;
    let mut selector = None;
    for field in entries(spec, workload.kind.as_str(), problems) {
        let value = &field.value;
        match field.key.as_str() {
            "replicas" => workload.mode = ServiceMode::Replicated { replicas: replicas(value, problems) },
            "selector" => selector = Some((field, read_selector(field, plain, problems))),
            "template" => workload.template = template(value, problems),
            _ => REST.take(field, problems),
        }
    }
    match selector {
        Some((field, selector)) => check_selector(field, &selector, &workload.template, problems),
        None if plain => {}
        None => problems.add(spec.place, "a ReplicaSet needs a selector"),
    }
    workload
}
