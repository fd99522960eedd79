//! All managers apply the same entries in the same order (raft dissertation, figure 3.2, "State Machine Safety"), over
//! crashes, snapshots and restarts.

use std::collections::BTreeMap;

use crate::run;

#[test]
fn every_member_and_every_life_of_it_passes_through_the_same_states() {
    run::check_seeds("state_agreement", |report| {
        let mut digests = BTreeMap::new();
        let mut compared = 0;
        for (member, trace) in &report.traces {
            for (index, digest) in trace {
                let (first, expected) = digests.entry(*index).or_insert((*member, *digest));
                assert_eq!(expected, digest, "members {first} and {member} differ at entry {index}");
                compared += 1;
            }
        }
        assert!(compared > 2 * digests.len(), "{compared} states of {} entries", digests.len());
    });
}
