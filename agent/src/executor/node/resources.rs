//! Generic resources of a task: which of the node's it gets, told in its environment.
//!
//! Managers count; which one of the named ones a task gets is its node's choice. It is written into the container, so
//! that the containers of the node are the record of what is taken.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::model::engine::{Container, ContainerStatus};

/// What comes before a resource's kind in the variable's name (Docker).
const PREFIX: &str = "DOCKER_RESOURCE_";

/// Too few of a named resource are free now: one that goes still holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("of the resource {kind} the task needs {wanted}, and {free} are free on this node")]
pub struct Taken {
    kind: String,
    wanted: u64,
    free: usize,
}

/// Names that tasks of the node hold, by the variable that says so.
pub fn held(containers: &[Container]) -> BTreeSet<(String, String)> {
    let holds = |c: &&Container| {
        let is_over = match c.state.status {
            ContainerStatus::Exited | ContainerStatus::Dead | ContainerStatus::Removing => true,
            ContainerStatus::Created => !c.state.error.is_empty(),
            ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => false,
        };
        c.config.task.is_some() && !is_over
    };
    let lines = containers.iter().filter(holds).flat_map(|c| &c.config.spec.env);
    let variables = lines.filter_map(|line| line.split_once('=')).filter(|(name, _)| name.starts_with(PREFIX));
    variables.flat_map(|(name, all)| all.split(',').map(|one| (name.to_owned(), one.to_owned()))).collect()
}

/// The variables of a task: for a counted resource its amount, for a named one the names that it gets, lowest first.
///
/// # Errors
/// [`Taken`].
pub fn environment(
    wanted: &BTreeMap<String, u64>,
    named: &[(String, String)],
    held: &BTreeSet<(String, String)>,
) -> Result<Vec<String>, Taken> {
    let one = |(kind, amount): (&String, &u64)| {
        let variable = format!("{PREFIX}{}", kind.to_uppercase());
        let all: BTreeSet<&String> = named.iter().filter(|(k, _)| k == kind).map(|(_, name)| name).collect();
        if all.is_empty() {
            return Ok(format!("{variable}={amount}"));
        }
        let free: Vec<&str> = all
            .into_iter()
            .filter(|name| !held.contains(&(variable.clone(), (*name).clone())))
            .map(String::as_str)
            .collect();
        let count = usize::try_from(*amount).unwrap_or(usize::MAX);
        match free.get(..count) {
            Some(chosen) => Ok(format!("{variable}={}", chosen.join(","))),
            None => Err(Taken { kind: kind.clone(), wanted: *amount, free: free.len() }),
        }
    };
    wanted.iter().filter(|(_, amount)| **amount > 0).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.into(), b.into())
    }

    #[test]
    fn a_task_gets_the_first_names_that_nobody_holds() {
        let named = [pair("gpu", "b"), pair("gpu", "a"), pair("gpu", "c")];
        let held = BTreeSet::from([pair("DOCKER_RESOURCE_GPU", "a")]);
        let wanted = |gpu, ssd| BTreeMap::from([("gpu".to_owned(), gpu), ("ssd".to_owned(), ssd)]);
        assert_eq!(
            environment(&wanted(2, 3), &named, &held).unwrap(),
            ["DOCKER_RESOURCE_GPU=b,c", "DOCKER_RESOURCE_SSD=3"]
        );
        assert_eq!(environment(&wanted(0, 0), &named, &held).unwrap(), [""; 0]);
        let error = environment(&wanted(3, 0), &named, &held).unwrap_err().to_string();
        assert_eq!(error, "of the resource gpu the task needs 3, and 2 are free on this node");
    }
}
