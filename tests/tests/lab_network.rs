//! What the nodes of a lab have of a network: addresses of both families, and the port of plain networks.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use skep_tests::capture::Capture;
use skep_tests::{Lab, eventually, images};

const WHOAMI: &str = "skep/whoami:latest";

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
