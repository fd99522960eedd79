//! Node selectors, affinity and spread, as far as constraints and preferences go.

use std::collections::BTreeMap;

use skep_proto::model::task::Placement;

use crate::manifest::decode::{entries, items, pairs, text, unknown_key};
use crate::manifest::kube::selector::{self, Term};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

const HOSTNAME: &str = "kubernetes.io/hostname";

/// What a constraint asks of a node for a label of Kubernetes.
fn subject(label: &str) -> String {
    match label {
        HOSTNAME => "node.hostname".to_owned(),
        "kubernetes.io/os" | "beta.kubernetes.io/os" => "node.platform.os".to_owned(),
        "kubernetes.io/arch" | "beta.kubernetes.io/arch" => "node.platform.arch".to_owned(),
        other => format!("node.labels.{other}"),
    }
}

fn is_manager(label: &str) -> bool {
    matches!(label, "node-role.kubernetes.io/control-plane" | "node-role.kubernetes.io/master")
}

/// Reads `nodeSelector`.
pub fn node_selector(node: &Node, placement: &mut Placement, problems: &mut Problems) {
    for (label, value) in pairs(node, "nodeSelector", problems) {
        if is_manager(&label) {
            placement.constraints.push("node.role==manager".to_owned());
        } else if value.is_empty() {
            problems.add(
                node.place,
                format!("the label {label} without a value cannot be asked for: give the nodes a value"),
            );
        } else {
            placement.constraints.push(format!("{}=={value}", subject(&label)));
        }
    }
}

/// Reads `affinity`. `own` are the labels of the pods themselves.
pub fn affinity(node: &Node, own: &BTreeMap<String, String>, placement: &mut Placement, problems: &mut Problems) {
    for field in entries(node, "affinity", problems) {
        match field.key.as_str() {
            "nodeAffinity" => node_affinity(&field.value, placement, problems),
            "podAffinity" => {
                for part in entries(&field.value, "podAffinity", problems) {
                    if part.key.starts_with("required") && !items(&part.value, "podAffinity", problems).is_empty() {
                        let text =
                            "tasks cannot be bound to where others are: give nodes a label and both a nodeSelector";
                        problems.add(part.place, text);
                    } else {
                        problems.warn(part.place, "a preferred podAffinity is left out: tasks are spread evenly");
                    }
                }
            }
            "podAntiAffinity" => anti_affinity(&field.value, own, placement, problems),
            _ => unknown_key(field, "affinity", &["nodeAffinity", "podAffinity", "podAntiAffinity"], problems),
        }
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn node_affinity(node: &Node, placement: &mut Placement, problems: &mut Problems) {
    for field in entries(node, "nodeAffinity", problems) {
        match field.key.as_str() {
            REQUIRED => {
                let terms = field.value.get("nodeSelectorTerms").cloned();
                let terms =
                    terms.as_deref().map(|terms| items(terms, "nodeSelectorTerms", problems)).unwrap_or_default();
                if terms.len() != 1 {
                    problems.add(field.place, "constraints all hold: nodeSelectorTerms can have one term only");
                }
                terms.iter().for_each(|term| node_term(term, placement, problems));
            }
            PREFERRED => {
                problems.warn(
                    field.place,
                    "a preferred nodeAffinity is left out: it does not hold tasks back from any node",
                );
            }
            _ => unknown_key(field, "nodeAffinity", &[REQUIRED, PREFERRED], problems),
        }
    }
}

fn node_term(node: &Node, placement: &mut Placement, problems: &mut Problems) {
    for field in entries(node, "a term", problems) {
        if field.key != "matchExpressions" {
            unknown_key(field, "a term", &["matchExpressions"], problems);
            continue;
        }
        for item in items(&field.value, "matchExpressions", problems) {
            let term = selector::expression(item, problems);
            let constraints = &mut placement.constraints;
            match term {
                Some(Term::In(label, values)) if values.len() == 1 => {
                    constraints.push(format!("{}=={}", subject(&label), values[0]));
                }
                Some(Term::NotIn(label, values)) => {
                    constraints.extend(values.iter().map(|value| format!("{}!={value}", subject(&label))));
                }
                Some(Term::Exists(label)) if is_manager(&label) => constraints.push("node.role==manager".to_owned()),
                Some(Term::Absent(label)) if is_manager(&label) => constraints.push("node.role==worker".to_owned()),
                Some(_) => {
                    let text = "a constraint compares a label with one value: give the nodes a label that says it";
                    problems.add(item.place, text);
                }
                None => {}
            }
        }
    }
}

fn anti_affinity(node: &Node, own: &BTreeMap<String, String>, placement: &mut Placement, problems: &mut Problems) {
    for field in entries(node, "podAntiAffinity", problems) {
        let is_required = field.key == REQUIRED;
        if !is_required && field.key != PREFERRED {
            unknown_key(field, "podAntiAffinity", &[REQUIRED, PREFERRED], problems);
            continue;
        }
        for item in items(&field.value, "podAntiAffinity", problems) {
            let term = if is_required { Some(item) } else { item.get("podAffinityTerm") };
            let Some(term) = term else {
                problems.add(item.place, "a preference needs a podAffinityTerm");
                continue;
            };
            let means_itself =
                term.get("labelSelector").is_some_and(|node| selector::read(node, problems).matches(own));
            let topology = term.get("topologyKey").and_then(|node| node.as_text()).unwrap_or_default();
            match (means_itself, topology, is_required) {
                (true, HOSTNAME, true) => placement.max_replicas = 1,
                // Tasks of a service are spread over nodes in any case.
                (true, HOSTNAME, false) => {}
                (true, zone, false) if !zone.is_empty() => placement.preferences.push(subject(zone)),
                (_, _, false) => {
                    problems.warn(item.place, "this preference is left out: tasks keep no distance to other services")
                }
                (_, _, true) => {
                    let text = "tasks can only keep distance to those of their own service, one on each node";
                    problems.add(item.place, text);
                }
            }
        }
    }
}

/// Reads `topologySpreadConstraints`.
pub fn spread(node: &Node, placement: &mut Placement, problems: &mut Problems) {
    for item in items(node, "topologySpreadConstraints", problems) {
        let (mut topology, mut must) = (String::new(), true);
        for field in entries(item, "a spread constraint", problems) {
            match field.key.as_str() {
                "topologyKey" => topology = text(&field.value, "topologyKey", problems),
                "whenUnsatisfiable" => must = text(&field.value, "whenUnsatisfiable", problems) == "DoNotSchedule",
                // Tasks of the service are what is spread, as evenly as the nodes allow.
                "maxSkew" | "labelSelector" | "minDomains" | "nodeAffinityPolicy" | "nodeTaintsPolicy"
                | "matchLabelKeys" => {}
                _ => unknown_key(
                    field,
                    "a spread constraint",
                    &["topologyKey", "whenUnsatisfiable", "maxSkew", "labelSelector"],
                    problems,
                ),
            }
        }
        if must {
            problems
                .warn(item.place, "tasks are spread as evenly as nodes allow, and run unevenly rather than not at all");
        }
        if !topology.is_empty() && topology != HOSTNAME {
            placement.preferences.push(subject(&topology));
        }
    }
}
