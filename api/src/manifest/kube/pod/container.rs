//! A container of a pod (core/v1, `Container`).

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::model::ContainerSpec;
use skep_proto::model::container::Healthcheck;
use skep_proto::model::pod::{PodContainer, Pull, Role};
use skep_proto::model::service::{PortConfig, PublishMode};

use crate::manifest::decode::{boolean, entries, items, text, texts, unknown_key};
use crate::manifest::kube::build::Uses;
use crate::manifest::kube::rest::Rest;
use crate::manifest::kube::service::port_number;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::env::{self, Environment};
use super::resources;
use super::volume::Volumes;
use super::{ContainerPort, Context, Pod, escaped, part, probe, security, unescaped};

/// What the containers of a pod share.
pub struct Shared<'a> {
    /// The pod's security context.
    pub security: &'a security::Pod,
    /// The pod's volumes.
    pub volumes: &'a mut Volumes,
    /// Grace between the stop signal and SIGKILL; `None` for Docker's.
    pub grace: Option<Duration>,
    /// When containers of this list run.
    pub role: Role,
}

const REST: Rest<'_> = Rest {
    what: "a container",
    known: &[
        "name",
        "image",
        "command",
        "args",
        "workingDir",
        "env",
        "envFrom",
        "ports",
        "resources",
        "volumeMounts",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "imagePullPolicy",
        "securityContext",
        "stdin",
        "tty",
        "restartPolicy",
    ],
    refused: &[
        ("volumeDevices", "block devices cannot be claimed"),
        ("resizePolicy", "a change of resources replaces the task"),
        ("stdinOnce", "remove it"),
    ],
    left_out: &[
        ("terminationMessagePath", "what a container says at its end is in its log"),
        ("terminationMessagePolicy", "what a container says at its end is in its log"),
    ],
};

/// Reads a container.
pub fn read(
    node: &Node,
    shared: Shared<'_>,
    context: &Context<'_>,
    uses: &mut Uses,
    pod: &mut Pod,
    problems: &mut Problems,
) -> Option<ContainerSpec> {
    let is_docker = context.owner.is_docker();
    // Kubernetes does not look at the image's.
    let no_check = || Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
    let mut container = ContainerSpec {
        labels: super::labels(context),
        stop_grace: shared.grace,
        healthcheck: (!is_docker).then(no_check),
        pod: Some(PodContainer { role: shared.role, ..PodContainer::default() }),
        ..ContainerSpec::default()
    };
    let fields = entries(node, "a container", problems);
    let of = |key: &str| fields.iter().find(|field| field.key == key).map(|field| &field.value);
    // What others refer to comes first, however it is written.
    let amounts = of("resources").map_or_else(Default::default, |node| resources::read(node, is_docker, problems));
    let own_ports = of("ports").map(|node| ports(node, pod, problems)).unwrap_or_default();
    let mut environment = Environment::default();
    if let Some(node) = of("envFrom") {
        env::from(node, context, &mut environment, problems);
    }
    if let Some(node) = of("env") {
        env::read(node, context, &amounts, &mut environment, problems);
    }
    container.env = environment.lines();
    for field in fields {
        let value = &field.value;
        match field.key.as_str() {
            "name" => {
                container.name = text(value, "name", problems);
                if !super::meta::is_name(&container.name) || container.name.contains('.') || container.name.len() > 63 {
                    problems.add(
                        value.place,
                        format!("{:?} is no name of a container: lower-case letters, digits and - are", container.name),
                    );
                }
                if !uses.names.insert(container.name.clone()) {
                    problems.add(value.place, format!("two containers of the pod have the name {:?}", container.name));
                }
            }
            "image" => container.image = text(value, "image", problems),
            "command" => container.command = words(value, &environment, problems),
            "args" => container.args = words(value, &environment, problems),
            "workingDir" => container.dir = text(value, "workingDir", problems),
            "volumeMounts" => {
                shared.volumes.mount(value, context, shared.security.fs_group, &mut container, uses, problems);
            }
            "livenessProbe" => {
                part(&mut container).liveness = probe::read(value, "livenessProbe", &own_ports, problems)
            }
            "readinessProbe" => {
                part(&mut container).readiness = probe::read(value, "readinessProbe", &own_ports, problems)
            }
            "startupProbe" => part(&mut container).startup = probe::read(value, "startupProbe", &own_ports, problems),
            "lifecycle" => lifecycle(value, &own_ports, &mut container, problems),
            "imagePullPolicy" => part(&mut container).pull = pull(value, problems),
            "restartPolicy" => match text(value, "restartPolicy", problems).as_str() {
                "Always" if shared.role == Role::Init => part(&mut container).role = Role::Sidecar,
                other => {
                    let text = "restartPolicy of a container is Always, for an init container that stays as a sidecar";
                    problems.add(value.place, format!("{text}; not {other:?}"));
                }
            },
            "stdin" => container.open_stdin = boolean(value, "stdin", problems),
            "tty" => container.tty = boolean(value, "tty", problems),
            "env" | "envFrom" | "ports" | "resources" | "securityContext" => {}
            _ => REST.take(field, problems),
        }
    }
    security::container(of("securityContext").map(|node| &**node), shared.security, &mut container, problems);
    if container.name.is_empty() || container.image.is_empty() {
        problems.add(node.place, "a container needs a name and an image");
        return None;
    }
    let by_default = default_pull(&container.image).filter(|_| !is_docker);
    let own = part(&mut container);
    own.limits = resources::limits(&amounts.1);
    if own.role == Role::Init && (own.liveness.is_some() || own.readiness.is_some() || own.startup.is_some()) {
        problems.add(
            node.place,
            "an init container ends by itself: it has no probes unless restartPolicy: Always makes it a sidecar",
        );
    }
    if own.pull.is_none() {
        own.pull = by_default;
    }
    if is_docker {
        // Placeholders are those of Docker's services.
        let texts = [&mut container.env, &mut container.command, &mut container.args];
        texts.into_iter().flatten().for_each(|text| *text = unescaped(text));
    } else {
        container.labels.insert(crate::manifest::stack::IMAGE_LABEL.to_owned(), container.image.clone());
    }
    uses.requests.push(amounts.0);
    pod.ports.extend(own_ports);
    Some(container)
}

fn words(node: &Node, environment: &Environment, problems: &mut Problems) -> Vec<String> {
    texts(node, "a command", problems).iter().map(|word| environment.expand(&escaped(word))).collect()
}

fn pull(node: &Node, problems: &mut Problems) -> Option<Pull> {
    match text(node, "imagePullPolicy", problems).as_str() {
        "Always" => Some(Pull::Always),
        "IfNotPresent" => Some(Pull::IfNotPresent),
        "Never" => Some(Pull::Never),
        other => {
            problems.add(node.place, format!("imagePullPolicy is Always, IfNotPresent or Never, not {other:?}"));
            None
        }
    }
}

/// `latest`, or no tag: always. Any other tag: when it is not there.
pub fn default_pull(image: &str) -> Option<Pull> {
    let last = image.rsplit('/').next().unwrap_or_default();
    let is_latest = !image.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
    Some(if is_latest { Pull::Always } else { Pull::IfNotPresent })
}

fn lifecycle(node: &Node, ports: &[ContainerPort], container: &mut ContainerSpec, problems: &mut Problems) {
    for field in entries(node, "lifecycle", problems) {
        match field.key.as_str() {
            "preStop" => part(container).pre_stop = probe::hook(&field.value, "preStop", ports, problems),
            "postStart" => part(container).post_start = probe::hook(&field.value, "postStart", ports, problems),
            "stopSignal" => container.stop_signal = text(&field.value, "stopSignal", problems),
            _ => unknown_key(field, "lifecycle", &["preStop", "postStart", "stopSignal"], problems),
        }
    }
}

fn ports(node: &Node, pod: &mut Pod, problems: &mut Problems) -> Vec<ContainerPort> {
    let (mut ports, mut names) = (Vec::new(), BTreeSet::new());
    for item in items(node, "ports", problems) {
        let (mut name, mut number, mut host) = (String::new(), None, None);
        let mut protocol = skep_proto::model::service::Protocol::Tcp;
        for field in entries(item, "a port", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "name" => name = text(value, "name", problems),
                "containerPort" => number = port_number(value, "containerPort", problems),
                "protocol" => protocol = super::protocol(value, problems),
                "hostPort" => host = port_number(value, "hostPort", problems),
                "hostIP" => {
                    problems.warn(field.place, "hostIP is left out: the port is open on every address of the node")
                }
                _ => unknown_key(field, "a port", &["name", "containerPort", "protocol", "hostPort"], problems),
            }
        }
        let Some(number) = number else {
            problems.add(item.place, "a port needs a containerPort from 1 to 65535");
            continue;
        };
        if !name.is_empty() && !names.insert(name.clone()) {
            problems.add(item.place, format!("two ports of the container have the name {name:?}"));
        }
        if let Some(host) = host {
            pod.host_ports.push(PortConfig {
                name: name.clone(),
                protocol,
                target: number,
                published: Some(host),
                mode: PublishMode::Host,
            });
        }
        ports.push(ContainerPort { name, number, protocol });
    }
    ports
}
