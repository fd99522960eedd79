//! Network namespaces kept by a file: made, opened, entered for the length of a closure, removed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// Magic number of the namespace file system (include/uapi/linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace, held open.
#[derive(Debug, Clone)]
pub struct Netns(Arc<OwnedFd>);

impl Netns {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is missing or no descriptor is left.
    pub fn current() -> io::Result<Self> {
        Self::open_file(Path::new(OWN))
    }

    /// The namespace that `path` keeps.
    ///
    /// # Errors
    /// When the file is missing, or is no namespace: after a reboot only the empty file is left of one.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !is_namespace(path)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} keeps no namespace", path.display())));
        }
        Self::open_file(path)
    }

    fn open_file(path: &Path) -> io::Result<Self> {
        let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(Arc::new(fd)))
    }

    /// Makes a namespace kept by `path`. Whatever `path` kept before is let go.
    ///
    /// # Errors
    /// Those of unshare(2) and mount(2).
    pub fn create(path: &Path) -> io::Result<Self> {
        remove(path)?;
        fs::File::create(path)?;
        let home = Self::current()?;
        // SAFETY: only the network namespace of this thread changes; no other thread's view of files, memory or
        // credentials does. It is left again before this function returns.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
        let made = mount_bind(OWN, path).map_err(io::Error::from).and_then(|()| Self::current());
        return_to(&home);
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Runs `f` on this thread inside the namespace. `f` must not block for long nor start threads or tasks.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let home = Home(Self::current()?);
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
        let result = f();
        drop(home);
        Ok(result)
    }

    /// The open file, for attributes that name a namespace by descriptor.
    pub fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the thread to its namespace, also when the closure panics.
struct Home(Netns);

impl Drop for Home {
    fn drop(&mut self) {
        return_to(&self.0);
    }
}

/// A thread that cannot return would configure the wrong namespace from then on: better no process at all.
fn return_to(home: &Netns) {
    if let Err(error) = move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network)) {
        tracing::error!(%error, "cannot return to the node's network namespace");
        std::process::abort();
    }
}

/// Whether `path` is a namespace file and not just the file that one was mounted on.
fn is_namespace(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == NSFS_MAGIC)
}

/// Lets go of the namespace that `path` keeps, if any. It ends when its last process and socket have gone.
///
/// # Errors
/// Those of umount(2) and unlink(2).
pub fn remove(path: &Path) -> io::Result<()> {
    match is_namespace(path) {
        Ok(true) => unmount(path, UnmountFlags::DETACH)?,
        Ok(false) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_file(path)
}

/// Makes the folder a private mount, so that namespaces mounted below it do not spread into other mount namespaces and
/// stay alive there.
///
/// # Errors
/// Those of mount(2).
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let path: PathBuf = path.canonicalize()?;
    let mounted = fs::read_to_string("/proc/thread-self/mountinfo")?
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path));
    if !mounted {
        rustix::mount::mount_bind(&path, &path)?;
    }
    mount_change(&path, MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Takes back [`private_folder`].
///
/// # Errors
/// Those of umount(2).
pub fn release_folder(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        // Not mounted, or not there.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}
