//! Brings the Raft group to what the nodes' records say, one change at a time.
//!
//! A node that was promoted asks for its number ([`super::ask_to_join`]), which makes it wanted here; it is taken in as a
//! learner and gets its vote when it has caught up. A node that was demoted is taken out first; then its record forgets
//! its part, and only then does it get a worker's certificate. A leader that was demoted hands over, and its successor
//! goes on. Each step is decided from records and group alone, so whoever leads finishes what another began.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::node::ManagerMembership;
use skep_proto::model::{Node, NodeId, NodeRole};
use tokio_util::sync::CancellationToken;

use crate::control::Propose;
use crate::raft::types::{Peer, RaftId};
use crate::raft::{Member, Raft, RaftError};
use crate::store::{Change, Group, Outcome, Store};

/// Looked at again this often, whether or not anything seems to have changed: a member that does not answer yet will.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a member may take to catch up before the next one gets its turn.
const CATCH_UP: Duration = Duration::from_secs(5);

/// One change of the group, or of a record that follows from the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take in a member that follows without a vote.
    AddLearner(RaftId, Peer),
    /// Give it its vote, once it has caught up: one that does not answer would cost the others their majority.
    Promote(RaftId, Peer),
    /// Its address changed.
    ChangeAddress(RaftId, Peer),
    /// Take it out.
    Remove(RaftId),
    /// It is out: its record says so from now on.
    Forget(RaftId, NodeId),
}

/// What the nodes' records ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Who takes part.
    pub members: BTreeMap<RaftId, Peer>,
    /// Who was demoted, and whose record still names a part.
    pub leaving: BTreeMap<RaftId, NodeId>,
}

/// What the group lacks. One change at a time is made (raft dissertation, section 4.1); the order here is that of urgency.
pub fn plan(wanted: &Wanted, members: &[Member]) -> Vec<Action> {
    let present: BTreeMap<RaftId, &Member> = members.iter().map(|m| (m.id, m)).collect();
    let Wanted { members: wanted, leaving } = wanted;
    let forgotten = leaving.iter().filter(|(id, _)| !present.contains_key(id));
    let forgotten = forgotten.map(|(id, node)| Action::Forget(*id, *node));
    let moved = wanted.iter().filter_map(|(id, peer)| {
        let member = present.get(id)?;
        (member.peer != *peer).then(|| Action::ChangeAddress(*id, peer.clone()))
    });
    let learners = wanted.iter().filter(|(id, _)| present.get(id).is_some_and(|m| !m.voter));
    let promoted = learners.map(|(id, peer)| Action::Promote(*id, peer.clone()));
    let removed = present.keys().filter(|id| !wanted.contains_key(id)).map(|id| Action::Remove(*id));
    let added = wanted
        .iter()
        .filter(|(id, _)| !present.contains_key(id))
        .map(|(id, peer)| Action::AddLearner(*id, peer.clone()));
    forgotten.chain(moved).chain(promoted).chain(removed).chain(added).collect()
}

/// What the nodes' records ask for.
pub fn wanted<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>) -> Wanted {
    let mut wanted = Wanted::default();
    for node in nodes {
        match (node.manager, node.spec.role) {
            (Some(ManagerMembership { raft_id, address }), NodeRole::Manager) => {
                wanted.members.insert(raft_id, Peer { address: address.to_string(), node_id: node.id.to_string() });
            }
            (Some(membership), NodeRole::Worker) => {
                wanted.leaving.insert(membership.raft_id, node.id);
            }
            (None, NodeRole::Manager | NodeRole::Worker) => {}
        }
    }
    wanted
}

/// Runs while this manager leads.
pub async fn run(store: Arc<Store>, raft: Raft, proposer: Arc<dyn Propose>, stop: CancellationToken) {
    let hands = Hands { store, raft, proposer };
    let mut said = String::new();
    loop {
        let wanted = wanted(hands.store.view().nodes().values());
        for action in plan(&wanted, &hands.raft.members()) {
            // A leader without a record of any manager has not applied its own birth yet.
            if wanted.members.is_empty() || stop.is_cancelled() {
                break;
            }
            if let Err(error) = hands.act(&action).await {
                // Tried again until it is done: told when it is news.
                let text = format!("{action:?}: {error}");
                if said != text {
                    tracing::info!(?action, %error, "the manager group could not be changed yet");
                    said = text;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

/// What changes are made with.
struct Hands {
    store: Arc<Store>,
    raft: Raft,
    proposer: Arc<dyn Propose>,
}

impl Hands {
    async fn act(&self, action: &Action) -> Result<(), RaftError> {
        let raft = &self.raft;
        match action {
            Action::AddLearner(id, peer) => raft.add_learner(*id, peer.clone(), CATCH_UP).await,
            Action::Promote(id, peer) => {
                raft.add_learner(*id, peer.clone(), CATCH_UP).await?;
                raft.promote(*id, CATCH_UP).await
            }
            Action::ChangeAddress(id, peer) => raft.change_address(*id, peer.clone(), CATCH_UP).await,
            Action::Remove(id) if *id == raft.id() => raft.transfer_leadership(None, CATCH_UP).await,
            Action::Remove(id) => raft.remove(*id, CATCH_UP).await,
            Action::Forget(id, node) => self.forget(*id, *node).await,
        }
    }

    async fn forget(&self, id: RaftId, node: NodeId) -> Result<(), RaftError> {
        let Some(record) = self.store.view().nodes().get(node).cloned() else { return Ok(()) };
        if record.spec.role != NodeRole::Worker || record.manager.map(|m| m.raft_id) != Some(id) {
            return Ok(());
        }
        let mut record = (*record).clone();
        record.manager = None;
        match self.proposer.propose(Group::of(Change::update(&record))).await {
            Ok(Outcome::Applied { .. }) => Ok(()),
            Ok(Outcome::Refused(refusal)) => Err(RaftError::Refused(refusal.to_string())),
            Err(error) => Err(RaftError::Refused(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u64) -> Peer {
        Peer { address: format!("10.0.0.{n}:2377"), node_id: n.to_string() }
    }

    fn member(n: u64, voter: bool) -> Member {
        Member { id: n, peer: peer(n), voter, reachable: Some(true) }
    }

    fn wanted(ids: &[u64]) -> Wanted {
        Wanted { members: ids.iter().map(|n| (*n, peer(*n))).collect(), leaving: BTreeMap::new() }
    }

    #[test]
    fn a_new_manager_is_taken_in_first_without_a_vote() {
        assert_eq!(plan(&wanted(&[1, 7]), &[member(1, true)]), [Action::AddLearner(7, peer(7))]);
        assert_eq!(plan(&wanted(&[1, 7]), &[member(1, true), member(7, false)]), [Action::Promote(7, peer(7))]);
        assert_eq!(plan(&wanted(&[1, 7]), &[member(1, true), member(7, true)]), []);
    }

    #[test]
    fn who_is_not_wanted_goes_before_others_come() {
        let actions = plan(&wanted(&[1, 9]), &[member(1, true), member(2, true)]);
        assert_eq!(actions, [Action::Remove(2), Action::AddLearner(9, peer(9))]);
    }

    #[test]
    fn an_address_that_changed_is_noted() {
        let mut moved = wanted(&[1, 2]);
        moved.members.insert(2, peer(20));
        assert_eq!(plan(&moved, &[member(1, true), member(2, true)]), [Action::ChangeAddress(2, peer(20))]);
    }

    #[test]
    fn a_demoted_manager_leaves_the_group_before_its_record_forgets_it() {
        let demoted = Wanted { leaving: BTreeMap::from([(2, NodeId(22))]), ..wanted(&[1]) };
        assert_eq!(plan(&demoted, &[member(1, true), member(2, true)]), [Action::Remove(2)]);
        assert_eq!(plan(&demoted, &[member(1, true)]), [Action::Forget(2, NodeId(22))]);
        assert_eq!(plan(&wanted(&[1]), &[member(1, true)]), []);
    }
}
