//! A container that is there joins and leaves networks, or gets another name on them.
//!
//! What it is connected to is part of its configuration, so a restart of it or of the daemon finds it. While it runs, its
//! sandbox is given the same; whatever stays is not touched.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use skep_api::ports::EngineError;
use skep_proto::model::engine::{Container, ContainerConfig, LocalNetwork, NetworkEndpoint, NetworkMode};
use skep_proto::model::{ContainerId, Network, NetworkId};

use super::cluster::{Place, is_meant, wish};
use super::connect::{self, BRIDGE, HOST, NONE, Plan, is_live, sandbox_id};
use super::etc;
use super::sandboxes::{LinkTo, Sandbox};
use super::{NodeEngine, errors};
use crate::chain;

/// Docker's words (moby runconfig/errors.go).
const SHARED: &str =
    "container sharing network namespace with another container or host cannot be connected to any other network";
const NODES_OWN: &str = "container cannot be disconnected from host network or connected to host network";
const PRIVATE: &str =
    "container cannot be connected to multiple networks with one of the networks in private (none) mode";
const ALIASES: &str = "network-scoped alias is supported only for containers in user defined networks";

/// A network by what a client called it.
enum Target {
    Local(LocalNetwork),
    Cluster(Network),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Local(network) => &network.name,
            Self::Cluster(network) => &network.spec.annotations.name,
        }
    }

    fn is_named_by(&self, endpoint: &NetworkEndpoint) -> bool {
        let by = |name: &str, id: &str| endpoint.network == name || id.starts_with(&endpoint.network);
        !endpoint.network.is_empty()
            && match self {
                Self::Local(network) => by(&network.name, &network.id),
                Self::Cluster(network) => by(&network.spec.annotations.name, &network.id.to_string()),
            }
    }
}

/// The networks of a container that has its own sandbox.
///
/// # Errors
/// Docker's words for one that has not, or that a task owns.
fn own_networks(config: &ContainerConfig) -> Result<Vec<NetworkEndpoint>, EngineError> {
    if let Some(owner) = &config.task {
        return Err(EngineError::Conflict(format!(
            "container {} belongs to task {}: its networks are its service's; use docker service update --network-add or \
             --network-rm",
            config.name, owner.task
        )));
    }
    let invalid = |text: &str| Err(EngineError::Invalid(text.to_owned()));
    match &config.network {
        NetworkMode::Bridge => Ok(vec![NetworkEndpoint { network: BRIDGE.to_owned(), ..NetworkEndpoint::default() }]),
        NetworkMode::Host => invalid(NODES_OWN),
        NetworkMode::None => invalid(PRIVATE),
        NetworkMode::Container(_) | NetworkMode::Sandbox(_) => invalid(SHARED),
        NetworkMode::Networks(endpoints) => match &endpoints[..] {
            [only] if only.network == HOST => invalid(NODES_OWN),
            [only] if only.network == NONE => invalid(PRIVATE),
            all => Ok(all.to_vec()),
        },
    }
}

/// Whether a network may be joined, and with what was asked for.
fn check_target(target: &Target, endpoint: &NetworkEndpoint) -> Result<(), EngineError> {
    let invalid = |text: &str| Err(EngineError::Invalid(text.to_owned()));
    match target {
        Target::Local(network) if network.name == HOST => invalid(NODES_OWN),
        Target::Local(network) if network.name == NONE => invalid(PRIVATE),
        Target::Local(network) if network.name == BRIDGE && !endpoint.aliases.is_empty() => invalid(ALIASES),
        Target::Cluster(network) if !network.spec.attachable => {
            let name = &network.spec.annotations.name;
            Err(EngineError::Forbidden(format!(
                "Could not attach to network {name}: network {name} not manually attachable"
            )))
        }
        Target::Local(_) | Target::Cluster(_) => Ok(()),
    }
}

impl NodeEngine {
    async fn target(&self, reference: &str, local: &[LocalNetwork]) -> Result<Target, EngineError> {
        if let Some(network) = connect::find(local, reference) {
            return Ok(Target::Local(network.clone()));
        }
        let found = self.inner.cluster.network(reference).await;
        let found = found.map_err(|error| errors::internal(error.to_string(), error))?;
        found.map(Target::Cluster).ok_or_else(|| EngineError::NoSuchNetwork(reference.to_owned()))
    }

    pub(super) async fn connect(&self, id: ContainerId, wanted: NetworkEndpoint) -> Result<(), EngineError> {
        let _turn = self.turn(id).await;
        let container = self.inner.containers.inspect(id).map_err(errors::container)?;
        let local = self.list_networks().await?;
        let target = self.target(&wanted.network, &local).await?;
        let mut endpoints = own_networks(&container.config)?;
        check_target(&target, &wanted)?;
        let live = is_live(container.state.status);
        let known = endpoints.iter().position(|endpoint| target.is_named_by(endpoint));
        if known.is_some() && live {
            let (name, network) = (&container.config.name, target.name());
            let text = format!("endpoint with name {name} already exists in network {network}");
            return Err(EngineError::Forbidden(text));
        }
        let endpoint = NetworkEndpoint { network: target.name().to_owned(), ..wanted };
        match known {
            Some(at) => endpoints[at] = endpoint.clone(),
            None => endpoints.push(endpoint.clone()),
        }
        let config = ContainerConfig { network: NetworkMode::Networks(endpoints), ..container.config.clone() };
        if !live {
            // What cannot be together is refused now and not at the start.
            let places: Vec<Place> = self.check_networks(&config, &local).await?;
            connect::plan(&config, "", &local, &places)?;
            return self.inner.containers.set_network(id, config.network).map_err(errors::container);
        }
        let _attaching = self.inner.attaching.read().await;
        let joined = match &target {
            Target::Local(_) => None,
            Target::Cluster(network) => {
                Some((network.id, self.take_place(&config, &container, &endpoint, network.id).await?))
            }
        };
        let reshaped = self.reshape(&config, &container, &local, joined.as_ref().map(|(_, place)| place)).await;
        if let (Err(_), Some((network, _))) = (&reshaped, &joined) {
            self.give_back(id, *network).await;
        }
        reshaped?;
        self.inner.containers.set_network(id, config.network).map_err(errors::container)?;
        self.tell_of_target("connect", id, &target);
        Ok(())
    }

    pub(super) async fn disconnect(&self, id: ContainerId, reference: &str) -> Result<(), EngineError> {
        let _turn = self.turn(id).await;
        let container = self.inner.containers.inspect(id).map_err(errors::container)?;
        let local = self.list_networks().await?;
        let mut endpoints = own_networks(&container.config)?;
        let live = is_live(container.state.status);
        // By its own name first: managers that do not answer must not keep a container on a network.
        let named = endpoints.iter().position(|endpoint| endpoint.network == reference);
        let (at, target) = match named.filter(|_| connect::find(&local, reference).is_none()) {
            Some(at) => (Some(at), None),
            None => {
                let target = self.target(reference, &local).await?;
                (endpoints.iter().position(|endpoint| target.is_named_by(endpoint)), Some(target))
            }
        };
        let name = target.as_ref().map_or(reference, Target::name).to_owned();
        let not_connected = || EngineError::Conflict(format!("container {id} is not connected to network {name}"));
        let gone = endpoints.remove(at.ok_or_else(not_connected)?);
        let config = ContainerConfig { network: NetworkMode::Networks(endpoints), ..container.config.clone() };
        if !live {
            return self.inner.containers.set_network(id, config.network).map_err(errors::container);
        }
        let _attaching = self.inner.attaching.read().await;
        let sandbox = self.sandbox_of(&container).await?;
        let left = sandbox.links.iter().find_map(|link| match &link.to {
            LinkTo::Cluster { id, name } if is_meant(&gone, *id, name) => Some((*id, name.clone())),
            LinkTo::Cluster { .. } | LinkTo::Bridge(_) | LinkTo::Node => None,
        });
        self.reshape(&config, &container, &local, None).await?;
        self.inner.containers.set_network(id, config.network).map_err(errors::container)?;
        if let Some((network, name)) = &left {
            self.give_back(id, *network).await;
            self.tell_of_overlay("disconnect", id, &network.to_string(), name);
        } else if let Some(target) = &target {
            self.tell_of_target("disconnect", id, target);
        }
        Ok(())
    }

    /// Gives a running container's names on its networks to those who ask for them, after it was renamed.
    pub(super) async fn announce_name(&self, id: ContainerId) -> Result<(), EngineError> {
        let _turn = self.turn(id).await;
        let container = self.inner.containers.inspect(id).map_err(errors::container)?;
        if !is_live(container.state.status) || own_networks(&container.config).is_err() {
            return Ok(());
        }
        let _attaching = self.inner.attaching.read().await;
        let local = self.list_networks().await?;
        let sandbox = self.reshape(&container.config, &container, &local, None).await?;
        // Other nodes hear of it from the managers; those that do not answer now are told within a minute.
        if sandbox.links.iter().any(|link| matches!(link.to, LinkTo::Cluster { .. })) {
            self.inner.owes_places.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn sandbox_of(&self, container: &Container) -> Result<Sandbox, EngineError> {
        let sandboxes = self.inner.sandboxes.list().await.map_err(errors::sandbox)?;
        let id = sandbox_id(&container.config);
        let lost =
            || EngineError::Conflict(format!("the network of container {} is lost; restart it", container.config.name));
        sandboxes.into_iter().find(|sandbox| sandbox.id == id).ok_or_else(lost)
    }

    /// Brings the sandbox of a running container to what `config` says. Its places on networks of the cluster are those
    /// that it has, and `joined`.
    async fn reshape(
        &self,
        config: &ContainerConfig,
        container: &Container,
        local: &[LocalNetwork],
        joined: Option<&Place>,
    ) -> Result<Sandbox, EngineError> {
        let before = self.sandbox_of(container).await?;
        let places: Vec<Place> = places_of(config, &before).into_iter().chain(joined.cloned()).collect();
        let hostname = &container.process.hostname;
        let Plan::Sandbox(request) = connect::plan(config, hostname, local, &places)? else {
            return Err(EngineError::Invalid(SHARED.to_owned()));
        };
        let after = self.inner.sandboxes.reshape(request).await;
        let after = after.map_err(|error| errors::connecting(&config.name, error))?;
        if let Err(error) = rewrite_hosts(&container.etc.hosts, hostname, &before, &after).await {
            tracing::warn!(container.id = %config.id, %error, "a container's /etc/hosts still has its old addresses");
        }
        Ok(after)
    }

    async fn take_place(
        &self,
        config: &ContainerConfig,
        container: &Container,
        endpoint: &NetworkEndpoint,
        network: NetworkId,
    ) -> Result<Place, EngineError> {
        self.attached().insert(config.id);
        let wish = wish(config, &container.process.hostname, endpoint, network);
        let given = self.inner.cluster.attach(&wish).await;
        let addresses = given.map_err(|error| super::cluster::not_attached(&endpoint.network, error))?;
        Ok(Place { reference: endpoint.network.clone(), network, addresses })
    }

    async fn give_back(&self, id: ContainerId, network: NetworkId) {
        if let Err(error) = self.inner.cluster.detach(id, Some(network)).await {
            tracing::warn!(container.id = %id, error = %chain(&error),
                "an address on a network of the cluster could not be given back; tried again within a minute");
            self.inner.owes_places.store(true, Ordering::Relaxed);
        }
    }

    fn tell_of_target(&self, action: &str, id: ContainerId, target: &Target) {
        match target {
            Target::Local(network) => self.tell_of_connection(action, id, network),
            Target::Cluster(network) => {
                self.tell_of_overlay(action, id, &network.id.to_string(), &network.spec.annotations.name);
            }
        }
    }
}

/// Places that a sandbox has on networks of the cluster, by the names that the configuration gives them.
fn places_of(config: &ContainerConfig, sandbox: &Sandbox) -> Vec<Place> {
    let NetworkMode::Networks(endpoints) = &config.network else { return Vec::new() };
    let mut places = Vec::new();
    for link in &sandbox.links {
        let LinkTo::Cluster { id, name } = &link.to else { continue };
        if let Some(endpoint) = endpoints.iter().find(|endpoint| is_meant(endpoint, *id, name)) {
            let reference = endpoint.network.clone();
            places.push(Place { reference, network: *id, addresses: link.addresses.clone() });
        }
    }
    places
}

/// Takes the addresses that are gone out of `/etc/hosts` and adds new ones; what the container wrote there stays. The file
/// is written where it is: it is mounted in the container.
async fn rewrite_hosts(
    path: &std::path::Path,
    hostname: &str,
    before: &Sandbox,
    after: &Sandbox,
) -> std::io::Result<()> {
    let text = tokio::fs::read_to_string(path).await?;
    let changed = etc::move_hosts(&text, hostname, &addresses(before), &addresses(after));
    if changed == text {
        return Ok(());
    }
    tokio::fs::write(path, changed).await
}

fn addresses(sandbox: &Sandbox) -> Vec<IpAddr> {
    let own = sandbox.links.iter().filter(|link| link.to != LinkTo::Node);
    own.flat_map(|link| link.addresses.iter().map(ipnet::IpNet::addr)).collect()
}
