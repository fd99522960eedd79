//! A write that was acknowledged is never lost, whatever crashed: it is on disk on a majority before anyone hears of it.

use std::collections::BTreeMap;

use crate::run;

#[test]
fn acknowledged_writes_survive() {
    run::check_seeds("acknowledged_writes", |report| {
        let mut last: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
        let mut values: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, key, value, index) in report.acknowledged() {
            *values.entry(index).or_default() += 1;
            let newest = last.entry(key).or_insert((index, value));
            if newest.0 < index {
                *newest = (index, value);
            }
        }
        assert!(values.len() > 20, "only {} entries were acknowledged", values.len());
        // Entries that were applied, by any member: an acknowledged one that none applied is lost.
        for index in values.keys() {
            let known = report.traces.iter().any(|(_, trace)| trace.contains_key(index));
            assert!(known, "entry {index} was acknowledged and is in no state");
        }
        // The last acknowledged value of a key may only be replaced by a write that came later or was never answered.
        for (key, (index, value)) in last {
            for (member, state) in &report.states {
                assert!(state.applied >= index, "member {member} is at {}, {index} was acknowledged", state.applied);
                let found = &state.map[key];
                let answered = report.acknowledged().find(|(_, _, v, _)| v == found).map(|(_, _, _, at)| at);
                assert!(found == value || answered.is_none_or(|at| at > index), "{key} fell back to {found}");
            }
        }
    });
}
