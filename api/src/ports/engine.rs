//! This node's containers, images, volumes and local networks, as faces see them.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use skep_proto::model::Timestamp;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::doctor::{Question, Report};
use skep_proto::model::engine::{
    Container, ContainerConfig, ExecConfig, ExecState, Image, LocalNetwork, LogLine, LogQuery, NetworkEndpoint, Output,
    PullProgress, Volume,
};
use skep_proto::model::{ContainerId, Labels, Network};

use super::control::Reference;
use super::events::EventFeed;

/// The engine of this node.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What happens to this node's containers, images, volumes and networks.
    fn events(&self) -> EventFeed;

    /// What `docker info` shows of this node.
    async fn info(&self) -> Result<EngineInfo, EngineError>;

    /// What `skep doctor` says of this node. Takes a few seconds.
    async fn doctor(&self, _question: Question) -> Result<Report, EngineError> {
        Err(EngineError::Unsupported("skep doctor is not supported by this engine".into()))
    }

    /// Containers, newest first; only running ones unless `all`.
    async fn containers(&self, all: bool) -> Result<Vec<Container>, EngineError>;
    /// One container, by id, unique prefix or name.
    async fn container(&self, reference: &Reference) -> Result<Container, EngineError>;
    /// Makes a container; its image must exist here.
    async fn create(&self, config: ContainerConfig) -> Result<Created, EngineError>;
    /// Starts it. `Ok(false)`: it runs already.
    async fn start(&self, reference: &Reference) -> Result<bool, EngineError>;
    /// Sends the stop signal, then SIGKILL after `grace` seconds (`None`: the container's own). `Ok(false)`: it had stopped.
    async fn stop(&self, reference: &Reference, signal: Option<i32>, grace: Option<u64>) -> Result<bool, EngineError>;
    /// Stops it as [`Self::stop`] does, and starts it. An engine that removes containers at their end overrides this.
    async fn restart(&self, reference: &Reference, signal: Option<i32>, grace: Option<u64>) -> Result<(), EngineError> {
        self.stop(reference, signal, grace).await?;
        self.start(reference).await?;
        Ok(())
    }
    /// Sends a signal.
    async fn kill(&self, reference: &Reference, signal: i32) -> Result<(), EngineError>;
    /// Freezes or thaws it.
    async fn pause(&self, reference: &Reference, paused: bool) -> Result<(), EngineError>;
    /// Gives it another name.
    async fn rename(&self, reference: &Reference, name: &str) -> Result<(), EngineError>;
    /// Removes it, with `force` also while it runs, with `volumes` its anonymous volumes too.
    async fn remove(&self, reference: &Reference, force: bool, volumes: bool) -> Result<(), EngineError>;
    /// Resolves when `condition` holds, with the exit code. The subscription exists when the outer future returns, so
    /// that a caller who then starts the container misses nothing.
    async fn wait(&self, reference: &Reference, condition: WaitCondition) -> Result<WaitHandle, EngineError>;
    /// Connects to the process's streams. With `logs`, earlier output comes first.
    async fn attach(&self, reference: &Reference, request: AttachStreams) -> Result<Attached, EngineError>;
    /// Size of the terminal, in characters.
    async fn resize(&self, reference: &Reference, size: TerminalSize) -> Result<(), EngineError>;
    /// Lines of the log.
    async fn logs(
        &self,
        reference: &Reference,
        query: LogQuery,
    ) -> Result<BoxStream<'static, std::io::Result<LogLine>>, EngineError>;
    /// Processes of the container: titles, then rows.
    async fn top(&self, reference: &Reference) -> Result<(Vec<String>, Vec<Vec<String>>), EngineError>;

    /// Prepares a process; returns its id, 64 hexadecimal digits.
    async fn exec_create(&self, reference: &Reference, config: ExecConfig) -> Result<String, EngineError>;
    /// Starts it. The streams are `None` when `detach`.
    async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        tty: bool,
        size: Option<TerminalSize>,
    ) -> Result<Option<Attached>, EngineError>;
    /// Size of its terminal.
    async fn exec_resize(&self, id: &str, size: TerminalSize) -> Result<(), EngineError>;
    /// What is known of it.
    async fn exec(&self, id: &str) -> Result<ExecState, EngineError>;

    /// Images.
    async fn images(&self) -> Result<Vec<Image>, EngineError>;
    /// One image, by reference, id or unique prefix of one.
    async fn image(&self, reference: &Reference) -> Result<Image, EngineError>;
    /// Fetches an image. An error before anything is shown comes from the call, a later one from the stream.
    async fn pull(
        &self,
        reference: &Reference,
        platform: Option<String>,
        auth: Option<RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, EngineError>>, EngineError>;
    /// Reads an archive of `docker save`; yields the names it loaded (`Loaded image: …`).
    async fn load(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>, EngineError>;
    /// Makes an image of one layer from a root file system's tar (`docker import`); gives its id.
    async fn import(
        &self,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
        reference: Option<String>,
        changes: Vec<String>,
        message: String,
    ) -> Result<String, EngineError>;
    /// Gives an image another name.
    async fn tag(&self, reference: &Reference, name: &str) -> Result<(), EngineError>;
    /// Removes a name, and the image with its last one: (untagged, deleted).
    async fn remove_image(&self, reference: &Reference, force: bool)
    -> Result<(Vec<String>, Vec<String>), EngineError>;
    /// Checks credentials against a registry; gives Docker's status line.
    async fn login(&self, server: &str, username: &str, password: &str) -> Result<String, EngineError>;
    /// What a registry says of a reference: (digest, media type, size, platforms).
    async fn distribution(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Distribution, EngineError>;

    /// Volumes.
    async fn volumes(&self) -> Result<Vec<Volume>, EngineError>;
    /// One volume, by name.
    async fn volume(&self, name: &str) -> Result<Volume, EngineError>;
    /// Makes a volume, or returns the one of that name. An empty name draws one.
    async fn create_volume(&self, volume: NewVolume) -> Result<Volume, EngineError>;
    /// Removes a volume that no container uses.
    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError>;

    /// Networks of this node.
    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError>;
    /// Networks of the cluster that this node uses, as the managers describe them; for nodes that are no managers.
    async fn cluster_networks(&self) -> Result<Vec<Network>, EngineError> {
        Ok(Vec::new())
    }
    /// Whether the managers said last that the operator removed the routing mesh; for nodes that are no managers.
    fn is_mesh_removed(&self) -> bool {
        false
    }
    /// Subnets of the routing mesh: the links that published ports lead through.
    fn mesh_subnets(&self) -> Vec<IpNet> {
        Vec::new()
    }
    /// Makes a bridge network of this node.
    async fn create_network(&self, network: LocalNetwork) -> Result<LocalNetwork, EngineError>;
    /// Has a container join a network of this node or of the cluster, also while it runs.
    async fn connect_network(&self, container: &Reference, endpoint: NetworkEndpoint) -> Result<(), EngineError>;
    /// Has a container leave a network. With `force` a container that is not there is no error.
    async fn disconnect_network(
        &self,
        container: &Reference,
        network: &Reference,
        force: bool,
    ) -> Result<(), EngineError>;
    /// Removes one that no container uses.
    async fn remove_network(&self, reference: &Reference) -> Result<(), EngineError>;
}

/// A container was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// For people.
    pub warnings: Vec<String>,
}

/// What `docker info` shows of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// Stable name of this engine.
    pub id: String,
    /// Host name.
    pub name: String,
    /// Containers by state: running, paused, stopped.
    pub containers: (u64, u64, u64),
    /// Images.
    pub images: u64,
    /// Logical CPUs.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub operating_system: String,
    /// `VERSION_ID` of os-release.
    pub os_version: String,
    /// `uname -m`.
    pub architecture: String,
    /// Where the engine keeps its state.
    pub root: PathBuf,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `name=seccomp,profile=default`, …
    pub security_options: Vec<String>,
    /// File system under the root directory.
    pub backing_filesystem: String,
    /// Registries that may be spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// What an operator should know: missing protections, missing kernel features.
    pub warnings: Vec<String>,
    /// Labels of the daemon.
    pub labels: Labels,
    /// Current time.
    pub now: Timestamp,
    /// Open file descriptors and tasks of the daemon.
    pub usage: (u64, u64),
}

/// What a client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// It does not run.
    #[default]
    NotRunning,
    /// Its next end.
    NextExit,
    /// It is gone.
    Removed,
}

/// A wait that has begun: resolves with the exit code and an error text that is empty when there was none.
pub type WaitHandle = futures_util::future::BoxFuture<'static, Result<(i32, String), EngineError>>;

/// Which streams a client attaches to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttachStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Earlier output first.
    pub logs: bool,
    /// Go on with new output.
    pub stream: bool,
}

/// The streams of a process.
pub struct Attached {
    /// Its terminal is one stream of bytes, not framed.
    pub tty: bool,
    /// Standard input; dropping it closes that end. `None` when it was not asked for.
    pub input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    /// Output until the process ends.
    pub output: BoxStream<'static, std::io::Result<Output>>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewVolume {
    /// Name; empty to draw one.
    pub name: String,
    /// Driver; empty for `local`.
    pub driver: String,
    /// Driver options.
    pub options: std::collections::BTreeMap<String, String>,
    /// Labels.
    pub labels: Labels,
}

/// What a registry says of a reference.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distribution {
    /// Digest of the manifest or index.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Platforms as (architecture, os, variant).
    pub platforms: Vec<(String, String, String)>,
}

/// Why the engine does not do what was asked. Docker's words where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such container.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// No such image.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// No such exec session.
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// No such volume.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// No such network.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// The cluster does not allow it.
    #[error("{0}")]
    Forbidden(String),
    /// A name is taken, or the object is in a state that forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The container could not be started; the text says why (`executable file not found in $PATH`, `permission denied`).
    #[error("{0}")]
    StartFailed(String),
    /// The registry refused, or there is no such image there.
    #[error("{0}")]
    Registry(String),
    /// Credentials are missing or wrong.
    #[error("{0}")]
    Unauthorized(String),
    /// Not built yet; named, never pretended.
    #[error("{0} is not supported by skep yet")]
    Unsupported(String),
    /// Something broke on this side; the log has the chain.
    #[error("{context}")]
    Internal {
        /// What was being done.
        context: String,
        /// What broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
