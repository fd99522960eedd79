//! Rolling updates: nobody's request is lost, and each setting does what it says.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;
use skep_tests::load::Load;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";

/// A number from the environment, for longer runs than usual.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

fn service(lab: &Lab, node: &str, name: &str) -> anyhow::Result<Value> {
    let text = lab.docker(node, &["service", "inspect", name])?;
    serde_json::from_str::<Value>(&text)?.get(0).cloned().context("one service")
}

/// Waits until the update is in `state`; gives its message.
fn update_is(lab: &Lab, node: &str, name: &str, state: &str) -> String {
    let mut message = String::new();
    eventually(&format!("the update of {name} is {state}"), || {
        let status = service(lab, node, name)?["UpdateStatus"].clone();
        ensure!(status["State"] == state, "{status}");
        message = status["Message"].as_str().unwrap_or_default().to_owned();
        Ok(())
    });
    message
}

/// Value of the variable `V` in each running task's spec.
fn versions(lab: &Lab, name: &str) -> Vec<String> {
    let tasks = lab.running("m1", name);
    let of = |task: &String| {
        let id = task.split(' ').next().unwrap_or_default();
        let env =
            lab.docker("m1", &["inspect", "--format", "{{json .Spec.ContainerSpec.Env}}", id]).unwrap_or_default();
        env.trim().to_owned()
    };
    tasks.iter().map(of).collect()
}

#[test]
#[ignore = "needs root"]
fn a_rolling_update_loses_no_request() {
    let lab = Lab::up(1, 2, &[]);
    let replicas = setting("SKEP_LOAD_REPLICAS", 5);
    let requests = setting("SKEP_LOAD_REQUESTS", 3000);
    let count = replicas.to_string();
    let create = [
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        &count,
        "-p",
        "8080:80",
        "--health-cmd",
        "whoami probe",
        "--health-start-period",
        "60s",
        "--health-start-interval",
        "100ms",
        "--update-monitor",
        "200ms",
        IMAGE,
    ];
    lab.docker("m1", &create).unwrap();
    let wanted = usize::try_from(replicas).unwrap();
    lab.wait_for_running("m1", "web", wanted);
    let entries: Vec<String> = ["m1", "w1"].map(|node| format!("{}:8080", lab.address(node))).to_vec();
    for node in ["m1", "w1"] {
        eventually("the port answers", || lab.http(node, 8080, "/").map(drop));
    }
    let rounds = [("start-first", 1), ("start-first", 5), ("stop-first", 1), ("stop-first", 2)];
    for (number, (order, parallelism)) in rounds.iter().enumerate() {
        let load = Load::start(&entries, 8);
        let (variable, parallelism) = (format!("V={number}"), parallelism.to_string());
        let began = Instant::now();
        let update = [
            "service",
            "update",
            "-d",
            "--update-order",
            order,
            "--update-parallelism",
            &parallelism,
            "--env-add",
            &variable,
            "web",
        ];
        lab.docker("m1", &update).unwrap();
        eventually("every task is new", || {
            let state = service(&lab, "m1", "web")?["UpdateStatus"]["State"].clone();
            ensure!(state == "completed", "{state}");
            Ok(())
        });
        let took = began.elapsed();
        let now = versions(&lab, "web");
        assert!(now.len() == wanted && now.iter().all(|env| env.contains(&variable)), "{now:?}");
        eventually("there were enough requests", || {
            ensure!(load.answered() >= requests / rounds.len() as u64, "{}", load.answered());
            Ok(())
        });
        let (answered, failures) = load.finish();
        println!(
            "{order}, {parallelism} at a time: {replicas} tasks in {took:.2?}, {answered} requests, {} lost",
            failures.len()
        );
        assert!(failures.is_empty(), "{} of {answered} requests were lost: {failures:#?}", failures.len());
    }
}
