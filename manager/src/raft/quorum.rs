//! Whether a change of the group leaves it able to go on. Pure.

use std::collections::BTreeSet;

use super::types::RaftId;

/// Removing the member would leave fewer reachable voters than a majority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "removing manager {removed} would leave {reachable} reachable of {voters} managers, and {needed} are needed to go on; \
     bring an unreachable manager back or remove one first"
)]
pub struct QuorumLoss<Id: std::fmt::Display = RaftId> {
    /// The member to be removed.
    pub removed: Id,
    /// Voters that would be left.
    pub voters: usize,
    /// Of these, how many answer now.
    pub reachable: usize,
    /// How many have to.
    pub needed: usize,
}

/// Members that have to agree, of `voters`.
pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether the group goes on without `removed`, when only the members in `reachable` answer.
///
/// The last voter can never be removed. Removing a member that is no voter never costs anything.
///
/// # Errors
/// [`QuorumLoss`] says how many would be missing.
pub fn check_removal<Id: Ord + Copy + std::fmt::Display>(
    voters: &BTreeSet<Id>,
    reachable: &BTreeSet<Id>,
    removed: Id,
) -> Result<(), QuorumLoss<Id>> {
    if !voters.contains(&removed) {
        return Ok(());
    }
    let left: BTreeSet<Id> = voters.iter().copied().filter(|id| *id != removed).collect();
    let alive = left.intersection(reachable).count();
    let needed = majority(left.len());
    if left.is_empty() || alive < needed {
        return Err(QuorumLoss { removed, voters: left.len(), reachable: alive, needed });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(ids: &[RaftId]) -> BTreeSet<RaftId> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_healthy_group_of_three_can_lose_any_one() {
        for id in 1..=3 {
            assert_eq!(check_removal(&set(&[1, 2, 3]), &set(&[1, 2, 3]), id), Ok(()));
        }
    }

    #[test]
    fn the_last_voter_stays() {
        assert_eq!(
            check_removal(&set(&[1]), &set(&[1]), 1),
            Err(QuorumLoss { removed: 1, voters: 0, reachable: 0, needed: 1 })
        );
    }

    #[test]
    fn with_one_of_three_down_only_that_one_may_go() {
        let (voters, up) = (set(&[1, 2, 3]), set(&[1, 2]));
        assert_eq!(check_removal(&voters, &up, 3), Ok(()));
        assert_eq!(check_removal(&voters, &up, 2), Err(QuorumLoss { removed: 2, voters: 2, reachable: 1, needed: 2 }));
    }

    #[test]
    fn a_learner_may_always_go() {
        assert_eq!(check_removal(&set(&[1, 2, 3]), &set(&[1]), 9), Ok(()));
    }

    proptest! {
        #[test]
        fn an_allowed_removal_always_leaves_a_reachable_majority(
            voters in prop::collection::btree_set(0u64..8, 0..8),
            reachable in prop::collection::btree_set(0u64..8, 0..8),
            removed in 0u64..8,
        ) {
            let left: BTreeSet<_> = voters.iter().copied().filter(|id| *id != removed).collect();
            let alive = left.intersection(&reachable).count();
            let allowed = check_removal(&voters, &reachable, removed).is_ok();
            if voters.contains(&removed) {
                prop_assert_eq!(allowed, 2 * alive > left.len());
            } else {
                prop_assert!(allowed);
            }
        }
    }
}
