//! The way from this node's engine to the managers, for places of plain containers on networks of the cluster.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use ipnet::IpNet;
use skep_agent::engine_port::cluster::{ClusterError, ClusterNetworks, Wish};
use skep_agent::session::SessionStatus;
use skep_identity::{Connector, Expect};
use skep_proto::model::{ContainerId, Network, NetworkId, NodeRole};
use skep_proto::wire::attach as wire;
use skep_proto::wire::attach::attachments_client::AttachmentsClient;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long all managers together may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks the managers of the cluster that this node is in, if any.
pub struct Places {
    way: ArcSwap<Way>,
}

/// How managers are reached.
pub enum Way {
    /// It is not known yet whether the node is in a cluster.
    Unknown,
    /// It is in none.
    None,
    /// By its certificate.
    Through {
        /// Makes the connections.
        connector: Connector,
        /// The node's own manager, and those that it knew when it joined.
        seeds: Vec<SocketAddr>,
        /// The managers that the agent knows now.
        session: watch::Receiver<SessionStatus>,
    },
}

impl Places {
    /// Of a node that has just started.
    pub fn new() -> Self {
        Self { way: ArcSwap::from_pointee(Way::Unknown) }
    }

    /// From now on the managers are reached like this.
    pub fn set(&self, way: Way) {
        self.way.store(Arc::new(way));
    }

    /// Asks one manager after the other until one answers. `Ok(None)`: the node is in no cluster.
    async fn ask<T, F>(&self, call: impl Fn(AttachmentsClient<Channel>) -> F) -> Result<Option<T>, ClusterError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let way = self.way.load_full();
        let (connector, seeds, session) = match &*way {
            Way::Unknown => return Err(ClusterError::Unreachable("the daemon has just started".into())),
            Way::None => return Ok(None),
            Way::Through { connector, seeds, session } => (connector, seeds, session.borrow().clone()),
        };
        let mut addresses: Vec<SocketAddr> = Vec::new();
        let known = session.managers.iter().map(|manager| manager.address);
        for address in session.manager.into_iter().chain(seeds.iter().copied()).chain(known) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let mut last = "none is known".to_owned();
        let asking = async {
            for address in addresses {
                let channel = connector.channel(address, Expect::Role(NodeRole::Manager));
                match call(AttachmentsClient::new(channel)).await {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(status) if is_absent(&status) => last = format!("{address}: {}", status.message()),
                    Err(status) => {
                        let (code, text) = (format!("{:?}", status.code()), status.message().to_owned());
                        return Err(ClusterError::Refused { code, text });
                    }
                }
            }
            Err(ClusterError::Unreachable(last.clone()))
        };
        let patience = || ClusterError::Unreachable(format!("none in {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(patience()))
    }
}

/// Another manager may do better.
fn is_absent(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

fn malformed(what: &str) -> ClusterError {
    ClusterError::Refused { code: "Internal".into(), text: format!("a manager answered without {what}") }
}

fn request(wish: &Wish) -> wire::AttachRequest {
    wire::AttachRequest {
        network: wish.network.clone(),
        container: wish.container.to_string(),
        name: wish.name.clone(),
        aliases: wish.aliases.clone(),
        address: wish.address.map(|address| address.to_string()),
        address6: wish.address6.map(|address| address.to_string()),
    }
}

#[async_trait]
impl ClusterNetworks for Places {
    async fn network(&self, reference: &str) -> Result<Option<Network>, ClusterError> {
        let asked = self.ask(|mut managers| async move {
            managers.network(wire::NetworkRequest { reference: reference.to_owned() }).await
        });
        match asked.await {
            Ok(None) => Ok(None),
            Ok(Some(answer)) => {
                let network = answer.into_inner().network.ok_or_else(|| malformed("a network"))?;
                Network::try_from(network).map(Some).map_err(|_| malformed("a network that this release knows"))
            }
            Err(ClusterError::Refused { code, .. }) if code == "NotFound" => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_mesh_removed(&self) -> bool {
        match &**self.way.load() {
            Way::Through { session, .. } => session.borrow().welcome.as_ref().is_some_and(|last| last.mesh_removed),
            Way::Unknown | Way::None => false,
        }
    }

    async fn attach(&self, wish: &Wish) -> Result<Vec<IpNet>, ClusterError> {
        let answer = self.ask(|mut managers| async move { managers.attach(request(wish)).await }).await?;
        let missing = || ClusterError::Refused { code: "NotFound".into(), text: "the node is in no cluster".into() };
        let addresses = answer.ok_or_else(missing)?.into_inner().addresses;
        let addresses = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>();
        addresses.map_err(|_| malformed("an address"))
    }

    async fn detach(&self, container: ContainerId, network: Option<NetworkId>) -> Result<(), ClusterError> {
        let wanted = wire::DetachRequest {
            container: container.to_string(),
            network: network.map(|network| network.to_string()),
        };
        self.ask(|mut managers| {
            let wanted = wanted.clone();
            async move { managers.detach(wanted).await }
        })
        .await
        .map(drop)
    }

    async fn keep(&self, places: &[Wish]) -> Result<(), ClusterError> {
        self.ask(|mut managers| async move {
            managers.keep(wire::KeepRequest { places: places.iter().map(request).collect() }).await
        })
        .await
        .map(drop)
    }
}
