//! A service of a Compose file.

use std::collections::BTreeMap;

use skep_proto::model::container::{BindOptions, Mount, MountKind, TmpfsOptions};
use skep_proto::model::service::EndpointSpec;
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{Annotations, ContainerSpec, ServiceMode, ServiceSpec, TaskSpec};

use super::Names;
use super::files::Files;
use super::network::Networks;
use crate::manifest::Problems;
use crate::manifest::decode::{
    boolean, bytes, command, duration, entries, items, pairs, parsed, text, texts, unknown_key,
};
use crate::manifest::stack::{IMAGE_LABEL, STACK_LABEL, StackService};
use crate::manifest::yaml::{Entry, Node, Value};

mod deploy;
mod healthcheck;
mod ports;
mod security;

const KEYS: [&str; 31] = [
    "image",
    "command",
    "entrypoint",
    "environment",
    "labels",
    "hostname",
    "user",
    "working_dir",
    "volumes",
    "tmpfs",
    "networks",
    "ports",
    "deploy",
    "stop_signal",
    "stop_grace_period",
    "tty",
    "stdin_open",
    "read_only",
    "extra_hosts",
    "expose",
    "secrets",
    "configs",
    "cap_add",
    "cap_drop",
    "sysctls",
    "ulimits",
    "group_add",
    "init",
    "privileged",
    "devices",
    "healthcheck",
];

/// Keys with a meaning on one host only, which `docker stack deploy` ignores with a warning. Each says what to do instead.
const ONE_HOST_KEYS: [(&str, &str); 5] = [
    ("build", "building images is not supported by skep yet: push the image and name it under image"),
    ("container_name", "tasks of a service have names of their own: remove it"),
    ("restart", "use deploy.restart_policy"),
    ("depends_on", "not supported by skep yet: remove it, and let the program retry"),
    ("links", "services reach each other by name: remove it"),
];

/// Reads one service.
pub fn read(
    entry: &Entry,
    names: &Names<'_>,
    networks: &mut Networks,
    files: &mut Files,
    problems: &mut Problems,
) -> StackService {
    let mut service = Reader::new(&entry.key, names);
    for field in entries(&entry.value, "a service", problems) {
        service.field(field, networks, files, problems);
    }
    service.finish(entry, networks, problems)
}

struct Reader<'a> {
    key: &'a str,
    names: &'a Names<'a>,
    labels: BTreeMap<String, String>,
    container: ContainerSpec,
    attachments: Option<Vec<NetworkAttachmentSpec>>,
    endpoint: EndpointSpec,
    deploy: deploy::Deploy,
}

impl<'a> Reader<'a> {
    fn new(key: &'a str, names: &'a Names<'a>) -> Self {
        let stack = (STACK_LABEL.to_owned(), names.scope.stack.to_owned());
        let container = ContainerSpec { labels: [stack.clone()].into(), ..ContainerSpec::default() };
        Self {
            key,
            names,
            labels: [stack].into(),
            container,
            attachments: None,
            endpoint: EndpointSpec::default(),
            deploy: deploy::Deploy::default(),
        }
    }

    fn field(&mut self, field: &Entry, networks: &mut Networks, files: &mut Files, problems: &mut Problems) {
        let (value, container) = (&field.value, &mut self.container);
        match field.key.as_str() {
            "image" => container.image = text(value, "image", problems),
            "command" => container.args = command(value, "command", problems),
            "entrypoint" => container.command = command(value, "entrypoint", problems),
            "environment" => container.env = environment(value, problems),
            "labels" => container.labels.extend(pairs(value, "labels", problems)),
            "hostname" => container.hostname = text(value, "hostname", problems),
            "user" => container.user = text(value, "user", problems),
            "working_dir" => container.dir = text(value, "working_dir", problems),
            "stop_signal" => container.stop_signal = text(value, "stop_signal", problems),
            "stop_grace_period" => container.stop_grace = duration(value, "stop_grace_period", problems),
            "tty" => container.tty = boolean(value, "tty", problems),
            "stdin_open" => container.open_stdin = boolean(value, "stdin_open", problems),
            "read_only" => container.read_only = boolean(value, "read_only", problems),
            "extra_hosts" => container.hosts = extra_hosts(value, problems),
            "tmpfs" => container.mounts.extend(texts(value, "tmpfs", problems).iter().map(|target| tmpfs(target))),
            "volumes" => {
                for item in items(value, "volumes", problems) {
                    container.mounts.extend(volume(item, self.names, problems));
                }
            }
            "secrets" => container.secrets = files.secrets(value, problems),
            "configs" => container.configs = files.configs(value, problems),
            "cap_add" => container.cap_add = security::capabilities(value, problems),
            "cap_drop" => container.cap_drop = security::capabilities(value, problems),
            "sysctls" => container.sysctls = pairs(value, "sysctls", problems),
            "ulimits" => container.ulimits = security::ulimits(value, problems),
            "group_add" => container.groups = texts(value, "group_add", problems),
            "init" => container.init = Some(boolean(value, "init", problems)),
            "privileged" => {
                container.privileges.get_or_insert_default().privileged = boolean(value, "privileged", problems);
            }
            "devices" => {
                container.privileges.get_or_insert_default().devices = security::devices(value, problems);
            }
            "networks" => {
                self.attachments = Some(attachments(value, self.key, self.names.scope.stack, networks, problems))
            }
            "ports" => self.endpoint.ports = ports::read(value, problems),
            "healthcheck" => container.healthcheck = Some(healthcheck::read(value, problems)),
            "deploy" => self.deploy = deploy::read(value, problems),
            // Documentation only: every port of a container is open to its networks.
            "expose" => {}
            key if key.starts_with("x-") => {}
            key => match ONE_HOST_KEYS.iter().find(|(name, _)| *name == key) {
                Some((name, advice)) => problems.add(field.place, format!("{name}: {advice}")),
                None => unknown_key(field, "a service", &KEYS, problems),
            },
        }
    }

    fn finish(self, entry: &Entry, networks: &mut Networks, problems: &mut Problems) -> StackService {
        let Self { key, names, mut labels, container, attachments, mut endpoint, deploy } = self;
        if container.image.is_empty() {
            problems.add(entry.place, format!("the service {key} has no image"));
        }
        let attachments = attachments.unwrap_or_else(|| {
            let target = networks.use_of("default", names.scope.stack, entry.place, problems);
            vec![NetworkAttachmentSpec { target, aliases: vec![key.to_owned()], ..NetworkAttachmentSpec::default() }]
        });
        labels.insert(IMAGE_LABEL.to_owned(), container.image.clone());
        labels.extend(deploy.labels);
        endpoint.mode = deploy.endpoint_mode;
        let spec = ServiceSpec {
            annotations: Annotations { name: format!("{}_{key}", names.scope.stack), labels },
            task: TaskSpec {
                containers: vec![container],
                resources: deploy.resources,
                restart: deploy.restart,
                placement: deploy.placement,
                networks: attachments,
                ..TaskSpec::default()
            },
            mode: deploy.mode.unwrap_or(ServiceMode::Replicated { replicas: 1 }),
            update: deploy.update,
            rollback: deploy.rollback,
            endpoint: Some(endpoint),
        };
        let key = key.to_owned();
        StackService { key, place: entry.place, spec, depends_on: Vec::new(), schedule: None, pod: None }
    }
}

fn environment(node: &Node, problems: &mut Problems) -> Vec<String> {
    let missing = |place, key: &str, problems: &mut Problems| {
        problems.add(
            place,
            format!("{key} has no value: taking it from the caller's environment is not supported by skep yet"),
        );
    };
    match &node.value {
        Value::Sequence(list) => list
            .iter()
            .map(|item| {
                let line = text(item, "environment", problems);
                if !line.contains('=') {
                    missing(item.place, &line, problems);
                }
                line
            })
            .collect(),
        _ => entries(node, "environment", problems)
            .iter()
            .map(|e| {
                if e.value.is_null() {
                    missing(e.place, &e.key, problems);
                }
                format!("{}={}", e.key, text(&e.value, "a variable", problems))
            })
            .collect(),
    }
}

/// Compose writes `NAME:IP` or `NAME=IP`; specs hold lines of `/etc/hosts`.
fn extra_hosts(node: &Node, problems: &mut Problems) -> Vec<String> {
    if let Value::Mapping(_) = node.value {
        return pairs(node, "extra_hosts", problems).into_iter().map(|(name, ip)| format!("{ip} {name}")).collect();
    }
    let mut hosts = Vec::new();
    for item in items(node, "extra_hosts", problems) {
        let line = text(item, "extra_hosts", problems);
        match line.split_once(['=', ':']) {
            Some((name, ip)) if !name.is_empty() && !ip.is_empty() => hosts.push(format!("{ip} {name}")),
            _ => problems.add(item.place, format!("an extra host is NAME:IP, not {line:?}")),
        }
    }
    hosts
}

fn tmpfs(target: &str) -> Mount {
    mount(MountKind::Tmpfs, String::new(), target.to_owned())
}

fn mount(kind: MountKind, source: String, target: String) -> Mount {
    Mount { kind, source, target, read_only: false, consistency: String::new(), bind: None, volume: None, tmpfs: None }
}

/// One mount, in the short form `[SOURCE:]TARGET[:MODE]` or the long one.
fn volume(node: &Node, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    if let Value::Mapping(_) = node.value {
        return long_volume(node, names, problems);
    }
    let line = text(node, "a volume", problems);
    let parts: Vec<&str> = line.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => {
            problems.add(node.place, format!("a volume is [SOURCE:]TARGET[:ro], not {line:?}"));
            return None;
        }
    };
    if !target.starts_with('/') {
        problems.add(node.place, format!("the target of a volume is an absolute path, not {target:?}"));
    }
    let kind = if source.starts_with(['/', '.', '~']) { MountKind::Bind } else { MountKind::Volume };
    let mut result = mount(kind, source.to_owned(), target.to_owned());
    for word in mode.split(',').filter(|w| !w.is_empty()) {
        match word {
            "ro" => result.read_only = true,
            "rw" => {}
            _ => problems.add(node.place, format!("{word:?} is no mode of a volume that skep supports: ro or rw")),
        }
    }
    resolve(node, result, names, problems)
}

fn long_volume(node: &Node, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    let mut result = mount(MountKind::Volume, String::new(), String::new());
    for field in entries(node, "a volume", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "type" => match text(value, "type", problems).as_str() {
                "bind" => result.kind = MountKind::Bind,
                "volume" => result.kind = MountKind::Volume,
                "tmpfs" => result.kind = MountKind::Tmpfs,
                other => {
                    problems.add(value.place, format!("the type of a volume is bind, volume or tmpfs, not {other:?}"))
                }
            },
            "source" => result.source = text(value, "source", problems),
            "target" => result.target = text(value, "target", problems),
            "read_only" => result.read_only = boolean(value, "read_only", problems),
            "bind" => {
                for part in entries(value, "bind", problems) {
                    match part.key.as_str() {
                        "propagation" => {
                            let propagation = text(&part.value, "propagation", problems);
                            result.bind = Some(BindOptions { propagation, ..BindOptions::default() });
                        }
                        _ => unknown_key(part, "bind", &["propagation"], problems),
                    }
                }
            }
            "tmpfs" => {
                let mut options = TmpfsOptions::default();
                for part in entries(value, "tmpfs", problems) {
                    match part.key.as_str() {
                        "size" => options.size = u64::try_from(bytes(&part.value, "size", problems)).unwrap_or(0),
                        "mode" => options.mode = parsed(&part.value, "mode", "a number", problems).unwrap_or(0),
                        _ => unknown_key(part, "tmpfs", &["size", "mode"], problems),
                    }
                }
                result.tmpfs = Some(options);
            }
            _ => unknown_key(field, "a volume", &["type", "source", "target", "read_only", "bind", "tmpfs"], problems),
        }
    }
    if result.target.is_empty() {
        problems.add(node.place, "a volume needs a target");
    }
    resolve(node, result, names, problems)
}

/// Replaces the file's name of a volume by its name on the nodes.
fn resolve(node: &Node, mut mount: Mount, names: &Names<'_>, problems: &mut Problems) -> Option<Mount> {
    match mount.kind {
        MountKind::Bind if !mount.source.starts_with('/') => {
            problems.add(
                node.place,
                format!("the source {:?} is a path of the nodes, so it must be absolute", mount.source),
            );
            return None;
        }
        MountKind::Volume if !mount.source.is_empty() => match names.volumes.get(&mount.source) {
            Some(volume) => {
                mount.source.clone_from(&volume.name);
                mount.volume.clone_from(&volume.options);
            }
            None => {
                problems.add(node.place, format!("the volume {} is not declared: add it under volumes", mount.source));
                return None;
            }
        },
        MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => {}
    }
    Some(mount)
}

fn attachments(
    node: &Node,
    key: &str,
    stack: &str,
    networks: &mut Networks,
    problems: &mut Problems,
) -> Vec<NetworkAttachmentSpec> {
    let own =
        |target| NetworkAttachmentSpec { target, aliases: vec![key.to_owned()], ..NetworkAttachmentSpec::default() };
    if let Value::Sequence(list) = &node.value {
        return list
            .iter()
            .map(|item| own(networks.use_of(&text(item, "a network", problems), stack, item.place, problems)))
            .collect();
    }
    let mut result = Vec::new();
    for entry in entries(node, "networks", problems) {
        let mut attachment = own(networks.use_of(&entry.key, stack, entry.place, problems));
        for field in entries(&entry.value, "a network of a service", problems) {
            match field.key.as_str() {
                "aliases" => attachment.aliases.extend(texts(&field.value, "aliases", problems)),
                _ => unknown_key(field, "a network of a service", &["aliases"], problems),
            }
        }
        result.push(attachment);
    }
    result
}
