//! The handle that the rest of the manager uses: start, read, change the group, stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError as OpenraftError};
use openraft::{ChangeMembers, RaftMetrics, ServerState};
use skep_proto::wire::raft as pb;
use skep_proto::wire::raft::raft_server::RaftServer;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::compact;
use super::config::Config;
use super::disk::Disk;
use super::leadership::{self, Leader};
use super::log::{LogStore, RecoverError, Seal};
use super::machine::{Machine, StateMachine};
use super::network::{Connector, Links, MESSAGE_LIMIT, Network, Service};
use super::node::Shared;
use super::quorum::{self, QuorumLoss};
use super::seal::Sealer;
use super::snapshot::SnapshotStore;
use super::types::{Peer, RaftId, TypeConfig};

/// Time between two tries to find a leader that answers.
const RETRY: Duration = Duration::from_millis(20);

/// The member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Settings that contradict each other.
    #[error("the raft settings are not usable: {0}")]
    Config(#[from] openraft::ConfigError),
    /// The log.
    #[error(transparent)]
    Log(#[from] RecoverError),
    /// The snapshot.
    #[error("cannot read the raft snapshot: {0}")]
    Snapshot(std::io::Error),
    /// Log, snapshot and state do not fit each other, or the state cannot be brought back.
    #[error("cannot bring back the replicated state: {0}")]
    Recover(String),
}

/// A call on the group failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// Another member leads; ask there.
    #[error("this manager does not lead the cluster; {} does", .0.peer)]
    NotLeader(Leader),
    /// No member leads, or this one cannot reach the one that does.
    #[error(
        "the cluster has no leader that this manager can reach; a majority of the managers must be up and connected"
    )]
    NoLeader,
    /// Not done within the time allowed. It may happen still.
    #[error("the cluster did not answer within {0:?}")]
    Timeout(Duration),
    /// The group exists already.
    #[error("this manager already belongs to a cluster")]
    AlreadyInitialized,
    /// The group would stop working.
    #[error(transparent)]
    QuorumLoss(#[from] QuorumLoss),
    /// Not a change that the group can make now.
    #[error("the change of the manager group was refused: {0}")]
    Refused(String),
    /// This member has stopped, by a disk error or by being told to.
    #[error("this manager's raft member has stopped: {0}")]
    Stopped(String),
}

/// A member of the group, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: RaftId,
    /// Its address and node.
    pub peer: Peer,
    /// Whether it votes. A learner only follows.
    pub voter: bool,
    /// Whether it answers the leader. `None` where that is not known: on followers.
    pub reachable: Option<bool>,
}

/// One member of the Raft group. Clones are handles to the same member.
#[derive(Clone)]
pub struct Raft {
    pub(super) shared: Arc<Shared>,
    tenure: watch::Receiver<Option<u64>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Raft {
    /// Brings a member back from `disk`, or makes a new one that belongs to no group yet, and starts it on `runtime`.
    ///
    /// `runtime` should have one or two threads and nothing else to do. The service of [`Raft::service`] must be served
    /// for the member to take part.
    ///
    /// # Errors
    /// [`StartError`], which says what to do. Nothing was started then.
    pub async fn start(
        config: Config,
        disk: Arc<dyn Disk>,
        sealer: Arc<Sealer>,
        machine: Box<dyn Machine>,
        connector: Arc<dyn Connector>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let handle = runtime.clone();
        runtime
            .spawn(Self::start_here(config, disk, sealer, machine, connector, handle))
            .await
            .map_err(|e| StartError::Recover(format!("the start was interrupted: {e}")))?
    }

    async fn start_here(
        config: Config,
        disk: Arc<dyn Disk>,
        sealer: Arc<Sealer>,
        machine: Box<dyn Machine>,
        connector: Arc<dyn Connector>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, StartError> {
        let settings = Arc::new(config.for_openraft()?);
        let seal = Seal { cluster: config.cluster, sealer };
        let workers = config.workers;
        let snapshots = {
            let (disk, seal) = (Arc::clone(&disk), seal.clone());
            let opened = workers.run(move || SnapshotStore::open(disk, seal, workers)).await;
            opened.and_then(|opened| opened).map_err(StartError::Snapshot)?
        };
        let log = LogStore::open(disk, seal, config.segments, workers)?;
        let links = Links::new(config.id, config.cluster, connector);
        let network = Network { links: links.clone(), log: log.clone(), workers, patience: config.timing.election_max };
        let (applied_tx, applied) = watch::channel(None);
        let machine = StateMachine::new(machine, snapshots.clone(), applied_tx);
        let raft = openraft::Raft::new(config.id, settings, network, log.clone(), machine)
            .await
            .map_err(|e| StartError::Recover(e.to_string()))?;

        let (leader_tx, leader) = watch::channel(None);
        let (tenure_tx, tenure) = watch::channel(None);
        let shared = Arc::new(Shared {
            id: config.id,
            cluster: config.cluster,
            timing: config.timing,
            raft,
            log,
            snapshots,
            links,
            runtime,
            applied,
            leader,
            heard: std::sync::Mutex::new(None),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(leadership::keep(Arc::clone(&shared), leader_tx, tenure_tx, stop.clone()));
        tasks.spawn(compact::keep(
            Arc::clone(&shared),
            config.snapshot_after_bytes,
            config.keep_log_bytes,
            stop.clone(),
        ));
        tasks.close();
        Ok(Self { shared, tenure, stop, tasks })
    }

    /// The gRPC service for the node's server. It authenticates nobody: the server must admit managers only.
    pub fn service(&self) -> RaftServer<Service> {
        RaftServer::new(Service::new(Arc::clone(&self.shared)))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// This member's number.
    pub fn id(&self) -> RaftId {
        self.shared.id
    }

    /// The member that leads. `None` as soon as its lease is over: a leader that lost its majority is none, and a
    /// follower that does not hear from the leader has none.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.shared.leader.clone()
    }

    /// The term in which this member leads, holds the lease and has applied an entry of its own: while it is `Some`,
    /// parts that run on the leader only may run here.
    pub fn tenure(&self) -> watch::Receiver<Option<u64>> {
        self.tenure.clone()
    }

    /// Whether this member leads now, see [`Raft::tenure`].
    pub fn is_leader(&self) -> bool {
        self.tenure.borrow().is_some()
    }

    /// The term that this member believes to lead, lease or not. For observers only: to act, ask [`Raft::tenure`].
    pub fn term_led(&self) -> Option<u64> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// Index of the last entry that this member's state has applied.
    pub fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.shared.applied.clone()
    }

    /// The text of the disk error that stopped this member, once there is one.
    pub fn disk_failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.log.failed()
    }

    /// Whether this member belongs to a group, on disk or by having been called.
    pub async fn is_initialized(&self) -> Result<bool, RaftError> {
        self.shared.raft.is_initialized().await.map_err(stopped)
    }

    /// Makes the group, with this member as the only one. Elected at once.
    ///
    /// # Errors
    /// [`RaftError::AlreadyInitialized`] if it belongs to one.
    pub async fn initialize(&self, me: Peer) -> Result<(), RaftError> {
        match self.shared.raft.initialize(BTreeMap::from([(self.shared.id, me)])).await {
            Ok(()) => Ok(()),
            Err(OpenraftError::APIError(InitializeError::NotAllowed(_))) => Err(RaftError::AlreadyInitialized),
            Err(OpenraftError::APIError(InitializeError::NotInMembers(e))) => Err(RaftError::Refused(e.to_string())),
            Err(OpenraftError::Fatal(e)) => Err(stopped(e)),
        }
    }

    /// Adds a member that follows without a vote, and waits until it has caught up. Only on the leader; may be repeated.
    ///
    /// # Errors
    /// [`RaftError::Timeout`] if it did not catch up in time: it stays a learner.
    pub async fn add_learner(&self, id: RaftId, peer: Peer, within: Duration) -> Result<(), RaftError> {
        let deadline = Instant::now() + within;
        let add = self.shared.raft.add_learner(id, peer, false);
        self.changed(within, async { add.await.map(drop) }).await?;
        // Not openraft's own wait: it is content with a learner that lacks no more than some thousand entries.
        let goal = self.shared.raft.metrics().borrow_watched().last_log_index;
        let caught_up = self.wait_metrics(|metrics| {
            let progress = metrics.replication.as_ref().map(|all| all.get(&id).cloned().flatten().map(|m| m.index));
            // No longer leading: who leads now goes on with it.
            progress.is_none_or(|matched| matched >= goal)
        });
        match tokio::time::timeout_at(deadline, caught_up).await {
            Ok(done) => done,
            Err(_) => Err(RaftError::Timeout(within)),
        }
    }

    async fn wait_metrics(&self, mut holds: impl FnMut(&RaftMetrics<TypeConfig>) -> bool) -> Result<(), RaftError> {
        let mut metrics = self.shared.raft.metrics();
        while !holds(&metrics.borrow_watched()) {
            metrics.changed().await.map_err(stopped)?;
        }
        Ok(())
    }

    /// Gives a learner its vote. Only on the leader.
    pub async fn promote(&self, id: RaftId, within: Duration) -> Result<(), RaftError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), within).await
    }

    /// Takes a member out of the group, voter or not. Only on the leader, which may remove itself: it hands over first.
    ///
    /// # Errors
    /// [`RaftError::QuorumLoss`] if too few of the others answer to go on without it.
    pub async fn remove(&self, id: RaftId, within: Duration) -> Result<(), RaftError> {
        let voters = self.voters();
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        quorum::check_removal(&voters, &self.shared.reachable(), id)?;
        if voters.contains(&id) {
            // Not retained as a learner: a node that was removed hears nothing more.
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), within).await
        } else {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), within).await
        }
    }

    /// Notes that a member is reached at another address. Only on the leader.
    pub async fn change_address(&self, id: RaftId, peer: Peer, within: Duration) -> Result<(), RaftError> {
        if !self.members().iter().any(|member| member.id == id) {
            return Err(RaftError::Refused(format!("manager {id} does not belong to the group")));
        }
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), within).await
    }

    async fn change(&self, change: ChangeMembers<RaftId, Peer>, within: Duration) -> Result<(), RaftError> {
        self.changed(within, async { self.shared.raft.change_membership(change, false).await.map(drop) }).await
    }

    async fn changed(
        &self,
        within: Duration,
        change: impl Future<Output = Result<(), OpenraftError<TypeConfig, ClientWriteError<TypeConfig>>>>,
    ) -> Result<(), RaftError> {
        match tokio::time::timeout(within, change).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(self.not_leader()),
            Ok(Err(OpenraftError::APIError(ClientWriteError::LogEntryDiscarded(_)))) | Err(_) => {
                Err(RaftError::Timeout(within))
            }
            Ok(Err(OpenraftError::APIError(refused))) => Err(RaftError::Refused(refused.to_string())),
            Ok(Err(OpenraftError::Fatal(e))) => Err(stopped(e)),
        }
    }

    fn not_leader(&self) -> RaftError {
        match self.shared.leader.borrow().clone() {
            Some(leader) if leader.id != self.shared.id => RaftError::NotLeader(leader),
            _ => RaftError::NoLeader,
        }
    }

    /// Hands leadership to `to`, or to the voter whose log is longest, and waits until it leads. Only on the leader.
    pub async fn transfer_leadership(&self, to: Option<RaftId>, within: Duration) -> Result<(), RaftError> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        let to = to
            .or_else(|| self.best_successor())
            .ok_or_else(|| RaftError::Refused("no other manager can lead".into()))?;
        self.shared.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let mut leader = self.shared.leader.clone();
        let handed = leader.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.id == to));
        match tokio::time::timeout(within, handed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(RaftError::Stopped("it was shut down".into())),
            Err(_) => Err(RaftError::Timeout(within)),
        }
    }

    fn best_successor(&self) -> Option<RaftId> {
        let (voters, reachable) = (self.voters(), self.shared.reachable());
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let progress = metrics.replication.as_ref()?;
        progress
            .iter()
            .filter(|(id, _)| **id != self.shared.id && voters.contains(id) && reachable.contains(id))
            .max_by_key(|(id, matched)| (matched.as_ref().map(|m| m.index), std::cmp::Reverse(**id)))
            .map(|(id, _)| *id)
    }

    fn voters(&self) -> BTreeSet<RaftId> {
        self.shared.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect()
    }

    /// The members of the group, by number.
    pub fn members(&self) -> Vec<Member> {
        let reachable = self.shared.reachable();
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader;
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        membership
            .nodes()
            .map(|(id, peer)| Member {
                id: *id,
                peer: peer.clone(),
                voter: voters.contains(id),
                reachable: leads.then(|| reachable.contains(id)),
            })
            .collect()
    }

    /// Waits until this member's state holds every write that was acknowledged anywhere before this call began: a read
    /// of it after that is linearizable. Returns the index that the state has reached at least.
    ///
    /// # Errors
    /// [`RaftError::NoLeader`] if none was found within the time, [`RaftError::Timeout`] if this member lags too far.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn read_index(&self, within: Duration) -> Result<u64, RaftError> {
        let deadline = Instant::now() + within;
        let index = tokio::time::timeout_at(deadline, self.find_read_index()).await.map_err(|_| RaftError::NoLeader)?;
        match tokio::time::timeout_at(deadline, self.wait_applied(index)).await {
            Ok(applied) => applied.map(|()| index),
            Err(_) => Err(RaftError::Timeout(within)),
        }
    }

    async fn find_read_index(&self) -> u64 {
        loop {
            let leader = self.shared.leader.borrow().clone();
            let found = match leader {
                Some(leader) if leader.id == self.shared.id => self.shared.read_index().await.ok(),
                Some(leader) => self.ask_read_index(&leader).await,
                None => None,
            };
            match found {
                Some(index) => return index,
                None => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn ask_read_index(&self, leader: &Leader) -> Option<u64> {
        let mut client = self.shared.links.client(leader.id, &leader.peer).ok()?;
        let ask = client.read_index(self.shared.links.request(leader.id, pb::ReadIndexRequest {}));
        let answer = tokio::time::timeout(self.shared.timing.election_max, ask).await.ok()?.ok()?;
        match answer.into_inner().result? {
            pb::read_index_response::Result::Index(index) => Some(index),
            pb::read_index_response::Result::NotLeader(_) => None,
        }
    }

    /// Waits until this member's state has applied the entry at `index`.
    ///
    /// # Errors
    /// [`RaftError::Stopped`] if it never will.
    pub async fn wait_applied(&self, index: u64) -> Result<(), RaftError> {
        let mut applied = self.shared.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= Some(index)).await;
        reached.map(drop).map_err(|_| RaftError::Stopped("it was shut down".into()))
    }

    /// When snapshots are written, and how many stay.
    pub fn retention(&self) -> &compact::Retention {
        self.shared.snapshots.retention()
    }

    /// Writes a snapshot now, whatever the size of the log. Returns before it is written.
    pub async fn snapshot(&self) -> Result<(), RaftError> {
        self.shared.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// Stops the member: no more votes, entries or answers. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
        if let Err(error) = self.shared.raft.shutdown().await {
            tracing::warn!(%error, "the raft member did not stop cleanly");
        }
        // The log's writer ends when its last handle is gone; what is queued now reaches the disk.
        if let Err(error) = self.shared.log.flush().await {
            tracing::warn!(%error, "the raft log was not flushed at the end");
        }
    }
}

fn stopped(error: impl std::fmt::Display) -> RaftError {
    RaftError::Stopped(error.to_string())
}
