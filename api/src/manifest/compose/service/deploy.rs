//! The `deploy` section of a service.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::model::ServiceMode;
use skep_proto::model::service::{EndpointMode, FailureAction, UpdateConfig, UpdateOrder};
use skep_proto::model::task::{Limits, Placement, Reservations, Resources, RestartCondition, RestartPolicy};

use crate::manifest::Problems;
use crate::manifest::decode::{bytes, duration, entries, items, pairs, parsed, text, texts, unknown_key};
use crate::manifest::problem::Place;
use crate::manifest::stack::Schedule;
use crate::manifest::yaml::{Entry, Node};

use super::schedule;

/// What the section says.
#[derive(Debug, Default)]
pub struct Deploy {
    /// How many.
    pub mode: Option<ServiceMode>,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// Limits and reservations.
    pub resources: Resources,
    /// When a finished task is replaced.
    pub restart: Option<RestartPolicy>,
    /// Where tasks may run.
    pub placement: Placement,
    /// How an update proceeds.
    pub update: Option<UpdateConfig>,
    /// How a rollback proceeds.
    pub rollback: Option<UpdateConfig>,
    /// When a job runs again, and where that is said.
    pub schedule: Option<(Place, Schedule)>,
    /// What the service's name resolves to.
    pub endpoint_mode: EndpointMode,
}

const KEYS: [&str; 9] = [
    "mode",
    "replicas",
    "labels",
    "resources",
    "restart_policy",
    "placement",
    "update_config",
    "rollback_config",
    "endpoint_mode",
];

const MODES: [&str; 4] = ["replicated", "global", "replicated-job", "global-job"];

/// Reads `deploy`.
pub fn read(node: &Node, problems: &mut Problems) -> Deploy {
    let mut deploy = Deploy::default();
    let (mut mode, mut replicas) = ("replicated".to_owned(), None);
    for field in entries(node, "deploy", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "mode" => {
                mode = text(value, "mode", problems);
                if !MODES.contains(&mode.as_str()) {
                    problems.add(value.place, format!("a service's mode is {}, not {mode:?}", MODES.join(", ")));
                }
            }
            "replicas" => {
                replicas = Some((field.place, parsed::<u32>(value, "replicas", "a number", problems).unwrap_or(1)))
            }
            "labels" => deploy.labels = pairs(value, "labels", problems),
            "resources" => deploy.resources = resources(value, problems),
            "restart_policy" => deploy.restart = Some(restart(value, problems)),
            "placement" => deploy.placement = placement(value, problems),
            "update_config" => deploy.update = Some(update(value, "update_config", problems)),
            "rollback_config" => deploy.rollback = Some(update(value, "rollback_config", problems)),
            "endpoint_mode" => match text(value, "endpoint_mode", problems).as_str() {
                "vip" => {}
                "dnsrr" => deploy.endpoint_mode = EndpointMode::DnsRoundRobin,
                other => problems.add(value.place, format!("an endpoint mode is vip or dnsrr, not {other:?}")),
            },
            "x-schedule" => deploy.schedule = schedule::read(value, problems).map(|s| (field.place, s)),
            key if key.starts_with("x-") => {}
            _ => unknown_key(field, "deploy", &KEYS, problems),
        }
    }
    let count = replicas.map(|(_, n)| u64::from(n));
    deploy.mode = match mode.as_str() {
        "global" | "global-job" => {
            if let Some((place, _)) = replicas {
                problems.add(place, format!("a {mode} service has one task a node: remove replicas"));
            }
            Some(if mode == "global" { ServiceMode::Global } else { ServiceMode::GlobalJob })
        }
        // Compose has no key for how many run at a time: all do.
        "replicated-job" => {
            let total = count.unwrap_or(1);
            Some(ServiceMode::ReplicatedJob { max_concurrent: total, total_completions: total })
        }
        _ => count.map(|replicas| ServiceMode::Replicated { replicas }),
    };
    if deploy.mode.is_some_and(ServiceMode::is_job) && (deploy.update.is_some() || deploy.rollback.is_some()) {
        problems.add(node.place, "a job has no update_config and no rollback_config: it runs again when it changes");
    }
    deploy
}

fn resources(node: &Node, problems: &mut Problems) -> Resources {
    let mut resources = Resources::default();
    for field in entries(node, "resources", problems) {
        match field.key.as_str() {
            "limits" => {
                let mut limits = Limits::default();
                for part in entries(&field.value, "limits", problems) {
                    match part.key.as_str() {
                        "cpus" => limits.nano_cpus = cpus(part, problems),
                        "memory" => limits.memory = bytes(&part.value, "memory", problems),
                        "pids" => limits.pids = parsed(&part.value, "pids", "a number", problems).unwrap_or(0),
                        _ => unknown_key(part, "limits", &["cpus", "memory", "pids"], problems),
                    }
                }
                resources.limits = Some(limits);
            }
            "reservations" => {
                let mut reservations = Reservations::default();
                for part in entries(&field.value, "reservations", problems) {
                    match part.key.as_str() {
                        "cpus" => reservations.nano_cpus = cpus(part, problems),
                        "memory" => reservations.memory = bytes(&part.value, "memory", problems),
                        "generic_resources" => reservations.generic = generic(&part.value, problems),
                        "devices" => problems.add(
                            part.place,
                            "devices: name what nodes have as generic resources (`skep daemon --generic-resource`), and reserve it under generic_resources",
                        ),
                        _ => unknown_key(
                            part,
                            "reservations",
                            &["cpus", "memory", "generic_resources", "devices"],
                            problems,
                        ),
                    }
                }
                resources.reservations = Some(reservations);
            }
            _ => unknown_key(field, "resources", &["limits", "reservations"], problems),
        }
    }
    resources
}

/// `- discrete_resource_spec: {kind: gpu, value: 1}`.
fn generic(node: &Node, problems: &mut Problems) -> BTreeMap<String, u64> {
    let mut resources = BTreeMap::new();
    for item in items(node, "generic_resources", problems) {
        for field in entries(item, "an entry of generic_resources", problems) {
            if field.key != "discrete_resource_spec" {
                unknown_key(field, "an entry of generic_resources", &["discrete_resource_spec"], problems);
                continue;
            }
            let (mut kind, mut count) = (String::new(), 0);
            for part in entries(&field.value, "discrete_resource_spec", problems) {
                match part.key.as_str() {
                    "kind" => kind = text(&part.value, "kind", problems),
                    "value" => count = parsed(&part.value, "value", "a number", problems).unwrap_or(0),
                    _ => unknown_key(part, "discrete_resource_spec", &["kind", "value"], problems),
                }
            }
            resources.insert(kind, count);
        }
    }
    resources
}

/// A number of processors, in nano-CPUs.
pub fn cpus(entry: &Entry, problems: &mut Problems) -> i64 {
    let number: f64 = parsed(&entry.value, "cpus", "a number like 0.5", problems).unwrap_or(0.0);
    if !(0.0..=1e6).contains(&number) {
        problems.add(entry.value.place, "cpus is a number from 0 to a million");
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
    let nano = (number * 1e9).round() as i64;
    nano
}

fn restart(node: &Node, problems: &mut Problems) -> RestartPolicy {
    let mut policy = RestartPolicy::default();
    for field in entries(node, "restart_policy", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "condition" => match text(value, "condition", problems).as_str() {
                "none" => policy.condition = RestartCondition::None,
                "on-failure" => policy.condition = RestartCondition::OnFailure,
                "any" => policy.condition = RestartCondition::Any,
                other => {
                    problems.add(value.place, format!("a restart condition is none, on-failure or any, not {other:?}"))
                }
            },
            "delay" => policy.delay = duration(value, "delay", problems),
            "max_attempts" => policy.max_attempts = parsed(value, "max_attempts", "a number", problems),
            "window" => policy.window = duration(value, "window", problems),
            _ => unknown_key(field, "restart_policy", &["condition", "delay", "max_attempts", "window"], problems),
        }
    }
    policy
}

fn placement(node: &Node, problems: &mut Problems) -> Placement {
    let mut placement = Placement::default();
    for field in entries(node, "placement", problems) {
        match field.key.as_str() {
            "preferences" => placement.preferences = preferences(&field.value, problems),
            "constraints" => placement.constraints = texts(&field.value, "constraints", problems),
            "max_replicas_per_node" => {
                placement.max_replicas =
                    parsed(&field.value, "max_replicas_per_node", "a number", problems).unwrap_or(0);
            }
            _ => unknown_key(field, "placement", &["constraints", "preferences", "max_replicas_per_node"], problems),
        }
    }
    placement
}

/// `- spread: node.labels.zone`, the outermost first.
fn preferences(node: &Node, problems: &mut Problems) -> Vec<String> {
    let mut preferences = Vec::new();
    for item in items(node, "preferences", problems) {
        for field in entries(item, "preferences", problems) {
            match field.key.as_str() {
                "spread" => preferences.push(text(&field.value, "spread", problems)),
                _ => unknown_key(field, "preferences", &["spread"], problems),
            }
        }
    }
    preferences
}

fn update(node: &Node, what: &str, problems: &mut Problems) -> UpdateConfig {
    let mut config = UpdateConfig::default();
    for field in entries(node, what, problems) {
        let value = &field.value;
        match field.key.as_str() {
            "parallelism" => config.parallelism = parsed(value, "parallelism", "a number", problems).unwrap_or(1),
            "delay" => config.delay = duration(value, "delay", problems).unwrap_or_default(),
            "monitor" => config.monitor = duration(value, "monitor", problems).unwrap_or(Duration::from_secs(5)),
            "max_failure_ratio" => {
                config.max_failure_ratio =
                    parsed(value, "max_failure_ratio", "a number from 0 to 1", problems).unwrap_or(0.0);
                if !(0.0..=1.0).contains(&config.max_failure_ratio) {
                    problems.add(value.place, "max_failure_ratio is a number from 0 to 1");
                }
            }
            "order" => match text(value, "order", problems).as_str() {
                "stop-first" => config.order = UpdateOrder::StopFirst,
                "start-first" => config.order = UpdateOrder::StartFirst,
                other => problems.add(value.place, format!("an order is stop-first or start-first, not {other:?}")),
            },
            "failure_action" => match text(value, "failure_action", problems).as_str() {
                "pause" => config.failure_action = FailureAction::Pause,
                "continue" => config.failure_action = FailureAction::Continue,
                "rollback" if what == "update_config" => config.failure_action = FailureAction::Rollback,
                other => {
                    problems.add(value.place, format!("a failure action is pause, continue or rollback, not {other:?}"))
                }
            },
            _ => {
                let known = ["parallelism", "delay", "monitor", "max_failure_ratio", "order", "failure_action"];
                unknown_key(field, what, &known, problems);
            }
        }
    }
    config
}
