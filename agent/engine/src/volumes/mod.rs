//! Volumes of one node: folders with a name, kept until somebody removes them.
//!
//! ```text
//! volumes/<name>/_data          the content
//! volumes/<name>/volume.json    labels, options, time
//! volumes/.tmp-<random>         being made or removed; deleted at open
//! ```
//! A volume appears and goes by rename(2), so one that has its name is whole. Entry: [`Volumes`].

mod mount;
mod options;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use skep_proto::model::engine::Volume;
use skep_proto::model::{Labels, Timestamp};

pub use crate::images::Clock;

/// The only driver.
const DRIVER: &str = "local";
/// Label of volumes whose name was drawn, which `docker volume prune` goes by.
const ANONYMOUS: &str = "com.docker.volume.anonymous";
const TMP_PREFIX: &str = ".tmp-";
const NOTE: &str = "volume.json";
const CONTENT: &str = "_data";

/// Why a volume operation did not happen. Docker's words where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// The name breaks the rules.
    #[error("{0}")]
    InvalidName(String),
    /// The options make no mount.
    #[error("{0}")]
    InvalidOption(String),
    /// No such driver.
    #[error("error looking up volume plugin {0}: plugin {0:?} not found")]
    NoSuchDriver(String),
    /// Containers use it.
    #[error("remove {name}: volume is in use - [{}]", containers.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// Ids of the containers.
        containers: Vec<String>,
    },
    /// What its options ask for cannot be mounted.
    #[error("error while mounting volume '{}': failed to mount local volume: mount {device}:{}", target.display(), target.display())]
    Mount {
        /// The volume.
        name: String,
        /// Where.
        target: PathBuf,
        /// What.
        device: String,
        /// Why not.
        source: io::Error,
    },
    /// The node's own storage does not work.
    #[error("{context}")]
    Storage {
        /// What was being done.
        context: String,
        /// What broke.
        source: io::Error,
    },
}

/// A volume to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Name; empty to draw one.
    pub name: String,
    /// Driver; empty for `local`.
    pub driver: String,
    /// Driver options: `type`, `device`, `o`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: Labels,
}

/// The volumes of this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    root: PathBuf,
    clock: Clock,
    /// By name. Held while folders change, so that memory and disk agree.
    known: Mutex<BTreeMap<String, Volume>>,
}

/// What is kept beside the content.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Of this file, so that a later release knows what it reads.
    format: u32,
    created_at: Timestamp,
    labels: Labels,
    options: BTreeMap<String, String>,
}

impl Volumes {
    /// Opens the volumes in `root`, the daemon's `volumes/` folder, made if it is missing.
    ///
    /// # Errors
    /// [`VolumeError::Storage`].
    pub async fn open(root: PathBuf, clock: Clock) -> Result<Self, VolumeError> {
        blocking(move || {
            make_folder(&root)?;
            let known = read_all(&root)?;
            Ok(Self(Arc::new(Inner { root, clock, known: Mutex::new(known) })))
        })
        .await
    }

    /// All volumes, by name. Reads memory only.
    pub fn list(&self) -> Vec<Volume> {
        self.0.known().values().cloned().collect()
    }

    /// One volume. Reads memory only.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        self.0.known().get(name).cloned().ok_or_else(|| VolumeError::NotFound(name.to_owned()))
    }

    /// Makes a volume, or gives the one that has the name, whatever its options. An empty name draws one.
    ///
    /// # Errors
    /// [`VolumeError::InvalidName`], [`VolumeError::InvalidOption`], [`VolumeError::NoSuchDriver`].
    pub async fn create(&self, mut new: NewVolume) -> Result<Volume, VolumeError> {
        if !matches!(new.driver.as_str(), "" | DRIVER) {
            return Err(VolumeError::NoSuchDriver(new.driver));
        }
        if new.name.is_empty() {
            new.name = hex::encode(rand::random::<[u8; 32]>());
            new.labels.entry(ANONYMOUS.to_owned()).or_default();
        }
        options::check_name(&new.name)?;
        options::parse(&new.name, &new.options)?;
        let inner = self.0.clone();
        blocking(move || inner.create(new)).await
    }

    /// Removes a volume and its content. `containers` are the ids of those that use it. With `force` a volume that does
    /// not exist is no error.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::InUse`].
    pub async fn remove(&self, name: &str, force: bool, containers: &[String]) -> Result<(), VolumeError> {
        if !containers.is_empty() {
            return Err(VolumeError::InUse { name: name.to_owned(), containers: containers.to_vec() });
        }
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking(move || match inner.remove(&name) {
            Err(VolumeError::NotFound(_)) if force => Ok(()),
            result => result,
        })
        .await
    }

    /// Makes the volume ready for a container: mounts what its options ask for, if it is not mounted yet. Gives the
    /// folder that the container gets.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::Mount`].
    pub async fn mount(&self, name: &str) -> Result<PathBuf, VolumeError> {
        let volume = self.get(name)?;
        let Some(spec) = options::parse(name, &volume.options)? else { return Ok(volume.mountpoint) };
        let inner = self.0.clone();
        blocking(move || {
            // One at a time, so that two containers do not both mount it.
            let known = inner.known();
            if !known.contains_key(&volume.name) {
                return Err(VolumeError::NotFound(volume.name));
            }
            mount::attach(&volume.name, &spec, &volume.mountpoint)?;
            Ok(volume.mountpoint)
        })
        .await
    }

    /// Takes away what `mount` mounted. To be called when the last container that uses the volume has ended; does nothing
    /// for volumes without options.
    ///
    /// # Errors
    /// [`VolumeError::Storage`].
    pub async fn unmount(&self, name: &str) -> Result<(), VolumeError> {
        let volume = match self.get(name) {
            Ok(volume) if !volume.options.is_empty() => volume,
            Ok(_) | Err(_) => return Ok(()),
        };
        let inner = self.0.clone();
        blocking(move || {
            let _known = inner.known();
            mount::detach(&volume.mountpoint).map_err(|e| storage("unmount", &volume.mountpoint, e))
        })
        .await
    }
}

impl std::fmt::Debug for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volumes").field("root", &self.0.root).finish_non_exhaustive()
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Volume>> {
        // Changed by single inserts and removals, after the disk was.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, new: NewVolume) -> Result<Volume, VolumeError> {
        let mut known = self.known();
        if let Some(volume) = known.get(&new.name) {
            return Ok(volume.clone());
        }
        let created_at = (self.clock)();
        let tmp = self.tmp();
        let content = tmp.join(CONTENT);
        make_folder(&tmp)?;
        fs::create_dir(&content).map_err(|e| storage("make folder", &content, e))?;
        // Whatever the daemon's umask: processes of any user see the folder as their volume.
        fs::set_permissions(&content, fs::Permissions::from_mode(0o755))
            .map_err(|e| storage("make folder", &content, e))?;
        let note = Note { format: 1, created_at, labels: new.labels, options: new.options };
        let path = tmp.join(NOTE);
        let text = serde_json::to_vec(&note).expect("maps of text are JSON");
        fs::write(&path, text).map_err(|e| storage("write", &path, e))?;
        for flushed in [&path, &tmp] {
            sync(flushed)?;
        }
        let place = self.root.join(&new.name);
        fs::rename(&tmp, &place).map_err(|e| storage("make", &place, e))?;
        sync(&self.root)?;
        let volume = volume_of(&self.root, &new.name, note);
        known.insert(new.name, volume.clone());
        Ok(volume)
    }

    fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let tmp = self.tmp();
        {
            let mut known = self.known();
            let volume = known.get(name).ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
            // Else the removal would reach into what is mounted.
            mount::detach(&volume.mountpoint).map_err(|e| storage("unmount", &volume.mountpoint, e))?;
            let place = self.root.join(name);
            fs::rename(&place, &tmp).map_err(|e| storage("remove", &place, e))?;
            known.remove(name);
        }
        sync(&self.root)?;
        fs::remove_dir_all(&tmp).map_err(|e| storage("remove", &tmp, e))
    }

    fn tmp(&self) -> PathBuf {
        self.root.join(format!("{TMP_PREFIX}{:032x}", rand::random::<u128>()))
    }
}

/// Reads the volumes that exist, and deletes what a crash left half made or half removed.
fn read_all(root: &Path) -> Result<BTreeMap<String, Volume>, VolumeError> {
    let mut known = BTreeMap::new();
    for entry in fs::read_dir(root).map_err(|e| storage("read folder", root, e))? {
        let entry = entry.map_err(|e| storage("read folder", root, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(TMP_PREFIX) {
            fs::remove_dir_all(entry.path()).map_err(|e| storage("remove", &entry.path(), e))?;
            continue;
        }
        let path = entry.path().join(NOTE);
        let note = fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        match note {
            Ok(note) => {
                known.insert(name.clone(), volume_of(root, &name, note));
            }
            // Somebody's data may be in there, so it stays; and one folder must not keep the node from starting.
            Err(error) => tracing::error!(path = %path.display(), %error, "a volume's description cannot be read"),
        }
    }
    Ok(known)
}

fn volume_of(root: &Path, name: &str, note: Note) -> Volume {
    Volume {
        name: name.to_owned(),
        driver: DRIVER.to_owned(),
        mountpoint: root.join(name).join(CONTENT),
        labels: note.labels,
        options: note.options,
        created_at: note.created_at,
    }
}

/// Others may pass through, for a bind mount they were given, but not look around.
fn make_folder(path: &Path) -> Result<(), VolumeError> {
    fs::DirBuilder::new().recursive(true).mode(0o701).create(path).map_err(|e| storage("make folder", path, e))
}

fn sync(path: &Path) -> Result<(), VolumeError> {
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| storage("flush", path, e))
}

fn storage(verb: &str, path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Storage { context: format!("{verb} {}", path.display()), source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(VolumeError::Storage {
            context: "work on a volume was cut off".into(),
            source: io::Error::other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn volumes(root: &Path) -> Volumes {
        Volumes::open(root.into(), Arc::new(|| Timestamp(1_000))).await.unwrap()
    }

    fn named(name: &str) -> NewVolume {
        NewVolume { name: name.into(), labels: [("k".into(), "v".into())].into(), ..NewVolume::default() }
    }

    #[tokio::test]
    async fn a_volume_is_made_once_and_outlives_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let all = volumes(root.path()).await;
        let made = all.create(named("data")).await.unwrap();
        let expected = Volume {
            name: "data".into(),
            driver: "local".into(),
            mountpoint: root.path().join("data/_data"),
            labels: [("k".into(), "v".into())].into(),
            options: BTreeMap::new(),
            created_at: Timestamp(1_000),
        };
        assert_eq!(made, expected);
        fs::write(made.mountpoint.join("file"), "kept").unwrap();
        let again = NewVolume { name: "data".into(), ..NewVolume::default() };
        assert_eq!(all.create(again).await.unwrap(), expected);
        drop(all);
        let all = volumes(root.path()).await;
        assert_eq!(all.list(), [expected]);
        assert_eq!(fs::read_to_string(all.mount("data").await.unwrap().join("file")).unwrap(), "kept");
    }

    #[tokio::test]
    async fn a_volume_without_a_name_gets_one_and_the_label_that_says_so() {
        let root = tempfile::tempdir().unwrap();
        let volume = volumes(root.path()).await.create(NewVolume::default()).await.unwrap();
        assert_eq!(volume.name.len(), 64);
        assert_eq!(volume.labels, [(ANONYMOUS.to_owned(), String::new())].into());
    }

    #[tokio::test]
    async fn a_volume_in_use_stays() {
        let root = tempfile::tempdir().unwrap();
        let all = volumes(root.path()).await;
        all.create(named("data")).await.unwrap();
        let users = ["c1".to_owned(), "c2".to_owned()];
        let error = all.remove("data", true, &users).await.unwrap_err();
        assert_eq!(error.to_string(), "remove data: volume is in use - [c1, c2]");
        all.remove("data", false, &[]).await.unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert_eq!(all.remove("data", false, &[]).await.unwrap_err().to_string(), "get data: no such volume");
        all.remove("data", true, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_crash_left_is_deleted_and_unreadable_data_is_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(".tmp-1/_data")).unwrap();
        fs::create_dir_all(root.path().join("odd/_data")).unwrap();
        let all = volumes(root.path()).await;
        assert_eq!(all.list(), []);
        assert!(!root.path().join(".tmp-1").exists() && root.path().join("odd/_data").exists());
    }

    #[tokio::test]
    async fn other_drivers_are_not_found() {
        let root = tempfile::tempdir().unwrap();
        let new = NewVolume { name: "data".into(), driver: "cloud".into(), ..NewVolume::default() };
        let error = volumes(root.path()).await.create(new).await.unwrap_err();
        assert_eq!(error.to_string(), "error looking up volume plugin cloud: plugin \"cloud\" not found");
    }
}
