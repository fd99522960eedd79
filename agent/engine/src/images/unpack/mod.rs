//! Unpacks a layer's tar stream into a directory in overlay form, trusting nothing in it.
//!
//! The directory is what overlayfs takes as a lower layer: a whiteout (`.wh.NAME`) becomes a character device 0:0, an
//! opaque directory (`.wh..wh..opq`) gets the extended attribute `trusted.overlay.opaque` (kernel, overlayfs.rst).
//! Memory is bounded whatever the archive says, and no path of it ever leads out of the directory.

mod decompress;
mod tarstream;
mod tree;

use std::io::{self, Read};
use std::path::Path;

pub use decompress::Decompressed;
pub use tarstream::{Entry, Kind, TarStream};

use super::digest::{Digest, DigestReader};
use tree::Tree;

/// Prefix of a whiteout's name (OCI image-spec, layer, "Whiteouts").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The entry that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this prefix are notes of AUFS, which Docker skips too.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It ends in the middle of an entry.
    #[error("unexpected end of the archive, it is truncated")]
    Truncated,
    /// A header cannot be read.
    #[error("broken archive at byte {position}: {reason}")]
    Broken {
        /// Bytes of the uncompressed archive before the header.
        position: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A compression that is not read.
    #[error("{0} compression is not supported; use gzip, zstd or none")]
    UnsupportedCompression(&'static str),
    /// An entry of a kind that is not read.
    #[error("entry {path:?} has type {kind:?}, which is not supported")]
    UnsupportedEntry {
        /// Its path.
        path: String,
        /// The type's letter.
        kind: char,
    },
    /// A path leads out of the root.
    #[error("entry {path:?} leads out of the layer")]
    Escape {
        /// The path as written.
        path: String,
    },
    /// A path is too long.
    #[error("a path is longer than {limit} bytes")]
    PathTooLong {
        /// Bytes.
        limit: usize,
    },
    /// An extension record is too large.
    #[error("an extension record of {size} bytes is larger than the {limit} that are read")]
    ExtensionTooLarge {
        /// Bytes it states.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// More content than allowed.
    #[error("the content is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// More entries than allowed.
    #[error("more than {limit} entries")]
    TooManyEntries {
        /// How many are read.
        limit: u64,
    },
    /// An entry cannot be made.
    #[error("cannot make {path:?}: {reason}")]
    Entry {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// The source or the target.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for ArchiveError {
    /// Gives back an archive error that travelled through a reader.
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            Err(error) => Self::Io(error),
        }
    }
}

/// How much of an archive is read before it counts as an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes of one layer or archive.
    pub bytes: u64,
    /// Entries of one layer or archive.
    pub entries: u64,
}

impl Default for Limits {
    /// 64 GiB and 2 million entries: several times the largest images in use.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 2_000_000 }
    }
}

/// What an unpacked layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed stream, to its very end.
    pub diff_id: Digest,
    /// Bytes of the regular files in it.
    pub size: u64,
}

/// Unpacks the layer that `source` holds, compressed or not, into the existing empty directory `root`.
///
/// # Errors
/// [`ArchiveError`]; the directory then holds whatever was made before.
pub fn unpack_layer(source: impl Read, root: &Path, limits: &Limits) -> Result<Unpacked, ArchiveError> {
    let content = LimitedReader { inner: Decompressed::new(source)?, left: limits.bytes, limit: limits.bytes };
    let mut archive = TarStream::new(DigestReader::new(content));
    let mut tree = Tree::open(root)?;
    let (mut entries, mut size) = (0, 0);
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            return Err(ArchiveError::TooManyEntries { limit: limits.entries });
        }
        size += apply(&entry, &mut archive, &mut tree)?;
    }
    tree.finish()?;
    let mut rest = archive.into_source();
    io::copy(&mut rest, &mut io::sink())?;
    Ok(Unpacked { diff_id: rest.finish().0, size })
}

/// Makes one entry; gives the bytes that it adds to the layer's size.
fn apply<R: Read>(entry: &Entry, archive: &mut TarStream<R>, tree: &mut Tree) -> Result<u64, ArchiveError> {
    let path = clean(&entry.path)?;
    let name = path.last().copied().unwrap_or_default();
    if name == OPAQUE {
        tree.make_opaque(&path[..path.len() - 1])?;
        return Ok(0);
    }
    if name.starts_with(AUFS_PREFIX) {
        return Ok(0);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ArchiveError::Escape { path: shown(&entry.path) });
        }
        tree.make_whiteout(&path[..path.len() - 1], hidden)?;
        return Ok(0);
    }
    match &entry.kind {
        Kind::File => tree.write_file(&path, entry, archive)?,
        Kind::Sparse(pieces) => tree.write_sparse(&path, entry, pieces, archive)?,
        Kind::Directory => tree.make_directory(&path, entry)?,
        Kind::Symlink => tree.make_symlink(&path, entry)?,
        Kind::HardLink => tree.make_hard_link(&path, &clean(&entry.link)?)?,
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => tree.make_node(&path, entry)?,
    }
    Ok(entry.size)
}

/// The components of a path below the root. An absolute path counts from the root, `..` is resolved in the text.
///
/// # Errors
/// [`ArchiveError::Escape`] when `..` leads above the root.
pub fn clean(path: &[u8]) -> Result<Vec<&[u8]>, ArchiveError> {
    let mut components = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or_else(|| ArchiveError::Escape { path: shown(path) })?;
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// Bytes of an archive as text for an error, cut to what a line holds.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

/// A reader that fails once it has given `limit` bytes and there are more.
#[derive(Debug)]
pub struct LimitedReader<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> LimitedReader<R> {
    /// Lets `limit` bytes of `inner` through.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit, limit }
    }
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(ArchiveError::TooLarge { limit: self.limit })),
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
