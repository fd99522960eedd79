//! From objects to services of the stack: a workload with the Services that select it and the data that it uses.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::model::container::{ConfigReference, ContainerSpec, Driver, FileTarget, SecretReference};
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::{EndpointMode, EndpointSpec, PortConfig, PublishMode};
use skep_proto::model::task::{NetworkAttachmentSpec, RestartCondition, RestartPolicy};
use skep_proto::model::{Annotations, ConfigId, Labels, NetworkSpec, SecretId, ServiceSpec, TaskSpec};

use crate::manifest::problem::{Place, Problems};
use crate::manifest::stack::{DeclaredFile, FileKind, IMAGE_LABEL, Parts, STACK_LABEL, StackService};

use super::extension;
use super::meta::{DEFAULT, Meta};
use super::object::Objects;
use super::pod::{self, Context, Pod, Restart};
use super::service::{Reach, Service, TargetPort};
use super::workload::{Kind, Workload};

/// Label of services: which object they were, as `KIND NAMESPACE/NAME`.
pub const OBJECT_LABEL: &str = "skep.kubernetes";
/// Characters of a service's name at most (RFC 1123).
const LONGEST_NAME: usize = 63;
/// Characters of the name of a secret or config at most, less a number that is added when its content changes.
const LONGEST_FILE: usize = 56;

/// The stack's parts.
pub fn parts(objects: &Objects, stack: &str, problems: &mut Problems) -> Parts {
    let mut build = Build {
        objects,
        stack,
        networks: Networks::of(objects, stack),
        uses: Uses::default(),
        parts: Parts::default(),
    };
    let mut selected = BTreeSet::new();
    for workload in &objects.workloads {
        build.workload(workload, &mut selected, problems);
    }
    for (_, service) in objects.services.iter().enumerate().filter(|(index, _)| !selected.contains(index)) {
        let text = format!("the Service {} selects no pod of the files: its name leads nowhere", service.meta.name);
        problems.warn(service.meta.place, text);
    }
    let Build { networks, uses, mut parts, .. } = build;
    parts.networks = networks.used.values().cloned().collect();
    parts.files = uses.files.into_values().collect();
    parts
}

/// Name in the cluster of an object. The stack has a namespace of its own; the others' names stand before their objects'.
pub fn cluster_name(stack: &str, namespace: &str, name: &str) -> String {
    let plain: String = name.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    if namespace == DEFAULT || namespace == stack {
        format!("{stack}_{plain}")
    } else {
        format!("{stack}_{namespace}-{plain}")
    }
}

/// Name in the cluster of a workload's service.
pub fn service_name(stack: &str, meta: &Meta) -> String {
    match meta.annotations.get(extension::NAME) {
        Some(name) => format!("{stack}_{name}"),
        None => cluster_name(stack, &meta.namespace, &meta.name),
    }
}

/// Networks of the stack: one for each namespace, and one for all when there are several, where only full names hold.
struct Networks {
    stack: String,
    has_several: bool,
    /// Namespaces with a Service that is reached by IPv6, too.
    dual: BTreeSet<String>,
    used: BTreeMap<String, NetworkSpec>,
}

impl Networks {
    fn of(objects: &Objects, stack: &str) -> Self {
        let dual = objects.services.iter().filter(|service| service.ipv6);
        Self {
            stack: stack.to_owned(),
            has_several: objects.namespaces().len() > 1,
            dual: dual.map(|service| service.meta.namespace.clone()).collect(),
            used: BTreeMap::new(),
        }
    }

    fn take(&mut self, name: String, ipv6: bool) -> String {
        self.used.entry(name.clone()).or_insert_with(|| NetworkSpec {
            annotations: Annotations {
                name: name.clone(),
                labels: [(STACK_LABEL.to_owned(), self.stack.clone())].into(),
            },
            driver: Driver { name: "overlay".into(), options: BTreeMap::new() },
            ipv6,
            ..NetworkSpec::default()
        });
        name
    }

    /// Attachments of a workload that names its networks itself; those that must exist go to `external`.
    fn attach_to(
        &mut self,
        declared: BTreeMap<String, Option<NetworkSpec>>,
        names: &Names,
        external: &mut Vec<String>,
    ) -> Vec<NetworkAttachmentSpec> {
        let mut attachments = Vec::new();
        for (target, spec) in declared {
            // The node's own networks know no names.
            let is_local = matches!(target.as_str(), "host" | "none" | "bridge");
            let all = names.short.iter().chain(&names.full).filter(|_| !is_local).cloned();
            let aliases = all.collect();
            match spec {
                Some(spec) => drop(self.used.insert(target.clone(), spec)),
                None if !external.contains(&target) => external.push(target.clone()),
                None => {}
            }
            attachments.push(NetworkAttachmentSpec { target, aliases, ..NetworkAttachmentSpec::default() });
        }
        attachments
    }

    /// Attachments of a workload with these names; the short ones hold in the namespace alone.
    fn attach(&mut self, namespace: &str, names: Names) -> Vec<NetworkAttachmentSpec> {
        let attachment =
            |target, aliases| NetworkAttachmentSpec { target, aliases, ..NetworkAttachmentSpec::default() };
        let Names { short, full } = names;
        if !self.has_several {
            let name = self.take(format!("{}_default", self.stack), !self.dual.is_empty());
            return vec![attachment(name, short.into_iter().chain(full).collect())];
        }
        let own = if namespace == self.stack { DEFAULT } else { namespace };
        let own = self.take(format!("{}_{own}", self.stack), self.dual.contains(namespace));
        let all = self.take(format!("{}_all-namespaces", self.stack), !self.dual.is_empty());
        vec![attachment(own, short.into_iter().chain(full.clone()).collect()), attachment(all, full)]
    }
}

/// Names of a workload.
#[derive(Debug, Default)]
struct Names {
    /// In its own namespace.
    short: Vec<String>,
    /// In every namespace.
    full: Vec<String>,
}

impl Names {
    /// Adds what Kubernetes answers for `name` in `namespace`. `suffix` ends each of them.
    fn add(&mut self, name: &str, namespace: &str, suffix: &str) {
        self.short.push(format!("{name}{suffix}"));
        self.add_full(name, namespace, suffix);
    }

    fn add_full(&mut self, name: &str, namespace: &str, suffix: &str) {
        for domain in ["", ".svc", ".svc.cluster.local"] {
            self.full.push(format!("{name}.{namespace}{domain}{suffix}"));
        }
    }
}

/// The end of a name that makes it one of each task, held whether the task is ready or not: a placeholder for nothing.
pub const OF_EACH_TASK: &str = "{{\"\"}}";

struct Build<'a> {
    objects: &'a Objects,
    stack: &'a str,
    networks: Networks,
    uses: Uses,
    parts: Parts,
}

impl Build<'_> {
    fn workload(&mut self, workload: &Workload, selected: &mut BTreeSet<usize>, problems: &mut Problems) {
        let meta = &workload.meta;
        meta.check(problems);
        let name = service_name(self.stack, meta);
        if name.len() > LONGEST_NAME {
            let text = format!(
                "the service would be called {name}, which is longer than {LONGEST_NAME} characters: use shorter names"
            );
            problems.add(meta.place, text);
        }
        if self.parts.services.iter().any(|known| known.spec.annotations.name == name) {
            let text = format!("two workloads have the name {}: their services would have one name", meta.name);
            problems.add(meta.place, text);
            return;
        }
        let is_stateful = workload.kind == Kind::StatefulSet;
        let context = Context {
            objects: self.objects,
            stack: self.stack,
            owner: meta,
            meta: &workload.template.meta,
            pod_name: match workload.kind {
                Kind::StatefulSet => format!("{}-{{{{.Task.Ordinal}}}}", meta.name),
                Kind::Pod => meta.name.clone(),
                _ => "{{.Task.Name}}".to_owned(),
            },
            own_claims: workload.claims.clone(),
        };
        self.uses.names.clear();
        let mut pod = pod::read(&workload.template, &context, &mut self.uses, problems);
        if is_stateful {
            pod.containers.iter_mut().for_each(|container| container.hostname.clone_from(&context.pod_name));
        }
        let all = self.objects.services.iter().enumerate();
        let services: Vec<(usize, &Service)> = all
            .filter(|(_, service)| {
                service.meta.namespace == meta.namespace
                    && !service.selector.0.is_empty()
                    && service.selector.matches(&workload.template.meta.labels)
            })
            .collect();
        selected.extend(services.iter().map(|(index, _)| *index));
        let services: Vec<&Service> = services.into_iter().map(|(_, service)| service).collect();
        let (endpoint, names) = reach(workload, &services, &pod, problems);
        let networks = if let Some(declared) = meta.networks(self.stack, problems) {
            self.networks.attach_to(declared, &names, &mut self.parts.external_networks)
        } else if pod.host_network {
            if let Some(service) = services.first() {
                let text = format!("the pods of {} use the node's own network: no Service can lead to them", meta.name);
                problems.add(service.meta.place, text);
            }
            vec![NetworkAttachmentSpec { target: "host".into(), ..NetworkAttachmentSpec::default() }]
        } else {
            self.networks.attach(&meta.namespace, names)
        };
        let image = pod.containers.first().map(|container| container.image.clone()).unwrap_or_default();
        let mut spec = ServiceSpec {
            annotations: Annotations { name, labels: self.labels(workload, image) },
            task: TaskSpec {
                restart: restart(workload, &pod, problems),
                containers: pod.containers,
                resources: pod.resources,
                placement: pod.placement,
                networks,
                ..TaskSpec::default()
            },
            mode: workload.mode,
            update: workload.update.clone(),
            rollback: None,
            endpoint: Some(endpoint),
        };
        meta.change(&mut spec, problems);
        for container in &mut spec.task.containers {
            container.registry_auth = pod.credentials.iter().find_map(|known| known.for_image(&container.image));
        }
        for volume in pod.volumes {
            if !self.parts.volumes.iter().any(|known| known.name == volume.name) {
                self.parts.volumes.push(volume);
            }
        }
        self.parts.services.push(StackService {
            key: meta.stack_name().to_owned(),
            place: meta.place,
            spec,
            depends_on: Vec::new(),
            schedule: workload.schedule.clone(),
        });
    }

    fn labels(&self, workload: &Workload, image: String) -> Labels {
        let meta = &workload.meta;
        let own = meta.labels.iter().chain(&meta.annotations).filter(|(key, _)| !extension::is_ours(key));
        let own = own.map(|(key, value)| (key.clone(), value.clone()));
        let object = (!meta.is_docker()).then(|| {
            let object = format!("{} {}/{}", workload.kind.as_str(), meta.namespace, meta.name);
            (OBJECT_LABEL.to_owned(), object)
        });
        let of_stack = [(STACK_LABEL.to_owned(), self.stack.to_owned()), (IMAGE_LABEL.to_owned(), image)]
            .into_iter()
            .chain(object);
        own.chain(of_stack).collect()
    }
}

/// What the Services make of the workload's endpoint, and the names that they give it.
fn reach(workload: &Workload, services: &[&Service], pod: &Pod, problems: &mut Problems) -> (EndpointSpec, Names) {
    let (mut names, mut endpoint) = (Names::default(), EndpointSpec::default());
    let has_address = services.iter().any(|service| service.reach != Reach::Headless);
    let is_headless = !services.is_empty() && !has_address;
    let is_docker = workload.meta.is_docker();
    if is_headless {
        endpoint.mode = EndpointMode::DnsRoundRobin;
    }
    for service in services {
        let meta = &service.meta;
        // A headless Service beside another one, or one whose names hold before the pods are ready.
        let of_each = service.reach == Reach::Headless && (has_address || service.publishes_unready);
        let suffix = if of_each { OF_EACH_TASK } else { "" };
        names.short.push(format!("{}{suffix}", meta.stack_name()));
        if !is_docker {
            names.add_full(&meta.name, &meta.namespace, suffix);
        }
        if workload.governing.as_ref() == Some(&meta.name) {
            let member = format!("{}-{{{{.Task.Ordinal}}}}.{}", workload.meta.name, meta.name);
            names.add(&member, &meta.namespace, "");
        }
        for port in &service.ports {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod
                    .ports
                    .iter()
                    .find(|own| own.name == *name && own.protocol == port.protocol)
                    .map(|own| own.number),
            };
            let Some(target) = target else {
                let TargetPort::Name(name) = &port.target else { continue };
                let text = format!(
                    "no container of {} has a port with the name {name}: add it under ports",
                    workload.meta.name
                );
                problems.add(port.place, text);
                continue;
            };
            let published = match service.reach {
                Reach::Address | Reach::Headless => Vec::new(),
                Reach::NodePort => vec![port.node_port],
                Reach::LoadBalancer => [Some(port.port), port.node_port].into_iter().filter(Option::is_some).collect(),
            };
            endpoint.ports.extend(published.into_iter().map(|published| PortConfig {
                name: if is_docker && port.has_plain_name() { String::new() } else { port.name.clone() },
                protocol: port.protocol,
                target,
                published,
                mode: PublishMode::Ingress,
            }));
            // A virtual address of Docker's leads each port to the same one of the tasks.
            if target != port.port && service.reach != Reach::Headless && !is_docker {
                let led = PortRedirect { protocol: port.protocol, port: port.port, target };
                let other =
                    endpoint.redirects.iter().find(|known| (known.protocol, known.port) == (led.protocol, led.port));
                match other {
                    Some(known) if known.target != led.target => {
                        let text = format!(
                            "another Service leads port {} of the same pods to {}: give one of them another port",
                            led.port, known.target
                        );
                        problems.add(port.place, text);
                    }
                    Some(_) => {}
                    None => endpoint.redirects.push(led),
                }
            }
        }
    }
    if let Some(governing) = &workload.governing
        && !services.iter().any(|service| service.meta.name == *governing)
    {
        let text = format!(
            "the Service {governing} that serviceName names is not in the files: members have no names of their own"
        );
        problems.warn(workload.meta.place, text);
    }
    endpoint.ports.extend(pod.host_ports.iter().cloned());
    check_published(&endpoint.ports, workload.meta.place, problems);
    (endpoint, names)
}

fn check_published(ports: &[PortConfig], place: Place, problems: &mut Problems) {
    let mut taken = BTreeSet::new();
    for port in ports.iter().filter(|port| port.published.is_some()) {
        if !taken.insert((port.published, port.protocol)) {
            let number = port.published.unwrap_or_default();
            problems.add(place, format!("the port {number} of the nodes is published twice for the same pods"));
        }
    }
}

fn restart(workload: &Workload, pod: &Pod, problems: &mut Problems) -> Option<RestartPolicy> {
    if workload.meta.is_docker() && pod.restart.is_none() && workload.attempts.is_none() {
        return None;
    }
    let asked = pod.restart.map_or(workload.restart, |(restart, _)| restart);
    if let Some((restart, place)) = pod.restart {
        let fits = match workload.kind {
            Kind::Pod => true,
            Kind::Job | Kind::CronJob => restart != Restart::Always,
            _ => restart == Restart::Always,
        };
        if !fits {
            let word = if workload.mode.is_job() { "OnFailure or Never" } else { "Always" };
            problems.add(place, format!("restartPolicy of a {} is {word}", workload.kind.as_str()));
        }
    }
    let condition = match asked {
        Restart::Always => RestartCondition::Any,
        Restart::OnFailure => RestartCondition::OnFailure,
        // A Job's pod that failed is followed by another one.
        Restart::Never if workload.mode.is_job() => RestartCondition::OnFailure,
        Restart::Never => RestartCondition::None,
    };
    let max_attempts = workload.attempts.filter(|_| condition != RestartCondition::Any);
    Some(match max_attempts {
        // Zero means no limit to Docker: nothing is tried again.
        Some(0) => RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() },
        max_attempts => RestartPolicy { condition, max_attempts, ..RestartPolicy::default() },
    })
}

/// What pods use of the files, gathered while they are read.
#[derive(Debug, Default)]
pub struct Uses {
    files: BTreeMap<(FileKind, String), DeclaredFile>,
    /// Requests of the containers of the pod that is being read, in their order.
    pub requests: Vec<pod::Amount>,
    /// Names of those containers.
    pub names: BTreeSet<String>,
}

impl Uses {
    /// A file in a container: declares its content once, and refers to it.
    pub fn file(
        &mut self,
        file: &pod::File,
        target: FileTarget,
        container: &mut ContainerSpec,
        context: &Context<'_>,
        problems: &mut Problems,
    ) {
        let pod::File { kind, of: (object, key), place, .. } = file;
        let (kind, place) = (*kind, *place);
        if let Some(content) = file.content.as_ref().filter(|content| content.0.len() >= kind.limit()) {
            let text = format!(
                "{object}/{key} has {} bytes: a {} has fewer than {}",
                content.0.len(),
                kind.word(),
                kind.limit()
            );
            problems.add(place, text);
            return;
        }
        let whole = format!("{}.{key}", cluster_name(context.stack, &context.owner.namespace, object));
        let name = file.name.clone().unwrap_or_else(|| file_name(&whole));
        self.files.entry((kind, name.clone())).or_insert_with(|| DeclaredFile {
            kind,
            key: format!("{object}/{key}"),
            place,
            name: name.clone(),
            is_named: false,
            labels: [(STACK_LABEL.to_owned(), context.stack.to_owned())].into(),
            template_driver: file.is_template.then(|| "golang".to_owned()),
            content: file.content.clone(),
        });
        let path = target.name.clone();
        let taken = container
            .secrets
            .iter()
            .filter_map(|s| s.file.as_ref())
            .chain(container.configs.iter().filter_map(|c| c.file.as_ref()));
        if taken.into_iter().any(|other| other.name == path) {
            problems.add(place, format!("two files of the container are at {path}"));
            return;
        }
        match kind {
            FileKind::Secret => {
                container.secrets.push(SecretReference { id: SecretId(0), name, file: Some(target) });
            }
            FileKind::Config => {
                container.configs.push(ConfigReference { id: ConfigId(0), name, file: Some(target) });
            }
        }
    }
}

/// A name that secrets and configs may have: short enough, with letters and digits at its ends. What is cut is told apart
/// by a number made from the whole.
pub fn file_name(whole: &str) -> String {
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    if whole.len() <= LONGEST_FILE && whole.ends_with(is_edge) {
        return whole.to_owned();
    }
    // FNV-1a: the same in every release.
    let hash = whole
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let kept: String = whole.chars().take(LONGEST_FILE - 9).collect();
    format!("{}-{:08x}", kept.trim_end_matches(|c| !is_edge(c)), hash >> 32)
}
