//! What a manager concludes from the reports of nodes: clocks, and whether what they know is what the store says.

use std::collections::BTreeSet;

use skep_proto::model::TaskState;
use skep_proto::model::doctor::{Check, Diagnosis, Known, NodeDiagnosis, Outcome};

use crate::ports::control::TaskView;

/// Differences of clocks, in milliseconds, that are told of, and that break things: certificates are valid from their
/// signing on, with little room before.
const CLOCK_WARNING: u64 = 1_000;
const CLOCK_FAILED: u64 = 60_000;

/// Compares clocks as NTP does (RFC 5905, section 8): the manager asked and heard at these times of its own, the node began
/// and ended at these of its own; all in milliseconds since 1970.
pub(super) fn clock(asked: u64, began: u64, ended: u64, heard: u64) -> Check {
    let wide = i128::from;
    let offset = ((wide(began) - wide(asked)) + (wide(ended) - wide(heard))) / 2;
    let way = (wide(heard) - wide(asked) - (wide(ended) - wide(began))).max(0);
    let size = u64::try_from(offset.unsigned_abs()).unwrap_or(u64::MAX);
    let error = u64::try_from(way / 2).unwrap_or(u64::MAX);
    let direction = if offset < 0 { "behind" } else { "ahead of" };
    let text = format!("{size} ms {direction} the manager's, give or take {error} ms");
    let advice = "run a time service on every node (chrony, systemd-timesyncd) and look whether it is in step (timedatectl); \
                  certificates and handshakes are refused between clocks that differ much";
    // What the way takes is no difference.
    match size.saturating_sub(error) {
        CLOCK_FAILED.. => Check::failed("clock", text, advice),
        CLOCK_WARNING.. => Check::warning("clock", text, advice),
        _ => Check::ok("clock", text),
    }
}

/// A task, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    id: String,
    service: String,
    networks: Vec<String>,
    /// It runs, shall run, and is ready for connections.
    runs: bool,
    /// It has ended.
    over: bool,
}

impl Fact {
    pub(super) fn of(view: &TaskView) -> Self {
        let task = &view.task;
        let running = task.status.state == TaskState::Running && task.desired == TaskState::Running;
        Self {
            id: task.id.to_string(),
            service: task.service.map(|id| id.to_string()).unwrap_or_default(),
            networks: view.networks.iter().map(|network| network.id.to_string()).collect(),
            // Whether a container is ready is not in the store: with a probe it may run without connections.
            runs: running
                && !task.spec.containers.iter().any(|c| c.pod.as_ref().is_some_and(|pod| pod.readiness.is_some())),
            over: task.status.state > TaskState::Running,
        }
    }
}

/// The store, read before and after a node was asked: what changed meanwhile is not held against the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Store {
    /// Ids of nodes, before.
    pub nodes: Vec<String>,
    /// Tasks before.
    pub before: Vec<Fact>,
    /// Tasks after.
    pub after: Vec<Fact>,
}

/// Compares what a node leads names, virtual addresses and ports to with what the store says.
pub(super) fn truth(known: &Known, store: &Store) -> Check {
    fn ids(facts: &[Fact], which: impl Fn(&&Fact) -> bool) -> BTreeSet<&String> {
        facts.iter().filter(which).map(|fact| &fact.id).collect()
    }
    let over = ids(&store.before, |fact| fact.over);
    let there = &ids(&store.before, |_| true) | &ids(&store.after, |_| true);
    let stale: Vec<&String> = known.serving.iter().filter(|id| over.contains(id) || !there.contains(id)).collect();
    let reached = |fact: &&Fact| {
        fact.runs && known.services.contains(&fact.service) && fact.networks.iter().any(|n| known.networks.contains(n))
    };
    let serving: BTreeSet<&String> = known.serving.iter().collect();
    let all = &ids(&store.before, reached) & &ids(&store.after, reached);
    let missing: Vec<&String> = all.into_iter().filter(|id| !serving.contains(id)).collect();
    let unknown = store.nodes.iter().filter(|id| !known.nodes.contains(id)).count();
    let mut told = Vec::new();
    for (tasks, what) in
        [(stale, "leads names and addresses to tasks that are over"), (missing, "does not lead to tasks that run")]
    {
        if let Some(first) = tasks.first() {
            let more = if tasks.len() > 1 { format!(" and {} more", tasks.len() - 1) } else { String::new() };
            told.push(format!("it {what}: {first}{more}"));
        }
    }
    if unknown > 0 {
        told.push(format!("it does not know {unknown} of {} nodes", store.nodes.len()));
    }
    if told.is_empty() {
        return Check::ok("store", format!("it leads to {} tasks, as the managers' store says", serving.len()));
    }
    let advice = "the node's session with the managers is cut or slow: look at its other checks and at its log; it is told \
                  again when the session is back";
    Check::failed("store", told.join("; "), advice)
}

/// A node that cannot be asked.
pub(super) fn unreachable(why: &str, from: &str) -> Check {
    let advice = format!(
        "start the daemon there if it is down; else look at the checks of {from} with this node as the other one, and at \
         this node's own log: it must reach a manager's TCP port"
    );
    Check::failed("daemon", format!("it cannot be asked from {from}: {why}"), advice)
}

/// The node is down as far as everybody can see: many lines about the ways to it become one.
pub(super) fn condense(diagnosis: &mut Diagnosis) {
    let down: Vec<String> =
        diagnosis.nodes.iter().filter(|node| is_unreachable(node)).map(|n| n.name.clone()).collect();
    let asked = diagnosis.nodes.len() - down.len();
    for name in down.into_iter().filter(|_| asked > 1) {
        let is_lost = |check: &Check| check.peer == name && check.outcome == Outcome::Failed && check.name == "tunnel";
        let losing = diagnosis.nodes.iter().filter(|node| node.checks.iter().any(is_lost)).count();
        if losing < asked {
            continue;
        }
        for node in &mut diagnosis.nodes {
            node.checks.retain(|check| check.peer != name || check.outcome == Outcome::Ok);
            if node.name == name
                && let Some(check) = node.checks.first_mut()
            {
                check.seen.push_str(&format!("; none of {asked} nodes has a way to it"));
            }
        }
    }
}

fn is_unreachable(node: &NodeDiagnosis) -> bool {
    node.checks.iter().any(|check| check.name == "daemon" && check.outcome == Outcome::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_the_way_cannot_explain() {
        let outcome = |began, ended, heard| clock(100_000, began, ended, heard).outcome;
        assert_eq!(outcome(100_010, 102_000, 102_020), Outcome::Ok);
        assert_eq!(outcome(103_010, 105_000, 102_020), Outcome::Warning);
        assert_eq!(outcome(203_010, 205_000, 102_020), Outcome::Failed);
        assert_eq!(outcome(10, 2_000, 102_020), Outcome::Failed);
        // The answer took ten seconds: a difference of five is within the error.
        assert_eq!(outcome(100_000, 102_000, 112_000), Outcome::Ok);
        assert!(clock(100_000, 97_000, 98_000, 101_000).seen.starts_with("3000 ms behind"));
        for wild in [0, u64::MAX] {
            let _ = (clock(0, wild, u64::MAX, 0), clock(u64::MAX, 0, wild, u64::MAX));
        }
    }

    fn fact(id: &str, runs: bool) -> Fact {
        Fact { id: id.into(), service: "web".into(), networks: vec!["net".into()], runs, over: !runs }
    }

    fn known(serving: &[&str]) -> Known {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Known { nodes: own(&["n1"]), networks: own(&["net"]), services: own(&["web"]), serving: own(serving) }
    }

    #[test]
    fn tasks_that_are_over_or_missing_are_named() {
        let store = |before: Vec<Fact>, after: Vec<Fact>| Store { nodes: vec!["n1".into()], before, after };
        let steady = |facts: Vec<Fact>| store(facts.clone(), facts);
        assert_eq!(truth(&known(&["a"]), &steady(vec![fact("a", true)])).outcome, Outcome::Ok);
        assert!(truth(&known(&["a"]), &steady(vec![fact("a", false)])).seen.contains("tasks that are over: a"));
        assert!(truth(&known(&["a"]), &steady(vec![])).seen.contains("tasks that are over: a"));
        assert!(truth(&known(&[]), &steady(vec![fact("a", true)])).seen.contains("tasks that run: a"));
        // What changed while the node was asked says nothing.
        assert_eq!(truth(&known(&["a"]), &store(vec![fact("a", true)], vec![fact("a", false)])).outcome, Outcome::Ok);
        assert_eq!(truth(&known(&[]), &store(vec![], vec![fact("a", true)])).outcome, Outcome::Ok);
        // A task on networks that the node does not use is none of its business.
        let elsewhere = Fact { networks: vec!["other".into()], ..fact("a", true) };
        assert_eq!(truth(&known(&[]), &steady(vec![elsewhere])).outcome, Outcome::Ok);
        let two = Store { nodes: vec!["n1".into(), "n2".into()], ..Store::default() };
        assert_eq!(truth(&known(&[]), &two).seen, "it does not know 1 of 2 nodes");
    }

    fn node(name: &str, checks: Vec<Check>) -> NodeDiagnosis {
        NodeDiagnosis { id: name.into(), name: name.into(), checks }
    }

    #[test]
    fn a_node_that_nobody_reaches_is_one_line_and_a_cut_pair_stays() {
        let lost = || Check::failed("tunnel", "x", "y").with("c");
        let down = || node("c", vec![unreachable("no session", "a")]);
        let mut all = Diagnosis { nodes: vec![node("a", vec![lost()]), node("b", vec![lost()]), down()], whole: true };
        condense(&mut all);
        assert_eq!(all.nodes.iter().map(|node| node.checks.len()).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(all.nodes[2].checks[0].seen.contains("none of 2 nodes"));
        for nodes in [vec![node("a", vec![lost()]), down()], vec![node("a", vec![lost()]), node("b", vec![]), down()]] {
            let before = Diagnosis { nodes, whole: true };
            let mut after = before.clone();
            condense(&mut after);
            assert_eq!(after, before);
        }
    }
}
