//! `/_ping`, `/version`, `/info`, `/auth`, `/system/df` (Engine API, System).

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, PRAGMA};
use http::{HeaderValue, Method};

use crate::docker::error::ApiError;
use crate::docker::extract::Json;
use crate::docker::front::{MAX_VERSION, MIN_VERSION};
use crate::docker::spec::{cluster, container_view};
use crate::docker::state::App;
use crate::docker::time::rfc3339;
use crate::docker::types::swarm as json_swarm;
use crate::docker::types::system as json;
use crate::docker::types::volume::UsageData;
use crate::ports::control::{LocalState, SwarmStatus};
use crate::ports::engine::EngineInfo;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/auth", post(auth))
        .route("/system/df", get(disk_usage))
        .route("/build/prune", post(prune_builds))
}

/// `GET` and `HEAD /_ping` (Engine API, System, "Ping"). The front adds the headers that clients read.
async fn ping(method: Method) -> Response {
    let body = if method == Method::HEAD { "" } else { "OK" };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    if method == Method::HEAD {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

/// Go's word for the architecture that this was built for.
const ARCH: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    std::env::consts::ARCH
};

/// `GET /version` (Engine API, System, "Get version").
async fn version(State(app): State<App>) -> Result<axum::Json<json::SystemVersion>, ApiError> {
    let info = app.engine().info().await?;
    let host = &app.host;
    let details = BTreeMap::from([
        ("ApiVersion", MAX_VERSION.to_string()),
        ("Arch", ARCH.to_owned()),
        ("BuildTime", host.build_time.clone()),
        ("Experimental", "false".to_owned()),
        ("GitCommit", host.git_commit.clone()),
        // Clients print it; there is no Go in here.
        ("GoVersion", String::new()),
        ("KernelVersion", info.kernel.clone()),
        ("MinAPIVersion", MIN_VERSION.to_string()),
        ("Os", "linux".to_owned()),
    ]);
    Ok(axum::Json(json::SystemVersion {
        platform: json::PlatformName { name: format!("skep {}", host.version) },
        components: vec![json::Component { name: "Engine", version: host.version.clone(), details }],
        version: host.version.clone(),
        api_version: MAX_VERSION.to_string(),
        min_api_version: MIN_VERSION.to_string(),
        git_commit: host.git_commit.clone(),
        go_version: String::new(),
        os: "linux",
        arch: ARCH,
        kernel_version: info.kernel,
        build_time: host.build_time.clone(),
    }))
}

/// `GET /info` (Engine API, System, "Get system information").
async fn info(State(app): State<App>) -> Result<axum::Json<json::SystemInfo>, ApiError> {
    let info = app.engine().info().await?;
    Ok(axum::Json(show_info(info, &app.swarm.status(), &app.host.version)))
}

fn show_info(info: EngineInfo, swarm: &SwarmStatus, version: &str) -> json::SystemInfo {
    let (running, paused, stopped) = info.containers;
    json::SystemInfo {
        id: info.id,
        containers: running + paused + stopped,
        containers_running: running,
        containers_paused: paused,
        containers_stopped: stopped,
        images: info.images,
        driver: "overlay2",
        driver_status: vec![
            ["Backing Filesystem".into(), info.backing_filesystem],
            ["Supports d_type".into(), "true".into()],
        ],
        plugins: json::Plugins {
            volume: vec!["local"],
            network: vec!["bridge", "host", "null", "overlay"],
            authorization: None,
            log: vec!["json-file"],
        },
        memory_limit: true,
        swap_limit: false,
        kernel_memory: false,
        kernel_memory_tcp: false,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: true,
        // Bridges are filtered by our own tables; clients warn when these are false.
        bridge_nf_iptables: true,
        bridge_nf_ip6tables: true,
        debug: false,
        n_fd: info.usage.0,
        oom_kill_disable: false,
        n_goroutines: info.usage.1,
        system_time: rfc3339(info.now),
        logging_driver: "json-file",
        cgroup_driver: "cgroupfs",
        cgroup_version: info.cgroup_version,
        n_events_listener: 0,
        kernel_version: info.kernel,
        operating_system: info.operating_system,
        os_version: info.os_version,
        os_type: "linux",
        architecture: info.architecture,
        index_server_address: "https://index.docker.io/v1/",
        registry_config: registry_config(&info.insecure_registries),
        ncpu: info.cpus,
        mem_total: info.memory,
        generic_resources: None,
        docker_root_dir: info.root.display().to_string(),
        http_proxy: String::new(),
        https_proxy: String::new(),
        no_proxy: String::new(),
        name: info.name,
        labels: info.labels.iter().map(|(k, v)| format!("{k}={v}")).collect(),
        experimental_build: false,
        server_version: version.to_owned(),
        runtimes: BTreeMap::from([("runc", json::Runtime { path: "skep-shim" })]),
        default_runtime: "runc",
        swarm: show_swarm(swarm),
        live_restore_enabled: true,
        isolation: "",
        init_binary: "",
        containerd_commit: json::Commit::default(),
        runc_commit: json::Commit::default(),
        init_commit: json::Commit::default(),
        security_options: info.security_options,
        warnings: (!info.warnings.is_empty()).then_some(info.warnings),
    }
}

fn registry_config(insecure: &[String]) -> json::RegistryConfig {
    let (cidrs, hosts): (Vec<_>, Vec<_>) = insecure.iter().cloned().partition(|r| r.contains('/'));
    let mut cidrs = cidrs;
    cidrs.push("127.0.0.0/8".into());
    let index = |name: &str, secure| json::IndexConfig {
        name: name.to_owned(),
        mirrors: Vec::new(),
        secure,
        official: name == "docker.io",
    };
    let mut index_configs: BTreeMap<_, _> = hosts.iter().map(|h| (h.clone(), index(h, false))).collect();
    index_configs.insert("docker.io".into(), index("docker.io", true));
    json::RegistryConfig {
        nondistributable_cidrs: Vec::new(),
        nondistributable_hostnames: Vec::new(),
        insecure_registry_cidrs: cidrs,
        index_configs,
        mirrors: Vec::new(),
    }
}

/// Docker's words (moby `daemon/cluster/swarm.go`).
const TWO_MANAGERS: &str = "WARNING: Running Swarm in a two-manager configuration. This configuration provides\n         \
     no fault tolerance, and poses a high risk to lose control over the cluster.\n         Refer to \
     https://docs.docker.com/engine/swarm/admin_guide/ to configure the\n         Swarm for fault-tolerance.";

fn show_swarm(status: &SwarmStatus) -> json_swarm::SwarmInfo {
    json_swarm::SwarmInfo {
        node_id: status.node.map(|n| n.to_string()).unwrap_or_default(),
        node_addr: status.address.map(|a| a.to_string()).unwrap_or_default(),
        local_node_state: match status.state {
            LocalState::Inactive => "inactive",
            LocalState::Pending => "pending",
            LocalState::Active => "active",
            LocalState::Error => "error",
            LocalState::Locked => "locked",
        },
        control_available: status.is_manager,
        error: status.error.clone(),
        remote_managers: (!status.managers.is_empty()).then(|| {
            status
                .managers
                .iter()
                .map(|(node, addr)| json_swarm::RemoteManager { node_id: node.to_string(), addr: addr.to_string() })
                .collect()
        }),
        nodes: status.counts.as_ref().map_or(0, |c| c.nodes),
        managers: status.counts.as_ref().map_or(0, |c| c.managers),
        cluster: status.counts.as_ref().map(|c| cluster::show(&c.cluster, false)),
        warnings: if status.counts.as_ref().is_some_and(|c| c.managers == 2) { vec![TWO_MANAGERS] } else { Vec::new() },
    }
}

/// `POST /auth` (Engine API, System, "Check auth configuration").
async fn auth(
    State(app): State<App>,
    Json(body): Json<json::AuthConfig>,
) -> Result<axum::Json<json::AuthStatus>, ApiError> {
    if !body.identitytoken.is_empty() {
        return Err(ApiError::not_supported("login with an identity token"));
    }
    let server =
        if body.serveraddress.is_empty() { "https://index.docker.io/v1/" } else { body.serveraddress.as_str() };
    let status = app.engine().login(server, &body.username, &body.password).await?;
    Ok(axum::Json(json::AuthStatus { identity_token: String::new(), status }))
}

/// `GET /system/df` (Engine API, System, "Get data usage information"). Sizes of volumes are not counted: -1.
async fn disk_usage(State(app): State<App>) -> Result<axum::Json<json::DiskUsage>, ApiError> {
    let engine = app.engine();
    let (images, containers, volumes) =
        (engine.images().await?, engine.containers(true).await?, engine.volumes().await?);
    let now = (app.local.clock)();
    Ok(axum::Json(json::DiskUsage {
        layers_size: images.iter().map(|i| i.size).sum(),
        images: images
            .iter()
            .map(|image| {
                let mut shown = super::images::summary(image, crate::docker::extract::ApiVersion(1, 43));
                let users = containers.iter().filter(|c| c.image_id == image.id).count();
                shown.containers = i64::try_from(users).unwrap_or(i64::MAX);
                shown.shared_size = 0;
                shown
            })
            .collect(),
        containers: containers
            .iter()
            .map(|c| {
                let size = images.iter().find(|i| i.id == c.image_id).map(|i| i.size);
                container_view::summary(c, now, size)
            })
            .collect(),
        volumes: volumes
            .iter()
            .map(|volume| {
                let users = containers.iter().filter(|c| c.mounts.iter().any(|m| m.name == volume.name)).count();
                let mut shown = super::volumes::show(volume);
                shown.usage_data = Some(UsageData { ref_count: i64::try_from(users).unwrap_or(i64::MAX), size: -1 });
                shown
            })
            .collect(),
        build_cache: None,
        builder_size: 0,
    }))
}

/// `POST /build/prune` (Engine API, Image, "Delete builder cache"): there is none, so nothing is left of it.
async fn prune_builds() -> axum::Json<json::BuildsPruned> {
    axum::Json(json::BuildsPruned { caches_deleted: None, space_reclaimed: 0 })
}
