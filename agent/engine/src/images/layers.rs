//! The layer store: unpacked layers by diffID, each in its own directory, ready to be a lower directory of an overlay.
//!
//! ```text
//! layers/sha256/<hex>/fs       the layer's content in overlay form
//! layers/sha256/<hex>/layer    what is known of it (`LayerMeta`, JSON)
//! layers/tmp/<random>/         being unpacked, or on its way out; emptied at open
//! ```
//! A layer appears by rename(2) after syncfs(2), so whatever has the name is whole. The folder is closed to others:
//! layers hold setuid programs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::content::sync_folder;
use super::digest::Digest;
use super::error::ImageError;
use super::unpack::{Limits, unpack_layer};

/// Layers of one node.
#[derive(Debug, Clone)]
pub struct LayerStore {
    layers: PathBuf,
    tmp: PathBuf,
    limits: Limits,
}

/// What is known of an unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    /// Bytes of the regular files in it.
    pub size: u64,
}

impl LayerStore {
    /// Opens the store in `root`, making its folders and removing what a crash left half done.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, ImageError> {
        let store = Self { layers: root.join("sha256"), tmp: root.join("tmp"), limits };
        for folder in [root, &store.layers, &store.tmp] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|e| ImageError::io("make folder", folder, e))?;
        }
        for entry in fs::read_dir(&store.tmp).map_err(|e| ImageError::io("read folder", &store.tmp, e))?.flatten() {
            fs::remove_dir_all(entry.path()).map_err(|e| ImageError::io("remove", &entry.path(), e))?;
        }
        Ok(store)
    }

    /// The layer's content, whether it exists or not.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex()).join("fs")
    }

    /// What is known of the layer; `None` when it is not here.
    pub fn meta(&self, diff_id: &Digest) -> Option<LayerMeta> {
        let text = fs::read(self.layers.join(diff_id.hex()).join("layer")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// diffIDs of all layers.
    pub fn layers(&self) -> Result<Vec<Digest>, ImageError> {
        let entries = fs::read_dir(&self.layers).map_err(|e| ImageError::io("read folder", &self.layers, e))?;
        Ok(entries.flatten().filter_map(|e| Digest::from_hex(&e.file_name().to_string_lossy()).ok()).collect())
    }

    /// Unpacks a layer, unless it is here. Blocks; the caller holds the diffID's lock.
    ///
    /// # Errors
    /// [`ImageError::Archive`], or [`ImageError::WrongDigest`] when the content is not that of `diff_id`.
    pub fn unpack(&self, diff_id: Digest, source: impl Read) -> Result<LayerMeta, ImageError> {
        if let Some(meta) = self.meta(&diff_id) {
            return Ok(meta);
        }
        let work = Work::new(&self.tmp)?;
        let content = work.0.join("fs");
        fs::create_dir(&content).map_err(|e| ImageError::io("make folder", &content, e))?;
        // What a layer says nothing of, its root directory, is open to read: it becomes `/` of containers.
        fs::set_permissions(&content, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| ImageError::io("make folder", &content, e))?;
        let unpacked = unpack_layer(source, &content, &self.limits).map_err(|source| match source {
            super::unpack::ArchiveError::Io(source) => ImageError::io("unpack a layer into", &content, source),
            source => ImageError::Archive { context: format!("cannot unpack layer {diff_id}"), source },
        })?;
        if unpacked.diff_id != diff_id {
            return Err(ImageError::WrongDigest { expected: diff_id, found: unpacked.diff_id });
        }
        let meta = LayerMeta { size: unpacked.size };
        let note = work.0.join("layer");
        let text = serde_json::to_vec(&meta).expect("a struct of numbers is JSON");
        fs::write(&note, text).map_err(|e| ImageError::io("write", &note, e))?;
        fs::File::open(&note).and_then(|f| f.sync_all()).map_err(|e| ImageError::io("flush", &note, e))?;
        sync_folder(&work.0)?;
        let place = self.layers.join(diff_id.hex());
        fs::rename(&work.0, &place).map_err(|e| ImageError::io("rename to", &place, e))?;
        sync_folder(&self.layers)?;
        Ok(meta)
    }

    /// Takes a layer out of the store: fast, so that it can be done under a lock. What it gives is to be deleted after.
    pub fn detach(&self, diff_id: &Digest) -> Result<Detached, ImageError> {
        let size = self.meta(diff_id).map_or(0, |meta| meta.size);
        let work = Work::new(&self.tmp)?;
        let (from, to) = (self.layers.join(diff_id.hex()), work.0.join("layer"));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io("remove", &from, e)),
        }
        Ok(Detached { size, work })
    }
}

/// A layer on its way out; dropping it deletes the files.
#[derive(Debug)]
pub struct Detached {
    /// Bytes of the regular files in it.
    pub size: u64,
    #[expect(dead_code, reason = "held for its drop")]
    work: Work,
}

/// A temporary folder, removed when dropped unless it was renamed.
#[derive(Debug)]
struct Work(PathBuf);

impl Work {
    fn new(tmp: &Path) -> Result<Self, ImageError> {
        let path = tmp.join(format!("{:032x}", rand::random::<u128>()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| ImageError::io("make folder", &path, e))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a temporary folder stays until the next start");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
