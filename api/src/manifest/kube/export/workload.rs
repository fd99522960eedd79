//! Workloads: one for each service.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skep_proto::model::service::{UpdateConfig, UpdateOrder};
use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{Labels, ServiceMode, ServiceSpec};

use crate::manifest::export::VNI_OPTION;
use crate::manifest::kube::build::OBJECT_LABEL;
use crate::manifest::kube::extension::{DEFAULTS, DOCKER, NAME, NETWORKS, SELECTED};
use crate::manifest::kube::workload::Kind;
use crate::manifest::stack::{Concurrency, IMAGE_LABEL, STACK_LABEL, Schedule};

use super::names::Origin;
use super::{Object, Writer, metadata, put, put_labels, seconds};

impl Writer<'_> {
    /// The workload that a service is written as.
    pub fn workload(&mut self, origin: &Origin, spec: &ServiceSpec, labels: &mut Labels) -> Value {
        let index = self.objects.len();
        let own = self.reach.take(index, origin, spec);
        let schedule = Schedule::read(labels).ok().flatten().filter(|_| origin.kind == Kind::CronJob);
        if schedule.is_some() {
            skep_proto::model::schedule::LABELS.iter().for_each(|label| drop(labels.remove(*label)));
        }
        [STACK_LABEL, IMAGE_LABEL, OBJECT_LABEL].iter().for_each(|label| drop(labels.remove(*label)));
        let mut meta = metadata(&origin.namespace, &origin.name);
        put_labels(&mut meta, labels);
        if origin.is_docker {
            meta["annotations"][DEFAULTS] = json!(DOCKER);
        }
        if let Some(name) = &origin.stack_name {
            meta["annotations"][NAME] = json!(name);
        }
        if let Some(networks) = self.networks(origin, spec) {
            meta["annotations"][NETWORKS] = json!(Value::Object(networks).to_string());
        }
        let (pod, claims) = self.pod(origin, spec, &own);
        let document = json!({"apiVersion": origin.kind.api_version(), "kind": origin.kind.as_str(), "metadata": meta});
        let with = |spec: Value| {
            let mut document = document.clone();
            document["spec"] = spec;
            document
        };
        if origin.kind == Kind::Pod {
            return with(pod);
        }
        let mut of_pod = json!({});
        let first = spec.task.containers.first();
        let mut own_labels = first.map(|container| container.labels.clone()).unwrap_or_default();
        [STACK_LABEL, IMAGE_LABEL].iter().for_each(|label| drop(own_labels.remove(*label)));
        put_labels(&mut of_pod, &own_labels);
        let is_job = matches!(origin.kind, Kind::Job | Kind::CronJob);
        if origin.is_docker || of_pod["labels"].is_null() {
            of_pod["labels"][SELECTED] = json!(origin.name);
        }
        let selected = of_pod["labels"].get(SELECTED).map(|name| json!({SELECTED: name}));
        let selector = json!({"matchLabels": selected.unwrap_or_else(|| of_pod["labels"].clone())});
        let template = json!({"metadata": of_pod, "spec": pod});
        if is_job {
            let job = job(spec, template);
            return with(schedule.map_or(job.clone(), |schedule| cron(&schedule, job)));
        }
        let mut body = json!({"template": template});
        body["selector"] =
            if origin.kind == Kind::ReplicationController { selector["matchLabels"].clone() } else { selector };
        if let ServiceMode::Replicated { replicas } = spec.mode {
            body["replicas"] = json!(replicas);
        }
        if let Some(update) = &spec.update {
            strategy(origin.kind, update, &mut body);
        }
        if origin.kind == Kind::StatefulSet {
            put(&mut body, "serviceName", json!(own.governing));
            // Members start at once: the reader says so of the other policy.
            body["podManagementPolicy"] = json!("Parallel");
            let claim = |name: &String| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"]}});
            put(&mut body, "volumeClaimTemplates", claims.iter().map(claim).collect());
        }
        with(body)
    }

    /// The networks of a service, where the manifest alone would lead to others.
    fn networks(&self, origin: &Origin, spec: &ServiceSpec) -> Option<Object> {
        let stack = self.from.stack;
        let own = if origin.namespace == stack { "default" } else { &origin.namespace };
        let expected = if self.namespaces.len() > 1 {
            vec![format!("{stack}_{own}"), format!("{stack}_all-namespaces")]
        } else {
            vec![format!("{stack}_default")]
        };
        let targets: Vec<&String> = spec.task.networks.iter().map(|attachment| &attachment.target).collect();
        if targets == ["host"] {
            return None;
        }
        let declared: Object = targets
            .iter()
            .map(|name| ((*name).clone(), self.from.networks.get(*name).map_or(Value::Null, declared)))
            .collect();
        let is_plain = |definition: &Value| definition.as_object().is_some_and(serde_json::Map::is_empty);
        let follows =
            targets.len() == expected.len() && expected.iter().all(|name| declared.get(name).is_some_and(is_plain));
        (!follows).then_some(declared)
    }
}

/// What a network is like, without what every one of a stack is and what the cluster chose.
fn declared(shown: &Value) -> Value {
    let mut out = json!({});
    for key in ["Attachable", "Internal", "EnableIPv6"] {
        if shown[key] == true {
            out[key] = json!(true);
        }
    }
    let pairs = |key: &str, without: &str| -> Object {
        let all = shown[key].as_object().into_iter().flatten();
        all.filter(|(name, _)| *name != without).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    put(&mut out, "Options", Value::Object(pairs("Options", VNI_OPTION)));
    put(&mut out, "Labels", Value::Object(pairs("Labels", STACK_LABEL)));
    out
}

fn job(spec: &ServiceSpec, template: Value) -> Value {
    let mut body = json!({"template": template});
    if let ServiceMode::ReplicatedJob { max_concurrent, total_completions } = spec.mode {
        body["completions"] = json!(total_completions);
        body["parallelism"] = json!(max_concurrent);
    }
    // Kubernetes wants one of two; where neither is meant, the rest of the spec says so.
    body["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    match spec.task.restart {
        Some(RestartPolicy { condition: RestartCondition::None, .. }) => {
            body["backoffLimit"] = json!(0);
            body["template"]["spec"]["restartPolicy"] = json!("Never");
        }
        Some(RestartPolicy { condition: RestartCondition::OnFailure, max_attempts: Some(most), .. }) => {
            body["backoffLimit"] = json!(most);
        }
        _ => {}
    }
    body
}

fn cron(schedule: &Schedule, job: Value) -> Value {
    let mut body = json!({"schedule": schedule.times, "jobTemplate": {"spec": job}});
    put(&mut body, "timeZone", json!(schedule.time_zone));
    body["concurrencyPolicy"] = json!(match schedule.concurrency {
        Concurrency::Forbid => "Forbid",
        Concurrency::Replace => "Replace",
    });
    put(&mut body, "startingDeadlineSeconds", json!(schedule.deadline.and_then(seconds)));
    if schedule.is_suspended {
        body["suspend"] = json!(true);
    }
    body
}

fn strategy(kind: Kind, update: &UpdateConfig, body: &mut Value) {
    let ready = seconds(update.monitor).filter(|_| update.monitor != UpdateConfig::default().monitor);
    let (surge, missing) = match update.order {
        UpdateOrder::StartFirst => (update.parallelism, 0),
        UpdateOrder::StopFirst => (0, update.parallelism),
    };
    let rolling: BTreeMap<&str, u64> = [("maxSurge", surge), ("maxUnavailable", missing)].into();
    match kind {
        Kind::Deployment if update.parallelism == 0 => body["strategy"] = json!({"type": "Recreate"}),
        Kind::Deployment => body["strategy"] = json!({"rollingUpdate": rolling}),
        Kind::DaemonSet => body["updateStrategy"] = json!({"rollingUpdate": rolling}),
        // One at a time, as they are updated anyway.
        Kind::StatefulSet => {}
        Kind::ReplicaSet | Kind::ReplicationController | Kind::Job | Kind::CronJob | Kind::Pod => return,
    }
    put(body, "minReadySeconds", json!(ready));
}
