//! The content store: blobs by digest, and what is on its way to become one.
//!
//! ```text
//! content/blobs/sha256/<hex>      complete, verified, flushed
//! content/ingest/<hex>.partial    a download that can be resumed
//! content/ingest/spool-<random>   content whose digest is not known yet; removed at open
//! ```
//! A blob appears by rename(2) after its digest was checked and its bytes were flushed, so whatever has the name is
//! whole. All calls block; the caller holds the digest's lock while it fills a partial.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::digest::{Digest, Hasher};
use super::error::ImageError;
use super::lease::Lease;

/// Largest manifest, index or configuration. Registries refuse manifests above 4 MiB (OCI distribution-spec, "Pushing
/// manifests").
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Blobs of one node.
#[derive(Debug, Clone)]
pub struct ContentStore {
    blobs: PathBuf,
    ingest: PathBuf,
}

impl ContentStore {
    /// Opens the store in `root`, making its folders and removing spools that a crash left.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let store = Self { blobs: root.join("blobs/sha256"), ingest: root.join("ingest") };
        for folder in [&store.blobs, &store.ingest] {
            fs::create_dir_all(folder).map_err(|e| ImageError::io("make folder", folder, e))?;
        }
        for entry in fs::read_dir(&store.ingest).map_err(|e| ImageError::io("read folder", &store.ingest, e))? {
            let entry = entry.map_err(|e| ImageError::io("read folder", &store.ingest, e))?;
            if entry.file_name().to_string_lossy().starts_with("spool-") {
                fs::remove_file(entry.path()).map_err(|e| ImageError::io("remove", &entry.path(), e))?;
            }
        }
        Ok(store)
    }

    /// Where the blob is, whether it exists or not.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Size of the blob in bytes; `None` when it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|m| m.len())
    }

    /// Opens the blob.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(|e| ImageError::io("open", &path, e))
    }

    /// Reads a small blob whole and checks its digest again.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let path = self.path(digest);
        self.open_blob(digest)?
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ImageError::io("read", &path, e))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::Malformed(format!("document {digest} is larger than {MAX_DOCUMENT} bytes")));
        }
        match Digest::of(&bytes) {
            found if found == *digest => Ok(bytes),
            found => Err(ImageError::WrongDigest { expected: *digest, found }),
        }
    }

    /// Keeps `bytes` as a blob, which `lease` holds.
    pub fn put(&self, bytes: &[u8], lease: &Lease) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        lease.hold(digest);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut spool = self.spool()?;
        spool.write_all(bytes).map_err(|e| ImageError::io("write", &spool.path, e))?;
        spool.commit(lease).map(|(digest, _)| digest)
    }

    /// Digests of all blobs.
    pub fn blobs(&self) -> Result<Vec<Digest>, ImageError> {
        let entries = fs::read_dir(&self.blobs).map_err(|e| ImageError::io("read folder", &self.blobs, e))?;
        Ok(entries.flatten().filter_map(|e| Digest::from_hex(&e.file_name().to_string_lossy()).ok()).collect())
    }

    /// Digests of all unfinished downloads, with their time of the last change.
    pub fn partials(&self) -> Result<Vec<(Digest, std::time::SystemTime)>, ImageError> {
        let entries = fs::read_dir(&self.ingest).map_err(|e| ImageError::io("read folder", &self.ingest, e))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let digest = Digest::from_hex(name.to_string_lossy().strip_suffix(".partial")?).ok()?;
                Some((digest, entry.metadata().ok()?.modified().ok()?))
            })
            .collect())
    }

    /// Removes a blob and its unfinished download; gives the bytes freed.
    pub fn remove(&self, digest: &Digest) -> Result<u64, ImageError> {
        let mut freed = 0;
        for path in [self.path(digest), self.partial_path(digest)] {
            let size = fs::metadata(&path).map_or(0, |m| m.len());
            match fs::remove_file(&path) {
                Ok(()) => freed += size,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(ImageError::io("remove", &path, e)),
            }
        }
        Ok(freed)
    }

    /// Content whose digest is not known yet. Removed unless committed.
    pub fn spool(&self) -> Result<Spool, ImageError> {
        let path = self.ingest.join(format!("spool-{:032x}", rand::random::<u128>()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| ImageError::io("make", &path, e))?;
        Ok(Spool { store: self.clone(), path, file, hasher: Hasher::default(), written: 0 })
    }

    /// Goes on with the download of `digest`, or begins it. Reads what is there already, to digest it.
    pub fn resume(&self, digest: Digest) -> Result<Partial, ImageError> {
        let path = self.partial_path(&digest);
        let fail = |e| ImageError::io("open", &path, e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        let mut hasher = Hasher::default();
        let written = io::copy(&mut file, &mut hasher).map_err(fail)?;
        Ok(Partial { store: self.clone(), digest, path, file, hasher, written })
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.ingest.join(format!("{}.partial", digest.hex()))
    }

    /// Gives a complete, digested file its name.
    fn publish(&self, file: &File, from: &Path, digest: &Digest) -> Result<(), ImageError> {
        let to = self.path(digest);
        file.sync_all().map_err(|e| ImageError::io("flush", from, e))?;
        fs::rename(from, &to).map_err(|e| ImageError::io("rename to", &to, e))?;
        sync_folder(&self.blobs)
    }
}

/// Flushes a folder's entries.
pub fn sync_folder(folder: &Path) -> Result<(), ImageError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| ImageError::io("flush", folder, e))
}

/// Content whose digest is not known yet.
#[derive(Debug)]
pub struct Spool {
    store: ContentStore,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
}

impl Spool {
    /// Makes it a blob, which `lease` holds; gives digest and size.
    pub fn commit(mut self, lease: &Lease) -> Result<(Digest, u64), ImageError> {
        let digest = std::mem::take(&mut self.hasher).finish();
        lease.hold(digest);
        self.store.publish(&self.file, &self.path, &digest)?;
        Ok((digest, self.written))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // After a commit the name is gone, and that is fine.
        let _ = fs::remove_file(&self.path);
    }
}

/// A download under way. Dropping it keeps what came, for the next attempt.
#[derive(Debug)]
pub struct Partial {
    store: ContentStore,
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
}

impl Partial {
    /// Bytes that are here.
    pub fn len(&self) -> u64 {
        self.written
    }

    /// Takes in more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(|e| ImageError::io("write", &self.path, e))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Begins again at the first byte.
    pub fn restart(&mut self) -> Result<(), ImageError> {
        let rewind = |file: &mut File| file.set_len(0).and_then(|()| io::Seek::rewind(file));
        rewind(&mut self.file).map_err(|e| ImageError::io("truncate", &self.path, e))?;
        (self.hasher, self.written) = (Hasher::default(), 0);
        Ok(())
    }

    /// Makes it a blob.
    ///
    /// # Errors
    /// [`ImageError::WrongDigest`] when the content is another; what came is then thrown away.
    pub fn commit(self) -> Result<(), ImageError> {
        let found = self.hasher.finish();
        if found != self.digest {
            fs::remove_file(&self.path).map_err(|e| ImageError::io("remove", &self.path, e))?;
            return Err(ImageError::WrongDigest { expected: self.digest, found });
        }
        self.store.publish(&self.file, &self.path, &self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        std::sync::Arc::<crate::images::lease::Pins>::default().lease()
    }

    fn store() -> (tempfile::TempDir, ContentStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ContentStore::open(folder.path()).unwrap();
        (folder, store)
    }

    #[test]
    fn a_download_goes_on_where_it_was_cut() {
        let (_folder, store) = store();
        let digest = Digest::of(b"hello world");
        store.resume(digest).unwrap().write(b"hello").unwrap();
        let mut partial = store.resume(digest).unwrap();
        assert_eq!(partial.len(), 5);
        partial.write(b" world").unwrap();
        partial.commit().unwrap();
        assert_eq!(store.read(&digest).unwrap(), b"hello world");
        assert_eq!(store.partials().unwrap(), []);
    }

    #[test]
    fn content_of_another_digest_never_gets_the_name() {
        let (_folder, store) = store();
        let digest = Digest::of(b"expected");
        let mut partial = store.resume(digest).unwrap();
        partial.write(b"forged").unwrap();
        assert!(matches!(partial.commit(), Err(ImageError::WrongDigest { .. })));
        assert_eq!(store.size(&digest), None);
        assert_eq!(store.resume(digest).unwrap().len(), 0, "a wrong start is not kept");
    }

    #[test]
    fn a_blob_that_rotted_is_not_read() {
        let (_folder, store) = store();
        let digest = store.put(b"{}", &lease()).unwrap();
        fs::write(store.path(&digest), b"[]").unwrap();
        assert!(matches!(store.read(&digest), Err(ImageError::WrongDigest { .. })));
    }

    #[test]
    fn spools_that_a_crash_left_are_removed_at_open_and_partials_kept() {
        let (folder, store) = store();
        let digest = Digest::of(b"x");
        store.resume(digest).unwrap().write(b"y").unwrap();
        std::mem::forget(store.spool().unwrap());
        let store = ContentStore::open(folder.path()).unwrap();
        let left = fs::read_dir(folder.path().join("ingest")).unwrap().count();
        assert_eq!((left, store.partials().unwrap().len()), (1, 1));
    }
}
