//! At most one manager leads in a term (raft dissertation, figure 3.2, "Election Safety").

use std::collections::BTreeMap;

use crate::run;

#[test]
fn no_term_has_two_leaders() {
    run::check_seeds("election_safety", |report| {
        assert!(!report.reigns.is_empty(), "nobody ever led");
        let mut leaders = BTreeMap::new();
        for reign in &report.reigns {
            let first = *leaders.entry(reign.term).or_insert(reign.member);
            assert_eq!(first, reign.member, "term {} had two leaders", reign.term);
        }
    });
}
