//! Pod templates: what the containers of a task share.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skep_proto::model::container::{Mount, MountKind, VolumeOptions};
use skep_proto::model::pod::Role;
use skep_proto::model::task::{Placement, RestartCondition};
use skep_proto::model::{ContainerSpec, ServiceSpec};

use crate::manifest::kube::extension::SELECTED;
use crate::manifest::kube::meta::{DEFAULT, is_name};
use crate::manifest::kube::workload::Kind;
use crate::manifest::stack::{FileKind, IMAGE_LABEL, STACK_LABEL};

use super::names::{Origin, object_name};
use super::reach::Own;
use super::{Writer, container, put, seconds};

/// Volumes of a pod while they are named.
#[derive(Debug, Default)]
pub struct Volumes {
    /// By name; `None` for the claims of a StatefulSet's members.
    volumes: BTreeMap<String, Option<Value>>,
    /// Names of those claims.
    claims: BTreeSet<String>,
}

impl Volumes {
    /// The name of a volume that is like this.
    fn name(&mut self, wanted: &str, volume: Option<&Value>) -> String {
        let mut name = wanted.to_owned();
        let mut number = 2;
        loop {
            match self.volumes.get(&name) {
                Some(known) if known.as_ref() == volume => return name,
                Some(_) => name = format!("{wanted}-{number}"),
                None => {
                    self.volumes.insert(name.clone(), volume.cloned());
                    return name;
                }
            }
            number += 1;
        }
    }
}

impl Writer<'_> {
    /// The spec of a pod, and the claims that its members have of their own.
    pub fn pod(&mut self, origin: &Origin, spec: &ServiceSpec, own: &Own) -> (Value, BTreeSet<String>) {
        let task = &spec.task;
        let mut pod = json!({});
        let Some(first) = task.containers.first() else { return (pod, BTreeSet::new()) };
        let mut volumes = Volumes::default();
        // Their names are part of the spec.
        for mount in task.containers.iter().flat_map(|container| &container.mounts) {
            if let Some(scratch) = scratch(mount) {
                volumes.name(&mount.source, Some(&scratch));
            }
        }
        let requests = container::requests(&task.containers, task.resources.reservations.as_ref());
        let (mut main, mut init) = (Vec::new(), Vec::new());
        for (index, container) in task.containers.iter().enumerate() {
            let mounts = self.mounts(origin, container, &mut volumes);
            let mut written = container::write(container, origin, &requests[index], task.resources.limits.as_ref());
            put(&mut written, "volumeMounts", Value::Array(mounts));
            if index == 0 {
                put(&mut written, "ports", own.host_ports.iter().map(container::host_port).collect());
            }
            match container.pod.as_ref().map_or(Role::Main, |part| part.role) {
                Role::Main => main.push(written),
                Role::Init => init.push(written),
                Role::Sidecar => {
                    written["restartPolicy"] = json!("Always");
                    init.push(written);
                }
            }
        }
        pod["containers"] = Value::Array(main);
        put(&mut pod, "initContainers", Value::Array(init));
        let listed = volumes.volumes.into_iter().filter_map(|(name, volume)| {
            let mut volume = volume?;
            volume["name"] = json!(name);
            Some(volume)
        });
        put(&mut pod, "volumes", listed.collect());
        shared(origin, first, &mut pod);
        placement(&task.placement, &own_labels(first, origin), &mut pod);
        if task.networks.iter().any(|attachment| attachment.target == "host") {
            pod["hostNetwork"] = json!(true);
        }
        if origin.kind == Kind::Pod {
            match task.restart.as_ref().map(|policy| policy.condition) {
                Some(RestartCondition::OnFailure) => pod["restartPolicy"] = json!("OnFailure"),
                Some(RestartCondition::None) => pod["restartPolicy"] = json!("Never"),
                Some(RestartCondition::Any) | None => {}
            }
        }
        // One task a node at most: distance to its own kind.
        if task.placement.max_replicas == 1 {
            let term = json!({"labelSelector": own_labels(first, origin), "topologyKey": "kubernetes.io/hostname"});
            pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([term]);
        }
        (pod, volumes.claims)
    }

    fn mounts(&mut self, origin: &Origin, container: &ContainerSpec, volumes: &mut Volumes) -> Vec<Value> {
        let mut mounts = Vec::new();
        for mount in &container.mounts {
            let Some((wanted, volume)) = self.volume(origin, mount, volumes) else { continue };
            let mut written = json!({"name": volumes.name(&wanted, volume.as_ref()), "mountPath": mount.target});
            if mount.read_only {
                written["readOnly"] = json!(true);
            }
            let options = mount.volume.clone().unwrap_or_default();
            put(&mut written, "subPath", json!(options.subpath));
            match mount.bind.as_ref().map(|bind| bind.propagation.as_str()) {
                Some("rslave") => written["mountPropagation"] = json!("HostToContainer"),
                Some("rshared") => written["mountPropagation"] = json!("Bidirectional"),
                _ => {}
            }
            mounts.push(written);
        }
        let secrets = container.secrets.iter().map(|s| (FileKind::Secret, &s.name, s.file.as_ref()));
        let configs = container.configs.iter().map(|c| (FileKind::Config, &c.name, c.file.as_ref()));
        for (kind, name, file) in secrets.chain(configs) {
            let Some(file) = file else { continue };
            let (object, key) = self.data.place(self.from, kind, &origin.namespace, name, &file.name);
            // Relative names of secrets are below Docker's folder of them, those of configs below the root.
            let path = match (kind, file.name.starts_with('/')) {
                (_, true) => file.name.clone(),
                (FileKind::Secret, false) => format!("/run/secrets/{}", file.name),
                (FileKind::Config, false) => format!("/{}", file.name),
            };
            let base =
                path.rsplit('/').next().filter(|base| !base.is_empty() && *base != "..").unwrap_or(&key).to_owned();
            let (word, member) = match kind {
                FileKind::Secret => ("secret", "secretName"),
                FileKind::Config => ("configMap", "name"),
            };
            let item = json!({"key": key, "path": base, "mode": file.mode});
            let volume = json!({word: {member: object, "items": [item]}});
            let name = volumes.name(&object_name(&format!("{object}-{key}")), Some(&volume));
            mounts.push(json!({"name": name, "mountPath": path, "subPath": base}));
        }
        mounts
    }

    /// What a mount mounts: a name that it may have, and the volume; none of it where Kubernetes has none.
    fn volume(&mut self, origin: &Origin, mount: &Mount, volumes: &mut Volumes) -> Option<(String, Option<Value>)> {
        let options = mount.volume.clone().unwrap_or_default();
        if let Some(scratch) = scratch(mount) {
            return Some((mount.source.clone(), Some(scratch)));
        }
        let last = object_name(mount.target.rsplit('/').next().unwrap_or_default());
        match mount.kind {
            MountKind::Tmpfs => {
                let mut volume = json!({"emptyDir": {"medium": "Memory"}});
                if let Some(size) = mount.tmpfs.map(|tmpfs| tmpfs.size).filter(|size| *size > 0) {
                    volume["emptyDir"]["sizeLimit"] = json!(size.to_string());
                }
                Some((last, Some(volume)))
            }
            MountKind::Bind => {
                let creates = mount.bind.as_ref().is_some_and(|bind| bind.create_mountpoint);
                let file = mount.source.rsplit('/').next().unwrap_or_default();
                let kind = match file.rsplit_once('.') {
                    _ if creates => "DirectoryOrCreate",
                    Some((_, "sock")) => "Socket",
                    Some((head, _)) if !head.is_empty() => "File",
                    _ => "Directory",
                };
                let name = object_name(if file.is_empty() { "root" } else { file });
                Some((name, Some(json!({"hostPath": {"path": mount.source, "type": kind}}))))
            }
            MountKind::Volume if mount.source.is_empty() => Some((last, Some(json!({"emptyDir": {}})))),
            MountKind::Volume => Some(self.claim(origin, mount, &options, volumes)),
        }
    }

    fn claim(
        &mut self,
        origin: &Origin,
        mount: &Mount,
        options: &VolumeOptions,
        volumes: &mut Volumes,
    ) -> (String, Option<Value>) {
        if let Some(nfs) = nfs(options) {
            return (object_name(mount.source.trim_start_matches(self.from.stack)), Some(nfs));
        }
        let stack = self.from.stack;
        let prefix = if origin.namespace == DEFAULT || origin.namespace == stack {
            format!("{stack}_")
        } else {
            format!("{stack}_{}-", origin.namespace)
        };
        let own = mount.source.strip_prefix(&prefix).unwrap_or(&mount.source);
        let member = format!("-{}-{{{{.Task.Ordinal}}}}", origin.name);
        if let Some(claim) = own.strip_suffix(&member).filter(|_| origin.kind == Kind::StatefulSet) {
            volumes.claims.insert(claim.to_owned());
            return (claim.to_owned(), None);
        }
        let claim = if is_name(own) { own.to_owned() } else { object_name(own) };
        self.claims.insert((origin.namespace.clone(), claim.clone()));
        (object_name(&claim), Some(json!({"persistentVolumeClaim": {"claimName": claim}})))
    }
}

/// A volume of the task itself.
fn scratch(mount: &Mount) -> Option<Value> {
    let options = mount.volume.as_ref().filter(|options| options.scratch)?;
    let Some(driver) = &options.driver else { return Some(json!({"emptyDir": {}})) };
    let mut volume = json!({"emptyDir": {"medium": "Memory"}});
    let settings = driver.options.get("o").map(String::as_str).unwrap_or_default();
    if let Some(size) = settings.split(',').find_map(|setting| setting.strip_prefix("size=")) {
        volume["emptyDir"]["sizeLimit"] = json!(size);
    }
    Some(volume)
}

fn nfs(options: &VolumeOptions) -> Option<Value> {
    let driver = options.driver.as_ref()?;
    let option = |key: &str| driver.options.get(key).map(String::as_str).unwrap_or_default();
    let path = option("device").strip_prefix(':').filter(|_| option("type") == "nfs4")?;
    let server = option("o").split(',').find_map(|setting| setting.strip_prefix("addr="))?;
    Some(json!({"nfs": {"server": server, "path": path}}))
}

/// What every container of the pod has.
fn shared(origin: &Origin, first: &ContainerSpec, pod: &mut Value) {
    let is_default = !origin.is_docker && first.stop_grace == Some(std::time::Duration::from_secs(30));
    if let Some(grace) = first.stop_grace.and_then(seconds).filter(|_| !is_default) {
        pod["terminationGracePeriodSeconds"] = json!(grace);
    }
    if origin.kind != Kind::StatefulSet {
        put(pod, "hostname", json!(container::unescaped(&first.hostname)));
    }
    let alias = |line: &String| {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let ip = words.next()?;
        Some(json!({"ip": ip, "hostnames": words.collect::<Vec<_>>()}))
    };
    put(pod, "hostAliases", first.hosts.iter().filter_map(alias).collect());
    if let Some(dns) = &first.dns {
        let option = |option: &String| match option.split_once(':') {
            Some((name, value)) => json!({"name": name, "value": value}),
            None => json!({"name": option}),
        };
        put(&mut pod["dnsConfig"], "nameservers", json!(dns.nameservers));
        put(&mut pod["dnsConfig"], "searches", json!(dns.search));
        put(&mut pod["dnsConfig"], "options", dns.options.iter().map(option).collect());
    }
    let group = first.mounts.iter().filter_map(|mount| mount.volume.as_ref()?.gid).next().map(|gid| gid.to_string());
    let mut groups = first.groups.clone();
    if let Some(group) = group.filter(|group| groups.last() == Some(group)) {
        groups.pop();
        pod["securityContext"]["fsGroup"] = json!(group.parse::<u32>().unwrap_or_default());
    }
    let numbers: Vec<u32> = groups.iter().filter_map(|group| group.parse().ok()).collect();
    let mut context = pod["securityContext"].take();
    put(&mut context, "supplementalGroups", json!(numbers));
    let sysctl = |(name, value): (&String, &String)| json!({"name": name, "value": value});
    put(&mut context, "sysctls", first.sysctls.iter().map(sysctl).collect());
    put(pod, "securityContext", context);
    if pod["securityContext"].is_null()
        && let Some(map) = pod.as_object_mut()
    {
        map.remove("securityContext");
    }
}

/// The label of Kubernetes that a constraint asks for.
fn label_of(subject: &str) -> Option<String> {
    match subject {
        "node.hostname" => Some("kubernetes.io/hostname".to_owned()),
        "node.platform.os" => Some("kubernetes.io/os".to_owned()),
        "node.platform.arch" => Some("kubernetes.io/arch".to_owned()),
        _ => subject.strip_prefix("node.labels.").map(str::to_owned),
    }
}

const MANAGER: &str = "node-role.kubernetes.io/control-plane";

fn placement(placement: &Placement, own: &Value, pod: &mut Value) {
    let mut terms = Vec::new();
    for constraint in &placement.constraints {
        let compared = constraint.split_once("==").map(|(l, r)| (l.trim(), "In", r.trim()));
        let compared = compared.or_else(|| constraint.split_once("!=").map(|(l, r)| (l.trim(), "NotIn", r.trim())));
        let Some((subject, operator, value)) = compared else { continue };
        match (subject, operator, value) {
            ("node.role", "In", "manager") | ("node.role", "NotIn", "worker") => {
                pod["nodeSelector"][MANAGER] = json!("");
            }
            ("node.role", "In", "worker") | ("node.role", "NotIn", "manager") => {
                terms.push(json!({"key": MANAGER, "operator": "DoesNotExist"}));
            }
            _ => match label_of(subject) {
                Some(label) if operator == "In" && !value.is_empty() => pod["nodeSelector"][label] = json!(value),
                Some(label) => terms.push(json!({"key": label, "operator": operator, "values": [value]})),
                None => {}
            },
        }
    }
    if !terms.is_empty() {
        pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": [{"matchExpressions": terms}]});
    }
    let spread = placement.preferences.iter().filter_map(|subject| label_of(subject));
    let spread = spread.map(|label| {
        json!({"maxSkew": 1, "topologyKey": label, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own})
    });
    put(pod, "topologySpreadConstraints", spread.collect());
}

/// A selector of the pods themselves.
fn own_labels(first: &ContainerSpec, origin: &Origin) -> Value {
    let own = first.labels.iter().filter(|(key, value)| {
        ![STACK_LABEL, IMAGE_LABEL].contains(&key.as_str()) && super::names::is_label(key, value)
    });
    let mut labels: BTreeMap<&str, &str> = own.map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if origin.is_docker || labels.is_empty() {
        labels = [(SELECTED, origin.name.as_str())].into();
    }
    json!({"matchLabels": labels})
}
