//! Credentials on disk: `node.pem` (key and certificate) and `roots.pem`, both readable by their owner only. While managers
//! are locked, a manager's key is sealed.
//!
//! Key and certificate share a file, so one rename swaps both: no crash can leave a key with another's certificate.
//! Roots are written before: while a root is being replaced the list holds both, so either `node.pem` fits it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::model::NodeRole;

use crate::credentials::{Credentials, CredentialsError};
use crate::key::NodeKey;
use crate::pem;
use crate::seal::NodeSeal;

/// The directory with a node's credentials, `ca/` under the daemon's root.
///
/// Clones share how the key is sealed.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
    /// Held while files are written, so that nobody writes what another has just sealed otherwise.
    seal: Arc<Mutex<Sealing>>,
}

/// How the node's key is read and written.
#[derive(Debug, Default)]
struct Sealing {
    /// Opens a key that is sealed.
    opens: Option<NodeSeal>,
    /// Keys of managers are written sealed.
    seals: bool,
}

/// PEM label of a sealed key.
const SEALED: &str = "SKEP SEALED KEY";

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
    /// The node's key is sealed, and its seal is not known or not the right one.
    #[error("the node's key is sealed: unlock this manager with `docker swarm unlock`")]
    Locked,
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
        Self { dir: dir.into(), seal: Arc::default() }
    }

    /// Opens a key that is sealed with `seal` from now on; how it is written does not change.
    pub fn unlock(&self, seal: NodeSeal) {
        self.sealing().opens = Some(seal);
    }

    /// Seals the key of a manager with `seal` from now on, or writes it as it is. `credentials`, those in force, are written
    /// anew where that changes anything.
    ///
    /// # Errors
    /// When the disk refuses; nothing changes then.
    pub fn set_seal(&self, seal: Option<NodeSeal>, credentials: &Credentials) -> Result<(), DiskError> {
        let mut sealing = self.sealing();
        if (sealing.seals, sealing.opens.as_ref()) == (seal.is_some(), seal.as_ref().or(sealing.opens.as_ref())) {
            let is_sealed = self.read("node.pem")?.is_some_and(|text| text.contains(SEALED));
            let is_manager = credentials.identity.role == NodeRole::Manager;
            if is_sealed == (sealing.seals && is_manager) {
                return Ok(());
            }
        }
        let new = Sealing { seals: seal.is_some(), opens: seal.or_else(|| sealing.opens.clone()) };
        self.write(credentials, &new)?;
        *sealing = new;
        Ok(())
    }

    fn sealing(&self) -> MutexGuard<'_, Sealing> {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the credentials; `None` when this node has not joined.
    ///
    /// # Errors
    /// When they cannot be read, are unusable, or [`DiskError::Locked`].
    pub fn load(&self) -> Result<Option<Credentials>, DiskError> {
        let Some(mut node) = self.read("node.pem")? else { return Ok(None) };
        if let Some(sealed) = pem::block(SEALED, &node) {
            let opened = self.sealing().opens.as_ref().and_then(|seal| seal.open(&sealed));
            let key = opened.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(DiskError::Locked)?;
            node = key + &node;
        }
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
        let sealing = self.sealing();
        self.write(credentials, &sealing)
    }

    fn write(&self, credentials: &Credentials, sealing: &Sealing) -> Result<(), DiskError> {
        let mut node = credentials.node_pem();
        // A worker has nothing that could open it.
        if let Some(seal) = sealing.opens.as_ref().filter(|_| sealing.seals)
            && credentials.identity.role == NodeRole::Manager
        {
            node = pem::encode(SEALED, &seal.seal(credentials.key_pem().as_bytes())) + &credentials.chain_pem();
        }
        fs::create_dir_all(&self.dir).map_err(io_error("create", &self.dir))?;
        self.replace("roots.pem", &credentials.roots_pem())?;
        self.replace("node.pem", &node)
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
    use crate::fixture::{Root, credentials, manager_credentials};

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
    fn a_sealed_key_is_read_with_its_seal_only() {
        let dir = tempfile::tempdir().unwrap();
        let made = manager_credentials(&Root::new(), 7);
        let (disk, seal) = (Disk::new(dir.path()), NodeSeal::new([3; 32]));
        disk.save(&made).unwrap();
        disk.set_seal(Some(seal.clone()), &made).unwrap();
        let text = fs::read_to_string(dir.path().join("node.pem")).unwrap();
        assert!(!text.contains("PRIVATE KEY"), "{text}");
        assert!(matches!(Disk::new(dir.path()).load(), Err(DiskError::Locked)));
        let other = Disk::new(dir.path());
        other.unlock(NodeSeal::new([4; 32]));
        assert!(matches!(other.load(), Err(DiskError::Locked)));
        other.unlock(seal);
        assert_eq!(other.load().unwrap().unwrap().node_pem(), made.node_pem());
        other.set_seal(None, &made).unwrap();
        assert_eq!(Disk::new(dir.path()).load().unwrap().unwrap().node_pem(), made.node_pem());
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
