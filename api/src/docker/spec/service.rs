//! Services: `ServiceSpec` of the API and of the model.
//!
//! A field that was not given is not shown, with three exceptions: values that dockerd fills in too (`Replicas`, the
//! endpoint's mode, words of update configs), and the monitor of an update config.

use std::time::Duration;

use skep_proto::model::annotations::Annotations;
use skep_proto::model::container::Driver;
use skep_proto::model::service::{
    EndpointMode, EndpointSpec, FailureAction, PortConfig, Protocol, PublishMode, ServiceMode, ServiceSpec,
    UpdateConfig, UpdateOrder, UpdateState,
};
use skep_proto::model::task::{
    Limits, NetworkAttachmentSpec, Placement, Platform, Reservations, Resources, RestartCondition, RestartPolicy,
    TaskSpec,
};

use super::{container_spec, duration, pod, refuse};
use crate::docker::error::ApiError;
use crate::docker::time::{ZERO, nanos, rfc3339};
use crate::docker::types::service as json;
use crate::docker::types::{Empty, ObjectVersion};
use crate::ports::control::ServiceStatus;

/// Reads a service's spec.
///
/// # Errors
/// 400 for what makes no sense, 501 for what is not built.
pub(crate) fn read(spec: json::ServiceSpec) -> Result<ServiceSpec, ApiError> {
    refuse("ServiceSpec", &spec.rest)?;
    let mut task = read_task(spec.task_template)?;
    if task.networks.is_empty() {
        task.networks = spec.networks.into_iter().map(read_network).collect();
    }
    Ok(ServiceSpec {
        annotations: Annotations { name: spec.name, labels: spec.labels },
        task,
        mode: read_mode(spec.mode)?,
        update: spec.update_config.map(read_update).transpose()?,
        rollback: spec.rollback_config.map(read_update).transpose()?,
        endpoint: spec.endpoint_spec.map(read_endpoint).transpose()?,
    })
}

/// Shows a service's spec.
pub(crate) fn show(spec: &ServiceSpec) -> json::ServiceSpec {
    let mut task = show_task(&spec.task);
    task.runtime = "container".into();
    json::ServiceSpec {
        name: spec.annotations.name.clone(),
        labels: spec.annotations.labels.clone(),
        task_template: task,
        mode: show_mode(spec.mode),
        update_config: spec.update.as_ref().map(show_update),
        rollback_config: spec.rollback.as_ref().map(show_update),
        endpoint_spec: spec.endpoint.as_ref().map(show_endpoint),
        ..Default::default()
    }
}

/// Fills in what was not given (`insertDefaults=true`).
pub(crate) fn insert_defaults(spec: &mut json::ServiceSpec) {
    if let Some(container) = &mut spec.task_template.container_spec {
        container.stop_grace_period.get_or_insert(10_000_000_000);
        container.dns_config.get_or_insert_default();
    }
    let restart = spec.task_template.restart_policy.get_or_insert_default();
    if restart.condition.is_empty() {
        restart.condition = "any".into();
    }
    restart.delay.get_or_insert(nanos(RestartPolicy::DEFAULT_DELAY));
    restart.max_attempts.get_or_insert(0);
    spec.update_config.get_or_insert_with(|| show_update(&UpdateConfig::default()));
    spec.rollback_config.get_or_insert_with(|| show_update(&UpdateConfig::default()));
    let endpoint = spec.endpoint_spec.get_or_insert_default();
    if endpoint.mode.is_empty() {
        endpoint.mode = "vip".into();
    }
}

/// Shows a service, with its counts when they were asked for.
pub(crate) fn show_service(status: &ServiceStatus, counts: bool) -> json::Service {
    let service = &status.service;
    json::Service {
        id: service.id.to_string(),
        meta: service.meta.into(),
        spec: show(&service.spec),
        previous_spec: service.previous.as_ref().map(|p| show(&p.spec)),
        endpoint: json::Endpoint {
            spec: service.endpoint.spec.as_ref().map(show_endpoint).unwrap_or_default(),
            ports: service.endpoint.ports.iter().map(show_port).collect(),
            virtual_ips: service
                .endpoint
                .virtual_ips
                .iter()
                .map(|ip| json::VirtualIp { network_id: ip.network.to_string(), addr: ip.address.to_string() })
                .collect(),
        },
        update_status: service.update_status.as_ref().map(|update| json::UpdateStatus {
            state: match update.state {
                UpdateState::Updating => "updating",
                UpdateState::Paused => "paused",
                UpdateState::Completed => "completed",
                UpdateState::RollbackStarted => "rollback_started",
                UpdateState::RollbackPaused => "rollback_paused",
                UpdateState::RollbackCompleted => "rollback_completed",
            },
            started_at: rfc3339(update.started_at),
            completed_at: update.completed_at.map(rfc3339),
            message: update.message.clone(),
        }),
        service_status: counts.then_some(json::ServiceStatus {
            running_tasks: status.running,
            desired_tasks: status.desired,
            completed_tasks: status.completed,
        }),
        job_status: service.spec.mode.is_job().then(|| json::JobStatus {
            job_iteration: ObjectVersion { index: service.iteration() },
            last_execution: status.executed_at.map_or_else(|| ZERO.to_owned(), rfc3339),
        }),
    }
}

fn read_mode(mode: json::ServiceMode) -> Result<ServiceMode, ApiError> {
    refuse("Mode", &mode.rest)?;
    match (mode.replicated, mode.global, mode.replicated_job, mode.global_job) {
        (None, None, None, None) => Ok(ServiceMode::Replicated { replicas: 1 }),
        (Some(m), None, None, None) => Ok(ServiceMode::Replicated { replicas: m.replicas.unwrap_or(1) }),
        (None, Some(_), None, None) => Ok(ServiceMode::Global),
        (None, None, Some(m), None) => {
            let max_concurrent = m.max_concurrent.unwrap_or(1);
            Ok(ServiceMode::ReplicatedJob {
                max_concurrent,
                total_completions: m.total_completions.unwrap_or(max_concurrent),
            })
        }
        (None, None, None, Some(_)) => Ok(ServiceMode::GlobalJob),
        _ => Err(ApiError::bad_request("must specify only one service mode")),
    }
}

fn show_mode(mode: ServiceMode) -> json::ServiceMode {
    let mut shown = json::ServiceMode::default();
    match mode {
        ServiceMode::Replicated { replicas } => shown.replicated = Some(json::Replicated { replicas: Some(replicas) }),
        ServiceMode::Global => shown.global = Some(Empty {}),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            shown.replicated_job = Some(json::ReplicatedJob {
                max_concurrent: Some(max_concurrent),
                total_completions: Some(total_completions),
            });
        }
        ServiceMode::GlobalJob => shown.global_job = Some(Empty {}),
    }
    shown
}

fn read_update(update: json::UpdateConfig) -> Result<UpdateConfig, ApiError> {
    refuse("UpdateConfig", &update.rest)?;
    let default = UpdateConfig::default();
    if !(0.0..=1.0).contains(&update.max_failure_ratio.0) {
        return Err(ApiError::invalid_argument(
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ));
    }
    Ok(UpdateConfig {
        parallelism: update.parallelism,
        delay: duration("TaskSpec: update-delay", update.delay)?,
        failure_action: match update.failure_action.as_str() {
            "" | "pause" => FailureAction::Pause,
            "continue" => FailureAction::Continue,
            "rollback" => FailureAction::Rollback,
            other => return Err(ApiError::bad_request(format!("unrecognized update failure action {other}"))),
        },
        monitor: match duration("TaskSpec: update-monitor", update.monitor)? {
            Duration::ZERO => default.monitor,
            given => given,
        },
        max_failure_ratio: update.max_failure_ratio.0,
        order: match update.order.as_str() {
            "" | "stop-first" => UpdateOrder::StopFirst,
            "start-first" => UpdateOrder::StartFirst,
            other => return Err(ApiError::bad_request(format!("unrecognized update order {other}"))),
        },
    })
}

fn show_update(update: &UpdateConfig) -> json::UpdateConfig {
    json::UpdateConfig {
        parallelism: update.parallelism,
        delay: nanos(update.delay),
        failure_action: match update.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        }
        .into(),
        monitor: nanos(update.monitor),
        max_failure_ratio: json::Ratio(update.max_failure_ratio),
        order: match update.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
        .into(),
        ..Default::default()
    }
}

fn read_endpoint(endpoint: json::EndpointSpec) -> Result<EndpointSpec, ApiError> {
    refuse("EndpointSpec", &endpoint.rest)?;
    Ok(EndpointSpec {
        mode: match endpoint.mode.as_str() {
            "" | "vip" => EndpointMode::Vip,
            "dnsrr" => EndpointMode::DnsRoundRobin,
            other => return Err(ApiError::bad_request(format!("invalid ResolutionMode: \"{other}\""))),
        },
        ports: endpoint.ports.into_iter().map(read_port).collect::<Result<_, _>>()?,
        redirects: endpoint.redirects,
    })
}

fn show_endpoint(endpoint: &EndpointSpec) -> json::EndpointSpec {
    json::EndpointSpec {
        mode: match endpoint.mode {
            EndpointMode::Vip => "vip",
            EndpointMode::DnsRoundRobin => "dnsrr",
        }
        .into(),
        ports: endpoint.ports.iter().map(show_port).collect(),
        redirects: endpoint.redirects.clone(),
        ..Default::default()
    }
}

fn read_port(port: json::PortConfig) -> Result<PortConfig, ApiError> {
    refuse("PortConfig", &port.rest)?;
    let number = |what: &str, value: u32| {
        u16::try_from(value).map_err(|_| {
            ApiError::invalid_argument(format!("EndpointSpec: {what} port {value} is out of range (1-65535)"))
        })
    };
    let target = number("target", port.target_port)?;
    if target == 0 {
        return Err(ApiError::invalid_argument("EndpointSpec: target port 0 is out of range (1-65535)"));
    }
    let published = number("published", port.published_port)?;
    Ok(PortConfig {
        name: port.name,
        protocol: match port.protocol.to_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(ApiError::bad_request(format!("invalid protocol '{other}' for port {target}"))),
        },
        target,
        published: (published != 0).then_some(published),
        mode: match port.publish_mode.as_str() {
            "" | "ingress" => PublishMode::Ingress,
            "host" => PublishMode::Host,
            other => return Err(ApiError::bad_request(format!("invalid publish mode '{other}' for port {target}"))),
        },
    })
}

/// Shows a port of a service or task.
pub(crate) fn show_port(port: &PortConfig) -> json::PortConfig {
    json::PortConfig {
        name: port.name.clone(),
        protocol: protocol_word(port.protocol).into(),
        target_port: u32::from(port.target),
        published_port: port.published.map_or(0, u32::from),
        publish_mode: match port.mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        }
        .into(),
        ..Default::default()
    }
}

/// `tcp`, `udp`, `sctp`.
pub(crate) fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn read_task(task: json::TaskSpec) -> Result<TaskSpec, ApiError> {
    refuse("TaskTemplate", &task.rest)?;
    if !["", "container"].contains(&task.runtime.as_str()) {
        return Err(ApiError::not_supported(format!("the task runtime {}", task.runtime)));
    }
    let container =
        task.container_spec.ok_or_else(|| ApiError::invalid_argument("ContainerSpec: missing in service spec"))?;
    let mut containers = vec![container_spec::read(container)?];
    if let Some(pod) = task.pod {
        pod::read(pod, &mut containers)?;
    }
    Ok(TaskSpec {
        containers,
        resources: task.resources.map(read_resources).transpose()?.unwrap_or_default(),
        restart: task.restart_policy.map(read_restart).transpose()?,
        placement: task.placement.map(read_placement).transpose()?.unwrap_or_default(),
        networks: task.networks.into_iter().map(read_network).collect(),
        log_driver: task.log_driver.map(|d| Driver { name: d.name, options: d.options }),
        force_update: task.force_update,
    })
}

/// Shows what a task is made from: its first container, and what else there is as [`json::Pod`].
pub(crate) fn show_task(task: &TaskSpec) -> json::TaskSpec {
    json::TaskSpec {
        container_spec: Some(task.containers.first().map(container_spec::show).unwrap_or_default()),
        resources: Some(show_resources(&task.resources)),
        restart_policy: task.restart.as_ref().map(show_restart),
        placement: Some(show_placement(&task.placement)),
        networks: task
            .networks
            .iter()
            .map(|n| json::NetworkAttachment {
                target: n.target.clone(),
                aliases: n.aliases.clone(),
                driver_opts: n.driver_options.clone(),
            })
            .collect(),
        log_driver: task.log_driver.as_ref().map(|d| json::Driver { name: d.name.clone(), options: d.options.clone() }),
        force_update: task.force_update,
        pod: pod::show(task),
        ..Default::default()
    }
}

fn read_network(network: json::NetworkAttachment) -> NetworkAttachmentSpec {
    NetworkAttachmentSpec { target: network.target, aliases: network.aliases, driver_options: network.driver_opts }
}

fn read_resources(resources: json::Resources) -> Result<Resources, ApiError> {
    refuse("Resources", &resources.rest)?;
    let limits = resources
        .limits
        .map(|l| {
            refuse("Limits", &l.rest)?;
            Ok::<_, ApiError>(Limits { nano_cpus: l.nano_cpus, memory: l.memory_bytes, pids: l.pids })
        })
        .transpose()?;
    let reservations = resources
        .reservations
        .map(|r| {
            refuse("Reservations", &r.rest)?;
            let mut generic = std::collections::BTreeMap::new();
            for resource in r.generic_resources {
                refuse("GenericResources", &resource.rest)?;
                let Some(discrete) = resource.discrete_resource_spec else {
                    // swarmkit's words: a service says how many it needs, its node which ones it gets.
                    return Err(ApiError::invalid_argument("invalid generic resource: only discrete is supported"));
                };
                let value = u64::try_from(discrete.value).map_err(|_| {
                    ApiError::invalid_argument(format!(
                        "invalid generic resource {}: cannot be negative",
                        discrete.kind
                    ))
                })?;
                generic.insert(discrete.kind, value);
            }
            Ok::<_, ApiError>(Reservations { nano_cpus: r.nano_cpus, memory: r.memory_bytes, generic })
        })
        .transpose()?;
    Ok(Resources { limits, reservations })
}

fn show_resources(resources: &Resources) -> json::Resources {
    json::Resources {
        limits: resources.limits.as_ref().map(|l| json::Limits {
            nano_cpus: l.nano_cpus,
            memory_bytes: l.memory,
            pids: l.pids,
            ..Default::default()
        }),
        reservations: resources.reservations.as_ref().map(|r| json::Reservations {
            nano_cpus: r.nano_cpus,
            memory_bytes: r.memory,
            generic_resources: show_generic(&r.generic),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Shows counted resources.
pub(crate) fn show_generic(generic: &std::collections::BTreeMap<String, u64>) -> Vec<json::GenericResource> {
    generic
        .iter()
        .map(|(kind, value)| json::GenericResource {
            discrete_resource_spec: Some(json::DiscreteResource {
                kind: kind.clone(),
                value: i64::try_from(*value).unwrap_or(i64::MAX),
            }),
            ..Default::default()
        })
        .collect()
}

fn read_restart(restart: json::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    refuse("RestartPolicy", &restart.rest)?;
    Ok(RestartPolicy {
        condition: match restart.condition.as_str() {
            "" | "any" => RestartCondition::Any,
            "on-failure" => RestartCondition::OnFailure,
            "none" => RestartCondition::None,
            other => return Err(ApiError::bad_request(format!("invalid RestartCondition: \"{other}\""))),
        },
        delay: restart.delay.map(|n| duration("TaskSpec: restart-delay", n)).transpose()?,
        max_attempts: restart.max_attempts,
        window: restart.window.map(|n| duration("TaskSpec: restart-window", n)).transpose()?,
    })
}

fn show_restart(restart: &RestartPolicy) -> json::RestartPolicy {
    json::RestartPolicy {
        condition: match restart.condition {
            RestartCondition::None => "none",
            RestartCondition::OnFailure => "on-failure",
            RestartCondition::Any => "any",
        }
        .into(),
        delay: restart.delay.map(nanos),
        max_attempts: restart.max_attempts,
        window: restart.window.map(nanos),
        ..Default::default()
    }
}

fn read_placement(placement: json::Placement) -> Result<Placement, ApiError> {
    refuse("Placement", &placement.rest)?;
    Ok(Placement {
        constraints: placement.constraints,
        preferences: placement.preferences.into_iter().filter_map(|p| p.spread).map(|s| s.spread_descriptor).collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .into_iter()
            .map(|p| Platform { architecture: p.architecture, os: p.os })
            .collect(),
    })
}

fn show_placement(placement: &Placement) -> json::Placement {
    json::Placement {
        constraints: placement.constraints.clone(),
        preferences: placement
            .preferences
            .iter()
            .map(|p| json::Preference { spread: Some(json::Spread { spread_descriptor: p.clone() }) })
            .collect(),
        max_replicas: placement.max_replicas,
        platforms: placement
            .platforms
            .iter()
            .map(|p| json::Platform { architecture: p.architecture.clone(), os: p.os.clone() })
            .collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
