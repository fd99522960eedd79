//! A node's engine in memory. Its processes are tasks that understand `echo`, `cat`, `sleep`, `exit` and `sh -c` of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use skep_api::ports::engine::{
    AttachStreams, Attached, Created, Distribution, EngineInfo, NewVolume, TerminalSize, WaitCondition, WaitHandle,
};
use skep_api::ports::{Engine, EngineError};
use skep_proto::model::ContainerId;
use skep_proto::model::container::{MountKind, RegistryAuth};
use skep_proto::model::engine::{
    Container, ContainerConfig, ContainerState, ContainerStatus, EndpointState, EtcFiles, ExecConfig, ExecState, Image,
    LocalNetwork, LogLine, LogQuery, NetworkEndpoint, NetworkMode, Output, OutputStream, PullProgress, ResolvedMount,
    ResolvedProcess, Volume,
};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::watch;

use super::now;

/// What a process has written, and how it ended.
#[derive(Default, Clone)]
struct Run {
    pieces: Vec<LogLine>,
    ended: Option<i32>,
    removed: bool,
}

struct Process {
    run: watch::Sender<Run>,
    /// The end that clients write to, until one has taken it.
    stdin: Mutex<Option<DuplexStream>>,
}

impl Process {
    fn new() -> (Arc<Self>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        (Arc::new(Self { run: watch::channel(Run::default()).0, stdin: Mutex::new(Some(ours)) }), theirs)
    }

    fn write(&self, stream: OutputStream, text: &[u8]) {
        let line = LogLine { stream, at_nanos: now().0 * 1_000_000, bytes: Bytes::copy_from_slice(text) };
        self.run.send_modify(|run| run.pieces.push(line));
    }

    fn end(&self, code: i32) {
        self.run.send_modify(|run| run.ended = run.ended.or(Some(code)));
    }

    /// Pieces from `start` on, until the process has ended or, with `follow` unset, none is left.
    fn pieces(&self, start: usize, follow: bool) -> BoxStream<'static, LogLine> {
        let receiver = self.run.subscribe();
        futures_util::stream::unfold((receiver, start), move |(mut receiver, at)| async move {
            loop {
                let (piece, over) = {
                    let run = receiver.borrow_and_update();
                    (run.pieces.get(at).cloned(), run.ended.is_some() || !follow)
                };
                match piece {
                    Some(piece) => return Some((piece, (receiver, at + 1))),
                    None if over => return None,
                    None => receiver.changed().await.ok()?,
                }
            }
        })
        .boxed()
    }

    fn attach(&self, tty: bool, stdin: bool, from: usize) -> Attached {
        let input = stdin.then(|| self.stdin.lock().unwrap().take()).flatten();
        Attached {
            tty,
            input: input.map(|i| Box::new(i) as _),
            output: self.pieces(from, true).map(|p| Ok(Output { stream: p.stream, bytes: p.bytes })).boxed(),
        }
    }

    /// Runs the words. `false` when there is no such program.
    fn spawn(self: &Arc<Self>, words: &[String], mut stdin: DuplexStream) -> bool {
        let known = ["echo", "cat", "sleep", "sh", "false", "true"];
        if !words.first().is_some_and(|w| known.contains(&w.as_str())) {
            return false;
        }
        let (process, words) = (self.clone(), words.to_vec());
        tokio::spawn(async move {
            if words[0] == "cat" {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
                    process.write(OutputStream::Stdout, &buffer[..n]);
                }
                return process.end(0);
            }
            let line = if words[0] == "sh" { words[2].clone() } else { words.join(" ") };
            for command in line.split(';').map(str::trim) {
                match command.split_once(' ').unwrap_or((command, "")) {
                    ("echo", text) => match text.strip_suffix(" >&2") {
                        Some(text) => process.write(OutputStream::Stderr, format!("{text}\n").as_bytes()),
                        None => process.write(OutputStream::Stdout, format!("{text}\n").as_bytes()),
                    },
                    ("exit", code) => return process.end(code.parse().unwrap()),
                    ("false", _) => return process.end(1),
                    // Until it is killed.
                    ("sleep", _) => {
                        let mut run = process.run.subscribe();
                        let _ = run.wait_for(|run| run.ended.is_some()).await;
                        return;
                    }
                    _ => {}
                }
            }
            process.end(0);
        });
        true
    }
}

struct Entry {
    container: Container,
    process: Arc<Process>,
    stdin: Option<DuplexStream>,
}

struct Exec {
    state: ExecState,
    process: Arc<Process>,
    stdin: Option<DuplexStream>,
}

#[derive(Default)]
struct State {
    containers: Vec<Entry>,
    execs: BTreeMap<String, Exec>,
    images: Vec<Image>,
    volumes: BTreeMap<String, Volume>,
    networks: Vec<LocalNetwork>,
    drawn: u64,
}

/// One node's engine.
pub struct FakeEngine {
    name: String,
    state: Mutex<State>,
}

pub const DIGEST: &str = "sha256:f32797e78b1d2fe71e7434de49b3447ce9a8b2a0f6f6baf5319b9cced98a09f4";

impl FakeEngine {
    pub fn new(name: &str) -> Arc<Self> {
        let image = Image {
            id: "sha256:ef40b91460f43ef5098a99baa79ac74dbf179103886fe3cfa0c7985ac2d4205b".into(),
            tags: vec!["10.99.0.1:5055/bb:1".into(), "bb:1".into()],
            digests: vec![format!("10.99.0.1:5055/bb@{DIGEST}")],
            created: "2026-11-20T23:18:24.141319393Z".into(),
            size: 1_985_572,
            architecture: "amd64".into(),
            os: "linux".into(),
            layers: vec!["sha256:2e51e1788401a2cf524cb3bbfaa0b6f4719fd30986e4bd5c138a60314fd5c495".into()],
            ..Image::default()
        };
        let bridge = |name: &str, driver: &str, id: &str| LocalNetwork {
            id: id.repeat(64),
            name: name.into(),
            driver: driver.into(),
            created_at: now(),
            ..LocalNetwork::default()
        };
        let networks = vec![bridge("bridge", "bridge", "a"), bridge("host", "host", "b"), bridge("none", "null", "c")];
        let state = State { images: vec![image], networks, ..State::default() };
        Arc::new(Self { name: name.into(), state: Mutex::new(state) })
    }

    fn draw(state: &mut State) -> String {
        state.drawn += 1;
        format!("{:064x}", state.drawn)
    }

    fn find(state: &mut State, reference: &str) -> Result<usize, EngineError> {
        let fits = |e: &Entry| {
            let config = &e.container.config;
            config.name == reference.trim_start_matches('/') || config.id.to_string() == reference
        };
        if let Some(at) = state.containers.iter().position(fits) {
            return Ok(at);
        }
        let prefixed = |e: &Entry| reference.len() >= 4 && e.container.config.id.to_string().starts_with(reference);
        state.containers.iter().position(prefixed).ok_or_else(|| EngineError::NoSuchContainer(reference.to_owned()))
    }

    fn with<T>(&self, reference: &str, act: impl FnOnce(&mut Entry) -> T) -> Result<T, EngineError> {
        let mut state = self.state.lock().unwrap();
        let at = Self::find(&mut state, reference)?;
        let entry = &mut state.containers[at];
        // What its process did meanwhile.
        let ended = entry.process.run.borrow().ended;
        if let (ContainerStatus::Running, Some(code)) = (entry.container.state.status, ended) {
            entry.container.state = ContainerState {
                status: ContainerStatus::Exited,
                pid: 0,
                exit_code: code,
                finished_at: Some(now()),
                ..entry.container.state.clone()
            };
        }
        Ok(act(entry))
    }
}

fn missing(name: &str) -> EngineError {
    EngineError::Unsupported(name.to_owned())
}

#[async_trait]
impl Engine for FakeEngine {
    fn events(&self) -> skep_api::ports::events::EventFeed {
        skep_api::ports::events::EventFeed::none()
    }
    async fn info(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo {
            id: "JPJ4:KM3S".into(),
            name: self.name.clone(),
            cpus: 4,
            memory: 25_276_067_840,
            kernel: "6.18.44".into(),
            operating_system: "Debian GNU/Linux 12 (bookworm)".into(),
            os_version: "12".into(),
            architecture: "x86_64".into(),
            root: "/var/lib/skep".into(),
            cgroup_version: "1".into(),
            security_options: vec!["name=seccomp,profile=default".into()],
            backing_filesystem: "extfs".into(),
            now: now(),
            ..EngineInfo::default()
        })
    }

    async fn containers(&self, all: bool) -> Result<Vec<Container>, EngineError> {
        let ids: Vec<_> =
            self.state.lock().unwrap().containers.iter().map(|e| e.container.config.id.to_string()).collect();
        let mut list = Vec::new();
        for id in ids.iter().rev() {
            let container = self.with(id, |e| e.container.clone())?;
            if all || container.state.status == ContainerStatus::Running {
                list.push(container);
            }
        }
        Ok(list)
    }

    async fn container(&self, reference: &str) -> Result<Container, EngineError> {
        self.with(reference, |e| e.container.clone())
    }

    async fn create(&self, config: ContainerConfig) -> Result<Created, EngineError> {
        let mut state = self.state.lock().unwrap();
        let name = config.spec.image.split('@').next().unwrap_or("").to_owned();
        let Some(image) = state.images.iter().find(|i| i.tags.contains(&name)) else {
            return Err(EngineError::NoSuchImage(config.spec.image));
        };
        let image_id = image.id.clone();
        if let Some(other) = state.containers.iter().find(|e| e.container.config.name == config.name) {
            return Err(EngineError::Conflict(format!(
                "Conflict. The container name \"/{}\" is already in use by container \"{}\". You have to remove (or rename) \
                 that container to be able to reuse that name.",
                config.name, other.container.config.id
            )));
        }
        let mut words = config.spec.command.clone();
        words.extend(config.spec.args.clone());
        let process = ResolvedProcess {
            path: words.first().cloned().unwrap_or_default(),
            args: words.iter().skip(1).cloned().collect(),
            env: config.spec.env.clone(),
            command: words,
            labels: config.spec.labels.clone(),
            hostname: config.id.short(),
            ..ResolvedProcess::default()
        };
        let mounts = config
            .spec
            .mounts
            .iter()
            .map(|m| ResolvedMount {
                kind: if m.kind == MountKind::Volume { "volume" } else { "bind" },
                name: if m.kind == MountKind::Volume { m.source.clone() } else { String::new() },
                source: m.source.clone().into(),
                target: m.target.clone(),
                writable: !m.read_only,
                propagation: String::new(),
            })
            .collect();
        let names = match &config.network {
            NetworkMode::Networks(list) => list.iter().map(|n| n.network.clone()).collect(),
            _ => vec!["bridge".to_owned()],
        };
        let networks = names
            .into_iter()
            .map(|network| EndpointState {
                network_id: network.clone(),
                network,
                cluster_network: None,
                addresses: vec!["172.17.0.2/16".parse().unwrap()],
                gateways: vec!["172.17.0.1".parse().unwrap()],
                mac: [2, 66, 172, 17, 0, 2],
                aliases: Vec::new(),
            })
            .collect();
        let id = config.id;
        let container = Container {
            ports: config.ports.clone(),
            config,
            created_at: now(),
            image_id,
            process,
            state: ContainerState {
                status: ContainerStatus::Created,
                pid: 0,
                exit_code: 0,
                error: String::new(),
                oom_killed: false,
                started_at: None,
                finished_at: None,
            },
            health: None,
            restart_count: 0,
            mounts,
            networks,
            exposed: Vec::new(),
            log_path: Default::default(),
            etc: EtcFiles::default(),
        };
        let (process, stdin) = Process::new();
        state.containers.push(Entry { container, process, stdin: Some(stdin) });
        Ok(Created { id, warnings: Vec::new() })
    }

    async fn start(&self, reference: &str) -> Result<bool, EngineError> {
        self.with(reference, |entry| {
            if entry.container.state.status == ContainerStatus::Running {
                return Ok(false);
            }
            let (status, words) = (&mut entry.container.state, &entry.container.process.command);
            if status.status == ContainerStatus::Exited {
                let (process, stdin) = Process::new();
                (entry.process, entry.stdin) = (process, Some(stdin));
            }
            let stdin = entry.stdin.take().expect("a process starts once");
            if !entry.process.spawn(words, stdin) {
                entry.process.end(127);
                if entry.container.config.auto_remove {
                    entry.process.run.send_modify(|run| run.removed = true);
                }
                return Err(EngineError::StartFailed(format!(
                    "exec: \"{}\": executable file not found in $PATH: unknown",
                    words.first().cloned().unwrap_or_default()
                )));
            }
            status.status = ContainerStatus::Running;
            status.started_at = Some(now());
            status.pid = 4711;
            if entry.container.config.auto_remove {
                let mut run = entry.process.run.subscribe();
                let process = entry.process.clone();
                tokio::spawn(async move {
                    let _ = run.wait_for(|run| run.ended.is_some()).await;
                    process.run.send_modify(|run| run.removed = true);
                });
            }
            Ok(true)
        })?
    }

    async fn stop(&self, reference: &str, _: Option<i32>, _: Option<u64>) -> Result<bool, EngineError> {
        self.with(reference, |e| {
            let running = e.container.state.status == ContainerStatus::Running;
            e.process.end(137);
            running
        })
    }

    async fn kill(&self, reference: &str, signal: i32) -> Result<(), EngineError> {
        self.with(reference, |e| {
            if e.container.state.status != ContainerStatus::Running {
                let id = e.container.config.id;
                return Err(EngineError::Conflict(format!("Container {id} is not running")));
            }
            if signal == 9 || signal == 15 {
                e.process.end(128 + signal);
            }
            Ok(())
        })?
    }

    async fn pause(&self, _: &str, _: bool) -> Result<(), EngineError> {
        Err(missing("pause"))
    }

    async fn rename(&self, reference: &str, name: &str) -> Result<(), EngineError> {
        self.with(reference, |e| e.container.config.name = name.to_owned())
    }

    async fn remove(&self, reference: &str, force: bool, _: bool) -> Result<(), EngineError> {
        let (id, running) =
            self.with(reference, |e| (e.container.config.id, e.container.state.status == ContainerStatus::Running))?;
        if running && !force {
            return Err(EngineError::Conflict(format!(
                "You cannot remove a running container {id}. Stop the container before attempting removal or force remove"
            )));
        }
        let mut state = self.state.lock().unwrap();
        if let Some(at) = state.containers.iter().position(|e| e.container.config.id == id) {
            let entry = state.containers.remove(at);
            entry.process.end(137);
            entry.process.run.send_modify(|run| run.removed = true);
        }
        Ok(())
    }

    async fn wait(&self, reference: &str, condition: WaitCondition) -> Result<WaitHandle, EngineError> {
        let mut run = self.with(reference, |e| e.process.run.subscribe())?;
        Ok(Box::pin(async move {
            let removed = condition == WaitCondition::Removed;
            let over = |run: &Run| if removed { run.removed } else { run.ended.is_some() };
            let code = run.wait_for(over).await.map(|run| run.ended).unwrap_or(None);
            Ok((code.unwrap_or(0), String::new()))
        }))
    }

    async fn attach(&self, reference: &str, request: AttachStreams) -> Result<Attached, EngineError> {
        self.with(reference, |e| {
            let from = if request.logs { 0 } else { e.process.run.borrow().pieces.len() };
            e.process.attach(e.container.config.spec.tty, request.stdin, from)
        })
    }

    async fn resize(&self, reference: &str, _: TerminalSize) -> Result<(), EngineError> {
        self.with(reference, |_| ())
    }

    async fn logs(
        &self,
        reference: &str,
        query: LogQuery,
    ) -> Result<BoxStream<'static, std::io::Result<LogLine>>, EngineError> {
        let process = self.with(reference, |e| e.process.clone())?;
        let from = query.tail.map_or(0, |n| process.run.borrow().pieces.len().saturating_sub(n));
        Ok(process.pieces(from, query.follow).map(Ok).boxed())
    }

    async fn top(&self, reference: &str) -> Result<(Vec<String>, Vec<Vec<String>>), EngineError> {
        self.with(reference, |e| {
            (vec!["PID".into(), "CMD".into()], vec![vec!["1".into(), e.container.process.path.clone()]])
        })
    }

    async fn exec_create(&self, reference: &str, config: ExecConfig) -> Result<String, EngineError> {
        let container = self.with(reference, |e| e.container.config.id)?;
        let mut state = self.state.lock().unwrap();
        let id = format!("{}{}", &Self::draw(&mut state)[32..], &container.to_string()[..32]);
        let (process, stdin) = Process::new();
        let exec = ExecState { id: id.clone(), container, config, running: false, exit_code: None, pid: 0 };
        state.execs.insert(id.clone(), Exec { state: exec, process, stdin: Some(stdin) });
        Ok(id)
    }

    async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        _tty: bool,
        _size: Option<TerminalSize>,
    ) -> Result<Option<Attached>, EngineError> {
        let mut state = self.state.lock().unwrap();
        let exec = state.execs.get_mut(id).ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))?;
        let config = &exec.state.config;
        let attached = exec.process.attach(config.tty, config.attach_stdin, 0);
        let stdin = exec.stdin.take().ok_or_else(|| EngineError::Conflict("it ran already".into()))?;
        if !exec.process.spawn(&config.command, stdin) {
            exec.process.end(127);
            return Err(EngineError::StartFailed(format!(
                "OCI runtime exec failed: exec: \"{}\": executable file not found in $PATH",
                config.command[0]
            )));
        }
        Ok((!detach).then_some(attached))
    }

    async fn exec_resize(&self, id: &str, _: TerminalSize) -> Result<(), EngineError> {
        self.exec(id).await.map(|_| ())
    }

    async fn exec(&self, id: &str) -> Result<ExecState, EngineError> {
        let state = self.state.lock().unwrap();
        let exec = state.execs.get(id).ok_or_else(|| EngineError::NoSuchExec(id.to_owned()))?;
        let exit_code = exec.process.run.borrow().ended;
        Ok(ExecState { exit_code, running: exit_code.is_none() && exec.stdin.is_none(), ..exec.state.clone() })
    }

    async fn images(&self) -> Result<Vec<Image>, EngineError> {
        Ok(self.state.lock().unwrap().images.clone())
    }

    async fn image(&self, reference: &str) -> Result<Image, EngineError> {
        let state = self.state.lock().unwrap();
        let fits = |i: &&Image| i.id == reference || i.tags.iter().any(|t| t == reference);
        state.images.iter().find(fits).cloned().ok_or_else(|| EngineError::NoSuchImage(reference.to_owned()))
    }

    async fn pull(
        &self,
        reference: &str,
        _: Option<String>,
        _: Option<RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, EngineError>>, EngineError> {
        if reference.contains("nosuch") {
            return Err(EngineError::Registry(format!(
                "manifest for {reference} not found: manifest unknown: manifest unknown"
            )));
        }
        let line = |id: &str, status: String| Ok(PullProgress { id: id.into(), status, bytes: None });
        let lines = vec![
            line("1", "Pulling from bb".into()),
            line("", format!("Digest: {DIGEST}")),
            line("", format!("Status: Image is up to date for {reference}")),
        ];
        Ok(futures_util::stream::iter(lines).boxed())
    }

    async fn load(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>, EngineError> {
        let bytes: usize = archive.map(|c| c.map_or(0, |c| c.len())).collect::<Vec<_>>().await.iter().sum();
        Ok(vec![format!("bb:{bytes}")])
    }

    async fn import(
        &self,
        _: BoxStream<'static, std::io::Result<Bytes>>,
        _: Option<String>,
        _: Vec<String>,
        _: String,
    ) -> Result<String, EngineError> {
        Ok(DIGEST.into())
    }

    async fn tag(&self, reference: &str, name: &str) -> Result<(), EngineError> {
        let id = self.image(reference).await?.id;
        let mut state = self.state.lock().unwrap();
        let image = state.images.iter_mut().find(|i| i.id == id).unwrap();
        image.tags.push(name.trim_start_matches("docker.io/library/").to_owned());
        Ok(())
    }

    async fn remove_image(&self, reference: &str, _: bool) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let id = self.image(reference).await?.id;
        let mut state = self.state.lock().unwrap();
        let image = state.images.iter_mut().find(|i| i.id == id).unwrap();
        image.tags.retain(|t| t != reference);
        Ok((vec![reference.to_owned()], Vec::new()))
    }

    async fn login(&self, _: &str, username: &str, password: &str) -> Result<String, EngineError> {
        if username == password {
            Err(EngineError::Unauthorized("unauthorized: incorrect username or password".into()))
        } else {
            Ok("Login Succeeded".into())
        }
    }

    async fn distribution(&self, reference: &str, _: Option<RegistryAuth>) -> Result<Distribution, EngineError> {
        if reference.contains("nosuch") {
            return Err(EngineError::Registry(
                "Get \"https://registry-1.docker.io/v2/\": dial tcp: i/o timeout".into(),
            ));
        }
        Ok(Distribution {
            digest: DIGEST.into(),
            media_type: "application/vnd.docker.distribution.manifest.v2+json".into(),
            size: 527,
            platforms: vec![("amd64".into(), "linux".into(), String::new())],
        })
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        Ok(self.state.lock().unwrap().volumes.values().cloned().collect())
    }

    async fn volume(&self, name: &str) -> Result<Volume, EngineError> {
        let state = self.state.lock().unwrap();
        state.volumes.get(name).cloned().ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))
    }

    async fn create_volume(&self, volume: NewVolume) -> Result<Volume, EngineError> {
        let mut state = self.state.lock().unwrap();
        let name = if volume.name.is_empty() { Self::draw(&mut state) } else { volume.name };
        let made = Volume {
            mountpoint: format!("/var/lib/skep/volumes/{name}/_data").into(),
            name: name.clone(),
            driver: "local".into(),
            labels: volume.labels,
            options: volume.options,
            created_at: now(),
        };
        Ok(state.volumes.entry(name).or_insert(made).clone())
    }

    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let gone = self.state.lock().unwrap().volumes.remove(name);
        if gone.is_some() || force { Ok(()) } else { Err(EngineError::NoSuchVolume(name.to_owned())) }
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        Ok(self.state.lock().unwrap().networks.clone())
    }

    async fn create_network(&self, network: LocalNetwork) -> Result<LocalNetwork, EngineError> {
        let mut state = self.state.lock().unwrap();
        let subnets = vec![skep_proto::model::network::Subnet {
            subnet: "172.19.0.0/16".parse().unwrap(),
            range: None,
            gateway: "172.19.0.1".parse().unwrap(),
        }];
        let id = Self::draw(&mut state);
        let made = LocalNetwork { id, subnets, created_at: now(), ..network };
        state.networks.push(made.clone());
        Ok(made)
    }

    async fn connect_network(&self, container: &str, endpoint: NetworkEndpoint) -> Result<(), EngineError> {
        let mut state = self.state.lock().unwrap();
        let at = Self::find(&mut state, container)?;
        let config = &mut state.containers[at].container.config;
        let mut all = match &config.network {
            NetworkMode::Networks(list) => list.clone(),
            _ => vec![NetworkEndpoint { network: "bridge".into(), ..NetworkEndpoint::default() }],
        };
        all.push(endpoint);
        config.network = NetworkMode::Networks(all);
        Ok(())
    }

    async fn disconnect_network(&self, container: &str, network: &str, _: bool) -> Result<(), EngineError> {
        let mut state = self.state.lock().unwrap();
        let at = Self::find(&mut state, container)?;
        let config = &mut state.containers[at].container.config;
        let NetworkMode::Networks(all) = &mut config.network else { return Ok(()) };
        all.retain(|endpoint| endpoint.network != network);
        Ok(())
    }

    async fn remove_network(&self, reference: &str) -> Result<(), EngineError> {
        self.state.lock().unwrap().networks.retain(|n| n.id != reference);
        Ok(())
    }
}

/// A task's container, made and started as an agent would.
pub async fn run_task_container(engine: &FakeEngine, config: ContainerConfig) -> (ContainerId, Option<EngineError>) {
    let id = config.id;
    let result = match engine.create(config).await {
        Ok(_) => engine.start(&id.to_string()).await.err(),
        Err(error) => Some(error),
    };
    (id, result)
}

/// Waits until `condition` holds; panics after ten seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}");
}
