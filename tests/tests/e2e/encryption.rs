//! What tasks send each other between nodes, as somebody on the wire between them sees it, and what its keys and the
//! process that holds them go through.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, ensure};
use skep_tests::capture::Capture;
use skep_tests::load::Load;
use skep_tests::{Lab, eventually, host};

const IMAGE: &str = "skep/whoami:latest";
/// What tasks answer, and nobody else shall read.
const SECRET: &str = "bluebottle-under-the-third-flagstone";

/// A service of one task on a node, on a network, which answers with the secret.
fn serve(lab: &Lab, name: &str, node: &str, network: &str, more: &[&str]) {
    let place = format!("node.hostname=={node}");
    let create = ["service", "create", "-d", "--name", name, "--network", network, "--constraint", &place];
    lab.docker("m1", &[&create, more, &[IMAGE, "--name", SECRET]].concat()).unwrap();
    lab.wait_for_running("m1", name, 1);
}

/// Starts a plain container on a node and network, from which others are asked.
fn client(lab: &Lab, node: &str, network: &str) -> String {
    let name = format!("client-{network}");
    lab.docker(node, &["run", "-d", "--name", &name, "--network", network, "busybox:test", "sleep", "100000"]).unwrap();
    name
}

fn ask(lab: &Lab, node: &str, client: &str, service: &str) -> anyhow::Result<()> {
    let answer = lab.docker(node, &["exec", client, "wget", "-qO-", &format!("http://{service}/")])?;
    ensure!(answer.contains(SECRET), "{answer}");
    Ok(())
}

/// Every node's public key in use.
fn keys(lab: &Lab) -> BTreeSet<String> {
    let key = |node: &String| fs::read_to_string(lab.daemon_root(node).join("network/keys/current")).unwrap();
    lab.nodes().iter().map(key).collect()
}

/// The process beside a node's daemon.
fn net_process(lab: &Lab, node: &str) -> anyhow::Result<u64> {
    let dir = lab.daemon_root(node).join("network").join("netd").display().to_string();
    let is_it = |pid: &u64| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = String::from_utf8_lossy(&words).split('\0').map(str::to_owned).collect();
        words.contains(&"net".to_owned()) && words.contains(&dir)
    };
    let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    all.filter(is_it).max().context("there is no skep net")
}

#[test]
#[ignore = "needs root"]
fn traffic_between_nodes_is_encrypted_and_goes_on_whatever_becomes_of_daemons_and_keys() {
    let lab = Lab::up(1, 2, &[]);
    skep_tests::images::load_busybox(&lab);
    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "sealed"]).unwrap();
    let open = ["network", "create", "-d", "overlay", "--attachable", "--opt", "encrypted=false", "open"];
    lab.docker("m1", &open).unwrap();
    lab.docker("m1", &["network", "create", "-d", "overlay", "--opt", "encrypted", "asked"]).unwrap();
    let unclear = ["network", "create", "-d", "overlay", "--opt", "encrypted=maybe", "unclear"];
    let refused = lab.docker("m1", &unclear).unwrap_err().to_string();
    assert!(refused.contains("encrypted=maybe is neither true nor false"), "{refused}");
    let options = lab.docker("m1", &["network", "inspect", "--format", "{{json .Options}}", "open"]).unwrap();
    assert!(options.contains(r#""encrypted":"false""#), "{options}");

    serve(&lab, "web", "w1", "sealed", &["-p", "8080:80"]);
    serve(&lab, "bare", "w1", "open", &[]);
    only_the_plain_network_can_be_read(&lab);
    a_node_says_how_it_encrypts(&lab);
    no_request_is_lost(&lab);
    a_node_that_left_has_no_key(&lab);
}

fn only_the_plain_network_can_be_read(lab: &Lab) {
    let wire = lab.namespace("bridge");
    let (sealed, open) = (client(lab, "w2", "sealed"), client(lab, "w2", "open"));
    let capture = Capture::start(&wire);
    eventually("the service is reached by its name", || ask(lab, "w2", &sealed, "web"));
    // A published port on another node than the task's, asked on that node: so that only nodes speak.
    eventually("the published port leads to the task", || {
        let port = ["exec", "m1", "--", "busybox", "wget", "-qO-", "http://127.0.0.1:8080/"];
        ensure!(lab.lab(&port)?.contains(SECRET));
        Ok(())
    });
    let frames = capture.stop();
    assert_eq!((frames.with(SECRET), frames.with("RemoteAddr: ")), (0, 0), "what tasks said can be read on the wire");
    assert!(frames.udp_to(51820) > 0);
    assert_eq!((frames.udp_to(4789), frames.udp_to(4790)), (0, 0));

    let capture = Capture::start(&wire);
    eventually("the service of the plain network is reached", || ask(lab, "w2", &open, "bare"));
    let frames = capture.stop();
    assert!(frames.with(SECRET) > 0 && frames.udp_to(4789) > 0, "a plain network shows that the capture can read");
}

fn a_node_says_how_it_encrypts(lab: &Lab) {
    let info =
        |node: &str, field: &str| lab.docker(node, &["info", "--format", &format!("{{{{json .{field}}}}}")]).unwrap();
    let options = info("w1", "SecurityOptions");
    assert!(options.contains("name=wireguard-userspace") || options.contains("name=wireguard-kernel"), "{options}");
    let warnings = info("w1", "Warnings");
    assert!(warnings.contains("not encrypted on these networks: open\""), "{warnings}");
    let elsewhere = info("m1", "Warnings");
    assert!(!elsewhere.contains("not encrypted"), "no task of this node is on a plain network: {elsewhere}");
}

/// Restarts of daemons, that of the only manager among them, the death of `skep net` on either side, and new keys of all nodes, while clients ask.
fn no_request_is_lost(lab: &Lab) {
    let load = Load::start(&[format!("{}:8080", lab.address("m1")), format!("{}:8080", lab.address("w2"))], 4);
    let goes_on = |what: &str| {
        let before = load.answered();
        eventually(what, || {
            ensure!(load.answered() > before + 100);
            Ok(())
        });
    };
    goes_on("before");
    // The second one is the only manager.
    for node in ["w1", "m1"] {
        lab.lab(&["kill", node]).unwrap();
        goes_on(&format!("without the daemon of {node}"));
        lab.lab(&["start", node]).unwrap();
        goes_on("with the daemon back");
    }
    for node in ["w1", "m1"] {
        let old = net_process(lab, node).unwrap();
        host::kill(old);
        eventually("skep net is back", || {
            ensure!(net_process(lab, node)? != old);
            Ok(())
        });
        goes_on("with another skep net");
    }

    let before = keys(lab);
    assert_eq!(before.len(), 3, "each node has a key of its own");
    lab.docker("m1", &["swarm", "ca", "--rotate", "-q"]).unwrap();
    eventually("every node uses another key", || {
        let now = keys(lab);
        ensure!(now.len() == 3 && now.is_disjoint(&before), "{now:?}");
        Ok(())
    });
    goes_on("with new keys");
    let (answered, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {answered} requests failed: {failures:#?}", failures.len());
    for node in lab.nodes() {
        let log = fs::read_to_string(lab.root(&node).join("daemon.log")).unwrap_or_default();
        assert!(log.contains("this node uses its new WireGuard key"), "{node} did not go over by itself");
    }
}

fn a_node_that_left_has_no_key(lab: &Lab) {
    for client in ["client-sealed", "client-open"] {
        lab.docker("w2", &["rm", "-f", client]).unwrap();
    }
    lab.docker("w2", &["swarm", "leave"]).unwrap();
    assert!(!lab.daemon_root("w2").join("network/keys").exists());
    let links = lab.lab(&["exec", "w2", "--", "ip", "-o", "link"]).unwrap();
    assert!(!links.contains("sk-wg"), "{links}");
    eventually("the node is known to have left", || {
        let nodes = lab.docker("m1", &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
        ensure!(nodes.contains("w2 Down"), "{nodes}");
        Ok(())
    });
    lab.docker("m1", &["node", "rm", "w2"]).unwrap();
    eventually("the others go on", || lab.http("m1", 8080, "/").map(drop));
}
