//! Specs in the form in which they are compared: what says nothing is left out, what has a key of its own is a mapping.
//!
//! Specs are in the API's JSON (Engine API, `ServiceSpec`), because that is what every client makes: a stack that
//! `docker stack deploy` made compares with one from files. Networks, secrets and configs are named, not numbered.

use serde_json::{Map, Value, json};

use super::wanted::each_reference;

/// Lists whose entries have a key, and the member that is it. Lines of `Env` are `NAME=VALUE`.
const KEYED: [(&str, &str); 6] = [
    ("Mounts", "Target"),
    ("Networks", "Target"),
    ("Ports", "TargetPort"),
    ("Secrets", "File.Name"),
    ("Configs", "File.Name"),
    ("Ulimits", "Name"),
];
/// Lists whose order says nothing.
const SETS: [&str; 5] = ["Aliases", "CapabilityAdd", "CapabilityDrop", "Groups", "Constraints"];
/// Numbers and empty objects that say something: zero replicas are not the default.
const MEANINGFUL: [&str; 6] = ["Replicas", "MaxConcurrent", "TotalCompletions", "Parallelism", "Global", "GlobalJob"];
/// What only pods have is in the model's form, in which nothing may be absent but what is null.
const POD: &str = "Pod";
/// A label that the cluster takes away, while its value is `once`.
const REBALANCE: &str = "skep.rebalance";

/// The form in which a service's spec is compared.
pub fn canonical(spec: &Value) -> Value {
    let mut spec = spec.clone();
    each_reference(&mut spec, |_, reference, _, id| remove(reference, id));
    let task = &mut spec["TaskTemplate"];
    for key in ["ForceUpdate", "Runtime"] {
        remove(task, key);
    }
    drop_default(task, "RestartPolicy", &[("Condition", json!("any")), ("Delay", json!(5_000_000_000_u64))]);
    remove_if(&mut task["ContainerSpec"], "Isolation", &json!("default"));
    if let Some(image) = task["ContainerSpec"]["Image"].as_str() {
        task["ContainerSpec"]["Image"] = json!(full_image(image));
    }
    for mount in task["ContainerSpec"]["Mounts"].as_array_mut().into_iter().flatten() {
        remove_if(mount, "Consistency", &json!("default"));
    }
    remove_if(&mut spec["EndpointSpec"], "Mode", &json!("vip"));
    for key in ["UpdateConfig", "RollbackConfig"] {
        let defaults = [
            ("Parallelism", json!(1)),
            ("FailureAction", json!("pause")),
            ("Monitor", json!(5_000_000_000_u64)),
            ("Order", json!("stop-first")),
        ];
        if spec[key].is_object() {
            // What is absent in a config that is there is zero, not the default of one that is absent.
            if spec[key]["Parallelism"].is_null() {
                spec[key]["Parallelism"] = json!(0);
            }
            drop_default(&mut spec, key, &defaults);
        }
    }
    if let Some(labels) = spec["Labels"].as_object_mut() {
        labels.retain(|key, value| key != REBALANCE || value != "once");
    }
    keyed("", &spec).unwrap_or_else(|| json!({}))
}

fn remove(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(key);
    }
}

fn remove_if(value: &mut Value, key: &str, default: &Value) {
    if value.get(key) == Some(default) {
        remove(value, key);
    }
}

fn drop_default(value: &mut Value, key: &str, defaults: &[(&str, Value)]) {
    for (member, default) in defaults {
        if let Some(inner) = value.get_mut(key) {
            remove_if(inner, member, default);
        }
    }
}

/// An image's reference with its tag, without the names that Docker leaves out (distribution's `reference.ParseNormalizedNamed`).
pub fn full_image(image: &str) -> String {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(name);
    let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let tag = if has_tag || digest.is_some() { "" } else { ":latest" };
    digest.map_or_else(|| format!("{name}{tag}"), |digest| format!("{name}{tag}@{digest}"))
}

/// A value without members that say nothing (absent, null, false, empty and zero mean the same in a spec), with lists that
/// have keys as mappings. `None` when nothing is left.
fn keyed(name: &str, value: &Value) -> Option<Value> {
    let is_meaningful = MEANINGFUL.contains(&name);
    match value {
        Value::Object(_) if name == POD => Some(without_nulls(value)),
        Value::Null => None,
        Value::Bool(false) => None,
        Value::Number(n) if n.as_f64() == Some(0.0) && !is_meaningful => None,
        Value::String(s) if s.is_empty() => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Array(list) if name == "Env" => {
            let lines = list.iter().filter_map(Value::as_str);
            let pairs = lines.map(|line| line.split_once('=').map_or((line, Value::Null), |(k, v)| (k, json!(v))));
            Some(Value::Object(pairs.map(|(k, v)| (k.to_owned(), v)).collect()))
        }
        Value::Array(list) => {
            if let Some((_, key)) = KEYED.iter().find(|(list, _)| *list == name) {
                let mut map = Map::new();
                for item in list {
                    let id = key_of(item, key);
                    map.insert(id, entry(name, item));
                }
                return Some(Value::Object(map));
            }
            let mut items: Vec<Value> = list.iter().map(|item| keyed("", item).unwrap_or(Value::Null)).collect();
            if name == "Constraints" {
                items.iter_mut().for_each(|item| *item = json!(constraint(item.as_str().unwrap_or_default())));
            }
            if SETS.contains(&name) {
                items.sort_by_key(Value::to_string);
            }
            Some(Value::Array(items))
        }
        Value::Object(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(k, v)| {
                    Some((
                        k.clone(),
                        keyed(if name == "Labels" { "" } else { k }, v)
                            .or_else(|| (name == "Labels").then(|| v.clone()))?,
                    ))
                })
                .collect();
            (!kept.is_empty() || is_meaningful).then_some(Value::Object(kept))
        }
        other => Some(other.clone()),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let members = map.iter().filter(|(_, member)| !member.is_null());
            Value::Object(members.map(|(key, member)| (key.clone(), without_nulls(member))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// An entry of a keyed list.
fn entry(list: &str, item: &Value) -> Value {
    let mut item = item.clone();
    if list == "Ports" {
        remove_if(&mut item, "Protocol", &json!("tcp"));
        remove_if(&mut item, "PublishMode", &json!("ingress"));
    }
    keyed("", &item).unwrap_or_else(|| json!({}))
}

fn key_of(item: &Value, key: &str) -> String {
    let found = key.split('.').fold(item, |value, part| &value[part]);
    match found {
        Value::String(text) => text.clone(),
        // One port of a container may be published several times.
        Value::Number(port) => {
            let protocol = item["Protocol"].as_str().unwrap_or("tcp");
            format!("{}:{port}/{protocol}", item["PublishedPort"].as_u64().unwrap_or(0))
        }
        _ => String::new(),
    }
}

/// A constraint as one writes it: blanks around the comparison say nothing.
fn constraint(text: &str) -> String {
    let compared = ["==", "!="].iter().find_map(|sign| Some((text.split_once(sign)?, sign)));
    compared.map_or_else(
        || text.trim().to_owned(),
        |((left, right), sign)| format!("{}{sign}{}", left.trim(), right.trim()),
    )
}

/// A spec for the API again.
pub fn plain(canonical: &Value) -> Value {
    let mut spec = unkeyed("", canonical);
    for key in ["UpdateConfig", "RollbackConfig"] {
        // One at a time went without saying; in a spec what is absent is all at once.
        if let Some(map) = spec.get_mut(key).and_then(Value::as_object_mut) {
            map.entry("Parallelism").or_insert(json!(1));
        }
    }
    spec
}

fn unkeyed(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(_) if name == POD => value.clone(),
        Value::Object(map) if name == "Env" => {
            let line = |(k, v): (&String, &Value)| v.as_str().map_or_else(|| k.clone(), |v| format!("{k}={v}"));
            json!(map.iter().map(line).collect::<Vec<_>>())
        }
        Value::Object(map) if KEYED.iter().any(|(list, _)| *list == name) => {
            Value::Array(map.values().map(|v| unkeyed("", v)).collect())
        }
        Value::Object(map) => Value::Object(
            map.iter().map(|(k, v)| (k.clone(), unkeyed(if name == "Labels" { "" } else { k }, v))).collect(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(|v| unkeyed("", v)).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_makes_no_difference() {
        let a = json!({"Name": "x", "Labels": {}, "TaskTemplate": {"ForceUpdate": 3, "RestartPolicy": {"Condition": "any"}, "ContainerSpec": {"Image": "nginx", "TTY": false, "Env": null}},
            "UpdateConfig": {"Parallelism": 1, "Order": "stop-first"}, "EndpointSpec": {"Mode": "vip"}});
        let b = json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "docker.io/library/nginx:latest"}}});
        assert_eq!(canonical(&a), canonical(&b));
        let all = json!({"UpdateConfig": {"Order": "stop-first"}});
        assert_ne!(canonical(&all), canonical(&json!({})), "all at once is not one at a time");
        let none = |n| canonical(&json!({"Mode": {"Replicated": {"Replicas": n}}}));
        assert_ne!(none(0), canonical(&json!({"Mode": {"Replicated": {}}})));
    }

    #[test]
    fn blanks_in_constraints_say_nothing() {
        let with = |line: &str| canonical(&json!({"TaskTemplate": {"Placement": {"Constraints": [line]}}}));
        assert_eq!(with("node.role == manager"), with("node.role==manager"));
        assert_ne!(with("node.labels.a != x y"), with("node.labels.a!=xy"));
    }

    #[test]
    fn one_at_a_time_stays_one_at_a_time() {
        let spec = json!({"UpdateConfig": {"Parallelism": 1, "Order": "start-first"}, "RollbackConfig": {"Order": "start-first"}});
        assert_eq!(canonical(&plain(&canonical(&spec))), canonical(&spec));
        assert_eq!(plain(&canonical(&spec))["UpdateConfig"]["Parallelism"], 1);
        assert_eq!(plain(&canonical(&spec))["RollbackConfig"]["Parallelism"], 0);
    }

    #[test]
    fn what_only_pods_have_can_be_read_again() {
        let probe =
            json!({"action": {"TcpSocket": {"host": "", "port": 80}}, "initial_delay": {"secs": 0, "nanos": 0}});
        let spec = json!({"TaskTemplate": {"Pod": {"First": {"liveness": probe, "startup": null}, "Containers": []}}});
        let expected = json!({"TaskTemplate": {"Pod": {"First": {"liveness": probe}, "Containers": []}}});
        assert_eq!(plain(&canonical(&spec)), expected);
    }

    #[test]
    fn the_compared_form_turns_into_a_spec_again() {
        let spec = json!({
            "Name": "x",
            "Labels": {"Mounts": "a", "Env": "b", "empty": ""},
            "Mode": {"Replicated": {"Replicas": 0}},
            "TaskTemplate": {"ContainerSpec": {
                "Image": "x:1", "Env": ["A=1", "B=", "C=x=y"],
                "Mounts": [{"Target": "/a", "Source": "v", "Type": "volume"}],
            }, "Networks": [{"Target": "n", "Aliases": ["web"]}]},
            "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]},
        });
        assert_eq!(plain(&canonical(&spec)), spec);
    }
}
