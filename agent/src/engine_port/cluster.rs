//! Places of plain containers on networks of the cluster: asked of the managers at a start, given back at the end.
//!
//! What a lost message or an absent manager leaves behind is mended by telling the managers, from time to time, which
//! places this node's containers have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use skep_api::ports::EngineError;
use skep_proto::model::engine::{ContainerConfig, LocalNetwork, NetworkEndpoint, NetworkMode};
use skep_proto::model::{ContainerId, Network, NetworkId};

use super::connect::{self, is_live, names, sandbox_id};
use super::sandboxes::LinkTo;
use super::{NodeEngine, errors};
use crate::chain;

/// How long the end of a container waits for its places to be given back; it goes on behind.
const LEAVE: Duration = Duration::from_secs(2);

/// The engine's way to the managers.
pub type Cluster = Arc<dyn ClusterNetworks>;

/// The managers, as far as plain containers need them.
#[async_trait]
pub trait ClusterNetworks: Send + Sync + 'static {
    /// A network by id, name or unique prefix of an id; `None` when there is none, or no cluster.
    async fn network(&self, reference: &str) -> Result<Option<Network>, ClusterError>;

    /// Whether the managers said last that the operator removed the routing mesh.
    fn is_mesh_removed(&self) -> bool;

    /// Gives a container a place; repeating it gives the same one.
    async fn attach(&self, wish: &Wish) -> Result<Vec<IpNet>, ClusterError>;

    /// Takes back all of a container's places, or the one on a network.
    async fn detach(&self, container: ContainerId, network: Option<NetworkId>) -> Result<(), ClusterError>;

    /// Tells all places that the node's containers have, with their addresses and ids of networks.
    async fn keep(&self, places: &[Wish]) -> Result<(), ClusterError>;
}

/// A container that wants a place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The network's id or name.
    pub network: String,
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// The IPv4 address asked for; `None` for any.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 address asked for; `None` for any.
    pub address6: Option<Ipv6Addr>,
}

impl Wish {
    /// Asks for the first address of each family.
    fn at(self, addresses: &[IpAddr]) -> Self {
        let v4 = |address: &IpAddr| if let IpAddr::V4(v4) = address { Some(*v4) } else { None };
        let v6 = |address: &IpAddr| if let IpAddr::V6(v6) = address { Some(*v6) } else { None };
        Self { address: addresses.iter().find_map(v4), address6: addresses.iter().find_map(v6), ..self }
    }
}

/// Why the managers gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// They refused: gRPC's name of the reason, and their words.
    #[error("rpc error: code = {code} desc = {text}")]
    Refused {
        /// `PermissionDenied`, `NotFound`, …
        code: String,
        /// For people.
        text: String,
    },
    /// None answered in time.
    #[error("no manager of the cluster answers: {0}")]
    Unreachable(String),
}

/// Where a container stands on a network that it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As the container named it.
    pub reference: String,
    /// The network.
    pub network: NetworkId,
    /// Its addresses there; none while it is not started.
    pub addresses: Vec<IpNet>,
}

/// Those of the container's networks that are not this node's.
fn elsewhere<'a>(config: &'a ContainerConfig, local: &[LocalNetwork]) -> Vec<&'a NetworkEndpoint> {
    let NetworkMode::Networks(endpoints) = &config.network else { return Vec::new() };
    endpoints.iter().filter(|endpoint| connect::find(local, &endpoint.network).is_none()).collect()
}

pub(super) fn not_attached(network: &str, error: ClusterError) -> EngineError {
    match error {
        ClusterError::Refused { code, .. } if code == "NotFound" => EngineError::NoSuchNetwork(network.to_owned()),
        // Docker's words.
        ClusterError::Refused { ref code, .. } if code == "PermissionDenied" => {
            EngineError::Forbidden(format!("Could not attach to network {network}: {error}"))
        }
        ClusterError::Refused { .. } => {
            EngineError::Conflict(format!("Could not attach to network {network}: {error}"))
        }
        ClusterError::Unreachable(_) => {
            errors::internal(format!("Could not attach to network {network}: {error}"), error)
        }
    }
}

impl NodeEngine {
    /// The networks of the cluster that a container to be made names: they exist, and it may join them.
    pub(super) async fn check_networks(
        &self,
        config: &ContainerConfig,
        local: &[LocalNetwork],
    ) -> Result<Vec<Place>, EngineError> {
        let mut places = Vec::new();
        for endpoint in elsewhere(config, local) {
            let reference = &endpoint.network;
            let found = self.inner.cluster.network(reference).await.map_err(|e| not_attached(reference, e))?;
            let network = found.ok_or_else(|| EngineError::NoSuchNetwork(reference.clone()))?;
            if !network.spec.attachable {
                let text = format!("network {reference} not manually attachable");
                let refused = ClusterError::Refused { code: "PermissionDenied".into(), text };
                return Err(not_attached(reference, refused));
            }
            places.push(Place { reference: reference.clone(), network: network.id, addresses: Vec::new() });
        }
        Ok(places)
    }

    /// Gets places for a container that is being started. The caller holds `attaching` until its sandbox is there.
    pub(super) async fn take_places(
        &self,
        config: &ContainerConfig,
        hostname: &str,
        local: &[LocalNetwork],
    ) -> Result<Vec<Place>, EngineError> {
        let mut places = Vec::new();
        for endpoint in elsewhere(config, local) {
            let reference = &endpoint.network;
            let found = self.inner.cluster.network(reference).await.map_err(|e| not_attached(reference, e))?;
            let network = found.ok_or_else(|| EngineError::NoSuchNetwork(reference.clone()))?.id;
            self.attached().insert(config.id);
            let wish = wish(config, hostname, endpoint, network);
            let addresses = self.inner.cluster.attach(&wish).await.map_err(|e| not_attached(reference, e))?;
            places.push(Place { reference: reference.clone(), network, addresses });
        }
        Ok(places)
    }

    /// Gives back the places of a container that has ended.
    pub(super) async fn leave_places(&self, id: ContainerId) {
        if !self.attached().remove(&id) {
            return;
        }
        let this = self.clone();
        let leaving = tokio::spawn(async move {
            let _turn = this.turn(id).await;
            let _attaching = this.inner.attaching.read().await;
            // It may have been started again.
            if this.inner.containers.inspect(id).is_ok_and(|container| is_live(container.state.status)) {
                this.attached().insert(id);
                return;
            }
            if let Err(error) = this.inner.cluster.detach(id, None).await {
                tracing::warn!(container.id = %id, error = %chain(&error),
                    "an address on a network of the cluster could not be given back; tried again within a minute");
                this.inner.owes_places.store(true, Ordering::Relaxed);
            }
        });
        // A client that removes the network next expects it to be free; managers that do not answer hold up nobody.
        if let Ok(Err(error)) = tokio::time::timeout(LEAVE, leaving).await {
            tracing::error!(%error, "giving back an address");
        }
    }

    /// Tells the managers which places there are.
    pub(super) async fn keep_places(&self) {
        let _alone = self.inner.attaching.write().await;
        let Ok(sandboxes) = self.inner.sandboxes.list().await else { return };
        let mut places = Vec::new();
        for container in self.inner.containers.list(false).iter().filter(|c| c.config.task.is_none()) {
            let Some(sandbox) = sandboxes.iter().find(|s| s.id == sandbox_id(&container.config)) else { continue };
            for link in &sandbox.links {
                let LinkTo::Cluster { id, name } = &link.to else { continue };
                let endpoint = named(&container.config, *id, name);
                let addresses: Vec<IpAddr> = link.addresses.iter().map(IpNet::addr).collect();
                let known = wish(&container.config, &container.process.hostname, &endpoint, *id);
                places.push(known.at(&addresses));
                self.attached().insert(container.config.id);
            }
        }
        self.inner.owes_places.store(false, Ordering::Relaxed);
        if let Err(error) = self.inner.cluster.keep(&places).await {
            self.inner.owes_places.store(true, Ordering::Relaxed);
            match &error {
                // The usual case after a start: no session yet.
                ClusterError::Unreachable(_) => {
                    tracing::debug!(error = %chain(&error), "places on networks are not told yet")
                }
                ClusterError::Refused { .. } => tracing::error!(error = %chain(&error),
                    "a container's address on a network of the cluster is another's now; restart the container"),
            }
        }
    }

    /// Networks of the cluster that this node uses, as the managers describe them.
    pub(super) async fn list_cluster_networks(&self) -> Result<Vec<Network>, EngineError> {
        let mut found = Vec::new();
        for id in self.inner.sandboxes.overlays() {
            let network = self.inner.cluster.network(&id.to_string()).await;
            found.extend(network.map_err(|error| errors::internal(error.to_string(), error))?);
        }
        Ok(found)
    }
}

/// The wish that a place was given for.
fn named(config: &ContainerConfig, id: NetworkId, name: &str) -> NetworkEndpoint {
    let NetworkMode::Networks(endpoints) = &config.network else { return NetworkEndpoint::default() };
    endpoints.iter().find(|endpoint| is_meant(endpoint, id, name)).cloned().unwrap_or_default()
}

/// Whether an endpoint means the network of that id and name.
pub(super) fn is_meant(endpoint: &NetworkEndpoint, id: NetworkId, name: &str) -> bool {
    let by_id = || !endpoint.network.is_empty() && id.to_string().starts_with(&endpoint.network);
    endpoint.network == name || by_id()
}

pub(super) fn wish(config: &ContainerConfig, hostname: &str, endpoint: &NetworkEndpoint, network: NetworkId) -> Wish {
    let further = names(config, hostname).into_iter().filter(|name| *name != config.name);
    Wish {
        network: network.to_string(),
        container: config.id,
        name: config.name.clone(),
        aliases: further.chain(endpoint.aliases.iter().cloned()).collect(),
        address: None,
        address6: None,
    }
    .at(&endpoint.addresses)
}

/// A node in no cluster.
pub struct NoCluster;

#[async_trait]
impl ClusterNetworks for NoCluster {
    async fn network(&self, _: &str) -> Result<Option<Network>, ClusterError> {
        Ok(None)
    }

    fn is_mesh_removed(&self) -> bool {
        false
    }

    async fn attach(&self, wish: &Wish) -> Result<Vec<IpNet>, ClusterError> {
        Err(ClusterError::Refused { code: "NotFound".into(), text: format!("network {} not found", wish.network) })
    }

    async fn detach(&self, _: ContainerId, _: Option<NetworkId>) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn keep(&self, _: &[Wish]) -> Result<(), ClusterError> {
        Ok(())
    }
}
