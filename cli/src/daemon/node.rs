//! What a node runs whether or not it is in a cluster: images, containers, volumes, its network, and the engine over them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use skep_agent::engine_port::prepare::PINNED;
use skep_agent::engine_port::{NodeEngine, NodeFacts, Parts};
use skep_agent::executor::Executor;
use skep_agent::executor::files::Files;
use skep_agent::executor::node::{NodeExecutor, NodeParts};
use skep_agent::session::streams::{Http, StreamService};
use skep_api::docker;
use skep_engine::containers::{self, Containers};
use skep_engine::images::{Images, ImagesConfig};
use skep_engine::runtime::rootfs::OverlayApi;
use skep_engine::volumes::Volumes;
use skep_network::netd;
use skep_proto::model::task::Platform;
use skep_proto::model::{Labels, NodeDescription, NodeId, Timestamp};

use super::config::Config;
use super::local_network::LocalNetwork;
use super::network::ClusterNetwork;
use super::places::Places;

/// Volumes that a node tells of at most: its record must stay small.
const MOST_PINNED: usize = 2000;
/// Label of the daemon: `true` where tasks have the IPv6 addresses that they are given.
const IPV6_LABEL: &str = "io.skep.ipv6";
/// Containers made or started at a time: the kernel serialises most of it anyway.
const PARALLEL_STARTS: usize = 8;

/// The parts of a node.
pub struct NodeServices {
    config: Config,
    images: Images,
    containers: Containers,
    volumes: Volumes,
    /// The network.
    pub network: Arc<ClusterNetwork>,
    /// The engine's way to the managers.
    pub places: Arc<Places>,
    /// The engine that faces call.
    pub engine: Arc<NodeEngine>,
}

/// Wall time.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl NodeServices {
    /// Opens everything and takes over what an earlier daemon left running.
    ///
    /// # Errors
    /// What cannot be opened.
    pub async fn start(config: &Config, data_path: IpAddr) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding the path of skep")?;
        let mut settings = ImagesConfig::new(config.root.clone());
        settings.insecure_registries.clone_from(&config.insecure_registries);
        settings.whoami = Some(config.shim.clone());
        let images = Images::open(settings, Arc::new(now)).await.context("opening the images")?;
        let volumes = Volumes::open(config.root.join("volumes"), Arc::new(now)).await.context("opening the volumes")?;
        let containers = Containers::open(containers::Config {
            root: config.root.join("containers"),
            shim: config.shim.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            overlay: OverlayApi::Newest,
            clock: now,
        });
        let containers = containers.await.context("opening the containers")?;
        let client =
            netd::Client::start(netd::ClientConfig::new(config.root.join("network").join("netd"), program.clone()));
        let names = Arc::new(client.await.context("starting the name server (skep net)")?);
        let network = Arc::new(ClusterNetwork::start(config, data_path, names, program)?);
        let places = Arc::new(Places::new());
        let engine = NodeEngine::open(Parts {
            images: images.clone(),
            containers: containers.clone(),
            volumes: volumes.clone(),
            sandboxes: Arc::new(LocalNetwork(network.clone())),
            cluster: places.clone(),
            facts: facts(config),
            clock: Arc::new(now),
        });
        let engine = Arc::new(engine.await.context("opening the engine")?);
        engine.recover().await.context("taking over the containers")?;
        Ok(Self { config: config.clone(), images, containers, volumes, network, places, engine })
    }

    /// Labels of the daemon: the operator's, and whether the node has IPv6, so that services can be kept where it is.
    fn engine_labels(&self, ipv4_only: bool) -> Labels {
        let own = (IPV6_LABEL.to_owned(), (!ipv4_only).to_string());
        std::iter::once(own).chain(self.config.labels.iter().cloned()).collect()
    }

    /// Tells of IPv6 of this node in its description; true when that is another than before.
    pub fn tell_ipv6(&self, description: &mut NodeDescription) -> bool {
        let ipv4_only = !self.network.speaks_ipv6();
        if description.ipv4_only == ipv4_only {
            return false;
        }
        description.ipv4_only = ipv4_only;
        description.engine_labels = self.engine_labels(ipv4_only);
        true
    }

    /// What the node tells the managers of itself.
    pub fn description(&self, data_path: Vec<IpAddr>) -> NodeDescription {
        let machine = machine();
        let ipv4_only = !self.network.speaks_ipv6();
        let capacity = self.config.capacity;
        let pick = |configured: i64, whole: i64| if configured > 0 { configured } else { whole };
        let plugin = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        let uname = rustix::system::uname();
        NodeDescription {
            hostname: self.config.node_name.clone(),
            platform: Platform { architecture: uname.machine().to_string_lossy().into_owned(), os: "linux".into() },
            nano_cpus: pick(capacity.nano_cpus, machine.cpus.saturating_mul(1_000_000_000)),
            memory: pick(capacity.memory, machine.memory),
            generic: self.config.generic.counts.clone(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            engine_labels: self.engine_labels(ipv4_only),
            plugins: vec![
                plugin("Log", "json-file"),
                plugin("Network", "bridge"),
                plugin("Network", "host"),
                plugin("Network", "null"),
                plugin("Network", "overlay"),
                plugin("Volume", "local"),
            ],
            data_path,
            named_generic: self.config.generic.named.clone(),
            trust: None,
            wireguard: None,
            ipv4_only,
            volumes: self.pinned_volumes(),
        }
    }

    /// Volumes whose tasks must run here.
    pub fn pinned_volumes(&self) -> Vec<String> {
        let all = self.volumes.list().into_iter().filter(|volume| volume.labels.contains_key(PINNED));
        all.map(|volume| volume.name).take(MOST_PINNED).collect()
    }

    /// Runs tasks of the cluster on this node.
    pub fn executor(&self, node: NodeId, description: NodeDescription, files: Files) -> Arc<dyn Executor> {
        Arc::new(NodeExecutor::new(NodeParts {
            node,
            description,
            files,
            root: self.config.root.clone(),
            images: self.images.clone(),
            containers: self.containers.clone(),
            volumes: self.volumes.clone(),
            sandboxes: self.network.clone(),
            parallel_starts: PARALLEL_STARTS,
            named_resources: self.config.generic.named.clone(),
        }))
    }

    /// Answers managers that ask for this node's containers.
    pub fn streams(&self) -> Arc<dyn StreamService> {
        let router = docker::local_router(self.engine.clone(), env!("CARGO_PKG_VERSION"), Arc::new(now));
        Arc::new(Http(router))
    }
}

/// Size of the machine.
struct Machine {
    cpus: i64,
    memory: i64,
}

fn machine() -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1));
    let info = rustix::system::sysinfo();
    let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
    Machine { cpus, memory: i64::try_from(bytes).unwrap_or(i64::MAX) }
}

/// What `docker info` shows of the node.
fn facts(config: &Config) -> NodeFacts {
    let machine = machine();
    NodeFacts {
        id: config.node_name.clone(),
        name: config.node_name.clone(),
        root: config.root.clone(),
        labels: config.labels.iter().cloned().collect(),
        insecure_registries: config.insecure_registries.clone(),
        cpus: u64::try_from(machine.cpus).unwrap_or(1),
        memory: u64::try_from(machine.memory).unwrap_or(0),
        allow_privileged: true,
        warnings: Vec::new(),
    }
}
