//! Plain containers on networks of the cluster: on a manager and on a worker.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually, images};

const WHOAMI: &str = "skep/whoami:latest";

fn address(lab: &Lab, node: &str, container: &str) -> String {
    let text = lab.docker(node, &["inspect", container]).unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    shown[0]["NetworkSettings"]["Networks"]["net"]["IPAddress"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs root"]
fn containers_of_any_node_join_an_attachable_network_with_names_and_give_their_addresses_back() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let busybox = "busybox:test";
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "--subnet", "10.77.0.0/24", "net"])
        .unwrap();
    lab.docker("m1", &["network", "create", "-d", "overlay", "closed"]).unwrap();
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--network", "net", WHOAMI]).unwrap();
    lab.wait_for_running("m1", "web", 1);

    let run = ["run", "-d", "--name"];
    let listen = ["--network", "net", busybox, "nc", "-ll", "-p", "7", "-e", "echo", "here"];
    lab.docker("w1", &[&run[..], &["far", "--network-alias", "db", "--ip", "10.77.0.99"], &listen[..]].concat())
        .unwrap();
    lab.docker("m1", &[&run[..], &["near"], &listen[..]].concat()).unwrap();
    assert_eq!(address(&lab, "w1", "far"), "10.77.0.99");

    let resolves = |node: &str, container: &str, name: &str| {
        eventually(&format!("{container} on {node} resolves {name}"), || {
            lab.docker(node, &["exec", container, "nslookup", name, "127.0.0.11"]).map(drop)
        });
    };
    for name in ["near", "web", "tasks.web"] {
        resolves("w1", "far", name);
    }
    for name in ["far", "db", "web", "tasks.web"] {
        resolves("m1", "near", name);
    }
    for (node, container) in [("w1", "far"), ("m1", "near")] {
        eventually("the service answers at its virtual address", || {
            lab.docker(node, &["exec", container, "wget", "-qO-", "http://web/"]).map(drop)
        });
    }
    eventually("one container reaches the other by its alias", || {
        lab.docker("m1", &["exec", "near", "nc", "db", "7"]).map(drop)
    });
    let inspected = lab.docker("w1", &["network", "inspect", "net"]).unwrap();
    assert!(inspected.contains("\"Name\": \"far\"") && inspected.contains("\"Attachable\": true"), "{inspected}");

    let refused = lab.docker("w1", &["run", "--rm", "--network", "closed", busybox, "true"]).unwrap_err();
    let words = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not \
                 manually attachable";
    assert!(refused.to_string().contains(words), "{refused}");
    let taken = ["run", "--rm", "--network", "net", "--ip", "10.77.0.99", busybox, "true"];
    let refused = lab.docker("m1", &taken).unwrap_err();
    assert!(refused.to_string().contains("Address already in use"), "{refused}");

    // The daemon is started again: the container goes on where it was, and so it does for the managers.
    lab.lab(&["kill", "w1"]).unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    eventually("the container has its address after a restart of the daemon", || {
        let ping = ["exec", "near", "nc", "db", "7"];
        ensure!(lab.docker("m1", &ping).is_ok() && address(&lab, "w1", "far") == "10.77.0.99");
        Ok(())
    });
    lab.docker("w1", &["restart", "-t", "0", "far"]).unwrap();
    assert_eq!(address(&lab, "w1", "far"), "10.77.0.99");

    lab.docker("m1", &["service", "rm", "web"]).unwrap();
    lab.docker("w1", &["stop", "-t", "0", "far"]).unwrap();
    eventually("the address of a stopped container is free", || {
        lab.docker("m1", &["run", "--rm", "--network", "net", "--ip", "10.77.0.99", busybox, "true"]).map(drop)
    });
    eventually("a network with a container is kept", || {
        let refused = lab.docker("m1", &["network", "rm", "net"]).map_or_else(|e| e.to_string(), |_| "removed".into());
        ensure!(refused.contains("is in use by task"), "{refused}");
        Ok(())
    });
    lab.docker("m1", &["rm", "-f", "near"]).unwrap();
    eventually("the network can go", || lab.docker("m1", &["network", "rm", "net"]).map(drop));
}
