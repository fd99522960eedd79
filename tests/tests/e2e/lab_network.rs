//! What the nodes of a lab have of a network: addresses of both families, the port of plain networks, a data path of their own.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use skep_tests::capture::Capture;
use skep_tests::{Lab, eventually, images};

const WHOAMI: &str = "skep/whoami:latest";

/// Runs `ip` in a namespace.
fn ip(namespace: &Path, arguments: &str) {
    let inside = format!("--net={}", namespace.display());
    let output = Command::new("nsenter").args([&inside, "ip"]).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A task on `w1`, and a container on `m1` that asks it by name.
fn ask_across(lab: &Lab, network: &str) {
    let create = ["service", "create", "-d", "--name", "web", "--constraint", "node.hostname==w1", "-p", "8080:80"];
    lab.docker("m1", &[&create[..], &["--network", network, WHOAMI]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 1);
    lab.docker("m1", &["run", "-d", "--name", "near", "--network", network, "busybox:test", "sleep", "600"]).unwrap();
    eventually("the other node's task answers", || ask(lab));
}

/// Asks the service from the container.
fn ask(lab: &Lab) -> anyhow::Result<()> {
    let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 web 80";
    let said = lab.docker("m1", &["exec", "near", "sh", "-c", ask])?;
    ensure!(said.contains("RemoteAddr: "), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn nodes_have_both_families_and_the_port_that_plain_networks_were_given() {
    let lab = Lab::up(1, 1, &["--data-path-port", "5789"]);
    images::load_busybox(&lab);
    let wire = lab.namespace("bridge");
    let plain = ["network", "create", "-d", "overlay", "--attachable", "--opt", "encrypted=false", "open"];
    lab.docker("m1", &plain).unwrap();
    let capture = Capture::start(&wire);
    ask_across(&lab, "open");
    let frames = capture.stop();
    assert!(frames.udp_to(5789) > 0 && frames.with("RemoteAddr: ") > 0, "{}", frames.udp_to(5789));
    assert_eq!(frames.udp_to(4789), 0);

    for (from, to) in [("m1", "w1"), ("w1", "m1")] {
        let url = format!("http://[{}]:8080/", lab.address6(to));
        eventually("a port of the cluster answers on a node's IPv6 address", || {
            let said = lab.lab(&["exec", from, "--", "busybox", "timeout", "3", "busybox", "wget", "-qO-", &url])?;
            ensure!(said.contains("Hostname: "), "{said}");
            Ok(())
        });
    }
    eventually("all is well", || {
        let output = lab.skep_command("m1", &["doctor", "-v"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(0) && !text.contains("FAILED"), "{text}");
        ensure!(text.contains("port 5789/udp"), "{text}");
        Ok(())
    });
    // A node that is booted again has what it had.
    lab.lab(&["power-off", "w1"]).unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    let shown = lab.lab(&["exec", "w1", "--", "ip", "-6", "addr", "show", "dev", "eth0"]).unwrap();
    assert!(shown.contains(&lab.address6("w1")), "{shown}");
}

#[test]
#[ignore = "needs root"]
fn the_data_path_is_an_interface_where_one_is_named() {
    let lab = Lab::up(1, 1, &["--no-cluster"]);
    images::load_busybox(&lab);
    let bridge = lab.namespace("bridge");
    ip(&bridge, "link add data type bridge forward_delay 0");
    ip(&bridge, "link set data up");
    for (node, last) in [("m1", 1), ("w1", 2)] {
        let namespace = lab.namespace(node);
        ip(&bridge, &format!("link add d-{node} type veth peer name data0 netns {}", namespace.display()));
        ip(&bridge, &format!("link set d-{node} master data up"));
        ip(&namespace, &format!("addr add 10.66.0.{last}/24 dev data0"));
        ip(&namespace, "link set data0 up");
    }
    let refused = |data_path: &str, text: &str| {
        let init = ["swarm", "init", "--advertise-addr", "eth0", "--data-path-addr", data_path];
        let error = lab.docker("m1", &init).unwrap_err().to_string();
        assert!(error.contains(text), "{data_path}: {error}");
    };
    refused("nowhere0", "data path address must be a non-zero IP address or network interface");
    refused("10.66.0.1:4789", "data path address must be a non-zero IP address or network interface");
    refused("0.0.0.0", "data path address must be a non-zero IP address or network interface");
    lab.docker("m1", &["swarm", "init", "--advertise-addr", "eth0", "--data-path-addr", "data0"]).unwrap();
    let token = lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap();
    let manager = format!("{}:2377", lab.address("m1"));
    let join = ["swarm", "join", "--token", token.trim(), "--advertise-addr", "eth0", "--data-path-addr", "data0"];
    lab.docker("w1", &[&join[..], &[&manager]].concat()).unwrap();
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "inner"]).unwrap();
    let capture = Capture::start(&bridge);
    ask_across(&lab, "inner");
    assert!(capture.stop().udp_to(51820) > 0);
    let shown: Value = serde_json::from_str(&lab.docker("m1", &["network", "inspect", "inner"]).unwrap()).unwrap();
    let mut peers: Vec<&str> = shown[0]["Peers"].as_array().unwrap().iter().filter_map(|p| p["IP"].as_str()).collect();
    peers.sort_unstable();
    assert_eq!(peers, ["10.66.0.1", "10.66.0.2"]);
    // Nothing of it goes by the other one.
    ip(&bridge, "link set data down");
    assert!(ask(&lab).is_err());
    ip(&bridge, "link set data up");
    eventually("it goes on", || ask(&lab));
}
