//! A pod template (core/v1, `PodTemplateSpec`, `PodSpec`): the containers of a task and what they share.

mod container;
mod env;
mod files;
mod placement;
mod probe;
mod pull;
pub mod quantity;
mod resources;
mod security;
mod volume;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use skep_proto::model::container::DnsConfig;
use skep_proto::model::pod::{PodContainer, Role};
use skep_proto::model::service::{PortConfig, Protocol};
use skep_proto::model::task::{Placement, Resources};
use skep_proto::model::{ContainerSpec, Labels};

use crate::credentials::Credentials;
use crate::manifest::decode::{boolean, entries, items, parsed, text, texts};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::DeclaredVolume;
use crate::manifest::yaml::Node;

pub use container::default_pull;
pub use files::File;
pub use resources::{Amount, PLAIN_DOMAIN};

use super::build::Uses;
use super::extension;
use super::meta::{self, Meta};
use super::object::Objects;
use super::rest::Rest;

/// Kubernetes' grace between the stop signal and SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

/// A pod template.
#[derive(Debug, Clone, Default)]
pub struct Template {
    /// Its labels, which Services select by.
    pub meta: Meta,
    /// Its `spec`.
    pub spec: Option<Rc<Node>>,
}

/// Reads `template`, but not its spec: that refers to other objects.
pub fn template(node: &Node, problems: &mut Problems) -> Template {
    let mut template = Template::default();
    for field in entries(node, "a pod template", problems) {
        match field.key.as_str() {
            "metadata" => template.meta = meta::read(Some(&field.value), field.place, false, problems),
            "spec" => template.spec = Some(field.value.clone()),
            _ => crate::manifest::decode::unknown_key(field, "a pod template", &["metadata", "spec"], problems),
        }
    }
    template
}

/// What the pods of a workload may refer to.
pub struct Context<'a> {
    /// Everything in the files.
    pub objects: &'a Objects,
    /// Name of the stack.
    pub stack: &'a str,
    /// The workload.
    pub owner: &'a Meta,
    /// The pod template's labels and annotations.
    pub meta: &'a Meta,
    /// Name of a pod; a template where each has its own.
    pub pod_name: String,
    /// Names of claims that each member of a StatefulSet has of its own.
    pub own_claims: Vec<String>,
}

/// When the containers of a pod are started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// After every end.
    #[default]
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name; may be empty.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What a pod template comes to.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// The containers: main ones first.
    pub containers: Vec<ContainerSpec>,
    /// Reservations of all of them.
    pub resources: Resources,
    /// Where it may run.
    pub placement: Placement,
    /// Ports that containers declare.
    pub ports: Vec<ContainerPort>,
    /// Ports published where a pod runs.
    pub host_ports: Vec<PortConfig>,
    /// It uses the node's own network.
    pub host_network: bool,
    /// When its containers are started again, and where that is said.
    pub restart: Option<(Restart, Place)>,
    /// Volumes that it mounts.
    pub volumes: Vec<DeclaredVolume>,
    /// Credentials for the registries of its images.
    pub credentials: Vec<Credentials>,
}

const REST: Rest<'_> = Rest {
    what: "a pod",
    known: &[
        "containers",
        "initContainers",
        "volumes",
        "restartPolicy",
        "terminationGracePeriodSeconds",
        "nodeSelector",
        "nodeName",
        "affinity",
        "tolerations",
        "topologySpreadConstraints",
        "securityContext",
        "hostNetwork",
        "hostAliases",
        "hostname",
        "subdomain",
        "dnsPolicy",
        "dnsConfig",
        "imagePullSecrets",
    ],
    refused: &[
        ("hostPID", "tasks have their own processes"),
        ("hostIPC", "tasks have their own shared objects"),
        ("shareProcessNamespace", "containers of a task have their own processes: signal others by a file or a port"),
        ("runtimeClassName", "there is one runtime"),
        ("schedulerName", "there is one scheduler: remove it"),
        ("activeDeadlineSeconds", "let the program end itself, as with timeout(1)"),
        ("ephemeralContainers", "use skep exec"),
        ("overhead", "add it to the requests of a container"),
        ("resources", "set resources of the containers"),
        ("setHostnameAsFQDN", "remove it"),
        ("hostUsers", "remove it"),
        ("resourceClaims", "devices are generic resources of nodes"),
        ("os", "use nodeSelector with kubernetes.io/os"),
    ],
    left_out: &[
        ("serviceAccountName", "tasks have no account: there is no API server that they could ask"),
        ("serviceAccount", "tasks have no account: there is no API server that they could ask"),
        ("priorityClassName", "no task is ended to make room for another"),
        ("priority", "no task is ended to make room for another"),
        ("preemptionPolicy", "no task is ended to make room for another"),
        ("readinessGates", "a task is ready when its containers are"),
        ("schedulingGates", "tasks are placed at once"),
    ],
};

/// Reads a pod's spec.
pub fn read(template: &Template, context: &Context<'_>, uses: &mut Uses, problems: &mut Problems) -> Pod {
    let mut pod = Pod::default();
    let Some(spec) = &template.spec else {
        problems.add(context.owner.place, "the pod template has no spec");
        return pod;
    };
    let mut security = security::Pod::default();
    let is_docker = context.owner.is_docker();
    let (mut grace, mut host_name, mut hosts) = ((!is_docker).then_some(GRACE), String::new(), Vec::new());
    let (mut dns, mut dns_policy) = (None, None);
    let mut volumes = volume::Volumes::default();
    let mut lists: Vec<(Role, &Rc<Node>)> = Vec::new();
    for field in entries(spec, "a pod", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "containers" => lists.insert(0, (Role::Main, value)),
            "initContainers" => lists.push((Role::Init, value)),
            "volumes" => volumes = volume::read(value, context, problems),
            "restartPolicy" => pod.restart = restart(value, problems).map(|restart| (restart, value.place)),
            "terminationGracePeriodSeconds" => {
                if let Some(seconds) =
                    parsed::<u32>(value, "terminationGracePeriodSeconds", "a number of seconds", problems)
                {
                    grace = Some(Duration::from_secs(seconds.into()));
                }
            }
            "nodeSelector" => placement::node_selector(value, &mut pod.placement, problems),
            "nodeName" => {
                pod.placement.constraints.push(format!("node.hostname=={}", text(value, "nodeName", problems)))
            }
            "affinity" => placement::affinity(value, &template.meta.labels, &mut pod.placement, problems),
            "topologySpreadConstraints" => placement::spread(value, &mut pod.placement, problems),
            // Nodes have no taints: there is nothing to tolerate.
            "tolerations" => drop(items(value, "tolerations", problems)),
            "securityContext" => security = security::pod(value, problems),
            "hostNetwork" => pod.host_network = boolean(value, "hostNetwork", problems),
            "hostAliases" => hosts = host_aliases(value, problems),
            "hostname" => host_name = escaped(&text(value, "hostname", problems)),
            // Names of members follow from the Service that a StatefulSet names.
            "subdomain" => {
                problems.warn(field.place, "subdomain is left out: members of a StatefulSet have names of their own")
            }
            "imagePullSecrets" => pod.credentials = pull::secrets(value, context, problems),
            "dnsPolicy" => dns_policy = Some((text(value, "dnsPolicy", problems), value.place)),
            "dnsConfig" => dns = Some(dns_config(value, problems)),
            "schedulerName" if value.as_text() == Some("default-scheduler") => {}
            "hostPID" | "hostIPC" | "shareProcessNamespace" | "setHostnameAsFQDN"
                if value.as_text() == Some("false") => {}
            "serviceAccountName" | "serviceAccount" if value.as_text() == Some("default") => {}
            // Neither is there a token to mount, nor are there variables of Services.
            "automountServiceAccountToken" | "enableServiceLinks" => drop(boolean(value, &field.key, problems)),
            _ => REST.take(field, problems),
        }
    }
    if let Some((policy, place)) = dns_policy
        && !matches!(policy.as_str(), "ClusterFirst" | "ClusterFirstWithHostNet" | "None" | "Default")
    {
        problems.add(place, format!("dnsPolicy is ClusterFirst, Default or None, not {policy:?}"));
    }
    for (role, list) in lists {
        for item in items(list, "containers", problems) {
            let shared = container::Shared { security: &security, volumes: &mut volumes, grace, role };
            if let Some(container) = container::read(item, shared, context, uses, &mut pod, problems) {
                pod.containers.push(container);
            }
        }
    }
    for container in &mut pod.containers {
        container.hostname.clone_from(&host_name);
        container.hosts.clone_from(&hosts);
        container.dns.clone_from(&dns);
    }
    if pod.containers.iter().all(|container| container.pod.as_ref().is_some_and(|pod| pod.role != Role::Main)) {
        problems.add(spec.place, "a pod needs at least one container under containers");
    }
    pod.resources = resources::whole(&pod.containers, uses);
    if let (true, [only]) = (is_docker, pod.containers.as_mut_slice()) {
        plain(only, &mut pod.resources);
    }
    uses.requests.clear();
    pod.volumes = volumes.declared;
    pod
}

/// Makes the only container of a task one of Docker's, unless it has what only pods have.
fn plain(container: &mut ContainerSpec, whole: &mut Resources) {
    whole.limits = part(container).limits.take();
    container.hostname = unescaped(&container.hostname);
    if *part(container) == PodContainer::default() {
        container.pod = None;
        container.name.clear();
    }
}

fn restart(node: &Node, problems: &mut Problems) -> Option<Restart> {
    match text(node, "restartPolicy", problems).as_str() {
        "Always" => Some(Restart::Always),
        "OnFailure" => Some(Restart::OnFailure),
        "Never" => Some(Restart::Never),
        other => {
            problems.add(node.place, format!("restartPolicy is Always, OnFailure or Never, not {other:?}"));
            None
        }
    }
}

fn host_aliases(node: &Node, problems: &mut Problems) -> Vec<String> {
    let mut lines = Vec::new();
    for item in items(node, "hostAliases", problems) {
        let (mut ip, mut names) = (String::new(), Vec::new());
        for field in entries(item, "a host alias", problems) {
            match field.key.as_str() {
                "ip" => ip = text(&field.value, "ip", problems),
                "hostnames" => names = texts(&field.value, "hostnames", problems),
                _ => crate::manifest::decode::unknown_key(field, "a host alias", &["ip", "hostnames"], problems),
            }
        }
        if ip.parse::<std::net::IpAddr>().is_err() {
            problems.add(item.place, format!("ip of a host alias is an address, not {ip:?}"));
        }
        lines.push(format!("{ip} {}", names.join(" ")));
    }
    lines
}

fn dns_config(node: &Node, problems: &mut Problems) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for field in entries(node, "dnsConfig", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "nameservers" => {
                for server in items(value, "nameservers", problems) {
                    dns.nameservers.extend(parsed::<std::net::IpAddr>(server, "a name server", "an address", problems));
                }
            }
            "searches" => dns.search = texts(value, "searches", problems),
            "options" => {
                for item in items(value, "options", problems) {
                    let part = |key: &str| item.get(key).and_then(|node| node.as_text()).unwrap_or_default().to_owned();
                    let (name, value) = (part("name"), part("value"));
                    dns.options.push(if value.is_empty() { name } else { format!("{name}:{value}") });
                }
            }
            _ => crate::manifest::decode::unknown_key(
                field,
                "dnsConfig",
                &["nameservers", "searches", "options"],
                problems,
            ),
        }
    }
    dns
}

/// `TCP`, `UDP` or `SCTP`.
pub fn protocol(node: &Node, problems: &mut Problems) -> Protocol {
    match text(node, "protocol", problems).as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        other => {
            problems.add(node.place, format!("a protocol is TCP or UDP, not {other:?}"));
            Protocol::Tcp
        }
    }
}

/// Text in which nothing is a placeholder of skep's.
pub fn escaped(text: &str) -> String {
    text.replace("{{", "{{\"{{\"}}")
}

/// The text that was [`escaped`].
fn unescaped(text: &str) -> String {
    text.replace("{{\"{{\"}}", "{{")
}

/// Labels of a container: the template's labels and annotations.
fn labels(context: &Context<'_>) -> Labels {
    let own = context.meta.labels.iter().chain(&context.meta.annotations).filter(|(key, _)| !extension::is_ours(key));
    let own: BTreeMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    own.into_iter().chain([(crate::manifest::stack::STACK_LABEL.to_owned(), context.stack.to_owned())]).collect()
}

/// The part of a container's spec that only pods have.
fn part(container: &mut ContainerSpec) -> &mut PodContainer {
    container.pod.get_or_insert_default()
}
