//! Removes every trace of a lab: processes, mounts, namespaces, links, the nftables table, cgroups, files.
//!
//! Nothing of it depends on the daemons having kept order: processes are found by their network namespace, their
//! cgroup and their open root, mounts by their place below the lab's directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::network;
use super::state::{LabState, NodeState};

const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the lab down. May be run again.
pub fn run(dir: &Path, state: &LabState) -> anyhow::Result<()> {
    Traces { dir, namespaces: network::namespaces(dir, state), cgroup: state.cgroup() }.kill_processes()?;
    unmount_below(dir)?;
    let link = network::host_link(state);
    // The kernel removes it by itself, a moment after the namespace that its peer is in.
    let exists = || Path::new("/sys/class/net").join(&link).exists();
    if exists()
        && let Err(error) = network::ip(None, &format!("link delete {link}"))
        && exists()
    {
        return Err(error);
    }
    // Absent when making the lab was interrupted; adding it first makes the deletion always valid.
    let table = network::host_table(state);
    network::nft(None, &format!("add table ip {table}\ndelete table ip {table}"))?;
    if state.forwarding_before == Some(false) {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("restoring net.ipv4.ip_forward")?;
    }
    remove_cgroups(&state.cgroup())?;
    remove_files(dir, state)
}

/// Leaves of a node what a machine keeps when its power fails: its files. May be run again.
pub fn power_off(dir: &Path, state: &LabState, node: &NodeState) -> anyhow::Result<()> {
    let (home, namespace) = (dir.join(&node.name), network::namespace_path(dir, &node.name));
    let cgroup = format!("{}/{}", state.cgroup(), node.name);
    Traces { dir: &home, namespaces: vec![namespace.clone()], cgroup: cgroup.clone() }.kill_processes()?;
    network::unplug(dir, node)?;
    unmount_below(&home)?;
    unmount(&namespace)?;
    remove_cgroups(&cgroup)?;
    // On a machine this is a tmpfs.
    let run = home.join("run");
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("removing {}", run.display()))?;
    }
    Ok(())
}

/// By what processes of the lab, or of one of its nodes, are known.
struct Traces<'a> {
    /// Arguments of daemons, netd and shims lie below this directory.
    dir: &'a Path,
    namespaces: Vec<PathBuf>,
    cgroup: String,
}

impl Traces<'_> {
    /// Kills until nothing is left: what dies may have been starting something else.
    fn kill_processes(&self) -> anyhow::Result<()> {
        let namespaces: BTreeSet<u64> =
            self.namespaces.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.st_ino()).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.processes(&namespaces);
            if found.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("processes {found:?} of the lab do not die");
            }
            for pid in found {
                // A process that has ended meanwhile is what we want.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn processes(&self, namespaces: &BTreeSet<u64>) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let own = rustix::process::getpid();
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<i32>().ok()?, entry.path())))
            .filter(|(_, path)| self.marks(path, namespaces))
            .filter_map(|(pid, _)| Pid::from_raw(pid))
            .filter(|pid| *pid != own)
            .collect()
    }

    fn marks(&self, process: &Path, namespaces: &BTreeSet<u64>) -> bool {
        if fs::read_to_string(process.join("stat"))
            .is_ok_and(|s| s.rsplit_once(") ").is_some_and(|(_, r)| r.starts_with('Z')))
        {
            return false;
        }
        let in_namespace = fs::metadata(process.join("ns/net")).is_ok_and(|m| namespaces.contains(&m.st_ino()));
        let marker = format!("/{}/", self.cgroup);
        let in_cgroup = fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(&marker));
        let names_dir = fs::read(process.join("cmdline")).is_ok_and(|bytes| is_daemon_of(&bytes, self.dir));
        in_namespace || in_cgroup || names_dir
    }
}

/// A daemon, netd or shim whose arguments lie below the lab's directory, wherever its namespace went.
fn is_daemon_of(command_line: &[u8], dir: &Path) -> bool {
    let text = String::from_utf8_lossy(command_line);
    let words: Vec<&str> = text.split('\0').collect();
    let Some((program, arguments)) = words.split_first() else { return false };
    let is_skep = Path::new(program).file_name().is_some_and(|name| name.to_string_lossy().starts_with("skep"));
    // This command itself, and others that look at the lab.
    let is_lab_command = arguments.first() == Some(&"lab");
    let prefix = format!("{}/", dir.display());
    is_skep && !is_lab_command && arguments.iter().any(|word| word.trim_start_matches("unix://").starts_with(&prefix))
}

/// Unmounts what lies below a directory, innermost first.
fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let mut points = mount_points_below(dir)?;
    points.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
    points.iter().try_for_each(|point| unmount(point))
}

/// Unmounts, unless nothing is mounted there.
fn unmount(point: &Path) -> anyhow::Result<()> {
    match rustix::mount::unmount(point, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", point.display())),
    }
}

/// proc(5), `mountinfo`, field 5, with its octal escapes.
fn mount_points_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| PathBuf::from(unescape(field)));
    Ok(points.filter(|p| p.starts_with(dir) && p != dir).collect())
}

fn unescape(field: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(field.to_owned(), |text, rule| text.replace(&rule[..4], &rule[4..]))
}

/// Removes the lab's cgroups from every hierarchy. They empty a moment after their processes die.
fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![root.to_owned()];
    hierarchies.extend(fs::read_dir(root)?.flatten().map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()));
    for top in hierarchies.iter().map(|h| h.join(name)).filter(|p| p.is_dir()) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = remove_cgroup_tree(&top) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("removing {}", top.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn remove_cgroup_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|e| e.path().is_dir()) {
        remove_cgroup_tree(&entry.path())?;
    }
    fs::remove_dir(path)
}

/// Removes what the lab made in its directory, the state file last, and the directory when nothing else is in it.
fn remove_files(dir: &Path, state: &LabState) -> anyhow::Result<()> {
    let homes = state.nodes.iter().map(|n| dir.join(&n.name)).chain([dir.join("netns")]);
    for path in homes.filter(|p| p.exists()) {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    fs::remove_file(LabState::path(dir)).context("removing lab.json")?;
    // Fails when the user keeps files of his own there, and then they stay.
    let _ = fs::remove_dir(dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_skep_below_the_directory_are_the_labs() {
        let dir = Path::new("/tmp/lab");
        let line = |words: &[&str]| words.join("\0").into_bytes();
        assert!(is_daemon_of(&line(&["/usr/bin/skep", "daemon", "--root", "/tmp/lab/m1/root"]), dir));
        assert!(is_daemon_of(&line(&["skep-shim", "/tmp/lab/m1/root/containers/ab"]), dir));
        assert!(!is_daemon_of(&line(&["skep", "lab", "down", "--dir", "/tmp/lab/"]), dir));
        assert!(!is_daemon_of(&line(&["/usr/bin/skep", "daemon", "--root", "/tmp/lab2/m1"]), dir));
        assert!(!is_daemon_of(&line(&["vim", "/tmp/lab/m1/daemon.log"]), dir));
    }

    #[test]
    fn escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
