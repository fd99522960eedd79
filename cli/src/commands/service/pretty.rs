//! `skep service inspect --pretty`: a service for people, in the order of Docker's client.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::{mode_of, text as word};

/// The text of one service. `networks` are names by id.
pub fn text(service: &Value, networks: &BTreeMap<String, String>) -> String {
    let spec = &service["Spec"];
    let mut out = Lines::default();
    out.line("ID", &word(&service["ID"]));
    out.line("Name", &word(&spec["Name"]));
    out.pairs("Labels", &spec["Labels"]);
    out.line("Service Mode", &title(mode_of(service)));
    let mode = &spec["Mode"];
    out.below("Replicas", &mode["Replicated"]["Replicas"]);
    out.below("Max Concurrent", &mode["ReplicatedJob"]["MaxConcurrent"]);
    out.below("Total Completions", &mode["ReplicatedJob"]["TotalCompletions"]);
    let update = &service["UpdateStatus"];
    if update.is_object() {
        out.head("UpdateStatus");
        out.below("State", &update["State"]);
        out.below("Started", &update["StartedAt"]);
        out.below("Completed", &update["CompletedAt"]);
        out.below("Message", &update["Message"]);
    }
    let task = &spec["TaskTemplate"];
    out.placement(&task["Placement"]);
    out.rollout("UpdateConfig", &spec["UpdateConfig"]);
    out.rollout("RollbackConfig", &spec["RollbackConfig"]);
    out.container(&task["ContainerSpec"]);
    out.resources(&task["Resources"]);
    let attached: Vec<String> = values(&task["Networks"])
        .map(|n| word(&n["Target"]))
        .map(|id| networks.get(&id).cloned().unwrap_or(id))
        .collect();
    if !attached.is_empty() {
        out.line("Networks", &attached.join(" "));
    }
    out.line("Endpoint Mode", &word(&service["Endpoint"]["Spec"]["Mode"]));
    let ports: Vec<&Value> = values(&service["Endpoint"]["Ports"]).collect();
    if !ports.is_empty() {
        out.head("Ports");
    }
    for port in ports {
        for key in ["PublishedPort", "Protocol", "TargetPort", "PublishMode"] {
            let _ = writeln!(out.0, " {key} = {}", shown(&port[key]));
        }
    }
    out.0.push('\n');
    out.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            let _ = writeln!(self.0, "{name}:\t{}{value}", if name.len() < 7 { "\t" } else { "" });
        }
    }

    fn head(&mut self, name: &str) {
        let _ = writeln!(self.0, "{name}:");
    }

    /// A line of the part above; nothing for a value that is not there.
    fn below(&mut self, name: &str, value: &Value) {
        let value = shown(value);
        if !value.is_empty() {
            let _ = writeln!(self.0, " {name}:\t{}{value}", if name.len() < 6 { "\t" } else { "" });
        }
    }

    fn pairs(&mut self, name: &str, object: &Value) {
        let Some(object) = object.as_object().filter(|o| !o.is_empty()) else { return };
        self.head(name);
        for (key, value) in object {
            let _ = writeln!(self.0, " {key}={}", shown(value));
        }
    }

    fn placement(&mut self, placement: &Value) {
        let constraints: Vec<String> = values(&placement["Constraints"]).map(shown).collect();
        let preferences: Vec<String> =
            values(&placement["Preferences"]).map(|p| word(&p["Spread"]["SpreadDescriptor"])).collect();
        let most = placement["MaxReplicas"].as_u64().filter(|n| *n > 0);
        if constraints.is_empty() && preferences.is_empty() && most.is_none() {
            return;
        }
        self.head("Placement");
        self.below("Constraints", &Value::from(constraints.join(", ")));
        self.below("Preferences", &Value::from(preferences.join(", ")));
        self.below("Max Replicas Per Node", &most.map_or(Value::Null, Value::from));
    }

    fn rollout(&mut self, name: &str, config: &Value) {
        if !config.is_object() {
            return;
        }
        self.head(name);
        self.below("Parallelism", &config["Parallelism"]);
        self.below("Delay", &duration(&config["Delay"]));
        self.below("On failure", &config["FailureAction"]);
        self.below("Monitoring Period", &duration(&config["Monitor"]));
        self.below("Max failure ratio", &config["MaxFailureRatio"]);
        self.below("Order", &config["Order"]);
    }

    fn container(&mut self, container: &Value) {
        self.head("ContainerSpec");
        self.below("Image", &container["Image"]);
        let words = |value: &Value| Value::from(values(value).map(shown).collect::<Vec<_>>().join(" "));
        self.below("Command", &words(&container["Command"]));
        self.below("Args", &words(&container["Args"]));
        self.below("Env", &words(&container["Env"]));
        self.below("Dir", &container["Dir"]);
        self.below("User", &container["User"]);
        self.below("Init", &container["Init"]);
        for mount in values(&container["Mounts"]) {
            let (target, source) = (word(&mount["Target"]), word(&mount["Source"]));
            self.below("Mount", &Value::from(format!("{} {source} -> {target}", word(&mount["Type"]))));
        }
        for (name, key) in [("Secret", "Secrets"), ("Config", "Configs")] {
            for file in values(&container[key]) {
                let (of, target) = (word(&file[format!("{name}Name")]), word(&file["File"]["Name"]));
                self.below(name, &Value::from(format!("{of} -> {target}")));
            }
        }
    }

    fn resources(&mut self, resources: &Value) {
        for (name, part) in [("Reservations", &resources["Reservations"]), ("Limits", &resources["Limits"])] {
            let cpus = part["NanoCPUs"].as_f64().filter(|n| *n > 0.0).map(|n| n / 1e9);
            let memory = part["MemoryBytes"].as_u64().filter(|n| *n > 0);
            let pids = part["Pids"].as_i64().filter(|n| *n > 0);
            if cpus.is_none() && memory.is_none() && pids.is_none() {
                continue;
            }
            self.head(&format!("Resources {name}"));
            self.below("CPU", &cpus.map_or(Value::Null, Value::from));
            self.below("Memory", &memory.map_or(Value::Null, |n| Value::from(format!("{n} B"))));
            self.below("Pids", &pids.map_or(Value::Null, Value::from));
        }
    }
}

fn values(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A value as people write it; empty for one that is not there.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Nanoseconds as seconds; nothing for none.
fn duration(nanoseconds: &Value) -> Value {
    let seconds = nanoseconds.as_f64().filter(|n| *n > 0.0).map(|n| n / 1e9);
    seconds.map_or(Value::Null, |s| Value::from(format!("{s}s")))
}

/// `replicated job` as `Replicated Job`.
fn title(words: &str) -> String {
    words.split(' ').map(crate::commands::capitalized).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_service_does_not_have_is_not_told() {
        let service = json!({
            "ID": "abc",
            "Spec": {
                "Name": "web", "Labels": {"a": "b"},
                "Mode": {"Replicated": {"Replicas": 3}},
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "x:1", "Args": ["a", "b"]},
                    "Resources": {"Limits": {"NanoCPUs": 500_000_000}},
                    "Networks": [{"Target": "n1"}, {"Target": "n2"}],
                },
                "UpdateConfig": {"Parallelism": 1, "Delay": 2_000_000_000, "Order": "start-first"},
            },
            "Endpoint": {"Spec": {"Mode": "vip"}, "Ports": [
                {"PublishedPort": 80, "TargetPort": 8080, "Protocol": "tcp", "PublishMode": "ingress"},
            ]},
        });
        let wanted = "ID:\t\tabc\nName:\t\tweb\nLabels:\n a=b\nService Mode:\tReplicated\n Replicas:\t3\n\
                      UpdateConfig:\n Parallelism:\t1\n Delay:\t\t2s\n Order:\t\tstart-first\n\
                      ContainerSpec:\n Image:\t\tx:1\n Args:\t\ta b\nResources Limits:\n CPU:\t\t0.5\n\
                      Networks:\tback n2\nEndpoint Mode:\tvip\nPorts:\n PublishedPort = 80\n Protocol = tcp\n\
                      \x20TargetPort = 8080\n PublishMode = ingress\n\n";
        let networks = BTreeMap::from([("n1".to_owned(), "back".to_owned())]);
        assert_eq!(text(&service, &networks), wanted);
    }
}
