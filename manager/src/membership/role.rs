//! Brings the Raft group to what the nodes' records say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::Node;
use skep_proto::model::node::ManagerMembership;
use tokio_util::sync::CancellationToken;

use crate::raft::types::{Peer, RaftId};
use crate::raft::{Member, Raft, RaftError};
use crate::store::Store;

/// Looked at again this often, whether or not anything seems to have changed: a member that does not answer yet will.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a member may take to catch up before the next one gets its turn.
const CATCH_UP: Duration = Duration::from_secs(5);

/// One change of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take in a member that follows without a vote.
    AddLearner(RaftId, Peer),
    /// Give it its vote.
    Promote(RaftId),
    /// Its address changed.
    ChangeAddress(RaftId, Peer),
    /// Take it out.
    Remove(RaftId),
}

/// What the group lacks. One change at a time is made (raft dissertation, section 4.1); the order here is that of urgency.
pub fn plan(wanted: &BTreeMap<RaftId, Peer>, members: &[Member]) -> Vec<Action> {
    let present: BTreeMap<RaftId, &Member> = members.iter().map(|m| (m.id, m)).collect();
    let moved = wanted.iter().filter_map(|(id, peer)| {
        let member = present.get(id)?;
        (member.peer != *peer).then(|| Action::ChangeAddress(*id, peer.clone()))
    });
    let promoted = wanted.keys().filter(|id| present.get(id).is_some_and(|m| !m.voter)).map(|id| Action::Promote(*id));
    let removed = present.keys().filter(|id| !wanted.contains_key(id)).map(|id| Action::Remove(*id));
    let added = wanted
        .iter()
        .filter(|(id, _)| !present.contains_key(id))
        .map(|(id, peer)| Action::AddLearner(*id, peer.clone()));
    moved.chain(promoted).chain(removed).chain(added).collect()
}

/// The members that the nodes' records ask for.
pub fn wanted<'a>(nodes: impl Iterator<Item = &'a Arc<Node>>) -> BTreeMap<RaftId, Peer> {
    let member = |node: &Arc<Node>, m: ManagerMembership| {
        (m.raft_id, Peer { address: m.address.to_string(), node_id: node.id.to_string() })
    };
    nodes.filter_map(|node| Some(member(node, node.manager?))).collect()
}

/// Runs while this manager leads.
pub async fn run(store: Arc<Store>, raft: Raft, stop: CancellationToken) {
    loop {
        let state = store.view();
        let wanted = wanted(state.nodes().values());
        for action in plan(&wanted, &raft.members()) {
            // A leader without a record of any manager has not applied its own birth yet.
            if wanted.is_empty() || stop.is_cancelled() {
                break;
            }
            if let Err(error) = act(&raft, &action).await {
                tracing::info!(?action, %error, "the manager group could not be changed yet");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
    }
}

async fn act(raft: &Raft, action: &Action) -> Result<(), RaftError> {
    match action {
        Action::AddLearner(id, peer) => raft.add_learner(*id, peer.clone(), CATCH_UP).await,
        Action::Promote(id) => raft.promote(*id, CATCH_UP).await,
        Action::ChangeAddress(id, peer) => raft.change_address(*id, peer.clone(), CATCH_UP).await,
        Action::Remove(id) if *id == raft.id() => raft.transfer_leadership(None, CATCH_UP).await,
        Action::Remove(id) => raft.remove(*id, CATCH_UP).await,
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

    fn wanted(ids: &[u64]) -> BTreeMap<RaftId, Peer> {
        ids.iter().map(|n| (*n, peer(*n))).collect()
    }

    #[test]
    fn a_new_manager_is_taken_in_first_without_a_vote() {
        assert_eq!(plan(&wanted(&[1, 7]), &[member(1, true)]), [Action::AddLearner(7, peer(7))]);
        assert_eq!(plan(&wanted(&[1, 7]), &[member(1, true), member(7, false)]), [Action::Promote(7)]);
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
        moved.insert(2, peer(20));
        assert_eq!(plan(&moved, &[member(1, true), member(2, true)]), [Action::ChangeAddress(2, peer(20))]);
    }
}
