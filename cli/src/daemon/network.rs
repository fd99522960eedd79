//! The node's network, as tasks, plain containers and the agent see it.
//!
//! The network layer runs as long as the daemon; entering and leaving a cluster change its place.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use ipnet::IpNet;
use skep_agent::executor::node::sandbox::{Sandbox as TaskSandbox, SandboxError, SandboxRequest, Sandboxes};
use skep_agent::network::{Network, NetworkError as ViewError};
use skep_network::config::twin_net;
use skep_network::{
    BridgeAttachment, Config as NetworkConfig, HostPort, Names, NetworkError, NodeNetwork, OverlayAttachment, Place,
    Resolver, Sandbox, SandboxId, SandboxLink, SandboxSpec,
};
use skep_proto::model::service::{PortConfig, PublishMode};
use skep_proto::model::view::NetworkView;
use skep_proto::model::{NetworkId, NodeId, TaskId};

use super::config::Config;

/// UDP port of VXLAN in plain networks.
const VXLAN_PORT: u16 = 4789;

/// The network of this node.
pub struct ClusterNetwork {
    layer: NodeNetwork,
    /// Where addresses of links between nodes and tasks are from.
    infra: IpNet,
}

impl ClusterNetwork {
    /// Starts it for a node of which it is not known yet whether it is in a cluster: local bridges work, and what an earlier
    /// process was told goes on. `data_path` is where overlays would run.
    ///
    /// # Errors
    /// When the kernel refuses, or a setting cannot be.
    pub fn start(config: &Config, data_path: IpAddr, names: Arc<dyn Names>, netd: PathBuf) -> anyhow::Result<Self> {
        let settings = NetworkConfig {
            state_dir: config.root.join("network"),
            run_dir: config.run_dir.clone(),
            vxlan_port: VXLAN_PORT,
            wireguard_port: config.wireguard_port,
            prefix: "sk".into(),
            bridge_subnet: config.bridge_subnet,
            infra: config.infra_subnet,
            netd_exe: netd,
        };
        let place = Place { node: None, data_path: vec![data_path] };
        let layer = NodeNetwork::start(settings, place, names).context("starting the node's network")?;
        Ok(Self { layer, infra: config.infra_subnet })
    }

    /// Takes the node's place in a cluster.
    ///
    /// # Errors
    /// When the kernel refuses, or the data path cannot be.
    pub async fn enter_cluster(&self, node: NodeId, data_path: IpAddr) -> anyhow::Result<()> {
        self.layer.enter(node, vec![data_path]).await.context("taking the node's place in the cluster's network")
    }

    /// Forgets the cluster.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn leave_cluster(&self) -> anyhow::Result<()> {
        self.layer.leave().await.context("taking the node out of the cluster's network")
    }

    /// Addresses by which other nodes know this one: its data path's first. They come and go with the link's, so that this
    /// is asked from time to time; `data_path` stands for them while the kernel does not tell.
    pub async fn announced(&self, data_path: IpAddr) -> Vec<IpAddr> {
        let layer = self.layer.clone();
        let told = tokio::task::spawn_blocking(move || layer.announced()).await;
        match told {
            Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
            Ok(Err(error)) => {
                tracing::warn!(error = text(error), "cannot read the node's addresses");
                vec![data_path]
            }
            Ok(Ok(_)) | Err(_) => vec![data_path],
        }
    }

    /// Whether tasks of this node have the IPv6 addresses that they are given.
    pub fn speaks_ipv6(&self) -> bool {
        self.layer.speaks_ipv6()
    }

    /// What the managers told last.
    pub fn view(&self) -> Arc<NetworkView> {
        self.layer.view()
    }

    /// Subnets of the routing mesh.
    pub fn mesh_subnets(&self) -> Vec<IpNet> {
        let twin = if let IpNet::V4(net) = self.infra { Some(twin_net(net).into()) } else { None };
        [self.infra].into_iter().chain(twin).collect()
    }

    /// The network layer.
    pub fn layer(&self) -> &NodeNetwork {
        &self.layer
    }
}

#[async_trait]
impl Network for ClusterNetwork {
    async fn apply(&self, view: Arc<NetworkView>) -> Result<(), ViewError> {
        self.layer.apply(view).await.map_err(|error| ViewError(text(error)))
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
        self.layer.view().networks.get(&network).is_some_and(|n| n.internal)
    }
}

fn specification(request: &SandboxRequest) -> SandboxSpec {
    let overlays = request.attachments.iter().filter_map(|attachment| {
        let names = std::iter::once(request.name.clone()).chain(attachment.aliases.iter().cloned()).collect();
        OverlayAttachment::new(attachment.network, &attachment.addresses, names)
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

/// Addresses of a link. The IPv6 twin of another is for published ports alone: nobody is told of it.
fn addresses(link: &SandboxLink) -> impl Iterator<Item = IpAddr> {
    let shown = link.address6.filter(|_| !link.has_twin());
    [IpAddr::V4(link.address.addr())].into_iter().chain(shown.map(|net| IpAddr::V6(net.addr())))
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
        addresses: sandbox.links.iter().flat_map(addresses).collect(),
        mesh: sandbox.mesh,
        host_ports: sandbox.host_ports.iter().map(taken).collect(),
        resolv_conf: sandbox.resolv_conf.clone(),
    }
}
