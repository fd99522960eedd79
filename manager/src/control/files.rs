//! What a service asks of secrets, configs and templates, in Swarm's words (swarmkit `manager/controlapi/service.go`).

use skep_api::ports::control::ControlError;
use skep_proto::model::container::{ContainerSpec, FileTarget};
use skep_proto::model::{ServiceSpec, TaskSpec};
use skep_proto::template::task;

use crate::store::State;

/// Checks that the secrets and configs exist under the names that the client gave, and that every template of the
/// spec can be expanded.
///
/// # Errors
/// [`ControlError::InvalidArgument`] for the first that does not.
pub fn check(spec: &ServiceSpec, state: &State) -> Result<(), ControlError> {
    let invalid = |text: String| Err(ControlError::InvalidArgument(text));
    let TaskSpec { containers, .. } = &spec.task;
    for container in containers {
        targets(container)?;
        let secrets = container.secrets.iter().filter(|wanted| {
            state.secrets().get(wanted.id).is_none_or(|found| found.spec.annotations.name != wanted.name)
        });
        if let Some(text) = missing("secret", secrets.map(|wanted| wanted.name.as_str())) {
            return invalid(text);
        }
        let configs = container.configs.iter().filter(|wanted| {
            state.configs().get(wanted.id).is_none_or(|found| found.spec.annotations.name != wanted.name)
        });
        if let Some(text) = missing("config", configs.map(|wanted| wanted.name.as_str())) {
            return invalid(text);
        }
        task::check(&spec.annotations, container).or_else(|error| invalid(error.to_string()))?;
    }
    Ok(())
}

fn missing<'a>(kind: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    (!names.is_empty()).then(|| format!("{kind}{plural} not found: {}", names.join(", ")))
}

/// Every file has a target with a numeric owner, and no two have the same.
fn targets(container: &ContainerSpec) -> Result<(), ControlError> {
    let secrets = container.secrets.iter().map(|secret| ("secret", &secret.name, &secret.file));
    let configs = container.configs.iter().map(|config| ("config", &config.name, &config.file));
    let mut seen = std::collections::BTreeMap::new();
    for (kind, name, file) in secrets.chain(configs) {
        let invalid = |text: String| Err(ControlError::InvalidArgument(text));
        let Some(FileTarget { name: target, uid, gid, mode }) = file else {
            return invalid(format!("malformed {kind} reference, no target provided"));
        };
        if target.is_empty() || target.split('/').any(|part| part == "..") || target.ends_with('/') {
            return invalid(format!("{kind} '{name}' has an invalid target: '{target}'"));
        }
        for (what, text) in [("uid", uid), ("gid", gid)] {
            if !text.is_empty() && text.parse::<u32>().is_err() {
                return invalid(format!("{kind} '{name}': the {what} must be a number, not '{text}'"));
            }
        }
        if *mode & !0o7777 != 0 {
            return invalid(format!("{kind} '{name}': {mode:o} is no file mode"));
        }
        if let Some(other) = seen.insert((kind, target), name) {
            return invalid(format!("{kind} references '{other}' and '{name}' have a conflicting target: '{target}'"));
        }
    }
    Ok(())
}
