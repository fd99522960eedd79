//! From a container's configuration to what the engine makes it from: image, mounts, volumes.
//!
//! Used for plain containers and for those of tasks alike.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use skep_engine::containers::{ImageRef as RuntimeImage, NewContainer};
use skep_engine::images::ImageRef;
use skep_engine::volumes::{NewVolume, VolumeError, Volumes};
use skep_proto::model::container::{ContainerSpec, Mount, MountKind};
use skep_proto::model::engine::{ContainerConfig, ImageConfig, ResolvedMount};
use skep_proto::model::{ContainerId, Labels};

/// Label of volumes whose tasks must run where they are.
pub const PINNED: &str = "skep.pinned";
/// Docker's label of volumes that nobody named.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// Why a container cannot be made as asked.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It makes no sense, or a path is not there. Docker's words.
    #[error("{0}")]
    Invalid(String),
    /// A volume cannot be had.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// What the engine's `Containers::create` takes. Volumes exist and are mounted when this returns.
///
/// # Errors
/// [`PrepareError`]. Volumes that were made for this container alone are removed again.
pub async fn new_container(
    volumes: &Volumes,
    config: ContainerConfig,
    image: &ImageRef,
) -> Result<NewContainer, PrepareError> {
    let mounts = mounts(volumes, config.id, &config.spec, &image.config).await?;
    Ok(NewContainer { config, image: runtime_image(image), mounts })
}

/// An image as the engine's containers take it. The caller keeps `image`, and with it the layers.
pub fn runtime_image(image: &ImageRef) -> RuntimeImage {
    RuntimeImage { id: image.id.clone(), layers: image.layers.clone(), config: image.config.clone() }
}

/// Finds or makes what each mount stands for, and anonymous volumes for the image's.
///
/// # Errors
/// [`PrepareError`]. Volumes that were made for this container alone are removed again.
pub async fn mounts(
    volumes: &Volumes,
    container: ContainerId,
    spec: &ContainerSpec,
    image: &ImageConfig,
) -> Result<Vec<ResolvedMount>, PrepareError> {
    let wanted = wanted(spec, image)?;
    let mut resolved = Vec::with_capacity(wanted.len());
    for mount in &wanted {
        let one = match mount.kind {
            MountKind::Bind => bind(mount).await,
            MountKind::Volume => volume(volumes, container, mount).await,
            MountKind::Tmpfs => Ok(show(mount, "tmpfs", String::new(), PathBuf::new(), String::new())),
        };
        match one {
            Ok(mount) => resolved.push(mount),
            Err(error) => {
                remove_anonymous(volumes, anonymous(container, &resolved)).await;
                return Err(error);
            }
        }
    }
    Ok(resolved)
}

/// The mounts asked for, and those of the image that are not among them. Pure.
fn wanted(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<Mount>, PrepareError> {
    let mut targets = HashSet::new();
    for mount in &spec.mounts {
        if !mount.target.starts_with('/') {
            return Err(invalid(mount, &format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
        }
        if lexical(&mount.target) == "/" {
            return Err(invalid(mount, "invalid specification: destination can't be '/'"));
        }
        if !targets.insert(lexical(&mount.target)) {
            return Err(PrepareError::Invalid(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    let implied = image.volumes.iter().filter(|target| targets.insert(lexical(target))).map(|target| Mount {
        kind: MountKind::Volume,
        source: String::new(),
        target: target.clone(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    });
    Ok(spec.mounts.iter().cloned().chain(implied).collect())
}

/// A path without `.`, `..` and doubled or trailing slashes.
fn lexical(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn invalid(mount: &Mount, what: &str) -> PrepareError {
    let kind = match mount.kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
    };
    PrepareError::Invalid(format!("invalid mount config for type \"{kind}\": {what}"))
}

fn show(mount: &Mount, kind: &'static str, name: String, source: PathBuf, propagation: String) -> ResolvedMount {
    ResolvedMount { kind, name, source, target: mount.target.clone(), writable: !mount.read_only, propagation }
}

async fn bind(mount: &Mount) -> Result<ResolvedMount, PrepareError> {
    let source = PathBuf::from(&mount.source);
    let options = mount.bind.clone().unwrap_or_default();
    if !source.is_absolute() {
        return Err(invalid(mount, &format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
    }
    match tokio::fs::metadata(&source).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.create_mountpoint => {
            tokio::fs::create_dir_all(&source).await.map_err(|e| {
                PrepareError::Invalid(format!("error while creating mount source path '{}': {e}", source.display()))
            })?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(invalid(mount, &format!("bind source path does not exist: {}", source.display())));
        }
        Err(error) => return Err(invalid(mount, &format!("stat {}: {error}", source.display()))),
    }
    let propagation = if options.propagation.is_empty() { "rprivate".to_owned() } else { options.propagation };
    Ok(show(mount, "bind", String::new(), source, propagation))
}

async fn volume(volumes: &Volumes, container: ContainerId, mount: &Mount) -> Result<ResolvedMount, PrepareError> {
    let options = mount.volume.clone().unwrap_or_default();
    let driver = options.driver.unwrap_or_default();
    let mut labels: Labels = options.labels;
    let mut name = mount.source.clone();
    if name.is_empty() {
        // Not drawn: a creation that is repeated after a crash finds the same volume.
        name = anonymous_name(container, &mount.target);
        labels.entry(ANONYMOUS.to_owned()).or_default();
    }
    let mut new = NewVolume { name, driver: driver.name, options: driver.options, labels };
    if options.pinned {
        new.labels.entry(PINNED.to_owned()).or_default();
    }
    let name = volumes.create(new).await?.name;
    let root = match volumes.mount(&name).await {
        Ok(root) => own(&root, options.scratch, options.gid).await.map(|()| root).map_err(PrepareError::Invalid),
        Err(error) => Err(error.into()),
    };
    let place = match root {
        Ok(root) => below(&name, root, &options.subpath).await,
        Err(error) => Err(error),
    };
    match place {
        Ok(source) => Ok(show(mount, "volume", name, source, String::new())),
        Err(error) => {
            if mount.source.is_empty() {
                remove_anonymous(volumes, vec![name]).await;
            }
            Err(error)
        }
    }
}

/// Lets those write to the root of a volume that are meant to: anybody to a task's own, a group to one that is given to it.
async fn own(root: &Path, everybody: bool, group: Option<u32>) -> Result<(), String> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !everybody && group.is_none() {
        return Ok(());
    }
    let root = root.to_owned();
    let change = move || {
        let known = std::fs::metadata(&root)?;
        let mode = known.mode() & 0o7777 | if everybody { 0o777 } else { 0 } | if group.is_some() { 0o2070 } else { 0 };
        if let Some(group) = group.filter(|group| *group != known.gid()) {
            std::os::unix::fs::chown(&root, None, Some(group))?;
        }
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode))
    };
    let changed: std::io::Result<()> =
        tokio::task::spawn_blocking(change).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    changed.map_err(|error| format!("giving the volume to the task's processes: {error}"))
}

/// A path inside a volume. Links in it are its containers' work: what they lead to must be inside, too.
async fn below(name: &str, root: PathBuf, subpath: &str) -> Result<PathBuf, PrepareError> {
    if subpath.is_empty() {
        return Ok(root);
    }
    if !Path::new(subpath).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(PrepareError::Invalid(format!("subpath {subpath} leaves the volume {name}")));
    }
    let real_root = tokio::fs::canonicalize(&root).await;
    let real = tokio::fs::canonicalize(root.join(subpath)).await;
    match (real_root, real) {
        (Ok(root), Ok(path)) if path.starts_with(&root) => Ok(path),
        _ => Err(PrepareError::Invalid(format!("subpath {subpath} does not exist in volume {name}"))),
    }
}

/// Name of the volume that nobody named for `target`: 64 hexadecimal digits.
pub fn anonymous_name(container: ContainerId, target: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(container.0);
    hash.update(target);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The container's volumes that nobody named.
pub fn anonymous(container: ContainerId, mounts: &[ResolvedMount]) -> Vec<String> {
    let own = |m: &&ResolvedMount| m.kind == "volume" && m.name == anonymous_name(container, &m.target);
    mounts.iter().filter(own).map(|m| m.name.clone()).collect()
}

/// Mounts volumes again that have options of their own: a reboot, or the end of their last container, took them away.
///
/// # Errors
/// [`VolumeError`].
pub async fn mount_again(volumes: &Volumes, mounts: &[ResolvedMount]) -> Result<(), VolumeError> {
    for mount in mounts.iter().filter(|mount| mount.kind == "volume") {
        volumes.mount(&mount.name).await?;
    }
    Ok(())
}

/// Removes volumes that nobody named and nobody uses any more. What cannot be removed is logged and stays.
pub(crate) async fn remove_anonymous(volumes: &Volumes, names: Vec<String>) {
    for name in names {
        if let Err(error) = volumes.remove(&name, true, &[]).await {
            tracing::warn!(volume = %name, error = %crate::chain(&error), "removing an anonymous volume");
        }
    }
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
