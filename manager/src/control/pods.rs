//! Tasks of several containers: what makes sense, and what clients that do not know them must not lose.

use std::collections::BTreeSet;

use skep_api::ports::control::ControlError;
use skep_proto::model::pod::{Action, PodContainer, PortRedirect, Probe, Role};
use skep_proto::model::service::Protocol;
use skep_proto::model::{ContainerSpec, ServiceSpec, TaskSpec};

/// Containers of one task at most.
const MOST_CONTAINERS: usize = 32;
/// Redirected ports of one service at most.
const MOST_REDIRECTS: usize = 256;
/// Characters of a container's name at most: a label of a host name (RFC 1123).
const LONGEST_NAME: usize = 63;

/// Checks the containers of a task.
///
/// # Errors
/// [`ControlError::InvalidArgument`] for the first that makes no sense.
pub(super) fn check(task: &TaskSpec) -> Result<(), ControlError> {
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    let Some((first, others)) = task.containers.split_first() else {
        return invalid("ContainerSpec: missing in service spec".into());
    };
    if others.len() >= MOST_CONTAINERS {
        return invalid(format!("a task has {MOST_CONTAINERS} containers at most, not {}", task.containers.len()));
    }
    if first.pod.as_ref().is_some_and(|pod| pod.role != Role::Main) {
        return invalid("the first container of a task is a main one".into());
    }
    let mut names = BTreeSet::new();
    for container in &task.containers {
        check_container(container)?;
        if !others.is_empty() && !names.insert(container.name.as_str()) {
            return invalid(format!("two containers of the task have the name {:?}", container.name));
        }
    }
    others.iter().try_for_each(|container| check_name(&container.name))
}

/// Checks the redirected ports of a service.
///
/// # Errors
/// [`ControlError::InvalidArgument`] for the first that makes no sense.
pub(super) fn check_redirects(redirects: &[PortRedirect]) -> Result<(), ControlError> {
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    if redirects.len() > MOST_REDIRECTS {
        return invalid(format!("a service has {MOST_REDIRECTS} redirected ports at most, not {}", redirects.len()));
    }
    let mut ports = BTreeSet::new();
    for PortRedirect { protocol, port, target } in redirects {
        if *port == 0 || *target == 0 || !ports.insert((*protocol, *port)) {
            return invalid(format!("port {port} cannot lead to port {target}: ports are from 1, each led once"));
        }
        if *protocol == Protocol::Sctp {
            return Err(ControlError::Unsupported("redirecting an SCTP port".into()));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ControlError> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_word) || name.starts_with('-') {
        return Err(ControlError::InvalidArgument(format!(
            "{name:?} is no name of a container: {LONGEST_NAME} lower-case letters, digits and - at most"
        )));
    }
    Ok(())
}

fn check_container(container: &ContainerSpec) -> Result<(), ControlError> {
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    if container.image.is_empty() {
        return invalid("ContainerSpec: image reference must be provided".into());
    }
    let mut targets = BTreeSet::new();
    for mount in &container.mounts {
        if !mount.target.starts_with('/') {
            return invalid(format!("invalid mount target, must be an absolute path: {}", mount.target));
        }
        if !targets.insert(&mount.target) {
            return invalid(format!("ContainerSpec: duplicate mount point: {}", mount.target));
        }
    }
    if let Some(PodContainer { role, startup, readiness, liveness, pre_stop, post_start, .. }) = &container.pod {
        if *role == Role::Init && (startup.is_some() || readiness.is_some() || liveness.is_some()) {
            return invalid(format!("the init container {:?} ends by itself: it has no probes", container.name));
        }
        let probes = [startup, readiness, liveness].into_iter().flatten();
        probes.clone().try_for_each(check_probe)?;
        let actions = probes.map(|probe| &probe.action).chain(pre_stop).chain(post_start);
        actions.into_iter().try_for_each(check_action)?;
    }
    Ok(())
}

fn check_probe(probe: &Probe) -> Result<(), ControlError> {
    if probe.period.is_zero() || probe.timeout.is_zero() || probe.successes == 0 || probe.failures == 0 {
        let text = "a probe's period, timeout and numbers of successes and failures are at least 1";
        return Err(ControlError::InvalidArgument(text.into()));
    }
    Ok(())
}

fn check_action(action: &Action) -> Result<(), ControlError> {
    let wrong = match action {
        Action::Exec { command } if command.first().is_none_or(String::is_empty) => "a probe or hook without a command",
        Action::HttpGet(get) if get.port == 0 => "a probe or hook by HTTP without a port",
        Action::HttpGet(get) if !get.path.starts_with('/') => "the path of a probe or hook by HTTP begins with /",
        Action::HttpGet(get)
            if [&get.path, &get.host]
                .into_iter()
                .chain(get.headers.iter().flat_map(|header| [&header.name, &header.value]))
                .any(|text| text.contains(['\r', '\n'])) =>
        {
            "a probe or hook by HTTP has a line break in its path, host or headers"
        }
        Action::TcpSocket { port: 0, .. } => "a probe or hook by TCP without a port",
        Action::Exec { .. } | Action::HttpGet(_) | Action::TcpSocket { .. } | Action::Sleep { .. } => return Ok(()),
    };
    Err(ControlError::InvalidArgument(wrong.into()))
}

/// Docker's clients send back what they know of a service: what they do not know stays as it was. A task of one
/// container that has nothing of a pod says nothing about one.
pub(super) fn keep(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let (task, old_task) = (&mut spec.task, &old.task);
    let [container] = task.containers.as_mut_slice() else { return };
    let Some((first, others)) = old_task.containers.split_first() else { return };
    if container.pod.is_some() || first.pod.is_none() {
        return;
    }
    container.pod.clone_from(&first.pod);
    container.name.clone_from(&first.name);
    for mount in &mut container.mounts {
        let before = first.mounts.iter().find(|old| (&old.source, &old.target) == (&mount.source, &mount.target));
        if let (Some(volume), Some(before)) = (&mut mount.volume, before.and_then(|old| old.volume.as_ref())) {
            (volume.scratch, volume.pinned, volume.gid) = (before.scratch, before.pinned, before.gid);
        } else if let Some(before) = before {
            mount.volume.clone_from(&before.volume);
        }
    }
    task.containers.extend(others.iter().cloned());
    if let (Some(endpoint), Some(before)) = (&mut spec.endpoint, &old.endpoint) {
        endpoint.redirects.clone_from(&before.redirects);
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::model::service::EndpointSpec;
    use skep_proto::model::{Annotations, ServiceMode};

    use super::*;

    fn container(name: &str, role: Role) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            image: "x".into(),
            pod: Some(PodContainer { role, ..PodContainer::default() }),
            ..ContainerSpec::default()
        }
    }

    fn pod() -> TaskSpec {
        TaskSpec {
            containers: vec![container("web", Role::Main), container("setup", Role::Init)],
            ..TaskSpec::default()
        }
    }

    fn service(task: TaskSpec, redirects: Vec<PortRedirect>) -> ServiceSpec {
        ServiceSpec {
            annotations: Annotations::default(),
            task,
            mode: ServiceMode::Global,
            update: None,
            rollback: None,
            endpoint: Some(EndpointSpec { redirects, ..EndpointSpec::default() }),
        }
    }

    const LED: PortRedirect = PortRedirect { protocol: Protocol::Tcp, port: 80, target: 8080 };

    #[test]
    fn a_client_of_dockers_changes_the_first_container_and_loses_nothing_of_the_others() {
        let sent = TaskSpec {
            containers: vec![ContainerSpec { image: "y".into(), ..ContainerSpec::default() }],
            force_update: 1,
            ..TaskSpec::default()
        };
        let mut sent = service(sent, Vec::new());
        keep(&mut sent, &service(pod(), vec![LED]));
        let mut expected = TaskSpec { force_update: 1, ..pod() };
        expected.containers[0].image = "y".into();
        assert_eq!(sent, service(expected, vec![LED]));
        let one_less = TaskSpec { containers: vec![container("web", Role::Main)], ..TaskSpec::default() };
        let mut sent = service(one_less.clone(), Vec::new());
        keep(&mut sent, &service(pod(), vec![LED]));
        assert_eq!(sent, service(one_less, Vec::new()));
    }

    #[test]
    fn pods_that_make_no_sense_are_refused() {
        assert!(check(&pod()).is_ok());
        let with = |change: fn(&mut TaskSpec)| {
            let mut task = pod();
            change(&mut task);
            check(&task).unwrap_err().to_string()
        };
        assert!(with(|t| t.containers.clear()).contains("missing"));
        assert!(with(|t| t.containers.rotate_left(1)).contains("first container"));
        assert!(with(|t| t.containers[1].name = "web".into()).contains("two containers"));
        assert!(with(|t| t.containers[1].name = "We/b".into()).contains("no name"));
        assert!(check_redirects(&[LED, LED]).unwrap_err().to_string().contains("each led once"));
        assert!(with(|t| t.containers = vec![t.containers[0].clone(); 40]).contains("at most"));
        let probe = |action| Probe {
            action,
            initial_delay: Default::default(),
            period: std::time::Duration::from_secs(1),
            timeout: std::time::Duration::from_secs(1),
            successes: 1,
            failures: 1,
        };
        let mut task = pod();
        task.containers[0].pod.as_mut().unwrap().liveness = Some(probe(Action::Exec { command: Vec::new() }));
        assert!(check(&task).unwrap_err().to_string().contains("without a command"));
    }
}
