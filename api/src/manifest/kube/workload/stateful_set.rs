//! `apps/v1` StatefulSet: a replicated service whose members have names and volumes of their own.

use std::time::Duration;

use skep_proto::model::ServiceMode;

use crate::manifest::decode::{entries, items, parsed, text, unknown_key};
use crate::manifest::kube::pod::template;
use crate::manifest::kube::rest::Rest;
use crate::manifest::kube::{claim, meta};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::{Workload, check_selector, read_selector, replicas, rollout};

const REST: Rest<'_> = Rest {
    what: "a StatefulSet",
    known: &[
        "replicas",
        "selector",
        "template",
        "serviceName",
        "volumeClaimTemplates",
        "updateStrategy",
        "podManagementPolicy",
        "minReadySeconds",
    ],
    refused: &[("ordinals", "members count from 0")],
    left_out: &[
        ("revisionHistoryLimit", "a stack keeps its revisions"),
        ("persistentVolumeClaimRetentionPolicy", "volumes stay until they are removed by hand"),
    ],
};

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    let (mut count, mut selector, mut ready) = (1, None, None);
    for field in entries(spec, "a StatefulSet", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "replicas" => count = replicas(value, problems),
            "selector" => selector = Some((field, read_selector(field, false, problems))),
            "template" => workload.template = template(value, problems),
            "serviceName" => {
                workload.governing = Some(text(value, "serviceName", problems)).filter(|name| !name.is_empty())
            }
            "volumeClaimTemplates" => {
                for item in items(value, "volumeClaimTemplates", problems) {
                    let metadata = item.get("metadata").map(|node| &**node);
                    let claimed = meta::read(metadata, item.place, true, problems);
                    match item.get("spec") {
                        Some(spec) => claim::spec_of(spec, problems),
                        None => problems.add(item.place, "the claim has no spec"),
                    }
                    workload.claims.push(claimed.name);
                }
            }
            "podManagementPolicy" => match text(value, "podManagementPolicy", problems).as_str() {
                "Parallel" => {}
                "OrderedReady" => {
                    problems.warn(value.place, "members start at once: each must wait for those it needs")
                }
                other => {
                    problems.add(value.place, format!("podManagementPolicy is OrderedReady or Parallel, not {other:?}"))
                }
            },
            "minReadySeconds" => {
                let seconds: Option<u32> = parsed(value, "minReadySeconds", "a number of seconds", problems);
                ready = seconds.filter(|n| *n > 0).map(|n| Duration::from_secs(n.into()));
            }
            "updateStrategy" => strategy(value, problems),
            _ => REST.take(field, problems),
        }
    }
    match selector {
        Some((field, selector)) => check_selector(field, &selector, &workload.template, problems),
        None => problems.add(spec.place, "a StatefulSet needs a selector"),
    }
    workload.mode = ServiceMode::Replicated { replicas: count };
    // A member's name and volume are its alone: the old one stops before the new one starts.
    workload.update = Some(rollout(0, 1, ready));
    workload
}

fn strategy(node: &Node, problems: &mut Problems) {
    for field in entries(node, "updateStrategy", problems) {
        match field.key.as_str() {
            "type" => match text(&field.value, "type", problems).as_str() {
                "RollingUpdate" => {}
                "OnDelete" => problems
                    .add(field.value.place, "OnDelete is not supported by skep: a changed StatefulSet is rolled out"),
                other => problems.add(field.value.place, format!("an update strategy is RollingUpdate, not {other:?}")),
            },
            "rollingUpdate" => {
                for part in entries(&field.value, "rollingUpdate", problems) {
                    match part.key.as_str() {
                        "partition" if part.value.as_text() == Some("0") => {}
                        "partition" => {
                            problems.add(part.place, "a partition is not supported by skep: all members are updated")
                        }
                        "maxUnavailable" => {
                            problems.warn(part.place, "maxUnavailable is left out: members are updated one at a time")
                        }
                        _ => unknown_key(part, "rollingUpdate", &["partition"], problems),
                    }
                }
            }
            _ => unknown_key(field, "updateStrategy", &["type", "rollingUpdate"], problems),
        }
    }
}
