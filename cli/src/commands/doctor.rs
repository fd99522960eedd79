//! `skep doctor`: what is wrong with this cluster, and what to do.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use skep_proto::model::doctor::{Check, Diagnosis, NodeDiagnosis, Outcome};

use crate::client::{Client, encode};

/// Look for what is wrong with the cluster's nodes and the ways between them
#[derive(Debug, Args)]
pub struct DoctorFlags {
    /// Look at one node alone, by id or host name
    #[arg(long)]
    node: Option<String>,
    /// Show what is well, too
    #[arg(short, long)]
    verbose: bool,
    /// json, for programs
    #[arg(short, long)]
    output: Option<String>,
}

/// Runs the command. Ends with 1 when something does not work.
///
/// # Errors
/// When the daemon cannot be asked.
pub async fn run(flags: DoctorFlags, client: &Client) -> anyhow::Result<ExitCode> {
    let json = match flags.output.as_deref() {
        None => false,
        Some("json") => true,
        Some(other) => bail!("--output {other}: skep knows json alone"),
    };
    let node = flags.node.as_deref().map(|node| format!("?node={}", encode(node))).unwrap_or_default();
    let diagnosis: Diagnosis = client.get(&format!("/skep/doctor{node}")).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        let lines = render(&diagnosis, flags.verbose, flags.node.is_some());
        println!("{}", lines.join("\n"));
    }
    Ok(if diagnosis.worst() == Outcome::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One line for each problem, or for each check, and a summary. `one`: a single node was asked for.
fn render(diagnosis: &Diagnosis, verbose: bool, one: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let all = || diagnosis.nodes.iter().flat_map(|node| node.checks.iter().map(move |check| (node, check)));
    let mut shown: Vec<_> = all().filter(|(_, check)| verbose || check.outcome != Outcome::Ok).collect();
    // The worst first; within that in the order of nodes and of importance.
    shown.sort_by_key(|(_, check)| std::cmp::Reverse(check.outcome));
    lines.extend(shown.into_iter().map(|(node, check)| line(node, check)));
    let count = |outcome: Outcome| all().filter(|(_, check)| check.outcome == outcome).count();
    let (failed, warned) = (count(Outcome::Failed), count(Outcome::Warning));
    let nodes = diagnosis.nodes.len();
    let found = match (failed, warned) {
        (0, 0) => "all is well".to_owned(),
        (0, warned) => format!("{warned} to look at, nothing failed"),
        (failed, warned) => format!("{failed} failed, {warned} to look at"),
    };
    let plural = if nodes == 1 { "" } else { "s" };
    lines.push(format!("{nodes} node{plural}, {} checks: {found}", all().count()));
    if !diagnosis.whole && !one {
        lines.push(
            "This node is no manager, so this is what it sees itself; ask a manager for the whole cluster.".into(),
        );
    }
    lines
}

fn line(node: &NodeDiagnosis, check: &Check) -> String {
    let word = match check.outcome {
        Outcome::Ok => "ok     ",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED ",
    };
    let place = if check.peer.is_empty() { node.name.clone() } else { format!("{} -> {}", node.name, check.peer) };
    let advice = if check.advice.is_empty() { String::new() } else { format!(". To do: {}", check.advice) };
    format!("{word} {place}: {}: {}{advice}", check.name, check.seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(checks: Vec<Check>) -> Diagnosis {
        Diagnosis { nodes: vec![NodeDiagnosis { id: "1".into(), name: "m1".into(), checks }], whole: true }
    }

    #[test]
    fn problems_come_worst_first_and_what_is_well_on_request() {
        let checks = vec![
            Check::ok("kernel", "Linux 6.12"),
            Check::warning("storage", "1 GiB is free", "remove images"),
            Check::failed("tunnel", "nothing passes", "look at the cable").with("w1"),
        ];
        let lines = render(&diagnosis(checks.clone()), false, false);
        assert_eq!(
            lines,
            [
                "FAILED  m1 -> w1: tunnel: nothing passes. To do: look at the cable",
                "warning m1: storage: 1 GiB is free. To do: remove images",
                "1 node, 3 checks: 1 failed, 1 to look at"
            ]
        );
        assert_eq!(render(&diagnosis(checks), true, false)[2], "ok      m1: kernel: Linux 6.12");
        assert_eq!(render(&diagnosis(Vec::new()), false, false), ["1 node, 0 checks: all is well"]);
    }

    #[test]
    fn a_worker_says_that_it_sees_only_itself() {
        let own = Diagnosis { whole: false, ..diagnosis(Vec::new()) };
        assert!(render(&own, false, false)[1].contains("ask a manager"));
        assert_eq!(render(&own, false, true).len(), 1);
    }
}
