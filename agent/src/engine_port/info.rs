//! What `docker info` shows of this node.

use std::path::Path;

use skep_api::ports::engine::{EngineError, EngineInfo};
use skep_proto::model::engine::ContainerStatus;

use super::NodeEngine;

impl NodeEngine {
    pub(super) async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let facts = &self.inner.facts;
        let mut containers = (0, 0, 0);
        for container in self.inner.containers.list(true) {
            match container.state.status {
                ContainerStatus::Running | ContainerStatus::Restarting => containers.0 += 1,
                ContainerStatus::Paused => containers.1 += 1,
                ContainerStatus::Created
                | ContainerStatus::Exited
                | ContainerStatus::Removing
                | ContainerStatus::Dead => containers.2 += 1,
            }
        }
        let uname = rustix::system::uname();
        let os = os_release(&read_first(&["/etc/os-release", "/usr/lib/os-release"]));
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mut security_options = vec!["name=seccomp,profile=default".to_owned()];
        if unified {
            security_options.push("name=cgroupns".to_owned());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = std::fs::canonicalize(&facts.root).unwrap_or_else(|_| facts.root.clone());
        let mut warnings = facts.warnings.clone();
        let encryption = self.inner.sandboxes.encryption().await;
        warnings.extend(encryption.warnings);
        // Of what follows the name, clients show the seccomp profile alone.
        security_options.extend(encryption.path.map(|path| format!("name=wireguard-{path}")));
        Ok(EngineInfo {
            id: facts.id.clone(),
            name: facts.name.clone(),
            containers,
            images: self.inner.images.list().len() as u64,
            cpus: facts.cpus,
            memory: facts.memory,
            kernel: uname.release().to_string_lossy().into_owned(),
            operating_system: os.0,
            os_version: os.1,
            architecture: uname.machine().to_string_lossy().into_owned(),
            root: facts.root.clone(),
            cgroup_version: if unified { "2" } else { "1" }.to_owned(),
            security_options,
            backing_filesystem: filesystem(&mounts, &root),
            insecure_registries: facts.insecure_registries.clone(),
            warnings,
            labels: facts.labels.clone(),
            now: (self.inner.clock)(),
            usage: (entries("/proc/self/fd"), entries("/proc/self/task")),
        })
    }
}

fn read_first(paths: &[&str]) -> String {
    paths.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

fn entries(folder: &str) -> u64 {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// `PRETTY_NAME` and `VERSION_ID` (os-release(5)).
fn os_release(text: &str) -> (String, String) {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    let name = value("PRETTY_NAME");
    (if name.is_empty() { "Linux".to_owned() } else { name }, value("VERSION_ID"))
}

/// The type of the file system that holds `path`, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn filesystem(mountinfo: &str, path: &Path) -> String {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.replace("\\040", " ");
        let kind = right.split(' ').next()?;
        path.starts_with(&point).then(|| (point.len(), kind.to_owned()))
    };
    // Of two mounts at one place the later one is seen, which is what the last maximum gives.
    mountinfo.lines().filter_map(mount).max_by_key(|(len, _)| *len).map(|(_, kind)| kind).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_innermost_mount() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    30 22 8:2 / /var/lib rw shared:1 - xfs /dev/sdb rw\n\
                    31 22 0:5 / /var/libx rw - tmpfs tmpfs rw\n";
        assert_eq!(filesystem(text, Path::new("/var/lib/skep")), "xfs");
        assert_eq!(filesystem(text, Path::new("/home")), "ext4");
        assert_eq!(filesystem("", Path::new("/home")), "");
    }

    #[test]
    fn os_release_values_lose_their_quotes() {
        let text = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID='13'\n";
        assert_eq!(os_release(text), ("Debian GNU/Linux 13 (trixie)".into(), "13".into()));
        assert_eq!(os_release(""), ("Linux".into(), String::new()));
    }
}
