//! Volumes that are mounts.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use skep_engine::volumes::{NewVolume, VolumeError, Volumes};
use skep_proto::model::Timestamp;

/// Volumes whose mounts go with the test.
struct World {
    volumes: Volumes,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { volumes: open(folder.path()).await, folder }
    }

    async fn create(&self, name: &str, kind: &str, options: &str, device: &str) {
        let options: BTreeMap<_, _> = [("type", kind), ("o", options), ("device", device)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let new = NewVolume { name: name.into(), options, ..NewVolume::default() };
        self.volumes.create(new).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for volume in self.volumes.list() {
            while rustix::mount::unmount(&volume.mountpoint, rustix::mount::UnmountFlags::DETACH).is_ok() {}
        }
        let _ = &self.folder;
    }
}

async fn open(root: &Path) -> Volumes {
    Volumes::open(root.join("volumes"), Arc::new(|| Timestamp(1))).await.unwrap()
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_bind_volume_shows_its_device_while_mounted_and_keeps_it_at_removal() {
    let world = World::new().await;
    let device = world.folder.path().join("device");
    fs::create_dir(&device).unwrap();
    fs::write(device.join("file"), "mine").unwrap();
    world.create("bound", "none", "bind", device.to_str().unwrap()).await;
    let path = world.volumes.mount("bound").await.unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "mine");
    // A second container, and one after a restart, find it mounted.
    world.volumes.mount("bound").await.unwrap();
    open(world.folder.path()).await.mount("bound").await.unwrap();
    world.volumes.unmount("bound").await.unwrap();
    assert!(!path.join("file").exists(), "it was mounted once only");
    world.volumes.mount("bound").await.unwrap();
    world.volumes.remove("bound", false, &[]).await.unwrap();
    assert_eq!(fs::read_to_string(device.join("file")).unwrap(), "mine");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_read_only_bind_volume_refuses_writes() {
    let world = World::new().await;
    world.create("ro", "none", "bind,ro", world.folder.path().to_str().unwrap()).await;
    let path = world.volumes.mount("ro").await.unwrap();
    let error = fs::write(path.join("x"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.volumes.unmount("ro").await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_tmpfs_volume_has_the_size_it_was_given() {
    let world = World::new().await;
    world.create("mem", "tmpfs", "size=64k", "tmpfs").await;
    let path = world.volumes.mount("mem").await.unwrap();
    assert_eq!(rustix::fs::statvfs(&path).unwrap().f_blocks * rustix::fs::statvfs(&path).unwrap().f_frsize, 64 << 10);
    assert!(fs::write(path.join("big"), vec![0; 128 << 10]).is_err());
    world.volumes.unmount("mem").await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_device_that_is_not_there_is_named() {
    let world = World::new().await;
    world.create("gone", "none", "bind", "/nosuch/device").await;
    let error = world.volumes.mount("gone").await.unwrap_err();
    assert!(matches!(&error, VolumeError::Mount { device, .. } if device == "/nosuch/device"), "{error}");
}
