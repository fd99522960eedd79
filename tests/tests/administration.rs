//! Who is a manager, what the cluster is set to, its keys and certificates: all of it changed while tasks run.

use anyhow::{Context, ensure};
use skep_tests::{Lab, eventually, host};

const IMAGE: &str = "skep/whoami:latest";

/// `ManagerStatus` of a node as `docker node ls` shows it, asked at another node.
fn manager_status(lab: &Lab, from: &str, node: &str) -> anyhow::Result<String> {
    let nodes = lab.docker(from, &["node", "ls", "--format", "{{.Hostname}}={{.Status}}={{.ManagerStatus}}"])?;
    let line = nodes.lines().find(|l| l.starts_with(&format!("{node}="))).context("the node is not listed")?;
    Ok(line.split_once('=').unwrap_or_default().1.to_owned())
}

fn wait_for_status(lab: &Lab, from: &str, node: &str, wanted: &[&str]) {
    eventually(&format!("{node} is {wanted:?}"), || {
        let status = manager_status(lab, from, node)?;
        ensure!(wanted.contains(&status.as_str()), "{status}");
        Ok(())
    });
}

fn refusal(lab: &Lab, node: &str, arguments: &[&str]) -> String {
    match lab.docker(node, arguments) {
        Ok(said) => panic!("not refused: {said}"),
        Err(error) => error.to_string(),
    }
}

fn info(lab: &Lab, node: &str, field: &str) -> anyhow::Result<String> {
    Ok(lab.docker(node, &["info", "--format", &format!("{{{{{field}}}}}")])?.trim().to_owned())
}

const MANAGES: &[&str] = &["Ready=Reachable", "Ready=Leader"];

#[test]
#[ignore = "needs root"]
fn a_promoted_worker_manages_and_a_demoted_manager_works_on_and_no_container_notices() {
    let lab = Lab::up(1, 2, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 3);
    let before = (lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1"));
    let last = refusal(&lab, "m1", &["node", "demote", "m1"]);
    assert!(last.contains("attempting to demote the last manager of the swarm"), "{last}");

    lab.docker("m1", &["node", "promote", "w1", "w2"]).unwrap();
    for node in ["w1", "w2"] {
        wait_for_status(&lab, "m1", node, MANAGES);
        eventually("the new manager answers", || lab.docker(node, &["node", "ls"]).map(drop));
    }
    let member = refusal(&lab, "m1", &["node", "rm", "--force", "w1"]);
    assert!(
        member.contains("is a cluster manager and is a member of the raft cluster. It must be demoted"),
        "{member}"
    );

    // The leader itself: it hands over first.
    lab.docker("w1", &["node", "demote", "m1"]).unwrap();
    wait_for_status(&lab, "w1", "m1", &["Ready="]);
    eventually("the demoted manager is a worker", || {
        ensure!(info(&lab, "m1", ".Swarm.ControlAvailable")? == "false");
        Ok(())
    });
    assert!(refusal(&lab, "m1", &["node", "ls"]).contains("This node is not a swarm manager. Worker nodes can't"));

    // Of two managers, one that is down takes the majority with it.
    lab.lab(&["kill", "w2"]).unwrap();
    eventually("the other manager is alone", || {
        let refused = refusal(&lab, "w1", &["node", "demote", "w1"]);
        ensure!(refused.contains("loss of quorum") || refused.contains("does not have a leader"), "{refused}");
        Ok(())
    });
    lab.lab(&["start", "w2"]).unwrap();
    wait_for_status(&lab, "w1", "w2", MANAGES);

    // And back, the first manager anew.
    lab.docker("w1", &["node", "promote", "m1"]).unwrap();
    wait_for_status(&lab, "w1", "m1", MANAGES);
    eventually("it answers again", || lab.docker("m1", &["node", "ls"]).map(drop));
    // Demoted and promoted before it notices, and once more after it has.
    lab.docker("m1", &["node", "demote", "w1"]).unwrap();
    lab.docker("m1", &["node", "promote", "w1"]).unwrap();
    wait_for_status(&lab, "m1", "w1", MANAGES);
    lab.docker("m1", &["node", "demote", "w1"]).unwrap();
    wait_for_status(&lab, "m1", "w1", &["Ready="]);
    lab.docker("m1", &["node", "update", "--role", "manager", "w1"]).unwrap();
    wait_for_status(&lab, "m1", "w1", MANAGES);
    eventually("it answers once more", || lab.docker("w1", &["service", "ls"]).map(drop));
    assert_eq!((lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1")), before, "no container was touched");
}

#[test]
#[ignore = "needs root"]
fn a_change_of_role_goes_on_after_a_kill_at_any_time_and_a_node_leaves_and_is_removed() {
    let lab = Lab::up(1, 1, &[]);
    for pause_ms in [0, 150, 400, 900] {
        for (verb, wanted) in [("promote", MANAGES), ("demote", &["Ready="] as &[&str])] {
            lab.docker("m1", &["node", verb, "w1"]).unwrap();
            // Where in the change it is killed is a matter of chance, and must not matter.
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            lab.lab(&["kill", "w1"]).unwrap();
            lab.lab(&["start", "w1"]).unwrap();
            wait_for_status(&lab, "m1", "w1", wanted);
        }
    }
    lab.docker("m1", &["node", "promote", "w1"]).unwrap();
    wait_for_status(&lab, "m1", "w1", MANAGES);
    let refused = refusal(&lab, "w1", &["swarm", "leave"]);
    assert!(
        refused.contains("participating as a manager. Removing this node leaves 1 managers out of 2."),
        "{refused}"
    );
    lab.docker("w1", &["swarm", "leave", "--force"]).unwrap();
    eventually("it is down and no manager", || {
        let status = manager_status(&lab, "m1", "w1")?;
        ensure!(status == "Down=", "{status}");
        Ok(())
    });
    lab.docker("m1", &["node", "rm", "w1"]).unwrap();
    let last = refusal(&lab, "m1", &["swarm", "leave"]);
    assert!(last.contains("Removing the last manager erases all current state of the swarm."), "{last}");
}
