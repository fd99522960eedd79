//! Tasks of several containers, as our extension of the API has them.
//!
//! Docker's clients do not know it: what they send back of a service lacks it, and the manager keeps what it had.

use std::str::FromStr;

use serde_json::{Value, json};
use skep_proto::model::{ConfigId, ContainerSpec, SecretId, TaskSpec};

use crate::docker::error::ApiError;
use crate::docker::types::service as types;

/// Adds the further containers to the first.
///
/// # Errors
/// 400 for what is no container.
pub(crate) fn read(pod: types::Pod, containers: &mut Vec<ContainerSpec>) -> Result<(), ApiError> {
    if let Some(first) = containers.first_mut() {
        first.name = pod.name;
        first.pod = Some(pod.first);
    }
    for container in pod.containers {
        containers.push(read_container(container)?);
    }
    Ok(())
}

/// What a task has beyond Docker's; `None` for one of Docker's kind.
pub(crate) fn show(task: &TaskSpec) -> Option<types::Pod> {
    let (first, others) = task.containers.split_first()?;
    if first.pod.is_none() && others.is_empty() {
        return None;
    }
    Some(types::Pod {
        name: first.name.clone(),
        first: first.pod.clone().unwrap_or_default(),
        containers: others.iter().map(show_container).collect(),
    })
}

/// Ids are numbers of 128 bits, which JSON does not carry: they travel as text.
fn show_container(container: &ContainerSpec) -> Value {
    let mut plain = container.clone();
    plain.secrets.iter_mut().for_each(|secret| secret.id = SecretId(0));
    plain.configs.iter_mut().for_each(|config| config.id = ConfigId(0));
    let mut value = serde_json::to_value(plain).expect("a container has no key that is not text");
    for (index, secret) in container.secrets.iter().enumerate() {
        value["secrets"][index]["id"] = json!(secret.id.to_string());
    }
    for (index, config) in container.configs.iter().enumerate() {
        value["configs"][index]["id"] = json!(config.id.to_string());
    }
    value
}

fn read_container(mut value: Value) -> Result<ContainerSpec, ApiError> {
    let wrong =
        |what: &dyn std::fmt::Display| ApiError::invalid_argument(format!("Pod: a container cannot be read: {what}"));
    let secrets: Vec<SecretId> = take_ids(&mut value, "secrets").map_err(|id| wrong(&id))?;
    let configs: Vec<ConfigId> = take_ids(&mut value, "configs").map_err(|id| wrong(&id))?;
    let mut container: ContainerSpec = serde_json::from_value(value).map_err(|error| wrong(&error))?;
    container.secrets.iter_mut().zip(secrets).for_each(|(secret, id)| secret.id = id);
    container.configs.iter_mut().zip(configs).for_each(|(config, id)| config.id = id);
    Ok(container)
}

fn take_ids<T: FromStr>(value: &mut Value, part: &str) -> Result<Vec<T>, String> {
    let mut ids = Vec::new();
    for reference in value[part].as_array_mut().into_iter().flatten() {
        let Some(id) = reference.get_mut("id") else { return Err(format!("a reference in {part} has no id")) };
        let text = id.as_str().unwrap_or_default().to_owned();
        ids.push(text.parse().map_err(|_| format!("{text:?} in {part} is no id"))?);
        *id = json!(0);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use skep_proto::model::container::SecretReference;
    use skep_proto::model::pod::{PodContainer, Role};

    use super::*;

    #[test]
    fn a_pod_comes_back_as_it_was_shown_and_a_plain_task_shows_nothing() {
        let container = |name: &str, role| ContainerSpec {
            name: name.into(),
            image: "x".into(),
            pod: Some(PodContainer { role, ..PodContainer::default() }),
            secrets: vec![SecretReference { id: SecretId(u128::MAX), name: "s".into(), file: None }],
            ..ContainerSpec::default()
        };
        let task = TaskSpec {
            containers: vec![container("web", Role::Main), container("setup", Role::Init)],
            ..TaskSpec::default()
        };
        let text = serde_json::to_string(&show(&task).unwrap()).unwrap();
        let mut containers = vec![ContainerSpec { pod: None, name: String::new(), ..task.containers[0].clone() }];
        read(serde_json::from_str(&text).unwrap(), &mut containers).unwrap();
        assert_eq!(containers, task.containers);
        let broken = text.replace(&SecretId(u128::MAX).to_string(), "nobody");
        assert!(read(serde_json::from_str(&broken).unwrap(), &mut containers).is_err());
        let plain = TaskSpec { containers: vec![ContainerSpec::default()], ..TaskSpec::default() };
        assert_eq!(show(&plain), None);
    }
}
