//! The node's engine on a real kernel: images, containers and volumes are real, sandboxes are plain namespaces.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use skep_agent::engine_port::sandboxes::{
    Bridge, BridgeRequest, Encryption, Sandbox, SandboxError, SandboxRequest, Sandboxes,
};
use skep_agent::engine_port::{NodeEngine, NodeFacts, Parts};
use skep_api::ports::engine::{AttachStreams, Attached, Engine, EngineError, WaitCondition};
use skep_engine::containers::{Config, Containers};
use skep_engine::images::{Images, ImagesConfig};
use skep_engine::runtime::cgroups::Cgroups;
use skep_engine::runtime::rootfs::OverlayApi;
use skep_engine::volumes::Volumes;
use skep_proto::model::container::{Mount, MountKind};
use skep_proto::model::engine::{
    ContainerConfig, ContainerRestart, ContainerStatus, ExecConfig, LocalNetwork, LogQuery, NetworkMode, OutputStream,
    PortBinding,
};
use skep_proto::model::service::Protocol;
use skep_proto::model::task::Resources;
use skep_proto::model::{ContainerId, ContainerSpec, Timestamp};
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes that long on a machine that works.
const PATIENCE: Duration = Duration::from_secs(60);
/// The port that the fake gives to who asks for any.
const CHOSEN: u16 = 40_000;

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn now() -> Timestamp {
    Timestamp(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

/// The shim, built beside these tests.
fn shim() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        if let Some(path) = std::env::var_os("SKEP_SHIM") {
            return path.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--quiet", "-p", "skep-shim"]).status().unwrap();
        assert!(status.success(), "the shim does not build");
        std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("skep-shim")
    })
    .clone()
}

/// The tar of a root file system with busybox.
fn busybox(dir: &Path) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("these tests need the package busybox-static");
    for folder in ["bin", "etc", "tmp", "root"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::copy(busybox, dir.join("bin/busybox")).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet));
    }
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    let tar = Command::new("tar").arg("-C").arg(dir).args(["-c", "."]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

/// Namespaces with nothing in them, under names of this process.
#[derive(Default)]
struct Namespaces {
    known: Mutex<BTreeMap<String, Sandbox>>,
    bridges: Mutex<BTreeMap<String, Bridge>>,
    /// Nothing can be made now.
    down: AtomicBool,
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[async_trait]
impl Sandboxes for Namespaces {
    async fn ensure(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError> {
        if self.down.load(Ordering::Relaxed) {
            let source = "no manager was heard".into();
            return Err(SandboxError::Failed { context: "making a sandbox".into(), source });
        }
        let mut known = self.known.lock().unwrap();
        if let Some(sandbox) = known.get(&request.id) {
            return Ok(sandbox.clone());
        }
        let taken = |port: &PortBinding| known.values().any(|s| s.ports.iter().any(|p| p.host_port == port.host_port));
        if let Some(port) = request.ports.iter().find(|port| port.host_port.is_some() && taken(port)) {
            let text = format!("Bind for 0.0.0.0:{} failed: port is already allocated", port.host_port.unwrap());
            return Err(SandboxError::Taken(text));
        }
        let name = format!("epo{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let ports = request.ports.into_iter();
        let sandbox = Sandbox {
            id: request.id.clone(),
            netns: Path::new("/run/netns").join(&name),
            links: Vec::new(),
            ports: ports.map(|p| PortBinding { host_port: Some(p.host_port.unwrap_or(CHOSEN)), ..p }).collect(),
            resolv_conf: "nameserver 127.0.0.11\n".into(),
        };
        known.insert(request.id, sandbox.clone());
        Ok(sandbox)
    }

    async fn reshape(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError> {
        self.ensure(request).await
    }

    async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        if let Some(sandbox) = self.known.lock().unwrap().remove(id) {
            ip(&["netns", "delete", sandbox.netns.file_name().unwrap().to_str().unwrap()]);
        }
        Ok(())
    }

    async fn encryption(&self) -> Encryption {
        let warning = "WARNING: traffic between nodes is not encrypted on these networks: open".to_owned();
        Encryption { path: Some("userspace".into()), warnings: vec![warning] }
    }

    async fn list(&self) -> Result<Vec<Sandbox>, SandboxError> {
        Ok(self.known.lock().unwrap().values().cloned().collect())
    }

    fn overlays(&self) -> Vec<skep_proto::model::NetworkId> {
        Vec::new()
    }

    async fn ensure_bridge(&self, request: BridgeRequest) -> Result<Bridge, SandboxError> {
        let bridge = Bridge { name: request.name.clone(), subnets: request.subnets };
        Ok(self.bridges.lock().unwrap().entry(request.name).or_insert(bridge).clone())
    }

    async fn remove_bridge(&self, name: &str) -> Result<(), SandboxError> {
        self.bridges.lock().unwrap().remove(name);
        Ok(())
    }

    async fn bridges(&self) -> Result<Vec<Bridge>, SandboxError> {
        Ok(self.bridges.lock().unwrap().values().cloned().collect())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for sandbox in self.known.lock().unwrap().values() {
            let _ = Command::new("ip").args(["netns", "delete"]).arg(sandbox.netns.file_name().unwrap()).output();
        }
    }
}

struct Node {
    engine: NodeEngine,
    images: Images,
    volumes: Volumes,
    sandboxes: Arc<Namespaces>,
    config: Config,
    dir: tempfile::TempDir,
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir_in(std::env::var_os("SKEP_TEST_TMP").unwrap_or("/var/tmp".into())).unwrap();
        let images = Images::open(ImagesConfig::new(dir.path().into()), Arc::new(now)).await.unwrap();
        let volumes = Volumes::open(dir.path().join("volumes"), Arc::new(now)).await.unwrap();
        let config = Config {
            root: dir.path().join("containers"),
            shim: shim(),
            cgroup_parent: format!("/epo{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
            overlay: OverlayApi::Newest,
            clock: now,
        };
        let sandboxes = Arc::new(Namespaces::default());
        let engine = open(&dir, &config, &images, &volumes, &sandboxes).await;
        let tar = Bytes::from(busybox(&dir.path().join("busybox")));
        let upload = futures_util::stream::iter([Ok(tar)]).boxed();
        let changes = vec!["CMD [\"sh\"]".into(), "VOLUME /data".into()];
        engine.import(upload, Some("box".into()), changes, String::new()).await.unwrap();
        Self { engine, images, volumes, sandboxes, config, dir }
    }

    /// As a new daemon does it.
    async fn reopen(&mut self) {
        self.engine = open(&self.dir, &self.config, &self.images, &self.volumes, &self.sandboxes).await;
    }

    async fn create(&self, config: ContainerConfig) -> String {
        self.engine.create(config).await.unwrap().id.to_string()
    }

    async fn status(&self, id: &str) -> ContainerStatus {
        self.engine.container(id).await.unwrap().state.status
    }

    fn namespaces(&self) -> usize {
        self.sandboxes.known.lock().unwrap().len()
    }
}

async fn open(
    dir: &tempfile::TempDir,
    config: &Config,
    images: &Images,
    volumes: &Volumes,
    sandboxes: &Arc<Namespaces>,
) -> NodeEngine {
    let parts = Parts {
        images: images.clone(),
        containers: Containers::open(config.clone()).await.unwrap(),
        volumes: volumes.clone(),
        sandboxes: sandboxes.clone(),
        cluster: Arc::new(skep_agent::engine_port::cluster::NoCluster),
        facts: NodeFacts { id: "e1".into(), name: "node1".into(), root: dir.path().into(), ..NodeFacts::default() },
        clock: Arc::new(now),
    };
    let engine = NodeEngine::open(parts).await.unwrap();
    engine.recover().await.unwrap();
    engine
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

fn config(words: &[&str]) -> ContainerConfig {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut id = [0; 32];
    id[..4].copy_from_slice(&std::process::id().to_be_bytes());
    id[4..8].copy_from_slice(&number.to_be_bytes());
    ContainerConfig {
        id: ContainerId(id),
        name: format!("c{number}"),
        spec: ContainerSpec {
            image: "box".into(),
            args: words.iter().map(|w| (*w).to_owned()).collect(),
            ..ContainerSpec::default()
        },
        resources: Resources::default(),
        network: NetworkMode::Bridge,
        ports: Vec::new(),
        auto_remove: false,
        restart: ContainerRestart::No,
        privileged: false,
        isolation: Default::default(),
        stdin_once: false,
        attach: (false, false, false),
        log: None,
        task: None,
    }
}

fn port(host_port: Option<u16>) -> PortBinding {
    PortBinding { protocol: Protocol::Tcp, container_port: 80, host_ip: None, host_port, host_port_last: None }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("took longer than a minute")
}

/// All of standard output until the end.
async fn read(mut attached: Attached) -> String {
    let mut bytes = Vec::new();
    while let Some(piece) = within(attached.output.next()).await {
        let piece = piece.unwrap();
        if piece.stream == OutputStream::Stdout {
            bytes.extend_from_slice(&piece.bytes);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn output() -> AttachStreams {
    AttachStreams { stdout: true, stderr: true, stream: true, ..AttachStreams::default() }
}

/// Polls until the condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_lives_from_create_to_remove() {
    let node = Node::new().await;
    let engine = &node.engine;
    let mut wish = config(&["sh", "-c", "echo hello; exec sleep 1000"]);
    wish.ports = vec![port(None)];
    wish.spec.hosts = vec!["10.9.8.7 elsewhere".into()];
    let id = node.create(wish.clone()).await;
    let name = wish.name.as_str();
    assert_eq!(node.namespaces(), 0);
    let output = engine.attach(name, output()).await.unwrap();
    assert!(engine.start(name).await.unwrap());
    assert!(!engine.start(&id[..16]).await.unwrap());
    let shown = engine.container(name).await.unwrap();
    assert_eq!((shown.state.status, shown.ports), (ContainerStatus::Running, vec![port(Some(CHOSEN))]));
    assert_eq!(shown.mounts.len(), 1);

    let netns = node.sandboxes.known.lock().unwrap()[&id].netns.clone();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    assert_eq!(inode(&netns), inode(Path::new(&format!("/proc/{}/ns/net", shown.state.pid))));

    let command = ["cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].map(str::to_owned).into();
    let exec = ExecConfig { command, attach_stdout: true, attach_stderr: true, ..ExecConfig::default() };
    let exec = engine.exec_create(name, exec).await.unwrap();
    let text = read(engine.exec_start(&exec, false, false, None).await.unwrap().unwrap()).await;
    assert!(text.ends_with(&format!("10.9.8.7\telsewhere\n{}\nnameserver 127.0.0.11\n", &id[..12])), "{text}");
    assert_eq!(engine.exec(&exec).await.unwrap().exit_code, Some(0));

    let conflict = engine.remove(name, false, true).await.unwrap_err();
    assert!(matches!(&conflict, EngineError::Conflict(text) if text.starts_with("You cannot remove a running")));
    assert!(engine.stop(name, None, Some(0)).await.unwrap());
    // Not eventually: the next container may ask for the same port.
    assert_eq!(node.namespaces(), 0);
    assert_eq!(read(output).await, "hello\n");
    let all = LogQuery { stdout: true, stderr: true, follow: false, tail: None, since_nanos: None, until_nanos: None };
    let lines: Vec<_> = engine.logs(name, all).await.unwrap().map(|line| line.unwrap().bytes).collect().await;
    assert_eq!(lines, [Bytes::from("hello\n")]);
    assert_eq!(node.volumes.list().len(), 1);
    engine.remove(name, false, true).await.unwrap();
    assert_eq!((node.volumes.list().len(), engine.containers(true).await.unwrap().len()), (0, 0));
}

#[tokio::test]
#[ignore = "needs root"]
async fn who_waits_for_the_removal_finds_ports_and_anonymous_volumes_gone() {
    let node = Node::new().await;
    for _ in 0..3 {
        let mut wish = config(&["true"]);
        (wish.auto_remove, wish.ports) = (true, vec![port(Some(8080))]);
        let id = node.create(wish).await;
        let removed = node.engine.wait(&id, WaitCondition::Removed).await.unwrap();
        assert!(node.engine.start(&id).await.unwrap());
        assert_eq!(within(removed).await.unwrap().0, 0);
        assert_eq!((node.namespaces(), node.volumes.list().len()), (0, 0));
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_taken_port_fails_the_start_in_dockers_words_and_leaves_nothing() {
    let node = Node::new().await;
    let publishing = || ContainerConfig { ports: vec![port(Some(8080))], ..config(&["sleep", "1000"]) };
    let (first, second) = (node.create(publishing()).await, publishing());
    node.engine.start(&first).await.unwrap();
    let name = second.name.clone();
    node.create(ContainerConfig { auto_remove: true, ..second }).await;
    let error = node.engine.start(&name).await.unwrap_err();
    let want = format!(
        "driver failed programming external connectivity on endpoint {name}: Bind for 0.0.0.0:8080 failed: port is \
         already allocated"
    );
    assert_eq!(error.to_string(), want);
    assert!(matches!(node.engine.container(&name).await, Err(EngineError::NoSuchContainer(_))));
    assert_eq!((node.namespaces(), node.volumes.list().len()), (1, 1));
    node.engine.remove(&first, true, true).await.unwrap();
    assert_eq!((node.namespaces(), node.volumes.list().len()), (0, 0));
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_end_by_itself_gives_the_sandbox_back_while_the_engine_runs() {
    let node = Node::new().await;
    let stop = CancellationToken::new();
    let (engine, stopped) = (node.engine.clone(), stop.clone());
    let running = tokio::spawn(async move { engine.run(stopped).await });
    let id = node.create(config(&["true"])).await;
    node.engine.start(&id).await.unwrap();
    eventually("the sandbox is gone", async || node.namespaces() == 0).await;
    assert_eq!(node.status(&id).await, ContainerStatus::Exited);
    node.engine.remove(&id, false, true).await.unwrap();
    stop.cancel();
    within(running).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn after_the_daemons_start_policies_are_kept_images_held_and_leftovers_removed() {
    let mut node = Node::new().await;
    let restart = ContainerRestart::Always;
    let stopped = node.create(ContainerConfig { restart, ..config(&["sleep", "1000"]) }).await;
    let stays = node.create(config(&["sleep", "1000"])).await;
    for id in [&stopped, &stays] {
        node.engine.start(id).await.unwrap();
    }
    let pid = node.engine.container(&stays).await.unwrap().state.pid;
    node.engine.stop(&stopped, None, Some(0)).await.unwrap();
    let stale = SandboxRequest { id: "ee".repeat(32), ..SandboxRequest::default() };
    node.sandboxes.ensure(stale).await.unwrap();
    let networks = node.engine.networks().await.unwrap();
    node.reopen().await;
    assert_eq!(node.engine.networks().await.unwrap(), networks);
    assert_eq!(node.status(&stopped).await, ContainerStatus::Running);
    assert_eq!(node.engine.container(&stays).await.unwrap().state.pid, pid);
    let mut ids: Vec<String> = node.sandboxes.known.lock().unwrap().keys().cloned().collect();
    let mut want = [stopped.clone(), stays.clone()];
    ids.sort();
    want.sort();
    assert_eq!(ids, want);
    assert!(matches!(node.engine.remove_image("box", false).await, Err(EngineError::Conflict(_))));
    for id in [&stopped, &stays] {
        node.engine.remove(id, true, true).await.unwrap();
    }
    let (untagged, deleted) = node.engine.remove_image("box", false).await.unwrap();
    assert_eq!((untagged, deleted.len()), (vec!["box:latest".to_owned()], 1));
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_is_missing_or_in_use_is_named() {
    let node = Node::new().await;
    let engine = &node.engine;
    let mut wish = config(&["sleep", "1000"]);
    wish.spec.image = "nosuch".into();
    assert_eq!(engine.create(wish).await.unwrap_err().to_string(), "No such image: nosuch:latest");
    let mut wish = config(&["sleep", "1000"]);
    wish.spec.mounts = vec![Mount {
        kind: MountKind::Volume,
        source: "kept".into(),
        target: "/data".into(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: None,
    }];
    let id = node.create(wish).await;
    let used = engine.remove_volume("kept", true).await.unwrap_err();
    assert_eq!(used.to_string(), format!("remove kept: volume is in use - [{id}]"));
    engine.remove(&id, false, true).await.unwrap();
    assert_eq!(node.volumes.list().len(), 1);
    engine.remove_volume("kept", false).await.unwrap();
    assert!(matches!(engine.volume("kept").await, Err(EngineError::NoSuchVolume(_))));

    let back = LocalNetwork { name: "back".into(), ..LocalNetwork::default() };
    let made = engine.create_network(back.clone()).await.unwrap();
    assert_eq!((made.id.len(), made.driver.as_str()), (64, "bridge"));
    assert!(matches!(engine.create_network(back).await, Err(EngineError::Conflict(_))));
    engine.remove_network(&made.id[..12]).await.unwrap();
    assert!(matches!(engine.remove_network("back").await, Err(EngineError::NoSuchNetwork(_))));
    assert!(matches!(engine.remove_network("host").await, Err(EngineError::Invalid(_))));
}

#[tokio::test]
#[ignore = "needs root"]
async fn on_the_nodes_network_a_container_has_the_nodes_names() {
    let node = Node::new().await;
    let script = "hostname; cat /etc/hosts; readlink /proc/self/ns/net";
    let id = node.create(ContainerConfig { network: NetworkMode::Host, ..config(&["sh", "-c", script]) }).await;
    let output = node.engine.attach(&id, output()).await.unwrap();
    node.engine.start(&id).await.unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(read(output).await, format!("node1\n{hosts}{}\n", own.display()));
    assert_eq!(node.namespaces(), 0);
    node.engine.remove(&id, true, true).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn what_should_run_is_started_once_its_network_is_there() {
    let mut node = Node::new().await;
    let restart = ContainerRestart::Always;
    let late = node.create(ContainerConfig { restart, ..config(&["sleep", "1000"]) }).await;
    let unwanted = node.create(ContainerConfig { restart, ..config(&["sleep", "1000"]) }).await;
    for id in [&late, &unwanted] {
        node.engine.start(id).await.unwrap();
        node.engine.stop(id, None, Some(0)).await.unwrap();
    }
    node.sandboxes.down.store(true, Ordering::Relaxed);
    node.reopen().await;
    assert_eq!(node.status(&late).await, ContainerStatus::Exited);
    node.engine.stop(&unwanted, None, None).await.unwrap();
    let stop = CancellationToken::new();
    let (engine, stopped) = (node.engine.clone(), stop.clone());
    let running = tokio::spawn(async move { engine.run(stopped).await });
    node.sandboxes.down.store(false, Ordering::Relaxed);
    eventually("it runs", async || node.status(&late).await == ContainerStatus::Running).await;
    assert_eq!(node.status(&unwanted).await, ContainerStatus::Exited);
    stop.cancel();
    within(running).await.unwrap();
    for id in [&late, &unwanted] {
        node.engine.remove(id, true, true).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_start_goes_on_when_its_client_hangs_up() {
    let node = Node::new().await;
    let id = node.create(config(&["sleep", "1000"])).await;
    let mut start = Box::pin(node.engine.start(&id));
    // Polled once, then dropped, as a server does with a request whose connection ends.
    assert!(futures_util::poll!(start.as_mut()).is_pending());
    drop(start);
    eventually("the container runs", async || node.status(&id).await == ContainerStatus::Running).await;
    assert_eq!(node.namespaces(), 1);
    node.engine.remove(&id, true, true).await.unwrap();
    assert_eq!(node.namespaces(), 0);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_shares_the_network_and_the_names_of_another() {
    let node = Node::new().await;
    let first = node.create(config(&["sleep", "1000"])).await;
    let script = "hostname; readlink /proc/self/ns/net";
    let network = NetworkMode::Container(first.parse().unwrap());
    let second = node.create(ContainerConfig { network, ..config(&["sh", "-c", script]) }).await;
    assert!(matches!(node.engine.start(&second).await, Err(EngineError::Conflict(_))));
    node.engine.start(&first).await.unwrap();
    let pid = node.engine.container(&first).await.unwrap().state.pid;
    let netns = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let output = node.engine.attach(&second, output()).await.unwrap();
    node.engine.start(&second).await.unwrap();
    assert_eq!(read(output).await, format!("{}\n{}\n", &first[..12], netns.display()));
    assert_eq!(node.namespaces(), 1);
    for id in [&second, &first] {
        node.engine.remove(id, true, true).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn info_counts_and_warns() {
    let node = Node::new().await;
    let id = node.create(config(&["sleep", "1000"])).await;
    node.create(config(&["true"])).await;
    node.engine.start(&id).await.unwrap();
    let info = node.engine.info().await.unwrap();
    assert_eq!((info.containers, info.images), ((1, 0, 1), 1));
    assert!(["1", "2"].contains(&info.cgroup_version.as_str()));
    assert!(!info.kernel.is_empty() && !info.operating_system.is_empty() && !info.backing_filesystem.is_empty());
    assert!(info.warnings.iter().any(|w| w.contains("not encrypted")), "{:?}", info.warnings);
    assert!(info.security_options.contains(&"name=wireguard-userspace".to_owned()), "{:?}", info.security_options);
    node.engine.remove(&id, true, true).await.unwrap();
}
