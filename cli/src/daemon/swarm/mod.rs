//! This node's life in a cluster: making one, joining one, going on after a restart, leaving.
//!
//! [`NodeSwarm`] is what faces ask. What runs while the node is in a cluster is a [`Member`]; there is at most one.

pub mod addresses;
mod follow;
mod member;
mod moves;
pub mod saved;
mod seat;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rand::SeedableRng;
use rustix::fs::RenameFlags;
use skep_api::ports::control::{ControlError, ControlPlane, InitRequest, JoinRequest, LocalState, Swarm, SwarmStatus};
use skep_identity::{
    Clock, Credentials, Disk, JoinError, JoinRequest as IdentityRequest, JoinToken, NodeKey, NodeSeal, SystemClock,
    TcpDialer,
};
use skep_manager::Birth;
use skep_manager::lock::{self, Guard};
use skep_manager::raft::keys::{KeyError, UnlockKey};
use skep_manager::{ca, control};
use skep_network::config::ENCRYPTED_PORT;
use skep_proto::model::node::ManagerMembership;
use skep_proto::model::{
    Annotations, Cluster, ClusterId, ClusterSpec, Meta, Node, NodeId, NodeRole, NodeSpec, NodeState,
};
use tokio::sync::Mutex;

use super::config::Config;
use super::node::NodeServices;
use super::places::Way;
use addresses::{Addresses, Asked};
use member::{Member, Start};
use moves::Look;
use saved::Saved;

/// How long a new manager may take until it votes.
const READY: Duration = Duration::from_secs(30);
/// How long tasks may take to stop when the node leaves.
const LEAVE: Duration = Duration::from_secs(15);
/// The format level of this release.
const FORMAT: u8 = 1;

/// This node, in a cluster or not.
pub struct NodeSwarm {
    config: Config,
    services: Arc<NodeServices>,
    clock: Arc<dyn Clock>,
    member: ArcSwapOption<Member>,
    /// Why the node, which is in a cluster, does not take part.
    error: ArcSwapOption<String>,
    /// The node is a manager that needs the unlock key.
    locked: AtomicBool,
    disk: Disk,
    /// Held while the node enters or leaves a cluster.
    changing: Mutex<()>,
}

impl NodeSwarm {
    /// A node that is in no cluster yet; [`Self::resume`] follows.
    pub fn new(config: Config, services: Arc<NodeServices>) -> Self {
        let disk = Disk::new(config.root.join("ca"));
        Self {
            config,
            services,
            clock: Arc::new(SystemClock),
            member: ArcSwapOption::empty(),
            error: ArcSwapOption::empty(),
            locked: AtomicBool::new(false),
            disk,
            changing: Mutex::new(()),
        }
    }

    /// Goes on in the cluster that the node was in. What keeps it from that is kept for `docker info`.
    pub async fn resume(&self) {
        let _held = self.changing.lock().await;
        if let Err(error) = self.try_resume(None).await {
            let text = crate::output::chain(&error);
            tracing::error!(error = text, "the node cannot go on in its cluster");
            self.error.store(Some(Arc::new(text)));
        }
    }

    async fn try_resume(&self, unlock: Option<UnlockKey>) -> anyhow::Result<()> {
        let Some(saved) = Saved::load(&self.config.root)? else {
            self.services.places.set(Way::None);
            return self.services.network.leave_cluster().await;
        };
        let locals = addresses::of_this_host().0;
        let saved = saved.moved(&self.config, &locals);
        // The host may have got another address while the daemon was down.
        let saved = match moves::look(&saved, &locals, &self.configured()) {
            Look::Moved(moved) => moved,
            Look::Same | Look::Noted(_) => saved,
        };
        self.resume_with(saved, unlock).await
    }

    /// Goes on with these addresses.
    async fn resume_with(&self, saved: Saved, unlock: Option<UnlockKey>) -> anyhow::Result<()> {
        match lock::look(&self.config.root.join("raft"), unlock.as_ref())? {
            Guard::Locked => {
                tracing::warn!("this manager is locked until `docker swarm unlock`; its containers go on");
                self.locked.store(true, Ordering::Release);
                return Ok(());
            }
            Guard::Open(seal) => self.disk.unlock(NodeSeal::new(seal)),
            Guard::Empty => {}
        }
        let Some(credentials) = self.disk.load()? else {
            anyhow::bail!("the node's certificate is missing: leave the cluster with --force and join again");
        };
        let start = Start { saved, credentials, birth: None, joins: false, unlock };
        self.enter(start).await
    }

    /// Ends what runs; the node stays in its cluster.
    pub async fn stop(&self) {
        let _held = self.changing.lock().await;
        if let Some(member) = self.member.swap(None) {
            member.stop().await;
        }
    }

    async fn enter(&self, start: Start) -> anyhow::Result<()> {
        let clock = Arc::clone(&self.clock);
        let member = Member::start(&self.config, &self.services, self.disk.clone(), clock, start).await?;
        self.member.store(Some(Arc::new(member)));
        self.error.store(None);
        self.locked.store(false, Ordering::Release);
        Ok(())
    }

    /// Removes all that belongs to a cluster. Containers of tasks are gone by now, or are removed by whoever comes next.
    fn forget(&self) -> anyhow::Result<()> {
        Saved::remove(&self.config.root)?;
        self.disk.remove()?;
        for path in [self.config.root.join("raft"), self.config.root.join("state").join("agent.redb")] {
            let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match gone {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn addresses(&self, listen: &str, advertise: &str, data_path: &str) -> Result<Addresses, ControlError> {
        let (locals, towards) = addresses::of_this_host();
        // Clients send 0.0.0.0:2377 when their user names nothing; the daemon's own settings are more exact.
        let is_silent = matches!(listen, "" | "0.0.0.0:2377" | "0.0.0.0");
        let own_listen = self.config.listen.to_string();
        let own = |asked: &str, own: Option<String>| {
            if asked.is_empty() { own.unwrap_or_default() } else { asked.to_owned() }
        };
        let advertise = own(advertise, self.config.advertise.map(|a| a.to_string()));
        let data_path = own(data_path, self.config.data_path.map(|a| a.to_string()));
        let listen = if is_silent { &own_listen } else { listen };
        addresses::resolve(Asked { listen, advertise: &advertise, data_path: &data_path }, &locals, towards)
    }

    fn is_in_cluster(&self) -> bool {
        self.member.load().is_some() || self.error.load().is_some() || self.is_locked()
    }

    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    async fn begin(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        control::check_settings(&request.spec)?;
        if [ENCRYPTED_PORT, self.config.wireguard_port].contains(&request.data_path_port) {
            return Err(ControlError::InvalidArgument(format!(
                "the data path port {} is taken by encrypted networks: choose another",
                request.data_path_port
            )));
        }
        let found = self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        self.forget().map_err(|error| internal("clearing what an earlier cluster left", error))?;
        let id = ClusterId::random(&mut rand::rng());
        let now = self.clock.now();
        let made = ca::bootstrap(id, now, request.spec.cert_expiry, &mut rand::rngs::StdRng::from_os_rng())
            .map_err(|error| internal("making the cluster's certificates", error))?;
        let node = made.credentials.identity.node;
        let birth =
            Birth { cluster: cluster_record(id, &request, &made), node: node_record(node, &request, found.advertise) };
        let saved = Saved::new(found.listen, found.advertise, found.data_path, Some(1), vec![found.advertise]);
        self.commit(Start { saved, credentials: made.credentials, birth: Some(birth), joins: false, unlock: None })
            .await?;
        Ok(node)
    }

    /// Goes on as the only manager with what this one has.
    async fn begin_anew(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        if self.is_locked() {
            return Err(ControlError::Locked);
        }
        let failed = |error: anyhow::Error| internal("making a new cluster of this manager's state", error);
        let saved = Saved::load(&self.config.root).map_err(failed)?.ok_or(ControlError::NotInSwarm)?;
        let raft_id = saved.raft_id.ok_or(ControlError::NotManager)?;
        let saved = if request.advertise_addr.is_empty() {
            Saved::new(saved.listen, saved.advertise, saved.data_path, Some(raft_id), vec![saved.advertise])
        } else {
            let found = self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
            Saved::new(found.listen, found.advertise, found.data_path, Some(raft_id), vec![found.advertise])
        };
        let member = self.member.swap(None);
        let unlock = member.as_ref().and_then(|member| member.manager()).and_then(|manager| manager.unlock_key());
        if let Some(member) = member {
            member.stop().await;
        }
        let made = self.rewrite(&saved, raft_id, unlock.clone()).await;
        // Also after a failure: then with what was there before.
        let resumed = self.try_resume(unlock).await;
        let node = made.map_err(failed)?;
        resumed.map_err(failed)?;
        Ok(node)
    }

    /// Puts a Raft folder whose group is this manager alone in the place of the one that is there.
    async fn rewrite(&self, saved: &Saved, raft_id: u64, unlock: Option<UnlockKey>) -> anyhow::Result<NodeId> {
        let credentials = self.disk.load()?.context("the node's certificate is missing")?;
        let (dir, new) = (self.config.root.join("raft"), self.config.root.join("raft.new"));
        seat::remove_dir(&new)?;
        let identity = credentials.identity;
        let config = skep_manager::Config {
            node: identity.node,
            cluster: identity.cluster,
            raft_id,
            dir: dir.clone(),
            advertise: saved.advertise,
            unlock,
        };
        let dropped = skep_manager::anew::begin_anew(&config, &new, self.clock.now()).await?;
        saved.save(&self.config.root)?;
        // In one step: a crash finds the old folder or the new one.
        rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &new, RenameFlags::EXCHANGE)
            .context("putting the new raft folder in the place of the old")?;
        seat::remove_dir(&new)?;
        for (node, name) in dropped {
            tracing::warn!(node.id = %node, node.name = name, "this manager was dropped from the cluster: have it leave with --force, and join again");
        }
        Ok(identity.node)
    }

    async fn admit(&self, request: JoinRequest) -> Result<(), ControlError> {
        let found = self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        let managers = addresses::managers(&request.remotes)?;
        let token: JoinToken =
            request.token.parse().map_err(|_| ControlError::JoinRefused("invalid join token".into()))?;
        self.forget().map_err(|error| internal("clearing what an earlier cluster left", error))?;
        let key = NodeKey::generate().map_err(|error| internal("making the node's key", error))?;
        let asked = IdentityRequest { token, availability: request.availability, key };
        let (credentials, manager) = self.ask(&managers, &asked).await?;
        let saved = Saved::new(found.listen, found.advertise, found.data_path, None, vec![manager]);
        self.commit(Start { saved, credentials, birth: None, joins: true, unlock: None }).await
    }

    /// Asks one manager after the other for a certificate.
    async fn ask(
        &self,
        managers: &[SocketAddr],
        request: &IdentityRequest,
    ) -> Result<(Credentials, SocketAddr), ControlError> {
        let mut last: Option<JoinError> = None;
        for manager in managers {
            match skep_identity::join(*manager, request, Arc::new(TcpDialer), Arc::clone(&self.clock)).await {
                Ok(credentials) => return Ok((credentials, *manager)),
                Err(error) => {
                    let go_on = error.is_temporary();
                    last = Some(error);
                    if !go_on {
                        break;
                    }
                }
            }
        }
        let text = last.map(|error| crate::output::chain(&anyhow::Error::new(error))).unwrap_or_default();
        Err(ControlError::JoinRefused(text))
    }

    /// Enters a cluster and remembers it. What was made is forgotten when that fails.
    async fn commit(&self, start: Start) -> Result<(), ControlError> {
        let entered = async {
            self.disk.save(&start.credentials)?;
            self.enter(start).await
        };
        if let Err(error) = entered.await {
            if let Err(second) = self.forget() {
                tracing::error!(
                    error = crate::output::chain(&second),
                    "what a failed attempt made could not be removed"
                );
            }
            return Err(ControlError::JoinRefused(crate::output::chain(&error)));
        }
        Ok(())
    }
}

fn internal(context: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ControlError {
    ControlError::Internal { context: context.to_owned(), source: error.into() }
}

fn cluster_record(id: ClusterId, request: &InitRequest, made: &ca::Bootstrap) -> Cluster {
    let default_pool = || vec!["10.0.0.0/8".parse().expect("a constant subnet")];
    let spec = ClusterSpec {
        annotations: Annotations { name: "default".into(), ..request.spec.annotations.clone() },
        ..request.spec.clone()
    };
    Cluster {
        id,
        meta: Meta::default(),
        spec,
        root_ca: made.root.clone(),
        join_tokens: made.tokens.clone(),
        address_pools: if request.address_pools.is_empty() { default_pool() } else { request.address_pools.clone() },
        subnet_size: if request.subnet_size == 0 { 24 } else { request.subnet_size },
        data_path_port: if request.data_path_port == 0 { 4789 } else { request.data_path_port },
        format: FORMAT,
        rotation: None,
        ingress_removed: false,
        unlock: request.spec.autolock.then(control::new_unlock_key),
    }
}

fn node_record(id: NodeId, request: &InitRequest, advertise: SocketAddr) -> Node {
    Node {
        id,
        meta: Meta::default(),
        spec: NodeSpec {
            annotations: Annotations::default(),
            role: NodeRole::Manager,
            availability: request.availability,
        },
        index: 0,
        description: skep_proto::model::NodeDescription::default(),
        state: NodeState::Unknown,
        message: String::new(),
        address: Some(advertise.ip()),
        manager: Some(ManagerMembership { raft_id: 1, address: advertise }),
    }
}

#[async_trait]
impl Swarm for NodeSwarm {
    fn status(&self) -> SwarmStatus {
        let inactive = |state, error: String| SwarmStatus {
            state,
            node: None,
            address: None,
            is_manager: false,
            error,
            managers: Vec::new(),
            counts: None,
        };
        match (&*self.member.load(), &*self.error.load()) {
            (Some(member), _) => member.status(),
            (None, _) if self.is_locked() => inactive(LocalState::Locked, String::new()),
            (None, Some(error)) => inactive(LocalState::Error, error.to_string()),
            (None, None) => inactive(LocalState::Inactive, String::new()),
        }
    }

    fn control(&self) -> Result<Arc<dyn ControlPlane>, ControlError> {
        if self.is_locked() {
            return Err(ControlError::Locked);
        }
        let member = self.member.load_full().ok_or(ControlError::NotInSwarm)?;
        let control = member.manager().map(|manager| manager.control()).ok_or(ControlError::NotManager)?;
        Ok(control)
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        let _held = self.changing.lock().await;
        match (self.is_in_cluster(), request.force_new_cluster) {
            (false, _) => self.begin(request).await,
            (true, true) => self.begin_anew(request).await,
            (true, false) => Err(ControlError::AlreadyInSwarm),
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<(), ControlError> {
        let _held = self.changing.lock().await;
        if self.is_in_cluster() {
            return Err(ControlError::AlreadyInSwarm);
        }
        self.admit(request).await
    }

    async fn unlock(&self, key: &str) -> Result<(), ControlError> {
        let _held = self.changing.lock().await;
        if !self.is_locked() {
            return Err(ControlError::NotLocked);
        }
        let key: UnlockKey = key.parse().map_err(|_| ControlError::WrongUnlockKey)?;
        self.try_resume(Some(key)).await.map_err(|error| match error.downcast_ref() {
            Some(KeyError::WrongKey) => ControlError::WrongUnlockKey,
            _ => ControlError::Internal { context: crate::output::chain(&error), source: error.into() },
        })
    }

    async fn leave(&self, force: bool) -> Result<(), ControlError> {
        let _held = self.changing.lock().await;
        if !self.is_in_cluster() {
            return Err(ControlError::NotInSwarm);
        }
        if let Some(member) = self.member.load_full() {
            member.may_leave(force).await?;
            self.member.store(None);
            member.leave(LEAVE).await;
        } else if self.is_locked() && !force {
            return Err(ControlError::FailedPrecondition(
                "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.".into(),
            ));
        } else if !force {
            return Err(ControlError::FailedPrecondition(
                "this node cannot take part in its cluster; use --force to leave it all the same".into(),
            ));
        }
        self.services.places.set(Way::None);
        if let Err(error) = self.services.network.leave_cluster().await {
            tracing::warn!(error = crate::output::chain(&error), "the cluster's network is not gone altogether");
        }
        self.error.store(None);
        self.locked.store(false, Ordering::Release);
        self.forget().map_err(|error| internal("removing the cluster's files", error))
    }
}
