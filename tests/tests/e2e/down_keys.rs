//! New keys of nodes while the daemon of another one is down: its containers' connections go on.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::fs;

use anyhow::ensure;
use skep_tests::{Lab, eventually, images};

/// Starts a plain container on the network of the test.
fn run(lab: &Lab, node: &str, name: &str, command: &str) {
    let start = ["run", "-d", "--name", name, "--network", "sealed", "busybox:test", "sh", "-c", command];
    lab.docker(node, &start).unwrap();
}

/// Starts a server on the first worker, and a client on `from` that has a connection to it and speaks without end.
fn connect(lab: &Lab, from: &str) {
    let server = format!("server-{from}");
    run(lab, "w1", &server, "nc -ll -p 7 > /said");
    let say = "sh -c 'while echo still; do sleep 0.1; done'";
    run(lab, from, "client", &format!("while ! nc {server} 7 -e {say}; do sleep 0.2; done"));
    eventually("the client is heard", || {
        ensure!(heard(lab, from) > 0);
        Ok(())
    });
}

/// Lines that came from a node.
fn heard(lab: &Lab, from: &str) -> usize {
    lab.docker("w1", &["exec", &format!("server-{from}"), "cat", "/said"]).unwrap().lines().count()
}

fn goes_on(lab: &Lab, from: &str, when: &str) {
    let before = heard(lab, from);
    eventually(when, || {
        ensure!(heard(lab, from) > before + 10);
        Ok(())
    });
}

/// A node's keys: the one in use, and all that it has.
fn keys(lab: &Lab, node: &str) -> (String, BTreeSet<String>) {
    let dir = lab.daemon_root(node).join("network/keys");
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let all = names.filter_map(|name| name.strip_suffix(".key").map(str::to_owned)).collect();
    (fs::read_to_string(dir.join("current")).unwrap(), all)
}

fn rotate(lab: &Lab) {
    lab.docker("m1", &["swarm", "ca", "--rotate", "-d"]).unwrap();
    for node in ["m1", "w1"] {
        eventually("the node has another key", || {
            ensure!(keys(lab, node).1.len() == 2);
            Ok(())
        });
    }
}

fn stop_daemon(lab: &Lab) {
    lab.lab(&["kill", "w2"]).unwrap();
    eventually("the node is down", || {
        let state = lab.docker("m1", &["node", "inspect", "-f", "{{.Status.State}}", "w2"])?;
        ensure!(state.trim() == "down", "{state}");
        Ok(())
    });
}

/// The nodes use other keys than before, and have forgotten those.
fn have_gone_over(lab: &Lab, before: &[(&str, String)]) {
    for (node, old) in before {
        eventually("the node uses its other key, and has forgotten the former", || {
            let (current, all) = keys(lab, node);
            ensure!(current != *old && all == BTreeSet::from([current]), "{all:?}");
            Ok(())
        });
    }
}

#[test]
#[ignore = "needs root"]
fn new_keys_wait_for_a_node_whose_daemon_is_down_until_it_is_back_or_removed() {
    let lab = Lab::up(1, 2, &[]);
    images::load_busybox(&lab);
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "sealed"]).unwrap();
    // The node whose daemon is down, and another to tell its silence from everybody's.
    for node in ["w2", "m1"] {
        connect(&lab, node);
    }
    let current = |node: &'static str| (node, keys(&lab, node).0);

    stop_daemon(&lab);
    let before = [current("m1"), current("w1")];
    rotate(&lab);
    // Longer than a change of keys takes.
    for _ in 0..5 {
        goes_on(&lab, "w2", "the connection goes on while the daemon is down");
    }
    assert_eq!([current("m1"), current("w1")], before, "the former keys are in use");
    lab.lab(&["start", "w2"]).unwrap();
    have_gone_over(&lab, &before);
    goes_on(&lab, "w2", "the connection goes on with the new keys");

    stop_daemon(&lab);
    let before = [current("m1"), current("w1")];
    rotate(&lab);
    goes_on(&lab, "w2", "the connection goes on while the daemon is down again");
    lab.docker("m1", &["node", "rm", "--force", "w2"]).unwrap();
    have_gone_over(&lab, &before);
    eventually("a node that was removed is not heard any more", || {
        let before = heard(&lab, "w2");
        goes_on(&lab, "m1", "others are heard");
        ensure!(heard(&lab, "w2") == before);
        Ok(())
    });
}
