//! The container's log in Docker's json-file format, with rotation.
//!
//! One line of JSON for each line of output: `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}`.
//! A line longer than 16 KiB is cut into several; only the last one ends in a line feed. Writing never blocks the
//! container on anything but the file system; a full disk loses lines, not the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::time;

/// Longest piece of a line in one entry, as Docker's.
const MAX_LINE: usize = 16 * 1024;

/// The writer. One per container.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max_size: u64,
    max_files: u32,
    partial: [Vec<u8>; 2],
    entries: Vec<u8>,
}

impl Log {
    /// Opens or continues the log at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            size,
            max_size,
            max_files: max_files.max(1),
            partial: [Vec::new(), Vec::new()],
            entries: Vec::new(),
        })
    }

    /// Takes output of a stream (0: standard output, 1: standard error) as it comes.
    pub fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial[stream].len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    let (line, rest) = bytes.split_at(end + 1);
                    self.finish(stream, line);
                    bytes = rest;
                }
                None if window.len() == room => {
                    let (piece, rest) = bytes.split_at(room);
                    self.finish(stream, piece);
                    bytes = rest;
                }
                None => {
                    self.partial[stream].extend_from_slice(window);
                    break;
                }
            }
        }
        self.flush();
    }

    /// Writes what is left of lines without an end.
    pub fn close(&mut self) {
        for stream in 0..2 {
            if !self.partial[stream].is_empty() {
                self.finish(stream, &[]);
            }
        }
        self.flush();
    }

    fn finish(&mut self, stream: usize, rest: &[u8]) {
        let partial = std::mem::take(&mut self.partial[stream]);
        let name = if stream == 0 { "stdout" } else { "stderr" };
        if partial.is_empty() {
            put_entry(&mut self.entries, rest, name, time::now_nanos());
        } else {
            let mut line = partial;
            line.extend_from_slice(rest);
            put_entry(&mut self.entries, &line, name, time::now_nanos());
        }
        if self.max_size > 0 && self.size + self.entries.len() as u64 >= self.max_size {
            self.flush();
            self.rotate();
        }
    }

    fn flush(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        if self.file.is_none() {
            // Rotation failed half way; try again to have a file.
            self.file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path).ok();
        }
        if let Some(file) = &mut self.file
            && file.write_all(&self.entries).is_ok()
        {
            self.size += self.entries.len() as u64;
        }
        // Lost if it could not be written: the container must not wait for a full disk.
        self.entries.clear();
        self.entries.shrink_to(64 * 1024);
    }

    fn rotate(&mut self) {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..self.max_files.saturating_sub(1)).rev() {
            // A missing file is normal until the log has been rotated that often.
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        if self.max_files > 1 {
            let _ = fs::rename(&self.path, numbered(1));
        } else {
            let _ = fs::remove_file(&self.path);
        }
        self.file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path).ok();
        self.size = 0;
    }
}

fn put_entry(out: &mut Vec<u8>, line: &[u8], stream: &str, at_nanos: u64) {
    out.extend_from_slice(b"{\"log\":\"");
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            put_char(out, c);
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time::rfc3339(at_nanos).as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// As Go's encoding/json with HTML escaping, which Docker's log files carry.
fn put_char(out: &mut Vec<u8>, c: char) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
            out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes());
        }
        _ => {
            let mut buffer = [0; 4];
            out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn an_entry_is_dockers_to_the_byte() {
        let mut out = Vec::new();
        put_entry(&mut out, b"a<\"\x01\xff\n", "stderr", 1_700_000_000_000_000_120);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"log\":\"a\\u003c\\\"\\u0001\\ufffd\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.00000012Z\"}\n"
        );
    }

    #[test]
    fn output_becomes_lines_whatever_the_reads_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 0, 1).unwrap();
        log.write(0, b"on");
        log.write(1, b"err\n");
        log.write(0, b"e\ntwo\nthr");
        log.close();
        let got: Vec<_> = lines(&path).iter().map(|l| (l["log"].clone(), l["stream"].clone())).collect();
        assert_eq!(
            got,
            [("err\n", "stderr"), ("one\n", "stdout"), ("two\n", "stdout"), ("thr", "stdout")]
                .map(|(a, b)| (a.into(), b.into()))
        );
    }

    #[test]
    fn a_long_line_is_cut_at_sixteen_kibibytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 0, 1).unwrap();
        for _ in 0..4 {
            log.write(0, &[b'x'; 5000]);
        }
        log.write(0, b"\n");
        let sizes: Vec<_> = lines(&path).iter().map(|l| l["log"].as_str().unwrap().len()).collect();
        assert_eq!(sizes, [MAX_LINE, 20_001 - MAX_LINE]);
    }

    #[test]
    fn rotation_keeps_so_many_files_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(&path, 500, 3).unwrap();
        for n in 0..100 {
            log.write(0, format!("line {n}\n").as_bytes());
        }
        log.close();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert!(fs::metadata(dir.path().join("log.1")).unwrap().len() < 700);
        let last = lines(&dir.path().join("log.1")).pop().or_else(|| lines(&path).pop()).unwrap();
        assert!(last["log"].as_str().unwrap().starts_with("line 9"));
    }
}
