//! A cluster of three managers and two workers, driven by the stock docker CLI alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use skep_tests::{Lab, eventually};

/// The services of these tests listen at once and stop at once.
const IMAGE: &str = "skep/whoami:latest";

fn value<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

#[test]
#[ignore = "needs root"]
fn a_service_is_reached_scaled_updated_drained_and_removed_from_any_manager() {
    let lab = Lab::up(3, 2, &[]);
    let nodes = lab.docker("m2", &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"]).unwrap();
    assert_eq!(nodes.lines().count(), 5, "{nodes}");
    assert!(nodes.lines().all(|l| l.contains("Ready")), "{nodes}");
    assert_eq!(nodes.lines().filter(|l| l.ends_with("Leader")).count(), 1, "{nodes}");

    lab.docker("m1", &["network", "create", "-d", "overlay", "net"]).unwrap();
    let create =
        ["service", "create", "-d", "--name", "web", "--replicas", "6", "--network", "net", "-p", "8080:80", IMAGE];
    lab.docker("m2", &create).unwrap();
    lab.wait_for_running("m3", "web", 6);
    every_node_answers_with_the_client_s_own_address(&lab);
    tasks_reach_each_other_by_name(&lab);
    exec_reaches_other_nodes(&lab);
    both_clients_print_the_same(&lab);

    lab.docker("m3", &["service", "scale", "-d", "web=20"]).unwrap();
    lab.wait_for_running("m1", "web", 20);
    lab.docker("m1", &["service", "scale", "-d", "web=2"]).unwrap();
    lab.wait_for_running("m2", "web", 2);

    lab.docker("m1", &["service", "update", "-d", "--args", "--name changed", "web"]).unwrap();
    eventually("the new arguments are in force", || {
        let answer = lab.http("w1", 8080, "/")?;
        ensure!(answer.contains("Name: changed"), "{answer}");
        Ok(())
    });
    lab.wait_for_running("m1", "web", 2);
    let story = lab.docker("m1", &["service", "ps", "web"]).unwrap();
    assert!(story.contains("\\_ web.1") && story.contains("Shutdown"), "{story}");

    let node = lab.running("m1", "web")[0].split(' ').nth(1).unwrap().to_owned();
    lab.docker("m1", &["node", "update", "--availability", "drain", &node]).unwrap();
    eventually("the drained node is empty", || {
        let running = lab.running("m1", "web");
        ensure!(running.len() == 2 && running.iter().all(|l| !l.ends_with(&format!(" {node}"))), "{running:?}");
        Ok(())
    });
    lab.docker("m1", &["service", "rm", "web"]).unwrap();
    eventually("the network can go once nobody uses it", || lab.docker("m1", &["network", "rm", "net"]).map(drop));
}

fn every_node_answers_with_the_client_s_own_address(lab: &Lab) {
    // Clients on the host come from the host's end of the lab's link.
    let host = lab.gateway();
    for node in lab.nodes() {
        eventually(&format!("{node} answers"), || {
            let answer = lab.http(&node, 8080, "/")?;
            let seen = value(&answer, "RemoteAddr").context("no RemoteAddr")?;
            ensure!(seen.starts_with(&format!("{host}:")), "the task sees {seen}, the client is {host}");
            Ok(())
        });
    }
    let mut hosts = BTreeSet::new();
    eventually("all six tasks get their share", || {
        let answer = lab.http("w2", 8080, "/")?;
        hosts.insert(value(&answer, "Hostname").context("no Hostname")?.to_owned());
        ensure!(hosts.len() == 6, "{} answered so far", hosts.len());
        Ok(())
    });
}

/// A plain program cannot ask by name here, so a task of another image does: busybox, loaded on every node.
fn tasks_reach_each_other_by_name(lab: &Lab) {
    skep_tests::images::load_busybox(lab);
    let create = [
        "service",
        "create",
        "-d",
        "--name",
        "client",
        "--no-resolve-image",
        "--network",
        "net",
        "--mode",
        "global",
        "busybox:test",
        "sleep",
        "1000000",
    ];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "client", 5);
    for line in lab.running("m1", "client") {
        let (task, node) = (line.split(' ').next().unwrap(), line.split(' ').nth(1).unwrap().to_owned());
        let container =
            lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", task]).unwrap();
        let inside = |command: &[&str]| lab.docker("m1", &[&["exec", container.trim()], command].concat());
        eventually(&format!("a task on {node} reaches the service by its name"), || {
            let answer = inside(&["wget", "-qO-", "http://web/"])?;
            ensure!(answer.contains("Hostname:"), "{answer}");
            Ok(())
        });
        eventually(&format!("a task on {node} resolves all tasks"), || {
            let answer = inside(&["nslookup", "tasks.web"])?;
            let found: BTreeSet<&str> = answer.split_whitespace().filter(|w| w.starts_with("10.0.")).collect();
            ensure!(found.len() == 6, "{answer}");
            Ok(())
        });
    }
    lab.docker("m1", &["service", "rm", "client"]).unwrap();
}

fn both_clients_print_the_same(lab: &Lab) {
    let sorted = |printed: anyhow::Result<String>| {
        let mut lines: Vec<String> = printed.unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for line in [
        "service ls --format {{.ID}}/{{.Name}}/{{.Mode}}/{{.Replicas}}/{{.Image}}/{{.Ports}}",
        "service ps --format {{.ID}}/{{.Name}}/{{.Image}}/{{.Node}}/{{.DesiredState}}/{{.Error}} web",
        "service ps --no-resolve --no-trunc --format {{.ID}}/{{.Name}}/{{.Node}} web",
        "service inspect --format {{.ID}}/{{.Spec.Name}} web",
        "node ls --format {{.ID}}/{{.Hostname}}/{{.Status}}/{{.Availability}}/{{.ManagerStatus}}",
        "network ls --filter driver=overlay --format {{.ID}}/{{.Name}}/{{.Driver}}/{{.Scope}}",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let printed = sorted(lab.skep("m1", &words));
        assert_eq!(printed, sorted(lab.docker("m1", &words)), "{line}");
        assert!(!printed.is_empty(), "{line}");
    }
    let pretty = lab.skep("m1", &["service", "inspect", "--pretty", "web"]).unwrap();
    assert!(pretty.contains("\nService Mode:\tReplicated\n Replicas:\t6\n"), "{pretty}");
    assert!(pretty.contains("\nNetworks:\tnet\n") && pretty.contains(" PublishedPort = 8080\n"), "{pretty}");
}

fn exec_reaches_other_nodes(lab: &Lab) {
    let line = lab.running("m1", "web").into_iter().find(|l| !l.ends_with(" m1")).expect("six tasks are not all on m1");
    let task = line.split(' ').next().unwrap();
    let container =
        lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", task]).unwrap();
    // The image holds one program, which tells how it is called when it is called wrongly.
    let output = lab.docker_output("m1", &["exec", container.trim(), "/whoami", "whoami", "--what"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() != Some(0) && said.contains("usage: whoami"), "{said}");

    // What one manager prepares, another starts: clients may be behind a balancer.
    let body = r#"{"AttachStderr":true,"Cmd":["/whoami","whoami","--what"]}"#;
    let made = lab.api("m1", "POST", &format!("/containers/{}/exec", container.trim()), body).unwrap();
    let exec = made.split('"').find(|part| part.len() == 64).expect("an exec id").to_owned();
    let other = if line.ends_with(" m2") { "m3" } else { "m2" };
    let said = lab.api(other, "POST", &format!("/exec/{exec}/start"), "{}").unwrap();
    assert!(said.contains("usage: whoami"), "{said}");
    let state = lab.api("m1", "GET", &format!("/exec/{exec}/json"), "").unwrap();
    assert!(state.contains(r#""Running":false"#), "{state}");
}

#[test]
#[ignore = "needs root"]
fn a_compose_file_makes_a_stack_by_the_docker_cli_and_by_skep() {
    let lab = Lab::up(1, 1, &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.yml");
    let path = file.to_str().unwrap();
    let content = |replicas: u8| {
        format!(
            "services:\n  web:\n    image: {IMAGE}\n    ports: ['8081:80']\n    deploy:\n      replicas: {replicas}\nversion: '3.8'\n"
        )
    };
    std::fs::write(&file, content(2)).unwrap();
    lab.docker("m1", &["stack", "deploy", "-c", path, "demo"]).unwrap();
    lab.wait_for_running("m1", "demo_web", 2);
    assert_eq!(lab.docker("m1", &["stack", "ls", "--format", "{{.Name}} {{.Services}}"]).unwrap().trim(), "demo 1");

    // skep takes the stack over and changes it.
    std::fs::write(&file, content(3)).unwrap();
    let said = lab.skep("m1", &["apply", "-f", path, "--stack", "demo"]).unwrap();
    assert!(said.contains("change service demo_web"), "{said}");
    assert_eq!(lab.running("m1", "demo_web").len(), 3, "apply returned when all was done");
    let again = lab.skep("m1", &["apply", "-f", path, "--stack", "demo"]).unwrap();
    assert!(again.contains("no changes"), "{again}");

    std::fs::write(&file, "services:\n  web:\n    imag: x\n").unwrap();
    let error = lab.skep("m1", &["apply", "-f", path, "--stack", "demo"]).unwrap_err().to_string();
    assert!(error.contains("stack.yml:3:5") && error.contains("did you mean image?"), "{error}");
    lab.docker("m1", &["stack", "rm", "demo"]).unwrap();
}

#[test]
#[ignore = "needs root"]
fn plain_containers_run_on_a_node_without_a_cluster() {
    let lab = Lab::up(1, 0, &["--no-cluster"]);
    skep_tests::images::load_busybox(&lab);
    let said = lab.docker("m1", &["run", "--rm", "-e", "A=1", "busybox:test", "sh", "-c", "echo $A; exit 3"]);
    assert!(said.is_err(), "the exit code is the program's");
    let output =
        lab.docker_output("m1", &["run", "--rm", "busybox:test", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));

    lab.docker("m1", &["run", "-d", "--name", "web", "-p", "8082:80", IMAGE]).unwrap();
    eventually("the published port answers", || lab.http("m1", 8082, "/health").map(drop));
    lab.docker("m1", &["volume", "create", "data"]).unwrap();
    lab.docker("m1", &["run", "--rm", "-v", "data:/d", "busybox:test", "sh", "-c", "echo kept > /d/f"]).unwrap();
    let kept = lab.docker("m1", &["run", "--rm", "-v", "data:/d", "busybox:test", "cat", "/d/f"]).unwrap();
    assert_eq!(kept, "kept\n");
    lab.docker("m1", &["stop", "-t", "2", "web"]).unwrap();
    lab.docker("m1", &["rm", "web"]).unwrap();
    let missing = lab.docker_output("m1", &["run", "--rm", "busybox:test", "nosuchprogram"]);
    assert_eq!(missing.status.code(), Some(127), "{}", String::from_utf8_lossy(&missing.stderr));
    let refused = lab.docker("m1", &["service", "ls"]).unwrap_err().to_string();
    assert!(refused.contains("This node is not a swarm manager"), "{refused}");
    if lab.docker("m1", &["ps", "-aq"]).unwrap().lines().count() != 0 {
        panic!("{}", lab.docker("m1", &["ps", "-a"]).unwrap());
    }
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_is_refused_with_a_sentence() {
    let lab = Lab::up(1, 1, &[]);
    let error = |node: &str, arguments: &[&str]| -> String {
        match lab.docker(node, arguments) {
            Ok(said) => panic!("{arguments:?} was accepted: {said}"),
            Err(error) => error.to_string(),
        }
    };
    assert!(error("m1", &["swarm", "init"]).contains("already part of a swarm"));
    assert!(error("w1", &["swarm", "join", "--token", "x", "127.0.0.1"]).contains("already part of a swarm"));
    assert!(error("w1", &["node", "ls"]).contains("This node is not a swarm manager"));
    assert!(error("m1", &["swarm", "leave"]).contains("--force"));
    assert!(error("m1", &["service", "create", "--name", "-bad-", IMAGE]).contains("name must be valid"));
    assert!(
        error("m1", &["service", "create", "--name", "odd", "--constraint", "nonsense", IMAGE]).contains("constraint")
    );
    let publish = |name: &str| ["service", "create", "-d", "--name", name, "-p", "8083:80", IMAGE].map(str::to_owned);
    let first = publish("one");
    lab.docker("m1", &first.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let second = publish("two");
    assert!(
        error("m1", &second.iter().map(String::as_str).collect::<Vec<_>>()).contains("port '8083' is already in use")
    );
    assert!(error("m1", &first.iter().map(String::as_str).collect::<Vec<_>>()).contains("already exists"));

    lab.docker("m1", &["service", "create", "-d", "--name", "nowhere", "--constraint", "node.labels.x==y", IMAGE])
        .unwrap();
    explained(&lab, "nowhere", "no suitable node (scheduling constraints not satisfied on 2 nodes)");
    lab.docker("m1", &["service", "create", "-d", "--name", "noimage", "--no-resolve-image", "127.0.0.1:1/nothing:1"])
        .unwrap();
    explained(&lab, "noimage", "127.0.0.1:1");
    lab.docker("m1", &["service", "create", "-d", "--name", "noprogram", "--entrypoint", "/nothing", IMAGE]).unwrap();
    explained(&lab, "noprogram", "no such file");
}

fn explained(lab: &Lab, service: &str, text: &str) {
    eventually(&format!("{service} says why it does not run"), || {
        let story = lab.docker("m1", &["service", "ps", "--no-trunc", service])?;
        if !story.contains(text) {
            bail!("{story}");
        }
        Ok(())
    });
}
