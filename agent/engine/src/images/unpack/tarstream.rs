//! Reads a tar stream entry by entry in bounded memory: ustar, PAX (POSIX pax, "pax Header Block") and GNU extensions.
//!
//! Numbers and names of a header block are decoded by the `tar` crate. Its own iterator is not used: it holds extension
//! records of any size in memory, and layers come from strangers.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::ArchiveError;

const BLOCK: usize = 512;
/// Number fields of a header block (POSIX, ustar). Writers leave those blank that say nothing, which means 0.
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const MTIME: std::ops::Range<usize> = 136..148;
/// Longest path or link target. Linux takes 4,095 bytes in one call.
const MAX_PATH: usize = 4096;
/// Longest extension record. Room for a few extended attributes, each of which Linux limits to 64 KiB.
const MAX_EXTENSION: u64 = 1 << 20;
/// Pieces of a sparse file.
const MAX_SPARSE: usize = 65_536;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content is read from the stream.
    File,
    /// A regular file with holes: (offset, length) of its pieces, which follow one another in the stream.
    Sparse(Vec<(u64, u64)>),
    /// A directory.
    Directory,
    /// A symbolic link to `Entry::link`.
    Symlink,
    /// A hard link to `Entry::link`, a path of the archive.
    HardLink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// One entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as written, not cleaned.
    pub path: Vec<u8>,
    /// Target of a link as written.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 07777 at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since the Unix epoch and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Size of the file once written, in bytes.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Extension records that apply to the next entry, or to all that follow.
#[derive(Debug, Clone, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream.
#[derive(Debug)]
pub struct TarStream<R> {
    source: R,
    /// Bytes of the current entry's content not read yet.
    content: u64,
    /// Bytes that fill its last block.
    padding: u64,
    /// Where the next block begins.
    position: u64,
    global: Extensions,
}

impl<R: Read> TarStream<R> {
    /// Reads from `source`, which should be buffered.
    pub fn new(source: R) -> Self {
        Self { source, content: 0, padding: 0, position: 0, global: Extensions::default() }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the entry before is skipped.
    ///
    /// # Errors
    /// A broken header, an extension past its limit, a truncated archive, or the source's error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut local = Extensions::default();
        loop {
            self.skip(self.content + self.padding)?;
            (self.content, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|e| self.broken(&e))?;
            match header.entry_type() {
                EntryType::GNULongName => local.path = Some(trim_nul(self.extension(size)?)),
                EntryType::GNULongLink => local.link = Some(trim_nul(self.extension(size)?)),
                EntryType::XHeader => {
                    let records = self.extension(size)?;
                    self.read_pax(&records, &mut local)?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.extension(size)?;
                    let mut global = std::mem::take(&mut self.global);
                    // Attributes of a global record would pile up with each such record.
                    global.xattrs.clear();
                    self.read_pax(&records, &mut global)?;
                    self.global = global;
                }
                kind => return self.entry(&header, kind, size, local).map(Some),
            }
        }
    }

    /// The rest of the source, after the end of the archive: padding that belongs to the layer's digest.
    pub fn into_source(self) -> R {
        self.source
    }

    fn entry(&mut self, header: &Header, kind: EntryType, size: u64, local: Extensions) -> Result<Entry, ArchiveError> {
        let broken = |e: io::Error| self.broken(&e);
        let global = &self.global;
        let mut size = local.size.or(global.size).unwrap_or(size);
        let path = local.path.or_else(|| global.path.clone()).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = local
            .link
            .or_else(|| global.link.clone())
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(ArchiveError::PathTooLong { limit: MAX_PATH });
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(self.broken(&"a path holds a NUL byte"));
        }
        let field = |range: std::ops::Range<usize>, value: io::Result<u64>| match value {
            Err(_) if header.as_bytes()[range].iter().all(|b| matches!(b, 0 | b' ')) => Ok(0),
            value => value.map_err(broken),
        };
        let id = |range, value| -> Result<u32, ArchiveError> {
            u32::try_from(field(range, value)?).map_err(|_| self.broken(&"an owner does not fit 32 bits"))
        };
        let mut xattrs = local.xattrs;
        xattrs.extend(global.xattrs.iter().cloned());
        let mut entry = Entry {
            mode: u32::try_from(field(MODE, header.mode().map(u64::from))?).unwrap_or_default() & 0o7777,
            uid: local.uid.or(global.uid).map_or_else(|| id(UID, header.uid()), Ok)?,
            gid: local.gid.or(global.gid).map_or_else(|| id(GID, header.gid()), Ok)?,
            mtime: match local.mtime.or(global.mtime) {
                Some(time) => time,
                // A negative time before 1970 is written as a huge number in base 256.
                None => (i64::from_ne_bytes(field(MTIME, header.mtime())?.to_ne_bytes()), 0),
            },
            device: (
                header.device_major().ok().flatten().unwrap_or_default(),
                header.device_minor().ok().flatten().unwrap_or_default(),
            ),
            kind: Kind::File,
            size: 0,
            path,
            link,
            xattrs,
        };
        entry.kind = match kind {
            // Before POSIX, a directory was a file whose name ends in a slash.
            EntryType::Regular if entry.path.ends_with(b"/") && size == 0 => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => Kind::CharDevice,
            EntryType::Block => Kind::BlockDevice,
            EntryType::Fifo => Kind::Fifo,
            EntryType::GNUSparse => {
                let (pieces, real_size) = self.sparse_map(header, size)?;
                entry.size = real_size;
                Kind::Sparse(pieces)
            }
            other => {
                return Err(ArchiveError::UnsupportedEntry {
                    path: super::shown(&entry.path),
                    kind: char::from(other.as_byte()),
                });
            }
        };
        match entry.kind {
            Kind::File => entry.size = size,
            Kind::Sparse(_) => {}
            // Links and the like may state a size, but have no content.
            Kind::Symlink | Kind::HardLink | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo | Kind::Directory => {
                size = 0
            }
        }
        self.content = size;
        self.padding = padding_of(size);
        Ok(entry)
    }

    /// One header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes(), true)? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            // Two blocks of zeros end an archive; one with nothing behind it is taken as the end too.
            if self.block(header.as_mut_bytes(), true)? && header.as_bytes().iter().any(|b| *b != 0) {
                return Err(self.broken(&"a block of zeros inside the archive"));
            }
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(self.broken(&"wrong checksum, this is no tar archive or it is damaged"));
        }
        Ok(Some(header))
    }

    /// Reads one block. `Ok(false)`: the source ended before it, which `may_end` allows.
    fn block(&mut self, block: &mut [u8; BLOCK], may_end: bool) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 && may_end => return Ok(false),
                Ok(0) => return Err(ArchiveError::Truncated),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    /// The content of an extension entry.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::ExtensionTooLarge { size, limit: MAX_EXTENSION });
        }
        let mut content = Vec::new();
        (&mut self.source).take(size).read_to_end(&mut content)?;
        if (content.len() as u64) < size {
            return Err(ArchiveError::Truncated);
        }
        self.position += size;
        self.skip(padding_of(size))?;
        Ok(content)
    }

    /// Takes over the records of a PAX header: `LENGTH KEY=VALUE\n`, LENGTH counting itself.
    fn read_pax(&self, mut records: &[u8], into: &mut Extensions) -> Result<(), ArchiveError> {
        while !records.is_empty() {
            let (key, value, rest) = split_pax(records).ok_or_else(|| self.broken(&"a PAX record is malformed"))?;
            records = rest;
            let number = || std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok());
            let id = || {
                number()
                    .and_then(|v| u32::try_from(v).ok())
                    .ok_or_else(|| self.broken(&"an owner in a PAX record is no 32-bit number"))
            };
            match key {
                b"path" => into.path = Some(value.to_vec()),
                b"linkpath" => into.link = Some(value.to_vec()),
                b"size" => {
                    into.size = Some(number().ok_or_else(|| self.broken(&"a size in a PAX record is no number"))?);
                }
                b"uid" => into.uid = Some(id()?),
                b"gid" => into.gid = Some(id()?),
                b"mtime" => {
                    into.mtime =
                        Some(parse_time(value).ok_or_else(|| self.broken(&"a time in a PAX record is no number"))?);
                }
                _ if key.starts_with(b"SCHILY.xattr.") => {
                    into.xattrs.push((key[b"SCHILY.xattr.".len()..].to_vec(), value.to_vec()));
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(ArchiveError::UnsupportedEntry { path: super::shown(key), kind: 'x' });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The pieces of an old GNU sparse file, and its size with the holes.
    fn sparse_map(&mut self, header: &Header, stored: u64) -> Result<(Vec<(u64, u64)>, u64), ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| self.broken(&"a sparse file without a GNU header"))?;
        let real_size = gnu.real_size().map_err(|e| self.broken(&e))?;
        let mut pieces = Vec::new();
        let mut end = 0u64;
        let mut add = |list: &[GnuSparseHeader]| -> Result<(), &'static str> {
            for piece in list.iter().filter(|p| !p.is_empty()) {
                let (Ok(offset), Ok(length)) = (piece.offset(), piece.length()) else {
                    return Err("a sparse file's map is malformed");
                };
                if offset < end || pieces.len() == MAX_SPARSE {
                    return Err("a sparse file's map is out of order or too long");
                }
                end =
                    offset.checked_add(length).filter(|end| *end <= real_size).ok_or("a sparse file's map overruns")?;
                pieces.push((offset, length));
            }
            Ok(())
        };
        add(&gnu.sparse).map_err(|e| self.broken(&e))?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.block(block.as_mut_bytes(), false)?;
            add(block.sparse()).map_err(|e| self.broken(&e))?;
            more = block.is_extended();
        }
        let sum: u64 = pieces.iter().map(|(_, length)| length).sum();
        if sum != stored {
            return Err(self.broken(&"a sparse file's map does not fit its content"));
        }
        Ok((pieces, real_size))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let skipped = io::copy(&mut (&mut self.source).take(bytes), &mut io::sink())?;
        self.position = self.position.saturating_add(skipped);
        if skipped < bytes { Err(ArchiveError::Truncated) } else { Ok(()) }
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> ArchiveError {
        ArchiveError::Broken { position: self.position.saturating_sub(BLOCK as u64), reason: reason.to_string() }
    }
}

/// The current entry's content, up to its end.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ArchiveError::Truncated));
        }
        self.content -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn padding_of(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn trim_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|b| *b == 0) {
        text.truncate(end);
    }
    text
}

/// Splits the first record off: key, value, rest.
fn split_pax(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

/// Seconds since the Unix epoch with an optional fraction.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{:0<9.9}", fraction).parse().ok()?;
    // The fraction of a negative time counts away from zero, the system's nanoseconds always upwards.
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_keep_their_fraction() {
        assert_eq!(parse_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time(b"12"), Some((12, 0)));
        assert_eq!(parse_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time(b"1.0123456789"), Some((1, 12_345_678)));
        assert_eq!(parse_time(b"x"), None);
    }

    #[test]
    fn pax_records_are_split_by_their_length() {
        assert_eq!(split_pax(b"8 a=b c\n6 d=e\n"), Some((&b"a"[..], &b"b c"[..], &b"6 d=e\n"[..])));
        assert_eq!(split_pax(b"99 a=b\n"), None);
        assert_eq!(split_pax(b"2 a=b\n"), None);
    }

    #[test]
    fn an_extension_past_its_limit_is_refused_unread() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(8 << 30);
        header.set_cksum();
        let endless = (&header.as_bytes()[..]).chain(io::repeat(b'a'));
        let error = TarStream::new(endless).next_entry().unwrap_err();
        assert!(matches!(error, ArchiveError::ExtensionTooLarge { .. }), "{error}");
    }

    #[test]
    fn a_truncated_archive_is_told_from_a_finished_one() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(1000);
        builder.append_data(&mut header, "file", &[7; 1000][..]).unwrap();
        let whole = builder.into_inner().unwrap();

        let mut finished = TarStream::new(&whole[..1536]);
        assert!(finished.next_entry().unwrap().is_some());
        assert!(finished.next_entry().unwrap().is_none(), "the closing blocks of zeros may be missing");

        let mut cut = TarStream::new(&whole[..700]);
        assert!(cut.next_entry().unwrap().is_some());
        assert!(matches!(cut.next_entry(), Err(ArchiveError::Truncated)));
        assert!(matches!(TarStream::new(&whole[..100]).next_entry(), Err(ArchiveError::Truncated)));
    }
}
