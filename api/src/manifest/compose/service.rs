//! A service of a Compose file.

use std::collections::BTreeMap;

use skep_proto::model::container::Driver;
use skep_proto::model::service::EndpointSpec;
use skep_proto::model::task::{Limits, NetworkAttachmentSpec, Platform, Reservations, RestartCondition, RestartPolicy};
use skep_proto::model::{Annotations, ContainerSpec, ServiceMode, ServiceSpec, TaskSpec};

use super::Names;
use super::files::Files;
use super::network::Networks;
use crate::manifest::Problems;
use crate::manifest::decode::{
    boolean, bytes, command, duration, entries, items, pairs, parsed, text, texts, unknown_key,
};
use crate::manifest::stack::{Dependency, IMAGE_LABEL, STACK_LABEL, StackService};
use crate::manifest::yaml::{Entry, Node, Value};

mod dependencies;
mod deploy;
mod environment;
mod healthcheck;
mod keys;
mod mounts;
mod ports;
mod schedule;
mod security;

pub use dependencies::check as check_dependencies;

/// Reads one service.
pub fn read(
    entry: &Entry,
    names: &Names<'_>,
    networks: &mut Networks,
    files: &mut Files,
    problems: &mut Problems,
) -> StackService {
    let mut service = Reader::new(entry, names);
    for field in entries(&entry.value, "a service", problems) {
        service.field(field, networks, files, problems);
    }
    service.finish(networks, problems)
}

/// What older keys say that `deploy` says, too; `deploy` wins.
#[derive(Default)]
struct Older {
    replicas: Option<u64>,
    restart: Option<RestartPolicy>,
    limits: Limits,
    reservations: Reservations,
}

struct Reader<'a> {
    entry: &'a Entry,
    names: &'a Names<'a>,
    labels: BTreeMap<String, String>,
    container: ContainerSpec,
    attachments: Option<Vec<NetworkAttachmentSpec>>,
    endpoint: EndpointSpec,
    deploy: deploy::Deploy,
    older: Older,
    log: Option<Driver>,
    platforms: Vec<Platform>,
    depends_on: Vec<Dependency>,
}

impl<'a> Reader<'a> {
    fn new(entry: &'a Entry, names: &'a Names<'a>) -> Self {
        let stack = (STACK_LABEL.to_owned(), names.scope.stack.to_owned());
        let container = ContainerSpec { labels: [stack.clone()].into(), ..ContainerSpec::default() };
        Self {
            entry,
            names,
            labels: [stack].into(),
            container,
            attachments: None,
            endpoint: EndpointSpec::default(),
            deploy: deploy::Deploy::default(),
            older: Older::default(),
            log: None,
            platforms: Vec::new(),
            depends_on: Vec::new(),
        }
    }

    fn field(&mut self, field: &Entry, networks: &mut Networks, files: &mut Files, problems: &mut Problems) {
        let (value, container) = (&field.value, &mut self.container);
        match field.key.as_str() {
            "image" => container.image = text(value, "image", problems),
            "command" => container.args = command(value, "command", problems),
            "entrypoint" => container.command = command(value, "entrypoint", problems),
            // Read together, when all of them are known.
            "environment" | "env_file" | "label_file" => {}
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
            "volumes" => {
                for item in items(value, "volumes", problems) {
                    container.mounts.extend(mounts::volume(item, self.names, problems));
                }
            }
            "tmpfs" => match &value.value {
                Value::Sequence(list) => container.mounts.extend(list.iter().map(|item| mounts::tmpfs(item, problems))),
                _ if value.is_null() => {}
                _ => container.mounts.push(mounts::tmpfs(value, problems)),
            },
            "shm_size" => container.mounts.push(mounts::shared_memory(value, problems)),
            "secrets" => container.secrets = files.secrets(value, problems),
            "configs" => container.configs = files.configs(value, problems),
            "dns" | "dns_search" | "dns_opt" => self.dns(field, problems),
            "networks" => {
                self.attachments =
                    Some(attachments(value, &self.entry.key, self.names.scope.stack, networks, problems));
            }
            "network_mode" => self.network_mode(value, problems),
            "ports" => self.endpoint.ports = ports::read(value, problems),
            "healthcheck" => container.healthcheck = Some(healthcheck::read(value, problems)),
            "deploy" => self.deploy = deploy::read(value, problems),
            "depends_on" => self.depends_on = dependencies::read(value, self.names, problems),
            "logging" => self.log = logging(value, problems),
            // Which services there are was decided when the files were read. Every port of a container is open to its networks.
            "profiles" | "expose" => {}
            key if key.starts_with("x-") => {}
            _ => self.of_one_host(field, problems),
        }
    }

    /// Keys that were made for one host, or for what a container may do.
    fn of_one_host(&mut self, field: &Entry, problems: &mut Problems) {
        let (value, container, older) = (&field.value, &mut self.container, &mut self.older);
        match field.key.as_str() {
            "cap_add" => container.cap_add = security::capabilities(value, problems),
            "cap_drop" => container.cap_drop = security::capabilities(value, problems),
            "sysctls" => container.sysctls = pairs(value, "sysctls", problems),
            "ulimits" => container.ulimits = security::ulimits(value, problems),
            "group_add" => container.groups = texts(value, "group_add", problems),
            "init" => container.init = Some(boolean(value, "init", problems)),
            "privileged" => {
                if boolean(value, "privileged", problems) {
                    container.privileges.get_or_insert_default().privileged = true;
                }
            }
            "devices" => {
                container.privileges.get_or_insert_default().devices = security::devices(value, problems);
            }
            "security_opt" => security::options(value, container, problems),
            "restart" => older.restart = restart(value, problems),
            "scale" => older.replicas = parsed::<u32>(value, "scale", "a number", problems).map(u64::from),
            "cpus" => older.limits.nano_cpus = deploy::cpus(field, problems),
            "mem_limit" => older.limits.memory = bytes(value, "mem_limit", problems),
            "pids_limit" => older.limits.pids = parsed(value, "pids_limit", "a number", problems).unwrap_or(0).max(0),
            "mem_reservation" => older.reservations.memory = bytes(value, "mem_reservation", problems),
            "platform" => self.platforms.extend(platform(value, problems)),
            "pull_policy" => match text(value, "pull_policy", problems).as_str() {
                "missing" | "if_not_present" => {}
                "always" => problems.warn(field.place, "it has no effect: a node asks the registry when it lacks the image; name a digest or another tag to get another image"),
                other => problems.add(value.place, format!("a pull policy is missing, not {other:?}: nodes fetch what they lack")),
            },
            "ipc" | "pid" => match text(value, &field.key, problems).as_str() {
                "private" => {}
                other => problems.add(value.place, format!("{} {other:?} is not supported by skep: every task has its own", field.key)),
            },
            // What there is to run is said; that nothing is built changes nothing for it (`docker stack deploy` says so, too).
            "build" if self.entry.value.get("image").is_some_and(|image| image.as_text().is_some()) => problems.warn(
                field.place,
                "build: it has no effect: nodes fetch the image that is named under image, so build and push that first",
            ),
            key => {
                let of = |table: &[(&str, &'static str)]| table.iter().find(|(name, _)| *name == key).map(|(_, advice)| *advice);
                if let Some(advice) = of(keys::REFUSED) {
                    problems.add(field.place, format!("{key}: {advice}"));
                } else if let Some(advice) = of(keys::WITHOUT_EFFECT) {
                    problems.warn(field.place, format!("{key}: {advice}"));
                } else {
                    unknown_key(field, "a service", keys::KNOWN, problems);
                }
            }
        }
    }

    fn dns(&mut self, field: &Entry, problems: &mut Problems) {
        let wanted = texts(&field.value, &field.key, problems);
        let dns = self.container.dns.get_or_insert_default();
        match field.key.as_str() {
            "dns" => {
                for server in &wanted {
                    match server.parse() {
                        Ok(address) => dns.nameservers.push(address),
                        Err(_) => {
                            problems.add(field.value.place, format!("a DNS server is an address, not {server:?}"))
                        }
                    }
                }
            }
            "dns_search" => dns.search = wanted,
            _ => dns.options = wanted,
        }
    }

    fn network_mode(&mut self, node: &Node, problems: &mut Problems) {
        let mode = text(node, "network_mode", problems);
        match mode.as_str() {
            "host" | "none" => {
                self.attachments =
                    Some(vec![NetworkAttachmentSpec { target: mode, ..NetworkAttachmentSpec::default() }]);
            }
            // Files written for one host; in a cluster it is the stack's default network.
            "bridge" | "default" => {}
            other => {
                let advice = "host, none and bridge are; otherwise declare a network under networks";
                problems.add(node.place, format!("the network mode {other:?} is not supported by skep: {advice}"));
            }
        }
    }

    fn finish(mut self, networks: &mut Networks, problems: &mut Problems) -> StackService {
        let (entry, names) = (self.entry, self.names);
        let key = &entry.key;
        if self.container.image.is_empty() && entry.value.get("build").is_none() {
            problems.add(entry.place, format!("the service {key} has no image: name one under image"));
        }
        let field = |name: &str| entry.value.get(name).map(|node| &**node);
        self.container.env = environment::lines(field("env_file"), field("environment"), names, problems);
        if let Some(files) = field("label_file") {
            let mut labels = environment::labels_of_files(files, names, problems);
            labels.extend(std::mem::take(&mut self.container.labels));
            self.container.labels = labels;
        }
        let Self { mut labels, container, attachments, mut endpoint, mut deploy, older, .. } = self;
        let attachments = attachments.unwrap_or_else(|| {
            let target = networks.use_of("default", names.scope.stack, entry.place, problems);
            vec![NetworkAttachmentSpec { target, aliases: vec![key.clone()], ..NetworkAttachmentSpec::default() }]
        });
        older.below(&mut deploy);
        labels.insert(IMAGE_LABEL.to_owned(), container.image.clone());
        labels.extend(deploy.labels);
        endpoint.mode = deploy.endpoint_mode;
        deploy.placement.platforms = self.platforms;
        let mode = deploy.mode.unwrap_or(ServiceMode::Replicated { replicas: 1 });
        if let (Some((place, _)), false) = (&deploy.schedule, mode.is_job()) {
            problems.add(*place, "a schedule is for jobs: set deploy.mode to replicated-job or global-job");
        }
        let spec = ServiceSpec {
            annotations: Annotations { name: format!("{}_{key}", names.scope.stack), labels },
            task: TaskSpec {
                containers: vec![container],
                resources: deploy.resources,
                restart: deploy.restart,
                placement: deploy.placement,
                networks: attachments,
                log_driver: self.log,
                ..TaskSpec::default()
            },
            mode,
            update: deploy.update,
            rollback: deploy.rollback,
            endpoint: Some(endpoint),
        };
        let schedule = deploy.schedule.map(|(_, schedule)| schedule);
        StackService { key: key.clone(), place: entry.place, spec, depends_on: self.depends_on, schedule }
    }
}

impl Older {
    fn below(self, deploy: &mut deploy::Deploy) {
        if let (None, Some(replicas)) = (deploy.mode, self.replicas) {
            deploy.mode = Some(ServiceMode::Replicated { replicas });
        }
        if deploy.restart.is_none() {
            deploy.restart = self.restart;
        }
        if self.limits != Limits::default() && deploy.resources.limits.is_none() {
            deploy.resources.limits = Some(self.limits);
        }
        if self.reservations != Reservations::default() && deploy.resources.reservations.is_none() {
            deploy.resources.reservations = Some(self.reservations);
        }
    }
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`. What is the default in a cluster says nothing.
fn restart(node: &Node, problems: &mut Problems) -> Option<RestartPolicy> {
    let written = text(node, "restart", problems);
    let (word, count) = written.split_once(':').map_or((written.as_str(), None), |(w, n)| (w, Some(n)));
    let policy = |condition| Some(RestartPolicy { condition, ..RestartPolicy::default() });
    match (word, count.map(str::parse::<u64>)) {
        ("always" | "unless-stopped", None) => None,
        // YAML 1.1 reads `no` as false, and writers quote it or not.
        ("no" | "false", None) => policy(RestartCondition::None),
        ("on-failure", None) => policy(RestartCondition::OnFailure),
        ("on-failure", Some(Ok(most))) => Some(RestartPolicy {
            condition: RestartCondition::OnFailure,
            max_attempts: Some(most),
            ..RestartPolicy::default()
        }),
        _ => {
            let known = "no, always, unless-stopped, on-failure or on-failure:NUMBER";
            problems.add(node.place, format!("restart is {known}, not {written:?}"));
            None
        }
    }
}

/// `OS/ARCHITECTURE`.
fn platform(node: &Node, problems: &mut Problems) -> Option<Platform> {
    let written = text(node, "platform", problems);
    let mut parts = written.split('/');
    match (parts.next(), parts.next()) {
        (Some("linux"), architecture) => {
            Some(Platform { os: "linux".into(), architecture: architecture.unwrap_or_default().to_owned() })
        }
        _ => {
            problems.add(node.place, format!("a platform is linux/ARCHITECTURE, not {written:?}"));
            None
        }
    }
}

fn logging(node: &Node, problems: &mut Problems) -> Option<Driver> {
    let mut log = Driver::default();
    for field in entries(node, "logging", problems) {
        match field.key.as_str() {
            "driver" => log.name = text(&field.value, "driver", problems),
            "options" => log.options = pairs(&field.value, "options", problems),
            _ => unknown_key(field, "logging", &["driver", "options"], problems),
        }
    }
    Some(log)
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

const NETWORK_KEYS: [&str; 9] = [
    "aliases",
    "driver_opts",
    "ipv4_address",
    "ipv6_address",
    "link_local_ips",
    "mac_address",
    "priority",
    "gw_priority",
    "interface_name",
];

fn attachments(
    node: &Node,
    key: &str,
    stack: &str,
    networks: &mut Networks,
    problems: &mut Problems,
) -> Vec<NetworkAttachmentSpec> {
    let own = |target: String| {
        // The node's own networks know no names.
        let aliases =
            if matches!(target.as_str(), "host" | "none" | "bridge") { Vec::new() } else { vec![key.to_owned()] };
        NetworkAttachmentSpec { target, aliases, ..NetworkAttachmentSpec::default() }
    };
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
                "driver_opts" => attachment.driver_options = pairs(&field.value, "driver_opts", problems),
                "ipv4_address" | "ipv6_address" | "link_local_ips" | "mac_address" => problems.add(
                    field.place,
                    format!("{}: tasks get their addresses from the cluster: remove it, and use the name", field.key),
                ),
                "priority" | "gw_priority" | "interface_name" => {
                    problems.warn(field.place, format!("{}: it has no effect in a cluster", field.key));
                }
                key if key.starts_with("x-") => {}
                _ => unknown_key(field, "a network of a service", &NETWORK_KEYS, problems),
            }
        }
        result.push(attachment);
    }
    result
}
