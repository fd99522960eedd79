//! Which managers take part in Raft.
//!
//! A node's record says whether it *should* ([`Node::manager`]); the Raft group says whether it *does*. [`role`] brings
//! the second to the first, on the leader, again and again: a manager that joins or leaves half-way is finished by
//! whoever leads next.

pub mod role;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use skep_api::ports::control::{ControlError, ManagerStatus};
use skep_identity::{Connector, Expect};
use skep_proto::model::node::ManagerMembership;
use skep_proto::model::{NodeId, NodeRole};
use skep_proto::wire::membership as wire;
use skep_proto::wire::membership::membership_client::MembershipClient;
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::control::{Propose, from_proposal};
use crate::raft::{Member, Raft, RaftError, quorum};
use crate::store::{Change, Group, Outcome, Store};

pub use service::MembershipService;

/// Metadata of a refusal: the address of the manager that leads.
const LEADER: &str = "skep-leader";
/// How long a call to the leader may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a read barrier may take.
const READ: Duration = Duration::from_secs(5);

/// Joins, departures and the list of managers, on any manager.
pub struct Membership {
    store: Arc<Store>,
    raft: Raft,
    proposer: Arc<dyn Propose>,
    connector: Connector,
    /// Held while a number is given, so that no two nodes get one.
    numbers: Mutex<()>,
}

impl Membership {
    /// Over these parts.
    pub fn new(store: Arc<Store>, raft: Raft, proposer: Arc<dyn Propose>, connector: Connector) -> Self {
        Self { store, raft, proposer, connector, numbers: Mutex::new(()) }
    }

    /// What is known of each manager. On a follower that cannot ask the leader, its own list, nobody reachable.
    pub async fn statuses(&self) -> BTreeMap<NodeId, ManagerStatus> {
        let members = match self.members().await {
            Ok(members) => members,
            Err(error) => {
                tracing::debug!(%error, "the leader does not tell the state of the managers");
                self.known_members()
            }
        };
        members.into_iter().filter_map(|m| Some((m.node.parse().ok()?, status(&m)?))).collect()
    }

    /// Ends a manager's part in the group and waits until the group is without it.
    ///
    /// # Errors
    /// [`ControlError::FailedPrecondition`] when the others could not go on.
    pub async fn remove_manager(&self, node: NodeId) -> Result<(), ControlError> {
        self.remove(node).await.map_err(|status| match status.code() {
            Code::FailedPrecondition => ControlError::FailedPrecondition(status.message().to_owned()),
            Code::DeadlineExceeded => ControlError::Timeout,
            Code::NotFound => ControlError::NotFound { kind: "node", reference: node.to_string() },
            _ => ControlError::NoLeader,
        })
    }

    /// Whether the managers can go on when `node` is demoted.
    ///
    /// # Errors
    /// [`ControlError::FailedPrecondition`] in swarmkit's words when they cannot, [`ControlError::NoLeader`] when nobody
    /// knows.
    pub async fn check_demotion(&self, node: NodeId) -> Result<(), ControlError> {
        let members = self.members().await.map_err(|_| ControlError::NoLeader)?;
        let voters: BTreeSet<&str> = members.iter().filter(|m| m.voter).map(|m| m.node.as_str()).collect();
        let reachable = members.iter().filter(|m| m.reachable).map(|m| m.node.as_str()).collect();
        let node = node.to_string();
        quorum::check_removal(&voters, &reachable, node.as_str()).map_err(|_| {
            ControlError::FailedPrecondition(
                "can't remove member from the raft: this would result in a loss of quorum".into(),
            )
        })
    }

    /// Notes this manager's own address, when it leads.
    ///
    /// # Errors
    /// When the change is not committed.
    pub async fn announce(&self, node: NodeId, address: SocketAddr) -> Result<u64, Status> {
        self.join(node, address).await
    }

    /// Gives a node its number. On the leader only.
    async fn join(&self, node: NodeId, address: SocketAddr) -> Result<u64, Status> {
        let _held = self.numbers.lock().await;
        self.raft.read_index(READ).await.map_err(no_leader)?;
        let state = self.store.view();
        let record = state
            .nodes()
            .get(node)
            .ok_or_else(|| Status::not_found("the cluster does not know this node: join again"))?;
        if record.spec.role != NodeRole::Manager {
            return Err(Status::permission_denied("this node is a worker; promote it first"));
        }
        if let Some(membership) = record.manager.filter(|m| m.address == address) {
            return Ok(membership.raft_id);
        }
        // The index only grows, and the change below takes the next one: no number is ever given twice.
        let raft_id = record.manager.map_or(state.index() + 1, |m| m.raft_id);
        let mut record = (**record).clone();
        record.manager = Some(ManagerMembership { raft_id, address });
        self.commit(Change::update(&record)).await?;
        Ok(raft_id)
    }

    async fn remove(&self, node: NodeId) -> Result<(), Status> {
        if !self.raft.is_leader() {
            let mut leader = self.leader().await?;
            let mut request = tonic::Request::new(wire::RemoveRequest { node: node.to_string() });
            request.set_timeout(CALL);
            return leader.remove(request).await.map(drop);
        }
        self.raft.read_index(READ).await.map_err(no_leader)?;
        let state = self.store.view();
        let Some(record) = state.nodes().get(node) else { return Err(Status::not_found("no such node")) };
        let Some(membership) = record.manager else { return Ok(()) };
        let members = self.raft.members();
        let voters = members.iter().filter(|m| m.voter).map(|m| m.id).collect();
        let reachable = members.iter().filter(|m| m.reachable == Some(true)).map(|m| m.id).collect();
        quorum::check_removal(&voters, &reachable, membership.raft_id)
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        let mut record = (**record).clone();
        record.manager = None;
        record.spec.role = NodeRole::Worker;
        self.commit(Change::update(&record)).await?;
        if membership.raft_id == self.raft.id() {
            // The next leader takes this one out: see `role`.
            self.raft.transfer_leadership(None, CALL).await.map_err(raft_status)?;
            return Ok(());
        }
        self.raft.remove(membership.raft_id, CALL).await.map_err(raft_status)
    }

    async fn commit(&self, change: Change) -> Result<(), Status> {
        match self.proposer.propose(Group::of(change)).await {
            Ok(Outcome::Applied { .. }) => Ok(()),
            Ok(Outcome::Refused(refusal)) => Err(Status::aborted(refusal.to_string())),
            Err(error) => Err(Status::unavailable(from_proposal(error).to_string())),
        }
    }

    async fn members(&self) -> Result<Vec<wire::Member>, Status> {
        if self.raft.is_leader() {
            return Ok(self.known_members());
        }
        let mut request = tonic::Request::new(wire::MembersRequest {});
        request.set_timeout(Duration::from_secs(1));
        Ok(self.leader().await?.members(request).await?.into_inner().members)
    }

    fn known_members(&self) -> Vec<wire::Member> {
        let leader = self.raft.leader().borrow().as_ref().map(|l| l.id);
        let own = self.raft.id();
        let wire_form = |m: Member| wire::Member {
            node: m.peer.node_id,
            address: m.peer.address,
            leader: leader == Some(m.id),
            reachable: m.reachable.unwrap_or(m.id == own),
            voter: m.voter,
        };
        self.raft.members().into_iter().map(wire_form).collect()
    }

    /// A channel to the leader, which must be another manager.
    async fn leader(&self) -> Result<MembershipClient<Channel>, Status> {
        let mut leader = self.raft.leader();
        let found = tokio::time::timeout(READ, leader.wait_for(Option::is_some)).await;
        let peer = match found {
            Ok(Ok(leader)) => leader.as_ref().map(|l| l.peer.clone()),
            Ok(Err(_)) | Err(_) => None,
        };
        let peer = peer.ok_or_else(|| Status::unavailable("the cluster has no leader"))?;
        let parsed = peer.address.parse::<SocketAddr>().ok().zip(peer.node_id.parse::<NodeId>().ok());
        let (address, node) = parsed.ok_or_else(|| Status::internal("the leader's address cannot be read"))?;
        Ok(MembershipClient::new(self.connector.channel(address, Expect::Node(node))))
    }
}

/// Asks for this node's number in the group: `manager` first, which may be any, then the leader that it names.
///
/// # Errors
/// The manager's refusal, or that it cannot be reached.
pub async fn ask_to_join(connector: &Connector, manager: SocketAddr, own: SocketAddr) -> Result<u64, Status> {
    match ask_one_to_join(connector, manager, own).await {
        Err(status) => match status.metadata().get(LEADER).and_then(|v| v.to_str().ok()?.parse().ok()) {
            Some(leader) if leader != manager => ask_one_to_join(connector, leader, own).await,
            _ => Err(status),
        },
        joined => joined,
    }
}

async fn ask_one_to_join(connector: &Connector, manager: SocketAddr, own: SocketAddr) -> Result<u64, Status> {
    let channel = connector.channel(manager, Expect::Role(NodeRole::Manager));
    let mut request = tonic::Request::new(wire::JoinRequest { address: own.to_string() });
    request.set_timeout(CALL);
    Ok(MembershipClient::new(channel).join(request).await?.into_inner().raft_id)
}

/// A learner is no manager yet.
fn status(member: &wire::Member) -> Option<ManagerStatus> {
    if !member.voter {
        return None;
    }
    let address = member.address.parse().ok()?;
    Some(ManagerStatus { leader: member.leader, reachable: member.reachable, address })
}

fn no_leader(error: RaftError) -> Status {
    Status::unavailable(error.to_string())
}

fn raft_status(error: RaftError) -> Status {
    match error {
        RaftError::QuorumLoss(_) | RaftError::Refused(_) => Status::failed_precondition(error.to_string()),
        RaftError::Timeout(_) => Status::deadline_exceeded(error.to_string()),
        RaftError::NotLeader(_) | RaftError::NoLeader | RaftError::AlreadyInitialized | RaftError::Stopped(_) => {
            Status::unavailable(error.to_string())
        }
    }
}
