//! Services.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_api::ports::control::{ControlError, ObjectFilter, ServiceStatus, ServiceUpdate};
use skep_proto::model::schedule::{Concurrency, LABEL as SCHEDULE};
use skep_proto::model::service::{Endpoint, EndpointMode, PreviousSpec, UpdateState, UpdateStatus};
use skep_proto::model::{Meta, Service, ServiceId, ServiceMode, ServiceSpec, dependency};

use super::{Control, files, lookup, names, networks, pods};
use crate::orchestrator::rebalance;
use crate::schedule;
use crate::scheduler::{constraint, rank};
use crate::store::{Change, State};

/// Replicas of one service at most: a slip of the finger must not fill the store.
const MOST_REPLICAS: u64 = 100_000;

impl Control {
    pub(super) async fn list_services(&self, filter: &ObjectFilter) -> Result<Vec<ServiceStatus>, ControlError> {
        let state = self.read().await?;
        let is_of_mode = |s: &Service| filter.modes.is_empty() || filter.modes.contains(mode_name(s.spec.mode));
        let visible = state.services().values().filter(|s| !s.pending_delete);
        let matching = visible.filter(|s| lookup::passes(filter, &s.id, &s.spec.annotations) && is_of_mode(s));
        let sorted: BTreeMap<ServiceId, &Arc<Service>> = matching.map(|s| (s.id, s)).collect();
        Ok(sorted.into_values().map(|s| status_of(s, &state)).collect())
    }

    pub(super) async fn get_service(&self, reference: &str) -> Result<ServiceStatus, ControlError> {
        let state = self.read().await?;
        Ok(status_of(&find(&state, reference)?, &state))
    }

    pub(super) async fn make_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        check(&spec)?;
        let id = ServiceId::random(&mut rand::rng());
        self.change_seen(|state| {
            let mut spec = spec.clone();
            resolve_networks(&mut spec, state)?;
            files::check(&spec, state)?;
            Ok(Change::create(&Service {
                id,
                meta: Meta::default(),
                spec,
                spec_version: 0,
                previous: None,
                endpoint: Endpoint::default(),
                update_status: None,
                pending_delete: false,
                runs: None,
            }))
        })
        .await?;
        Ok(id)
    }

    pub(super) async fn change_service(&self, reference: &str, update: ServiceUpdate) -> Result<(), ControlError> {
        self.change_seen(|state| {
            let old = find(state, reference)?;
            if old.meta.version != update.at {
                return Err(ControlError::OutOfSequence);
            }
            Ok(Change::update(&changed(&old, update.clone(), state)?))
        })
        .await
    }

    /// The planner takes the label away when nothing is left to move. A service that is always evened out needs no request.
    pub(super) async fn even_out_service(&self, reference: &str) -> Result<(), ControlError> {
        self.change_latest(|state| {
            let mut service = (*find(state, reference)?).clone();
            if !matches!(service.spec.mode, ServiceMode::Replicated { .. }) {
                return Err(ControlError::InvalidArgument("rebalance can only be used with replicated mode".into()));
            }
            let labels = &mut service.spec.annotations.labels;
            if labels.get(rebalance::LABEL).is_some_and(|how| how == rebalance::AUTO) {
                return Ok(None);
            }
            labels.insert(rebalance::LABEL.into(), rebalance::ONCE.into());
            Ok(Some(Change::update(&service)))
        })
        .await
    }

    pub(super) async fn delete_service(&self, reference: &str) -> Result<(), ControlError> {
        self.change_latest(|state| {
            let mut service = (*find(state, reference)?).clone();
            service.pending_delete = true;
            Ok(Some(Change::update(&service)))
        })
        .await
    }
}

/// A service that is not being removed.
pub fn find(state: &State, reference: &str) -> Result<Arc<Service>, ControlError> {
    lookup::find(state.services(), "service", reference, |s| !s.pending_delete)
}

/// The service after the update.
fn changed(old: &Service, update: ServiceUpdate, state: &State) -> Result<Service, ControlError> {
    let mut service = old.clone();
    let mut spec = if update.rollback {
        let previous = old.previous.as_ref().ok_or_else(|| {
            ControlError::FailedPrecondition(format!(
                "service {} does not have a previous spec",
                old.spec.annotations.name
            ))
        })?;
        previous.spec.clone()
    } else {
        update.spec
    };
    if !update.rollback {
        pods::keep(&mut spec, &old.spec);
    }
    check(&spec)?;
    if spec.annotations.name != old.spec.annotations.name {
        return Err(ControlError::InvalidArgument("renaming services is not supported".into()));
    }
    if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&old.spec.mode) {
        return Err(ControlError::InvalidArgument("service mode change is not allowed".into()));
    }
    resolve_networks(&mut spec, state)?;
    files::check(&spec, state)?;
    keep_registry_auth(&mut spec, old, update.auth_from_previous);
    // A job is not updated: it runs again, and nobody would ever say that its rollback is complete.
    service.update_status = (update.rollback && !spec.mode.is_job()).then(|| UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: state.now(),
        completed_at: None,
        message: "manually requested rollback".into(),
    });
    service.previous = Some(Box::new(PreviousSpec { spec: old.spec.clone(), spec_version: old.spec_version }));
    service.spec = spec;
    Ok(service)
}

/// Clients send no credential with an update unless they are told to; the one in force stays.
fn keep_registry_auth(spec: &mut ServiceSpec, old: &Service, from_previous: bool) {
    let source = match &old.previous {
        Some(previous) if from_previous => &previous.spec,
        _ => &old.spec,
    };
    for (container, before) in spec.task.containers.iter_mut().zip(&source.task.containers) {
        if container.registry_auth.is_none() {
            container.registry_auth.clone_from(&before.registry_auth);
        }
    }
}

/// Clients may name a network by name or id; specs hold ids, but for the node-local ones.
fn resolve_networks(spec: &mut ServiceSpec, state: &State) -> Result<(), ControlError> {
    let mut seen = BTreeSet::new();
    for attachment in &mut spec.task.networks {
        if !matches!(attachment.target.as_str(), "host" | "bridge" | "none") {
            let network = networks::find(state, &attachment.target)?;
            if network.spec.ingress {
                return Err(ControlError::InvalidArgument(
                    "Service cannot be explicitly attached to the ingress network \"ingress\"".into(),
                ));
            }
            attachment.target = network.id.to_string();
        }
        if !seen.insert(attachment.target.clone()) {
            return Err(ControlError::InvalidArgument(format!("the network {} is named twice", attachment.target)));
        }
    }
    if seen.contains("host") && seen.len() > 1 {
        return Err(ControlError::InvalidArgument("a task on the host's network has no other network".into()));
    }
    Ok(())
}

fn status_of(service: &Arc<Service>, state: &State) -> ServiceStatus {
    let count = state.services().reference(service.id).map(|r| state.count(r)).unwrap_or_default();
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global | ServiceMode::GlobalJob => u64::from(count.live),
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => max_concurrent.min(total_completions),
    };
    let is_job = service.spec.mode.is_job();
    let reference = state.services().reference(service.id).filter(|_| is_job);
    let spec = reference.and_then(|r| state.spec(r, service.iteration()));
    let completed = |r| {
        let rows = state.rows_of_service(r);
        rows.filter(|(_, row)| row.spec_version == service.iteration() && row.has_completed()).count() as u64
    };
    ServiceStatus {
        service: told_of_schedule(service, state),
        running: u64::from(count.running),
        desired,
        completed: reference.map_or(0, completed),
        // The spec is remembered as it was when it came into force.
        executed_at: spec.map(|spec| spec.service.meta.updated_at),
    }
}

/// A job with a schedule says when it runs next, as the message of an update that is done: so clients do not wait for tasks
/// that are not due (Docker's end at `completed`).
fn told_of_schedule(service: &Arc<Service>, state: &State) -> Arc<Service> {
    if service.runs.is_none() {
        return service.clone();
    }
    let next = schedule::next(service, state.now());
    let next = next.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok());
    let message =
        next.map_or("the schedule is suspended".to_owned(), |at| format!("runs by its schedule, next at {at}"));
    let mut told = (**service).clone();
    let at = service.meta.updated_at;
    told.update_status =
        Some(UpdateStatus { state: UpdateState::Completed, started_at: at, completed_at: Some(at), message });
    Arc::new(told)
}

fn mode_name(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    }
}

/// What makes no sense whatever the state is.
fn check(spec: &ServiceSpec) -> Result<(), ControlError> {
    names::check_dns_name(&spec.annotations.name)?;
    check_labels(spec)?;
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    if let Some(how) = spec.annotations.labels.get(rebalance::LABEL)
        && ![rebalance::AUTO, rebalance::ONCE].contains(&how.as_str())
    {
        return invalid(format!(
            "the label {} is {} or {}, not {how:?}",
            rebalance::LABEL,
            rebalance::AUTO,
            rebalance::ONCE
        ));
    }
    match spec.mode {
        ServiceMode::Replicated { replicas } if replicas > MOST_REPLICAS => {
            return invalid(format!("replicas: at most {MOST_REPLICAS} are allowed, not {replicas}"));
        }
        ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
            check_job_count("Maximum concurrent jobs", max_concurrent)?;
            check_job_count("Total completed jobs", total_completions)?;
        }
        ServiceMode::Replicated { .. } | ServiceMode::Global | ServiceMode::GlobalJob => {}
    }
    // swarmkit's words; a rollback is no more an update of running tasks than an update is.
    if spec.mode.is_job() && (spec.update.is_some() || spec.rollback.is_some()) {
        return invalid("Jobs may not have an update config".into());
    }
    pods::check(&spec.task)?;
    check_resources(spec)?;
    check_ports(spec)?;
    for expression in &spec.task.placement.constraints {
        constraint::parse(expression).map_err(|error| ControlError::InvalidArgument(error.to_string()))?;
    }
    for preference in &spec.task.placement.preferences {
        if rank::Spread::parse(preference).is_none() {
            return invalid(format!(
                "placement preference {preference:?} is not known: tasks spread over node.labels.NAME or engine.labels.NAME"
            ));
        }
    }
    Ok(())
}

/// Labels that have a meaning to the cluster.
fn check_labels(spec: &ServiceSpec) -> Result<(), ControlError> {
    let labels = &spec.annotations.labels;
    let dependencies = dependency::read(labels).map_err(ControlError::InvalidArgument)?;
    if dependencies.iter().any(|d| d.service == spec.annotations.name) {
        let message = format!("the label {} names the service itself: it would never start", dependency::LABEL);
        return Err(ControlError::InvalidArgument(message));
    }
    let scheduled = schedule::read(labels).map_err(ControlError::InvalidArgument)?;
    if scheduled.is_some() && !spec.mode.is_job() {
        let message =
            format!("a schedule is for jobs: the label {SCHEDULE} needs the mode replicated-job or global-job");
        return Err(ControlError::InvalidArgument(message));
    }
    // An earlier run fills no place that is empty: what completed there may be forgotten by then.
    if let (Some((scheduled, _)), ServiceMode::ReplicatedJob { max_concurrent, total_completions }) =
        (&scheduled, spec.mode)
        && scheduled.concurrency == Concurrency::Allow
        && max_concurrent < total_completions
    {
        let message = format!(
            "runs that overlap start all their tasks at once: {total_completions} completions need as many at a time, not {max_concurrent}"
        );
        return Err(ControlError::InvalidArgument(message));
    }
    Ok(())
}

/// Clients send a negative number as a huge one.
fn check_job_count(what: &str, count: u64) -> Result<(), ControlError> {
    if i64::try_from(count).is_err() {
        return Err(ControlError::InvalidArgument(format!("{what} must not be negative")));
    }
    if count > MOST_REPLICAS {
        return Err(ControlError::InvalidArgument(format!("{what}: at most {MOST_REPLICAS} are allowed, not {count}")));
    }
    Ok(())
}

fn check_resources(spec: &ServiceSpec) -> Result<(), ControlError> {
    let limits = spec.task.resources.limits.clone().unwrap_or_default();
    let reservations = spec.task.resources.reservations.clone().unwrap_or_default();
    for (what, nano, memory) in
        [("limits", limits.nano_cpus, limits.memory), ("reservations", reservations.nano_cpus, reservations.memory)]
    {
        // swarmkit's floors: below them a container cannot start.
        if nano != 0 && nano < 1_000_000 {
            return Err(ControlError::InvalidArgument(format!(
                "invalid cpu value {nano} of {what}: Must be at least 0.001"
            )));
        }
        if memory != 0 && memory < 4 << 20 {
            return Err(ControlError::InvalidArgument(format!(
                "invalid memory value {memory} of {what}: Must be at least 4MiB"
            )));
        }
    }
    Ok(())
}

fn check_ports(spec: &ServiceSpec) -> Result<(), ControlError> {
    let Some(endpoint) = &spec.endpoint else { return Ok(()) };
    pods::check_redirects(&endpoint.redirects)?;
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if port.target == 0 {
            return Err(ControlError::InvalidArgument(
                "EndpointSpec: published port needs a target port from 1 to 65535".into(),
            ));
        }
        if port.protocol == skep_proto::model::service::Protocol::Sctp {
            return Err(ControlError::Unsupported("publishing an SCTP port".into()));
        }
        if let Some(number) = port.published.filter(|n| *n != 0)
            && !published.insert((number, port.protocol))
        {
            return Err(ControlError::InvalidArgument("EndpointSpec: duplicate published ports provided".into()));
        }
        if endpoint.mode == EndpointMode::DnsRoundRobin && port.mode == skep_proto::model::service::PublishMode::Ingress
        {
            return Err(ControlError::InvalidArgument(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode".into(),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    fn a_rollback_is_told_of_services_that_are_updated_and_of_no_job() {
        let job = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        for (mode, told) in [(ServiceMode::Replicated { replicas: 1 }, true), (job, false)] {
            let mut world = World::new().nodes(1);
            let id = world.add_service("web", mode, |_| {});
            let first = world.service(id).unwrap();
            let mut spec = first.spec.clone();
            spec.task.force_update = 1;
            let update = |at, spec, rollback| ServiceUpdate { at, spec, rollback, auth_from_previous: false };
            let at = first.meta.version;
            let second = changed(&first, update(at, spec, false), &world.view()).unwrap();
            world.apply(Change::update(&second));
            let second = world.service(id).unwrap();
            let at = second.meta.version;
            let back = changed(&second, update(at, second.spec.clone(), true), &world.view()).unwrap();
            assert_eq!(back.update_status.map(|s| s.state), told.then_some(UpdateState::RollbackStarted));
        }
    }
}
