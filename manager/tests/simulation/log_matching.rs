//! If two logs have an entry of the same index and term, they are equal up to it (raft dissertation, figure 3.2, "Log
//! Matching"). Entries that were never committed count too.

use std::collections::BTreeMap;

use skep_manager::raft::LogSummary;

use crate::run;

#[test]
fn logs_that_share_an_entry_are_equal_up_to_it() {
    run::check_seeds("log_matching", |report| {
        let mut compared = 0;
        for logs in &report.logs {
            let logs: Vec<(&u64, &Vec<LogSummary>)> = logs.iter().collect();
            for (i, (a, left)) in logs.iter().enumerate() {
                for (b, right) in &logs[i + 1..] {
                    compared += compare(**a, left, **b, right);
                }
            }
        }
        assert!(compared > 100, "only {compared} entries were compared");
    });
}

fn compare(a: u64, left: &[LogSummary], b: u64, right: &[LogSummary]) -> usize {
    let left: BTreeMap<u64, &LogSummary> = left.iter().map(|e| (e.index, e)).collect();
    let both: Vec<_> = right.iter().filter_map(|r| left.get(&r.index).map(|l| (*l, r))).collect();
    let Some(last) = both.iter().rposition(|(l, r)| l.term == r.term) else { return 0 };
    for (l, r) in &both[..=last] {
        assert_eq!(l, r, "members {a} and {b} differ below an entry that they share");
    }
    last + 1
}
