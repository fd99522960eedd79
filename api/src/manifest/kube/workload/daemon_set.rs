//! `apps/v1` DaemonSet: a global service.

use std::time::Duration;

use skep_proto::model::ServiceMode;

use crate::manifest::decode::{entries, parsed, text, unknown_key};
use crate::manifest::kube::pod::template;
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::{Workload, check_selector, read_selector, rollout};

const REST: Rest<'_> = Rest {
    what: "a DaemonSet",
    known: &["selector", "template", "updateStrategy", "minReadySeconds"],
    refused: &[],
    left_out: &[("revisionHistoryLimit", "a stack keeps its revisions")],
};

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    let (mut selector, mut missing, mut surge, mut ready) = (None, 1, 0, None);
    for field in entries(spec, "a DaemonSet", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "selector" => selector = Some((field, read_selector(field, false, problems))),
            "template" => workload.template = template(value, problems),
            "minReadySeconds" => {
                let seconds: Option<u32> = parsed(value, "minReadySeconds", "a number of seconds", problems);
                ready = seconds.filter(|n| *n > 0).map(|n| Duration::from_secs(n.into()));
            }
            "updateStrategy" => (missing, surge) = strategy(value, problems),
            _ => REST.take(field, problems),
        }
    }
    match selector {
        Some((field, selector)) => check_selector(field, &selector, &workload.template, problems),
        None => problems.add(spec.place, "a DaemonSet needs a selector"),
    }
    workload.mode = ServiceMode::Global;
    workload.update = Some(rollout(surge, missing, ready));
    workload
}

fn strategy(node: &Node, problems: &mut Problems) -> (u64, u64) {
    let (mut missing, mut surge) = (1, 0);
    for field in entries(node, "updateStrategy", problems) {
        match field.key.as_str() {
            "type" => match text(&field.value, "type", problems).as_str() {
                "RollingUpdate" => {}
                "OnDelete" => problems
                    .add(field.value.place, "OnDelete is not supported by skep: a changed DaemonSet is rolled out"),
                other => problems.add(field.value.place, format!("an update strategy is RollingUpdate, not {other:?}")),
            },
            "rollingUpdate" => {
                for part in entries(&field.value, "rollingUpdate", problems) {
                    let number = |problems: &mut Problems| {
                        let written = part.value.as_text().unwrap_or_default();
                        if written.ends_with('%') {
                            problems
                                .warn(part.value.place, "how many nodes there are is not known here: one at a time");
                            return 1;
                        }
                        parsed(&part.value, &part.key, "a whole number", problems).unwrap_or(1)
                    };
                    match part.key.as_str() {
                        "maxUnavailable" => missing = number(problems),
                        "maxSurge" => surge = number(problems),
                        _ => unknown_key(part, "rollingUpdate", &["maxUnavailable", "maxSurge"], problems),
                    }
                }
            }
            _ => unknown_key(field, "updateStrategy", &["type", "rollingUpdate"], problems),
        }
    }
    (missing, surge)
}
