//! A cluster in which one node has no IPv6: what the API tells of it, and where names and ports lead.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually, images};

const WHOAMI: &str = "skep/whoami:latest";

fn json(lab: &Lab, arguments: &[&str]) -> Value {
    let text = lab.docker("m1", arguments).unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    shown[0].clone()
}

/// The label of the daemon that tells of IPv6.
fn label(lab: &Lab, node: &str) -> anyhow::Result<String> {
    let format = "{{index .Description.Engine.Labels \"io.skep.ipv6\"}}";
    Ok(lab.docker("m1", &["node", "inspect", "-f", format, node])?.trim().to_owned())
}

#[test]
#[ignore = "needs root"]
fn a_node_without_ipv6_is_told_of_and_left_out_of_what_is_asked_over_it() {
    let lab = Lab::up(1, 1, &[]);
    let own = lab.address6("m1");
    images::load_busybox(&lab);
    assert_eq!(label(&lab, "w1").unwrap(), "true");
    lab.lab(&["kill", "w1"]).unwrap();
    lab.lab(&["exec", "w1", "--", "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    eventually("the managers hear that it has no IPv6", || {
        let told = label(&lab, "w1")?;
        ensure!(told == "false", "{told}");
        Ok(())
    });

    lab.docker("m1", &["network", "create", "-d", "overlay", "--attachable", "--ipv6", "dual"]).unwrap();
    let create = ["service", "create", "-d", "--name", "web", "--mode", "global", "-p", "8080:80", "--network", "dual"];
    lab.docker("m1", &[&create[..], &[WHOAMI]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 2);
    let only = addresses_are_those_that_tasks_have(&lab);

    // By name, by virtual address and by port: the task on m1 alone.
    lab.docker("m1", &["run", "-d", "--name", "near", "--network", "dual", "busybox:test", "sleep", "600"]).unwrap();
    eventually("the tasks' name has one address of IPv6 and two of IPv4", || {
        let said = lab.docker("m1", &["exec", "near", "nslookup", "tasks.web", "127.0.0.11"])?;
        let found = said.lines().filter_map(|line| line.strip_prefix("Address: ")).map(str::trim);
        let (v6, v4): (Vec<&str>, Vec<&str>) =
            found.partition(|address| address.contains(':') && !address.ends_with(":53"));
        ensure!(v6 == [only.as_str()] && v4.iter().filter(|address| address.starts_with("10.")).count() == 2, "{said}");
        Ok(())
    });
    let ask = |url: &str| lab.docker("m1", &["exec", "near", "wget", "-qO-", url]);
    let vips = json(&lab, &["service", "inspect", "web"])["Endpoint"]["VirtualIPs"].clone();
    let vip = vips.as_array().unwrap().iter().filter_map(|v| v["Addr"].as_str()).find(|a| a.contains(':')).unwrap();
    let vip = vip.split('/').next().unwrap();
    for url in [format!("http://[{vip}]/"), format!("http://[{own}]:8080/")] {
        let mut hosts = BTreeSet::new();
        eventually("it answers over IPv6", || ask(&url).map(drop));
        for _ in 0..10 {
            let said = ask(&url).unwrap();
            hosts.extend(said.lines().filter(|line| line.starts_with("Hostname: ")).map(str::to_owned));
        }
        assert_eq!(hosts.len(), 1, "{url}: {hosts:?}");
    }
    let text = lab.skep_command("m1", &["doctor"]).output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("w1: IPv6: this node has no IPv6, and others have"), "{text}");

    // Services that need it are kept where it is.
    let create = ["service", "create", "-d", "--name", "six", "--constraint", "engine.labels.io.skep.ipv6==true"];
    lab.docker("m1", &[&create[..], &["--replicas", "2", "--network", "dual", WHOAMI]].concat()).unwrap();
    lab.wait_for_running("m1", "six", 2);
    assert!(lab.running("m1", "six").iter().all(|line| line.contains("m1")), "{:?}", lab.running("m1", "six"));
}

/// The one IPv6 address that a task has, as all that shows it says.
fn addresses_are_those_that_tasks_have(lab: &Lab) -> String {
    let network = json(lab, &["network", "inspect", "--verbose", "dual"]);
    let tasks = network["Services"]["web"]["Tasks"].as_array().unwrap();
    let shown: Vec<&str> = tasks.iter().filter_map(|task| task["Info"]["Endpoint IPv6"].as_str()).collect();
    assert_eq!((tasks.len(), shown.len()), (2, 1), "{tasks:#?}");
    let mut counts = Vec::new();
    for line in lab.running("m1", "web") {
        let task = json(lab, &["inspect", line.split(' ').next().unwrap()]);
        let attachments = task["NetworksAttachments"].as_array().unwrap();
        let dual = attachments.iter().find(|a| a["Network"]["Spec"]["Name"] == "dual").unwrap();
        counts.push(dual["Addresses"].as_array().unwrap().len());
    }
    counts.sort_unstable();
    assert_eq!(counts, [1, 2]);
    shown[0].to_owned()
}
