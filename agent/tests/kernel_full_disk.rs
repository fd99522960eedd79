//! A disk that is full: what is kept there is refused with a reason, and kept again once there is room.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::sync::Arc;

use rustix::mount::{MountFlags, UnmountFlags};
use skep_agent::state::{self, StateError, Write};
use skep_engine::images::{ImageError, Images, ImagesConfig, Import};
use skep_proto::model::Timestamp;

/// A small file system, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("skep-test", dir.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("fill")).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("fill")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_agent_s_state_is_written_again_once_there_is_room() {
    let disk = Disk::new("16m");
    let path = disk.path().join("agent.redb");
    let (state, _, writer) = state::open(&path).unwrap();
    let running = tokio::spawn(writer.run());
    state.write(vec![Write::number("index", 1)]).await.unwrap();
    disk.fill();
    // Until the file has to grow.
    let big = |n: u8| Write::Put { table: state::Table::Meta, key: vec![b'k', n], value: vec![n; 200_000].into() };
    let mut refused = None;
    for n in 0..100 {
        refused = state.write(vec![big(n)]).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert!(matches!(refused, Some(StateError::Write { .. })), "the disk was never full");
    disk.free();
    state.write(vec![Write::number("index", 2)]).await.unwrap();
    drop(state);
    running.await.unwrap();
    assert_eq!(state::open(&path).unwrap().1.index, 2);
}

#[tokio::test]
#[ignore = "needs root"]
async fn names_of_images_are_kept_again_once_there_is_room() {
    let disk = Disk::new("64m");
    let images = Images::open(ImagesConfig::new(disk.path().to_owned()), Arc::new(|| Timestamp(1))).await.unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", &b"x"[..]).unwrap();
    let upload = bytes::Bytes::from(archive.into_inner().unwrap());
    let import = Import { reference: Some("box:1".into()), ..Import::default() };
    images.import(Box::pin(futures_util::stream::iter([Ok(upload)])), import).await.unwrap();
    images.tag("box:1", "before:1").await.unwrap();
    disk.fill();
    let mut refused = None;
    let mut names = 0;
    while refused.is_none() {
        names += 1;
        assert!(names < 20_000, "the disk was never full");
        refused = images.tag("box:1", &format!("{}:{names}", "n".repeat(200))).await.err();
    }
    assert!(matches!(refused, Some(ImageError::Storage { .. })), "{refused:?}");
    disk.free();
    images.tag("box:1", "after:1").await.unwrap();
    assert!(images.get("after:1").is_ok());
    assert!(images.get("before:1").is_ok());
}
