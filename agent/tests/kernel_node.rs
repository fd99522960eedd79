//! Tasks as containers on a real kernel, through the executor that the agent uses.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use skep_agent::executor::files::Files;
use skep_agent::executor::node::sandbox::{Sandbox, SandboxError, SandboxRequest, Sandboxes};
use skep_agent::executor::node::{NodeExecutor, NodeParts};
use skep_agent::executor::{Containers, Executor, ExecutorError, Exit, Seen, TaskUnit};
use skep_engine::containers::{Config, Containers as EngineContainers};
use skep_engine::images::{Images, ImagesConfig, Import};
use skep_engine::runtime::cgroups::Cgroups;
use skep_engine::runtime::rootfs::OverlayApi;
use skep_engine::volumes::Volumes;
use skep_proto::model::container::{ConfigReference, FileTarget, Mount, MountKind, SecretReference};
use skep_proto::model::engine::LogQuery;
use skep_proto::model::secret::SecretData;
use skep_proto::model::session::{AssignedSpec, AssignedTask, FileContent, FileId, SpecKey};
use skep_proto::model::task::NetworkAttachmentSpec;
use skep_proto::model::{
    ConfigId, ContainerSpec, NetworkId, NodeDescription, NodeId, SecretId, ServiceId, TaskId, TaskSpec, TaskState,
    Timestamp,
};

/// No registry answers there, and it says so at once.
const IMAGE: &str = "localhost:1/box:1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// These tasks use no network.
struct NoSandboxes;

#[async_trait]
impl Sandboxes for NoSandboxes {
    async fn ensure(&self, _: SandboxRequest) -> Result<Sandbox, SandboxError> {
        Err(SandboxError { message: "no network here".into(), temporary: false })
    }
    async fn find(&self, _: TaskId) -> Result<Option<Sandbox>, SandboxError> {
        Ok(None)
    }
    async fn remove(&self, _: TaskId) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn tasks(&self) -> Result<Vec<TaskId>, SandboxError> {
        Ok(Vec::new())
    }
    fn is_internal(&self, _: NetworkId) -> bool {
        false
    }
}

fn now() -> Timestamp {
    Timestamp(1_700_000_000_000)
}

fn shim() -> PathBuf {
    if let Some(path) = std::env::var_os("SKEP_SHIM") {
        return path.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--quiet", "-p", "skep-shim"]).status().unwrap();
    assert!(status.success(), "the shim does not build");
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("skep-shim")
}

/// A root file system with busybox, as a tar.
fn rootfs(dir: &Path) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("these tests need the package busybox-static");
    for folder in ["bin", "etc", "tmp", "data"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::copy(busybox, dir.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "touch", "stat"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    Command::new("tar").arg("-C").arg(dir).args(["-cf", "-", "."]).output().unwrap().stdout
}

/// What one process has open.
struct Open {
    executor: NodeExecutor,
    files: Files,
    containers: EngineContainers,
    volumes: Volumes,
    images: Images,
}

struct Node {
    dir: tempfile::TempDir,
    config: Config,
    open: Option<Open>,
}

impl std::ops::Deref for Node {
    type Target = Open;
    fn deref(&self) -> &Open {
        self.open.as_ref().unwrap()
    }
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let config = Config {
            root: dir.path().join("containers"),
            shim: shim(),
            cgroup_parent: format!("/wir{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
            overlay: OverlayApi::Newest,
            clock: now,
        };
        let node = Self { open: Some(Self::open(dir.path(), &config).await), dir, config };
        let archive = Bytes::from(rootfs(&node.dir.path().join("rootfs")));
        let upload = futures_util::stream::iter([Ok(archive)]).boxed();
        let changes = vec!["VOLUME /data".into()];
        let import = Import { reference: Some(IMAGE.into()), changes, ..Import::default() };
        node.images.import(upload, import).await.unwrap();
        node
    }

    /// As a new process finds it.
    async fn reopen(&mut self) {
        self.open = None;
        self.open = Some(Self::open(self.dir.path(), &self.config).await);
    }

    async fn open(root: &Path, config: &Config) -> Open {
        let images = Images::open(ImagesConfig::new(root.join("store")), Arc::new(now)).await.unwrap();
        let containers = EngineContainers::open(config.clone()).await.unwrap();
        let volumes = Volumes::open(root.join("volumes"), Arc::new(now)).await.unwrap();
        let files = Files::default();
        let executor = NodeExecutor::new(NodeParts {
            node: NodeId(1),
            description: NodeDescription { hostname: "n1".into(), ..NodeDescription::default() },
            files: files.clone(),
            root: root.into(),
            images: images.clone(),
            containers: containers.clone(),
            volumes: volumes.clone(),
            sandboxes: Arc::new(NoSandboxes),
            parallel_starts: 4,
            named_resources: Vec::new(),
        });
        Open { executor, files, containers, volumes, images }
    }

    async fn up(&self, unit: &TaskUnit) -> Result<u32, ExecutorError> {
        self.executor.prepare(unit).await?;
        self.executor.create(unit).await?;
        Ok(self.executor.start(unit).await?.pid)
    }
}

impl Drop for Node {
    /// Leaves nothing, whatever happened.
    fn drop(&mut self) {
        let cgroups = Cgroups::detect(&self.config.cgroup_parent).unwrap();
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

fn unit(commands: &[&str]) -> TaskUnit {
    let id = TaskId((u128::from(std::process::id()) << 32) | u128::from(NUMBER.fetch_add(1, Ordering::Relaxed)));
    let key = SpecKey { service: ServiceId(5), version: 1 };
    let containers = commands
        .iter()
        .map(|command| ContainerSpec {
            image: IMAGE.into(),
            command: vec!["/bin/sh".into(), "-c".into(), (*command).to_owned()],
            stop_grace: Some(Duration::from_millis(300)),
            ..ContainerSpec::default()
        })
        .collect();
    let networks = vec![NetworkAttachmentSpec { target: "none".into(), ..NetworkAttachmentSpec::default() }];
    TaskUnit {
        task: AssignedTask {
            id,
            spec: key,
            slot: 1,
            desired: TaskState::Running,
            observed: TaskState::Assigned,
            attachments: Vec::new(),
        },
        spec: Arc::new(AssignedSpec {
            key,
            service_name: "web".into(),
            service_labels: Default::default(),
            task: TaskSpec { containers, networks, ..TaskSpec::default() },
            ports: Vec::new(),
        }),
    }
}

fn exit(code: i32) -> Exit {
    Exit { code, ..Exit::default() }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_task_runs_ends_and_leaves_nothing_once_it_is_removed() {
    let node = Node::new().await;
    let unit = unit(&["sleep 0.2; exit 3"]);
    assert_eq!(node.executor.observe(&unit).await.unwrap(), Containers::Absent);
    let pid = node.up(&unit).await.unwrap();
    assert_ne!(pid, 0);
    let shown = node.containers.find(&unit.name(NodeId(1))).unwrap();
    assert_eq!(shown, unit.container_id(0));
    assert_eq!(node.executor.wait(&unit, Seen::default()).await.unwrap(), Containers::Ended(exit(3)));
    assert_eq!(node.executor.observe(&unit).await.unwrap(), Containers::Ended(exit(3)));
    node.executor.release(unit.task.id).await.unwrap();
    // The dead container stays for its log; the image's volume stays with it.
    assert_eq!((node.containers.list(true).len(), node.volumes.list().len()), (1, 1));
    assert_eq!(node.executor.tasks().await.unwrap(), [unit.task.id]);
    node.executor.remove(unit.task.id).await.unwrap();
    assert_eq!((node.containers.list(true).len(), node.volumes.list().len()), (0, 0));
    assert_eq!(node.executor.tasks().await.unwrap(), []);
}

#[tokio::test]
#[ignore = "needs root"]
async fn every_operation_may_be_repeated() {
    let node = Node::new().await;
    let unit = unit(&["sleep 1000"]);
    for _ in 0..2 {
        node.executor.prepare(&unit).await.unwrap();
    }
    for _ in 0..2 {
        node.executor.create(&unit).await.unwrap();
    }
    assert_eq!(node.executor.observe(&unit).await.unwrap(), Containers::Created);
    let first = node.executor.start(&unit).await.unwrap();
    assert_eq!(node.executor.start(&unit).await.unwrap(), first);
    assert_eq!(node.executor.observe(&unit).await.unwrap(), Containers::Running(first));
    for _ in 0..2 {
        // As pid 1 it ignores the stop signal.
        assert_eq!(node.executor.stop(&unit).await.unwrap(), exit(137));
    }
    for _ in 0..2 {
        node.executor.release(unit.task.id).await.unwrap();
    }
    for _ in 0..2 {
        node.executor.remove(unit.task.id).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_new_process_takes_the_task_over_with_the_same_pid_and_sees_its_end() {
    let mut node = Node::new().await;
    let unit = unit(&["sleep 1000"]);
    let pid = node.up(&unit).await.unwrap();
    node.reopen().await;
    let Containers::Running(running) = node.executor.observe(&unit).await.unwrap() else { panic!() };
    assert_eq!(running.pid, pid);
    let (ended, stopped) = tokio::join!(node.executor.wait(&unit, Seen::default()), node.executor.stop(&unit));
    assert_eq!((ended.unwrap(), stopped.unwrap().code), (Containers::Ended(exit(137)), 137));
    node.executor.remove(unit.task.id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_end_of_one_container_ends_the_task() {
    let node = Node::new().await;
    let unit = unit(&["sleep 1000", "sleep 0.2; exit 4"]);
    node.up(&unit).await.unwrap();
    assert_eq!(node.executor.wait(&unit, Seen::default()).await.unwrap(), Containers::Ended(exit(4)));
    assert!(node.containers.list(false).is_empty());
    node.executor.remove(unit.task.id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_cannot_be_had_is_said_in_dockers_words() {
    let node = Node::new().await;
    let mut missing = unit(&["true"]);
    Arc::make_mut(&mut missing.spec).task.containers[0].command = vec!["/bin/nosuch".into()];
    let error = node.up(&missing).await.unwrap_err();
    assert!(!error.is_temporary());
    assert!(error.to_string().starts_with("starting container failed: "), "{error}");
    assert!(matches!(node.executor.observe(&missing).await.unwrap(), Containers::Ended(Exit { code: 127, .. })));

    let mut unmountable = unit(&["true"]);
    Arc::make_mut(&mut unmountable.spec).task.containers[0].mounts = vec![Mount {
        kind: MountKind::Bind,
        source: "/nosuch/path".into(),
        target: "/x".into(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    }];
    let error = node.up(&unmountable).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid mount config for type \"bind\": bind source path does not exist: /nosuch/path"
    );
    for task in [missing.task.id, unmountable.task.id] {
        node.executor.remove(task).await.unwrap();
    }
}

/// Every file below `dir` on the file system of `dir` itself that holds `needle`: what would be on the disk.
fn on_disk(dir: &Path, needle: &str) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(dir).unwrap().dev();
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.is_file()
                && std::fs::read(entry.path()).is_ok_and(|b| b.windows(needle.len()).any(|w| w == needle.as_bytes()))
            {
                found.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
#[ignore = "needs root"]
async fn secrets_and_configs_are_files_in_memory_with_the_owner_and_mode_asked_for() {
    let mut node = Node::new().await;
    // Reads when it is told to: the files must outlive the daemon, and its log is on the disk.
    let script = "cd /run/secrets; while [ ! -e /data/go ]; do sleep 0.05; done; echo x 2>/dev/null >key && echo written; \
                  stat -c '%n %a %u %g' key /etc/app.conf; cat key /etc/app.conf";
    let mut unit = unit(&[script]);
    let file = |name: &str, uid: &str, gid: &str, mode| {
        Some(FileTarget { name: name.into(), uid: uid.into(), gid: gid.into(), mode })
    };
    let container = &mut Arc::make_mut(&mut unit.spec).task.containers[0];
    container.env = vec!["PORT=80".into()];
    container.secrets =
        vec![SecretReference { id: SecretId(1), name: "s".into(), file: file("key", "33", "34", 0o440) }];
    container.configs =
        vec![ConfigReference { id: ConfigId(1), name: "c".into(), file: file("/etc/app.conf", "0", "0", 0o444) }];
    let content = |text: &str, template| Some(FileContent { data: SecretData(text.to_owned().into()), template });
    let template = "{{.Service.Name}}.{{.Task.Slot}}@{{.Node.Hostname}}:{{env \"PORT\"}} {{secret \"key\"}}";
    let sent: BTreeMap<_, _> = [
        (FileId::Secret(SecretId(1)), content("hush-hush", false)),
        (FileId::Config(ConfigId(1)), content(template, true)),
    ]
    .into();
    // Preparing waits for what has not come yet.
    {
        let prepare = node.executor.prepare(&unit);
        tokio::pin!(prepare);
        assert!(futures_util::poll!(&mut prepare).is_pending());
        node.files.set(Arc::new(sent));
        prepare.await.unwrap();
    }
    node.up(&unit).await.unwrap();
    assert_eq!(on_disk(node.dir.path(), "hush-hush"), Vec::<PathBuf>::new());
    // Another process, which no manager has told anything.
    node.reopen().await;
    let container = node.containers.inspect(unit.container_id(0)).unwrap();
    let volume = container.mounts.iter().find(|mount| mount.target == "/data").unwrap();
    std::fs::write(volume.source.join("go"), "").unwrap();
    assert_eq!(node.executor.wait(&unit, Seen::default()).await.unwrap(), Containers::Ended(exit(0)));
    let mut lines = String::new();
    let mut log = node
        .containers
        .logs(
            unit.container_id(0),
            LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None },
        )
        .unwrap();
    while let Some(line) = log.next().await {
        lines.push_str(&String::from_utf8_lossy(&line.unwrap().bytes));
    }
    assert_eq!(
        lines, "key 440 33 34\n/etc/app.conf 444 0 0\nhush-hushweb.1@n1:80 hush-hush",
        "a secret can be written, or is not what was asked for"
    );
    node.executor.remove(unit.task.id).await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let left = mounts.lines().filter(|line| line.contains(&*node.dir.path().to_string_lossy())).count();
    assert_eq!(left, 0, "{mounts}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_task_whose_secret_is_gone_or_whose_template_fails_is_rejected_with_a_sentence() {
    let node = Node::new().await;
    let mut gone = unit(&["true"]);
    Arc::make_mut(&mut gone.spec).task.containers[0].secrets =
        vec![SecretReference { id: SecretId(1), name: "key".into(), file: None }];
    node.files.set(Arc::new([(FileId::Secret(SecretId(1)), None)].into()));
    let error = node.up(&gone).await.unwrap_err();
    assert!(!error.is_temporary());
    assert_eq!(error.to_string(), "secret key does not exist any more");
    let bad = FileContent { data: SecretData("{{secret \"none\"}}".into()), template: true };
    node.files.set(Arc::new([(FileId::Secret(SecretId(1)), Some(bad))].into()));
    let error = node.up(&gone).await.unwrap_err().to_string();
    assert_eq!(error, "expanding secret key failed: secret: secret target none not found at offset 2 of the template");
}
