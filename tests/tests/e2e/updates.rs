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
        load.wait_for(requests / rounds.len() as u64);
        let slow = load.slow();
        let (answered, failures) = load.finish();
        println!(
            "{order}, {parallelism} at a time: {replicas} tasks in {took:.2?}, {answered} requests, {} lost, {slow} slow",
            failures.len()
        );
        assert!(failures.is_empty(), "{} of {answered} requests were lost: {failures:#?}", failures.len());
    }
}

fn docker_fails(lab: &Lab, arguments: &[&str]) -> String {
    let said = lab.docker_output("m1", arguments);
    assert!(!said.status.success(), "{arguments:?} succeeded: {}", String::from_utf8_lossy(&said.stdout));
    String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
}

#[test]
#[ignore = "needs root"]
fn an_update_that_fails_is_paused_continued_or_rolled_back_as_it_was_told() {
    let lab = Lab::up(1, 1, &[]);
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&[
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "4",
        "--restart-delay",
        "100ms",
        "--env",
        "V=0",
        "--update-monitor",
        "2s",
        "--rollback-parallelism",
        "0",
        "--rollback-monitor",
        "100ms",
        IMAGE,
    ]);
    lab.wait_for_running("m1", "web", 4);
    let first = lab.running("m1", "web");

    // Pause, Docker's default: one task was tried, three were left alone.
    let said = docker_fails(&lab, &["service", "update", "--env-add", "V=1", "--entrypoint", "/nothing", "web"]);
    assert!(
        said.contains("service update paused: update paused due to failure or early termination of task"),
        "{said}"
    );
    let pretty = docker(&["service", "inspect", "--pretty", "web"]);
    assert!(
        pretty.contains("State:\t\tpaused") && pretty.contains("Message:\tupdate paused due to failure"),
        "{pretty}"
    );
    let left = lab.running("m1", "web").into_iter().filter(|task| first.contains(task)).count();
    assert_eq!(left, 3);

    // By hand: back to what it was.
    let said = docker(&["service", "rollback", "web"]);
    assert!(said.contains("rollback: manually requested rollback"), "{said}");
    assert_eq!(update_is(&lab, "m1", "web", "rollback_completed"), "rollback completed");
    lab.wait_for_running("m1", "web", 4);
    assert!(versions(&lab, "web").iter().all(|env| env.contains("V=0")));
    assert_eq!(
        lab.running("m1", "web").iter().filter(|task| first.contains(task)).count(),
        3,
        "those that were right stay"
    );

    // An image that cannot be had: rolled back by itself.
    let update = [
        "service",
        "update",
        "--no-resolve-image",
        "--update-failure-action",
        "rollback",
        "--image",
        "skep/nothing:1",
        "web",
    ];
    let said = docker(&update);
    assert!(said.contains("rollback: update rolled back due to failure or early termination of task"), "{said}");
    assert_eq!(update_is(&lab, "m1", "web", "rollback_completed"), "rollback completed");
    lab.wait_for_running("m1", "web", 4);
    assert_eq!(service(&lab, "m1", "web").unwrap()["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"][0], "V=0");
    assert_eq!(lab.running("m1", "web").iter().filter(|task| first.contains(task)).count(), 3);

    // A share of failures that is accepted does not stop it.
    docker(&[
        "service",
        "update",
        "-d",
        "--update-failure-action",
        "pause",
        "--update-max-failure-ratio",
        "1",
        "--args",
        "--crash-after 1",
        "web",
    ]);
    eventually("all four were tried", || {
        let spec = service(&lab, "m1", "web")?;
        ensure!(spec["UpdateStatus"]["State"] == "updating", "{}", spec["UpdateStatus"]);
        let story = lab.docker("m1", &["service", "ps", "--format", "{{.Name}} {{.Error}}", "web"])?;
        let tried = (1..5)
            .filter(|slot| story.lines().any(|l| l.contains(&format!("web.{slot} ")) && l.contains("non-zero exit")))
            .count();
        ensure!(tried >= 2, "{story}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn an_update_to_something_unhealthy_is_rolled_back_and_no_request_is_lost() {
    let lab = Lab::up(1, 1, &[]);
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&[
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "3",
        "-p",
        "8080:80",
        "--health-cmd",
        "whoami probe",
        "--health-interval",
        "200ms",
        "--health-retries",
        "3",
        "--update-order",
        "start-first",
        "--update-failure-action",
        "rollback",
        "--rollback-order",
        "start-first",
        "--rollback-monitor",
        "100ms",
        IMAGE,
    ]);
    lab.wait_for_running("m1", "web", 3);
    let before = lab.running("m1", "web");
    let entries: Vec<String> = ["m1", "w1"].map(|node| format!("{}:8080", lab.address(node))).to_vec();
    for node in ["m1", "w1"] {
        eventually("the port answers", || lab.http(node, 8080, "/").map(drop));
    }
    let load = Load::start(&entries, 4);
    docker(&["service", "update", "-d", "--args", "--healthy-after 3600", "web"]);
    update_is(&lab, "m1", "web", "rollback_completed");
    // The same again by force, which is a good one: every task is another one then.
    docker(&["service", "update", "-d", "--force", "--update-monitor", "100ms", "web"]);
    update_is(&lab, "m1", "web", "completed");
    // Fewer tasks, and a node that is emptied.
    docker(&["service", "scale", "-d", "web=2"]);
    lab.wait_for_running("m1", "web", 2);
    docker(&["node", "update", "--availability", "drain", "w1"]);
    eventually("nothing runs on the drained node", || {
        let running = lab.running("m1", "web");
        ensure!(running.len() == 2 && running.iter().all(|task| task.ends_with(" m1")), "{running:?}");
        Ok(())
    });
    let (answered, failures) = load.finish();
    assert!(
        failures.is_empty() && answered > 100,
        "{} of {answered} requests were lost: {failures:#?}",
        failures.len()
    );
    let after = lab.running("m1", "web");
    assert!(after.iter().all(|task| !before.contains(task)), "{before:?} {after:?}");
}

#[test]
#[ignore = "needs root"]
fn an_update_goes_on_when_the_leader_is_killed() {
    let lab = Lab::up(3, 0, &[]);
    lab.docker(
        "m1",
        &[
            "service",
            "create",
            "-d",
            "--name",
            "web",
            "--replicas",
            "6",
            "--update-delay",
            "1s",
            "--update-monitor",
            "100ms",
            IMAGE,
        ],
    )
    .unwrap();
    lab.wait_for_running("m1", "web", 6);
    let before = lab.running("m1", "web");
    let nodes = lab.docker("m1", &["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]).unwrap();
    let leader = nodes.lines().find_map(|l| l.strip_suffix(" Leader")).unwrap().to_owned();
    let other = lab.nodes().into_iter().find(|node| *node != leader).unwrap();
    lab.docker(&other, &["service", "update", "-d", "--env-add", "V=1", "web"]).unwrap();
    let fresh = || lab.running(&other, "web").into_iter().filter(|task| !before.contains(task)).count();
    eventually("the update is half-way", || {
        ensure!((2..5).contains(&fresh()), "{} tasks are new", fresh());
        Ok(())
    });
    lab.lab(&["kill", &leader]).unwrap();
    assert_eq!(update_is(&lab, &other, "web", "completed"), "update completed");
    let now = lab.running(&other, "web");
    assert!(now.len() == 6 && now.iter().all(|task| !before.contains(task)), "{now:?}");
}
