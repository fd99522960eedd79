//! What tests look at and do on the host, beside the daemons.

use std::path::Path;
use std::process::Command;

/// Processes of a node's containers, in order: those in the lab's cgroup of that node.
pub fn pids_of(cgroup: &str, node: &str) -> Vec<u64> {
    let mut pids = Vec::new();
    // Every hierarchy holds the same containers; pids is one that all kernels with v1 have, unified the one of v2.
    for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
        collect(&Path::new(root).join(cgroup).join(node), &mut pids);
        if !pids.is_empty() {
            break;
        }
    }
    pids.sort_unstable();
    pids
}

fn collect(dir: &Path, pids: &mut Vec<u64>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<u64>().ok()));
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    entries.flatten().filter(|e| e.path().is_dir()).for_each(|e| collect(&e.path(), pids));
}

/// Shims of the daemon with that pid: those whose arguments lie below the same root.
pub fn shims(daemon: u64) -> Vec<u64> {
    let arguments = words(daemon);
    let root =
        arguments.iter().position(|w| w == "--root").and_then(|i| arguments.get(i + 1)).cloned().unwrap_or_default();
    processes(|words| {
        words.first().is_some_and(|w| w.ends_with("skep-shim")) && words.iter().any(|w| w.starts_with(&root))
    })
}

/// Name servers whose files lie below that root.
pub fn name_servers(root: &Path) -> Vec<u64> {
    processes(|words| words.get(1).is_some_and(|w| w == "net") && words.iter().any(|w| Path::new(w).starts_with(root)))
}

/// Processes of a node's containers whose program has that name.
pub fn pids_named(cgroup: &str, node: &str, program: &str) -> Vec<u64> {
    let is_named = |pid: &u64| words(*pid).first().is_some_and(|word| word.rsplit('/').next() == Some(program));
    pids_of(cgroup, node).into_iter().filter(is_named).collect()
}

fn words(pid: u64) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').map(str::to_owned).collect()
}

/// Processes whose command line is such.
fn processes(is: impl Fn(&[String]) -> bool) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let all = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok());
    all.filter(|pid| is(&words(*pid))).collect()
}

/// SIGKILL. A process that is gone already is what was wanted.
pub fn kill(pid: u64) {
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
}
