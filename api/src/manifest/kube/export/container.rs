//! Containers: programs, environments, resources, probes and hooks.

use serde_json::{Value, json};
use skep_proto::model::ContainerSpec;
use skep_proto::model::container::Privileges;
use skep_proto::model::pod::{Action, HttpGet, PodContainer, Probe, Pull, Role};
use skep_proto::model::service::{PortConfig, Protocol};
use skep_proto::model::task::{Limits, Reservations};

use crate::manifest::kube::pod::{PLAIN_DOMAIN, default_pull};

use super::names::{Origin, object_name};
use super::{put, seconds};

/// A container. `whole` are the limits of a task of Docker's, which are those of its only container.
pub fn write(container: &ContainerSpec, origin: &Origin, requests: &Reservations, whole: Option<&Limits>) -> Value {
    let part = container.pod.clone().unwrap_or_default();
    let name = if container.name.is_empty() { object_name(&origin.name) } else { container.name.clone() };
    let mut out = json!({"name": name, "image": container.image});
    let text = Texts::of(container, origin);
    put(&mut out, "command", container.command.iter().map(|word| json!(text.word(word))).collect());
    put(&mut out, "args", container.args.iter().map(|word| json!(text.word(word))).collect());
    put(&mut out, "workingDir", json!(container.dir));
    put(&mut out, "env", text.variables());
    for (key, is_set) in [("tty", container.tty), ("stdin", container.open_stdin)] {
        if is_set {
            out[key] = json!(true);
        }
    }
    let limits = part.limits.as_ref().or(whole.filter(|_| origin.is_docker));
    put(&mut out, "resources", resources(requests, limits));
    put(&mut out, "securityContext", security(container));
    for (key, probe) in
        [("livenessProbe", &part.liveness), ("readinessProbe", &part.readiness), ("startupProbe", &part.startup)]
    {
        put(&mut out, key, probe.as_ref().map_or(Value::Null, self::probe));
    }
    let mut lifecycle = json!({});
    put(&mut lifecycle, "preStop", part.pre_stop.as_ref().map_or(Value::Null, action));
    put(&mut lifecycle, "postStart", part.post_start.as_ref().map_or(Value::Null, action));
    put(&mut lifecycle, "stopSignal", json!(container.stop_signal));
    put(&mut out, "lifecycle", lifecycle);
    let pull = part.pull.filter(|pull| origin.is_docker || Some(*pull) != default_pull(&container.image));
    put(
        &mut out,
        "imagePullPolicy",
        json!(pull.map(|pull| match pull {
            Pull::Always => "Always",
            Pull::IfNotPresent => "IfNotPresent",
            Pull::Never => "Never",
        })),
    );
    out
}

/// A port that is published where a task runs.
pub fn host_port(port: &PortConfig) -> Value {
    let mut out = json!({"containerPort": port.target, "hostPort": port.published});
    put(&mut out, "name", json!(port.name));
    if port.protocol == Protocol::Udp {
        out["protocol"] = json!("UDP");
    }
    out
}

/// Texts of a container, whose placeholders Kubernetes has as fields of a pod.
struct Texts<'a> {
    container: &'a ContainerSpec,
    is_docker: bool,
    /// Name of a pod, as a placeholder.
    pod_name: String,
}

impl<'a> Texts<'a> {
    fn of(container: &'a ContainerSpec, origin: &Origin) -> Self {
        let pod_name = match origin.kind {
            crate::manifest::kube::workload::Kind::StatefulSet => format!("{}-{{{{.Task.Ordinal}}}}", origin.name),
            _ => "{{.Task.Name}}".to_owned(),
        };
        Self { container, is_docker: origin.is_docker, pod_name }
    }

    /// The field that a placeholder is.
    fn field(&self, text: &str) -> Option<&'static str> {
        match text {
            _ if self.is_docker => None,
            _ if text == self.pod_name => Some("metadata.name"),
            "{{.Task.ID}}" => Some("metadata.uid"),
            "{{.Node.Hostname}}" => Some("spec.nodeName"),
            "{{.Task.Address}}" => Some("status.podIP"),
            "{{.Node.Address}}" => Some("status.hostIP"),
            _ => None,
        }
    }

    fn variables(&self) -> Value {
        let mut list = Vec::new();
        for (index, line) in self.container.env.iter().enumerate() {
            // One without a value takes away the image's: Kubernetes has none.
            let Some((name, value)) = line.split_once('=') else { continue };
            list.push(match self.field(value) {
                Some(field) => json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}),
                None => json!({"name": name, "value": self.text(value, &self.container.env[..index])}),
            });
        }
        Value::Array(list)
    }

    fn word(&self, word: &str) -> String {
        self.text(word, &self.container.env)
    }

    /// A text as a manifest has it. Placeholders are those of variables that were set before.
    fn text(&self, text: &str, before: &[String]) -> String {
        let mut text = text.to_owned();
        if text.contains("$(") || text.contains("$$") {
            text = text.replace('$', "$$");
        }
        if self.is_docker {
            return text;
        }
        for line in before {
            if let Some((name, value)) = line.split_once('=')
                && self.field(value).is_some()
            {
                text = text.replace(value, &format!("$({name})"));
            }
        }
        unescaped(&text)
    }
}

/// The text without what keeps placeholders from being read as such.
pub fn unescaped(text: &str) -> String {
    text.replace("{{\"{{\"}}", "{{")
}

/// The least that a manifest can ask for, in nano-CPUs.
const LEAST_CPU: i64 = 1_000_000;
/// Likewise in bytes.
const LEAST_MEMORY: i64 = 4 << 20;

/// CPU as a quantity.
fn cpu(nano: i64) -> Value {
    match nano {
        _ if nano < LEAST_CPU => Value::Null,
        _ if nano % 1_000_000_000 == 0 => json!((nano / 1_000_000_000).to_string()),
        _ => json!(format!("{}m", nano.unsigned_abs().div_ceil(1_000_000))),
    }
}

/// Bytes as a quantity.
fn memory(bytes: i64) -> Value {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    match units.iter().find(|(shift, _)| bytes % (1 << shift) == 0) {
        _ if bytes < LEAST_MEMORY => Value::Null,
        Some((shift, unit)) => json!(format!("{}{unit}", bytes >> shift)),
        None => json!(bytes.to_string()),
    }
}

fn resources(requests: &Reservations, limits: Option<&Limits>) -> Value {
    let mut out = json!({});
    let mut wanted = json!({});
    put(&mut wanted, "cpu", cpu(requests.nano_cpus));
    put(&mut wanted, "memory", memory(requests.memory));
    let mut most = json!({});
    if let Some(limits) = limits {
        put(&mut most, "cpu", cpu(limits.nano_cpus));
        put(&mut most, "memory", memory(limits.memory));
    }
    for (kind, count) in &requests.generic {
        // `nvidia.com-gpu` is how nodes name Kubernetes' `nvidia.com/gpu`.
        let name = match kind.split_once('-') {
            Some((domain, rest)) if domain.contains('.') => format!("{domain}/{rest}"),
            _ => format!("{PLAIN_DOMAIN}{kind}"),
        };
        most[name] = json!(count);
    }
    put(&mut out, "requests", wanted);
    put(&mut out, "limits", most);
    out
}

/// What each container requests, so that together they reserve what the task does. The spec has the sum only: a container
/// that is limited requests that much, the first one what is left.
pub fn requests(containers: &[ContainerSpec], whole: Option<&Reservations>) -> Vec<Reservations> {
    let whole = whole.cloned().unwrap_or_default();
    let mut requests = vec![Reservations::default(); containers.len()];
    let limits =
        |container: &ContainerSpec| container.pod.as_ref().and_then(|part| part.limits.clone()).unwrap_or_default();
    let (mut cpus, mut bytes) = (whole.nano_cpus, whole.memory);
    let together = |part: &PodContainer| part.role != Role::Init;
    for (container, request) in containers.iter().zip(&mut requests).skip(1) {
        let Some(part) = container.pod.as_ref().filter(|part| together(part)) else { continue };
        let limits = part.limits.clone().unwrap_or_default();
        if limits.nano_cpus > 0 {
            request.nano_cpus = if limits.nano_cpus < cpus { limits.nano_cpus } else { LEAST_CPU.min(cpus) };
            cpus -= request.nano_cpus;
        }
        if limits.memory > 0 {
            request.memory = if limits.memory < bytes { limits.memory } else { LEAST_MEMORY.min(bytes) };
            bytes -= request.memory;
        }
    }
    if let Some(first) = requests.first_mut() {
        *first = Reservations { nano_cpus: cpus.max(0), memory: bytes.max(0), generic: whole.generic };
    }
    for (container, request) in containers.iter().zip(&mut requests) {
        // What a limit says already.
        let limits = limits(container);
        if request.nano_cpus == limits.nano_cpus {
            request.nano_cpus = 0;
        }
        if request.memory == limits.memory {
            request.memory = 0;
        }
    }
    requests
}

fn security(container: &ContainerSpec) -> Value {
    let mut out = json!({});
    let (user, group) = container.user.split_once(':').map_or((container.user.as_str(), None), |(u, g)| (u, Some(g)));
    let numbers = (user.parse::<u32>(), group.map(str::parse::<u32>).transpose());
    if let (Ok(user), Ok(group)) = numbers {
        out["runAsUser"] = json!(user);
        put(&mut out, "runAsGroup", json!(group));
    }
    let privileges = container.privileges.clone().unwrap_or_default();
    let Privileges { no_new_privileges, seccomp_unconfined, privileged, .. } = privileges;
    if no_new_privileges {
        out["allowPrivilegeEscalation"] = json!(false);
    }
    if seccomp_unconfined {
        out["seccompProfile"] = json!({"type": "Unconfined"});
    }
    for (key, is_set) in [("privileged", privileged), ("readOnlyRootFilesystem", container.read_only)] {
        if is_set {
            out[key] = json!(true);
        }
    }
    for (key, names) in [("add", &container.cap_add), ("drop", &container.cap_drop)] {
        if !names.is_empty() {
            let plain = |name: &String| json!(name.strip_prefix("CAP_").unwrap_or(name));
            out["capabilities"][key] = names.iter().map(plain).collect();
        }
    }
    out
}

fn probe(probe: &Probe) -> Value {
    let mut out = action(&probe.action);
    let times = [
        ("initialDelaySeconds", seconds(probe.initial_delay), 0),
        ("periodSeconds", seconds(probe.period), 10),
        ("timeoutSeconds", seconds(probe.timeout), 1),
        ("successThreshold", Some(probe.successes.into()), 1),
        ("failureThreshold", Some(probe.failures.into()), 3),
    ];
    for (key, value, default) in times {
        if let Some(value) = value.filter(|value| *value != default) {
            out[key] = json!(value);
        }
    }
    out
}

fn action(action: &Action) -> Value {
    match action {
        Action::Exec { command } => json!({"exec": {"command": command}}),
        Action::HttpGet(get) => json!({"httpGet": http_get(get)}),
        Action::TcpSocket { host, port } => {
            let mut out = json!({"port": port});
            put(&mut out, "host", json!(host));
            json!({"tcpSocket": out})
        }
        Action::Sleep { time } => json!({"sleep": {"seconds": time.as_secs()}}),
    }
}

fn http_get(get: &HttpGet) -> Value {
    let mut out = json!({"path": get.path, "port": get.port});
    put(&mut out, "host", json!(get.host));
    if get.tls {
        out["scheme"] = json!("HTTPS");
    }
    let header = |header: &skep_proto::model::pod::Header| json!({"name": header.name, "value": header.value});
    put(&mut out, "httpHeaders", get.headers.iter().map(header).collect());
    out
}
