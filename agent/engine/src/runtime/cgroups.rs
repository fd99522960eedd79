//! Cgroups of containers on version 1, version 2 and both side by side (hybrid).
//!
//! libcontainer makes them and applies limits from the OCI configuration; this module knows where they are, and kills,
//! freezes, measures and removes. On a hybrid machine the controllers of version 1 are used.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The machine's hierarchies, and where below them containers are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    layout: Layout,
    parent: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// Mount points by controller.
    V1(BTreeMap<String, PathBuf>),
    /// The one mount point.
    V2(PathBuf),
}

/// Controllers of version 1 that libcontainer uses.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in nanoseconds, user and system.
    pub cpu_nanos: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Limit of memory in bytes; 0 for none.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Finds the hierarchies of this machine. `parent` is an absolute cgroup path (`/skep/n1`).
    ///
    /// # Errors
    /// When mounts cannot be read, or there is no usable hierarchy.
    pub fn detect(parent: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        Self::from_mounts(&mounts, parent).ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "no cgroup hierarchy is mounted on /sys/fs/cgroup")
        })
    }

    fn from_mounts(mounts: &str, parent: &str) -> Option<Self> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mounts.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(point), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            match kind {
                "cgroup2" if v2.is_none() => v2 = Some(PathBuf::from(point)),
                "cgroup" => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        v1.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(point));
                    }
                }
                _ => {}
            }
        }
        let parent = format!("/{}", parent.trim_matches('/'));
        // A hybrid machine keeps its controllers on version 1; version 2 has at most a few left.
        let layout = if v1.contains_key("devices") { Layout::V1(v1) } else { Layout::V2(v2?) };
        Some(Self { layout, parent })
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        match self.layout {
            Layout::V1(_) => 1,
            Layout::V2(_) => 2,
        }
    }

    /// The container's path as the OCI configuration names it.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.parent.trim_end_matches('/'))
    }

    /// The container's directories, one a hierarchy.
    pub fn dirs(&self, name: &str) -> Vec<PathBuf> {
        let path = self.path(name);
        let mut dirs: Vec<PathBuf> = match &self.layout {
            Layout::V1(points) => points.values().map(|p| join(p, &path)).collect(),
            Layout::V2(point) => vec![join(point, &path)],
        };
        dirs.dedup();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    fn dir(&self, controller: &str, name: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V1(points) => points.get(controller).map(|p| join(p, &self.path(name))),
            Layout::V2(point) => Some(join(point, &self.path(name))),
        }
    }

    /// The file whose line `oom_kill` counts kills for want of memory.
    pub fn oom_file(&self, name: &str) -> Option<PathBuf> {
        let file = if self.version() == 1 { "memory.oom_control" } else { "memory.events" };
        Some(self.dir("memory", name)?.join(file))
    }

    /// The directory that needs a device program; `None` where the devices controller of version 1 does that.
    pub fn device_dir(&self, name: &str) -> Option<PathBuf> {
        if self.version() == 2 { self.dir("devices", name) } else { None }
    }

    /// Pids of the container's processes; empty when it has no cgroup.
    pub fn pids(&self, name: &str) -> Vec<u32> {
        let Some(dir) = self.dir("devices", name) else { return Vec::new() };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Freezes or thaws the container, and waits until it is so.
    ///
    /// # Errors
    /// When the kernel has no freezer, or the container does not get frozen within two seconds.
    pub fn freeze(&self, name: &str, frozen: bool) -> io::Result<()> {
        let dir = self.dir("freezer", name).ok_or(io::ErrorKind::Unsupported)?;
        let (file, words, state, want) = match (self.version(), frozen) {
            (1, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            (1, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
            (_, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
            (_, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
        };
        for _ in 0..200 {
            // Version 1 may get stuck on the way: writing again helps (kernel documentation, cgroup-v1/freezer-subsystem).
            fs::write(dir.join(file), words)?;
            if fs::read_to_string(dir.join(state))?.contains(want) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} did not become {want} within two seconds")))
    }

    /// Kills every process of the container, new ones too, until none is left or a second has passed.
    pub fn kill_all(&self, name: &str) {
        if self.version() == 2
            && let Some(dir) = self.dir("", name)
        {
            // Since Linux 5.14; older ones are served by the loop.
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        for _ in 0..100 {
            let mut pids = self.pids(name);
            // Whoever adopted them collects zombies in its own time.
            pids.retain(|pid| is_alive(*pid));
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                    // It may have ended by itself.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            if self.version() == 1 && self.dir("freezer", name).is_some_and(|d| d.exists()) {
                // A frozen process dies when it is thawed.
                let _ = self.dir("freezer", name).map(|d| fs::write(d.join("freezer.state"), "THAWED"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes the container's directories. The kernel needs a moment after the last process: waits up to a second.
    ///
    /// # Errors
    /// When a directory is still busy then.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        for dir in self.dirs(name) {
            remove_dir(&dir)?;
        }
        Ok(())
    }

    /// What the container uses now; zeros where the kernel does not tell.
    pub fn usage(&self, name: &str) -> Usage {
        let number = |controller: &str, file: &str| -> u64 {
            let text = self.dir(controller, name).and_then(|d| fs::read_to_string(d.join(file)).ok());
            text.and_then(|t| t.trim().parse().ok()).unwrap_or(0)
        };
        // Version 1 tells "no limit" as the largest number of pages.
        let limit = |n: u64| if n > u64::MAX / 4 { 0 } else { n };
        match self.version() {
            1 => Usage {
                cpu_nanos: number("cpuacct", "cpuacct.usage"),
                memory: number("memory", "memory.usage_in_bytes"),
                memory_limit: limit(number("memory", "memory.limit_in_bytes")),
                pids: number("pids", "pids.current"),
            },
            _ => Usage {
                cpu_nanos: self.cpu_usec(name) * 1000,
                memory: number("memory", "memory.current"),
                memory_limit: number("memory", "memory.max"),
                pids: number("pids", "pids.current"),
            },
        }
    }

    fn cpu_usec(&self, name: &str) -> u64 {
        let text = self.dir("cpu", name).and_then(|d| fs::read_to_string(d.join("cpu.stat")).ok()).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("usage_usec ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn join(point: &Path, path: &str) -> PathBuf {
    point.join(path.trim_start_matches('/'))
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    for wait in [0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 300] {
        std::thread::sleep(Duration::from_millis(wait));
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e),
        }
        // A container that made cgroups of its own leaves them behind.
        for child in fs::read_dir(dir).into_iter().flatten().flatten() {
            if child.file_type().is_ok_and(|t| t.is_dir()) {
                let _ = remove_dir_once(&child.path());
            }
        }
    }
    fs::remove_dir(dir)
}

fn remove_dir_once(dir: &Path) -> io::Result<()> {
    for child in fs::read_dir(dir)?.flatten() {
        if child.file_type()?.is_dir() {
            remove_dir_once(&child.path())?;
        }
    }
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/devices cgroup rw,relatime,devices 0 0\n\
        cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n";
    const V2: &str = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

    #[test]
    fn a_hybrid_machine_counts_as_version_one_and_shared_mounts_once() {
        let cgroups = Cgroups::from_mounts(&format!("{V1}{V2}"), "skep/n1/").unwrap();
        assert_eq!(cgroups.version(), 1);
        assert_eq!(cgroups.path("c"), "/skep/n1/c");
        let dirs = ["/sys/fs/cgroup/cpu,cpuacct/skep/n1/c", "/sys/fs/cgroup/devices/skep/n1/c"].map(PathBuf::from);
        assert_eq!(cgroups.dirs("c"), dirs);
        assert_eq!(cgroups.device_dir("c"), None);
    }

    #[test]
    fn version_two_alone_needs_a_device_program() {
        let cgroups = Cgroups::from_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/").unwrap();
        assert_eq!(cgroups.version(), 2);
        assert_eq!(cgroups.dirs("c"), [PathBuf::from("/sys/fs/cgroup/c")]);
        assert_eq!(cgroups.device_dir("c"), Some(PathBuf::from("/sys/fs/cgroup/c")));
        assert_eq!(Cgroups::from_mounts("proc /proc proc rw 0 0", "/"), None);
    }
}
