//! The files of one log: which there are, where to begin, what comes next. Blocking.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use skep_proto::model::engine::LogLine;

use super::line;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Rotated files looked for; more than anybody keeps.
const MOST: u32 = 1000;

/// A log being read: files not read to their end, oldest first.
pub struct Files {
    path: PathBuf,
    unread: VecDeque<File>,
    partial: Vec<u8>,
}

impl Files {
    /// Opens the log, so that reading begins `tail` lines before its end, or at its beginning.
    pub fn open(path: PathBuf, tail: Option<usize>) -> io::Result<Self> {
        let mut unread = open_all(&path)?;
        if let Some(tail) = tail {
            unread = from_tail(unread, tail)?;
        }
        Ok(Self { path, unread, partial: Vec::new() })
    }

    /// The next lines, some chunk of them; none when there are none now.
    pub fn next_lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let Some(file) = self.unread.front_mut() else {
                self.unread = open_all(&self.path)?;
                if self.unread.is_empty() {
                    return Ok(Vec::new());
                }
                continue;
            };
            let len = file.read(&mut chunk)?;
            if len == 0 {
                if !self.go_on()? {
                    return Ok(Vec::new());
                }
                continue;
            }
            self.partial.extend_from_slice(&chunk[..len]);
            let lines = self.take_lines();
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    fn take_lines(&mut self) -> Vec<LogLine> {
        let Some(end) = self.partial.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        whole.split(|b| *b == b'\n').filter_map(line::parse).collect()
    }

    /// Goes on to the file that follows the one read to its end; `false` when it is the one being written.
    fn go_on(&mut self) -> io::Result<bool> {
        if self.unread.len() == 1 {
            let newer = self.rotated_since()?;
            if newer.is_empty() {
                return Ok(false);
            }
            self.unread.extend(newer);
            // What was written between its end and its rotation.
            return Ok(true);
        }
        self.unread.pop_front();
        // A line ends in the file where it began, so this was torn.
        self.partial.clear();
        Ok(true)
    }

    /// Files newer than the last one held.
    fn rotated_since(&self) -> io::Result<Vec<File>> {
        let Some(held) = self.unread.back() else { return Ok(Vec::new()) };
        let held = inode(held)?;
        let mut files = open_all(&self.path)?;
        let mut inodes = Vec::new();
        for file in &files {
            inodes.push(inode(file)?);
        }
        // Not among them: everything there is newer, and something in between may be gone for good.
        let newer = inodes.iter().position(|i| *i == held).map_or(0, |at| at + 1);
        Ok(files.drain(newer..).collect())
    }
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

/// All files of the log, oldest first. Repeated when a rotation moved them meanwhile.
fn open_all(path: &Path) -> io::Result<VecDeque<File>> {
    loop {
        let mut files = VecDeque::new();
        let mut inodes = Vec::new();
        let numbers = (1..MOST).take_while(|n| numbered(path, *n).exists()).collect::<Vec<_>>();
        let paths = numbers.iter().rev().map(|n| numbered(path, *n)).chain([path.to_owned()]);
        for path in paths.clone() {
            match File::open(&path) {
                Ok(file) => {
                    inodes.push(inode(&file)?);
                    files.push_back(file);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let now: Vec<u64> = paths.filter_map(|p| p.metadata().ok()).map(|m| m.ino()).collect();
        if now == inodes {
            return Ok(files);
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}", path.display()))
}

/// Leaves out what is before the last `tail` lines.
fn from_tail(mut files: VecDeque<File>, tail: usize) -> io::Result<VecDeque<File>> {
    let mut kept = VecDeque::new();
    let mut missing = tail;
    while let Some(mut file) = files.pop_back() {
        let (start, lines) = last_lines(&file, missing)?;
        file.seek(SeekFrom::Start(start))?;
        kept.push_front(file);
        missing -= lines;
        if missing == 0 {
            break;
        }
    }
    Ok(kept)
}

/// Where the last `wanted` whole lines of the file begin, and how many there are.
fn last_lines(file: &File, wanted: usize) -> io::Result<(u64, usize)> {
    let mut end = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK];
    // Line feeds seen so far, from the end. The one before the first wanted line is not part of it.
    let mut seen = 0;
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let part = &mut chunk[..usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(part, start)?;
        for (at, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            if seen == wanted {
                return Ok((start + at as u64 + 1, wanted));
            }
            seen += 1;
        }
        end = start;
    }
    Ok((0, seen))
}
