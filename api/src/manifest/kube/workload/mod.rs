//! Workloads: what keeps pods, each kind in its file.

mod cron_job;
mod daemon_set;
mod deployment;
mod job;
mod pod;
mod replica_set;
mod stateful_set;

use std::rc::Rc;
use std::time::Duration;

use skep_proto::model::ServiceMode;
use skep_proto::model::service::{UpdateConfig, UpdateOrder};

use crate::manifest::decode::{entries, parsed, text};
use crate::manifest::problem::Problems;
use crate::manifest::stack::Schedule;
use crate::manifest::yaml::{Entry, Node};

use super::meta::Meta;
use super::pod::{Restart, Template};
use super::selector::{self, Selector};

/// A kind of workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `v1` ReplicationController.
    ReplicationController,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `batch/v1` Job.
    Job,
    /// `batch/v1` CronJob.
    CronJob,
    /// `v1` Pod.
    Pod,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Deployment,
        Self::ReplicaSet,
        Self::ReplicationController,
        Self::DaemonSet,
        Self::StatefulSet,
        Self::Job,
        Self::CronJob,
        Self::Pod,
    ];

    /// The kind of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
            Self::DaemonSet => "DaemonSet",
            Self::StatefulSet => "StatefulSet",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::Pod => "Pod",
        }
    }

    /// Its group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Deployment | Self::ReplicaSet | Self::DaemonSet | Self::StatefulSet => "apps/v1",
            Self::Job | Self::CronJob => "batch/v1",
            Self::ReplicationController | Self::Pod => "v1",
        }
    }
}

/// A workload.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its kind.
    pub kind: Kind,
    /// Who it is.
    pub meta: Meta,
    /// What its pods are made from.
    pub template: Template,
    /// How many there are, and whether they end.
    pub mode: ServiceMode,
    /// How a new template is rolled out.
    pub update: Option<UpdateConfig>,
    /// Replacements of pods that failed, at most; `None` for no limit.
    pub attempts: Option<u64>,
    /// When it runs again.
    pub schedule: Option<Schedule>,
    /// The Service that gives its members their names.
    pub governing: Option<String>,
    /// Claims that each member has of its own.
    pub claims: Vec<String>,
    /// Whether pods that ended well are started again, unless the template says otherwise.
    pub restart: Restart,
}

impl Workload {
    fn new(kind: Kind, meta: Meta) -> Self {
        Self {
            kind,
            meta,
            template: Template::default(),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            attempts: None,
            schedule: None,
            governing: None,
            claims: Vec::new(),
            restart: Restart::Always,
        }
    }
}

/// Reads a workload.
pub fn read(kind: Kind, node: &Rc<Node>, meta: Meta, problems: &mut Problems) -> Option<Workload> {
    let workload = Workload::new(kind, meta);
    let Some(spec) = node.get("spec") else {
        problems.add(workload.meta.place, format!("the {} has no spec", kind.as_str()));
        return None;
    };
    for field in entries(node, kind.as_str(), problems) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&field.key.as_str()) {
            crate::manifest::decode::unknown_key(
                field,
                kind.as_str(),
                &["apiVersion", "kind", "metadata", "spec"],
                problems,
            );
        }
    }
    let is_docker = workload.meta.is_docker();
    let mut workload = match kind {
        Kind::Deployment => deployment::read(spec, workload, problems),
        Kind::ReplicaSet | Kind::ReplicationController => replica_set::read(spec, workload, problems),
        Kind::DaemonSet => daemon_set::read(spec, workload, problems),
        Kind::StatefulSet => stateful_set::read(spec, workload, problems),
        Kind::Job => job::read(spec, workload, problems),
        Kind::CronJob => cron_job::read(spec, workload, problems),
        Kind::Pod => pod::read(node, spec, workload),
    };
    if is_docker && ["strategy", "updateStrategy", "minReadySeconds"].iter().all(|key| spec.get(key).is_none()) {
        workload.update = None;
    }
    Some(workload)
}

/// Tasks of one service at most: as many as the cluster takes.
const MOST_REPLICAS: u64 = 100_000;

fn replicas(node: &Node, problems: &mut Problems) -> u64 {
    let replicas = parsed(node, "replicas", "a whole number", problems).unwrap_or(1);
    if replicas > MOST_REPLICAS {
        problems.add(node.place, format!("at most {MOST_REPLICAS} are possible, not {replicas}"));
    }
    replicas.min(MOST_REPLICAS)
}

/// Reads `selector` and `template`, which belong together.
fn check_selector(field: &Entry, selector: &Selector, template: &Template, problems: &mut Problems) {
    if !selector.matches(&template.meta.labels) {
        problems.add(field.place, "the selector does not select the labels of the pod template");
    }
}

fn read_selector(field: &Entry, plain: bool, problems: &mut Problems) -> Selector {
    if plain {
        return Selector::of_labels(crate::manifest::decode::pairs(&field.value, "selector", problems));
    }
    selector::read(&field.value, problems)
}

/// A number, or a share of `of`, which rounds as asked (apimachinery `intstr`).
fn share(node: &Node, of: u64, up: bool, problems: &mut Problems) -> u64 {
    let written = text(node, "a number or share", problems);
    let value = match written.strip_suffix('%') {
        Some(percent) => percent.parse::<u64>().ok().filter(|p| *p <= 100).map(|p| {
            let whole = of.saturating_mul(p);
            if up { whole.div_ceil(100) } else { whole / 100 }
        }),
        None => written.parse().ok(),
    };
    value.unwrap_or_else(|| {
        problems.add(node.place, format!("a number or a share like 25%, not {written:?}"));
        1
    })
}

/// How many tasks are changed at a time, and in which order. Kubernetes' words are `surge`, pods more than wanted, and
/// `missing`, pods fewer.
fn rollout(surge: u64, missing: u64, monitor: Option<Duration>) -> UpdateConfig {
    let order = if surge > 0 { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
    let default = UpdateConfig::default();
    UpdateConfig {
        parallelism: if surge > 0 { surge } else { missing.max(1) },
        order,
        monitor: monitor.unwrap_or(default.monitor),
        ..default
    }
}
