//! What clients are told of what happens.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";

/// Events that a node remembers.
fn past(lab: &Lab, node: &str, filters: &[&str]) -> Vec<Value> {
    let mut command = vec!["events", "--since", "24h", "--until", "0s", "--format", "{{json .}}"];
    for filter in filters {
        command.extend(["--filter", filter]);
    }
    let text = lab.docker(node, &command).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn actions(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["Action"].as_str().unwrap()).collect()
}

#[test]
#[ignore = "needs root"]
fn events_of_the_cluster_come_from_every_manager_and_those_of_containers_from_their_node() {
    let lab = Lab::up(2, 0, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "net"]).unwrap();
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--network", "net", "--mode", "global", IMAGE])
        .unwrap();
    lab.wait_for_running("m1", "web", 2);
    lab.docker("m1", &["service", "create", "-d", "--name", "two", IMAGE]).unwrap();
    lab.docker("m2", &["service", "scale", "-d", "two=2"]).unwrap();
    lab.docker("m2", &["service", "rm", "two"]).unwrap();
    for manager in ["m1", "m2"] {
        eventually("both managers tell of the service", || {
            let told = past(&lab, manager, &["service=two", "scope=swarm"]);
            let seen: BTreeSet<&str> = actions(&told).into_iter().collect();
            ensure!(seen == BTreeSet::from(["create", "remove", "update"]), "{told:?}");
            Ok(())
        });
        let told = past(&lab, manager, &["service=two", "event=update"]);
        let scaled = told.iter().find(|e| e["Actor"]["Attributes"]["replicas.new"] == "2").unwrap();
        assert_eq!((&scaled["Type"], &scaled["Actor"]["Attributes"]["replicas.old"]), (&"service".into(), &"1".into()));
        assert_eq!(actions(&past(&lab, manager, &["network=net", "event=create"])), ["create"]);
        // A task's container, on its own node.
        let tasks = past(&lab, manager, &["type=container", "label=com.docker.swarm.service.name=web"]);
        assert_eq!(actions(&tasks), ["create", "start"]);
        assert_eq!(tasks[1]["scope"], "local");
        assert_eq!((&tasks[1]["status"], &tasks[1]["id"]), (&tasks[1]["Action"], &tasks[1]["Actor"]["ID"]));
    }
    lab.docker("m1", &["node", "update", "--availability", "drain", "m2"]).unwrap();
    eventually("the drain is told", || {
        let told = past(&lab, "m2", &["type=node", "node=m2"]);
        let is_drain = |e: &&Value| e["Actor"]["Attributes"]["availability.new"] == "drain";
        ensure!(told.iter().any(|e| is_drain(&e)), "{told:?}");
        Ok(())
    });
    eventually("and the end of the task there", || {
        let told = past(&lab, "m2", &["type=container", "event=die"]);
        ensure!(told.iter().any(|e| e["Actor"]["Attributes"]["exitCode"].is_string()), "{told:?}");
        Ok(())
    });
    let said =
        lab.skep("m1", &["events", "--since", "1", "--until", &now(), "-f", "type=service", "-f", "event=remove"]);
    assert!(said.as_ref().unwrap().contains(" service remove ") && !said.unwrap().contains("create"));
    let refused = lab.docker("m1", &["events", "--filter", "colour=red", "--until", "0s"]).unwrap_err().to_string();
    assert!(refused.contains("invalid filter 'colour'"), "{refused}");
    a_plain_container_is_followed_to_its_end(&lab);
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs().to_string()
}

fn a_plain_container_is_followed_to_its_end(lab: &Lab) {
    lab.docker("m1", &["volume", "create", "vol"]).unwrap();
    lab.docker("m1", &["volume", "rm", "vol"]).unwrap();
    let run = ["run", "-d", "--name", "one", "--label", "of=test", IMAGE];
    lab.docker("m1", &run).unwrap();
    lab.docker("m1", &["rename", "one", "other"]).unwrap();
    lab.docker("m1", &["stop", "other"]).unwrap();
    lab.docker("m1", &["rm", "other"]).unwrap();
    eventually("all of it was told, in order", || {
        let told = past(lab, "m1", &["label=of=test"]);
        ensure!(actions(&told) == ["create", "start", "rename", "kill", "die", "stop", "destroy"], "{told:?}");
        Ok(())
    });
    assert_eq!(actions(&past(lab, "m1", &["volume=vol"])), ["create", "destroy"]);
    let connections = past(lab, "m1", &["type=network", "network=bridge", "scope=local"]);
    assert!(actions(&connections).ends_with(&["connect", "disconnect"]), "{connections:?}");
}
