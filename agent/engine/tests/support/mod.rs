//! A node's containers in a directory and a cgroup of their own, for tests on a real kernel.
#![allow(dead_code, clippy::unwrap_used)] // Each test file uses its part, and a test may panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use skep_engine::containers::{Attached, Config, Containers, ImageRef, NewContainer, StartWith, WaitCondition};
use skep_engine::runtime::cgroups::Cgroups;
use skep_engine::runtime::rootfs::OverlayApi;
use skep_proto::model::engine::{
    ContainerConfig, ContainerRestart, ExecConfig, ImageConfig, LogQuery, NetworkMode, OutputStream,
};
use skep_proto::model::task::Resources;
use skep_proto::model::{ContainerId, ContainerSpec, Timestamp};

/// Nothing in these tests takes that long on a machine that works.
pub const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub image: ImageRef,
    pub containers: Containers,
}

pub fn now() -> Timestamp {
    Timestamp(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

/// The shim, built beside these tests.
pub fn shim() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        if let Some(path) = std::env::var_os("SKEP_SHIM") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--quiet", "-p", "skep-shim"]).status().unwrap();
        assert!(status.success(), "the shim does not build");
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("skep-shim")
    })
    .clone()
}

/// A layer of busybox and a few accounts.
pub fn busybox(layer: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("these tests need the package busybox-static");
    for dir in ["bin", "etc", "tmp", "root", "srv/data", "home/web"] {
        std::fs::create_dir_all(layer.join(dir)).unwrap();
    }
    std::fs::copy(busybox, layer.join("bin/busybox")).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet));
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/home/web:/bin/sh\n").unwrap();
    std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:34:\naudio:x:29:web\n").unwrap();
    std::fs::write(layer.join("srv/data/seed"), "from the image\n").unwrap();
    std::fs::write(layer.join("bin/data"), "not a program\n").unwrap();
}

impl Node {
    pub async fn new() -> Self {
        Self::with(OverlayApi::Newest).await
    }

    pub async fn with(overlay: OverlayApi) -> Self {
        let dir = tempfile::tempdir_in(std::env::var_os("SKEP_TEST_TMP").unwrap_or("/var/tmp".into())).unwrap();
        let (layer, empty) = (dir.path().join("layer"), dir.path().join("empty"));
        busybox(&layer);
        std::fs::create_dir(&empty).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = Config {
            root: dir.path().join("containers"),
            shim: shim(),
            cgroup_parent: format!("/shi{}-{number}", std::process::id()),
            overlay,
            clock: now,
        };
        let image = ImageRef {
            id: "sha256:test".into(),
            layers: vec![layer, empty],
            config: ImageConfig { command: vec!["sh".into()], ..ImageConfig::default() },
        };
        let containers = Containers::open(config.clone()).await.unwrap();
        Self { dir, config, image, containers }
    }

    /// As a new daemon sees it.
    pub async fn reopen(&mut self) {
        self.containers = Containers::open(self.config.clone()).await.unwrap();
    }

    pub fn config(&self, words: &[&str]) -> ContainerConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 32];
        id[..4].copy_from_slice(&std::process::id().to_be_bytes());
        id[4..8].copy_from_slice(&number.to_be_bytes());
        ContainerConfig {
            id: ContainerId(id),
            name: format!("c{number}"),
            spec: ContainerSpec { args: words.iter().map(|w| (*w).to_owned()).collect(), ..ContainerSpec::default() },
            resources: Resources::default(),
            network: NetworkMode::None,
            ports: Vec::new(),
            auto_remove: false,
            restart: ContainerRestart::No,
            privileged: false,
            stdin_once: false,
            attach: (false, false, false),
            log: None,
            task: None,
        }
    }

    pub async fn create(&self, config: ContainerConfig) -> ContainerId {
        let id = config.id;
        let new = NewContainer { config, image: self.image.clone(), mounts: Vec::new() };
        self.containers.create(new).await.unwrap();
        id
    }

    pub fn start_with() -> StartWith {
        StartWith { network: NetworkMode::None, ..StartWith::default() }
    }

    pub async fn start(&self, id: ContainerId) {
        assert!(self.containers.start(id, Self::start_with()).await.unwrap());
    }

    /// Runs a shell command in a container of its own; gives exit code, output, error.
    pub async fn sh(&self, script: &str) -> (i32, String, String) {
        self.run(self.config(&["sh", "-c", script])).await
    }

    pub async fn run(&self, config: ContainerConfig) -> (i32, String, String) {
        let id = self.create(config).await;
        let both = skep_engine::containers::Wanted { stdin: false, stdout: true, stderr: true };
        let attached = self.containers.attach(id, both).await.unwrap();
        let exit = self.containers.wait(id, WaitCondition::NextExit).unwrap();
        self.start(id).await;
        let (out, err) = read(attached).await;
        let (code, _) = within(exit).await;
        self.containers.remove(id, false).await.unwrap();
        (code, out, err)
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: ContainerId, config: ExecConfig) -> (i32, String, String) {
        let config = ExecConfig { attach_stdout: true, attach_stderr: true, ..config };
        let exec = self.containers.exec_create(id, config).unwrap();
        let attached = self.containers.exec_start(&exec, false, false, None).await.unwrap().unwrap();
        let (out, err) = read(attached).await;
        (self.containers.exec_inspect(&exec).unwrap().exit_code.unwrap(), out, err)
    }

    pub async fn wait(&self, id: ContainerId) -> i32 {
        within(self.containers.wait(id, WaitCondition::NotRunning).unwrap()).await.0
    }

    /// Waits until so many lines are in the log.
    pub async fn has_logged(&self, id: ContainerId, lines: usize) {
        let all =
            LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None };
        let deadline = Instant::now() + PATIENCE;
        while self.containers.logs(id, all.clone()).unwrap().count().await < lines {
            assert!(Instant::now() < deadline, "fewer than {lines} lines within a minute");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn cgroups(&self) -> Cgroups {
        Cgroups::detect(&self.config.cgroup_parent).unwrap()
    }

    pub fn run_dir(&self, id: ContainerId) -> PathBuf {
        self.config.root.join(id.to_string()).join("run")
    }

    /// The shim's pid: the parent of the container's init.
    pub fn shim_of(&self, id: ContainerId) -> i32 {
        let pid = self.containers.inspect(id).unwrap().state.pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Node {
    /// Leaves nothing, whatever happened.
    fn drop(&mut self) {
        let cgroups = self.cgroups();
        for id in std::fs::read_dir(&self.config.root).into_iter().flatten().flatten() {
            let name = id.file_name().to_string_lossy().into_owned();
            cgroups.kill_all(&name);
            let deadline = Instant::now() + Duration::from_secs(10);
            while cgroups.remove(&name).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = rustix::mount::unmount(id.path().join("rootfs"), rustix::mount::UnmountFlags::DETACH);
        }
        let _ = cgroups.remove("");
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took longer than a minute")
}

/// All output until the end.
pub async fn read(mut attached: Attached) -> (String, String) {
    let mut streams: BTreeMap<bool, Vec<u8>> = BTreeMap::new();
    while let Some(piece) = within(attached.output.next()).await {
        let piece = piece.unwrap();
        streams.entry(piece.stream == OutputStream::Stderr).or_default().extend_from_slice(&piece.bytes);
    }
    let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap_or_default()).unwrap();
    (text(streams.remove(&false)), text(streams.remove(&true)))
}

/// Polls until the condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
