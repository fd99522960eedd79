//! What a container is made from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::isolation::DeviceMapping;
use super::pod::PodContainer;
use super::{ConfigId, Labels, SecretId};

/// One container of a task. Absent options mean "the image's or Docker's default", and are shown as absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Name inside the task; empty for the only container of a Docker task.
    pub name: String,
    /// Reference, possibly with a digest: `registry/name:tag@sha256:…`.
    pub image: String,
    /// Labels of the container.
    pub labels: Labels,
    /// Replaces the image's entry point when not empty (Docker: `Command`).
    pub command: Vec<String>,
    /// Replaces the image's command when not empty (Docker: `Args`).
    pub args: Vec<String>,
    /// Host name inside; empty for the default.
    pub hostname: String,
    /// `NAME=value`; a later entry replaces an earlier one of the same name.
    pub env: Vec<String>,
    /// Working directory; empty for the image's.
    pub dir: String,
    /// `user[:group]`, names or numbers; empty for the image's.
    pub user: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Run a small init as pid 1; `None` for the daemon's default (no).
    pub init: Option<bool>,
    /// Signal that asks the process to stop (`SIGTERM`, `15`); empty for the image's or SIGTERM.
    pub stop_signal: String,
    /// How long after the stop signal SIGKILL follows; `None` for Docker's 10 s.
    pub stop_grace: Option<Duration>,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub open_stdin: bool,
    /// Mount the root file system read-only.
    pub read_only: bool,
    /// File systems mounted into the container.
    pub mounts: Vec<Mount>,
    /// Health check; `None` for the image's.
    pub healthcheck: Option<Healthcheck>,
    /// Lines of `/etc/hosts`, in the form `IP NAME [ALIAS…]` (swarm's order, the reverse of `--add-host`).
    pub hosts: Vec<String>,
    /// Resolver settings; `None` for the node's.
    pub dns: Option<DnsConfig>,
    /// Secrets put into the container's file system.
    pub secrets: Vec<SecretReference>,
    /// Configs put into the container's file system.
    pub configs: Vec<ConfigReference>,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities added to the default set (`CAP_NET_ADMIN` or `ALL`).
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Security options; `None` for the default.
    pub privileges: Option<Privileges>,
    /// Credentials for pulling the image, as the client sent them in `X-Registry-Auth`. Sealed with the log, shown to nobody.
    #[serde(skip)]
    pub registry_auth: Option<RegistryAuth>,
    /// What it has as one of several containers of a task; `None` for Docker's only one.
    pub pod: Option<PodContainer>,
}

/// The value of an `X-Registry-Auth` header. Its `Debug` prints nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryAuth(pub String);

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryAuth(…)")
    }
}

/// A file system mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Path on the node, or name of the volume; empty for tmpfs and for an anonymous volume.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Forbid writes.
    pub read_only: bool,
    /// `default`, `consistent`, `cached`, `delegated`: without effect on Linux, kept for inspection.
    pub consistency: String,
    /// Options of a bind mount.
    pub bind: Option<BindOptions>,
    /// Options of a volume.
    pub volume: Option<VolumeOptions>,
    /// Options of a tmpfs.
    pub tmpfs: Option<TmpfsOptions>,
}

/// What a mount mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A path of the node.
    Bind,
    /// A volume of the node.
    Volume,
    /// Memory.
    Tmpfs,
}

/// Options of a bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BindOptions {
    /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`; empty for rprivate.
    pub propagation: String,
    /// Bind only the mount itself, not those below it.
    pub non_recursive: bool,
    /// Make the source when it is missing.
    pub create_mountpoint: bool,
}

/// Options of a volume mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeOptions {
    /// Do not copy the image's content of the target into an empty volume.
    pub no_copy: bool,
    /// Path inside the volume that is mounted; empty for its root.
    pub subpath: String,
    /// Labels for a volume that is made for this mount.
    pub labels: Labels,
    /// Driver and options for a volume that is made for this mount.
    pub driver: Option<Driver>,
    /// The volume is the task's: its containers share it, and it goes when the task has ended.
    pub scratch: bool,
    /// Where the volume is, the tasks that use it must run.
    pub pinned: bool,
    /// Group that the volume's root is given to and may write; `None` to leave it as it is.
    pub gid: Option<u32>,
}

/// Options of a tmpfs mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsOptions {
    /// Size in bytes; 0 for no limit but the container's memory.
    pub size: u64,
    /// Mode of the root directory; 0 for 1777.
    pub mode: u32,
}

/// A plug-in's name and options (log driver, volume driver, IPAM driver).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Driver {
    /// The driver's name.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// A health check (Engine API, `HealthConfig`). Zero durations and counts mean "inherit".
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `[]` inherit, `["NONE"]` off, `["CMD", …]`, `["CMD-SHELL", line]`.
    pub test: Vec<String>,
    /// Time between two probes.
    pub interval: Duration,
    /// Time after which a probe counts as failed.
    pub timeout: Duration,
    /// Time after the start in which a failed probe does not count.
    pub start_period: Duration,
    /// Time between two probes in the start period.
    pub start_interval: Duration,
    /// Failures in a row that make the container unhealthy.
    pub retries: u32,
}

/// Resolver settings of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Servers asked for names that are not the cluster's.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

/// Where a secret or config appears in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FileTarget {
    /// File name; relative to `/run/secrets` for secrets, to `/` for configs.
    pub name: String,
    /// Owner, as text (a number or a name).
    pub uid: String,
    /// Group, as text.
    pub gid: String,
    /// Permission bits.
    pub mode: u32,
}

/// A secret as a container uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    /// The secret.
    pub id: SecretId,
    /// Its name, for display.
    pub name: String,
    /// Where it appears.
    pub file: Option<FileTarget>,
}

/// A config as a container uses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReference {
    /// The config.
    pub id: ConfigId,
    /// Its name, for display.
    pub name: String,
    /// Where it appears.
    pub file: Option<FileTarget>,
}

/// Security options of a task's container (Engine API, `ContainerSpec.Privileges`), as far as they are built, and two that
/// Docker does not have: nodes must allow them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    /// Processes never get more privileges than they have.
    pub no_new_privileges: bool,
    /// Load no seccomp filter.
    pub seccomp_unconfined: bool,
    /// Every capability and device.
    pub privileged: bool,
    /// Devices of the node.
    pub devices: Vec<DeviceMapping>,
}

/// A resource limit of the process (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Name without `RLIMIT_`, lower case: `nofile`.
    pub name: String,
    /// Soft limit; -1 for none.
    pub soft: i64,
    /// Hard limit; -1 for none.
    pub hard: i64,
}
