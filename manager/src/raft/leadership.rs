//! Who leads, by the lease: what openraft calls a leader may have lost its majority without knowing.

use std::sync::Arc;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::node::Shared;
use super::types::{Peer, RaftId};

/// The member that leads, as far as this one knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its number.
    pub id: RaftId,
    /// Its address and node.
    pub peer: Peer,
    /// The term it leads.
    pub term: u64,
}

/// What the decision about leadership depends on.
pub(super) struct Seen {
    pub me: RaftId,
    pub term: u64,
    pub leader: Option<RaftId>,
    /// This member is the only voter.
    pub alone: bool,
    /// How long ago a majority answered this leader.
    pub acked: Option<Duration>,
    /// How long ago this follower heard from the leader of `term`.
    pub heard: Option<Duration>,
    pub applied_term: Option<u64>,
}

/// The leader, and the term that this member may act in as the leader.
pub(super) fn decide(seen: &Seen, lease: Duration) -> (Option<RaftId>, Option<u64>) {
    let Some(leader) = seen.leader else { return (None, None) };
    let fresh = |age: Option<Duration>| age.is_some_and(|age| age < lease);
    if leader != seen.me {
        return (fresh(seen.heard).then_some(leader), None);
    }
    if !seen.alone && !fresh(seen.acked) {
        return (None, None);
    }
    // Until an entry of its own term is applied, its state may lack writes that were acknowledged.
    let tenure = (seen.applied_term == Some(seen.term)).then_some(seen.term);
    (Some(leader), tenure)
}

/// Keeps the published leader right until stopped.
pub(super) async fn keep(
    shared: Arc<Shared>,
    leader: watch::Sender<Option<Leader>>,
    tenure: watch::Sender<Option<u64>>,
    stop: CancellationToken,
) {
    let lease = shared.timing.election_max;
    let mut metrics = shared.raft.metrics();
    // A lease ends by the passing of time, which changes no metric.
    let mut tick = tokio::time::interval(shared.timing.heartbeat / 2);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut membership = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = metrics.changed() => if changed.is_err() { break },
            _ = tick.tick() => {}
        }
        let newest = Arc::clone(&metrics.borrow_watched().membership_config);
        if membership.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &newest)) {
            shared.links.learn(newest.membership().nodes());
            membership = Some(newest);
        }
        let (found, may_act) = look(&shared, lease);
        leader.send_if_modified(|old| replace(old, found));
        tenure.send_if_modified(|old| replace(old, may_act));
    }
    leader.send_replace(None);
    tenure.send_replace(None);
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    if changed {
        *old = new;
    }
    changed
}

fn look(shared: &Shared, lease: Duration) -> (Option<Leader>, Option<u64>) {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let mut voters = membership.voter_ids();
    let seen = Seen {
        me: shared.id,
        term: metrics.current_term,
        leader: metrics.current_leader,
        alone: voters.next() == Some(shared.id) && voters.next().is_none(),
        acked: metrics.last_quorum_acked.map(|at| at.elapsed()),
        heard: shared.last_heard(metrics.current_term).map(|at| Instant::now() - at),
        applied_term: metrics.last_applied.as_ref().map(|id| id.leader_id.term),
    };
    let (leader, tenure) = decide(&seen, lease);
    let leader = leader.map(|id| Leader {
        id,
        peer: membership.get_node(&id).cloned().unwrap_or_default(),
        term: metrics.current_term,
    });
    (leader, tenure)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(600);
    const RECENT: Option<Duration> = Some(Duration::from_millis(100));
    const LONG_AGO: Option<Duration> = Some(Duration::from_millis(700));

    fn leading() -> Seen {
        Seen { me: 1, term: 5, leader: Some(1), alone: false, acked: RECENT, heard: None, applied_term: Some(5) }
    }

    #[test]
    fn a_leader_acts_while_its_lease_lasts() {
        assert_eq!(decide(&leading(), LEASE), (Some(1), Some(5)));
    }

    #[test]
    fn a_leader_without_a_majority_is_no_leader() {
        assert_eq!(decide(&Seen { acked: LONG_AGO, ..leading() }, LEASE), (None, None));
        assert_eq!(decide(&Seen { acked: None, ..leading() }, LEASE), (None, None));
    }

    #[test]
    fn a_single_voter_needs_nobody() {
        assert_eq!(decide(&Seen { alone: true, acked: None, ..leading() }, LEASE), (Some(1), Some(5)));
    }

    #[test]
    fn a_new_leader_does_not_act_before_it_applied_an_entry_of_its_own() {
        assert_eq!(decide(&Seen { applied_term: Some(4), ..leading() }, LEASE), (Some(1), None));
    }

    #[test]
    fn a_follower_forgets_a_leader_that_fell_silent() {
        let following = |heard| Seen { leader: Some(2), heard, ..leading() };
        assert_eq!(decide(&following(RECENT), LEASE), (Some(2), None));
        assert_eq!(decide(&following(LONG_AGO), LEASE), (None, None));
        assert_eq!(decide(&following(None), LEASE), (None, None));
    }
}
