//! What a container is made from.

use super::DecodeError;
use super::error::At;
use super::field::{Field, choice, message, record};
use crate::model::ContainerSpec;
use crate::model::container::{
    BindOptions, ConfigReference, DnsConfig, FileTarget, Healthcheck, Mount, MountKind, Privileges, RegistryAuth,
    SecretReference, TmpfsOptions, Ulimit, VolumeOptions,
};
use crate::model::isolation::DeviceMapping;
use crate::wire::objects as wire;

record!(ContainerSpec {
    name,
    image,
    labels,
    command,
    args,
    hostname,
    env,
    dir,
    user,
    groups,
    init,
    stop_signal,
    stop_grace,
    tty,
    open_stdin,
    read_only,
    mounts,
    healthcheck,
    hosts,
    dns,
    secrets,
    configs,
    sysctls,
    cap_add,
    cap_drop,
    ulimits,
    privileges,
    registry_auth,
    pod,
});
record!(Mount { kind, source, target, read_only, consistency, bind, volume, tmpfs });
choice!(MountKind { Bind, Volume, Tmpfs });
record!(BindOptions { propagation, non_recursive, create_mountpoint });
record!(VolumeOptions { no_copy, subpath, labels, driver, scratch, pinned, gid });
record!(TmpfsOptions { size, mode });
record!(Healthcheck { test, interval, timeout, start_period, start_interval, retries });
record!(DnsConfig { nameservers, search, options });
record!(FileTarget { name, uid, gid, mode });
record!(SecretReference { id, name, file });
record!(ConfigReference { id, name, file });
record!(Ulimit { name, soft, hard });
record!(Privileges { no_new_privileges, seccomp_unconfined, privileged, devices });
record!(DeviceMapping { host, container, access });

impl From<&RegistryAuth> for wire::RegistryAuth {
    fn from(value: &RegistryAuth) -> Self {
        Self { value: value.0.clone() }
    }
}

impl TryFrom<wire::RegistryAuth> for RegistryAuth {
    type Error = DecodeError;
    fn try_from(message: wire::RegistryAuth) -> Result<Self, DecodeError> {
        String::from_wire(message.value).at("value").map(Self)
    }
}

message!(RegistryAuth);
