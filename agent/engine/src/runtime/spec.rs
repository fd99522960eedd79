//! From a container's configuration to its OCI configuration (runtime-spec 1.0). Pure.
//!
//! Values are Docker's defaults; where one differs from moby's `oci/defaults.go` the reason is beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_proto::model::container::{Mount, MountKind, Ulimit};
use skep_proto::model::engine::{ContainerConfig, EtcFiles, ImageConfig, ResolvedMount, ResolvedProcess};

pub use super::capabilities::capabilities;
use super::devices::{self, Device};
use super::health;
use super::sysctl::sysctls;
use super::users::User;

/// Search path of images that name none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the init program is in containers that asked for one, as in Docker.
const INIT: &str = "/sbin/docker-init";

/// Bytes of `/dev/shm`, Docker's default.
const DEFAULT_SHM: u64 = 64 << 20;

/// Period of the CPU quota in microseconds, the kernel's and Docker's default.
const CPU_PERIOD: i64 = 100_000;

/// The network namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netns {
    /// A new one with nothing but loopback.
    New,
    /// The node's own.
    Host,
    /// One that exists.
    Path(PathBuf),
}

/// What cannot be expressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither image nor configuration name a command.
    #[error("no command specified")]
    NoCommand,
    /// Not a capability.
    #[error("invalid capability: {0:?}: see capabilities(7)")]
    Capability(String),
    /// A kernel parameter that is the node's, not the container's.
    #[error("sysctl {name:?} is not allowed: {reason}")]
    Sysctl {
        /// The parameter.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// Not a resource limit.
    #[error("invalid ulimit type: {0}")]
    Ulimit(String),
    /// A limit that only a daemon with `CAP_SYS_RESOURCE` may set.
    #[error(
        "the ulimit {name} of {wanted} is above the {allowed} of the daemon, which may not raise its own: lower it, or raise that of the \
         daemon (LimitNOFILE= and the like in its unit)"
    )]
    UlimitTooHigh {
        /// Its name.
        name: &'static str,
        /// The hard limit of the container.
        wanted: u64,
        /// That of the daemon.
        allowed: u64,
    },
    /// Not a signal.
    #[error("invalid signal: {0}")]
    Signal(String),
}

/// All that the OCI configuration is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// As the caller gave it.
    pub config: &'a ContainerConfig,
    /// From [`resolve_process`].
    pub process: &'a ResolvedProcess,
    /// From the container's own files.
    pub user: &'a User,
    /// As the caller resolved them.
    pub mounts: &'a [ResolvedMount],
    /// Files on the node, with their paths in the container: mounted read-only, above everything else.
    pub files: &'a [(PathBuf, String)],
    /// Devices of the node that it gets besides the usual ones.
    pub devices: &'a [Device],
    /// The program that is pid 1 and starts the container's own (`--init`).
    pub init: Option<&'a Path>,
    /// Files given to the container.
    pub etc: &'a EtcFiles,
    /// Its network.
    pub netns: &'a Netns,
    /// The IPC namespace that it joins; `None` for one of its own.
    pub ipc: Option<&'a Path>,
    /// Its cgroup, an absolute cgroup path.
    pub cgroup: &'a str,
    /// cgroup version 2 is the machine's only one.
    pub unified: bool,
    /// The mounted root file system.
    pub rootfs: &'a Path,
}

/// Combines configuration and image as Docker does.
///
/// # Errors
/// [`SpecError::NoCommand`] and [`SpecError::Signal`].
pub fn resolve_process(config: &ContainerConfig, image: &ImageConfig) -> Result<ResolvedProcess, SpecError> {
    let spec = &config.spec;
    let entrypoint = if spec.command.is_empty() { image.entrypoint.clone() } else { spec.command.clone() };
    let command = match (&spec.args, &spec.command) {
        (args, _) if !args.is_empty() => args.clone(),
        // The image's command are arguments of the image's entry point, not of another one.
        (_, command) if !command.is_empty() => Vec::new(),
        _ => image.command.clone(),
    };
    let mut words = entrypoint.iter().chain(&command).cloned();
    let path = words.next().filter(|w| !w.is_empty()).ok_or(SpecError::NoCommand)?;
    let mut labels = image.labels.clone();
    labels.extend(spec.labels.clone());
    let stop_signal = [&spec.stop_signal, &image.stop_signal].into_iter().find(|s| !s.is_empty());
    Ok(ResolvedProcess {
        path,
        args: words.collect(),
        env: merge_env(&spec.env, &image.env),
        dir: first(&[&spec.dir, &image.dir, "/"]),
        user: first(&[&spec.user, &image.user]),
        hostname: first(&[&spec.hostname, &short_id(config)]),
        entrypoint,
        command,
        labels,
        stop_signal: stop_signal.map_or(Ok(libc::SIGTERM), |s| parse_signal(s))?,
        healthcheck: health::merge(spec.healthcheck.as_ref(), image.healthcheck.as_ref()),
    })
}

fn first(values: &[&str]) -> String {
    values.iter().find(|v| !v.is_empty()).map_or_else(String::new, |v| (*v).to_owned())
}

fn short_id(config: &ContainerConfig) -> String {
    config.id.to_string().chars().take(12).collect()
}

/// The given variables, then those of `defaults` that they do not set. A name without a value takes a variable away.
fn merge_env(given: &[String], defaults: &[String]) -> Vec<String> {
    let name = |e: &String| e.split('=').next().unwrap_or_default().to_owned();
    let mut merged: Vec<String> = Vec::new();
    for entry in given {
        match merged.iter_mut().find(|m| name(m) == name(entry)) {
            Some(earlier) => earlier.clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    let missing = defaults.iter().filter(|d| !merged.iter().any(|m| name(m) == name(d))).cloned();
    let all: Vec<String> = merged.iter().cloned().chain(missing).collect();
    all.into_iter().filter(|e| e.contains('=')).collect()
}

/// The whole environment of a process: Docker's own variables, then the resolved ones, then what the caller adds.
pub fn process_env(process: &ResolvedProcess, tty: bool, home: &str, extra: &[String]) -> Vec<String> {
    let mut own = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", process.hostname)];
    if tty {
        own.push("TERM=xterm".to_owned());
    }
    own.push(format!("HOME={home}"));
    let set = merge_env(extra, &process.env);
    let name = |e: &String| e.split('=').next().unwrap_or_default().to_owned();
    own.retain(|o| !set.iter().any(|s| name(s) == name(o)));
    own.extend(set);
    own
}

/// Names (`SIGTERM`, `TERM`, `RTMIN+3`) and numbers.
///
/// # Errors
/// [`SpecError::Signal`].
pub fn parse_signal(text: &str) -> Result<i32, SpecError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |base: i32, rest: &str| rest.parse::<i32>().ok().map(|n| base + n);
    let number = match name {
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        "POLL" => Some(29),
        "IOT" => Some(6),
        _ if name.starts_with("RTMIN+") => offset(34, &name[6..]),
        _ if name.starts_with("RTMAX-") => name[6..].parse::<i32>().ok().map(|n| 64 - n),
        _ => NAMES.iter().position(|n| *n == name).and_then(|at| i32::try_from(at + 1).ok()).or(upper.parse().ok()),
    };
    number.filter(|n| (1..=64).contains(n)).ok_or_else(|| SpecError::Signal(text.to_owned()))
}

/// Resource limits of the container's processes, by the kernel's number, soft and hard. What is not named is inherited
/// from the daemon, as with Docker: its unit file decides.
///
/// # Errors
/// [`SpecError::Ulimit`].
pub fn limits(ulimits: &[Ulimit]) -> Result<BTreeMap<u32, (u64, u64)>, SpecError> {
    let mut limits = BTreeMap::new();
    for limit in ulimits {
        let at = RLIMITS.iter().position(|n| n.eq_ignore_ascii_case(&limit.name));
        let number = at.and_then(|at| u32::try_from(at).ok()).ok_or_else(|| SpecError::Ulimit(limit.name.clone()))?;
        let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
        limits.insert(number, (value(limit.soft), value(limit.hard)));
    }
    Ok(limits)
}

/// Refuses limits that cannot be set, for the kernel's answer would name none: a process without `CAP_SYS_RESOURCE` never raises
/// its hard limit (setrlimit(2)). `own` is the hard limit of the daemon, by the kernel's number; shims inherit it.
///
/// # Errors
/// [`SpecError::UlimitTooHigh`].
pub fn can_be_set(
    limits: &BTreeMap<u32, (u64, u64)>,
    may_raise: bool,
    own: impl Fn(u32) -> Option<u64>,
) -> Result<(), SpecError> {
    for (number, (_, hard)) in limits.iter().filter(|_| !may_raise) {
        if let Some(allowed) = own(*number).filter(|own| own < hard) {
            return Err(SpecError::UlimitTooHigh { name: RLIMITS[*number as usize], wanted: *hard, allowed });
        }
    }
    Ok(())
}

/// In the kernel's order (asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The OCI configuration.
///
/// # Errors
/// Names of capabilities and limits that do not exist.
pub fn oci_spec(input: &Input<'_>) -> Result<Value, SpecError> {
    let Input { config, process, user, .. } = *input;
    let spec = &config.spec;
    let caps = capabilities(spec, config.privileged)?;
    let rlimits: Vec<Value> = limits(&spec.ulimits)?
        .into_iter()
        .map(|(number, (soft, hard))| {
            let name = format!("RLIMIT_{}", RLIMITS[number as usize].to_ascii_uppercase());
            json!({"type": name, "soft": soft, "hard": hard})
        })
        .collect();
    let init: &[&str] = if input.init.is_some() { &[INIT, "init", "--"] } else { &[] };
    let own = std::iter::once(&process.path).chain(&process.args).map(String::as_str);
    let args: Vec<&str> = init.iter().copied().chain(own).collect();
    let open = config.privileged || config.isolation.system_paths_unconfined;
    let masked: &[&str] = if open { &[] } else { &MASKED_PATHS };
    let readonly: &[&str] = if open { &[] } else { &READONLY_PATHS };
    let mut oci = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": spec.tty,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": args,
            "env": process_env(process, spec.tty, &user.home, &[]),
            "cwd": process.dir,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": rlimits,
            // Set, so that the container does not inherit the score of who starts it.
            "oomScoreAdj": 0,
        },
        "root": {"path": input.rootfs, "readonly": spec.read_only},
        "hostname": process.hostname,
        "mounts": mounts(input),
        "linux": {
            "sysctl": sysctls(config, *input.netns == Netns::Host)?,
            "resources": resources(input),
            "devices": input.devices.iter().map(Device::node).collect::<Vec<_>>(),
            "cgroupsPath": input.cgroup,
            "namespaces": namespaces(input),
            "rootfsPropagation": "private",
            "maskedPaths": masked,
            "readonlyPaths": readonly,
        },
    });
    if config.isolation.host_uts {
        // The name is the node's, and not the container's to change.
        oci.as_object_mut().expect("just made one").remove("hostname");
    }
    Ok(oci)
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let isolation = &input.config.isolation;
    let own =
        [("mount", true), ("uts", !isolation.host_uts), ("pid", !isolation.host_pid), ("ipc", !isolation.host_ipc)];
    let mut namespaces: Vec<Value> = own.iter().filter(|(_, own)| *own).map(|(t, _)| json!({"type": t})).collect();
    if let (Some(path), Some(ipc)) = (input.ipc, namespaces.iter_mut().find(|n| n["type"] == "ipc")) {
        *ipc = json!({"type": "ipc", "path": path});
    }
    match input.netns {
        Netns::New => namespaces.push(json!({"type": "network"})),
        Netns::Path(path) => namespaces.push(json!({"type": "network", "path": path})),
        Netns::Host => {}
    }
    // As Docker: private on version 2, the node's on version 1, unless asked otherwise.
    let by_default = !input.unified || input.config.privileged;
    if !isolation.host_cgroups.unwrap_or(by_default) {
        namespaces.push(json!({"type": "cgroup"}));
    }
    namespaces
}

fn resources(input: &Input<'_>) -> Value {
    let config = input.config;
    let limits = config.resources.limits.clone().unwrap_or_default();
    let mut resources = serde_json::Map::new();
    resources.insert("devices".to_owned(), device_rules(input));
    if limits.memory > 0 {
        resources.insert("memory".to_owned(), json!({"limit": limits.memory}));
    }
    if limits.nano_cpus > 0 {
        // The kernel refuses a quota below one millisecond.
        let quota = (i128::from(limits.nano_cpus) * i128::from(CPU_PERIOD) / 1_000_000_000).max(1000);
        let quota = i64::try_from(quota).unwrap_or(i64::MAX);
        resources.insert("cpu".to_owned(), json!({"quota": quota, "period": CPU_PERIOD}));
    }
    if limits.pids > 0 {
        resources.insert("pids".to_owned(), json!({"limit": limits.pids}));
    }
    Value::Object(resources)
}

/// Nothing but the default devices may be opened; nodes of any device may be made, as `CAP_MKNOD` is a default.
fn device_rules(input: &Input<'_>) -> Value {
    if input.config.privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let open = |major: i64, minor: Option<i64>| {
        let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rule
    };
    let mut rules = vec![
        json!({"allow": false, "access": "rwm"}),
        json!({"allow": true, "type": "c", "access": "m"}),
        json!({"allow": true, "type": "b", "access": "m"}),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, then the slaves of terminals.
    rules.extend([(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)].map(|(a, b)| open(a, Some(b))));
    rules.push(open(136, None));
    rules.extend(input.devices.iter().map(Device::rule));
    rules.extend(input.config.isolation.device_rules.iter().filter_map(|rule| devices::parse_rule(rule)));
    Value::Array(rules)
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let fs = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let sysfs = if input.config.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        fs("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        fs("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        fs("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        fs("/sys", "sysfs", &["nosuid", "noexec", "nodev", sysfs]),
    ];
    let bind = |source: &Path, target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
    let isolation = &input.config.isolation;
    // The kernel shows in it the queues of the container's IPC namespace, whichever that is.
    mounts.push(fs("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    if isolation.host_ipc {
        mounts.push(bind(Path::new("/dev/shm"), "/dev/shm", &["rbind", "rprivate", "nosuid", "noexec", "nodev"]));
    } else if !isolation.no_shm {
        let size = if isolation.shm_size == 0 { DEFAULT_SHM } else { isolation.shm_size };
        mounts.push(fs("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={size}")]));
    }
    if input.unified {
        // On version 1 that would be a dozen mounts a container, and shows the node's hierarchy: left out.
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", sysfs]}));
    }
    let etc = [
        (&input.etc.hostname, "/etc/hostname"),
        (&input.etc.hosts, "/etc/hosts"),
        (&input.etc.resolv_conf, "/etc/resolv.conf"),
    ];
    for (source, target) in etc {
        let taken = input.mounts.iter().any(|m| m.target == target);
        if !source.as_os_str().is_empty() && !taken {
            mounts.push(bind(source, target, &["rbind", "rprivate"]));
        }
    }
    let mut given: Vec<&ResolvedMount> = input.mounts.iter().collect();
    // A mount below another one comes after it.
    given.sort_by_key(|m| Path::new(&m.target).components().count());
    for mount in given {
        let wish = input.config.spec.mounts.iter().find(|w| w.target == mount.target);
        if mount.kind == "tmpfs" {
            mounts.push(tmpfs(mount, wish));
            continue;
        }
        let shallow = wish.and_then(|w| w.bind.as_ref()).is_some_and(|b| b.non_recursive);
        let propagation = if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation };
        let mut options = vec![if shallow { "bind" } else { "rbind" }, propagation];
        if !mount.writable {
            options.push("ro");
        }
        mounts.push(bind(&mount.source, &mount.target, &options));
    }
    if let Some(init) = input.init {
        mounts.push(bind(init, INIT, &["bind", "rprivate", "ro"]));
    }
    for (source, target) in input.files {
        mounts.push(bind(source, target, &["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]));
    }
    mounts
}

fn tmpfs(mount: &ResolvedMount, wish: Option<&Mount>) -> Value {
    let wanted = wish.filter(|w| w.kind == MountKind::Tmpfs).and_then(|w| w.tmpfs).unwrap_or_default();
    let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned()];
    if !mount.writable {
        options.push("ro".to_owned());
    }
    if wanted.size > 0 {
        options.push(format!("size={}", wanted.size));
    }
    options.push(format!("mode={:o}", if wanted.mode == 0 { 0o1777 } else { wanted.mode }));
    json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options})
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
