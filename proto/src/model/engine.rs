//! What one node's container engine speaks of: containers, exec sessions, images, volumes, node-local networks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::container::{Driver, Healthcheck};
use super::isolation::Isolation;
use super::service::Protocol;
use super::task::Resources;
use super::{ContainerId, ContainerSpec, Health, Labels, NetworkId, NodeId, ServiceId, TaskId, Timestamp};

/// All that a container is created from. Kept as given, so that inspection shows what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Identity, chosen by the caller: drawn for plain containers, derived for tasks'.
    pub id: ContainerId,
    /// Name, unique on the node, without the leading slash.
    pub name: String,
    /// Image, process, mounts.
    pub spec: ContainerSpec,
    /// Limits.
    pub resources: Resources,
    /// How it is connected.
    pub network: NetworkMode,
    /// Ports published on this node.
    pub ports: Vec<PortBinding>,
    /// Remove the container when it ends.
    pub auto_remove: bool,
    /// What happens after its end.
    pub restart: ContainerRestart,
    /// Every capability and device. Refused unless the node's policy allows it.
    pub privileged: bool,
    /// What else it shares with its node, or is denied.
    #[serde(default)]
    pub isolation: Isolation,
    /// Close standard input after the first client that attached to it leaves.
    pub stdin_once: bool,
    /// Streams that the creating client attaches to: input, output, error. Shown at inspection only.
    pub attach: (bool, bool, bool),
    /// Log driver; `None` for json-file with the node's options.
    pub log: Option<Driver>,
    /// The task that owns it.
    pub task: Option<TaskOwner>,
}

/// The task that owns a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOwner {
    /// The task.
    pub task: TaskId,
    /// Its service.
    pub service: ServiceId,
    /// Its node.
    pub node: NodeId,
}

/// How a container is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The node's default bridge.
    #[default]
    Bridge,
    /// The node's own network namespace.
    Host,
    /// Nothing but a loopback device.
    None,
    /// The sandbox of another container of this node.
    Container(ContainerId),
    /// A sandbox that exists already: that of the task.
    Sandbox(PathBuf),
    /// Named networks: node-local bridges or attachable overlays.
    Networks(Vec<NetworkEndpoint>),
}

/// A wish to join a named network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkEndpoint {
    /// Name or id of the network.
    pub network: String,
    /// Further names on that network.
    pub aliases: Vec<String>,
    /// Addresses asked for.
    pub addresses: Vec<IpAddr>,
}

/// A port published on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBinding {
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the container.
    pub container_port: u16,
    /// Address of the node to listen on; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// Port of the node; `None` until one is chosen.
    pub host_port: Option<u16>,
    /// The last port of a range that begins with `host_port`: one of them is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port_last: Option<u16>,
}

/// What happens after a plain container's end (Engine API, `RestartPolicy`). Tasks never restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ContainerRestart {
    /// Nothing.
    #[default]
    No,
    /// Start it again, also after the daemon's start.
    Always,
    /// As always, unless it was stopped by hand.
    UnlessStopped,
    /// After a failure, so often at most; 0 for no limit.
    OnFailure(u32),
}

/// A container as inspection shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What it was created from.
    pub config: ContainerConfig,
    /// When.
    pub created_at: Timestamp,
    /// Digest of the image's configuration (Docker's image id), `sha256:…`.
    pub image_id: String,
    /// The process as resolved from spec and image.
    pub process: ResolvedProcess,
    /// Where it stands.
    pub state: ContainerState,
    /// Its health, as of the last run; `None` without a health check and before the first start.
    pub health: Option<Health>,
    /// How often its restart policy has started it again.
    pub restart_count: u32,
    /// Mounts as resolved.
    pub mounts: Vec<ResolvedMount>,
    /// Addresses by network.
    pub networks: Vec<EndpointState>,
    /// Ports as bound.
    pub ports: Vec<PortBinding>,
    /// Ports that the image or the client declared, whether published or not.
    pub exposed: Vec<(Protocol, u16)>,
    /// Log file; empty when the driver has none.
    pub log_path: PathBuf,
    /// The node's files given to it as `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
    pub etc: EtcFiles,
}

/// The node's files behind three files of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcFiles {
    /// `/etc/hostname`.
    pub hostname: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// A process as resolved from spec and image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResolvedProcess {
    /// First word.
    pub path: String,
    /// Other words.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// User as given; empty for root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Entry point as resolved.
    pub entrypoint: Vec<String>,
    /// Command as resolved.
    pub command: Vec<String>,
    /// Labels of image and spec.
    pub labels: Labels,
    /// Stop signal as a number.
    pub stop_signal: i32,
    /// Health check as resolved; `None` when there is none.
    pub healthcheck: Option<Healthcheck>,
}

/// A mount as resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMount {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: &'static str,
    /// Volume's name; empty for others.
    pub name: String,
    /// Path on the node; empty for tmpfs.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
    /// Writes are allowed.
    pub writable: bool,
    /// Propagation.
    pub propagation: String,
}

/// A container's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    /// The network's name.
    pub network: String,
    /// The network's id: 64 hexadecimal digits for node-local ones, 25 characters for the cluster's.
    pub network_id: String,
    /// Set for networks of the cluster.
    pub cluster_network: Option<NetworkId>,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
    /// Gateways, one per family.
    pub gateways: Vec<IpAddr>,
    /// MAC address.
    pub mac: [u8; 6],
    /// Further names.
    pub aliases: Vec<String>,
}

/// Where a container stands (Engine API, `ContainerState`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The word for it.
    pub status: ContainerStatus,
    /// Pid of its init in the node's pid namespace; 0 when it does not run.
    pub pid: u32,
    /// Exit code of the last run; signal + 128 when one killed it.
    pub exit_code: i32,
    /// Why it could not start, or what went wrong; empty when nothing did.
    pub error: String,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Start of the last run.
    pub started_at: Option<Timestamp>,
    /// End of the last run.
    pub finished_at: Option<Timestamp>,
}

/// Docker's words for where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ContainerStatus {
    /// Never started.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Waits to be started again.
    Restarting,
    /// Is being removed.
    Removing,
    /// Has ended.
    Exited,
    /// Could not be removed.
    Dead,
}

impl ContainerStatus {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// A process to run inside a container (Engine API, `ExecConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecConfig {
    /// Words of the command.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// User; empty for the container's.
    pub user: String,
    /// Working directory; empty for the container's.
    pub dir: String,
    /// Allocate a terminal.
    pub tty: bool,
    /// Give every capability.
    pub privileged: bool,
    /// Connect standard input.
    pub attach_stdin: bool,
    /// Connect standard output.
    pub attach_stdout: bool,
    /// Connect standard error.
    pub attach_stderr: bool,
    /// Keys that detach, as the client gave them.
    pub detach_keys: String,
}

/// An exec session as inspection shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecState {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its container.
    pub container: ContainerId,
    /// What it was created from.
    pub config: ExecConfig,
    /// It runs.
    pub running: bool,
    /// Set when it has ended.
    pub exit_code: Option<i32>,
    /// Pid in the node's pid namespace; 0 when it does not run.
    pub pid: u32,
}

/// An image as lists and inspection show it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Digest of its configuration, `sha256:…`.
    pub id: String,
    /// `name:tag`, familiar form (`nginx:latest`).
    pub tags: Vec<String>,
    /// `name@sha256:…` of manifests, familiar form.
    pub digests: Vec<String>,
    /// When it was built, RFC 3339 as in the configuration.
    pub created: String,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Author, as in the configuration.
    pub author: String,
    /// Digests of its unpacked layers, lowest first.
    pub layers: Vec<String>,
    /// What containers inherit.
    pub config: ImageConfig,
}

/// What containers inherit of an image (OCI image-spec, `config`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// User.
    pub user: String,
    /// Environment.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub command: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// Labels.
    pub labels: Labels,
    /// Paths that get an anonymous volume.
    pub volumes: Vec<String>,
    /// Ports declared.
    pub exposed: Vec<(Protocol, u16)>,
    /// Stop signal.
    pub stop_signal: String,
    /// Health check.
    pub healthcheck: Option<Healthcheck>,
}

/// A volume of the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    /// Name; 64 hexadecimal digits for anonymous ones.
    pub name: String,
    /// Driver (`local`).
    pub driver: String,
    /// Where its content is.
    pub mountpoint: PathBuf,
    /// Labels.
    pub labels: Labels,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A network that exists on one node only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalNetwork {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Name: `bridge`, `host`, `none`, or the operator's.
    pub name: String,
    /// `bridge`, `host` or `null`.
    pub driver: String,
    /// Subnets, IPv4 first. In a request those asked for; the others are chosen.
    pub subnets: Vec<super::network::Subnet>,
    /// It has IPv6 beside IPv4.
    pub ipv6: bool,
    /// No way out.
    pub internal: bool,
    /// Labels.
    pub labels: Labels,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Which of a process's streams a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where it came from.
    pub stream: OutputStream,
    /// The bytes, not cut at lines.
    pub bytes: bytes::Bytes,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it came from.
    pub stream: OutputStream,
    /// Nanoseconds since the Unix epoch.
    pub at_nanos: u64,
    /// The line with its end, if it has one.
    pub bytes: bytes::Bytes,
}

/// Which lines of a log are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Go on with new lines until the container is removed or the client leaves.
    pub follow: bool,
    /// Lines from the end; `None` for all.
    pub tail: Option<usize>,
    /// Not before this time, nanoseconds since the Unix epoch.
    pub since_nanos: Option<u64>,
    /// Not after this time, nanoseconds since the Unix epoch.
    pub until_nanos: Option<u64>,
}

/// Progress of a pull or load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// Short id of the layer, or the tag; empty for lines about the whole.
    pub id: String,
    /// Docker's words: `Pulling fs layer`, `Downloading`, `Pull complete`, `Digest: sha256:…`, `Status: …`.
    pub status: String,
    /// Bytes so far and in all, while they count.
    pub bytes: Option<(u64, u64)>,
}
