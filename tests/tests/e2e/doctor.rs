//! `skep doctor` on a cluster that is well, on one whose nodes are cut off from each other, and on a node alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;

use anyhow::ensure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skep_tests::{Lab, eventually};

/// Exit code and output.
fn doctor(lab: &Lab, node: &str, more: &[&str]) -> (Option<i32>, String) {
    let output = lab.skep_command(node, &[&["doctor"], more].concat()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

fn is_well(lab: &Lab) -> anyhow::Result<()> {
    let (code, text) = doctor(lab, "m1", &[]);
    ensure!(code == Some(0) && !text.contains("FAILED"), "{code:?}\n{text}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_cut_pair_is_named_and_well_again_once_it_is_healed() {
    let lab = Lab::up(1, 1, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "inner"]).unwrap();
    let create = ["service", "create", "-d", "--name", "web", "--network", "inner", "--replicas", "2"];
    lab.docker("m1", &[&create[..], &["-p", "8080:80", "skep/whoami:latest"]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 2);
    eventually("all is well", || is_well(&lab));
    what_is_well_is_shown_on_request(&lab);
    rules_of_another_do_not_count_as_ours(&lab);

    lab.lab(&["cut", "m1", "w1"]).unwrap();
    eventually("the cut pair is named, with advice", || {
        let (code, text) = doctor(&lab, "m1", &[]);
        let named = text.lines().find(|line| line.starts_with("FAILED  m1 -> w1: tunnel: nothing passes"));
        ensure!(code == Some(1) && named.is_some_and(|line| line.contains("is cut")), "{code:?}\n{text}");
        ensure!(text.contains("FAILED  w1: daemon: it cannot be asked from m1"), "{text}");
        Ok(())
    });
    let (code, text) = doctor(&lab, "w1", &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(": manager: ") && text.contains("cannot be connected to"), "{text}");
    assert!(text.contains("ask a manager for the whole cluster"), "{text}");

    lab.lab(&["heal", "m1", "w1"]).unwrap();
    eventually("all is well again", || is_well(&lab));
}

fn what_is_well_is_shown_on_request(lab: &Lab) {
    let (_, text) = doctor(lab, "m1", &["--verbose"]);
    for wanted in [
        "m1: kernel: ",
        "m1: overlayfs: ",
        "m1: nf_tables: ",
        "m1: VXLAN: ",
        "w1: clock: ",
        "w1 -> m1: manager: ",
        "m1 -> w1: tunnel: 5 of 5 packets came back",
        "w1 -> m1: tunnel: 5 of 5 packets came back",
        "m1 -> w1: path MTU: ",
        "w1: rules: ",
        "w1: names: ",
        "m1: answers: 4 questions in 1 of 1 containers answered rightly",
        "w1: store: it leads to 2 tasks",
        "m1: port 2377/tcp: open",
        "w1: port 51820/udp: open",
        "m1: storage: ",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
    }
    let (code, text) = doctor(lab, "m1", &["--node", "w1", "-o", "json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, value["Nodes"][0]["Name"].as_str(), value["Nodes"].as_array().unwrap().len()),
        (Some(0), Some("w1"), 1)
    );
    let (code, text) = doctor(lab, "m1", &["--node", "nobody"]);
    assert!(code != Some(0) && text.contains("nobody"), "{text}");
}

/// A firewall that loads rules of its own makes the kernel's rule set another one, and breaks nothing of ours.
fn rules_of_another_do_not_count_as_ours(lab: &Lab) {
    lab.lab(&["exec", "w1", "--", "nft", "add", "table", "ip", "others"]).unwrap();
    let (_, text) = doctor(lab, "m1", &["--verbose"]);
    assert!(text.contains("ok      w1: rules: "), "{text}");
}

#[test]
#[ignore = "needs root"]
fn a_node_alone_looks_at_itself() {
    let lab = Lab::up(1, 0, &["--no-cluster"]);
    let (code, text) = doctor(&lab, "m1", &["-v"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("m1: overlayfs: ") && text.contains("port 51820/udp: free"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn a_name_server_that_hangs_and_a_closed_port_are_named() {
    let lab = Lab::up(1, 1, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "inner"]).unwrap();
    let create = ["service", "create", "-d", "--name", "web", "--network", "inner", "--replicas", "2"];
    lab.docker("m1", &[&create[..], &["skep/whoami:latest"]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 2);
    eventually("all is well", || is_well(&lab));

    let server = name_server(&lab, "w1");
    kill_process(server, Signal::STOP).unwrap();
    let (code, text) = doctor(&lab, "m1", &[]);
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    let answers = line("FAILED  w1: answers: in 1 of 1 containers asked");
    assert!(code == Some(1) && answers.contains("nothing answers at the name server's own port"), "{code:?}\n{text}");
    assert!(answers.contains("the process skep net") && answers.contains("state T is stopped"), "{text}");
    assert!(line("FAILED  w1: names: ").contains("does not answer within"), "{text}");
    assert!(line("FAILED  m1: answers").is_empty(), "{text}");
    kill_process(server, Signal::CONT).unwrap();
    eventually("all is well again", || is_well(&lab));

    let firewall = "add table inet other { chain in { type filter hook input priority -10; udp dport 51820 drop; }; }";
    lab.lab(&["exec", "w1", "--", "nft", firewall]).unwrap();
    eventually("the closed port is named", || {
        let (code, text) = doctor(&lab, "m1", &[]);
        let named = text.lines().find(|line| line.starts_with("FAILED  m1 -> w1: tunnel: 0 of 5 packets came back"));
        let advises = named.is_some_and(|line| line.contains("let UDP 51820 pass between the two nodes"));
        ensure!(code == Some(1) && advises, "{code:?}\n{text}");
        Ok(())
    });
    lab.lab(&["exec", "w1", "--", "nft", "delete", "table", "inet", "other"]).unwrap();
    eventually("all is well once more", || is_well(&lab));
}

/// The process beside a node's daemon.
fn name_server(lab: &Lab, node: &str) -> Pid {
    let folder = lab.root(node);
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let serves = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.nth(1).as_deref() == Some("net") && words.any(|word| Path::new(&word).starts_with(&folder))
    };
    pids.find(serves).and_then(Pid::from_raw).unwrap()
}
