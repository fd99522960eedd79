//! Mounts of a task's containers: the end of their volumes, and what is said of them.

use skep_engine::volumes::{VolumeError, Volumes};
use skep_proto::model::TaskId;
use skep_proto::model::engine::Container;
use tracing::warn;

use crate::engine_port::prepare::PrepareError;
use crate::executor::ExecutorError;

use super::plan::SCRATCH;

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

/// Removes the volumes that lived as long as the task.
pub(super) async fn remove_scratch(volumes: &Volumes, task: TaskId) -> Result<(), ExecutorError> {
    let of_task = task.to_string();
    for volume in volumes.list().into_iter().filter(|volume| volume.labels.get(SCRATCH) == Some(&of_task)) {
        volumes.unmount(&volume.name).await.map_err(volume_error)?;
        volumes.remove(&volume.name, true, &[]).await.map_err(volume_error)?;
    }
    Ok(())
}

/// Tasks that have such volumes.
pub(super) fn tasks_with_scratch(volumes: &Volumes) -> impl Iterator<Item = TaskId> {
    volumes.list().into_iter().filter_map(|volume| volume.labels.get(SCRATCH)?.parse().ok())
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
