//! One large stack: how long `skep apply` takes to make it, until all of it runs, and to see that nothing is to be done; and the
//! most memory that the client had.
//!
//! `SKEP=… SKEP_SHIM=… cargo bench -p skep-tests --bench stack [-- SERVICES [REPLICAS]]`, as root: 500 services of one task each on
//! three managers, unless told otherwise.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up fails")]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use skep_tests::Lab;
use skep_tests::api::Api;

const PATIENCE: Duration = Duration::from_secs(900);
/// How often the client's memory and the cluster's tasks are looked at.
const POLL: Duration = Duration::from_millis(5);

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (services, replicas) = (numbers.next().unwrap_or(500), numbers.next().unwrap_or(1));
    let lab = Lab::up(3, 0, &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.yml");
    std::fs::write(&file, manifest(services, replicas)).unwrap();
    println!("{services} services of {replicas} tasks in a file of {} KiB", file.metadata().unwrap().len() >> 10);

    run(&lab, "plan of a new stack", &file, &["--dry-run"]);
    let began = Instant::now();
    run(&lab, "apply, all are made", &file, &["-d"]);
    if replicas > 0 {
        until_running(&lab, services * replicas);
        println!("all tasks run: {:.2} s after the begin of that apply", began.elapsed().as_secs_f64());
    }
    run(&lab, "apply, no changes", &file, &[]);
    std::fs::write(&file, manifest(services, replicas).replace("LEVEL: info", "LEVEL: debug")).unwrap();
    run(&lab, "plan of a change to each", &file, &["--dry-run"]);
    let began = Instant::now();
    run(&lab, "apply of a change to each, waited for", &file, &["--timeout", "15m"]);
    println!("all tasks are new: {:.2} s after the begin of that apply", began.elapsed().as_secs_f64());
    let began = Instant::now();
    lab.skep("m1", &["stack", "rm", "large"]).unwrap();
    println!("stack rm: {:.2} s", began.elapsed().as_secs_f64());
}

/// Services with what services have: variables, labels, a config, resources, networks.
fn manifest(services: usize, replicas: usize) -> String {
    let service = |n: usize| {
        format!(
            "  service-{n}:\n    image: skep/whoami\n    environment: {{NUMBER: '{n}', LEVEL: info, DATABASE: db.example.org}}\n\
             \x20   labels: {{team: team-{}}}\n    configs: [settings]\n    networks: [back]\n    stop_grace_period: 1s\n\
             \x20   deploy:\n      replicas: {replicas}\n      resources: {{limits: {{memory: 64M}}}}\n\
             \x20     update_config: {{order: start-first}}\n",
            n % 7
        )
    };
    let all: String = (0..services).map(service).collect();
    format!(
        "services:\n{all}networks: {{back: {{ipam: {{config: [{{subnet: 10.200.0.0/16}}]}}}}}}\nconfigs: {{settings: {{content: 'a: 1'}}}}\n"
    )
}

/// Runs `skep apply` and says how long it took, and how much memory.
fn run(lab: &Lab, what: &str, file: &Path, more: &[&str]) {
    let arguments = [&["apply", "--stack", "large", "-f", file.to_str().unwrap()], more].concat();
    let began = Instant::now();
    let mut command = lab.skep_command("m1", &arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0_u64;
    let ended = loop {
        // One that has ended has none any more: what was seen last is what it had.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(POLL);
    };
    assert!(ended.success(), "{what}: {ended}");
    println!("{what}: {:.2} s, {} MiB at most", began.elapsed().as_secs_f64(), peak >> 10);
}

fn until_running(lab: &Lab, count: usize) {
    let mut api = Api::new(lab.socket("m1"), Duration::from_secs(60));
    let began = Instant::now();
    loop {
        let tasks = api.get("/tasks").unwrap();
        let runs = |task: &&serde_json::Value| task["Status"]["State"] == "running";
        let running = tasks.as_array().unwrap().iter().filter(runs).count();
        if running >= count {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{running} of {count} tasks run");
        std::thread::sleep(POLL * 20);
    }
}
