//! What was changed since the zones were written whole, so that a change costs what it changes.
//!
//! ```text
//! format (2 bytes) { length (4) | CRC-32 of the update (4) | Update in postcard }*
//! ```
//! Each update names the edition that it rests on, so that one which the whole record has already does no harm, and a journal
//! of other zones none either. It is only ever appended to; after a failure it is left, and all is written anew. So what
//! follows a damaged update is nothing that was ever acknowledged.
//!
//! Not synced, like the records: what a dead process has written is there for the next one. After a power loss the sandboxes
//! are gone as well, and the daemon tells all anew.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use crate::netd::told::{Told, Update};

/// Format of the file. A change that old code cannot read takes the next number.
const FORMAT: u16 = 1;
/// Up to that size, in bytes, a journal is let grow beside a record that is smaller: to write so little anew gains nothing.
const LEAST: u64 = 256 << 10;
/// Longest update in bytes. All zones are written instead of a longer one.
const MAX_UPDATE: usize = 1 << 20;
/// Bytes of an update's length and checksum.
const HEAD: usize = 8;

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    file: File,
    length: u64,
    limit: u64,
}

impl Journal {
    /// Begins an empty one in place of the former, beside a record of that many bytes, which must have all that the former had.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn begin(path: &Path, record: usize) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
        file.write_all(&FORMAT.to_le_bytes())?;
        // Not larger than the record by far: to read both at a start takes as long as to read the record twice.
        let limit = u64::try_from(record).unwrap_or(u64::MAX).max(LEAST);
        Ok(Self { file, length: 2, limit })
    }

    /// Appends an update; `false` when there is no room for it and all is to be written instead.
    ///
    /// # Errors
    /// Those of write(2): then nothing may be appended any more.
    pub fn append(&mut self, update: &Update) -> io::Result<bool> {
        let mut entry = postcard::to_extend(update, vec![0; HEAD]).map_err(io::Error::other)?;
        let (head, body) = entry.split_at_mut(HEAD);
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_UPDATE);
        let Some(length) = length else { return Ok(false) };
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        let after = self.length + u64::try_from(entry.len()).unwrap_or(u64::MAX);
        if after > self.limit {
            return Ok(false);
        }
        self.file.write_all(&entry)?;
        self.length = after;
        Ok(true)
    }
}

/// Goes on from the zones of the record to those of the last update that is whole. Gives how many updates were taken, and
/// whether something was behind them that is no update.
///
/// # Errors
/// When the file cannot be read.
pub fn replay(path: &Path, told: &mut Told) -> io::Result<(usize, bool)> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, false)),
        Err(error) => return Err(error),
    };
    let format = bytes(&mut file, 2)?;
    if format != FORMAT.to_le_bytes() {
        return Ok((0, !format.is_empty()));
    }
    let mut taken = 0;
    loop {
        let head = bytes(&mut file, HEAD)?;
        if head.is_empty() {
            return Ok((taken, false));
        }
        let Some(update) = update(&head, &mut file)? else { return Ok((taken, true)) };
        taken += usize::from(told.follow(&update));
    }
}

/// The update behind a head; `None` for what is none.
fn update(head: &[u8], file: &mut impl Read) -> io::Result<Option<Update>> {
    let word = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (Some(length), Some(checksum)) = (word(0), word(4)) else { return Ok(None) };
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= MAX_UPDATE) else { return Ok(None) };
    let body = bytes(file, length)?;
    if body.len() != length || crc32fast::hash(&body) != checksum {
        return Ok(None);
    }
    Ok(postcard::from_bytes(&body).ok())
}

/// That many bytes, or what is left.
fn bytes(file: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(u64::try_from(count).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
