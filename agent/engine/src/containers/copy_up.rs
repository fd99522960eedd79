//! Gives a new volume the image's content of the place where it is mounted, as Docker does for named volumes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::OFlags;

use super::record::Record;
use super::run::Paths;
use crate::runtime::rootfs::{self, Overlay, OverlayApi};

/// Fills those volumes of the container that are empty and want it.
pub fn fill_volumes(record: &Record, paths: &Paths) -> io::Result<()> {
    let wanting: Vec<_> = record
        .mounts()
        .into_iter()
        .filter(|m| m.kind == "volume" && is_empty(&m.source))
        .filter(|m| {
            let wish = record.config.spec.mounts.iter().find(|w| w.target == m.target);
            !wish.and_then(|w| w.volume.as_ref()).is_some_and(|v| v.no_copy)
        })
        .collect();
    if wanting.is_empty() {
        return Ok(());
    }
    let (upper, work, target) = (paths.upper(), paths.work(), paths.rootfs());
    Overlay { layers: &record.layers, upper: &upper, work: &work, target: &target }.mount(OverlayApi::default())?;
    let copied = wanting.iter().try_for_each(|m| copy_target(&target, Path::new(&m.target), &m.source));
    rootfs::detach(&target)?;
    copied
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Copies the directory `target` of the mounted image, if it has one.
fn copy_target(root: &Path, target: &Path, volume: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let dir = match rootfs::open_in(root, target, OFlags::PATH | OFlags::DIRECTORY) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        other => other?,
    };
    // Through the descriptor, so that nothing can be put in its place.
    let source = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    copy_dir(&source, volume)
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = fs::symlink_metadata(&source)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_dir(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            chown(&target, Some(meta.uid()), Some(meta.gid()))?;
            // After the owner: chown clears the set-user-id bit.
            fs::set_permissions(&target, meta.permissions())?;
        } else if kind.is_fifo() {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &target,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(meta.permissions().mode()),
                0,
            )?;
        }
        // Sockets and devices have no business in a volume.
    }
    let meta = fs::metadata(from)?;
    chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())
}
