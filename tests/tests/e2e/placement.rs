//! Where tasks go, why they go nowhere, and how they move.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";

fn create(lab: &Lab, name: &str, flags: &[&str]) {
    lab.docker("m1", &[&["service", "create", "-d", "--name", name], flags, &[IMAGE]].concat()).unwrap();
}

/// Running tasks by node.
fn spread(lab: &Lab, service: &str) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for line in lab.running("m1", service) {
        *spread.entry(line.split(' ').nth(1).unwrap().to_owned()).or_default() += 1;
    }
    spread
}

fn wait_for_spread(lab: &Lab, service: &str, wanted: &[(&str, usize)]) {
    let wanted: BTreeMap<String, usize> = wanted.iter().map(|(node, n)| ((*node).to_owned(), *n)).collect();
    eventually(&format!("{service} is spread as {wanted:?}"), || {
        let found = spread(lab, service);
        ensure!(found == wanted, "{found:?}");
        Ok(())
    });
}

fn wait_for_error(lab: &Lab, service: &str, wanted: &str) {
    eventually(&format!("{service} waits and says why"), || {
        let said = lab.docker("m1", &["service", "ps", "--no-trunc", "--format", "{{.Error}}", service])?;
        ensure!(said.lines().any(|line| line.contains(wanted)), "{said}");
        Ok(())
    });
}

fn remove(lab: &Lab, service: &str) {
    lab.docker("m1", &["service", "rm", service]).unwrap();
}

#[test]
#[ignore = "needs root"]
fn preferences_constraints_and_resources_place_tasks_and_say_why_they_cannot() {
    let resources = "--daemon-arg=--node-generic-resource=gpu=a,gpu=b,ssd=3";
    let lab = Lab::up(1, 2, &["--daemon-arg=--label=disk=fast", resources]);
    for (node, zone) in [("m1", "a"), ("w1", "a"), ("w2", "b")] {
        lab.docker("m1", &["node", "update", "--label-add", &format!("zone={zone}"), node]).unwrap();
    }
    tasks_are_spread_over_zones_before_nodes(&lab);
    constraints_hold_for_every_property_of_a_node(&lab);
    each_task_is_told_which_resources_it_has(&lab);
    tasks_move_when_they_are_told_to(&lab);
}

fn tasks_are_spread_over_zones_before_nodes(lab: &Lab) {
    create(lab, "zones", &["--replicas", "6", "--placement-pref", "spread=node.labels.zone"]);
    let spread_of_zones: &[(&str, usize)] = &[("w2", 3)];
    eventually("half of the tasks are in each zone", || {
        let found = spread(lab, "zones");
        ensure!(found.values().sum::<usize>() == 6, "{found:?}");
        ensure!(spread_of_zones.iter().all(|(node, n)| found.get(*node) == Some(n)), "{found:?}");
        Ok(())
    });
    lab.docker("m1", &["service", "update", "-d", "--placement-pref-rm", "spread=node.labels.zone", "zones"]).unwrap();
    let shown = lab.docker("m1", &["service", "inspect", "--format", "{{json .Spec.TaskTemplate.Placement}}", "zones"]);
    assert!(!shown.unwrap().contains("Preferences"));
    remove(lab, "zones");
    let refused = lab
        .docker("m1", &["service", "create", "-d", "--placement-pref", "spread=node.id", IMAGE])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("tasks spread over node.labels.NAME or engine.labels.NAME"), "{refused}");
}

fn constraints_hold_for_every_property_of_a_node(lab: &Lab) {
    let id = lab.docker("m1", &["node", "inspect", "--format", "{{.ID}}", "w2"]).unwrap();
    let address = lab.address("w2");
    let all = ["m1", "w1", "w2"];
    let rows: [(String, &[&str]); 10] = [
        (format!("node.id=={}", id.trim()), &["w2"]),
        ("node.hostname!=W2".into(), &["m1", "w1"]),
        ("node.role==manager".into(), &["m1"]),
        (format!("node.ip=={address}"), &["w2"]),
        (format!("node.ip!={address}/32"), &["m1", "w1"]),
        ("node.platform.os==linux".into(), &all),
        (format!("node.platform.arch=={}", std::env::consts::ARCH), &all),
        ("node.labels.zone==b".into(), &["w2"]),
        ("node.labels.other!=x".into(), &all),
        ("engine.labels.disk==fast".into(), &all),
    ];
    for (n, (constraint, nodes)) in rows.iter().enumerate() {
        let name = format!("c{n}");
        create(lab, &name, &["--mode", "global", "--constraint", constraint]);
        let wanted: Vec<(&str, usize)> = nodes.iter().map(|node| (*node, 1)).collect();
        wait_for_spread(lab, &name, &wanted);
        remove(lab, &name);
    }
    create(lab, "nowhere", &["--constraint", "node.labels.zone==c"]);
    wait_for_error(lab, "nowhere", "no suitable node (scheduling constraints not satisfied on 3 nodes)");
    lab.docker("m1", &["service", "update", "-d", "--constraint-rm", "node.labels.zone==c", "nowhere"]).unwrap();
    lab.wait_for_running("m1", "nowhere", 1);
    remove(lab, "nowhere");
    create(lab, "max", &["--replicas", "4", "--replicas-max-per-node", "1"]);
    wait_for_spread(lab, "max", &[("m1", 1), ("w1", 1), ("w2", 1)]);
    wait_for_error(lab, "max", "no suitable node (max replicas per node limit exceed");
    remove(lab, "max");
}

fn each_task_is_told_which_resources_it_has(lab: &Lab) {
    let shown = lab.docker("m1", &["node", "inspect", "--format", "{{json .Description.Resources}}", "w1"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let generic = serde_json::json!([
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "a"}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "b"}},
        {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}},
    ]);
    assert_eq!(shown["GenericResources"], generic);
    create(lab, "gpus", &["--replicas", "8", "--generic-resource", "gpu=1", "--generic-resource", "ssd=1"]);
    lab.wait_for_running("m1", "gpus", 6);
    wait_for_error(lab, "gpus", "no suitable node (insufficient resources on 3 nodes)");
    let mut given: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lab.running("m1", "gpus") {
        let (task, node) = line.split_once(' ').unwrap();
        let container =
            lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", task]).unwrap();
        let env = lab.docker("m1", &["inspect", "--format", "{{json .Config.Env}}", container.trim()]).unwrap();
        let env: Vec<String> = serde_json::from_str(&env).unwrap();
        assert!(env.contains(&"DOCKER_RESOURCE_SSD=1".to_owned()), "{env:?}");
        let gpu = env.iter().find_map(|e| e.strip_prefix("DOCKER_RESOURCE_GPU=")).unwrap().to_owned();
        assert!(given.entry(node.to_owned()).or_default().insert(gpu), "given twice on {node}");
    }
    assert!(given.values().all(|names| *names == BTreeSet::from(["a".to_owned(), "b".to_owned()])), "{given:?}");
    remove(lab, "gpus");
}

fn tasks_move_when_they_are_told_to(lab: &Lab) {
    lab.skep("m1", &["node", "drain", "w2", "--wait"]).unwrap();
    create(lab, "web", &["--replicas", "6", "--update-order", "start-first"]);
    wait_for_spread(lab, "web", &[("m1", 3), ("w1", 3)]);
    lab.skep("m1", &["node", "activate", "w2"]).unwrap();
    lab.skep("m1", &["service", "rebalance", "web"]).unwrap();
    wait_for_spread(lab, "web", &[("m1", 2), ("w1", 2), ("w2", 2)]);
    let labels = lab.docker("m1", &["service", "inspect", "--format", "{{json .Spec.Labels}}", "web"]).unwrap();
    assert_eq!(labels.trim(), "{}");
    lab.skep("m1", &["node", "drain", "w2", "--wait"]).unwrap();
    wait_for_spread(lab, "web", &[("m1", 3), ("w1", 3)]);
    lab.skep("m1", &["node", "activate", "w2"]).unwrap();
    lab.docker("m1", &["service", "update", "-d", "--label-add", "skep.rebalance=auto", "web"]).unwrap();
    wait_for_spread(lab, "web", &[("m1", 2), ("w1", 2), ("w2", 2)]);
    let refused = lab.skep("m1", &["service", "update", "-d", "--label-add", "skep.rebalance=often", "web"]);
    assert!(refused.unwrap_err().to_string().contains("is auto or once"));
}
