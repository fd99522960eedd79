//! The directory that a layer is unpacked into, reached through its descriptor only.
//!
//! Parents are opened by openat2(2) with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, so that no symbolic link of the
//! archive leads out, and the last few are kept open: most entries share a parent with the one before.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    self, AtFlags, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tarstream::{Entry, Kind, TarStream};
use super::{ArchiveError, shown};

/// Open parents kept. Archives go through a tree depth first, so few are enough.
const MAX_OPEN: usize = 64;
/// Bytes of a file copied at a time.
const COPY_BUFFER: usize = 128 * 1024;
/// Bytes of directory paths kept until the end, for their times. 128 MiB is 2 million directories of common depth.
const MAX_KEPT_PATHS: usize = 128 << 20;
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// The directory, and what is known of it.
pub struct Tree {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Directories in the order they came, with their times, which every file made in them changes.
    times: Vec<(Vec<u8>, (i64, u32))>,
    kept: usize,
    buffer: Vec<u8>,
}

type Components<'a> = [&'a [u8]];

impl Tree {
    /// Opens the existing directory `root`.
    pub fn open(root: &Path) -> Result<Self, ArchiveError> {
        let root = fs::open(root, DIRECTORY, Mode::empty()).map_err(io::Error::from)?;
        Ok(Self { root: Rc::new(root), open: HashMap::new(), times: Vec::new(), kept: 0, buffer: vec![0; COPY_BUFFER] })
    }

    /// Sets the directories' times, deepest last entries first, and flushes the file system.
    pub fn finish(&mut self) -> Result<(), ArchiveError> {
        self.open.clear();
        for (path, time) in std::mem::take(&mut self.times) {
            // A directory may have been replaced by something else since.
            if let Ok(fd) = self.open_beneath(&path) {
                fs::futimens(&fd, &timestamps(time)).map_err(|e| failed(&path, e))?;
            }
        }
        fs::syncfs(&*self.root).map_err(io::Error::from)?;
        Ok(())
    }

    /// Makes a regular file with the archive's current content.
    pub fn write_file<R: Read>(
        &mut self,
        path: &Components<'_>,
        entry: &Entry,
        content: &mut TarStream<R>,
    ) -> Result<(), ArchiveError> {
        let file = self.create_file(path, entry)?;
        let mut left = entry.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            content.read_exact(&mut self.buffer[..want])?;
            write_all(&file, &self.buffer[..want], None).map_err(|e| failed(&entry.path, e))?;
            left -= want as u64;
        }
        dress_file(&file, entry)
    }

    /// Makes a file with holes.
    pub fn write_sparse<R: Read>(
        &mut self,
        path: &Components<'_>,
        entry: &Entry,
        pieces: &[(u64, u64)],
        content: &mut TarStream<R>,
    ) -> Result<(), ArchiveError> {
        let file = self.create_file(path, entry)?;
        fs::ftruncate(&file, entry.size).map_err(|e| failed(&entry.path, e))?;
        for (offset, length) in pieces {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                content.read_exact(&mut self.buffer[..want])?;
                write_all(&file, &self.buffer[..want], Some(at)).map_err(|e| failed(&entry.path, e))?;
                at += want as u64;
                left -= want as u64;
            }
        }
        dress_file(&file, entry)
    }

    /// Makes a directory, or gives the one that exists new owner, mode and times.
    pub fn make_directory(&mut self, path: &Components<'_>, entry: &Entry) -> Result<(), ArchiveError> {
        let fd = match path.split_last() {
            None => self.root.clone(),
            Some((name, parent)) => {
                let parent = self.parent(parent)?;
                Rc::new(self.ensure_directory(&parent, name).map_err(|e| failed(&entry.path, e))?)
            }
        };
        own(&*fd, entry)?;
        fs::fchmod(&*fd, Mode::from_raw_mode(entry.mode)).map_err(|e| failed(&entry.path, e))?;
        for (name, value) in wanted_xattrs(entry) {
            set_xattr(fs::fsetxattr(&*fd, name, value, XattrFlags::empty()), entry)?;
        }
        let joined = path.join(&b'/');
        self.kept += joined.len() + size_of::<(Vec<u8>, (i64, u32))>();
        if self.kept > MAX_KEPT_PATHS {
            return Err(ArchiveError::TooManyEntries { limit: self.times.len() as u64 });
        }
        self.times.push((joined, entry.mtime));
        Ok(())
    }

    /// Makes a symbolic link. Its target is never followed here, so it may be any text.
    pub fn make_symlink(&mut self, path: &Components<'_>, entry: &Entry) -> Result<(), ArchiveError> {
        let (name, parent) = self.place(path, &entry.path)?;
        self.replacing(&parent, name, &entry.path, || fs::symlinkat(entry.link.as_slice(), &*parent, name))?;
        self.dress_node(&parent, name, entry)
    }

    /// Makes a device or named pipe.
    pub fn make_node(&mut self, path: &Components<'_>, entry: &Entry) -> Result<(), ArchiveError> {
        let (name, parent) = self.place(path, &entry.path)?;
        let (kind, device): (FileType, Dev) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, fs::makedev(entry.device.0, entry.device.1)),
            Kind::BlockDevice => (FileType::BlockDevice, fs::makedev(entry.device.0, entry.device.1)),
            _ => (FileType::Fifo, 0),
        };
        self.replacing(&parent, name, &entry.path, || {
            fs::mknodat(&*parent, name, kind, Mode::from_raw_mode(0o600), device)
        })?;
        self.dress_node(&parent, name, entry)?;
        // After the owner, whose change drops setuid bits. It cannot be a link: it was just made.
        fs::chmodat(&*parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(|e| failed(&entry.path, e))?;
        fs::utimensat(&*parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(&entry.path, e))
    }

    /// Makes a hard link to an earlier entry of the layer.
    pub fn make_hard_link(&mut self, path: &Components<'_>, target: &Components<'_>) -> Result<(), ArchiveError> {
        let shown_path = path.join(&b'/');
        let (name, parent) = self.place(path, &shown_path)?;
        let (target_name, target_parent) =
            target.split_last().ok_or_else(|| ArchiveError::Escape { path: "/".into() })?;
        let missing = || ArchiveError::Entry {
            path: shown(&shown_path),
            reason: format!("the layer has no {:?} for it to be a hard link to", shown(&target.join(&b'/'))),
        };
        let target_parent = self.open_dir(target_parent).map_err(|_| missing())?;
        if target_parent.as_raw_fd() == parent.as_raw_fd() && *target_name == name {
            return Ok(());
        }
        let link = || fs::linkat(&*target_parent, *target_name, &*parent, name, AtFlags::empty());
        match self.replacing(&parent, name, &shown_path, link) {
            Err(ArchiveError::Entry { .. })
                if fs::statat(&*target_parent, *target_name, AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT) =>
            {
                Err(missing())
            }
            result => result,
        }
    }

    /// Marks that lower layers' `name` is gone.
    pub fn make_whiteout(&mut self, parent: &Components<'_>, name: &[u8]) -> Result<(), ArchiveError> {
        let parent = self.parent(parent)?;
        match fs::mknodat(&*parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            // The layer has both the name and its whiteout, which then hides only what lower layers have there.
            Err(Errno::EXIST) => match fs::openat(&*parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(directory) => set_opaque(&directory).map_err(|e| failed(name, e)),
                Err(_) => Ok(()),
            },
            Err(e) => Err(failed(name, e)),
        }
    }

    /// Marks that a directory hides lower layers' content.
    pub fn make_opaque(&mut self, path: &Components<'_>) -> Result<(), ArchiveError> {
        let fd = self.parent(path)?;
        set_opaque(&fd).map_err(|e| failed(&path.join(&b'/'), e))
    }

    fn create_file(&mut self, path: &Components<'_>, entry: &Entry) -> Result<OwnedFd, ArchiveError> {
        let (name, parent) = self.place(path, &entry.path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.replacing(&parent, name, &entry.path, || fs::openat(&*parent, name, flags, Mode::from_raw_mode(0o600)))
    }

    /// Owner and attributes of what has no content and cannot be opened without effects.
    fn dress_node(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), ArchiveError> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(&entry.path, e))?;
        for (attribute, value) in wanted_xattrs(entry) {
            // There is no setxattrat(2) before Linux 6.13; the parent's descriptor cannot be moved under us.
            let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
            set_xattr(fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty()), entry)?;
        }
        fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(&entry.path, e))
    }

    /// The directory `name`, made where it is missing, in place of whatever else has the name. In place of a whiteout it
    /// is opaque: the layer hides what lower layers have there, and adds a directory of its own.
    fn ensure_directory(&mut self, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        let open = || fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        match fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => open(),
            Err(Errno::EXIST) => {
                if let Ok(directory) = open() {
                    return Ok(directory);
                }
                let hides_lower = is_whiteout(parent, name);
                self.remove(parent, name)?;
                fs::mkdirat(parent, name, Mode::RWXU)?;
                let directory = open()?;
                if hides_lower {
                    set_opaque(&directory)?;
                }
                Ok(directory)
            }
            Err(e) => Err(e),
        }
    }

    /// Splits a path into its name and its open parent.
    fn place<'a>(&mut self, path: &Components<'a>, shown_path: &[u8]) -> Result<(&'a [u8], Rc<OwnedFd>), ArchiveError> {
        let Some((name, parent)) = path.split_last() else {
            return Err(ArchiveError::Entry { path: shown(shown_path), reason: "the root is a directory".into() });
        };
        Ok((name, self.parent(parent)?))
    }

    /// Runs `make`, which must not replace anything; removes what is in its way and runs it again.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        shown_path: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, ArchiveError> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name).map_err(|e| failed(shown_path, e))?;
                make().map_err(|e| failed(shown_path, e))
            }
            result => result.map_err(|e| failed(shown_path, e)),
        }
    }

    /// The open directory at `path`, made with mode 0755 where it is missing.
    fn parent(&mut self, path: &Components<'_>) -> Result<Rc<OwnedFd>, ArchiveError> {
        match self.open_dir(path) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT) => {
                let (name, above) = path.split_last().expect("the root exists");
                let above = self.parent(above)?;
                match fs::mkdirat(&*above, *name, Mode::from_raw_mode(0o755)) {
                    // A dangling symbolic link has the name, and what it names is not made for it.
                    Ok(()) => self.open_dir(path).map_err(|e| failed(&path.join(&b'/'), e)),
                    Err(e) => Err(failed(&path.join(&b'/'), e)),
                }
            }
            // Perhaps a whiteout has the name, and the archive leaves the directory's own entry out.
            Err(Errno::NOTDIR) if !path.is_empty() => {
                let (name, above) = path.split_last().expect("the path is not empty");
                let above = self.parent(above)?;
                if !is_whiteout(&above, name) {
                    return Err(failed(&path.join(&b'/'), Errno::NOTDIR));
                }
                let made = self.ensure_directory(&above, name).map_err(|e| failed(&path.join(&b'/'), e))?;
                fs::fchmod(&made, Mode::from_raw_mode(0o755)).map_err(|e| failed(&path.join(&b'/'), e))?;
                self.open_dir(path).map_err(|e| failed(&path.join(&b'/'), e))
            }
            Err(e) => Err(failed(&path.join(&b'/'), e)),
        }
    }

    fn open_dir(&mut self, path: &Components<'_>) -> rustix::io::Result<Rc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        let key = path.join(&b'/');
        if let Some(fd) = self.open.get(&key) {
            return Ok(fd.clone());
        }
        let fd = Rc::new(self.open_beneath(&key)?);
        if self.open.len() >= MAX_OPEN {
            self.open.clear();
        }
        self.open.insert(key, fd.clone());
        Ok(fd)
    }

    fn open_beneath(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match fs::openat2(&*self.root, path, DIRECTORY, Mode::empty(), resolve) {
                // The kernel could not tell whether a rename elsewhere interfered.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Removes `name` and all below it. Descriptors kept open may belong to what is gone, so none is kept.
    fn remove(&mut self, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        match fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {
                // It may have been a symbolic link to a directory.
                self.open.clear();
                Ok(())
            }
            Err(Errno::ISDIR) => {
                self.open.clear();
                remove_directory(parent, name)
            }
            Err(e) => Err(e),
        }
    }
}

/// Removes a directory tree without following links. Depth is bounded by the longest path that the archive could make.
fn remove_directory(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    // Through the descriptor's path, so that the standard library's careful removal can be used.
    let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
    std::fs::remove_dir_all(Path::new(std::ffi::OsStr::from_bytes(&path)))
        .map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

fn is_whiteout(parent: &OwnedFd, name: &[u8]) -> bool {
    fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// Lower layers' content of the directory does not show (kernel, overlayfs.rst, "whiteouts and opaque directories").
fn set_opaque(directory: &OwnedFd) -> rustix::io::Result<()> {
    fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
}

/// Owner, mode, attributes and time of a file, in the order that keeps each: a new owner drops setuid bits and
/// capabilities, an attribute changes no time.
fn dress_file(file: &OwnedFd, entry: &Entry) -> Result<(), ArchiveError> {
    own(file, entry)?;
    fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(|e| failed(&entry.path, e))?;
    for (name, value) in wanted_xattrs(entry) {
        set_xattr(fs::fsetxattr(file, name, value, XattrFlags::empty()), entry)?;
    }
    fs::futimens(file, &timestamps(entry.mtime)).map_err(|e| failed(&entry.path, e))
}

fn own(fd: impl AsFd, entry: &Entry) -> Result<(), ArchiveError> {
    fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(|e| failed(&entry.path, e))
}

/// Attributes that are kept: not those that steer overlayfs itself, nor labels of the host where the image was built.
fn wanted_xattrs(entry: &Entry) -> impl Iterator<Item = (&[u8], &[u8])> {
    entry.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).filter(|(name, _)| {
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        let label = name.starts_with(b"security.") && *name != b"security.capability";
        !overlay && !label && !name.contains(&0)
    })
}

/// An attribute that the file system does not take is left out, as Docker does.
fn set_xattr(result: rustix::io::Result<()>, entry: &Entry) -> Result<(), ArchiveError> {
    match result {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        Err(e) => Err(failed(&entry.path, e)),
    }
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: Option<u64>) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = match at {
            Some(offset) => rustix::io::pwrite(file, bytes, offset),
            None => rustix::io::write(file, bytes),
        };
        match written {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                bytes = &bytes[n..];
                at = at.map(|offset| offset + n as u64);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A full disk is the node's fault, anything else the entry's.
fn failed(path: &[u8], error: Errno) -> ArchiveError {
    match error {
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS => ArchiveError::Io(error.into()),
        _ => ArchiveError::Entry { path: shown(path), reason: io::Error::from(error).to_string() },
    }
}
