//! Credentials on disk: `node.pem` (key and certificate) and `roots.pem`, both readable by their owner only.
//!
//! Key and certificate share a file, so one rename swaps both: no crash can leave a key with another's certificate.
//! Roots are written before: while a root is being replaced the list holds both, so either `node.pem` fits it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::credentials::{Credentials, CredentialsError};
use crate::key::NodeKey;

/// The directory with a node's credentials, `ca/` under the daemon's root.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
}

/// Credentials cannot be read from or written to disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The files are there, but do not make credentials.
    #[error(
        "the credentials in {path} are unusable; restore them from a backup, or remove the directory and join again"
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: CredentialsError,
    },
}

impl Disk {
    /// The credentials in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Reads the credentials; `None` when this node has not joined.
    ///
    /// # Errors
    /// When they cannot be read, or are unusable.
    pub fn load(&self) -> Result<Option<Credentials>, DiskError> {
        let Some(node) = self.read("node.pem")? else { return Ok(None) };
        let roots = self.read("roots.pem")?.unwrap_or_default();
        let credentials = NodeKey::from_pem(&node)
            .map_err(CredentialsError::from)
            .and_then(|key| Credentials::new(key, &node, &roots))
            .map_err(|source| DiskError::Unusable { path: self.dir.clone(), source })?;
        Ok(Some(credentials))
    }

    /// Replaces the credentials, durably.
    ///
    /// # Errors
    /// When the disk refuses; the former credentials are then still whole.
    pub fn save(&self, credentials: &Credentials) -> Result<(), DiskError> {
        fs::create_dir_all(&self.dir).map_err(io_error("create", &self.dir))?;
        self.replace("roots.pem", &credentials.roots_pem())?;
        self.replace("node.pem", &credentials.node_pem())
    }

    /// Forgets the credentials: the node has left its cluster.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self) -> Result<(), DiskError> {
        for name in ["node.pem", "roots.pem"] {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(e)),
                _ => {}
            }
        }
        match sync_dir(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("sync", &self.dir)(e)),
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>, DiskError> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    fn replace(&self, name: &str, text: &str) -> Result<(), DiskError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        let write = || -> io::Result<()> {
            // One left by a crash might be readable by others: never write into it.
            match fs::remove_file(&new) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_dir(&self.dir)
        };
        write().map_err(io_error("write", &path))
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::fixture::{Root, credentials};

    #[test]
    fn what_is_saved_is_loaded_and_only_the_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().join("ca"));
        assert!(disk.load().unwrap().is_none());
        let made = credentials(&Root::new(), 7);
        disk.save(&made).unwrap();
        let read = disk.load().unwrap().unwrap();
        assert_eq!(
            (read.identity, read.node_pem(), read.roots_pem()),
            (made.identity, made.node_pem(), made.roots_pem())
        );
        for name in ["node.pem", "roots.pem"] {
            let mode = fs::metadata(dir.path().join("ca").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        disk.remove().unwrap();
        assert!(disk.load().unwrap().is_none());
    }

    #[test]
    fn a_crash_at_any_step_of_a_replacement_leaves_whole_credentials() {
        let root = Root::new();
        let (old, new) = (credentials(&root, 7), credentials(&root, 7));
        // After each step of `save`: leftovers of the temporary files, then one file replaced, then both.
        for step in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::new(dir.path());
            disk.save(&old).unwrap();
            if step > 0 {
                fs::write(dir.path().join(".roots.pem.new"), "half").unwrap();
            }
            if step > 1 {
                fs::rename(dir.path().join(".roots.pem.new"), dir.path().join("x")).unwrap();
                disk.replace("roots.pem", &new.roots_pem()).unwrap();
                fs::write(dir.path().join(".node.pem.new"), &new.node_pem()[..50]).unwrap();
            }
            if step > 2 {
                disk.replace("node.pem", &new.node_pem()).unwrap();
            }
            let expected = if step > 2 { &new } else { &old };
            assert_eq!(disk.load().unwrap().unwrap().node_pem(), expected.node_pem());
        }
    }

    #[test]
    fn files_that_do_not_fit_together_are_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        disk.save(&credentials(&Root::new(), 7)).unwrap();
        for broken in [Root::new().pem(), String::new(), "nonsense".into()] {
            fs::write(dir.path().join("roots.pem"), broken).unwrap();
            let error = disk.load().unwrap_err();
            assert!(matches!(error, DiskError::Unusable { .. }) && error.to_string().contains("join again"), "{error}");
        }
    }
}
