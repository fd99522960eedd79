//! Snapshots on disk: written in chunks beside the running state, named only when whole, the newest kept.
//!
//! ```text
//! header:  "SKEPSNAP" | format u32 | cluster 16 | length u32 | sealed meta (last log id, membership)
//! chunk:   length u32 | sequence u32 | last u8 | sealed zstd of at most 1 MiB
//! ```
//! A chunk is sealed together with the header's hash, its sequence and whether it is the last: none can be moved,
//! dropped or taken from another snapshot. What travels to another manager are the compressed chunks, unsealed (the
//! link is encrypted): every manager seals with a key of its own.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::compact::Retention;
use super::disk::{Disk, DiskFile};
use super::log::{Seal, Workers};
use super::seal::OVERHEAD;
use super::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"SKEPSNAP";
const FORMAT: u32 = 1;
const CHUNK: usize = 1 << 20;
/// A chunk that does not compress grows a little; anything longer is not ours.
const CHUNK_LIMIT: usize = CHUNK + CHUNK / 8;
const META_LIMIT: usize = 1 << 20;
const CHUNK_HEADER: usize = 9;
const SUFFIX: &str = ".snapshot";
const UNFINISHED: &str = ".partial";

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A part of a snapshot as it travels: compressed, not sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub sequence: u32,
    pub last: bool,
    pub data: Bytes,
}

/// The snapshots of one manager. Clones share them.
#[derive(Clone)]
pub(crate) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    seal: Seal,
    workers: Workers,
    current: Arc<Mutex<Option<(SnapshotMeta, SnapshotFile)>>>,
    next: Arc<AtomicU64>,
    retention: Arc<Retention>,
}

/// A whole snapshot on disk.
#[derive(Clone)]
pub(crate) struct SnapshotFile {
    disk: Arc<dyn Disk>,
    seal: Seal,
    name: String,
    /// Length of the file in bytes.
    pub length: u64,
}

impl SnapshotStore {
    /// Finds the newest snapshot, and removes unfinished ones. Older ones stay until the next. Blocks.
    pub(crate) fn open(disk: Arc<dyn Disk>, seal: Seal, workers: Workers) -> io::Result<Self> {
        let store = Self {
            disk,
            seal,
            workers,
            current: Arc::new(Mutex::new(None)),
            next: Arc::new(AtomicU64::new(0)),
            retention: Arc::default(),
        };
        let mut names = store.disk.list()?;
        names.retain(|name| name.ends_with(SUFFIX) || name.ends_with(UNFINISHED));
        // Names begin with the index, zero-padded: text order is age.
        names.sort_unstable();
        if let Some(newest) = names.iter().rfind(|name| name.ends_with(SUFFIX)).cloned() {
            let length = store.disk.open(&newest)?.len()?;
            let file =
                SnapshotFile { disk: Arc::clone(&store.disk), seal: store.seal.clone(), name: newest.clone(), length };
            let meta = file.open()?.meta;
            *store.lock() = Some((meta, file));
        }
        for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
            store.disk.remove(name)?;
        }
        Ok(store)
    }

    /// What the operator has set.
    pub(crate) fn retention(&self) -> &Arc<Retention> {
        &self.retention
    }

    pub(crate) fn workers(&self) -> Workers {
        self.workers
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(SnapshotMeta, SnapshotFile)>> {
        self.current.lock().expect("no one panics while holding the current snapshot")
    }

    /// Starts a snapshot under a name that no restart takes for a whole one.
    pub(crate) fn begin(&self, meta: &SnapshotMeta) -> io::Result<SnapshotWriter> {
        let name = format!("{}{UNFINISHED}", self.next.fetch_add(1, Ordering::Relaxed));
        let file = self.disk.create(&name)?;
        SnapshotWriter::new(file, Arc::clone(&self.disk), self.seal.clone(), name, meta)
    }

    /// Makes `file` the current snapshot, durably, and removes the one before it.
    pub(crate) async fn keep(&self, meta: SnapshotMeta, file: SnapshotFile) -> io::Result<SnapshotFile> {
        let store = self.clone();
        self.workers.run(move || store.keep_blocking(meta, file)).await?
    }

    fn keep_blocking(&self, meta: SnapshotMeta, mut file: SnapshotFile) -> io::Result<SnapshotFile> {
        let last = meta.last_log_id.as_ref().map_or((0, 0), |id| (id.index, id.leader_id.term));
        let name = format!("{:020}-{}{SUFFIX}", last.0, last.1);
        let mut current = self.lock();
        if file.name != name {
            self.disk.rename(&file.name, &name)?;
            self.disk.sync()?;
            file.name.clone_from(&name);
        }
        current.replace((meta, file.clone()));
        self.remove_older(&name)?;
        Ok(file)
    }

    /// Removes what is older than `newest`, but for as many as are to stay.
    fn remove_older(&self, newest: &str) -> io::Result<()> {
        let mut older = self.disk.list()?;
        older.retain(|name| name.ends_with(SUFFIX) && name != newest);
        older.sort_unstable();
        let kept = self.retention.older.load(Ordering::Relaxed);
        for name in &older[..older.len().saturating_sub(kept)] {
            self.disk.remove(name)?;
        }
        Ok(())
    }
}

impl SnapshotFile {
    /// Reads the header; the state follows from [`Read`] or in chunks.
    pub(crate) fn open(&self) -> io::Result<SnapshotReader> {
        let file = self.disk.open(&self.name)?;
        let mut fixed = [0; 32];
        file.read_exact_at(&mut fixed, 0)?;
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
        if &fixed[..8] != MAGIC || u32_at(8) != FORMAT {
            return Err(bad(format!("{} is not a snapshot of a format that this release reads", self.name)));
        }
        if fixed[12..28] != self.seal.cluster {
            return Err(bad(format!("{} is a snapshot of another cluster", self.name)));
        }
        let length = u32_at(28) as usize;
        if length > META_LIMIT {
            return Err(bad(format!("{} is damaged: its head claims {length} bytes", self.name)));
        }
        let mut sealed = vec![0; length];
        file.read_exact_at(&mut sealed, 32)?;
        let plain = self.seal.sealer.open(&fixed[..28], &sealed).map_err(|e| bad(format!("{}: {e}", self.name)))?;
        let meta = postcard::from_bytes(&plain).map_err(|e| bad(format!("{}: {e}", self.name)))?;
        let hash = header_hash(&fixed, &sealed);
        Ok(SnapshotReader {
            meta,
            file,
            seal: self.seal.clone(),
            name: self.name.clone(),
            hash,
            at: 32 + length as u64,
            sequence: 0,
            done: false,
            plain: io::Cursor::new(Vec::new()),
        })
    }

    /// Removes the file if it was not kept: a peer with a newer vote makes openraft drop a snapshot it was given.
    pub(crate) fn discard_unless_kept(&self) {
        if self.name.ends_with(UNFINISHED) {
            remove_unfinished(&*self.disk, &self.name);
        }
    }
}

fn remove_unfinished(disk: &dyn Disk, name: &str) {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, name, "an unfinished snapshot stays until the next start");
        }
        _ => {}
    }
}

fn header_hash(fixed: &[u8; 32], sealed: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(fixed);
    hash.update(sealed);
    hash.finalize().into()
}

fn place(hash: &[u8; 32], sequence: u32, last: bool) -> [u8; 37] {
    let mut place = [0; 37];
    place[..32].copy_from_slice(hash);
    place[32..36].copy_from_slice(&sequence.to_le_bytes());
    place[36] = last.into();
    place
}

/// Writes a snapshot from bytes ([`Write`]) or from chunks of another manager.
pub(crate) struct SnapshotWriter {
    file: Box<dyn DiskFile>,
    disk: Arc<dyn Disk>,
    seal: Seal,
    name: String,
    hash: [u8; 32],
    at: u64,
    sequence: u32,
    done: bool,
    plain: Vec<u8>,
}

impl SnapshotWriter {
    fn new(
        mut file: Box<dyn DiskFile>,
        disk: Arc<dyn Disk>,
        seal: Seal,
        name: String,
        meta: &SnapshotMeta,
    ) -> io::Result<Self> {
        let mut fixed = [0; 32];
        fixed[..8].copy_from_slice(MAGIC);
        fixed[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        fixed[12..28].copy_from_slice(&seal.cluster);
        let plain = postcard::to_stdvec(meta).map_err(|e| bad(e.to_string()))?;
        let mut sealed = Vec::new();
        seal.sealer.seal(&fixed[..28], &plain, &mut sealed);
        let length = u32::try_from(sealed.len()).map_err(|e| bad(e.to_string()))?;
        fixed[28..].copy_from_slice(&length.to_le_bytes());
        file.write_all_at(&[&fixed[..], &sealed].concat(), 0)?;
        let hash = header_hash(&fixed, &sealed);
        let at = (fixed.len() + sealed.len()) as u64;
        Ok(Self { file, disk, seal, name, hash, at, sequence: 0, done: false, plain: Vec::with_capacity(CHUNK) })
    }

    /// Adds the next chunk, which must be the one that follows.
    pub(crate) fn put(&mut self, chunk: &Chunk) -> io::Result<()> {
        if self.done || chunk.sequence != self.sequence {
            return Err(bad(format!("chunk {} of a snapshot where chunk {} belongs", chunk.sequence, self.sequence)));
        }
        if chunk.data.len() > CHUNK_LIMIT {
            return Err(bad(format!("a snapshot chunk of {} bytes, the limit is {CHUNK_LIMIT}", chunk.data.len())));
        }
        let mut out = vec![0; CHUNK_HEADER];
        self.seal.sealer.seal(&place(&self.hash, chunk.sequence, chunk.last), &chunk.data, &mut out);
        let length = u32::try_from(out.len() - CHUNK_HEADER).expect("chunks are bounded");
        out[..4].copy_from_slice(&length.to_le_bytes());
        out[4..8].copy_from_slice(&chunk.sequence.to_le_bytes());
        out[8] = chunk.last.into();
        self.file.write_all_at(&out, self.at)?;
        self.at += out.len() as u64;
        self.sequence += 1;
        self.done = chunk.last;
        Ok(())
    }

    fn put_plain(&mut self, last: bool) -> io::Result<()> {
        let data = zstd::bulk::compress(&self.plain, 1)?.into();
        self.plain.clear();
        self.put(&Chunk { sequence: self.sequence, last, data })
    }

    /// Ends the snapshot and makes its bytes durable. Its name is not yet: see [`SnapshotStore::keep`].
    pub(crate) fn finish(mut self) -> io::Result<SnapshotFile> {
        if !self.done {
            self.put_plain(true)?;
        }
        self.file.sync()?;
        let name = std::mem::take(&mut self.name);
        Ok(SnapshotFile { disk: Arc::clone(&self.disk), seal: self.seal.clone(), name, length: self.at })
    }

    /// Whether the last chunk was put.
    pub(crate) fn is_complete(&self) -> bool {
        self.done
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // The name is gone when the snapshot was finished.
        if !self.name.is_empty() {
            remove_unfinished(&*self.disk, &self.name);
        }
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.plain.len());
        self.plain.extend_from_slice(&bytes[..taken]);
        if self.plain.len() == CHUNK {
            self.put_plain(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot as bytes ([`Read`]) or in chunks for another manager.
pub(crate) struct SnapshotReader {
    pub meta: SnapshotMeta,
    file: Box<dyn DiskFile>,
    seal: Seal,
    name: String,
    hash: [u8; 32],
    at: u64,
    sequence: u32,
    done: bool,
    plain: io::Cursor<Vec<u8>>,
}

impl SnapshotReader {
    /// The next chunk, `None` after the last.
    pub(crate) fn next(&mut self) -> io::Result<Option<Chunk>> {
        if self.done {
            return Ok(None);
        }
        let damaged = |what: String| bad(format!("the snapshot {} is damaged: {what}", self.name));
        let mut header = [0; CHUNK_HEADER];
        self.file.read_exact_at(&mut header, self.at).map_err(|e| damaged(format!("chunk {}: {e}", self.sequence)))?;
        let length = u32::from_le_bytes(header[..4].try_into().expect("four bytes")) as usize;
        if length > CHUNK_LIMIT + OVERHEAD {
            return Err(damaged(format!("chunk {} claims {length} bytes", self.sequence)));
        }
        let last = header[8] != 0;
        let mut sealed = vec![0; length];
        let place = place(&self.hash, self.sequence, last);
        self.file
            .read_exact_at(&mut sealed, self.at + CHUNK_HEADER as u64)
            .map_err(|e| damaged(format!("chunk {}: {e}", self.sequence)))?;
        let data = self
            .seal
            .sealer
            .open(&place, &sealed)
            .map_err(|e| damaged(format!("chunk {}: {e}", self.sequence)))?
            .into();
        let chunk = Chunk { sequence: self.sequence, last, data };
        self.at += (CHUNK_HEADER + length) as u64;
        self.sequence += 1;
        self.done = last;
        Ok(Some(chunk))
    }

    /// Checks that all was read: a state that stops reading early would silently leave some of it out.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.read(&mut [0])? == 0 {
            Ok(())
        } else {
            Err(bad(format!("{} has bytes after the state's end", self.name)))
        }
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.plain.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            let Some(chunk) = self.next()? else { return Ok(0) };
            self.plain = io::Cursor::new(zstd::bulk::decompress(&chunk.data, CHUNK)?);
        }
    }
}
