//! Mounts of a task's containers: paths, volumes, and the volumes that images ask for.

use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use skep_engine::volumes::{NewVolume, VolumeError, Volumes};
use skep_proto::model::container::{Mount, MountKind};
use skep_proto::model::engine::{Container, ImageConfig, ResolvedMount};
use skep_proto::model::{ContainerId, ContainerSpec};
use tracing::warn;

use crate::executor::ExecutorError;

/// Docker's label of volumes that nobody named.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

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

/// Finds or makes what each mount stands for.
pub(super) async fn resolve(
    volumes: &Volumes,
    container: ContainerId,
    spec: &ContainerSpec,
    image: &ImageConfig,
) -> Result<Vec<ResolvedMount>, ExecutorError> {
    let mut resolved = Vec::new();
    for mount in &spec.mounts {
        resolved.push(match mount.kind {
            MountKind::Bind => bind(mount).await?,
            MountKind::Volume => volume(volumes, container, mount).await?,
            MountKind::Tmpfs => ResolvedMount {
                kind: "tmpfs",
                name: String::new(),
                source: PathBuf::new(),
                target: mount.target.clone(),
                writable: !mount.read_only,
                propagation: String::new(),
            },
        });
    }
    for target in &image.volumes {
        if !resolved.iter().any(|mount| mount.target == *target) {
            let implied = Mount {
                kind: MountKind::Volume,
                source: String::new(),
                target: target.clone(),
                read_only: false,
                consistency: String::new(),
                bind: None,
                volume: None,
                tmpfs: None,
            };
            resolved.push(volume(volumes, container, &implied).await?);
        }
    }
    Ok(resolved)
}

async fn bind(mount: &Mount) -> Result<ResolvedMount, ExecutorError> {
    let source = PathBuf::from(&mount.source);
    let options = mount.bind.clone().unwrap_or_default();
    let invalid = |what: String| ExecutorError::Permanent(format!("invalid mount config for type \"bind\": {what}"));
    if !source.is_absolute() {
        return Err(invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
    }
    match tokio::fs::metadata(&source).await {
        Ok(_) => {}
        Err(_) if options.create_mountpoint => tokio::fs::create_dir_all(&source)
            .await
            .map_err(|error| invalid(format!("cannot make {}: {error}", source.display())))?,
        Err(_) => return Err(invalid(format!("bind source path does not exist: {}", source.display()))),
    }
    Ok(ResolvedMount {
        kind: "bind",
        name: String::new(),
        source,
        target: mount.target.clone(),
        writable: !mount.read_only,
        propagation: if options.propagation.is_empty() { "rprivate".into() } else { options.propagation },
    })
}

async fn volume(volumes: &Volumes, container: ContainerId, mount: &Mount) -> Result<ResolvedMount, ExecutorError> {
    let options = mount.volume.clone().unwrap_or_default();
    let driver = options.driver.unwrap_or_default();
    let mut new =
        NewVolume { name: mount.source.clone(), driver: driver.name, options: driver.options, labels: options.labels };
    if new.name.is_empty() {
        // Not drawn: a creation that is repeated after a crash finds the same volume.
        new.name = anonymous_name(container, &mount.target);
        new.labels.entry(ANONYMOUS.to_owned()).or_default();
    }
    let name = volumes.create(new).await.map_err(volume_error)?.name;
    let mut source = volumes.mount(&name).await.map_err(volume_error)?;
    if !options.subpath.is_empty() {
        let below = source.join(inside(&options.subpath)?);
        // Links in the volume are its containers' work: the path is what they lead to, or nothing.
        let below = tokio::fs::canonicalize(&below).await.ok().filter(|below| below.starts_with(&source));
        source = below.ok_or_else(|| {
            ExecutorError::Permanent(format!("subpath {} does not exist in volume {name}", options.subpath))
        })?;
    }
    Ok(ResolvedMount {
        kind: "volume",
        name,
        source,
        target: mount.target.clone(),
        writable: !mount.read_only,
        propagation: String::new(),
    })
}

fn anonymous_name(container: ContainerId, target: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(container.0);
    hash.update(target);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A path that stays below where it starts.
fn inside(subpath: &str) -> Result<&Path, ExecutorError> {
    let path = Path::new(subpath);
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        Ok(path)
    } else {
        Err(ExecutorError::Permanent(format!("subpath {subpath} leaves the volume")))
    }
}

/// Mounts volumes again that have options of their own: a reboot took them away.
pub(super) async fn mount(volumes: &Volumes, mounts: &[ResolvedMount]) -> Result<(), ExecutorError> {
    for mount in mounts.iter().filter(|mount| mount.kind == "volume") {
        volumes.mount(&mount.name).await.map_err(volume_error)?;
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

/// Removes the volumes that nobody named, with the container that they were made for.
pub(super) async fn remove_anonymous(volumes: &Volumes, mounts: &[ResolvedMount]) {
    for mount in mounts.iter().filter(|mount| mount.kind == "volume") {
        let anonymous = volumes.get(&mount.name).is_ok_and(|volume| volume.labels.contains_key(ANONYMOUS));
        if anonymous && let Err(error) = volumes.remove(&mount.name, true, &[]).await {
            warn!(volume = mount.name, error = %crate::chain(&error), "cannot remove an anonymous volume");
        }
    }
}

fn volume_error(error: VolumeError) -> ExecutorError {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anonymous_volume_has_a_name_of_its_container_and_target() {
        let id = ContainerId([1; 32]);
        assert_eq!(anonymous_name(id, "/data"), anonymous_name(id, "/data"));
        assert_ne!(anonymous_name(id, "/data"), anonymous_name(id, "/logs"));
        assert_eq!(anonymous_name(id, "/data").len(), 64);
    }

    #[test]
    fn a_subpath_cannot_leave_its_volume() {
        assert!(inside("a/./b").is_ok());
        assert!(inside("../etc").is_err());
        assert!(inside("/etc").is_err());
    }
}
