//! The cluster: `SwarmSpec` of the API and of the model, and the requests that make and join one.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use skep_proto::model::addressing;
use skep_proto::model::annotations::Annotations;
use skep_proto::model::cluster::{Cluster, ClusterSpec};
use skep_proto::model::node::Availability;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{duration, node, refuse};
use crate::docker::error::ApiError;
use crate::docker::time::nanos;
use crate::docker::types::swarm as json;
use crate::ports::control::{InitRequest, JoinRequest};

/// Reads a cluster's spec. Zero means the default, as in Docker.
///
/// # Errors
/// 501 for what is not built (external CAs, root rotation, default log drivers).
pub(crate) fn read(spec: json::SwarmSpec) -> Result<ClusterSpec, ApiError> {
    refuse("SwarmSpec", &spec.rest)?;
    refuse("CAConfig", &spec.ca_config.rest)?;
    if spec.task_defaults.log_driver.is_some_and(|d| !d.name.is_empty() || !d.options.is_empty()) {
        return Err(ApiError::not_supported("TaskDefaults.LogDriver"));
    }
    let default = ClusterSpec::default();
    let or = |given: u64, default: u64| if given == 0 { default } else { given };
    let or_span = |what, given: i64, default| if given == 0 { Ok(default) } else { duration(what, given) };
    let raft = spec.raft;
    Ok(ClusterSpec {
        annotations: Annotations {
            name: if spec.name.is_empty() { default.annotations.name } else { spec.name },
            labels: spec.labels,
        },
        task_history: spec.orchestration.task_history_retention_limit.unwrap_or(default.task_history),
        snapshot_interval: or(raft.snapshot_interval, default.snapshot_interval),
        keep_old_snapshots: raft.keep_old_snapshots.unwrap_or(default.keep_old_snapshots),
        log_entries_for_slow_followers: or(raft.log_entries_for_slow_followers, default.log_entries_for_slow_followers),
        heartbeat_tick: if raft.heartbeat_tick == 0 { default.heartbeat_tick } else { raft.heartbeat_tick },
        election_tick: if raft.election_tick == 0 { default.election_tick } else { raft.election_tick },
        heartbeat_period: or_span("HeartbeatPeriod", spec.dispatcher.heartbeat_period, default.heartbeat_period)?,
        force_rotate: spec.ca_config.force_rotate,
        cert_expiry: or_span("NodeCertExpiry", spec.ca_config.node_cert_expiry, default.cert_expiry)?,
        autolock: spec.encryption_config.auto_lock_managers,
    })
}

/// Shows a cluster's spec.
pub(crate) fn show_spec(spec: &ClusterSpec) -> json::SwarmSpec {
    json::SwarmSpec {
        name: spec.annotations.name.clone(),
        labels: spec.annotations.labels.clone(),
        orchestration: json::Orchestration { task_history_retention_limit: Some(spec.task_history) },
        raft: json::Raft {
            snapshot_interval: spec.snapshot_interval,
            keep_old_snapshots: Some(spec.keep_old_snapshots),
            log_entries_for_slow_followers: spec.log_entries_for_slow_followers,
            election_tick: spec.election_tick,
            heartbeat_tick: spec.heartbeat_tick,
        },
        dispatcher: json::Dispatcher { heartbeat_period: nanos(spec.heartbeat_period) },
        ca_config: json::CaConfig {
            node_cert_expiry: nanos(spec.cert_expiry),
            force_rotate: spec.force_rotate,
            ..Default::default()
        },
        encryption_config: json::EncryptionConfig { auto_lock_managers: spec.autolock },
        ..Default::default()
    }
}

/// Shows the cluster, with its join tokens when `tokens`.
pub(crate) fn show(cluster: &Cluster, tokens: bool) -> json::Swarm {
    json::Swarm {
        id: cluster.id.to_string(),
        meta: cluster.meta.into(),
        spec: show_spec(&cluster.spec),
        tls_info: tls_info(cluster),
        root_rotation_in_progress: cluster.rotation.is_some(),
        // dockerd shows null for the default pool.
        default_addr_pool: (cluster.address_pools != [default_pool()])
            .then(|| cluster.address_pools.iter().map(ToString::to_string).collect::<Vec<_>>())
            .filter(|pools| !pools.is_empty()),
        subnet_size: cluster.subnet_size,
        data_path_port: cluster.data_path_port,
        join_tokens: tokens.then(|| json::JoinTokens {
            worker: cluster.join_tokens.worker.clone(),
            manager: cluster.join_tokens.manager.clone(),
        }),
    }
}

/// Prefix length of IPv4 subnets when nobody says otherwise.
const DEFAULT_SUBNET_SIZE: u8 = 24;

/// 10.0.0.0/8: what subnets of networks are taken from when nobody says otherwise.
fn default_pool() -> IpNet {
    "10.0.0.0/8".parse().expect("a constant subnet")
}

/// What nodes should trust: the root in force, and the subject and key of the root that signs, which is already the new one
/// while the root is being replaced.
pub(crate) fn tls_info(cluster: &Cluster) -> json::TlsInfo {
    let signing = cluster.rotation.as_ref().map_or(&cluster.root_ca, |rotation| &rotation.root);
    show_tls(cluster.root_ca.certificates.clone(), &signing.certificates)
}

/// Shows trusted roots and the root that signed.
pub(crate) fn show_tls(trust_root: String, issuer: &str) -> json::TlsInfo {
    let der = x509_parser::pem::Pem::iter_from_buffer(issuer.as_bytes()).find_map(Result::ok);
    let parsed = der.as_ref().and_then(|pem| X509Certificate::from_der(&pem.contents).ok());
    let (subject, key) = parsed.map_or_else(Default::default, |(_, certificate)| {
        (BASE64_STANDARD.encode(certificate.subject().as_raw()), BASE64_STANDARD.encode(certificate.public_key().raw))
    });
    json::TlsInfo { trust_root, cert_issuer_subject: subject, cert_issuer_public_key: key }
}

/// Reads the request for a new cluster.
///
/// # Errors
/// 400 for numbers and pools that make no sense.
pub(crate) fn read_init(request: json::InitRequest) -> Result<InitRequest, ApiError> {
    let mut spec = read(request.spec)?;
    spec.autolock |= request.auto_lock_managers;
    if request.data_path_port != 0 && !(1024..=49151).contains(&request.data_path_port) {
        return Err(ApiError::bad_request("Datapath port number is not in valid range (1024-49151)"));
    }
    let subnet_size = u8::try_from(request.subnet_size)
        .ok()
        .filter(|size| *size <= 29)
        .ok_or_else(|| ApiError::bad_request("subnet size can not be greater than 29"))?;
    let address_pools = read_pools(&request.default_addr_pool, subnet_size)?;
    Ok(InitRequest {
        listen_addr: request.listen_addr,
        advertise_addr: request.advertise_addr,
        data_path_addr: request.data_path_addr,
        data_path_port: u16::try_from(request.data_path_port).unwrap_or(0),
        force_new_cluster: request.force_new_cluster,
        spec,
        availability: node::read_availability(&request.availability)?.unwrap_or(Availability::Active),
        address_pools,
        subnet_size,
    })
}

/// Reads the pools that subnets of networks are taken from. The size of subnets is that of IPv4 ones; a family that has no
/// pool here has its default one.
fn read_pools(texts: &[String], subnet_size: u8) -> Result<Vec<IpNet>, ApiError> {
    let mut pools: Vec<IpNet> = Vec::new();
    for text in texts {
        let wrong = |why: String| ApiError::bad_request(format!("invalid default address pool {text}: {why}"));
        let pool = text.parse::<IpNet>().map_err(|_| wrong("not a CIDR".into()))?.trunc();
        let size = match pool {
            IpNet::V4(_) if subnet_size == 0 => DEFAULT_SUBNET_SIZE,
            IpNet::V4(_) => subnet_size,
            IpNet::V6(_) => addressing::SUBNET6,
        };
        if pool.prefix_len() > size {
            return Err(wrong(format!("it has no room for a subnet of /{size}")));
        }
        if let Some(other) = pools.iter().find(|other| addressing::overlap(**other, pool)) {
            return Err(wrong(format!("it overlaps {other}")));
        }
        pools.push(pool);
    }
    if !pools.is_empty() && !pools.iter().any(|pool| matches!(pool, IpNet::V4(_))) {
        pools.push(default_pool());
    }
    Ok(pools)
}

/// Reads the request to join.
///
/// # Errors
/// 400 for an unknown availability.
pub(crate) fn read_join(request: json::JoinRequest) -> Result<JoinRequest, ApiError> {
    Ok(JoinRequest {
        listen_addr: request.listen_addr,
        advertise_addr: request.advertise_addr,
        data_path_addr: request.data_path_addr,
        remotes: request.remote_addrs,
        token: request.join_token,
        availability: node::read_availability(&request.availability)?.unwrap_or(Availability::Active),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_of_both_families_and_the_size_is_that_of_ipv4_subnets() {
        let read = |pools: &[&str], size| {
            let pools: Vec<String> = pools.iter().map(|p| (*p).to_owned()).collect();
            let read = read_pools(&pools, size).map_err(|error| error.message().to_owned())?;
            Ok::<_, String>(read.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read(&[], 0), Ok(vec![]));
        let both = read(&["10.77.0.0/16", "fd77::1/48"], 26).unwrap();
        assert_eq!(both, ["10.77.0.0/16", "fd77::/48"]);
        assert_eq!(read(&["fd77::/64"], 0).unwrap(), ["fd77::/64", "10.0.0.0/8"], "IPv4 keeps its own");
        let says = |pools: &[&str], size, text: &str| {
            let error = read(pools, size).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        says(&["fd77::/80"], 26, "no room for a subnet of /64");
        says(&["10.0.0.0/25"], 0, "no room for a subnet of /24");
        says(&["fd77::/48", "fd77:0:0:9::/64"], 0, "it overlaps fd77::/48");
        says(&["here"], 0, "not a CIDR");
    }
}
