//! Files of a container that must not reach a disk: written into a file system in memory of its own. Blocking.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

use super::ContainerFile;
use crate::runtime::rootfs;

/// Writes the files below `dir`, where a new file system in memory is mounted; gives each with its path in the container.
/// It goes with [`rootfs::detach`], and while a container holds it, with that. Nothing is mounted for no files.
///
/// # Errors
/// What the kernel said; nothing stays mounted then.
pub fn write(dir: &Path, files: &[ContainerFile]) -> io::Result<Vec<(PathBuf, String)>> {
    // An earlier run that could not be cleaned up.
    rootfs::detach(dir)?;
    if files.is_empty() {
        return Ok(Vec::new());
    }
    fs::create_dir_all(dir)?;
    mount_memory(dir, files)?;
    let written = files.iter().enumerate().map(|(number, file)| {
        let path = dir.join(number.to_string());
        let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        opened.write_all(&file.data)?;
        chown(&path, Some(file.uid), Some(file.gid))?;
        // After the owner, whose change would clear set-id bits.
        opened.set_permissions(fs::Permissions::from_mode(file.mode))?;
        Ok((path, file.target.clone()))
    });
    let written: io::Result<Vec<_>> = written.collect();
    if written.is_err() {
        let _ = rootfs::detach(dir);
    }
    written
}

/// Never swapped out where the kernel can promise that (`noswap`, Linux 6.4).
fn mount_memory(dir: &Path, files: &[ContainerFile]) -> io::Result<()> {
    // Whole pages, and one for the directory.
    let pages: usize = files.iter().map(|file| file.data.len() / 4096 + 2).sum();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let with = |more: &str| {
        let options = CString::new(format!("mode=0700,size={}{more}", (pages + 16) * 4096))?;
        Ok::<(), io::Error>(mount("tmpfs", dir, "tmpfs", flags, Some(options.as_c_str()))?)
    };
    with(",noswap").or_else(|_| with(""))
}
