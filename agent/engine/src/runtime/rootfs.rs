//! A container's root file system: overlay mounts, and paths that stay inside it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

/// How overlays are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OverlayApi {
    /// fsconfig(2) with one `lowerdir+` a layer (Linux 6.8), else mount(2).
    #[default]
    Newest,
    /// mount(2) always.
    Mount,
}

/// What an overlay consists of.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Read-only layers, lowest first; at least one.
    pub layers: &'a [PathBuf],
    /// Directory that takes the changes.
    pub upper: &'a Path,
    /// The kernel's own, empty, on the file system of `upper`.
    pub work: &'a Path,
    /// Where it is mounted.
    pub target: &'a Path,
}

impl Overlay<'_> {
    /// Mounts it.
    ///
    /// # Errors
    /// What the kernel said, after both ways were tried.
    pub fn mount(&self, api: OverlayApi) -> io::Result<()> {
        match api {
            OverlayApi::Newest => self.mount_by_fsconfig().or_else(|_| self.mount_classic()),
            OverlayApi::Mount => self.mount_classic(),
        }
    }

    fn mount_by_fsconfig(&self) -> io::Result<()> {
        // Values have 255 bytes at most: longer paths go through descriptors.
        let mut held = Vec::new();
        let mut value = |path: &Path| -> io::Result<PathBuf> {
            if path.as_os_str().len() < 250 { Ok(path.to_owned()) } else { short(path, &mut held) }
        };
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "overlay")?;
        for layer in self.layers.iter().rev() {
            fsconfig_set_string(&fs, "lowerdir+", value(layer)?)?;
        }
        fsconfig_set_string(&fs, "upperdir", value(self.upper)?)?;
        fsconfig_set_string(&fs, "workdir", value(self.work)?)?;
        fsconfig_create(&fs)?;
        let made = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        Ok(move_mount(&made, "", CWD, self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }

    /// All options share one page, and a colon in a path would split it: every path goes through a descriptor.
    fn mount_classic(&self) -> io::Result<()> {
        let mut held = Vec::new();
        let mut lower = Vec::new();
        for layer in self.layers.iter().rev() {
            lower.push(short(layer, &mut held)?.display().to_string());
        }
        let upper = short(self.upper, &mut held)?;
        let work = short(self.work, &mut held)?;
        let data = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let data = std::ffi::CString::new(data).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(mount("overlay", self.target, "overlay", MountFlags::empty(), Some(data.as_c_str()))?)
    }
}

/// A short name of `path`, good as long as `held` lives.
fn short(path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<PathBuf> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    held.push(fd);
    Ok(name)
}

/// Takes a mount away, at once for new users, in time for those that still hold it. Nothing mounted there is no error.
///
/// # Errors
/// What else the kernel said.
pub fn detach(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Opens `path` inside `root` as a process in the container would: links cannot lead out of it (openat2(2)).
///
/// # Errors
/// As open(2).
pub fn open_in(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = flags | OFlags::CLOEXEC;
    Ok(openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?)
}

/// Reads a file inside `root`, 4 MiB at most.
///
/// # Errors
/// As open(2) and read(2).
pub fn read_in(root: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Opened without waiting, in case an image has a pipe of that name.
    let file = File::from(open_in(root, path, OFlags::RDONLY | OFlags::NONBLOCK)?);
    file.take(4 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes a directory and its parents inside `root`, mode 0755, owned by root, as Docker does for working directories.
///
/// # Errors
/// As mkdir(2); a file in the way is one.
pub fn make_dir_in(root: &Path, path: &Path) -> io::Result<()> {
    let dir = OFlags::PATH | OFlags::DIRECTORY;
    let mut done = PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = open_in(root, &done, dir)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        done.push(name);
    }
    open_in(root, &done, dir).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "outside").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        assert!(read_in(root.path(), Path::new("link/secret")).is_err());
        assert!(make_dir_in(root.path(), Path::new("/link/made")).is_err());
        assert!(!outside.path().join("made").exists());
        make_dir_in(root.path(), Path::new("/a/../b/c")).unwrap();
        assert!(root.path().join("b/c").is_dir() || root.path().join("a/b/c").is_dir());
    }
}
