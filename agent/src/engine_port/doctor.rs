//! What `skep doctor` says of this node beside its network: kernel, storage, and the way to the managers.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use skep_proto::model::doctor::{Check, Member, Question, Report};

use super::NodeEngine;

/// How long a manager may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// The oldest kernel with all that the network uses: rules at the exit of a link came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 16);
/// Room that is little, and too little: in hundredths of the whole, or in bytes.
const LITTLE: (u64, u64) = (10, 2 << 30);
const TOO_LITTLE: (u64, u64) = (2, 256 << 20);

impl NodeEngine {
    pub(super) async fn examine(&self, question: &Question) -> Report {
        let began = (self.inner.clock)().0;
        let root = self.inner.facts.root.clone();
        let local = tokio::task::spawn_blocking(move || (kernel(), storage(&root)));
        let examined = self.inner.sandboxes.examine(question).await;
        let managers = question.members.iter().filter(|member| Some(&member.id) != examined.node.as_ref());
        let reached = join_all(managers.filter_map(|member| Some(manager(member, member.manager?)))).await;
        let (mut checks, storage) = local.await.unwrap_or_default();
        checks.extend(reached);
        checks.extend(examined.checks);
        checks.extend(storage);
        Report { began, ended: (self.inner.clock)().0, checks, known: examined.known }
    }
}

async fn manager(member: &Member, address: std::net::SocketAddr) -> Check {
    let connecting = tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(address));
    let reached = match connecting.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    };
    judge_manager(address, reached).with(&member.name)
}

fn judge_manager(address: std::net::SocketAddr, reached: Result<(), String>) -> Check {
    match reached {
        Ok(()) => Check::ok("manager", format!("{address} accepts connections")),
        Err(why) => Check::failed(
            "manager",
            format!("{address} cannot be connected to: {why}"),
            format!(
                "start the daemon there if it is down; else let TCP {} pass between the two nodes, and look whether {} is \
                 its address",
                address.port(),
                address.ip()
            ),
        ),
    }
}

/// What of the kernel containers need.
fn kernel() -> Vec<Check> {
    let uname = rustix::system::uname();
    // Loads the module where it is not there yet.
    let overlay = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
    let overlay = overlay.map(drop).map_err(|error| std::io::Error::from(error).to_string());
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let is_there = |name: &str| Path::new("/sys/fs/cgroup").join(name).is_dir();
    let cgroups = judge_cgroups(controllers.as_deref(), is_there);
    vec![judge_version(&uname.release().to_string_lossy()), judge_overlay(overlay), cgroups]
}

fn judge_version(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let text = format!("Linux {release}");
    let (major, minor) = OLDEST_KERNEL;
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(second))) if (first, second) >= OLDEST_KERNEL => Check::ok("kernel", text),
        (Some(Ok(_)), Some(Ok(_))) => {
            let advice =
                format!("published ports need rules at the exit of a link: run Linux {major}.{minor} or newer");
            Check::failed("kernel", text, advice)
        }
        _ => Check::warning("kernel", text, format!("its version cannot be read; it must be {major}.{minor} or newer")),
    }
}

fn judge_overlay(opened: Result<(), String>) -> Check {
    match opened {
        Ok(()) => Check::ok("overlayfs", "the kernel has it"),
        Err(why) => Check::failed(
            "overlayfs",
            format!("the kernel does not have it ({why})"),
            "no container starts without it: load the module (modprobe overlay) or run a kernel with it",
        ),
    }
}

/// `controllers` is the text of `cgroup.controllers` (cgroups(7)), `None` where version 1 is mounted.
fn judge_cgroups(controllers: Option<&str>, is_there: impl Fn(&str) -> bool) -> Check {
    let has = |name: &&&str| match controllers {
        Some(text) => text.split_whitespace().any(|word| word == **name),
        None => is_there(name),
    };
    let needed = ["cpu", "memory", "pids"];
    let missing: Vec<&str> = needed.iter().filter(|name| !has(name)).copied().collect();
    let version = if controllers.is_some() { 2 } else { 1 };
    if missing.is_empty() {
        return Check::ok("cgroups", format!("version {version}"));
    }
    let text = format!("version {version}, without: {}", missing.join(", "));
    let advice = "containers that ask for limits do not start: enable these controllers on the kernel's command line \
                  (cgroup_enable=memory), or for the group that the daemon runs in";
    Check::failed("cgroups", text, advice)
}

/// Room below the root directory.
fn storage(root: &Path) -> Vec<Check> {
    match rustix::fs::statvfs(root) {
        Ok(fs) => vec![
            judge_space(root, fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_blocks.saturating_mul(fs.f_frsize)),
            judge_files(root, fs.f_favail, fs.f_files),
        ],
        Err(error) => {
            let advice = "look whether the disk is there and mounted";
            let error = std::io::Error::from(error);
            vec![Check::failed("storage", format!("{} cannot be read: {error}", root.display()), advice)]
        }
    }
}

fn judge_space(root: &Path, free: u64, whole: u64) -> Check {
    let gib = |bytes: u64| bytes >> 30;
    let text = format!("{} GiB of {} GiB are free below {}", gib(free), gib(whole), root.display());
    let advice = "remove what is not needed (skep image prune, docker system prune), or give the disk more room; a manager \
                  whose disk is full takes no changes";
    let below = |(share, bytes): (u64, u64)| free < bytes || (free / 100 < whole / 10_000 * share && free < 50 << 30);
    match (below(TOO_LITTLE), below(LITTLE)) {
        (true, _) => Check::failed("storage", text, advice),
        (_, true) => Check::warning("storage", text, advice),
        _ => Check::ok("storage", text),
    }
}

fn judge_files(root: &Path, free: u64, whole: u64) -> Check {
    // File systems that make them as they go tell none.
    if whole == 0 {
        return Check::ok("inodes", "this file system does not run out of them");
    }
    let text = format!("{free} of {whole} are free below {}", root.display());
    let advice = "many small files fill the file system: remove images and volumes that are not needed";
    match free.saturating_mul(100) / whole {
        share if share < TOO_LITTLE.0 => Check::failed("inodes", text, advice),
        share if share < LITTLE.0 => Check::warning("inodes", text, advice),
        _ => Check::ok("inodes", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::model::doctor::Outcome;

    #[test]
    fn old_kernels_and_unreadable_versions_are_told() {
        let outcome = |release: &str| judge_version(release).outcome;
        assert_eq!([outcome("6.12.1-amd64"), outcome("5.16.0"), outcome("10.0")], [Outcome::Ok; 3]);
        assert_eq!([outcome("5.15.0-generic"), outcome("4.19.1")], [Outcome::Failed; 2]);
        assert_eq!([outcome(""), outcome("six"), outcome("99999999999.1")], [Outcome::Warning; 3]);
    }

    #[test]
    fn missing_controllers_are_named_in_both_versions() {
        let none = |_: &str| false;
        assert_eq!(judge_cgroups(Some("cpuset cpu io memory pids"), none).outcome, Outcome::Ok);
        assert_eq!(judge_cgroups(Some("cpuset cpu io pids"), none).seen, "version 2, without: memory");
        assert_eq!(judge_cgroups(None, |name| name != "pids").seen, "version 1, without: pids");
        assert_eq!(judge_cgroups(Some(""), none).outcome, Outcome::Failed);
        assert_eq!(judge_overlay(Err("no such device".into())).outcome, Outcome::Failed);
    }

    #[test]
    fn room_is_judged_by_share_and_by_size() {
        let gib = |n: u64| n << 30;
        let space = |free, whole| judge_space(Path::new("/x"), free, whole).outcome;
        assert_eq!(space(gib(40), gib(100)), Outcome::Ok);
        assert_eq!(space(gib(60), gib(1000)), Outcome::Ok, "60 GiB are enough whatever the share");
        assert_eq!(space(gib(5), gib(100)), Outcome::Warning);
        assert_eq!(space(gib(1), gib(100)), Outcome::Failed);
        assert_eq!(space(gib(1), gib(4)), Outcome::Warning);
        assert_eq!(space(100 << 20, gib(1)), Outcome::Failed);
        assert_eq!(space(0, 0), Outcome::Failed);
        let files = |free, whole| judge_files(Path::new("/x"), free, whole).outcome;
        assert_eq!([files(0, 0), files(50, 100)], [Outcome::Ok; 2]);
        assert_eq!((files(5, 100), files(1, 100)), (Outcome::Warning, Outcome::Failed));
    }

    #[test]
    fn a_manager_that_does_not_answer_is_told_with_its_port() {
        let address = "192.0.2.1:2377".parse().unwrap();
        assert_eq!(judge_manager(address, Ok(())).outcome, Outcome::Ok);
        let check = judge_manager(address, Err("connection refused".into()));
        assert!(check.outcome == Outcome::Failed && check.advice.contains("TCP 2377"), "{check:?}");
    }
}
