//! Containers of tasks: `ContainerSpec` of the API and of the model.

use skep_proto::model::container::{
    ConfigReference, ContainerSpec, DnsConfig, FileTarget, Healthcheck, Privileges, SecretReference, Ulimit,
};

use super::{duration, isolation, mount, refuse};
use crate::docker::error::ApiError;
use crate::docker::time::nanos;
use crate::docker::types::service as json;

/// Reads a container's spec.
///
/// # Errors
/// 400 for what makes no sense, 501 for what is not built.
pub(crate) fn read(spec: json::ContainerSpec) -> Result<ContainerSpec, ApiError> {
    refuse("ContainerSpec", &spec.rest)?;
    if !["", "default"].contains(&spec.isolation.as_str()) {
        return Err(ApiError::invalid_argument(format!("invalid isolation: \"{}\"", spec.isolation)));
    }
    Ok(ContainerSpec {
        name: String::new(),
        image: spec.image,
        labels: spec.labels,
        command: spec.command,
        args: spec.args,
        hostname: spec.hostname,
        env: spec.env,
        dir: spec.dir,
        user: spec.user,
        groups: spec.groups,
        init: spec.init,
        stop_signal: spec.stop_signal,
        stop_grace: spec.stop_grace_period.map(|n| duration("ContainerSpec: StopGracePeriod", n)).transpose()?,
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.into_iter().map(mount::read).collect::<Result<_, _>>()?,
        healthcheck: spec.healthcheck.map(|check| read_healthcheck(check, &SERVICE_WORDS)).transpose()?,
        hosts: spec.hosts,
        dns: spec.dns_config.map(read_dns).transpose()?,
        secrets: spec.secrets.into_iter().map(read_secret).collect::<Result<_, _>>()?,
        configs: spec.configs.into_iter().map(read_config).collect::<Result<_, _>>()?,
        sysctls: spec.sysctls,
        cap_add: spec.capability_add,
        cap_drop: spec.capability_drop,
        ulimits: spec.ulimits.into_iter().map(read_ulimit).collect(),
        privileges: spec.privileges.map(read_privileges).transpose()?,
        registry_auth: None,
        pod: None,
    })
}

/// Shows a container's spec: what was read, and `Isolation` as dockerd adds it. Credentials are not shown.
pub(crate) fn show(spec: &ContainerSpec) -> json::ContainerSpec {
    json::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mount::show).collect(),
        stop_grace_period: spec.stop_grace.map(nanos),
        healthcheck: spec.healthcheck.as_ref().map(show_healthcheck),
        hosts: spec.hosts.clone(),
        dns_config: spec.dns.as_ref().map(|dns| json::DnsConfig {
            nameservers: dns.nameservers.iter().map(ToString::to_string).collect(),
            search: dns.search.clone(),
            options: dns.options.clone(),
        }),
        secrets: spec
            .secrets
            .iter()
            .map(|s| json::SecretReference {
                file: s.file.as_ref().map(show_file),
                id: s.id.to_string(),
                name: s.name.clone(),
            })
            .collect(),
        configs: spec
            .configs
            .iter()
            .map(|c| json::ConfigReference {
                file: c.file.as_ref().map(show_file),
                id: c.id.to_string(),
                name: c.name.clone(),
                ..Default::default()
            })
            .collect(),
        isolation: "default".into(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: spec.ulimits.iter().map(show_ulimit).collect(),
        privileges: spec.privileges.as_ref().map(show_privileges),
        ..Default::default()
    }
}

/// What a health check is called in an error: prefix and name.
pub(crate) type HealthcheckWords = (&'static str, &'static str);
const SERVICE_WORDS: HealthcheckWords = ("ContainerSpec: ", "HealthConfig");
/// Those of a plain container.
pub(crate) const CONTAINER_WORDS: HealthcheckWords = ("", "Healthcheck");

/// Reads a health check; the rules are Docker's.
///
/// # Errors
/// 400 for spans and counts that make no sense.
pub(crate) fn read_healthcheck(
    check: json::Healthcheck,
    (prefix, name): &HealthcheckWords,
) -> Result<Healthcheck, ApiError> {
    refuse("Healthcheck", &check.rest)?;
    for (what, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if value != 0 && value < 1_000_000 {
            let text = format!("{prefix}{what} in {name} cannot be less than 1ms");
            return Err(ApiError::invalid_argument(text));
        }
    }
    Ok(Healthcheck {
        test: check.test,
        interval: duration("Interval", check.interval)?,
        timeout: duration("Timeout", check.timeout)?,
        start_period: duration("StartPeriod", check.start_period)?,
        start_interval: duration("StartInterval", check.start_interval)?,
        retries: u32::try_from(check.retries)
            .map_err(|_| ApiError::invalid_argument(format!("{prefix}Retries in {name} cannot be negative")))?,
    })
}

/// Shows a health check.
pub(crate) fn show_healthcheck(check: &Healthcheck) -> json::Healthcheck {
    json::Healthcheck {
        test: check.test.clone(),
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        start_interval: nanos(check.start_interval),
        retries: i64::from(check.retries),
        ..Default::default()
    }
}

/// Reads resolver settings.
///
/// # Errors
/// 400 for a server that is no address.
pub(crate) fn read_dns(dns: json::DnsConfig) -> Result<DnsConfig, ApiError> {
    let nameservers = dns
        .nameservers
        .iter()
        .map(|text| text.parse().map_err(|_| ApiError::invalid_argument(format!("{text} is not an ip address"))))
        .collect::<Result<_, _>>()?;
    Ok(DnsConfig { nameservers, search: dns.search, options: dns.options })
}

fn read_secret(secret: json::SecretReference) -> Result<SecretReference, ApiError> {
    let id = secret
        .id
        .parse()
        .map_err(|_| ApiError::invalid_argument(format!("malformed secret reference {}", secret.id)))?;
    Ok(SecretReference { id, name: secret.name, file: secret.file.map(read_file) })
}

fn read_config(config: json::ConfigReference) -> Result<ConfigReference, ApiError> {
    refuse("Configs", &config.rest)?;
    let id = config
        .id
        .parse()
        .map_err(|_| ApiError::invalid_argument(format!("malformed config reference {}", config.id)))?;
    Ok(ConfigReference { id, name: config.name, file: config.file.map(read_file) })
}

fn read_file(file: json::FileTarget) -> FileTarget {
    FileTarget { name: file.name, uid: file.uid, gid: file.gid, mode: file.mode }
}

fn show_file(file: &FileTarget) -> json::FileTarget {
    json::FileTarget { name: file.name.clone(), uid: file.uid.clone(), gid: file.gid.clone(), mode: file.mode }
}

/// Reads security options. `CredentialSpec` and `SELinuxContext` are refused by name.
fn read_privileges(privileges: json::Privileges) -> Result<Privileges, ApiError> {
    refuse("Privileges", &privileges.rest)?;
    let seccomp = privileges.seccomp.unwrap_or_default();
    let seccomp_unconfined = match seccomp.mode.as_str() {
        "" | "default" => false,
        "unconfined" => true,
        "custom" => return Err(ApiError::not_supported("a seccomp profile of one's own")),
        other => return Err(ApiError::invalid_argument(format!("unrecognized seccomp mode: {other}"))),
    };
    refuse("Privileges.Seccomp", &seccomp.rest)?;
    let app_armor = privileges.app_armor.unwrap_or_default();
    // There is no profile that could be taken away.
    if !["", "default", "disabled"].contains(&app_armor.mode.as_str()) {
        return Err(ApiError::invalid_argument(format!("unrecognized AppArmor mode: {}", app_armor.mode)));
    }
    refuse("Privileges.AppArmor", &app_armor.rest)?;
    Ok(Privileges {
        no_new_privileges: privileges.no_new_privileges,
        seccomp_unconfined,
        privileged: privileges.privileged,
        devices: privileges.devices.iter().map(isolation::read_device).collect::<Result<_, _>>()?,
    })
}

fn show_privileges(privileges: &Privileges) -> json::Privileges {
    let unconfined = || json::ProfileMode { mode: "unconfined".into(), ..Default::default() };
    json::Privileges {
        seccomp: privileges.seccomp_unconfined.then(unconfined),
        no_new_privileges: privileges.no_new_privileges,
        privileged: privileges.privileged,
        devices: isolation::show_devices(&privileges.devices),
        ..Default::default()
    }
}

/// Reads a resource limit.
pub(crate) fn read_ulimit(limit: json::Ulimit) -> Ulimit {
    Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard }
}

/// Shows a resource limit.
pub(crate) fn show_ulimit(limit: &Ulimit) -> json::Ulimit {
    json::Ulimit { name: limit.name.clone(), hard: limit.hard, soft: limit.soft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options_are_shown_as_given_and_refused_by_name() {
        let of = |text: &str| read_privileges(serde_json::from_str(text).unwrap());
        let given = r#"{"Seccomp":{"Mode":"unconfined"},"NoNewPrivileges":true}"#;
        assert_eq!(serde_json::to_string(&show_privileges(&of(given).unwrap())).unwrap(), given);
        let message = |text: &str| of(text).unwrap_err().message().to_owned();
        assert!(
            message(r#"{"CredentialSpec":{"File":"x"}}"#).starts_with("Privileges.CredentialSpec is not supported")
        );
        assert!(message(r#"{"SELinuxContext":{"Disable":true}}"#).starts_with("Privileges.SELinuxContext"));
        assert!(of(r#"{"Seccomp":{"Mode":"custom"}}"#).is_err() && of(r#"{"AppArmor":{"Mode":"x"}}"#).is_err());
        let quiet = r#"{"CredentialSpec":null,"SELinuxContext":null,"NoNewPrivileges":false}"#;
        assert_eq!(of(quiet), Ok(Privileges::default()));
    }
}
