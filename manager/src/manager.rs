//! One manager, put together.
//!
//! ```text
//!            faces ── Control ──┐                    ┌── Orchestrator, Allocator, Scheduler, Reaper, membership::role
//!  2377/tcp ─ Server ─ services ┼─ Proposer ─ Raft ─ Store ─┤   (on the leader)
//!                               └── Dispatcher ──────┘
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_api::ports::control::ClusterCounts;
use skep_api::ports::events::EventLog;
use skep_identity::{Clock, Connector};
use skep_proto::model::{Cluster, ClusterId, Node, NodeId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::ca::CaService;
use crate::ca::over_store::{StoreCa, StoreRoles, refuse_removed};
use crate::control::{Control, Parts, Propose, ProposeError};
use crate::dispatcher::grpc::{RelayService, SessionService, StreamService};
use crate::dispatcher::{self, Dispatcher, Leadership, Relay, Replicated, Streams};
use crate::lock::Lock;
use crate::membership::{self, Membership, MembershipService};
use crate::raft::config::Config as RaftConfig;
use crate::raft::disk::Folder;
use crate::raft::keys::{DataKeys, KeyError, UnlockKey};
use crate::raft::proposer::Limits;
use crate::raft::types::Peer;
use crate::raft::{Proposer, Raft, RaftError, StartError};
use crate::reconcile::{self, Planner};
use crate::rpc::AttachmentService;
use crate::rpc::links::RaftLinks;
use crate::rpc::server::{Server, TcpAcceptor};
use crate::store::{Change, Codec, Group, Outcome, Proposals, Replica, Store};
use crate::{allocator, orchestrator, reaper, scheduler};

/// Threads of Raft's own runtime: with more, single writes take longer.
const RAFT_THREADS: usize = 2;
/// How long a new cluster may take to elect its only manager.
const BIRTH: Duration = Duration::from_secs(10);
/// How long parts may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// What a manager is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its number in the Raft group.
    pub raft_id: u64,
    /// Directory of log, snapshots and their keys.
    pub dir: PathBuf,
    /// Where other managers and agents reach it.
    pub advertise: SocketAddr,
    /// The key that the operator gave to unlock it.
    pub unlock: Option<UnlockKey>,
}

/// A manager cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Directory of the log.
    #[error("cannot use {}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Keys of the log.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The Raft member.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// Nothing to go on from.
    #[error("this node holds no state of a cluster that it manages")]
    NoState,
    /// No thread for Raft.
    #[error("cannot start the threads of raft")]
    Threads(#[source] std::io::Error),
    /// The new cluster.
    #[error("the new cluster could not be made: {0}")]
    Birth(String),
}

impl From<RaftError> for ManagerError {
    fn from(error: RaftError) -> Self {
        Self::Birth(error.to_string())
    }
}

/// The records of a new cluster and of its first node.
#[derive(Debug, Clone)]
pub struct Birth {
    /// The cluster.
    pub cluster: Cluster,
    /// Its first manager.
    pub node: Node,
}

/// A running manager.
pub struct Manager {
    store: Arc<Store>,
    raft: Raft,
    control: Arc<Control>,
    membership: Arc<Membership>,
    node: NodeId,
    seal: watch::Receiver<Option<[u8; 32]>>,
    stop: CancellationToken,
    parts: Mutex<JoinSet<()>>,
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Manager {
    /// Starts a manager whose Raft member exists on disk, is about to be taken in, or, with `birth`, begins a cluster.
    /// `listener` is where it serves; `connector` is this node's identity.
    ///
    /// # Errors
    /// [`ManagerError`], which says what to do.
    pub async fn start(
        config: Config,
        listener: TcpListener,
        connector: Connector,
        clock: Arc<dyn Clock>,
        birth: Option<Birth>,
    ) -> Result<Self, ManagerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RAFT_THREADS)
            .thread_name("raft")
            .enable_all()
            .build()
            .map_err(ManagerError::Threads)?;
        let at = |source| ManagerError::Directory { dir: config.dir.clone(), source };
        std::fs::create_dir_all(&config.dir).map_err(at)?;
        let disk = Arc::new(Folder::open(&config.dir).map_err(at)?);
        let keys = DataKeys::open(&*disk, config.unlock.as_ref())?;
        let sealer = keys.sealer();
        let lock = Lock::new(keys, Arc::clone(&disk), config.unlock.clone());
        let seal = lock.seal();
        let (replica, store) = Replica::new();
        let settings = RaftConfig::new(config.raft_id, config.cluster.0.to_be_bytes());
        let links = Arc::new(RaftLinks(connector.clone()));
        let handle = runtime.handle().clone();
        let raft = Raft::start(settings, disk, Arc::new(sealer), Box::new(replica), links, handle).await?;

        let now: reconcile::Clock = {
            let clock = Arc::clone(&clock);
            Arc::new(move || clock.now())
        };
        let millis = Arc::clone(&now);
        let proposer = Proposer::start(
            &raft,
            Arc::new(Codec { proposer: config.node }),
            Arc::new(move || millis().0),
            Limits::default(),
        );
        let proposer: Arc<dyn Propose> = Arc::new(Proposals(proposer));
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();

        let (leadership_tx, leadership) = watch::channel(Leadership::Following { leader: None });
        parts.spawn(dispatcher::leader::follow(raft.tenure(), raft.leader(), leadership_tx, stop.clone()));
        let replicated = Arc::new(Replicated::new(Arc::clone(&store), Arc::clone(&proposer)));
        let dispatcher = Arc::new(Dispatcher::new(replicated, leadership, dispatcher::Timing::default(), now()));
        let relay = Arc::new(Relay::new(Arc::clone(&dispatcher), connector.clone()));
        let (_, own_address) = watch::channel(config.advertise);
        let streams = Streams::new(own_address, Arc::clone(&relay) as Arc<_>);
        let membership =
            Arc::new(Membership::new(Arc::clone(&store), raft.clone(), Arc::clone(&proposer), connector.clone()));
        let live = connector.live().clone();
        let authority = Arc::new(StoreCa::new(Arc::clone(&store), raft.clone(), Arc::clone(&proposer)));
        // Before anybody is listened to.
        live.revoked().replace(store.view().removed_nodes());
        let events = Arc::new(EventLog::default());
        parts.spawn(crate::control::events::record(Arc::clone(&store), Arc::clone(&events), stop.clone()));
        let control = Arc::new(Control::new(Parts {
            store: Arc::clone(&store),
            raft: raft.clone(),
            proposer: Arc::clone(&proposer),
            membership: Arc::clone(&membership),
            streams: Arc::new(streams.clone()),
            vitals: Arc::clone(&relay) as Arc<_>,
            events,
        }));
        let routes = Routes::new(CaService::new(authority, live.clone()).into_server())
            .add_service(SessionService(Arc::clone(&dispatcher)).into_server())
            .add_service(StreamService(streams).into_server())
            .add_service(RelayService(Arc::clone(&dispatcher)).into_server())
            .add_service(AttachmentService::server(Arc::clone(&control)))
            .add_service(raft.service())
            .add_service(MembershipService::server(Arc::clone(&membership)));
        let server = Server::new(
            routes,
            live.clone(),
            Arc::new(StoreRoles { store: Arc::clone(&store), leader: raft.leader() }),
        );
        parts.spawn(server.run(TcpAcceptor(listener), stop.clone()));
        parts.spawn(refuse_removed(Arc::clone(&store), live.revoked().clone(), stop.clone()));
        parts.spawn(lock.keep(Arc::clone(&store), raft.clone(), stop.clone()));
        parts.spawn(keep_settings(Arc::clone(&store), raft.clone(), stop.clone()));
        let leader =
            Leader { store: Arc::clone(&store), raft: raft.clone(), proposer: Arc::clone(&proposer), clock: now };
        parts.spawn(leader.run(stop.clone()));
        let dispatching = (Arc::clone(&dispatcher), stop.clone());
        parts.spawn(async move { dispatching.0.run(dispatching.1).await });

        let node = config.node;
        let manager = Self {
            store,
            raft,
            control,
            membership,
            node,
            seal,
            stop,
            parts: Mutex::new(parts),
            runtime: Mutex::new(Some(runtime)),
        };
        if let Some(birth) = birth
            && let Err(error) = manager.begin(&config, birth, &*proposer).await
        {
            manager.stop().await;
            return Err(error);
        }
        Ok(manager)
    }

    /// Makes the group of one and the first records. May be repeated after an interruption.
    async fn begin(&self, config: &Config, birth: Birth, proposer: &dyn Propose) -> Result<(), ManagerError> {
        if !self.raft.is_initialized().await? {
            let me = Peer { address: config.advertise.to_string(), node_id: config.node.to_string() };
            self.raft.initialize(me).await?;
        }
        let mut tenure = self.raft.tenure();
        let is_elected = matches!(tokio::time::timeout(BIRTH, tenure.wait_for(Option::is_some)).await, Ok(Ok(_)));
        if !is_elected {
            return Err(ManagerError::Birth("the only manager was not elected in time".into()));
        }
        if self.store.view().cluster().is_some() {
            return Ok(());
        }
        let records = vec![Change::create(&birth.cluster), Change::create(&birth.node)];
        match proposer.propose(Group::from(records)).await {
            Ok(Outcome::Applied { .. }) => Ok(()),
            Ok(Outcome::Refused(refusal)) => Err(ManagerError::Birth(refusal.to_string())),
            Err(ProposeError::NoLeader | ProposeError::Timeout) => {
                Err(ManagerError::Birth("the first change was not confirmed".into()))
            }
            Err(ProposeError::Refused(reason)) => Err(ManagerError::Birth(reason)),
        }
    }

    /// What faces call.
    pub fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Joins and departures.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Waits until this manager votes and knows a leader.
    ///
    /// # Errors
    /// When that does not happen within `patience`.
    pub async fn wait_until_ready(&self, patience: Duration) -> Result<(), RaftError> {
        let ready = async {
            loop {
                let votes = self.raft.members().iter().any(|m| m.id == self.raft.id() && m.voter);
                if votes && self.raft.leader().borrow().is_some() && self.store.view().cluster().is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience, ready).await.map_err(|_| RaftError::Timeout(patience))
    }

    /// The key that unlocks this cluster's managers, while they are locked.
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        self.store.view().cluster()?.unlock.as_ref()?.key.parse().ok()
    }

    /// The key that seals this node's TLS key on disk, while managers are locked.
    pub fn seal(&self) -> Option<[u8; 32]> {
        *self.seal.borrow()
    }

    /// Whether it leads, or hears from the manager that does.
    pub fn has_leader(&self) -> bool {
        self.raft.leader().borrow().is_some()
    }

    /// Its number in the Raft group.
    pub fn raft_id(&self) -> u64 {
        self.raft.id()
    }

    /// Tells the others that this manager is reached at `address`, when it leads and its record says otherwise: one that
    /// does not lead asks the leader ([`membership::ask_to_join`]).
    ///
    /// # Errors
    /// When the change is not committed.
    pub async fn announce(&self, address: SocketAddr) -> Result<(), tonic::Status> {
        let known = self.store.view().nodes().get(self.node).and_then(|node| node.manager).map(|m| m.address);
        if !self.raft.is_leader() || known.is_none_or(|known| known == address) {
            return Ok(());
        }
        self.membership.announce(self.node, address).await.map(drop)
    }

    /// Counts for `docker info`, of what this manager has; `None` while there is no leader.
    pub fn counts(&self) -> Option<ClusterCounts> {
        self.raft.leader().borrow().as_ref()?;
        let state = self.store.view();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let managers = state.nodes().values().filter(|n| n.manager.is_some()).count();
        Some(ClusterCounts {
            cluster: state.cluster()?.clone(),
            nodes: count(state.nodes().len()),
            managers: count(managers),
        })
    }

    /// Why the log can be written no more: this manager takes part again when it is started anew.
    pub fn disk_failure(&self) -> Option<String> {
        self.raft.disk_failed().borrow().clone()
    }

    /// The managers of the cluster.
    pub fn managers(&self) -> Vec<(NodeId, SocketAddr)> {
        self.store.view().nodes().values().filter_map(|n| Some((n.id, n.manager?.address))).collect()
    }

    /// Stops serving and leading. The cluster goes on without this manager.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = async { while parts.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("parts of the manager did not stop in time");
        }
        self.raft.shutdown().await;
        self.end_runtime();
    }

    /// Dropping a runtime waits for its tasks, which is forbidden where a manager may be dropped.
    fn end_runtime(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop.cancel();
        self.end_runtime();
    }
}

/// Gives Raft what the cluster's record says of snapshots, until `stop`.
async fn keep_settings(store: Arc<Store>, raft: Raft, stop: CancellationToken) {
    let (mut state, mut watch) = store.view_and_watch();
    loop {
        if let Some(cluster) = state.cluster() {
            raft.retention().set(cluster.spec.snapshot_interval, cluster.spec.keep_old_snapshots);
        }
        state = tokio::select! {
            () = stop.cancelled() => return,
            next = watch.next() => match next {
                Some((state, _)) => state,
                None => return,
            },
        };
    }
}

/// What runs only while this manager leads.
struct Leader {
    store: Arc<Store>,
    raft: Raft,
    proposer: Arc<dyn Propose>,
    clock: reconcile::Clock,
}

impl Leader {
    async fn run(self, stop: CancellationToken) {
        let mut tenure = self.raft.tenure();
        loop {
            let term = *tenure.borrow_and_update();
            let reign = stop.child_token();
            let mut parts = JoinSet::new();
            if let Some(term) = term {
                tracing::info!(term, "this manager leads");
                self.start(&mut parts, &reign);
            }
            let goes_on = tokio::select! {
                () = stop.cancelled() => false,
                changed = tenure.changed() => changed.is_ok(),
            };
            reign.cancel();
            while parts.join_next().await.is_some() {}
            if !goes_on {
                return;
            }
        }
    }

    fn start(&self, parts: &mut JoinSet<()>, reign: &CancellationToken) {
        self.plan(parts, orchestrator::Orchestrator::default(), reign);
        self.plan(parts, crate::schedule::Schedules, reign);
        self.plan(parts, allocator::Allocator, reign);
        self.plan(parts, scheduler::Scheduler::default(), reign);
        self.plan(parts, reaper::Reaper, reign);
        self.plan(parts, crate::ca::rotation::Rotation, reign);
        let (store, proposer) = (Arc::clone(&self.store), Arc::clone(&self.proposer));
        parts.spawn(membership::role::run(store, self.raft.clone(), proposer, reign.clone()));
    }

    fn plan<P: Planner>(&self, parts: &mut JoinSet<()>, planner: P, reign: &CancellationToken) {
        let (store, proposer, clock) = (Arc::clone(&self.store), Arc::clone(&self.proposer), Arc::clone(&self.clock));
        parts.spawn(reconcile::run(planner, store, proposer, clock, reign.clone()));
    }
}
