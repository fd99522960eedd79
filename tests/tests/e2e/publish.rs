//! `docker run -p` in its forms, with the stock client: what is open afterwards, what is shown, and Docker's words where it fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use serde_json::Value;
use skep_tests::Lab;

const WHOAMI: &str = "skep/whoami:latest";

fn run(lab: &Lab, name: &str, ports: &[&str]) -> anyhow::Result<String> {
    let ports = ports.iter().flat_map(|port| ["-p", port]);
    let words: Vec<&str> = ["run", "-d", "--name", name].into_iter().chain(ports).chain([WHOAMI]).collect();
    lab.docker("m1", &words)
}

/// What `docker port` says, in order.
fn open(lab: &Lab, name: &str) -> Vec<String> {
    let mut lines: Vec<String> = lab.docker("m1", &["port", name]).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
#[ignore = "needs root"]
fn ports_are_published_in_all_of_dockers_forms() {
    let lab = Lab::up(1, 0, &[]);
    // An address that the host does not have, a port that a program has, a port that a container has.
    let refused = |name: &str, port: &str, text: &str| {
        let error = run(&lab, name, &[port]).unwrap_err().to_string();
        assert!(error.contains("driver failed programming external connectivity on endpoint"), "{port}: {error}");
        assert!(error.contains(text), "{port}: {error}");
    };
    refused("far", "192.0.2.1:8000:80", "failed to bind host port 192.0.2.1:8000/tcp: cannot assign requested address");
    refused("used", "2377:80", "failed to bind host port 0.0.0.0:2377/tcp: address already in use");
    run(&lab, "one", &["127.0.0.1:8000:80", "0.0.0.0:8000:80/udp"]).unwrap();
    refused("again", "8000:80", "Bind for 0.0.0.0:8000 failed: port is already allocated");
    assert_eq!(open(&lab, "one"), ["80/tcp -> 127.0.0.1:8000", "80/udp -> 0.0.0.0:8000"]);

    // A port that the node chooses, on one address.
    run(&lab, "any", &["127.0.0.1:0:80", "127.0.0.1::81"]).unwrap();
    let chosen = open(&lab, "any");
    assert!(chosen.len() == 2 && chosen.iter().all(|line| !line.ends_with(":0")), "{chosen:?}");
    let at = chosen[0].strip_prefix("80/tcp -> ").unwrap();
    let said = lab.lab(&["exec", "m1", "--", "busybox", "wget", "-qO-", &format!("http://{at}/")]).unwrap();
    assert!(said.contains("Hostname: "), "{said}");

    // One of a range: the first that is free. It is shown as asked for, and as it is.
    for (name, number) in [("first", 8001), ("second", 8002)] {
        run(&lab, name, &["0.0.0.0:8000-8002:80"]).unwrap();
        assert_eq!(open(&lab, name), [format!("80/tcp -> 0.0.0.0:{number}")]);
    }
    let shown = lab.docker("m1", &["inspect", "-f", "{{json .HostConfig.PortBindings}}", "first"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["80/tcp"][0]["HostPort"], "8000-8002", "{shown}");
    assert!(lab.http("m1", 8002, "/").unwrap().contains("Hostname: "));
    refused("third", "0.0.0.0:8000-8002:80", "Bind for 0.0.0.0:8000-8002 failed: all ports are allocated");
    // It keeps what it has when the daemon starts again.
    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    skep_tests::eventually("the daemon is back", || lab.docker("m1", &["ps"]).map(drop));
    assert_eq!(open(&lab, "second"), ["80/tcp -> 0.0.0.0:8002"]);
    // As many of the container's as of the host's: the client makes pairs of them.
    run(&lab, "pairs", &["0.0.0.0:8010-8011:80-81"]).unwrap();
    assert_eq!(open(&lab, "pairs"), ["80/tcp -> 0.0.0.0:8010", "81/tcp -> 0.0.0.0:8011"]);
}
