//! Containers as lists and inspection show them.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_proto::model::container::MountKind;
use skep_proto::model::engine::{
    Container, ContainerRestart, ContainerStatus, EndpointState, NetworkEndpoint, NetworkMode, PortBinding,
    ResolvedMount,
};
use skep_proto::model::{HealthStatus, ProbeResult, Timestamp};

use super::container_spec::{show_healthcheck, show_ulimit};
use super::{isolation, mount, service};
use crate::docker::time::{human, rfc3339, rfc3339_or_zero};
use crate::docker::types::Empty;
use crate::docker::types::container as json;
use crate::docker::types::host_config::{HostConfig, LogConfig, RestartPolicy};
use crate::docker::types::image::GraphDriver;

/// Paths hidden from containers (moby `oci/defaults.go`).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that containers only read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Shows a container in full.
pub(crate) fn inspect(container: &Container, size: Option<u64>) -> json::ContainerInspect {
    let (config, process, state) = (&container.config, &container.process, &container.state);
    let is = |status| state.status == status;
    json::ContainerInspect {
        id: config.id.to_string(),
        created: rfc3339(container.created_at),
        path: process.path.clone(),
        args: process.args.clone(),
        state: json::State {
            status: state.status.as_str(),
            running: is(ContainerStatus::Running) || is(ContainerStatus::Paused) || is(ContainerStatus::Restarting),
            paused: is(ContainerStatus::Paused),
            restarting: is(ContainerStatus::Restarting),
            oom_killed: state.oom_killed,
            dead: is(ContainerStatus::Dead),
            pid: state.pid,
            exit_code: state.exit_code,
            error: state.error.clone(),
            started_at: rfc3339_or_zero(state.started_at),
            finished_at: rfc3339_or_zero(state.finished_at),
            health: health(container),
        },
        image: container.image_id.clone(),
        resolv_conf_path: container.etc.resolv_conf.display().to_string(),
        hostname_path: container.etc.hostname.display().to_string(),
        hosts_path: container.etc.hosts.display().to_string(),
        log_path: container.log_path.display().to_string(),
        name: format!("/{}", config.name),
        restart_count: container.restart_count,
        driver: "overlay2",
        platform: "linux",
        mount_label: "",
        process_label: "",
        app_armor_profile: "",
        exec_ids: None,
        host_config: host_config(container),
        graph_driver: GraphDriver { data: None, name: "overlay2" },
        size_rw: None,
        size_root_fs: size,
        mounts: container.mounts.iter().map(mount_point).collect(),
        config: self::config(container),
        network_settings: network_settings(container),
    }
}

/// Shows a container as one line of a list.
pub(crate) fn summary(container: &Container, now: Timestamp, size: Option<u64>) -> json::ContainerSummary {
    let config = &container.config;
    json::ContainerSummary {
        id: config.id.to_string(),
        names: vec![format!("/{}", config.name)],
        image: config.spec.image.clone(),
        image_id: container.image_id.clone(),
        command: command_line(container),
        created: i64::try_from(container.created_at.0 / 1000).unwrap_or(i64::MAX),
        ports: ports(container),
        size_rw: None,
        size_root_fs: size,
        labels: container.process.labels.clone(),
        state: container.state.status.as_str(),
        status: status_line(container, now),
        host_config: json::SummaryHostConfig { network_mode: network_mode(container) },
        network_settings: json::SummaryNetworks { networks: networks(container) },
        mounts: container.mounts.iter().map(mount_point).collect(),
    }
}

/// Whether a process of the container exists.
fn is_up(status: ContainerStatus) -> bool {
    match status {
        ContainerStatus::Running | ContainerStatus::Paused => true,
        ContainerStatus::Created
        | ContainerStatus::Restarting
        | ContainerStatus::Removing
        | ContainerStatus::Exited
        | ContainerStatus::Dead => false,
    }
}

/// Docker's word for a container's health; `none` without a health check. Nothing that has ended is healthy.
pub(crate) fn health_word(container: &Container) -> &'static str {
    match &container.health {
        None => "none",
        Some(_) if !is_up(container.state.status) => HealthStatus::Unhealthy.as_str(),
        Some(health) => health.status.as_str(),
    }
}

fn health(container: &Container) -> Option<json::Health> {
    let health = container.health.as_ref()?;
    let result = |result: &ProbeResult| json::HealthcheckResult {
        start: rfc3339(result.start),
        end: rfc3339(result.end),
        exit_code: result.exit_code,
        output: result.output.clone(),
    };
    Some(json::Health {
        status: health_word(container),
        failing_streak: health.failing_streak,
        log: health.log.iter().map(result).collect(),
    })
}

/// `Up 5 minutes`, `Up 5 minutes (healthy)`, `Exited (0) 2 hours ago`, `Created`.
fn status_line(container: &Container, now: Timestamp) -> String {
    let state = &container.state;
    let ago = |at: Option<Timestamp>| human(at.map_or(Duration::ZERO, |t| now.since(t)));
    match state.status {
        ContainerStatus::Created => "Created".into(),
        ContainerStatus::Running => match health_word(container) {
            "none" => format!("Up {}", ago(state.started_at)),
            "starting" => format!("Up {} (health: starting)", ago(state.started_at)),
            word => format!("Up {} ({word})", ago(state.started_at)),
        },
        ContainerStatus::Paused => format!("Up {} (Paused)", ago(state.started_at)),
        ContainerStatus::Restarting => {
            format!("Restarting ({}) {} ago", state.exit_code, ago(state.finished_at))
        }
        ContainerStatus::Removing => "Removal In Progress".into(),
        ContainerStatus::Exited => format!("Exited ({}) {} ago", state.exit_code, ago(state.finished_at)),
        ContainerStatus::Dead => "Dead".into(),
    }
}

/// Path and arguments, those with blanks in single quotes (moby `daemon/list.go`).
fn command_line(container: &Container) -> String {
    let process = &container.process;
    let mut line = process.path.clone();
    for word in &process.args {
        line.push(' ');
        if word.contains(' ') {
            line.push_str(&format!("'{word}'"));
        } else {
            line.push_str(word);
        }
    }
    line
}

fn config(container: &Container) -> json::Config {
    let (config, process) = (&container.config, &container.process);
    let spec = &config.spec;
    let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let (stdin, stdout, stderr) = config.attach;
    json::Config {
        hostname: process.hostname.clone(),
        user: process.user.clone(),
        attach_stdin: stdin,
        attach_stdout: stdout,
        attach_stderr: stderr,
        exposed_ports: container
            .exposed
            .iter()
            .map(|(protocol, port)| (format!("{port}/{}", service::protocol_word(*protocol)), Empty {}))
            .collect(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: config.stdin_once,
        env: Some(process.env.clone()),
        cmd: given(&process.command),
        healthcheck: process.healthcheck.as_ref().map(show_healthcheck),
        image: spec.image.clone(),
        volumes: anonymous_volumes(container),
        working_dir: process.dir.clone(),
        entrypoint: given(&process.entrypoint),
        labels: Some(process.labels.clone()),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: spec.stop_grace.map(|grace| grace.as_secs()),
        ..Default::default()
    }
}

fn anonymous_volumes(container: &Container) -> Option<BTreeMap<String, Empty>> {
    let volumes: BTreeMap<_, _> = container
        .config
        .spec
        .mounts
        .iter()
        .filter(|m| m.kind == MountKind::Volume && m.source.is_empty())
        .map(|m| (m.target.clone(), Empty {}))
        .collect();
    (!volumes.is_empty()).then_some(volumes)
}

fn host_config(container: &Container) -> HostConfig {
    let config = &container.config;
    let spec = &config.spec;
    let list = |items: &[String]| (!items.is_empty()).then(|| items.to_vec());
    let binds: Vec<String> = spec.mounts.iter().filter_map(mount::show_bind).collect();
    let structured = spec
        .mounts
        .iter()
        .filter(|m| mount::show_bind(m).is_none() && !(m.kind == MountKind::Volume && m.source.is_empty()))
        .map(mount::show)
        .collect();
    let dns = spec.dns.clone().unwrap_or_default();
    let limits = config.resources.limits.clone().unwrap_or_default();
    let isolation = &config.isolation;
    let word = |is_host: bool| if is_host { "host".to_owned() } else { String::new() };
    HostConfig {
        binds: list(&binds),
        log_config: config.log.as_ref().map_or_else(
            || LogConfig { kind: "json-file".into(), ..LogConfig::default() },
            |driver| LogConfig { kind: driver.name.clone(), config: driver.options.clone() },
        ),
        network_mode: network_mode(container),
        port_bindings: bindings(&config.ports),
        restart_policy: restart(config.restart),
        auto_remove: config.auto_remove,
        cap_add: list(&spec.cap_add),
        cap_drop: list(&spec.cap_drop),
        cgroupns_mode: if isolation.host_cgroups == Some(true) { "host" } else { "private" },
        dns: dns.nameservers.iter().map(ToString::to_string).collect(),
        dns_options: dns.options,
        dns_search: dns.search,
        extra_hosts: list(&spec.hosts.iter().map(|line| extra_host(line)).collect::<Vec<_>>()),
        group_add: list(&spec.groups),
        ipc_mode: match (isolation.host_ipc, isolation.no_shm) {
            (true, _) => "host",
            (_, true) => "none",
            _ => "private",
        },
        pid_mode: word(isolation.host_pid),
        uts_mode: word(isolation.host_uts),
        security_opt: list(&isolation.security_options),
        devices: isolation::show_devices(&isolation.devices),
        device_cgroup_rules: list(&isolation.device_rules),
        privileged: config.privileged,
        readonly_rootfs: spec.read_only,
        shm_size: if isolation.shm_size == 0 { 64 << 20 } else { isolation.shm_size },
        sysctls: spec.sysctls.clone(),
        runtime: "runc",
        memory: limits.memory,
        nano_cpus: limits.nano_cpus,
        pids_limit: (limits.pids != 0).then_some(limits.pids),
        ulimits: spec.ulimits.iter().map(show_ulimit).collect(),
        mounts: structured,
        masked_paths: if config.privileged || isolation.system_paths_unconfined { Vec::new() } else { MASKED.to_vec() },
        readonly_paths: if config.privileged || isolation.system_paths_unconfined {
            Vec::new()
        } else {
            READ_ONLY.to_vec()
        },
        init: spec.init,
        ..Default::default()
    }
}

/// `IP NAME` as `--add-host` writes it: `NAME:IP`.
fn extra_host(line: &str) -> String {
    line.split_once(' ').map_or_else(|| line.to_owned(), |(ip, name)| format!("{name}:{ip}"))
}

fn restart(policy: ContainerRestart) -> RestartPolicy {
    let (name, maximum_retry_count) = match policy {
        ContainerRestart::No => ("no", 0),
        ContainerRestart::Always => ("always", 0),
        ContainerRestart::UnlessStopped => ("unless-stopped", 0),
        ContainerRestart::OnFailure(times) => ("on-failure", times),
    };
    RestartPolicy { name: name.into(), maximum_retry_count }
}

fn network_mode(container: &Container) -> String {
    match &container.config.network {
        NetworkMode::Bridge | NetworkMode::Sandbox(_) => "default".into(),
        NetworkMode::Host => "host".into(),
        NetworkMode::None => "none".into(),
        NetworkMode::Container(id) => format!("container:{id}"),
        NetworkMode::Networks(list) => list.first().map(|n| n.network.clone()).unwrap_or_else(|| "default".into()),
    }
}

fn key(binding: &PortBinding) -> String {
    format!("{}/{}", binding.container_port, service::protocol_word(binding.protocol))
}

fn show_binding(binding: &PortBinding, default_ip: &str) -> json::PortBinding {
    json::PortBinding {
        host_ip: binding.host_ip.map_or_else(|| default_ip.to_owned(), |ip| ip.to_string()),
        host_port: match (binding.host_port, binding.host_port_last) {
            (Some(first), Some(last)) => format!("{first}-{last}"),
            (Some(port), None) => port.to_string(),
            (None, _) => String::new(),
        },
    }
}

fn bindings(ports: &[PortBinding]) -> BTreeMap<String, Vec<json::PortBinding>> {
    let mut map = BTreeMap::<_, Vec<_>>::new();
    for port in ports {
        map.entry(key(port)).or_default().push(show_binding(port, ""));
    }
    map
}

fn network_settings(container: &Container) -> json::NetworkSettings {
    let mut ports: BTreeMap<String, Option<Vec<json::PortBinding>>> = container
        .exposed
        .iter()
        .map(|(protocol, port)| (format!("{port}/{}", service::protocol_word(*protocol)), None))
        .collect();
    for port in &container.ports {
        ports.entry(key(port)).or_default().get_or_insert_default().push(show_binding(port, "0.0.0.0"));
    }
    let bridge = container.networks.iter().find(|e| e.network == "bridge");
    json::NetworkSettings {
        ports,
        bridge_endpoint: bridge.map(|e| endpoint(container, e)).unwrap_or_default(),
        networks: networks(container),
        ..Default::default()
    }
}

fn networks(container: &Container) -> BTreeMap<String, json::EndpointSettings> {
    container
        .networks
        .iter()
        .map(|state| {
            let settings = json::EndpointSettings {
                ipam_config: asked(container, state),
                links: None,
                aliases: (!state.aliases.is_empty()).then(|| state.aliases.clone()),
                network_id: state.network_id.clone(),
                endpoint: endpoint(container, state),
                driver_opts: None,
            };
            (state.network.clone(), settings)
        })
        .collect()
}

/// Addresses that the container asked for on a network; Docker shows none where it asked for none.
fn asked(container: &Container, state: &EndpointState) -> Option<json::EndpointIpamView> {
    let NetworkMode::Networks(wishes) = &container.config.network else { return None };
    let is_meant = |wish: &&NetworkEndpoint| {
        let by_id = || !wish.network.is_empty() && state.network_id.starts_with(&wish.network);
        wish.network == state.network || by_id()
    };
    let wish = wishes.iter().find(is_meant).filter(|wish| !wish.addresses.is_empty())?;
    let first = |v4: bool| wish.addresses.iter().find(|a| a.is_ipv4() == v4).map(ToString::to_string);
    Some(json::EndpointIpamView {
        ipv4_address: first(true).unwrap_or_default(),
        ipv6_address: first(false).unwrap_or_default(),
    })
}

fn endpoint(container: &Container, state: &EndpointState) -> json::BridgeEndpoint {
    let address = |v4: bool| state.addresses.iter().find(|a| a.addr().is_ipv4() == v4);
    let gateway =
        |v4: bool| state.gateways.iter().find(|g| g.is_ipv4() == v4).map(ToString::to_string).unwrap_or_default();
    let live = !state.addresses.is_empty();
    json::BridgeEndpoint {
        // Docker draws one; ours is named after container and network, so that it is stable.
        endpoint_id: if live {
            format!("{}{}", container.config.id, state.network_id)[..64].to_owned()
        } else {
            String::new()
        },
        gateway: gateway(true),
        ip_address: address(true).map(|a| a.addr().to_string()).unwrap_or_default(),
        ip_prefix_len: address(true).map_or(0, ipnet::IpNet::prefix_len),
        ipv6_gateway: gateway(false),
        global_ipv6_address: address(false).map(|a| a.addr().to_string()).unwrap_or_default(),
        global_ipv6_prefix_len: address(false).map_or(0, ipnet::IpNet::prefix_len),
        mac_address: mac(state.mac),
    }
}

/// `02:42:ac:11:00:02`; empty when there is none.
pub(crate) fn mac(bytes: [u8; 6]) -> String {
    if bytes == [0; 6] {
        return String::new();
    }
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn ports(container: &Container) -> Vec<json::Port> {
    let bound: Vec<json::Port> = container
        .ports
        .iter()
        .map(|port| json::Port {
            ip: port.host_ip.map_or_else(|| "0.0.0.0".into(), |ip| ip.to_string()),
            private_port: port.container_port,
            public_port: port.host_port.unwrap_or(0),
            kind: service::protocol_word(port.protocol),
        })
        .collect();
    let declared = container
        .exposed
        .iter()
        .filter(|(protocol, port)| {
            !container.ports.iter().any(|b| b.container_port == *port && b.protocol == *protocol)
        })
        .map(|(protocol, port)| json::Port {
            ip: String::new(),
            private_port: *port,
            public_port: 0,
            kind: service::protocol_word(*protocol),
        });
    declared.chain(bound).collect()
}

fn mount_point(mount: &ResolvedMount) -> json::MountPoint {
    json::MountPoint {
        kind: mount.kind,
        name: mount.name.clone(),
        source: mount.source.display().to_string(),
        destination: mount.target.clone(),
        driver: if mount.kind == "volume" { "local".into() } else { String::new() },
        mode: if mount.writable { String::new() } else { "ro".into() },
        rw: mount.writable,
        propagation: mount.propagation.clone(),
    }
}
