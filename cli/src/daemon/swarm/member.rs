//! What runs while this node is in a cluster: the agent, on managers the manager, and the renewal of the certificate.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::StdRng;
use skep_agent::agent::{Agent, AgentConfig, AgentDeps};
use skep_agent::executor::files::Files;
use skep_agent::session::SessionStatus;
use skep_agent::session::grpc::Grpc;
use skep_api::ports::control::{ControlError, LocalState, SwarmStatus};
use skep_identity::{Clock, Connector, Credentials, Disk, LiveIdentity, Renewer, Revoked, TcpDialer};
use skep_manager::raft::keys::UnlockKey;
use skep_manager::{Birth, Manager};
use skep_proto::model::{NodeDescription, NodeId, NodeRole};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::READY;
use super::saved::Saved;
use super::seat::Seat;
use crate::daemon::config::Config;
use crate::daemon::encryption;
use crate::daemon::node::NodeServices;
use crate::daemon::places::Way;

/// Time between two looks at the node's volumes.
const VOLUMES_LOOK: Duration = Duration::from_secs(1);
/// The same, at its addresses.
const ADDRESSES_LOOK: Duration = Duration::from_secs(3);

/// What a member starts from.
pub struct Start {
    /// Addresses, and the number in the Raft group where it has one.
    pub saved: Saved,
    /// Certificate and key.
    pub credentials: Credentials,
    /// The records of a new cluster.
    pub birth: Option<Birth>,
    /// The node enters the cluster now: as a manager it is there only once the others have taken it in.
    pub joins: bool,
    /// The unlock key that the operator gave.
    pub unlock: Option<UnlockKey>,
}

/// This node in a cluster.
pub struct Member {
    node: NodeId,
    advertise: SocketAddr,
    seat: Arc<Seat>,
    agent: std::sync::Mutex<Option<Agent>>,
    session: watch::Receiver<SessionStatus>,
    stop: CancellationToken,
    parts: std::sync::Mutex<JoinSet<()>>,
}

impl Member {
    /// Starts the parts, and remembers the cluster once they run.
    pub async fn start(
        config: &Config,
        services: &Arc<NodeServices>,
        disk: Disk,
        clock: Arc<dyn Clock>,
        start: Start,
    ) -> anyhow::Result<Self> {
        let Start { saved, credentials, birth, joins, unlock } = start;
        let identity = credentials.identity;
        let live = LiveIdentity::new(credentials, Revoked::default(), Arc::clone(&clock));
        let connector = Connector::new(live, Arc::new(TcpDialer));
        let seat = Arc::new(Seat::new(&config.root, connector.clone(), disk.clone(), Arc::clone(&clock), saved));
        seat.resume(birth, unlock).await?;
        if joins && identity.role == NodeRole::Manager {
            seat.take(&seat.saved().managers).await?;
            let manager = seat.manager().context("the manager has started")?;
            manager.wait_until_ready(READY).await.context("the cluster did not take this manager in")?;
        }
        let saved = seat.saved();
        services.network.enter_cluster(identity.node, saved.data_path).await?;
        saved.save(&config.root)?;
        let stop = CancellationToken::new();
        let told = NodeDescription {
            trust: Some(connector.live().current().trust()),
            wireguard: encryption::announced(services.network.layer()),
            ..services.description(services.network.announced(saved.data_path).await)
        };
        let (describe, description) = watch::channel(told);
        let agent = start_agent(config, services, &connector, &saved, description, stop.child_token())?;
        let session = agent.status();
        services.places.set(Way::Through {
            connector: connector.clone(),
            seeds: seeds(&saved),
            session: session.clone(),
        });
        let mut parts = JoinSet::new();
        parts.spawn(tell_trust(connector.live().clone(), describe.clone(), stop.clone()));
        let (owner, live) = (Arc::clone(services), connector.live().clone());
        parts.spawn(encryption::keep(owner, live, session.clone(), describe.clone(), stop.clone()));
        parts.spawn(tell_volumes(Arc::clone(services), describe.clone(), stop.clone()));
        parts.spawn(tell_addresses(Arc::clone(services), saved.data_path, describe, stop.clone()));
        parts.spawn(renew(connector, disk, session.clone(), stop.clone()));
        parts.spawn(Arc::clone(&seat).keep(session.clone()));
        Ok(Self {
            node: identity.node,
            advertise: saved.advertise,
            seat,
            agent: std::sync::Mutex::new(Some(agent)),
            session,
            stop,
            parts: std::sync::Mutex::new(parts),
        })
    }

    /// The manager, while this node is one.
    pub fn manager(&self) -> Option<Arc<Manager>> {
        self.seat.manager()
    }

    /// What it remembers of its cluster.
    pub fn saved(&self) -> Saved {
        self.seat.saved()
    }

    /// Notes on which interfaces the node's addresses are.
    pub fn note_links(&self, noted: &Saved) -> anyhow::Result<()> {
        self.seat.remember(|saved| {
            saved.advertise_link.clone_from(&noted.advertise_link);
            saved.data_path_link.clone_from(&noted.data_path_link);
        })
    }

    /// What `docker info` shows.
    pub fn status(&self) -> SwarmStatus {
        let session = self.session.borrow();
        let address: IpAddr = self.advertise.ip();
        let manager = self.manager();
        let managers = match &manager {
            Some(manager) => manager.managers(),
            None => session.managers.iter().map(|m| (m.node, m.address)).collect(),
        };
        SwarmStatus {
            state: LocalState::Active,
            node: Some(self.node),
            address: Some(address),
            is_manager: manager.is_some(),
            error: if session.manager.is_some() { String::new() } else { session.error.clone() },
            managers,
            counts: manager.as_ref().and_then(|manager| manager.counts()),
        }
    }

    /// Whether the node may leave. A manager leaves the Raft group here; with `force` it goes even where the others cannot
    /// go on without it, or do not answer.
    ///
    /// # Errors
    /// Without `force`, for every manager.
    pub async fn may_leave(&self, force: bool) -> Result<(), ControlError> {
        let Some(manager) = self.manager() else { return Ok(()) };
        if !force {
            let statuses = manager.membership().statuses().await;
            let reachable = statuses.values().filter(|m| m.reachable).count();
            return Err(ControlError::FailedPrecondition(refusal_to_leave(reachable, statuses.len())));
        }
        if manager.managers().len() > 1
            && let Err(error) = manager.membership().remove_manager(self.node).await
        {
            tracing::warn!(%error, "this manager leaves, and the others still count on it");
        }
        Ok(())
    }

    /// Leaves: tasks end, managers are told.
    pub async fn leave(&self, patience: Duration) {
        let agent = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(agent) = agent {
            agent.leave(patience).await;
        }
        self.stop().await;
    }

    /// Ends the parts; the node stays in the cluster, its containers go on.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.seat.end();
        let agent = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(agent) = agent {
            agent.stopped().await;
        }
        let mut parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        while parts.join_next().await.is_some() {}
        self.seat.stop().await;
    }
}

/// dockerd's words for a manager that wants to leave (daemon/cluster, `Leave`).
fn refusal_to_leave(reachable: usize, managers: usize) -> String {
    let mut text = "You are attempting to leave the swarm on a node that is participating as a manager. ".to_owned();
    let left = reachable.saturating_sub(1);
    if managers <= 1 {
        text +=
            "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ";
        return text;
    }
    if left <= managers / 2 {
        text += &format!(
            "Removing this node leaves {left} managers out of {managers}. Without a Raft quorum your swarm will be inaccessible. "
        );
    }
    text += "The only way to restore a swarm that has lost consensus is to reinitialize it with \
             `--force-new-cluster`. Use `--force` to suppress this message.";
    text
}

/// Managers to begin with: the node's own, then those that it knew when it joined.
fn seeds(saved: &Saved) -> Vec<SocketAddr> {
    let own = saved.raft_id.is_some().then_some(saved.advertise);
    own.into_iter().chain(saved.managers.iter().copied()).collect()
}

fn start_agent(
    config: &Config,
    services: &Arc<NodeServices>,
    connector: &Connector,
    saved: &Saved,
    description: watch::Receiver<NodeDescription>,
    stop: CancellationToken,
) -> anyhow::Result<Agent> {
    let node = connector.live().identity().node;
    let settings = AgentConfig { node, state: config.root.join("state").join("agent.redb"), managers: seeds(saved) };
    let facts = description.borrow().clone();
    let files = Files::default();
    let deps = AgentDeps {
        executor: services.executor(node, facts.clone(), files.clone()),
        network: services.network.clone(),
        transport: Arc::new(Grpc::new(Arc::new(connector.clone()))),
        streams: services.streams(),
        description,
        clock: Arc::clone(connector.live().clock()),
        rng: StdRng::from_os_rng(),
        files,
    };
    Ok(Agent::start(settings, deps, stop)?)
}

/// Tells the managers what this node's certificate rests on, each time it is renewed.
async fn tell_trust(live: LiveIdentity, describe: watch::Sender<NodeDescription>, stop: CancellationToken) {
    let mut credentials = live.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = credentials.changed() => if changed.is_err() { return },
        }
        let trust = credentials.borrow_and_update().trust();
        describe.send_modify(|description| description.trust = Some(trust));
    }
}

/// Tells the managers which volumes are here whose tasks must be, too. Volumes come and go by several ways, and their list
/// is in memory: looking is cheap.
async fn tell_volumes(services: Arc<NodeServices>, describe: watch::Sender<NodeDescription>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(VOLUMES_LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let volumes = services.pinned_volumes();
        describe.send_if_modified(|description| {
            let differs = description.volumes != volumes;
            if differs {
                description.volumes = volumes;
            }
            differs
        });
    }
}

/// Tells the managers by which addresses others may see this node as their client, and whether it has IPv6. Both may come
/// after the daemon has started.
async fn tell_addresses(
    services: Arc<NodeServices>,
    data_path: IpAddr,
    describe: watch::Sender<NodeDescription>,
    stop: CancellationToken,
) {
    let mut looks = tokio::time::interval(ADDRESSES_LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let addresses = services.network.announced(data_path).await;
        describe.send_if_modified(|description| {
            let differs = description.data_path != addresses;
            if differs {
                description.data_path = addresses;
            }
            services.tell_ipv6(description) || differs
        });
    }
}

/// Keeps the certificate fresh, and fetches another at once when a manager says that the role changed.
async fn renew(connector: Connector, disk: Disk, mut session: watch::Receiver<SessionStatus>, stop: CancellationToken) {
    let addresses = |status: &SessionStatus| status.managers.iter().map(|m| m.address).collect::<Vec<SocketAddr>>();
    let (managers, receiver) = watch::channel(addresses(&session.borrow()));
    let renewer = Renewer::new(connector, disk, receiver);
    let following = async {
        let mut asked = session.borrow().renew;
        while session.changed().await.is_ok() {
            let (list, renew) = {
                let status = session.borrow_and_update();
                (addresses(&status), status.renew)
            };
            managers.send_if_modified(|old| {
                let changed = *old != list;
                *old = list;
                changed
            });
            if renew.0 != asked.0 && renew.1.is_some_and(|role| matches!(role, NodeRole::Worker | NodeRole::Manager)) {
                renewer.renew_now();
            }
            asked = renew;
        }
    };
    tokio::select! {
        () = renewer.run(stop) => {}
        () = following => {}
    }
}
