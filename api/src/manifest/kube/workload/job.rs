//! `batch/v1` Job: a replicated job.

use skep_proto::model::ServiceMode;

use crate::manifest::decode::{boolean, entries, parsed, text};
use crate::manifest::kube::pod::{Restart, template};
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::Workload;

const REST: Rest<'_> = Rest {
    what: "a Job",
    known: &["completions", "parallelism", "backoffLimit", "template", "completionMode"],
    refused: &[
        ("activeDeadlineSeconds", "let the program end itself, as with timeout(1)"),
        ("podFailurePolicy", "every failure counts against backoffLimit"),
        ("successPolicy", "a Job is done when all its completions are"),
        ("backoffLimitPerIndex", "use backoffLimit"),
        ("maxFailedIndexes", "use backoffLimit"),
        ("manualSelector", "remove it: a Job knows its tasks"),
        ("selector", "remove it: a Job knows its tasks"),
        ("managedBy", "remove it"),
    ],
    left_out: &[
        ("ttlSecondsAfterFinished", "a Job stays until its stack goes or changes"),
        ("podReplacementPolicy", "a task is replaced once it has failed"),
    ],
};

/// Kubernetes' number of retries.
const BACKOFF: u64 = 6;

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    let (mut completions, mut parallelism) = (None, 1);
    let mut backoff = (!workload.meta.is_docker()).then_some(BACKOFF);
    for field in entries(spec, "a Job", problems) {
        let value = &field.value;
        let number = |problems: &mut Problems| -> u64 {
            parsed::<u32>(value, &field.key, "a whole number", problems).unwrap_or(1).min(100_000).into()
        };
        match field.key.as_str() {
            "completions" => completions = Some(number(problems)),
            "parallelism" => parallelism = number(problems),
            "backoffLimit" => backoff = Some(number(problems)),
            "template" => workload.template = template(value, problems),
            "completionMode" => match text(value, "completionMode", problems).as_str() {
                "NonIndexed" => {}
                other => problems.add(
                    value.place,
                    format!("completionMode is NonIndexed, not {other:?}: tasks of a job have no numbers"),
                ),
            },
            "suspend" if boolean(value, "suspend", problems) => {
                problems.add(field.place, "a suspended Job is not supported by skep: apply it when it is to run");
            }
            "suspend" => {}
            _ => REST.take(field, problems),
        }
    }
    if parallelism == 0 {
        problems.add(spec.place, "parallelism 0 runs nothing: apply the Job when it is to run");
    }
    let total_completions = completions.unwrap_or(parallelism.max(1));
    workload.mode = ServiceMode::ReplicatedJob {
        max_concurrent: parallelism.clamp(1, total_completions.max(1)),
        total_completions,
    };
    workload.attempts = backoff;
    workload.restart = Restart::OnFailure;
    workload
}
