//! `POST /containers/create`: the request as the engine's configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use skep_proto::model::ContainerId;
use skep_proto::model::addressing::Family;
use skep_proto::model::container::{ContainerSpec, Driver, Mount, MountKind};
use skep_proto::model::engine::{ContainerConfig, ContainerRestart, NetworkEndpoint, NetworkMode, PortBinding};
use skep_proto::model::service::Protocol;
use skep_proto::model::task::{Limits, Resources};

use super::{container_spec, isolation, mount, refuse, validate};
use crate::docker::error::ApiError;
use crate::docker::types::Empty;
use crate::docker::types::container as json;
use crate::docker::types::host_config::{HostConfigRequest, RestartPolicy};
use crate::docker::types::service as json_service;

/// A request, read. What needs an answer of the engine is left to the route.
#[derive(Debug)]
pub(crate) struct NewContainer {
    /// The configuration; `network` stays the default bridge when `network_of` is set.
    pub config: ContainerConfig,
    /// Share the sandbox of this container (`--network container:X`).
    pub network_of: Option<String>,
    /// Publish what the image declares, too.
    pub publish_all: bool,
    /// For people.
    pub warnings: Vec<String>,
}

/// Reads a request.
///
/// # Errors
/// 400 for what makes no sense, 501 for what is not built.
pub(crate) fn read(id: ContainerId, name: &str, request: json::ContainerCreate) -> Result<NewContainer, ApiError> {
    refuse("ContainerConfig", &request.rest)?;
    let host = request.host_config;
    check_host(&host)?;
    let isolation = isolation::read(&host)?;
    if !request.domainname.is_empty() {
        return Err(ApiError::not_supported("ContainerConfig.Domainname"));
    }
    if request.image.is_empty() {
        return Err(ApiError::bad_request("no image was given: ContainerConfig.Image is empty"));
    }
    container_name(name)?;
    let mut warnings = Vec::new();
    let mut ports = port_bindings(&host.port_bindings)?;
    expose(&request.exposed_ports, &mut ports, host.publish_all_ports, &mut warnings)?;
    let (network, network_of) = network(&host.network_mode, request.networking_config, request.network_disabled)?;
    let mounts = mounts(&host, &request.volumes)?;
    let (command, args) = command(request.entrypoint.0, request.cmd.0);
    if !request.stop_signal.is_empty() && crate::docker::signal::parse(&request.stop_signal).is_none() {
        return Err(ApiError::bad_request(format!("Invalid signal: {}", request.stop_signal)));
    }
    let dns = (!host.dns.is_empty() || !host.dns_search.is_empty() || !host.dns_options.is_empty())
        .then(|| {
            container_spec::read_dns(json_service::DnsConfig {
                nameservers: host.dns,
                search: host.dns_search,
                options: host.dns_options,
            })
        })
        .transpose()?;
    let spec = ContainerSpec {
        image: request.image,
        labels: request.labels,
        command,
        args,
        hostname: request.hostname,
        env: request.env,
        dir: request.working_dir,
        user: request.user,
        groups: host.group_add,
        init: host.init,
        stop_signal: request.stop_signal,
        stop_grace: request.stop_timeout.map(Duration::from_secs),
        tty: request.tty,
        open_stdin: request.open_stdin,
        read_only: host.readonly_rootfs,
        mounts,
        healthcheck: request
            .healthcheck
            .map(|check| container_spec::read_healthcheck(check, &container_spec::CONTAINER_WORDS))
            .transpose()?,
        hosts: host.extra_hosts.iter().map(|h| host_line(h)).collect::<Result<_, _>>()?,
        dns,
        sysctls: host.sysctls,
        cap_add: host.cap_add,
        cap_drop: host.cap_drop,
        ulimits: host.ulimits.into_iter().map(container_spec::read_ulimit).collect(),
        ..ContainerSpec::default()
    };
    let limits = Limits { nano_cpus: host.nano_cpus, memory: host.memory, pids: host.pids_limit.unwrap_or(0).max(0) };
    if limits.memory != 0 && limits.memory < 6 << 20 {
        return Err(ApiError::bad_request("Minimum memory limit allowed is 6MB"));
    }
    let usual_log = ["", "json-file"].contains(&host.log_config.kind.as_str()) && host.log_config.config.is_empty();
    let log = (!usual_log).then_some(Driver { name: host.log_config.kind, options: host.log_config.config });
    let config = ContainerConfig {
        id,
        name: name.trim_start_matches('/').to_owned(),
        spec,
        resources: Resources { limits: (limits != Limits::default()).then_some(limits), reservations: None },
        network,
        ports,
        auto_remove: host.auto_remove,
        restart: restart(&host.restart_policy, host.auto_remove)?,
        privileged: host.privileged,
        isolation,
        stdin_once: request.stdin_once,
        attach: (request.attach_stdin, request.attach_stdout, request.attach_stderr),
        log,
        task: None,
    };
    Ok(NewContainer { config, network_of, publish_all: host.publish_all_ports, warnings })
}

/// Refuses what is not built. These words name what every container gets anyway.
fn check_host(host: &HostConfigRequest) -> Result<(), ApiError> {
    let usual: [(&str, &[&str]); 3] =
        [("Runtime", &["runc", "io.containerd.runc.v2"]), ("VolumeDriver", &["local"]), ("UsernsMode", &["host"])];
    let is_usual = |key: &str, value: &Value| {
        usual.iter().any(|(k, words)| *k == key && value.as_str().is_some_and(|v| words.contains(&v)))
    };
    let rest =
        host.rest.iter().filter(|(key, value)| !is_usual(key, value)).map(|(k, v)| (k.clone(), v.clone())).collect();
    refuse("HostConfig", &rest)?;
    if !["", "default"].contains(&host.isolation.as_str()) {
        return Err(ApiError::bad_request(format!("invalid isolation: \"{}\"", host.isolation)));
    }
    if host.memory_swappiness.is_some_and(|s| s > 0) {
        return Err(ApiError::not_supported("HostConfig.MemorySwappiness"));
    }
    Ok(())
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, perhaps after a slash.
///
/// # Errors
/// 400 in Docker's words.
pub(crate) fn container_name(name: &str) -> Result<(), ApiError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let ok = bare.len() > 1
        && bare.starts_with(|c: char| c.is_ascii_alphanumeric())
        && bare.chars().all(|c| c.is_ascii_alphanumeric() || ['_', '.', '-'].contains(&c));
    if ok {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("Invalid container name ({bare}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

/// An entry point of one empty word takes the image's away: then the command is the whole line.
fn command(entrypoint: Vec<String>, cmd: Vec<String>) -> (Vec<String>, Vec<String>) {
    if entrypoint == [""] { (cmd, Vec::new()) } else { (entrypoint, cmd) }
}

fn restart(policy: &RestartPolicy, auto_remove: bool) -> Result<ContainerRestart, ApiError> {
    let restart = match policy.name.as_str() {
        "" | "no" => ContainerRestart::No,
        "always" => ContainerRestart::Always,
        "unless-stopped" => ContainerRestart::UnlessStopped,
        "on-failure" => ContainerRestart::OnFailure(policy.maximum_retry_count),
        other => {
            return Err(ApiError::bad_request(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            )));
        }
    };
    if policy.maximum_retry_count > 0 && !matches!(restart, ContainerRestart::OnFailure(_)) {
        return Err(ApiError::bad_request(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    if auto_remove && restart != ContainerRestart::No {
        return Err(ApiError::bad_request("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(restart)
}

fn mounts(host: &HostConfigRequest, anonymous: &BTreeMap<String, Empty>) -> Result<Vec<Mount>, ApiError> {
    let mut mounts = Vec::new();
    for bind in &host.binds {
        mounts.push(mount::read_bind(bind)?);
    }
    for given in &host.mounts {
        mounts.push(mount::read(given.clone())?);
    }
    for (target, options) in &host.tmpfs {
        mounts.push(mount::read_tmpfs(target, options)?);
    }
    for target in anonymous.keys() {
        // `-v /data` and `-v name:/data` of one run name the same target: the explicit one wins.
        if !mounts.iter().any(|m| m.target == *target) {
            let target = target.clone();
            mounts.push(Mount {
                kind: MountKind::Volume,
                source: String::new(),
                target,
                read_only: false,
                consistency: String::new(),
                bind: None,
                volume: None,
                tmpfs: None,
            });
        }
    }
    validate::mounts(&mounts)?;
    Ok(mounts)
}

/// `80/tcp`, `80`.
///
/// # Errors
/// 400 when it is no port.
pub(crate) fn port(text: &str) -> Result<(u16, Protocol), ApiError> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(ApiError::bad_request(format!("invalid proto: {other}"))),
    };
    let number = number.parse().ok().filter(|n| *n != 0);
    number
        .map(|n| (n, protocol))
        .ok_or_else(|| ApiError::bad_request(format!("invalid port specification: \"{text}\"")))
}

fn port_bindings(given: &BTreeMap<String, Vec<json::PortBinding>>) -> Result<Vec<PortBinding>, ApiError> {
    let mut bindings = Vec::new();
    for (key, hosts) in given {
        let (container_port, protocol) = port(key)?;
        for host in hosts {
            let host_ip: Option<IpAddr> = match host.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| ApiError::bad_request(format!("invalid IP address: {text}")))?),
            };
            let (host_port, host_port_last) = match host.host_port.as_str() {
                "" | "0" => (None, None),
                text => host_ports(text)?,
            };
            bindings.push(PortBinding { protocol, container_port, host_ip, host_port, host_port_last });
        }
        if hosts.is_empty() {
            bindings.push(PortBinding {
                protocol,
                container_port,
                host_ip: None,
                host_port: None,
                host_port_last: None,
            });
        }
    }
    Ok(bindings)
}

/// `8080`, or a range `8000-8010` of which one is chosen.
fn host_ports(text: &str) -> Result<(Option<u16>, Option<u16>), ApiError> {
    let wrong = || ApiError::bad_request(format!("invalid port specification: \"{text}\""));
    let number = |text: &str| text.parse().ok().filter(|number: &u16| *number != 0).ok_or_else(wrong);
    match text.split_once('-') {
        None => Ok((Some(number(text)?), None)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            Ok((Some(first), Some(last).filter(|last| *last != first)))
        }
    }
}

/// Declared ports: published too when all are to be; else a warning, as nothing between containers filters ports and
/// the declaration is not kept.
fn expose(
    exposed: &BTreeMap<String, Empty>,
    bindings: &mut Vec<PortBinding>,
    all: bool,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    for key in exposed.keys() {
        let (container_port, protocol) = port(key)?;
        if bindings.iter().any(|b| b.container_port == container_port && b.protocol == protocol) {
            continue;
        }
        if all {
            bindings.push(PortBinding {
                protocol,
                container_port,
                host_ip: None,
                host_port: None,
                host_port_last: None,
            });
        } else {
            warnings.push(format!("port {key} is declared but not published: inspection will not show it"));
        }
    }
    Ok(())
}

/// `NAME:IP` of `--add-host` as a line of `/etc/hosts`.
fn host_line(text: &str) -> Result<String, ApiError> {
    let (name, ip) = text
        .split_once([':', '='])
        .ok_or_else(|| ApiError::bad_request(format!("bad format for add-host: \"{text}\"")))?;
    if ip == "host-gateway" {
        return Err(ApiError::not_supported("the address host-gateway"));
    }
    let ip: IpAddr = ip
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|_| ApiError::bad_request(format!("invalid IP address in add-host: \"{ip}\"")))?;
    Ok(format!("{ip} {name}"))
}

fn network(
    mode: &str,
    config: json::NetworkingConfig,
    disabled: bool,
) -> Result<(NetworkMode, Option<String>), ApiError> {
    let mut endpoints = config.endpoints_config;
    if disabled {
        return Ok((NetworkMode::None, None));
    }
    if let Some(other) = mode.strip_prefix("container:") {
        return Ok((NetworkMode::Bridge, Some(other.to_owned())));
    }
    match mode {
        "host" => return Ok((NetworkMode::Host, None)),
        "none" => return Ok((NetworkMode::None, None)),
        _ => {}
    }
    let is_default = |name: &str| ["", "default", "bridge"].contains(&name);
    let mut list = Vec::new();
    if is_default(mode) {
        for name in ["default", "bridge"] {
            if let Some(endpoint) = endpoints.remove(name) {
                let wish = wish("bridge", endpoint)?;
                if !wish.addresses.is_empty() || !wish.aliases.is_empty() {
                    return Err(ApiError::bad_request(
                        "network-scoped aliases and addresses are supported only for user-defined networks",
                    ));
                }
            }
        }
        if endpoints.is_empty() {
            return Ok((NetworkMode::Bridge, None));
        }
    } else {
        list.push(wish(mode, endpoints.remove(mode).unwrap_or_default())?);
    }
    for (name, endpoint) in endpoints {
        list.push(wish(&name, endpoint)?);
    }
    Ok((NetworkMode::Networks(list), None))
}

/// Reads a wish to join a network. What a client sends back of an answer (addresses in force, ids) asks for nothing.
pub(crate) fn wish(network: &str, endpoint: json::EndpointConfig) -> Result<NetworkEndpoint, ApiError> {
    for key in ["Links", "DriverOpts", "MacAddress", "GwPriority"] {
        if endpoint.rest.get(key).is_some_and(|v| !super::is_zero(v)) {
            return Err(ApiError::not_supported(format!("EndpointsConfig.{key}")));
        }
    }
    refuse("IPAMConfig", &endpoint.ipam_config.rest)?;
    let mut addresses = Vec::new();
    // Docker's words.
    let invalid = |family: Family, text: &str| {
        ApiError::bad_request(format!("invalid endpoint settings:\ninvalid {} address: {text}", family.as_str()))
    };
    let ipam = &endpoint.ipam_config;
    for (family, text) in [(Family::V4, &ipam.ipv4_address), (Family::V6, &ipam.ipv6_address)] {
        if !text.is_empty() {
            let parsed = text.parse::<IpAddr>().ok().filter(|address| Family::of(*address) == family);
            addresses.push(parsed.ok_or_else(|| invalid(family, text))?);
        }
    }
    Ok(NetworkEndpoint { network: network.to_owned(), aliases: endpoint.aliases, addresses })
}
