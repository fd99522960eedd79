//! What the processes of a container may do (capabilities(7)). Pure.

use skep_proto::model::ContainerSpec;

use super::spec::SpecError;

/// Capabilities of a container, as Docker's.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability, in the kernel's order (linux/capability.h).
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The container's capabilities: the defaults without those dropped, with those added; `ALL` means all of them.
///
/// # Errors
/// [`SpecError::Capability`].
pub fn capabilities(spec: &ContainerSpec, privileged: bool) -> Result<Vec<String>, SpecError> {
    let names = |list: &[String]| -> Result<Vec<String>, SpecError> {
        list.iter()
            .map(|given| {
                let upper = given.to_ascii_uppercase();
                let name = if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
                let known = name == "ALL" || name == "CAP_ALL" || ALL_CAPABILITIES.contains(&name.as_str());
                if known { Ok(name) } else { Err(SpecError::Capability(given.clone())) }
            })
            .collect()
    };
    let (add, drop) = (names(&spec.cap_add)?, names(&spec.cap_drop)?);
    let all = |list: &[String]| list.iter().any(|n| n == "ALL" || n == "CAP_ALL");
    let has = |list: &[String], name: &str| list.iter().any(|n| n == name);
    let kept = |name: &str| match (all(&add), all(&drop)) {
        _ if privileged => true,
        (true, _) => !has(&drop, name),
        (false, true) => has(&add, name),
        (false, false) => has(&add, name) || (DEFAULT_CAPABILITIES.contains(&name) && !has(&drop, name)),
    };
    Ok(ALL_CAPABILITIES.iter().filter(|c| kept(c)).map(|c| (*c).to_owned()).collect())
}
