//! `apps/v1` Deployment: a replicated service that is rolled out.

use std::time::Duration;

use skep_proto::model::ServiceMode;
use skep_proto::model::service::{UpdateConfig, UpdateOrder};

use crate::manifest::decode::{boolean, entries, parsed, text, unknown_key};
use crate::manifest::kube::pod::template;
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::{Workload, check_selector, read_selector, replicas, rollout, share};

const REST: Rest<'_> = Rest {
    what: "a Deployment",
    known: &["replicas", "selector", "template", "strategy", "minReadySeconds"],
    refused: &[],
    left_out: &[
        ("revisionHistoryLimit", "a stack keeps its revisions"),
        ("progressDeadlineSeconds", "an update goes on until its tasks are ready, or pauses when one fails"),
    ],
};

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    let (mut count, mut selector, mut strategy, mut ready) = (1, None, None, None);
    for field in entries(spec, "a Deployment", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "replicas" => count = replicas(value, problems),
            "selector" => selector = Some((field, read_selector(field, false, problems))),
            "template" => workload.template = template(value, problems),
            "strategy" => strategy = Some(value),
            "minReadySeconds" => {
                let seconds: Option<u32> = parsed(value, "minReadySeconds", "a number of seconds", problems);
                ready = seconds.filter(|n| *n > 0).map(|n| Duration::from_secs(n.into()));
            }
            "paused" if boolean(value, "paused", problems) => {
                problems.add(
                    field.place,
                    "a paused Deployment is not supported by skep: apply it when it is to be rolled out",
                );
            }
            "paused" => {}
            _ => REST.take(field, problems),
        }
    }
    match selector {
        Some((field, selector)) => check_selector(field, &selector, &workload.template, problems),
        None => problems.add(spec.place, "a Deployment needs a selector"),
    }
    workload.mode = ServiceMode::Replicated { replicas: count };
    workload.update = Some(read_strategy(strategy.map(|node| &**node), count, ready, problems));
    workload
}

fn read_strategy(node: Option<&Node>, replicas: u64, ready: Option<Duration>, problems: &mut Problems) -> UpdateConfig {
    // Kubernetes' defaults.
    let (mut surge, mut missing) = (replicas.saturating_mul(25).div_ceil(100), replicas.saturating_mul(25) / 100);
    let mut recreates = false;
    for field in node.map(|node| entries(node, "strategy", problems)).unwrap_or_default() {
        match field.key.as_str() {
            "type" => match text(&field.value, "type", problems).as_str() {
                "RollingUpdate" => {}
                "Recreate" => recreates = true,
                other => {
                    problems.add(field.value.place, format!("a strategy is RollingUpdate or Recreate, not {other:?}"))
                }
            },
            "rollingUpdate" => {
                for part in entries(&field.value, "rollingUpdate", problems) {
                    match part.key.as_str() {
                        "maxSurge" => surge = share(&part.value, replicas, true, problems),
                        "maxUnavailable" => missing = share(&part.value, replicas, false, problems),
                        _ => unknown_key(part, "rollingUpdate", &["maxSurge", "maxUnavailable"], problems),
                    }
                }
            }
            _ => unknown_key(field, "strategy", &["type", "rollingUpdate"], problems),
        }
    }
    if recreates {
        return UpdateConfig { parallelism: 0, order: UpdateOrder::StopFirst, ..rollout(0, 1, ready) };
    }
    rollout(surge, missing, ready)
}
