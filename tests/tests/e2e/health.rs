//! Health checks: of plain containers, and what they mean for tasks.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use skep_tests::{Lab, eventually, host, images};

const IMAGE: &str = "skep/whoami:latest";
/// Probes every 200 ms with the image's own probe; two failures are enough.
const CHECK: [&str; 6] = ["--health-cmd", "whoami probe", "--health-interval", "200ms", "--health-retries", "2"];

fn with_check<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<&'a str> {
    [before, &CHECK, after].concat()
}

fn health(lab: &Lab, node: &str, container: &str) -> anyhow::Result<Value> {
    let text = lab.docker(node, &["inspect", "--format", "{{json .State.Health}}", container])?;
    Ok(serde_json::from_str(&text)?)
}

fn turns(lab: &Lab, node: &str, container: &str, status: &str) {
    eventually(&format!("{container} is {status}"), || {
        let health = health(lab, node, container)?;
        ensure!(health["Status"] == status, "{health}");
        Ok(())
    });
}

/// Tells the server in a container what to answer to its probes.
fn tell(lab: &Lab, node: &str, container: &str, status: u16) {
    let path = format!("/health?status={status}");
    // The answer is the new status, so the exit code says nothing.
    lab.docker_output(node, &["exec", container, "/whoami", "whoami", "probe", "--path", &path]);
}

#[test]
#[ignore = "needs root"]
fn a_plain_containers_health_is_probed_shown_and_kept_over_a_restart_of_the_daemon() {
    let lab = Lab::up(1, 0, &[]);
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&with_check(&["run", "-d", "--name", "sick"], &[IMAGE]));
    docker(&["run", "-d", "--name", "plain", IMAGE]);
    docker(&with_check(
        &["run", "-d", "--name", "late", "--health-start-period", "1h"],
        &[IMAGE, "--healthy-after", "3600"],
    ));
    assert_eq!(docker(&["inspect", "--format", "{{json .State.Health}}", "plain"]).trim(), "null");
    turns(&lab, "m1", "sick", "healthy");
    let shown = docker(&["ps", "--filter", "health=healthy", "--format", "{{.Names}} {{.Status}}"]);
    assert!(shown.starts_with("sick Up ") && shown.trim_end().ends_with("(healthy)"), "{shown}");
    assert_eq!(docker(&["ps", "--filter", "health=none", "--format", "{{.Names}}"]).trim(), "plain");
    assert_eq!(docker(&["ps", "--filter", "health=starting", "--format", "{{.Names}}"]).trim(), "late");
    let line = docker(&["ps", "--filter", "name=late", "--format", "{{.Status}}"]);
    assert!(line.contains("(health: starting)"), "{line}");
    let config: Value =
        serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config.Healthcheck}}", "sick"])).unwrap();
    assert_eq!(config["Test"], serde_json::json!(["CMD-SHELL", "whoami probe"]));

    tell(&lab, "m1", "sick", 503);
    turns(&lab, "m1", "sick", "unhealthy");
    let seen = health(&lab, "m1", "sick").unwrap();
    let last = seen["Log"].as_array().and_then(|log| log.last()).cloned().unwrap_or_default();
    assert_eq!(last["ExitCode"], 1, "{seen}");
    assert!(last["Output"].as_str().unwrap_or_default().contains("503"), "{seen}");
    assert!(seen["FailingStreak"].as_u64() >= Some(2) && seen["Log"].as_array().map(Vec::len) <= Some(5), "{seen}");

    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    eventually("the daemon answers", || lab.docker("m1", &["version"]).map(drop));
    assert_eq!(health(&lab, "m1", "sick").unwrap()["Status"], "unhealthy", "it is known at once");
    tell(&lab, "m1", "sick", 200);
    turns(&lab, "m1", "sick", "healthy");
    docker(&["stop", "sick"]);
    assert_eq!(health(&lab, "m1", "sick").unwrap()["Status"], "unhealthy", "what has ended is not healthy");
}

#[test]
#[ignore = "needs root"]
fn a_probe_that_takes_too_long_has_failed_and_leaves_no_process() {
    let lab = Lab::up(1, 0, &[]);
    images::load_busybox(&lab);
    let run = |name: &str, image: &[&str], probe: &str| {
        let check =
            ["--health-cmd", probe, "--health-interval", "100ms", "--health-timeout", "300ms", "--health-retries", "1"];
        lab.docker("m1", &[&["run", "-d", "--init=false", "--name", name][..], &check, image].concat()).unwrap();
        turns(&lab, "m1", name, "unhealthy");
    };
    run("alone", &[IMAGE], "whoami probe --hang");
    run("family", &["busybox:test", "sleep", "1000"], "sleep 1000 & sleep 1000");
    let seen = health(&lab, "m1", "alone").unwrap();
    assert_eq!(seen["Log"][0]["ExitCode"], -1);
    assert_eq!(seen["Log"][0]["Output"], "Health check exceeded timeout (300ms)");
    // With the daemon gone nobody probes any more; a probe under way goes with it.
    lab.lab(&["kill", "m1"]).unwrap();
    eventually("only the containers' own processes are left", || {
        let live = |pid: &u64| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        };
        let pids: Vec<u64> = host::pids_of(&lab.cgroup(), "m1").into_iter().filter(live).collect();
        ensure!(pids.len() == 2, "{pids:?}");
        Ok(())
    });
    lab.lab(&["start", "m1"]).unwrap();
}

/// The container of the only running or starting task of `web`, on whichever node: node and id.
fn container_of(lab: &Lab, service: &str) -> anyhow::Result<(String, String)> {
    for node in lab.nodes() {
        let filter = format!("name={service}.");
        let ids = lab.docker(&node, &["ps", "-q", "--no-trunc", "--filter", &filter])?;
        if let Some(id) = ids.lines().next() {
            return Ok((node, id.to_owned()));
        }
    }
    bail!("no container of {service}")
}

#[test]
#[ignore = "needs root"]
fn a_task_gets_traffic_only_once_it_is_healthy_and_an_unhealthy_one_is_replaced() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&["network", "create", "-d", "overlay", "back"]);
    let client = [
        "service",
        "create",
        "-d",
        "--name",
        "client",
        "--network",
        "back",
        "--constraint",
        "node.role==manager",
        "busybox:test",
        "sleep",
        "100000",
    ];
    docker(&client);
    lab.wait_for_running("m1", "client", 1);
    let create = [
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--network",
        "back",
        "-p",
        "8080:80",
        "--restart-delay",
        "0s",
        "--health-start-period",
        "1h",
        "--health-start-interval",
        "200ms",
    ];
    docker(&with_check(&create, &[IMAGE, "--healthy-after", "3600"]));
    eventually("the task starts", || {
        let states = lab.docker("m1", &["service", "ps", "--format", "{{.CurrentState}}", "web"])?;
        ensure!(states.starts_with("Starting"), "{states}");
        Ok(())
    });
    let (node, container) = container_of(&lab, "web").unwrap();
    eventually("a probe has failed", || {
        let seen = health(&lab, &node, &container)?;
        ensure!(seen["Log"].as_array().is_some_and(|log| !log.is_empty()), "{seen}");
        Ok(())
    });
    let (_, asker) = container_of(&lab, "client").unwrap();
    let resolve = |name: &str| {
        let said = lab.docker_output("m1", &["exec", &asker, "nslookup", name]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        // The first address is the server's own.
        text.lines().filter(|l| l.starts_with("Address")).skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let fetch = || lab.docker("m1", &["exec", &asker, "wget", "-qO-", "http://web/"]);
    assert_eq!(resolve("tasks.web"), Vec::<String>::new(), "DNS names no task that starts");
    assert!(fetch().is_err(), "the virtual address leads to no task that starts");
    for node in lab.nodes() {
        lab.http(&node, 8080, "/").expect_err("the mesh leads to no task that starts");
    }
    assert!(lab.running("m1", "web").is_empty());

    tell(&lab, &node, &container, 200);
    lab.wait_for_running("m1", "web", 1);
    eventually("the mesh leads to the task", || lab.http("w1", 8080, "/").map(drop));
    eventually("the virtual address leads to the task", || fetch().map(drop));
    eventually("DNS names the task", || {
        ensure!(resolve("tasks.web").len() == 1, "{:?}", resolve("tasks.web"));
        Ok(())
    });

    let first = lab.running("m1", "web");
    tell(&lab, &node, &container, 503);
    eventually("the unhealthy task has failed and another one has its place", || {
        let story =
            lab.docker("m1", &["service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "web"])?;
        ensure!(story.lines().any(|l| l.starts_with("Failed") && l.contains("task: unhealthy container")), "{story}");
        let (_, next) = container_of(&lab, "web").context("the replacement")?;
        ensure!(next != container && !first.is_empty(), "{story}");
        Ok(())
    });
}
