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
use skep_manager::{Birth, Config as ManagerConfig, Manager, membership};
use skep_proto::model::{NodeId, NodeRole};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::READY;
use super::saved::Saved;
use crate::daemon::config::Config;
use crate::daemon::node::NodeServices;
use crate::daemon::places::Way;

/// What a member starts from.
pub struct Start {
    /// Addresses, and the number in the Raft group; 0 where it must be asked for.
    pub saved: Saved,
    /// Certificate and key.
    pub credentials: Credentials,
    /// The records of a new cluster.
    pub birth: Option<Birth>,
}

/// This node in a cluster.
pub struct Member {
    node: NodeId,
    advertise: SocketAddr,
    manager: Option<Manager>,
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
        clock: Arc<dyn Clock>,
        start: Start,
    ) -> anyhow::Result<Self> {
        let Start { mut saved, credentials, birth } = start;
        let identity = credentials.identity;
        let live = LiveIdentity::new(credentials, Revoked::default(), Arc::clone(&clock));
        let connector = Connector::new(live, Arc::new(TcpDialer));
        let manager = match saved.raft_id {
            None => None,
            Some(number) => {
                let listener = TcpListener::bind(saved.listen).await;
                let listener = listener.with_context(|| format!("listening on {} for the cluster", saved.listen))?;
                let seed = *saved.managers.first().context("no manager is known")?;
                let raft_id = match number {
                    0 => membership::ask_to_join(&connector, seed, saved.advertise)
                        .await
                        .map_err(|s| anyhow::anyhow!("{}", s.message().to_owned()))?,
                    known => known,
                };
                saved.raft_id = Some(raft_id);
                let settings = ManagerConfig {
                    node: identity.node,
                    cluster: identity.cluster,
                    raft_id,
                    dir: config.root.join("raft"),
                    advertise: saved.advertise,
                };
                let manager = Manager::start(settings, listener, connector.clone(), Arc::clone(&clock), birth).await?;
                if number == 0 {
                    manager.wait_until_ready(READY).await.context("the cluster did not take this manager in")?;
                }
                Some(manager)
            }
        };
        services.network.enter_cluster(identity.node, saved.data_path).await?;
        saved.save(&config.root)?;
        let stop = CancellationToken::new();
        let agent = start_agent(config, services, &connector, clock, identity.node, &saved, stop.child_token())?;
        let session = agent.status();
        services.places.set(Way::Through {
            connector: connector.clone(),
            seeds: seeds(&saved),
            session: session.clone(),
        });
        let mut parts = JoinSet::new();
        parts.spawn(renew(connector, Disk::new(config.root.join("ca")), session.clone(), stop.clone()));
        Ok(Self {
            node: identity.node,
            advertise: saved.advertise,
            manager,
            agent: std::sync::Mutex::new(Some(agent)),
            session,
            stop,
            parts: std::sync::Mutex::new(parts),
        })
    }

    /// The manager, when this node is one.
    pub fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// What `docker info` shows.
    pub fn status(&self) -> SwarmStatus {
        let session = self.session.borrow();
        let address: IpAddr = self.advertise.ip();
        let managers = match &self.manager {
            Some(manager) => manager.managers(),
            None => session.managers.iter().map(|m| (m.node, m.address)).collect(),
        };
        SwarmStatus {
            state: LocalState::Active,
            node: Some(self.node),
            address: Some(address),
            is_manager: self.manager.is_some(),
            error: if session.manager.is_some() { String::new() } else { session.error.clone() },
            managers,
            counts: self.manager.as_ref().and_then(Manager::counts),
        }
    }

    /// Whether the node may leave. A manager leaves the Raft group here.
    ///
    /// # Errors
    /// Without `force`, for every manager; with it, where the others could not go on.
    pub async fn may_leave(&self, force: bool) -> Result<(), ControlError> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let managers = manager.managers().len();
        if !force {
            return Err(ControlError::FailedPrecondition(refusal_to_leave(managers)));
        }
        if managers <= 1 {
            return Ok(());
        }
        manager.membership().remove_manager(self.node).await
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
        let agent = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(agent) = agent {
            agent.stopped().await;
        }
        if let Some(manager) = &self.manager {
            manager.stop().await;
        }
        let mut parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        while parts.join_next().await.is_some() {}
    }
}

/// Docker's words for a manager that wants to leave.
fn refusal_to_leave(managers: usize) -> String {
    let left = managers.saturating_sub(1);
    let text = "You are attempting to leave the swarm on a node that is participating as a manager. ";
    match left {
        0 => format!(
            "{text}Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
        ),
        _ => format!(
            "{text}Removing this node leaves {left} managers out of {managers}. Without a Raft quorum your swarm will be \
             inaccessible. The only way to restore a swarm that has lost consensus is to reinitialize it with \
             `--force-new-cluster`. Use `--force` to suppress this message."
        ),
    }
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
    clock: Arc<dyn Clock>,
    node: NodeId,
    saved: &Saved,
    stop: CancellationToken,
) -> anyhow::Result<Agent> {
    let settings = AgentConfig { node, state: config.root.join("state").join("agent.redb"), managers: seeds(saved) };
    let facts = services.description(saved.data_path);
    let files = Files::default();
    let deps = AgentDeps {
        executor: services.executor(node, facts.clone(), files.clone()),
        network: services.network.clone(),
        transport: Arc::new(Grpc::new(Arc::new(connector.clone()))),
        streams: services.streams(),
        description: watch::channel(facts).1,
        clock,
        rng: StdRng::from_os_rng(),
        files,
    };
    Ok(Agent::start(settings, deps, stop)?)
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
