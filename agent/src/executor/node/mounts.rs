//! Mounts of a task's containers: what is refused, and the end of their volumes.

use skep_engine::volumes::{VolumeError, Volumes};
use skep_proto::model::ContainerSpec;
use skep_proto::model::engine::Container;
use tracing::warn;

use crate::engine_port::prepare::PrepareError;
use crate::executor::ExecutorError;

/// Refuses what cannot be mounted yet, by name.
pub(super) fn check(containers: &[ContainerSpec]) -> Result<(), ExecutorError> {
    let refused = |what: &str| Err(ExecutorError::Permanent(format!("{what} of tasks are not supported by skep yet")));
    for spec in containers {
        if !spec.secrets.is_empty() {
            return refused("secrets");
        }
        if !spec.configs.is_empty() {
            return refused("configs");
        }
    }
    Ok(())
}

/// Unmounts the volumes of ended containers that no live one uses.
pub(super) async fn release(volumes: &Volumes, all: &[Container], is_ended: impl Fn(&Container) -> bool) {
    let names = |container: &Container| {
        let volumes = container.mounts.iter().filter(|mount| mount.kind == "volume");
        volumes.map(|mount| mount.name.clone()).collect::<Vec<_>>()
    };
    let used: Vec<String> = all.iter().filter(|container| container.state.pid != 0).flat_map(names).collect();
    for name in all.iter().filter(|container| is_ended(container)).flat_map(names) {
        if !used.contains(&name)
            && let Err(error) = volumes.unmount(&name).await
        {
            warn!(volume = name, error = %crate::chain(&error), "cannot unmount a volume that nothing uses");
        }
    }
}

pub(super) fn volume_error(error: VolumeError) -> ExecutorError {
    let text = crate::chain(&error).to_string();
    match error {
        VolumeError::Mount { .. } | VolumeError::Storage { .. } => ExecutorError::Temporary(text),
        VolumeError::NotFound(_)
        | VolumeError::InvalidName(_)
        | VolumeError::InvalidOption(_)
        | VolumeError::NoSuchDriver(_)
        | VolumeError::InUse { .. } => ExecutorError::Permanent(text),
    }
}

impl From<PrepareError> for ExecutorError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Invalid(text) => Self::Permanent(text),
            PrepareError::Volume(error) => volume_error(error),
        }
    }
}
