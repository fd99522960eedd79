//! The daemon itself (Engine API, `SystemVersion`, `SystemInfo`, `/auth`, `/system/df`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::container::ContainerSummary;
use super::image::ImageSummary;
use super::swarm::SwarmInfo;
use super::volume::Volume;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SystemVersion {
    pub platform: PlatformName,
    pub components: Vec<Component>,
    pub version: String,
    pub api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub min_api_version: String,
    pub git_commit: String,
    pub go_version: String,
    pub os: &'static str,
    pub arch: &'static str,
    pub kernel_version: String,
    pub build_time: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PlatformName {
    pub name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Component {
    pub name: &'static str,
    pub version: String,
    pub details: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct SystemInfo {
    #[serde(rename = "ID")]
    pub id: String,
    pub containers: u64,
    pub containers_running: u64,
    pub containers_paused: u64,
    pub containers_stopped: u64,
    pub images: u64,
    pub driver: &'static str,
    pub driver_status: Vec<[String; 2]>,
    pub plugins: Plugins,
    pub memory_limit: bool,
    pub swap_limit: bool,
    pub kernel_memory: bool,
    #[serde(rename = "KernelMemoryTCP")]
    pub kernel_memory_tcp: bool,
    pub cpu_cfs_period: bool,
    pub cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    pub cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    pub cpu_set: bool,
    pub pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    pub ipv4_forwarding: bool,
    pub bridge_nf_iptables: bool,
    pub bridge_nf_ip6tables: bool,
    pub debug: bool,
    pub n_fd: u64,
    pub oom_kill_disable: bool,
    pub n_goroutines: u64,
    pub system_time: String,
    pub logging_driver: &'static str,
    pub cgroup_driver: &'static str,
    pub cgroup_version: String,
    pub n_events_listener: u64,
    pub kernel_version: String,
    pub operating_system: String,
    #[serde(rename = "OSVersion")]
    pub os_version: String,
    #[serde(rename = "OSType")]
    pub os_type: &'static str,
    pub architecture: String,
    pub index_server_address: &'static str,
    pub registry_config: RegistryConfig,
    #[serde(rename = "NCPU")]
    pub ncpu: u64,
    pub mem_total: u64,
    pub generic_resources: Option<Vec<String>>,
    pub docker_root_dir: String,
    pub http_proxy: String,
    pub https_proxy: String,
    pub no_proxy: String,
    pub name: String,
    pub labels: Vec<String>,
    pub experimental_build: bool,
    pub server_version: String,
    pub runtimes: BTreeMap<&'static str, Runtime>,
    pub default_runtime: &'static str,
    pub swarm: SwarmInfo,
    pub live_restore_enabled: bool,
    pub isolation: &'static str,
    pub init_binary: &'static str,
    pub containerd_commit: Commit,
    pub runc_commit: Commit,
    pub init_commit: Commit,
    pub security_options: Vec<String>,
    pub warnings: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Plugins {
    pub volume: Vec<&'static str>,
    pub network: Vec<&'static str>,
    pub authorization: Option<Vec<&'static str>>,
    pub log: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RegistryConfig {
    #[serde(rename = "AllowNondistributableArtifactsCIDRs")]
    pub nondistributable_cidrs: Vec<String>,
    #[serde(rename = "AllowNondistributableArtifactsHostnames")]
    pub nondistributable_hostnames: Vec<String>,
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub insecure_registry_cidrs: Vec<String>,
    pub index_configs: BTreeMap<String, IndexConfig>,
    pub mirrors: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct IndexConfig {
    pub name: String,
    pub mirrors: Vec<String>,
    pub secure: bool,
    pub official: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Runtime {
    pub path: &'static str,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Commit {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Expected")]
    pub expected: String,
}

/// Body of `POST /auth`. Its keys are lower case.
#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
pub(crate) struct AuthConfig {
    #[serde(alias = "Username")]
    pub username: String,
    #[serde(alias = "Password")]
    pub password: String,
    #[serde(alias = "ServerAddress")]
    pub serveraddress: String,
    #[serde(alias = "IdentityToken")]
    pub identitytoken: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AuthStatus {
    pub identity_token: String,
    pub status: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DiskUsage {
    pub layers_size: u64,
    pub images: Vec<ImageSummary>,
    pub containers: Vec<ContainerSummary>,
    pub volumes: Vec<Volume>,
    pub build_cache: Option<Vec<String>>,
    pub builder_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct BuildsPruned {
    pub caches_deleted: Option<Vec<String>>,
    pub space_reclaimed: u64,
}
