//! `depends_on`: what a service waits for. The cluster keeps to it, not the client.

use std::collections::BTreeMap;

use skep_proto::model::task::{RestartCondition, RestartPolicy};

use crate::manifest::Problems;
use crate::manifest::compose::Names;
use crate::manifest::decode::{boolean, entries, text, unknown_key};
use crate::manifest::problem::Place;
use crate::manifest::stack::{Condition, Dependency, StackService};
use crate::manifest::yaml::{Node, Value};

/// Reads a list of services, or a mapping with conditions.
pub fn read(node: &Node, names: &Names<'_>, problems: &mut Problems) -> Vec<Dependency> {
    let mut dependencies: Vec<Dependency> = Vec::new();
    let mut add = |key: &str, place: Place, condition, is_required, problems: &mut Problems| {
        if names.services.contains(key) {
            let service = format!("{}_{key}", names.scope.stack);
            dependencies.push(Dependency { service, condition, is_required });
        } else if is_required {
            let message = format!(
                "the service {key} is not declared, or is of a profile that is not in force: declare it, use --profile, or set required: false"
            );
            problems.add(place, message);
        }
    };
    if let Value::Sequence(list) = &node.value {
        for item in list {
            let key = text(item, "depends_on", problems);
            add(&key, item.place, Condition::Started, true, problems);
        }
        dependencies.sort();
        return dependencies;
    }
    for entry in entries(node, "depends_on", problems) {
        let (mut condition, mut is_required) = (Condition::Started, true);
        for field in entries(&entry.value, "a dependency", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "condition" => {
                    let word = text(value, "condition", problems);
                    condition = Condition::named(&word).unwrap_or_else(|| {
                        let known: Vec<&str> = Condition::ALL.iter().map(|c| c.as_str()).collect();
                        problems.add(value.place, format!("a condition is {}, not {word:?}", known.join(", ")));
                        condition
                    });
                }
                "required" => is_required = boolean(value, "required", problems),
                "restart" => {
                    if boolean(value, "restart", problems) {
                        problems.warn(field.place, "it has no effect: a service is not restarted when another one is");
                    }
                }
                _ => unknown_key(field, "a dependency", &["condition", "required", "restart"], problems),
            }
        }
        add(&entry.key, entry.place, condition, is_required, problems);
    }
    // Their order says nothing, and must not look like a change.
    dependencies.sort();
    dependencies
}

/// Looks at all services together: those that wait for each other never start, and one that others wait for to complete
/// must be able to.
pub fn check(services: &mut [StackService], problems: &mut Problems) {
    let index: BTreeMap<String, usize> =
        services.iter().enumerate().map(|(i, s)| (s.spec.annotations.name.clone(), i)).collect();
    let waits: Vec<Vec<usize>> =
        services.iter().map(|s| s.depends_on.iter().filter_map(|d| index.get(&d.service).copied()).collect()).collect();
    if let Some(at) = in_a_circle(&waits) {
        let key = &services[at].key;
        problems.add(
            services[at].place,
            format!("the service {key} waits for itself, through depends_on of others: it would never start"),
        );
    }
    let to_complete: Vec<usize> = services
        .iter()
        .flat_map(|s| &s.depends_on)
        .filter(|d| d.condition == Condition::CompletedSuccessfully)
        .filter_map(|d| index.get(&d.service).copied())
        .collect();
    for at in to_complete {
        let service = &mut services[at];
        let task = &mut service.spec.task;
        if service.spec.mode.is_job() {
            continue;
        }
        match &task.restart {
            // Compose does not restart what does not ask for it; a cluster restarts everything.
            None => {
                let condition = RestartCondition::OnFailure;
                task.restart = Some(RestartPolicy { condition, ..RestartPolicy::default() });
            }
            Some(policy) if policy.condition == RestartCondition::Any => {
                let message = format!(
                    "others wait for {} to complete, but it is restarted whenever it ends: set deploy.restart_policy.condition to on-failure, or deploy.mode to replicated-job",
                    service.key
                );
                problems.add(service.place, message);
            }
            Some(_) => {}
        }
    }
}

/// A member of a circle, if there is one. Without recursion: files may be long.
fn in_a_circle(waits: &[Vec<usize>]) -> Option<usize> {
    // Take away what waits for nothing that is left, again and again.
    let mut left: Vec<usize> = waits.iter().map(Vec::len).collect();
    let mut waited: Vec<Vec<usize>> = vec![Vec::new(); waits.len()];
    for (service, on) in waits.iter().enumerate() {
        on.iter().for_each(|other| waited[*other].push(service));
    }
    let mut free: Vec<usize> = (0..waits.len()).filter(|i| left[*i] == 0).collect();
    while let Some(done) = free.pop() {
        for &service in &waited[done] {
            left[service] -= 1;
            if left[service] == 0 {
                free.push(service);
            }
        }
    }
    left.iter().position(|count| *count > 0)
}
