//! How far a plain container is separated from its node. The default is as far as Docker does.

use serde::{Deserialize, Serialize};

/// What of the usual separation is given up, or added. Absent fields are the default, in older records too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag of Docker's.
pub struct Isolation {
    /// See and signal the node's processes (`--pid host`).
    pub host_pid: bool,
    /// Share the node's System V and POSIX objects (`--ipc host`).
    pub host_ipc: bool,
    /// Have no shared memory but what processes share by themselves (`--ipc none`).
    pub no_shm: bool,
    /// Share the node's host name (`--uts host`).
    pub host_uts: bool,
    /// `--cgroupns`: `Some(true)` for the node's cgroups, `Some(false)` for its own; `None` for the default.
    pub host_cgroups: Option<bool>,
    /// Processes never get more privileges than they have (`--security-opt no-new-privileges`).
    pub no_new_privileges: bool,
    /// Load no seccomp filter (`--security-opt seccomp=unconfined`).
    pub seccomp_unconfined: bool,
    /// Hide nothing of `/proc` and `/sys` (`--security-opt systempaths=unconfined`).
    pub system_paths_unconfined: bool,
    /// Options as the client gave them, for inspection.
    pub security_options: Vec<String>,
    /// Bytes of `/dev/shm`; 0 for Docker's 64 MiB.
    pub shm_size: u64,
    /// Devices of the node.
    pub devices: Vec<DeviceMapping>,
    /// Further devices that may be opened, as `c 1:3 rwm` (`--device-cgroup-rule`).
    pub device_rules: Vec<String>,
}

/// A device of the node in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// Path on the node: a device, or a directory of devices.
    pub host: String,
    /// Path in the container.
    pub container: String,
    /// Letters of `rwm`: read, write, make.
    pub access: String,
}
