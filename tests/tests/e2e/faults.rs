//! What is killed, each in turn, and what must not be noticed.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use skep_tests::{Lab, eventually, host};

const IMAGE: &str = "skep/whoami:latest";

fn leader(lab: &Lab, from: &str) -> anyhow::Result<String> {
    let nodes = lab.docker(from, &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
    let line = nodes.lines().find(|l| l.ends_with("Leader")).context("no leader")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
#[ignore = "needs root"]
fn a_killed_leader_is_replaced_and_no_task_notices() {
    let mut lab = Lab::up(3, 0, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--replicas", "3", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 3);
    let before = lab.running("m1", "web");
    let old = leader(&lab, "m1").unwrap();
    let other = lab.nodes().into_iter().find(|n| *n != old).unwrap();
    lab.lab(&["kill", &old]).unwrap();
    let killed = Instant::now();
    eventually("another manager accepts writes", || {
        lab.docker(&other, &["service", "create", "-d", "--name", "after", "--replicas", "0", IMAGE]).map(drop)
    });
    println!("the next write was accepted {:.2} s after the leader was killed", killed.elapsed().as_secs_f64());
    lab.lab(&["start", &old]).unwrap();
    eventually("the old leader is back", || {
        let nodes = lab.docker(&other, &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
        ensure!(
            nodes.lines().all(|l| l.contains("Ready") && (l.ends_with("Leader") || l.ends_with("Reachable"))),
            "{nodes}"
        );
        Ok(())
    });
    assert_eq!(lab.running(&other, "web"), before, "no task was restarted");
    assert!(lab.pid(&old) > 0);
}

#[test]
#[ignore = "needs root"]
fn containers_outlive_the_daemon_and_are_taken_over() {
    let mut lab = Lab::up(1, 1, &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "4", "-p", "8080:80", IMAGE];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 4);
    eventually("the port answers", || lab.http("w1", 8080, "/health").map(drop));
    let before = (lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1"));
    let daemon = lab.pid("w1");
    lab.lab(&["kill", "w1"]).unwrap();
    // Without the daemon the node's own part of the data plane goes on.
    lab.http("w1", 8080, "/health").unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    assert_ne!(lab.pid("w1"), daemon);
    eventually("the worker is ready again", || {
        let nodes = lab.docker("m1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(nodes.contains("w1 Ready"), "{nodes}");
        Ok(())
    });
    lab.http("w1", 8080, "/health").unwrap();
    assert_eq!(
        (lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1")),
        before,
        "the same tasks, the same processes"
    );
}

#[test]
#[ignore = "needs root"]
fn killed_processes_of_a_container_lead_to_a_new_task() {
    let mut lab = Lab::up(1, 0, &[]);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "1", "--restart-delay", "100ms", IMAGE];
    lab.docker("m1", &create).unwrap();
    for victim in ["the container's process", "the shim"] {
        lab.wait_for_running("m1", "web", 1);
        let old = lab.running("m1", "web");
        let pids = if victim == "the shim" { host::shims(lab.pid("m1")) } else { host::pids_of(&lab.cgroup(), "m1") };
        assert!(!pids.is_empty(), "{victim}");
        pids.iter().for_each(|pid| host::kill(*pid));
        eventually(&format!("a task replaces the one whose {victim} was killed"), || {
            let new = lab.running("m1", "web");
            ensure!(new.len() == 1 && new != old, "{new:?}");
            Ok(())
        });
    }
    let story = lab.docker("m1", &["service", "ps", "--no-trunc", "web"]).unwrap();
    assert!(story.contains("non-zero exit (137)") && story.contains("shim died"), "{story}");
}

#[test]
#[ignore = "needs root"]
fn a_lost_worker_s_tasks_run_elsewhere_and_are_not_doubled_when_it_returns() {
    let lab = Lab::up(1, 2, &[]);
    let create =
        ["service", "create", "-d", "--name", "web", "--replicas", "6", "--constraint", "node.role==worker", IMAGE];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 6);
    lab.lab(&["cut", "w1"]).unwrap();
    let cut = Instant::now();
    eventually("all six run on the other worker", || {
        let running = lab.running("m1", "web");
        ensure!(running.len() == 6 && running.iter().all(|l| l.ends_with(" w2")), "{running:?}");
        Ok(())
    });
    println!("six tasks ran elsewhere {:.2} s after their worker was cut off", cut.elapsed().as_secs_f64());
    lab.lab(&["heal", "w1"]).unwrap();
    eventually("the returned worker has stopped its old tasks", || {
        let containers = lab.docker("w1", &["ps", "-q"])?;
        ensure!(containers.trim().is_empty(), "{containers}");
        Ok(())
    });
    assert_eq!(lab.running("m1", "web").len(), 6);
}

#[test]
#[ignore = "needs root"]
fn a_cluster_whose_daemons_were_all_killed_goes_on_as_it_was() {
    let lab = Lab::up(3, 1, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "net"]).unwrap();
    let create =
        ["service", "create", "-d", "--name", "web", "--replicas", "4", "--network", "net", "-p", "8080:80", IMAGE];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 4);
    // A daemon that is killed before it has heard of the tasks leaves its node without a way to them.
    eventually("the port answers", || lab.http("w1", 8080, "/health").map(drop));
    let (tasks, nodes) = (lab.running("m1", "web"), lab.docker("m1", &["node", "ls", "-q"]).unwrap());
    for node in lab.nodes() {
        lab.lab(&["kill", &node]).unwrap();
    }
    lab.http("w1", 8080, "/health").unwrap();
    for node in lab.nodes() {
        lab.lab(&["start", &node]).unwrap();
    }
    eventually("the cluster has its leader and all its tasks", || {
        let all = lab.docker("m2", &["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(all.lines().filter(|l| *l == "Ready").count() == 4, "{all}");
        ensure!(lab.running("m2", "web") == tasks, "the tasks differ");
        Ok(())
    });
    assert_eq!(lab.docker("m3", &["node", "ls", "-q"]).unwrap(), nodes);
    lab.docker("m3", &["service", "scale", "-d", "web=5"]).unwrap();
    lab.wait_for_running("m2", "web", 5);
}

#[test]
#[ignore = "needs root"]
fn a_killed_follower_is_not_missed_and_catches_up() {
    let lab = Lab::up(3, 0, &[]);
    let old = leader(&lab, "m1").unwrap();
    let others: Vec<String> = lab.nodes().into_iter().filter(|n| *n != old).collect();
    let (follower, witness) = (&others[0], &others[1]);
    lab.lab(&["kill", follower]).unwrap();
    // Two of three are a majority: nobody waits for an election.
    for i in 0..5 {
        let name = format!("web{i}");
        lab.docker(witness, &["service", "create", "-d", "--name", &name, "--replicas", "0", IMAGE]).unwrap();
    }
    assert_eq!(leader(&lab, witness).unwrap(), old);
    lab.lab(&["start", follower]).unwrap();
    eventually("the follower shows what was written without it", || {
        let services = lab.docker(follower, &["service", "ls", "-q"])?;
        ensure!(services.lines().count() == 5, "{services}");
        Ok(())
    });
}

/// Files of a manager's log and snapshots with that ending, in order.
fn raft_files(lab: &Lab, node: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![lab.root(node).join("root/raft")];
    while let Some(folder) = folders.pop() {
        // Folders of unfinished work come and go.
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|e| e == ending));
    found.sort();
    found
}

/// Writes until every manager has snapshots, and has removed the log's first segment: it can only be restored from both.
fn purge_the_log(lab: &Lab) {
    lab.docker("m1", &["swarm", "update", "--snapshot-interval", "50"]).unwrap();
    let first = |node: &str| raft_files(lab, node, "log").first().cloned();
    let managers = ["m1", "m2", "m3"];
    let begun = managers.map(first);
    assert!(begun.iter().all(Option::is_some), "{begun:?}");
    let content = vec![b'x'; 900_000];
    for n in 0..100 {
        lab.create_config("m1", &format!("filler{n}"), &content).unwrap();
        lab.docker("m1", &["config", "rm", &format!("filler{n}")]).unwrap();
    }
    eventually("every manager has a snapshot and has purged its log", || {
        for (node, begun) in managers.into_iter().zip(&begun) {
            ensure!(!raft_files(lab, node, "snapshot").is_empty(), "{node} has no snapshot");
            ensure!(first(node) != *begun, "{node} still has {begun:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn after_a_power_failure_of_every_node_the_same_cluster_runs_the_same_services() {
    let lab = Lab::up(3, 1, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "net"]).unwrap();
    let create =
        ["service", "create", "-d", "--name", "web", "--replicas", "4", "--network", "net", "-p", "8080:80", IMAGE];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 4);
    lab.docker("w1", &["volume", "create", "kept"]).unwrap();
    lab.docker("w1", &["run", "-d", "--name", "always", "--restart", "always", IMAGE]).unwrap();
    lab.docker("w1", &["run", "-d", "--name", "once", IMAGE]).unwrap();
    purge_the_log(&lab);
    let (nodes, tasks) = (lab.docker("m1", &["node", "ls", "-q"]).unwrap(), lab.running("m1", "web"));
    for node in lab.nodes() {
        lab.lab(&["power-off", &node]).unwrap();
    }
    for node in lab.nodes() {
        lab.lab(&["start", &node]).unwrap();
    }
    eventually("every node is ready again", || {
        let all = lab.docker("m2", &["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(all.lines().filter(|l| *l == "Ready").count() == 4, "{all}");
        Ok(())
    });
    assert_eq!(lab.docker("m3", &["node", "ls", "-q"]).unwrap(), nodes);
    lab.wait_for_running("m2", "web", 4);
    assert!(lab.running("m2", "web").iter().all(|task| !tasks.contains(task)), "no task survives its node's power");
    for node in lab.nodes() {
        eventually(&format!("{node} answers"), || lab.http(&node, 8080, "/health").map(drop));
    }
    eventually("plain containers are as their restart policies say", || {
        let states =
            lab.docker("w1", &["ps", "-a", "--filter", "name=^(always|once)$", "--format", "{{.Names}} {{.State}}"])?;
        let states: BTreeSet<&str> = states.lines().collect();
        ensure!(states == BTreeSet::from(["always running", "once exited"]), "{states:?}");
        Ok(())
    });
    assert!(lab.docker("w1", &["volume", "ls", "-q"]).unwrap().contains("kept"));
}
