//! Containers that join and leave networks while they are there, on local bridges and on networks of the cluster.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually, images};

const BUSYBOX: &str = "busybox:test";

fn networks(lab: &Lab, node: &str, container: &str) -> Vec<(String, String)> {
    let text = lab.docker(node, &["inspect", container]).unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    let all = shown[0]["NetworkSettings"]["Networks"].as_object().unwrap();
    all.iter().map(|(name, at)| (name.clone(), at["IPAddress"].as_str().unwrap().to_owned())).collect()
}

fn names(lab: &Lab, node: &str, container: &str) -> Vec<String> {
    networks(lab, node, container).into_iter().map(|(name, _)| name).collect()
}

fn resolves(lab: &Lab, node: &str, container: &str, name: &str) -> anyhow::Result<()> {
    lab.docker(node, &["exec", container, "nslookup", name, "127.0.0.11"]).map(drop)
}

fn refused(lab: &Lab, arguments: &[&str]) -> String {
    lab.docker("m1", arguments).unwrap_err().to_string()
}

#[test]
#[ignore = "needs root"]
fn a_container_joins_and_leaves_networks_keeps_its_connections_and_is_found_by_its_names() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let overlay = ["network", "create", "-d", "overlay"];
    lab.docker("m1", &[&overlay[..], &["--attachable", "--subnet", "10.77.0.0/24", "over"]].concat()).unwrap();
    lab.docker("m1", &[&overlay[..], &["closed"]].concat()).unwrap();
    let places = ["--subnet", "172.29.0.0/24", "--gateway", "172.29.0.254", "--ip-range", "172.29.0.64/26"];
    lab.docker("m1", &[&["network", "create"], &places[..], &["side"]].concat()).unwrap();
    let run = ["run", "-d", "--name"];
    let serve = [BUSYBOX, "nc", "-ll", "-p", "7", "-e", "cat"];
    for (node, name, network) in [("m1", "box", "bridge"), ("m1", "beside", "side"), ("w1", "far", "over")] {
        lab.docker(node, &[&run[..], &[name, "--network", network], &serve[..]].concat()).unwrap();
    }

    // The first of the range, not of the subnet.
    assert_eq!(networks(&lab, "m1", "beside"), [("side".into(), "172.29.0.64".into())]);
    running_containers(&lab);
    restarts(&lab);
    refusals(&lab);
    stopped_containers(&lab);
    others_nodes_and_ingress(&lab);
    for (node, name) in [("m1", "box"), ("m1", "beside"), ("w1", "far"), ("m1", "idle")] {
        lab.docker(node, &["rm", "-f", name]).unwrap();
    }
    lab.docker("m1", &["network", "rm", "side", "over", "closed"]).unwrap();
}

fn running_containers(lab: &Lab) {
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&["network", "connect", "--alias", "foo", "--ip", "172.29.0.77", "side", "box"]);
    assert_eq!(networks(lab, "m1", "box")[1], ("side".into(), "172.29.0.77".into()));
    for name in ["foo", "box"] {
        eventually("its names are known beside it", || resolves(lab, "m1", "beside", name));
    }
    let echo = "echo hello | nc -w 3 foo 7";
    assert_eq!(lab.docker("m1", &["exec", "beside", "sh", "-c", echo]).unwrap(), "hello\n");
    // A conversation that goes on while the other network comes, is renamed on and goes.
    let talk = "(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $i; sleep 1; done) | nc 172.29.0.77 7";
    docker(&["exec", "-d", "beside", "sh", "-c", &format!("{talk} > /said")]);

    lab.skep("m1", &["network", "connect", "--ip", "10.77.0.50", "--alias", "oof", "over", "box"]).unwrap();
    assert_eq!(names(lab, "m1", "box"), ["bridge", "over", "side"]);
    for name in ["box", "oof"] {
        eventually("its names are known on the other node", || resolves(lab, "w1", "far", name));
    }
    let far = "echo hello | nc -w 3 oof 7";
    eventually("it is reached from there", || {
        let said = lab.docker("w1", &["exec", "far", "sh", "-c", far])?;
        ensure!(said == "hello\n", "{said:?}");
        Ok(())
    });
    docker(&["rename", "box", "case"]);
    eventually("the new name is known beside it", || resolves(lab, "m1", "beside", "case"));
    eventually("the new name is known on the other node", || resolves(lab, "w1", "far", "case"));
    assert!(resolves(lab, "m1", "beside", "box").is_err());
    docker(&["rename", "case", "box"]);
    let shown = docker(&["network", "inspect", "side"]);
    assert!(shown.contains("\"Name\": \"box\"") && shown.contains("172.29.0.77/24"), "{shown}");
    docker(&["network", "disconnect", "over", "box"]);
    assert_eq!(names(lab, "m1", "box"), ["bridge", "side"]);
    eventually("its place is free again", || {
        lab.docker("w1", &["run", "--rm", "--network", "over", "--ip", "10.77.0.50", BUSYBOX, "true"]).map(drop)
    });
    eventually("the conversation was heard to its end", || {
        let said = lab.docker("m1", &["exec", "beside", "cat", "/said"])?;
        ensure!(said == (1..=12).map(|n| format!("{n}\n")).collect::<String>(), "{said:?}");
        Ok(())
    });
    let events = docker(&["events", "--since", "1h", "--until", "0s", "--filter", "type=network"]);
    for word in ["network connect", "network disconnect"] {
        assert!(events.contains(word) && events.contains("name=over"), "{events}");
    }
}

fn restarts(lab: &Lab) {
    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    eventually("the daemon is back with the container as it was", || {
        lab.docker("m1", &["ps"])?;
        ensure!(networks(lab, "m1", "box")[1] == ("side".into(), "172.29.0.77".into()));
        Ok(())
    });
    eventually("names are answered", || resolves(lab, "m1", "beside", "foo"));
    lab.docker("m1", &["restart", "-t", "0", "box"]).unwrap();
    assert_eq!(networks(lab, "m1", "box")[1], ("side".into(), "172.29.0.77".into()));
    lab.docker("m1", &["network", "disconnect", "bridge", "box"]).unwrap();
    assert_eq!(names(lab, "m1", "box"), ["side"]);
    let out = ["exec", "box", "ip", "route"];
    assert!(lab.docker("m1", &out).unwrap().contains("default via 172.29.0.254"));
}

fn refusals(lab: &Lab) {
    for (arguments, words) in [
        (&["network", "connect", "side", "box"][..], "endpoint with name box already exists in network side"),
        (&["network", "disconnect", "bridge", "box"], "is not connected to network bridge"),
        (
            &["network", "connect", "host", "box"],
            "container cannot be disconnected from host network or connected to host network",
        ),
        (&["network", "connect", "none", "box"], "in private (none) mode"),
        (&["network", "connect", "closed", "box"], "network closed not manually attachable"),
        (&["network", "connect", "nosuch", "box"], "network nosuch not found"),
        (&["network", "connect", "side", "nobody"], "No such container: nobody"),
        (&["network", "connect", "--ip", "172.29.0.1", "side", "idle"], "No such container: idle"),
        (&["network", "connect", "--link", "x:y", "side", "box"], "Links"),
        (&["network", "rm", "side"], "has active endpoints"),
        (&["network", "create", "-d", "overlay", "ingress"], "predefined ingress network"),
    ] {
        let text = refused(lab, arguments);
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    lab.docker(
        "m1",
        &[
            "service",
            "create",
            "-d",
            "--name",
            "web",
            "--network",
            "host",
            "--constraint",
            "node.role==manager",
            BUSYBOX,
            "sleep",
            "1000",
        ],
    )
    .unwrap();
    lab.wait_for_running("m1", "web", 1);
    let task = lab.docker("m1", &["ps", "-q", "--filter", "name=web"]).unwrap();
    let text = refused(lab, &["network", "connect", "side", task.trim()]);
    assert!(text.contains("its networks are its service's"), "{text}");
    assert_eq!(lab.docker("m1", &["exec", task.trim(), "hostname"]).unwrap(), "m1\n");
    lab.docker("m1", &["service", "rm", "web"]).unwrap();
}

fn stopped_containers(lab: &Lab) {
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&["create", "--name", "idle", BUSYBOX, "sleep", "1000"]);
    docker(&["network", "connect", "--alias", "late", "side", "idle"]);
    docker(&["network", "connect", "over", "idle"]);
    docker(&["network", "disconnect", "bridge", "idle"]);
    docker(&["start", "idle"]);
    assert_eq!(names(lab, "m1", "idle"), ["over", "side"]);
    eventually("the alias is known", || resolves(lab, "m1", "beside", "late"));
}

fn others_nodes_and_ingress(lab: &Lab) {
    lab.docker("w1", &["network", "create", "side"]).unwrap();
    lab.docker("w1", &["network", "connect", "side", "far"]).unwrap();
    assert_eq!(names(lab, "w1", "far"), ["over", "side"]);
    lab.docker("w1", &["network", "disconnect", "side", "far"]).unwrap();
    lab.docker("w1", &["network", "rm", "side"]).unwrap();
    for node in ["m1", "w1"] {
        let format = "{{.Driver}} {{.Scope}} {{.Ingress}}";
        assert_eq!(lab.docker(node, &["network", "inspect", "-f", format, "ingress"]).unwrap(), "overlay swarm true\n");
        assert!(lab.docker(node, &["network", "ls", "-f", "name=ingress"]).unwrap().contains("overlay   swarm"));
    }
}
