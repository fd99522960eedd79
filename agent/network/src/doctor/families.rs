//! Nodes that speak different versions of IP.

use std::collections::BTreeSet;

use skep_proto::model::doctor::Check;

use crate::config::Underlay;

/// What is known of the versions of IP here and elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Families {
    /// Whether this node has IPv6.
    pub has_ipv6: bool,
    /// It has, and sandboxes from before do not.
    pub lacks: bool,
    /// Whether another node's tasks have it.
    pub others_have: bool,
    /// This node's addresses on the underlay.
    pub own: Underlay,
    /// Nodes that nothing gets to from here: on a network that is not encrypted, or by all that is.
    pub cut_off: BTreeSet<(String, Option<String>)>,
}

/// Judges it. Says nothing where all nodes are alike.
pub fn judge(seen: &Families) -> Vec<Check> {
    let mut checks = Vec::new();
    if !seen.has_ipv6 && seen.others_have {
        checks.push(Check::warning(
            "IPv6",
            "this node has no IPv6, and others have: its tasks are left out of what is asked over IPv6",
            "turn it on (net.ipv6.conf.all.disable_ipv6=0, no ipv6.disable=1 on the kernel's command line) and restart the \
             daemon, or keep services that need it away by the constraint engine.labels.io.skep.ipv6==true",
        ));
    }
    if seen.lacks {
        checks.push(Check::warning(
            "IPv6",
            "tasks here were made while the node had no IPv6: all of its tasks are left out of what is asked over IPv6",
            "replace them: drain the node and set it active again",
        ));
    }
    for (node, network) in &seen.cut_off {
        let ours = match seen.own {
            Underlay { v4: Some(_), .. } => "IPv4",
            Underlay { v4: None, .. } => "IPv6",
        };
        let (what, advice) = match network {
            Some(network) => (
                format!(
                    "the network {network} is not encrypted and goes over {ours} from here, which the other node's data path \
                     does not have: its tasks are not reached, and nothing leads to them"
                ),
                "give all nodes of the network a data path of one version of IP (--data-path-addr), or make it anew without \
                 --opt encrypted=false",
            ),
            None => (
                "the data paths of both nodes have no version of IP in common: its tasks are not reached, and nothing leads \
                 to them"
                    .to_owned(),
                "give both a data path of one version of IP (--data-path-addr)",
            ),
        };
        checks.push(Check { peer: node.clone(), ..Check::failed("data path", what, advice) });
    }
    checks
}

#[cfg(test)]
mod tests {
    use skep_proto::model::doctor::Outcome;

    use super::*;

    #[test]
    fn nodes_that_are_alike_are_not_spoken_of() {
        assert_eq!(judge(&Families { has_ipv6: true, others_have: true, ..Families::default() }), []);
        assert_eq!(judge(&Families::default()), []);
    }

    #[test]
    fn each_difference_has_its_sentence() {
        let of = |seen: &Families| -> Vec<(Outcome, String)> {
            judge(seen).into_iter().map(|check| (check.outcome, check.seen)).collect()
        };
        let without = of(&Families { others_have: true, ..Families::default() });
        assert!(matches!(&without[..], [(Outcome::Warning, text)] if text.contains("no IPv6, and others have")));
        let before = of(&Families { has_ipv6: true, lacks: true, ..Families::default() });
        assert!(matches!(&before[..], [(Outcome::Warning, text)] if text.contains("were made while")));
        let own = Underlay { v4: Some([192, 0, 2, 1].into()), v6: None };
        let cut_off = [("w2".to_owned(), Some("plain".to_owned())), ("w3".to_owned(), None)].into();
        let cut = of(&Families { has_ipv6: true, own, cut_off, ..Families::default() });
        assert!(cut.iter().all(|(outcome, _)| *outcome == Outcome::Failed));
        assert!(cut[0].1.contains("the network plain is not encrypted and goes over IPv4"), "{cut:?}");
        assert!(cut[1].1.contains("have no version of IP in common"), "{cut:?}");
    }
}
