//! `batch/v1` CronJob: a replicated job with a schedule.

use std::time::Duration;

use skep_proto::model::ServiceMode;
use skep_proto::model::schedule::Times;

use crate::manifest::decode::{boolean, entries, parsed, text, unknown_key};
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::stack::{Concurrency, Schedule};
use crate::manifest::yaml::Node;

use super::{Workload, job};

const REST: Rest<'_> = Rest {
    what: "a CronJob",
    known: &["schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "suspend", "jobTemplate"],
    refused: &[],
    left_out: &[
        ("successfulJobsHistoryLimit", "the history of tasks is the cluster's"),
        ("failedJobsHistoryLimit", "the history of tasks is the cluster's"),
    ],
};

/// Reads `spec`.
pub fn read(spec: &Node, mut workload: Workload, problems: &mut Problems) -> Workload {
    let mut schedule = Schedule {
        times: String::new(),
        time_zone: String::new(),
        concurrency: Concurrency::Forbid,
        deadline: None,
        is_suspended: false,
    };
    let (mut template, mut concurrency) = (None, None);
    for field in entries(spec, "a CronJob", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "schedule" => schedule.times = text(value, "schedule", problems),
            "timeZone" => schedule.time_zone = text(value, "timeZone", problems),
            "concurrencyPolicy" => match text(value, "concurrencyPolicy", problems).as_str() {
                "Forbid" => concurrency = Some(Concurrency::Forbid),
                "Replace" => concurrency = Some(Concurrency::Replace),
                "Allow" => concurrency = Some(Concurrency::Allow),
                other => {
                    problems.add(value.place, format!("concurrencyPolicy is Allow, Forbid or Replace, not {other:?}"));
                }
            },
            "startingDeadlineSeconds" => {
                let seconds: Option<u32> = parsed(value, "startingDeadlineSeconds", "a number of seconds", problems);
                schedule.deadline = seconds.map(|seconds| Duration::from_secs(seconds.into()));
            }
            "suspend" => schedule.is_suspended = boolean(value, "suspend", problems),
            "jobTemplate" => template = Some(value),
            _ => REST.take(field, problems),
        }
    }
    if schedule.times.is_empty() {
        problems.add(spec.place, "a CronJob needs a schedule, like \"0 3 * * *\"");
    } else if let Err(reason) = Times::parse(&schedule.times) {
        problems.add(spec.place, reason);
    }
    let Some(template) = template else {
        problems.add(spec.place, "a CronJob needs a jobTemplate");
        return workload;
    };
    for field in entries(template, "a jobTemplate", problems) {
        match field.key.as_str() {
            "metadata" => {}
            "spec" => workload = job::read(&field.value, workload, problems),
            _ => unknown_key(field, "a jobTemplate", &["metadata", "spec"], problems),
        }
    }
    // Kubernetes' default.
    let by_default = if workload.meta.is_docker() { Concurrency::Forbid } else { Concurrency::Allow };
    schedule.concurrency = concurrency.unwrap_or(by_default);
    if let ServiceMode::ReplicatedJob { max_concurrent, total_completions } = workload.mode
        && max_concurrent < total_completions
        && schedule.concurrency == Concurrency::Allow
    {
        let text = "runs do not overlap where completions are more than parallelism: one that is due while the last one runs is left out";
        problems.warn(spec.place, text);
        schedule.concurrency = Concurrency::Forbid;
    }
    workload.schedule = Some(schedule);
    workload
}
