//! Whether names, virtual addresses and links are as the managers' last word says.

use skep_proto::model::doctor::Check;

/// What differs from the last view, each in a few words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Truth {
    /// Of the kernel's rules: virtual addresses, published ports, filters.
    pub rules: Vec<String>,
    /// Of links.
    pub links: Vec<String>,
    /// Of the name server: zones, sandboxes that it serves.
    pub names: Vec<String>,
    /// How many namespaces were compared.
    pub namespaces: usize,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

impl Truth {
    /// Nothing differs.
    pub fn holds(&self) -> bool {
        self.rules.is_empty() && self.links.is_empty() && self.names.is_empty()
    }
}

/// Differences that are told at most.
const TOLD: usize = 3;

/// Judges what was seen twice, some time apart: what others take away comes back meanwhile.
pub fn judge(seen: &Truth) -> Vec<Check> {
    let again = "another program changes skep's own: find it (a firewall's reload, nft flush ruleset); what stays \
                 away: this node's log says why; ending the process skep net and restarting the daemon makes all of it anew";
    let check = |name: &str, differences: &[String], well: String, advice: &str| {
        if differences.is_empty() {
            return Check::ok(name, well);
        }
        let told = differences.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
        let more = match differences.len().saturating_sub(TOLD) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Check::failed(name, told + &more, advice)
    };
    let spaces = seen.namespaces;
    let mut checks = vec![
        check("rules", &seen.rules, format!("the kernel holds the managers' last word in {spaces} namespaces"), again),
        check("links", &seen.links, "all there and up".into(), again),
        check(
            "names",
            &seen.names,
            "the name server has the managers' last word".into(),
            "the process skep net does not answer or lacks names: look in this node's log; killing it makes the daemon \
             start another, which is told everything",
        ),
    ];
    if !seen.unseen.is_empty() {
        let advice = "look in this node's log";
        checks.push(Check::warning("network", format!("could not be read: {}", seen.unseen.join("; ")), advice));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::model::doctor::Outcome;

    #[test]
    fn each_difference_is_told_by_kind() {
        assert!(judge(&Truth::default()).iter().all(|check| check.outcome == Outcome::Ok));
        let many = (1..=5).map(|n| format!("chain {n}")).collect();
        let checks = judge(&Truth { rules: many, unseen: vec!["x".into()], ..Truth::default() });
        assert_eq!(checks[0].seen, "chain 1; chain 2; chain 3 and 2 more");
        let outcomes: Vec<Outcome> = checks.iter().map(|check| check.outcome).collect();
        assert_eq!(outcomes, [Outcome::Failed, Outcome::Ok, Outcome::Ok, Outcome::Warning]);
    }
}
