//! `HostConfig` keys about how far a container is separated from its node.

use skep_proto::model::isolation::{DeviceMapping, Isolation};

use crate::docker::error::ApiError;
use crate::docker::types::host_config::{DeviceRequest, HostConfigRequest};

/// Reads them.
///
/// # Errors
/// 400 for what makes no sense, 501 naming what is not built.
pub(crate) fn read(host: &HostConfigRequest) -> Result<Isolation, ApiError> {
    let mut isolation = Isolation {
        host_pid: is_host("HostConfig.PidMode", "PID", &host.pid_mode, &[""])?,
        host_uts: is_host("HostConfig.UTSMode", "UTS", &host.uts_mode, &[""])?,
        host_cgroups: match host.cgroupns_mode.as_str() {
            "" => None,
            "private" => Some(false),
            "host" => Some(true),
            other => return Err(ApiError::bad_request(format!("invalid cgroup namespace mode: {other}"))),
        },
        // Nobody else joins it: shareable is private.
        host_ipc: is_host("HostConfig.IpcMode", "IPC", &host.ipc_mode, &["", "private", "shareable", "none"])?,
        no_shm: host.ipc_mode == "none",
        shm_size: u64::try_from(host.shm_size).map_err(|_| ApiError::bad_request("SHM size can not be less than 0"))?,
        devices: host.devices.iter().map(read_device).collect::<Result<_, _>>()?,
        device_rules: host.device_cgroup_rules.clone(),
        security_options: host.security_opt.clone(),
        ..Isolation::default()
    };
    for option in &host.security_opt {
        security_option(option, &mut isolation)?;
    }
    Ok(isolation)
}

fn is_host(key: &str, what: &str, mode: &str, own: &[&str]) -> Result<bool, ApiError> {
    match mode {
        "host" => Ok(true),
        mode if own.contains(&mode) => Ok(false),
        mode if mode.starts_with("container:") => Err(ApiError::not_supported(format!("{key} {mode}"))),
        mode => Err(ApiError::bad_request(format!("invalid {what} mode: {mode}"))),
    }
}

/// `no-new-privileges[=true]`, `seccomp=unconfined`, … (moby `daemon/daemon_unix.go`, `parseSecurityOpt`).
fn security_option(option: &str, isolation: &mut Isolation) -> Result<(), ApiError> {
    let (name, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
    match (name, value) {
        ("no-new-privileges", "" | "true") => isolation.no_new_privileges = true,
        ("no-new-privileges", "false") => isolation.no_new_privileges = false,
        ("no-new-privileges", _) => {
            return Err(ApiError::bad_request(format!("invalid --security-opt 2: \"{option}\"")));
        }
        ("seccomp", "unconfined") => isolation.seccomp_unconfined = true,
        ("seccomp", "builtin") => isolation.seccomp_unconfined = false,
        ("seccomp", _) => return Err(ApiError::not_supported("a seccomp profile of one's own")),
        ("systempaths", "unconfined") => isolation.system_paths_unconfined = true,
        // There is no profile, and no label, that could be taken away.
        ("apparmor", "unconfined") | ("label", "disable") => {}
        ("apparmor" | "label", _) => return Err(ApiError::not_supported(format!("the security option {option}"))),
        _ => return Err(ApiError::bad_request(format!("invalid --security-opt 2: \"{option}\""))),
    }
    Ok(())
}

/// Reads a device.
///
/// # Errors
/// 400 for access that is none.
pub(crate) fn read_device(given: &DeviceRequest) -> Result<DeviceMapping, ApiError> {
    let access = if given.cgroup_permissions.is_empty() { "rwm" } else { &given.cgroup_permissions };
    if !access.chars().all(|c| "rwm".contains(c)) || access.len() > 3 {
        return Err(ApiError::bad_request(format!("invalid device mode: {access}")));
    }
    let container = if given.path_in_container.is_empty() { &given.path_on_host } else { &given.path_in_container };
    Ok(DeviceMapping { host: given.path_on_host.clone(), container: container.clone(), access: access.to_owned() })
}

/// Shows devices as they were asked for.
pub(crate) fn show_devices(devices: &[DeviceMapping]) -> Vec<DeviceRequest> {
    let show = |device: &DeviceMapping| DeviceRequest {
        path_on_host: device.host.clone(),
        path_in_container: device.container.clone(),
        cgroup_permissions: device.access.clone(),
    };
    devices.iter().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &[&str]) -> Result<Isolation, ApiError> {
        let security_opt = options.iter().map(|option| (*option).to_owned()).collect();
        read(&HostConfigRequest { security_opt, ..HostConfigRequest::default() })
    }

    #[test]
    fn security_options_are_read_or_refused_by_name() {
        assert!(with(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(with(&["no-new-privileges:true"]).unwrap().no_new_privileges);
        assert!(with(&["seccomp=unconfined"]).unwrap().seccomp_unconfined);
        assert!(with(&["systempaths=unconfined", "apparmor=unconfined"]).unwrap().system_paths_unconfined);
        for refused in ["seccomp={}", "label=user:x", "apparmor=mine", "fly=true", "no-new-privileges=maybe"] {
            assert!(with(&[refused]).is_err(), "{refused}");
        }
    }

    #[test]
    fn modes_are_the_nodes_or_ones_own() {
        let of = |pid: &str, ipc: &str| {
            read(&HostConfigRequest { pid_mode: pid.into(), ipc_mode: ipc.into(), ..HostConfigRequest::default() })
        };
        let host = of("host", "host").unwrap();
        assert!(host.host_pid && host.host_ipc);
        assert!(of("", "none").unwrap().no_shm);
        assert!(of("container:x", "").is_err() && of("mine", "").is_err() && of("", "mine").is_err());
    }
}
