//! What a node leaves in the kernel and on disk. Of a node without tasks it is always the same.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::{Lab, eventually, host};

/// Traces by kind; each a line that a person can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residue(BTreeSet<String>);

impl Residue {
    /// Looks at a node whose daemon runs.
    ///
    /// # Errors
    /// When the node cannot be looked at.
    pub fn of(lab: &mut Lab, node: &str) -> anyhow::Result<Self> {
        let mut found = BTreeSet::new();
        let mut add = |kind: &str, lines: Vec<String>| found.extend(lines.iter().map(|line| format!("{kind}: {line}")));
        let ip = |what: &[&str]| lab.lab(&[&["exec", node, "--", "ip", "-o"], what].concat());
        add("link", ip(&["link"])?.lines().filter_map(link_name).collect());
        add(
            "route",
            ip(&["route", "show", "table", "all", "type", "unicast"])?.lines().map(|l| l.trim().into()).collect(),
        );
        add("rule", ip(&["rule"])?.lines().map(str::to_owned).collect());
        add("neighbour", ip(&["neigh", "show", "nud", "permanent"])?.lines().map(|l| l.trim().into()).collect());
        let rules = lab.lab(&["exec", node, "--", "nft", "--stateless", "list", "ruleset"])?;
        add("nft", nft_lines(&rules));
        add("cgroup", cgroups(&format!("{}/{node}", lab.cgroup())));
        let root = lab.daemon_root(node);
        add("container", entries(&root.join("containers")));
        add("network", entries(&root.join("network")));
        let daemon = lab.pid(node);
        add("mount", mounts(daemon, &lab.root(node))?);
        // The number, since pids differ from run to run.
        add("shims", vec![host::shims(daemon).len().to_string()]);
        Ok(Self(found))
    }

    /// Checks that nothing was added to, or is missing from, what was there before.
    ///
    /// # Errors
    /// What differs.
    pub fn ensure_same(&self, before: &Self) -> anyhow::Result<()> {
        let (more, less): (Vec<_>, Vec<_>) =
            (self.0.difference(&before.0).collect(), before.0.difference(&self.0).collect());
        ensure!(more.is_empty() && less.is_empty(), "left behind: {more:#?}, missing: {less:#?}");
        Ok(())
    }
}

/// What nodes have without a task, once it no longer changes.
///
/// # Panics
/// When it does not cease to.
pub fn settled(lab: &mut Lab) -> Vec<(String, Residue)> {
    let mut last = Vec::new();
    let mut same = 0;
    let nodes = lab.nodes();
    eventually("nodes are as they are without tasks", || {
        let now: anyhow::Result<Vec<Residue>> = nodes.iter().map(|node| Residue::of(lab, node)).collect();
        let now = now?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        ensure!(same == 3, "they still change");
        Ok(())
    });
    nodes.into_iter().zip(last).collect()
}

/// `7: eth0@if8: <…>` -> `eth0`.
fn link_name(line: &str) -> Option<String> {
    let name = line.split(": ").nth(1)?;
    Some(name.split('@').next().unwrap_or(name).to_owned())
}

/// Lines of a rule set, each with the table and chain or set it is in; their order does not count.
fn nft_lines(rules: &str) -> Vec<String> {
    let mut within: Vec<&str> = Vec::new();
    let mut lines = Vec::new();
    for line in rules.lines().map(str::trim).filter(|l| !l.is_empty()) {
        lines.push(format!("{} {line}", within.join(" ")));
        if line.ends_with('{') && !line.contains('}') {
            within.push(line.trim_end_matches('{').trim());
        } else if line == "}" {
            within.pop();
        }
    }
    lines
}

/// Groups below one, in every hierarchy.
fn cgroups(name: &str) -> Vec<String> {
    let top = Path::new("/sys/fs/cgroup");
    let mut roots = vec![top.to_owned()];
    roots.extend(std::fs::read_dir(top).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| !p.is_symlink()));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = roots.iter().map(|r| r.join(name)).filter(|p| p.is_dir()).collect();
    while let Some(folder) = folders.pop() {
        let below = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path());
        for path in below.filter(|p| p.is_dir()) {
            found.push(path.display().to_string());
            folders.push(path);
        }
    }
    found
}

fn entries(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(folder).unwrap_or(&path).display().to_string());
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found
}

/// Mount points below a folder, as a process sees them.
fn mounts(pid: u64, folder: &Path) -> anyhow::Result<Vec<String>> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("reading its mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|p| Path::new(p).starts_with(folder)).map(str::to_owned).collect())
}
