//! The node's own name servers, read from `/etc/resolv.conf` again whenever it changes.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an answer of stat(2) is believed.
const RECHECK: Duration = Duration::from_secs(1);
/// Servers used of a file (`MAXNS` of resolv.conf(5)).
const MAX_SERVERS: usize = 3;

/// The servers of a resolv.conf.
#[derive(Debug)]
pub struct NodeServers {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    checked: Option<Instant>,
    /// Inode, length, seconds and nanoseconds of the last change.
    mark: Option<(u64, u64, i64, i64)>,
    servers: Arc<[IpAddr]>,
}

impl NodeServers {
    /// Those of the file at `path`; it need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::default() }
    }

    /// The servers at the time `now`; none when the file cannot be read.
    pub fn get(&self, now: Instant) -> Arc<[IpAddr]> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.checked.is_some_and(|checked| now.duration_since(checked) < RECHECK) {
            return seen.servers.clone();
        }
        let mark = fs::metadata(&self.path).ok().map(|m| (m.ino(), m.len(), m.mtime(), m.mtime_nsec()));
        if mark != seen.mark || seen.checked.is_none() {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            seen.servers = parse(&text).into();
            seen.mark = mark;
        }
        seen.checked = Some(now);
        seen.servers.clone()
    }
}

/// The servers that a resolv.conf names, as resolv.conf(5) reads it. Addresses of a link (`fe80::1%eth0`) are left out.
pub fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .take(MAX_SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_name_a_server_count() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.1\n nameserver\t::1 # x\nnameserver x\n";
        assert_eq!(parse(text), [IpAddr::from([10, 0, 0, 1]), "::1".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut now = Instant::now();
        let servers = NodeServers::new(path.clone());
        assert!(servers.get(now).is_empty());
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        now += RECHECK;
        assert_eq!(servers.get(now)[..], [IpAddr::from([10, 0, 0, 1])]);
        fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        now += RECHECK;
        assert_eq!(servers.get(now)[..], [IpAddr::from([10, 0, 0, 22])]);
    }
}
