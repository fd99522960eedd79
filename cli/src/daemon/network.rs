//! The node's network, as tasks, plain containers and the agent see it.
//!
//! The network layer is started with the node's place in the cluster, so entering a cluster starts it anew: it finds what
//! the kernel holds and goes on with it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use async_trait::async_trait;
use rand::SeedableRng;
use skep_agent::executor::node::sandbox::{Sandbox as TaskSandbox, SandboxError, SandboxRequest, Sandboxes};
use skep_agent::network::{Network, NetworkError as ViewError};
use skep_network::{
    BridgeAttachment, Config as NetworkConfig, HostPort, Names, NetworkError, NodeNetwork, OverlayAttachment, Resolver,
    Sandbox, SandboxId, SandboxSpec,
};
use skep_proto::model::service::{PortConfig, PublishMode};
use skep_proto::model::view::NetworkView;
use skep_proto::model::{NetworkId, NodeId, TaskId};

use super::config::Config;

/// UDP port of VXLAN in plain networks.
const VXLAN_PORT: u16 = 4789;

/// The network of this node.
pub struct ClusterNetwork {
    settings: NetworkConfig,
    names: Arc<dyn Names>,
    current: RwLock<Current>,
}

struct Current {
    node: NodeId,
    network: NodeNetwork,
    view: Arc<NetworkView>,
}

impl ClusterNetwork {
    /// Starts it for a node in no cluster: local bridges work.
    ///
    /// # Errors
    /// When the kernel refuses, or a setting cannot be.
    pub fn start(config: &Config, data_path: IpAddr, names: Arc<dyn Names>, netd: PathBuf) -> anyhow::Result<Self> {
        let node = NodeId::random(&mut rand::rngs::StdRng::from_os_rng());
        let settings = NetworkConfig {
            state_dir: config.root.join("network"),
            run_dir: config.run_dir.clone(),
            node,
            data_path: vec![data_path],
            vxlan_port: VXLAN_PORT,
            prefix: "sk".into(),
            bridge_subnet: config.bridge_subnet,
            infra: config.infra_subnet,
            netd_exe: netd,
        };
        let network =
            NodeNetwork::start(settings.clone(), Arc::clone(&names)).context("starting the node's network")?;
        let current = Current { node, network, view: Arc::default() };
        Ok(Self { settings, names, current: RwLock::new(current) })
    }

    /// Takes the node's place in a cluster.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn enter_cluster(&self, node: NodeId, data_path: IpAddr) -> anyhow::Result<()> {
        let settings = NetworkConfig { node, data_path: vec![data_path], ..self.settings.clone() };
        let network = NodeNetwork::start(settings, Arc::clone(&self.names)).context("starting the node's network")?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { node, network, view: Arc::default() };
        Ok(())
    }

    /// What the managers told last.
    pub fn view(&self) -> Arc<NetworkView> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).view)
    }

    /// The network layer of now.
    pub fn layer(&self) -> NodeNetwork {
        self.current.read().unwrap_or_else(PoisonError::into_inner).network.clone()
    }
}

#[async_trait]
impl Network for ClusterNetwork {
    async fn apply(&self, view: Arc<NetworkView>) -> Result<(), ViewError> {
        let (node, network) = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.view = Arc::clone(&view);
            (current.node, current.network.clone())
        };
        // Until the managers have told of this node itself, there is nothing to be done.
        let Some(own) = view.peers.get(&node) else { return Ok(()) };
        network.apply(own.index, view.clone()).await.map_err(|error| ViewError(text(error)))
    }
}

fn text(error: NetworkError) -> String {
    crate::output::chain(&anyhow::Error::new(error))
}

fn task_error(error: NetworkError) -> SandboxError {
    let temporary = matches!(
        error,
        NetworkError::UnknownNetwork { .. }
            | NetworkError::NoIndex
            | NetworkError::Names { .. }
            | NetworkError::Kernel { .. }
    );
    SandboxError { message: text(error), temporary }
}

#[async_trait]
impl Sandboxes for ClusterNetwork {
    async fn ensure(&self, request: SandboxRequest) -> Result<TaskSandbox, SandboxError> {
        let spec = specification(&request);
        self.layer()
            .create_sandbox(spec)
            .await
            .map(|sandbox| task_sandbox(sandbox, &request.host_ports))
            .map_err(task_error)
    }

    async fn find(&self, task: TaskId) -> Result<Option<TaskSandbox>, SandboxError> {
        let found = self.layer().sandboxes().await.into_iter().find(|s| s.task == Some(task));
        Ok(found.map(|sandbox| task_sandbox(sandbox, &[])))
    }

    async fn remove(&self, task: TaskId) -> Result<(), SandboxError> {
        self.layer().delete_sandbox(&SandboxId::of_task(task)).await.map_err(task_error)
    }

    async fn tasks(&self) -> Result<Vec<TaskId>, SandboxError> {
        Ok(self.layer().sandboxes().await.into_iter().filter_map(|s| s.task).collect())
    }

    fn is_internal(&self, network: NetworkId) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.view.networks.get(&network).is_some_and(|n| n.internal)
    }
}

fn specification(request: &SandboxRequest) -> SandboxSpec {
    let overlays = request.attachments.iter().filter_map(|attachment| {
        let address = *attachment.addresses.first()?;
        let names = std::iter::once(request.name.clone()).chain(attachment.aliases.iter().cloned()).collect();
        Some(OverlayAttachment { network: attachment.network, address, names })
    });
    SandboxSpec {
        overlays: overlays.collect(),
        bridges: if request.bridge { vec![BridgeAttachment::default_bridge()] } else { Vec::new() },
        mesh: request.mesh,
        host_ports: request.host_ports.iter().map(HostPort::from).collect(),
        dns: Resolver::from(&request.dns),
        task: Some(request.task),
        ..SandboxSpec::new(SandboxId::of_task(request.task))
    }
}

fn task_sandbox(sandbox: Sandbox, asked: &[PortConfig]) -> TaskSandbox {
    let name_of = |port: &HostPort| {
        let same = |p: &&PortConfig| p.target == port.target && p.protocol == port.protocol;
        asked.iter().find(same).map(|p| p.name.clone()).unwrap_or_default()
    };
    let taken = |port: &HostPort| PortConfig {
        name: name_of(port),
        protocol: port.protocol,
        target: port.target,
        published: port.published,
        mode: PublishMode::Host,
    };
    TaskSandbox {
        netns: sandbox.netns.clone(),
        addresses: sandbox.links.iter().map(|link| IpAddr::V4(link.address.addr())).collect(),
        mesh: sandbox.mesh,
        host_ports: sandbox.host_ports.iter().map(taken).collect(),
        resolv_conf: sandbox.resolv_conf.clone(),
    }
}
