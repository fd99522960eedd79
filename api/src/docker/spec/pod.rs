//! Tasks of several containers, as our extension of the API has them.
//!
//! Docker's clients do not know it: what they send back of a service lacks it, and the manager keeps what it had.

use skep_proto::model::{ContainerSpec, TaskSpec};

use crate::docker::types::service as json;

/// Adds the further containers to the first.
pub(crate) fn read(pod: json::Pod, containers: &mut Vec<ContainerSpec>) {
    if let Some(first) = containers.first_mut() {
        first.name = pod.name;
        first.pod = Some(pod.first);
    }
    containers.extend(pod.containers);
}

/// What a task has beyond Docker's; `None` for one of Docker's kind.
pub(crate) fn show(task: &TaskSpec) -> Option<json::Pod> {
    let (first, others) = task.containers.split_first()?;
    if first.pod.is_none() && others.is_empty() {
        return None;
    }
    Some(json::Pod {
        name: first.name.clone(),
        first: first.pod.clone().unwrap_or_default(),
        containers: others.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use skep_proto::model::pod::{PodContainer, Role};

    use super::*;

    #[test]
    fn a_pod_comes_back_as_it_was_shown_and_a_plain_task_shows_nothing() {
        let container = |name: &str, role| ContainerSpec {
            name: name.into(),
            image: "x".into(),
            pod: Some(PodContainer { role, ..PodContainer::default() }),
            ..ContainerSpec::default()
        };
        let task = TaskSpec {
            containers: vec![container("web", Role::Main), container("setup", Role::Init)],
            ..TaskSpec::default()
        };
        let text = serde_json::to_string(&show(&task).unwrap()).unwrap();
        let mut containers = vec![ContainerSpec { image: "x".into(), ..ContainerSpec::default() }];
        read(serde_json::from_str(&text).unwrap(), &mut containers);
        assert_eq!(containers, task.containers);
        let plain = TaskSpec { containers: vec![ContainerSpec::default()], ..TaskSpec::default() };
        assert_eq!(show(&plain), None);
    }
}
