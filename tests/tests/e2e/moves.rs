//! Nodes whose host gets another address while they run: what is under way between their tasks goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use skep_tests::{Lab, eventually, images};

const WHOAMI: &str = "skep/whoami:latest";
/// How long new connections may fail after a node's address is gone.
const SOON: Duration = Duration::from_secs(15);

fn inside(lab: &Lab, node: &str, command: &[&str]) {
    lab.lab(&[&["exec", node, "--"], command].concat()).unwrap();
}

/// Takes the node's address away and gives it another one, as DHCP does.
fn change_address(lab: &Lab, node: &str, old: &str, new: &str, prefix: u8) {
    let (old, new) = (format!("{old}/{prefix}"), format!("{new}/{prefix}"));
    let ip = |arguments: &[&str]| inside(lab, node, &[&["ip"], arguments].concat());
    ip(&["address", "del", &old, "dev", "eth0"]);
    ip(&["address", "add", &new, "dev", "eth0"]);
}

/// Starts a plain container.
fn run(lab: &Lab, node: &str, name: &str, network: &str, command: &[&str]) {
    let start = ["run", "-d", "--name", name, "--network", network, "busybox:test"];
    lab.docker(node, &[&start[..], command].concat()).unwrap();
}

/// Lines that came back over a client's only connection so far.
fn lines(lab: &Lab, node: &str, client: &str) -> anyhow::Result<usize> {
    let running = lab.docker(node, &["inspect", "-f", "{{.State.Running}}", client])?;
    ensure!(running.trim() == "true", "the connection of {client} was cut");
    Ok(lab.docker(node, &["exec", client, "cat", "/back"])?.lines().count())
}

/// Waits until more lines come back.
fn goes_on(lab: &Lab, node: &str, client: &str) {
    let before = lines(lab, node, client).unwrap();
    eventually(&format!("the connection of {client} goes on"), || {
        ensure!(lines(lab, node, client)? > before + 10);
        Ok(())
    });
}

/// A server on `server`, and a client on `other` with a connection to it that never ends.
fn connect(lab: &Lab, network: &str, server: &str, other: &str) {
    run(lab, server, &format!("server-{network}"), network, &["nc", "-ll", "-p", "7", "-e", "cat"]);
    // One connection, once the server answers: a client that made another would hide that the first was cut.
    let say = format!(
        "until nc -w 2 server-{network} 7 < /dev/null; do sleep 0.1; done; \
         while echo still; do sleep 0.1; done | nc server-{network} 7 > /back"
    );
    let name = format!("client-{network}");
    run(lab, other, &name, network, &["sh", "-c", &say]);
    eventually("the server answers", || {
        ensure!(lines(lab, other, &name)? > 0);
        Ok(())
    });
}

fn other_address(lab: &Lab, node: &str, number: u8) -> String {
    format!("{}.{number}", lab.address(node).rsplit_once('.').unwrap().0)
}

fn known_as(lab: &Lab, by: &str, node: &str) -> anyhow::Result<String> {
    Ok(lab.docker(by, &["node", "inspect", "-f", "{{.Status.State}} {{.Status.Addr}}", node])?.trim().to_owned())
}

#[test]
#[ignore = "needs root"]
fn a_worker_with_another_address_keeps_its_connections() {
    let lab = Lab::up(1, 2, &[]);
    images::load_busybox(&lab);
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "sealed"]).unwrap();
    let open = ["network", "create", "-d", "overlay", "--attachable", "--opt", "encrypted=false", "open"];
    lab.docker("m1", &open).unwrap();
    for network in ["sealed", "open"] {
        connect(&lab, network, "w1", "w2");
        goes_on(&lab, "w2", &format!("client-{network}"));
    }
    let place = ["--constraint", "node.hostname==w1", "--network", "sealed", "--network", "open"];
    let web = ["service", "create", "-d", "--name", "web", "-p", "8080:80"];
    lab.docker("m1", &[&web[..], &place, &[WHOAMI]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 1);
    let task = lab.running("m1", "web");
    eventually("the published port leads to the task", || lab.http("m1", 8080, "/").map(drop));

    let (old, new) = (lab.address("w1"), other_address(&lab, "w1", 222));
    change_address(&lab, "w1", &old, &new, 24);
    let gone = Instant::now();
    for network in ["sealed", "open"] {
        goes_on(&lab, "w2", &format!("client-{network}"));
        let client = format!("client-{network}");
        eventually("new connections are made, by name", || {
            lab.docker("w2", &["exec", &client, "wget", "-qO-", "http://web/"]).map(drop)
        });
    }
    eventually("the published port leads to the task", || lab.http("m1", 8080, "/").map(drop));
    assert!(gone.elapsed() < SOON, "{:?}", gone.elapsed());
    eventually("the managers know the new address", || {
        let known = known_as(&lab, "m1", "w1")?;
        ensure!(known == format!("ready {new}"), "{known}");
        Ok(())
    });
    assert_eq!(lab.running("m1", "web"), task, "no task was restarted");
    let info = lab.docker("w1", &["info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.NodeAddr}}"]).unwrap();
    assert_eq!(info.trim(), format!("active {new}"));

    // The daemon is started with the address that it had to give up: the host has it no more.
    lab.lab(&["kill", "w1"]).unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    eventually("the node is back", || {
        let info = lab.docker("w1", &["info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.NodeAddr}}"])?;
        ensure!(info.trim() == format!("active {new}"), "{info}");
        Ok(())
    });
    for network in ["sealed", "open"] {
        goes_on(&lab, "w2", &format!("client-{network}"));
    }
}

#[test]
#[ignore = "needs root"]
fn a_data_path_over_ipv6_moves_by_itself() {
    let lab = Lab::up(1, 1, &["--no-cluster"]);
    images::load_busybox(&lab);
    // Known by IPv4; what passes between tasks goes over IPv6.
    let init = ["swarm", "init", "--advertise-addr", &lab.address("m1"), "--data-path-addr", &lab.address6("m1")];
    lab.docker("m1", &init).unwrap();
    let token = lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap();
    let manager = format!("{}:2377", lab.address("m1"));
    let join = ["swarm", "join", "--token", token.trim(), "--data-path-addr", &lab.address6("w1"), &manager];
    lab.docker("w1", &join).unwrap();
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "sealed"]).unwrap();
    let open = ["network", "create", "-d", "overlay", "--attachable", "--opt", "encrypted=false", "open"];
    lab.docker("m1", &open).unwrap();
    for network in ["sealed", "open"] {
        connect(&lab, network, "w1", "m1");
    }
    // Either end in turn: that of the server, and that of the clients, which is the only manager's.
    for (node, number) in [("w1", "222"), ("m1", "212")] {
        let old = lab.address6(node);
        let new = format!("{}::{number}", old.rsplit_once("::").unwrap().0);
        change_address(&lab, node, &old, &new, 64);
        for network in ["sealed", "open"] {
            goes_on(&lab, "m1", &format!("client-{network}"));
        }
        let known = known_as(&lab, "m1", node).unwrap();
        assert_eq!(known, format!("ready {}", lab.address(node)), "it is known as before");
    }
}

#[test]
#[ignore = "needs root"]
fn managers_with_another_address_are_found_by_the_others() {
    let lab = Lab::up(3, 1, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", WHOAMI]).unwrap();
    lab.wait_for_running("m1", "web", 4);
    let before = lab.running("m1", "web");
    // One that follows and, as lab up makes it, the leader.
    for (node, other, number) in [("m2", "m3", 212), ("m1", "m3", 211)] {
        let (old, new) = (lab.address(node), other_address(&lab, node, number));
        change_address(&lab, node, &old, &new, 24);
        eventually("the others know the new address", || {
            let shown = lab.docker(
                other,
                &["node", "inspect", "--format", "{{.ManagerStatus.Addr}} {{.ManagerStatus.Reachability}}", node],
            )?;
            ensure!(shown.trim() == format!("{new}:2377 reachable"), "{shown}");
            let known = known_as(&lab, other, node)?;
            ensure!(known == format!("ready {new}"), "{known}");
            Ok(())
        });
        eventually("it answers", || lab.docker(node, &["node", "ls"]).map(drop));
    }
    assert_eq!(lab.running("m2", "web"), before, "no task was restarted");
}
