//! Probes and hooks (core/v1, `Probe`, `Lifecycle`).

use std::time::Duration;

use skep_proto::model::pod::{Action, Header, HttpGet, Probe};

use crate::manifest::decode::{entries, items, parsed, text, texts, unknown_key};
use crate::manifest::kube::rest::Rest;
use crate::manifest::kube::service::{TargetPort, read_target};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::ContainerPort;

const PROBE_REST: Rest<'_> = Rest {
    what: "a probe",
    known: &[
        "exec",
        "httpGet",
        "tcpSocket",
        "initialDelaySeconds",
        "periodSeconds",
        "timeoutSeconds",
        "successThreshold",
        "failureThreshold",
    ],
    refused: &[("grpc", "use tcpSocket, or exec with a program that asks")],
    left_out: &[("terminationGracePeriodSeconds", "the pod's grace holds")],
};

/// Reads a probe. `ports` are those of the container.
pub fn read(node: &Node, what: &str, ports: &[ContainerPort], problems: &mut Problems) -> Option<Probe> {
    let mut action = None;
    let (mut delay, mut period, mut timeout, mut successes, mut failures) = (0, 10, 1, 1, 3);
    let mut actions = 0;
    for field in entries(node, what, problems) {
        let value = &field.value;
        let mut number = |default: u32| {
            let read: Option<u32> = parsed(value, &field.key, "a whole number", problems);
            read.unwrap_or(default)
        };
        match field.key.as_str() {
            "initialDelaySeconds" => delay = number(delay),
            "periodSeconds" => period = number(period),
            "timeoutSeconds" => timeout = number(timeout),
            "successThreshold" => successes = number(successes),
            "failureThreshold" => failures = number(failures),
            "exec" | "httpGet" | "tcpSocket" => {
                action = read_action(&field.key, value, ports, problems);
                actions += 1;
            }
            _ => PROBE_REST.take(field, problems),
        }
    }
    if actions != 1 && problems.count() == 0 {
        problems.add(node.place, format!("{what} needs one of exec, httpGet and tcpSocket"));
    }
    if what != "readinessProbe" && successes != 1 {
        problems.add(node.place, format!("successThreshold of {what} is 1"));
    }
    let seconds = |n: u32| Duration::from_secs(n.max(1).into());
    Some(Probe {
        action: action?,
        initial_delay: Duration::from_secs(delay.into()),
        period: seconds(period),
        timeout: seconds(timeout),
        successes: successes.max(1),
        failures: failures.max(1),
    })
}

/// Reads a hook of `lifecycle`.
pub fn hook(node: &Node, what: &str, ports: &[ContainerPort], problems: &mut Problems) -> Option<Action> {
    let mut action = None;
    for field in entries(node, what, problems) {
        match field.key.as_str() {
            "exec" | "httpGet" | "tcpSocket" => action = read_action(&field.key, &field.value, ports, problems),
            "sleep" => {
                for part in entries(&field.value, "sleep", problems) {
                    match part.key.as_str() {
                        "seconds" => {
                            let seconds: Option<u32> = parsed(&part.value, "seconds", "a number of seconds", problems);
                            action = seconds.map(|seconds| Action::Sleep { time: Duration::from_secs(seconds.into()) });
                        }
                        _ => unknown_key(part, "sleep", &["seconds"], problems),
                    }
                }
            }
            _ => unknown_key(field, what, &["exec", "httpGet", "tcpSocket", "sleep"], problems),
        }
    }
    if action.is_none() && problems.count() == 0 {
        problems.add(node.place, format!("{what} needs one of exec, httpGet and sleep"));
    }
    action
}

fn read_action(kind: &str, node: &Node, ports: &[ContainerPort], problems: &mut Problems) -> Option<Action> {
    match kind {
        "exec" => {
            let mut command = Vec::new();
            for field in entries(node, "exec", problems) {
                match field.key.as_str() {
                    "command" => command = texts(&field.value, "command", problems),
                    _ => unknown_key(field, "exec", &["command"], problems),
                }
            }
            if command.is_empty() {
                problems.add(node.place, "exec needs a command");
                return None;
            }
            Some(Action::Exec { command })
        }
        "httpGet" => http_get(node, ports, problems).map(Action::HttpGet),
        _ => {
            let (mut host, mut port) = (String::new(), None);
            for field in entries(node, "tcpSocket", problems) {
                match field.key.as_str() {
                    "host" => host = text(&field.value, "host", problems),
                    "port" => port = resolve(&field.value, ports, problems),
                    _ => unknown_key(field, "tcpSocket", &["host", "port"], problems),
                }
            }
            if port.is_none() && problems.count() == 0 {
                problems.add(node.place, "tcpSocket needs a port");
            }
            Some(Action::TcpSocket { host, port: port? })
        }
    }
}

fn http_get(node: &Node, ports: &[ContainerPort], problems: &mut Problems) -> Option<HttpGet> {
    let mut get = HttpGet { path: "/".to_owned(), ..HttpGet::default() };
    let mut port = None;
    for field in entries(node, "httpGet", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "path" => {
                let path = text(value, "path", problems);
                get.path = if path.starts_with('/') { path } else { format!("/{path}") };
                if get.path.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    problems.add(value.place, "a path has no blanks: write them as %20");
                }
            }
            "port" => port = resolve(value, ports, problems),
            "host" => get.host = text(value, "host", problems),
            "scheme" => match text(value, "scheme", problems).as_str() {
                "HTTP" => {}
                "HTTPS" => get.tls = true,
                other => problems.add(value.place, format!("a scheme is HTTP or HTTPS, not {other:?}")),
            },
            "httpHeaders" => {
                for item in items(value, "httpHeaders", problems) {
                    let part = |key: &str| item.get(key).and_then(|node| node.as_text()).unwrap_or_default().to_owned();
                    let header = Header { name: part("name"), value: part("value") };
                    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                    if header.name.is_empty()
                        || !header.name.chars().all(is_word)
                        || header.value.contains(char::is_control)
                    {
                        problems
                            .add(item.place, "a header has a name of letters, digits and -, and a value of one line");
                    }
                    get.headers.push(header);
                }
            }
            _ => unknown_key(field, "httpGet", &["path", "port", "host", "scheme", "httpHeaders"], problems),
        }
    }
    if port.is_none() && problems.count() == 0 {
        problems.add(node.place, "httpGet needs a port");
    }
    get.port = port?;
    Some(get)
}

/// A port by number, or by the name that the container gives one.
fn resolve(node: &Node, ports: &[ContainerPort], problems: &mut Problems) -> Option<u16> {
    match read_target(node, problems)? {
        TargetPort::Number(port) => Some(port),
        TargetPort::Name(name) => {
            let found = ports.iter().find(|port| port.name == name).map(|port| port.number);
            if found.is_none() {
                problems.add(node.place, format!("the container has no port with the name {name}: add it under ports"));
            }
            found
        }
    }
}
