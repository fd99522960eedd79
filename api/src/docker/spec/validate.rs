//! Rules for whole specs, in Swarm's words (swarmkit `manager/controlapi`). What depends on the cluster's state (names
//! and ports in use, objects that must exist) is the manager's to check.

use std::collections::BTreeSet;

use skep_proto::model::container::{ContainerSpec, Mount, MountKind};
use skep_proto::model::service::{EndpointMode, EndpointSpec, PublishMode, ServiceMode, ServiceSpec};
use skep_proto::model::task::{Limits, Reservations, TaskSpec};

use crate::docker::error::ApiError;

/// Smallest CPU share that is enforced, in nano-CPUs: 0.001 CPU.
const MIN_NANO_CPUS: i64 = 1_000_000;
/// Smallest memory that a process can start in, in bytes.
const MIN_MEMORY: i64 = 4 << 20;

/// Checks a service's spec.
///
/// # Errors
/// 400 in Swarm's words, for the first rule that is broken.
pub(crate) fn service(spec: &ServiceSpec) -> Result<(), ApiError> {
    dns_name("service", &spec.annotations.name)?;
    task(&spec.task)?;
    if let Some(endpoint) = &spec.endpoint {
        self::endpoint(endpoint)?;
    }
    let job = matches!(spec.mode, ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob);
    if job && (spec.update.is_some() || spec.rollback.is_some()) {
        return Err(ApiError::invalid_argument("Jobs may not have an update config"));
    }
    Ok(())
}

/// Checks a name that also becomes a name in DNS (RFC 1123, section 2.1).
///
/// # Errors
/// 400 in Swarm's words.
pub(crate) fn dns_name(_kind: &str, name: &str) -> Result<(), ApiError> {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.is_empty() {
        return Err(ApiError::invalid_argument("meta: name must be provided"));
    }
    if name.len() > 63 {
        return Err(ApiError::invalid_argument("name must be 63 characters or fewer"));
    }
    let inner = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !inner || !alphanumeric(name.chars().next()) || !alphanumeric(name.chars().last()) {
        return Err(ApiError::invalid_argument("name must be valid as a DNS name component"));
    }
    Ok(())
}

/// Checks the name of a secret or config.
///
/// # Errors
/// 400 in Swarm's words.
pub(crate) fn file_name(name: &str) -> Result<(), ApiError> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = name.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c));
    if name.len() > 64 || !inner || !edge(name.chars().next()) || !edge(name.chars().last()) {
        return Err(ApiError::invalid_argument(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

fn task(task: &TaskSpec) -> Result<(), ApiError> {
    for container in &task.containers {
        self::container(container)?;
    }
    if let Some(Limits { nano_cpus, memory, pids }) = &task.resources.limits {
        resource(*nano_cpus, *memory)?;
        if *pids < 0 {
            return Err(ApiError::invalid_argument(format!("invalid pids limit {pids}: must not be negative")));
        }
    }
    if let Some(Reservations { nano_cpus, memory, .. }) = &task.resources.reservations {
        resource(*nano_cpus, *memory)?;
    }
    for expression in &task.placement.constraints {
        constraint(expression)?;
    }
    let targets: BTreeSet<&str> = task.networks.iter().map(|n| n.target.as_str()).collect();
    if targets.len() != task.networks.len() {
        return Err(ApiError::invalid_argument("networks must be unique: a service joins a network once"));
    }
    Ok(())
}

fn resource(nano_cpus: i64, memory: i64) -> Result<(), ApiError> {
    if nano_cpus != 0 && nano_cpus < MIN_NANO_CPUS {
        #[allow(clippy::cast_precision_loss)] // for people only
        let cpus = nano_cpus as f64 / 1e9;
        return Err(ApiError::invalid_argument(format!("invalid cpu value {cpus}: Must be at least 0.001")));
    }
    if memory != 0 && memory < MIN_MEMORY {
        return Err(ApiError::invalid_argument(format!("invalid memory value {memory}: Must be at least 4MiB")));
    }
    Ok(())
}

fn container(spec: &ContainerSpec) -> Result<(), ApiError> {
    image_reference(&spec.image)?;
    mounts(&spec.mounts)?;
    if !spec.stop_signal.is_empty() && crate::docker::signal::parse(&spec.stop_signal).is_none() {
        return Err(ApiError::invalid_argument(format!("ContainerSpec: invalid stop signal {}", spec.stop_signal)));
    }
    unique_targets("secret", spec.secrets.iter().map(|s| (s.name.as_str(), s.file.as_ref().map(|f| f.name.as_str()))))?;
    unique_targets("config", spec.configs.iter().map(|c| (c.name.as_str(), c.file.as_ref().map(|f| f.name.as_str()))))
}

fn unique_targets<'a>(
    kind: &str,
    references: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Result<(), ApiError> {
    let mut seen: std::collections::BTreeMap<&str, &str> = Default::default();
    for (name, target) in references {
        let Some(target) = target else {
            return Err(ApiError::invalid_argument(format!("malformed {kind} reference, no target provided")));
        };
        if let Some(other) = seen.insert(target, name) {
            return Err(ApiError::invalid_argument(format!(
                "{kind} references '{other}' and '{name}' have a conflicting target: '{target}'"
            )));
        }
    }
    Ok(())
}

/// Checks the form of an image's reference: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
fn image_reference(image: &str) -> Result<(), ApiError> {
    if image.is_empty() {
        return Err(ApiError::invalid_argument("ContainerSpec: image reference must be provided"));
    }
    let wrong = || ApiError::invalid_argument(format!("ContainerSpec: \"{image}\" is not a valid repository/tag"));
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    if digest.is_some_and(|d| {
        d.split_once(':').is_none_or(|(algorithm, hex)| {
            algorithm.is_empty() || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    }) {
        return Err(wrong());
    }
    let slash = name.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match name[slash..].find(':') {
        Some(colon) => (&name[..slash + colon], Some(&name[slash + colon + 1..])),
        None => (name, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    if tag.is_some_and(|t| t.is_empty() || t.len() > 128 || !t.chars().all(word) || t.starts_with(['.', '-'])) {
        return Err(wrong());
    }
    let components: Vec<&str> = path.split('/').collect();
    for (i, component) in components.iter().enumerate() {
        let host = i == 0 && components.len() > 1 && (component.contains(['.', ':']) || *component == "localhost");
        let lower = |c: char| word(c) && !c.is_ascii_uppercase();
        let ok = if host {
            component.chars().all(|c| word(c) || [':', '[', ']'].contains(&c))
        } else {
            component.chars().all(lower)
                && component.starts_with(|c: char| c.is_ascii_alphanumeric())
                && component.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if component.is_empty() || !ok {
            return Err(wrong());
        }
    }
    Ok(())
}

/// Checks mounts: absolute targets, each once, sources that fit the kind.
///
/// # Errors
/// 400 in Docker's words.
pub(crate) fn mounts(mounts: &[Mount]) -> Result<(), ApiError> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        if !mount.target.starts_with('/') {
            return Err(ApiError::invalid_argument(format!(
                "ContainerSpec: invalid mount target, must be an absolute path: {}",
                mount.target
            )));
        }
        let wrong = match mount.kind {
            MountKind::Bind if !mount.source.starts_with('/') => {
                Some(format!("invalid bind mount source, must be an absolute path: {}", mount.source))
            }
            MountKind::Volume if mount.source.starts_with('/') => {
                Some(format!("invalid volume mount source, must not be an absolute path: {}", mount.source))
            }
            MountKind::Tmpfs if !mount.source.is_empty() => Some("invalid tmpfs source, source must be empty".into()),
            MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => None,
        };
        if let Some(text) = wrong {
            return Err(ApiError::invalid_argument(format!("ContainerSpec: {text}")));
        }
        if !targets.insert(mount.target.trim_end_matches('/')) {
            return Err(ApiError::invalid_argument(format!("ContainerSpec: duplicate mount point: {}", mount.target)));
        }
    }
    Ok(())
}

/// Checks the form of a constraint: `KEY==VALUE` or `KEY!=VALUE` (swarmkit `manager/constraint`).
fn constraint(expression: &str) -> Result<(), ApiError> {
    let (key, value) = expression
        .split_once("!=")
        .or_else(|| expression.split_once("=="))
        .ok_or_else(|| ApiError::invalid_argument("constraint expected one operator from ==, !="))?;
    let (key, value) = (key.trim(), value.trim());
    let in_key = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.', '/'].contains(&c);
    if !key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !key.chars().all(in_key) {
        return Err(ApiError::invalid_argument(format!("key '{key}' is invalid")));
    }
    let in_value = |c: char| c.is_ascii_alphanumeric() || "-_.:/\\+@$*^|()?!%~, &<>{}[]=\"'#".contains(c);
    if value.is_empty() || !value.chars().all(in_value) {
        return Err(ApiError::invalid_argument(format!("value '{value}' is invalid")));
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), ApiError> {
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        if endpoint.mode == EndpointMode::DnsRoundRobin && port.mode == PublishMode::Ingress {
            return Err(ApiError::invalid_argument(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        if let Some(number) = port.published
            && !published.insert((port.protocol, number, port.mode))
        {
            return Err(ApiError::invalid_argument("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_that_dns_can_carry() {
        for good in ["web", "a", "st_web", "A-1"] {
            assert_eq!(dns_name("service", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "ä", &"x".repeat(64)] {
            assert!(dns_name("service", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_have_a_path_and_perhaps_host_tag_and_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for good in ["nginx", "nginx:1.2", "10.99.0.1:5055/bb:1", "a/b/c", "localhost/x", &format!("a@{digest}")] {
            assert_eq!(image_reference(good), Ok(()), "{good}");
        }
        for bad in ["", "Upper", "a:", "a//b", "a@sha256", "a b", "/a", "a:b:c", "-a"] {
            assert!(image_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_constraint_has_an_operator_a_key_and_a_value() {
        for good in ["node.role==manager", "node.labels.zone != b", "engine.labels.os==debian 12"] {
            assert_eq!(constraint(good), Ok(()), "{good}");
        }
        let error = constraint("node.role=manager").unwrap_err();
        assert_eq!(
            error.message(),
            "rpc error: code = InvalidArgument desc = constraint expected one operator from ==, !="
        );
        assert!(constraint("==x").is_err() && constraint("node.id==").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            let _ = image_reference(&text);
            let _ = constraint(&text);
            let _ = dns_name("service", &text);
            let _ = file_name(&text);
        }
    }
}
