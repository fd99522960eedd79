//! The leader is killed, then cut off, while 16 clients write: when is the next write accepted, and is anything lost?
//!
//! `SKEP=… SKEP_SHIM=… cargo bench -p skep-tests --bench leader [-- ROUNDS]`, as root. Returns 1 when an acknowledged write is
//! missing or doubled, or a task was restarted.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up fails")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use skep_tests::api::{Api, NoAnswer};
use skep_tests::{Lab, eventually};

const CLIENTS: usize = 16;
const REPLICAS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);
/// Written before and after the leader goes.
const BEFORE: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let rounds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(10);
    let lab = Lab::up(3, 1, &[]);
    let replicas = REPLICAS.to_string();
    let create = ["service", "create", "-d", "--name", "web", "--replicas", &replicas, "skep/whoami:latest"];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", REPLICAS);
    let tasks = lab.running("m1", "web");
    let mut is_good = true;
    for (name, take, give) in [("killed", "kill", "start"), ("cut off", "cut", "heal")] {
        let mut times = Vec::new();
        let (mut acknowledged, mut unknown) = (0, 0);
        for round in 0..rounds {
            let outcome = one(&lab, &format!("{take}{round}"), take, give);
            let (accepted, count, lost) = (outcome.accepted, outcome.acknowledged, outcome.problems);
            times.push(accepted.as_secs_f64());
            acknowledged += count;
            unknown += outcome.unknown;
            for problem in &lost {
                println!("{problem}");
            }
            is_good &= lost.is_empty();
        }
        times.sort_by(f64::total_cmp);
        println!(
            "leader {name}, {rounds} times: next write accepted after {:.2} s (median), {:.2} to {:.2} s; {acknowledged} writes \
             acknowledged, {unknown} without an answer",
            times[times.len() / 2],
            times[0],
            times[times.len() - 1]
        );
        let now = lab.running("m1", "web");
        println!("tasks restarted: {}", if now == tasks { "none" } else { "some" });
        is_good &= now == tasks;
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Outcome {
    accepted: Duration,
    acknowledged: usize,
    unknown: usize,
    problems: Vec<String>,
}

/// One acknowledged write: name, id, when it was sent and answered.
type Write = (String, String, Instant, Instant);

fn one(lab: &Lab, prefix: &str, take: &str, give: &str) -> Outcome {
    let leader = wait_for_three(lab);
    let stop = Arc::new(AtomicBool::default());
    let managers = ["m1", "m2", "m3"];
    let sockets: Vec<String> = managers.iter().map(|m| lab.socket(m).to_owned()).collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (stop, sockets, prefix) = (stop.clone(), sockets.clone(), format!("{prefix}-{number}"));
            std::thread::spawn(move || write(&stop, &sockets, number, &prefix))
        })
        .collect();
    std::thread::sleep(BEFORE);
    let gone = Instant::now();
    lab.lab(&[take, &leader]).unwrap();
    std::thread::sleep(AFTER);
    stop.store(true, Ordering::Relaxed);
    let results: Vec<(Vec<Write>, usize)> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    lab.lab(&[give, &leader]).unwrap();
    let unknown = results.iter().map(|r| r.1).sum();
    let writes: Vec<Write> = results.into_iter().flat_map(|r| r.0).collect();
    let first = writes.iter().filter(|w| w.2 > gone).map(|w| w.3).min();
    let accepted = first.map_or(Duration::MAX, |first| first - gone);

    wait_for_three(lab);
    let mut problems = Vec::new();
    let mut m = Api::new(lab.socket(managers.iter().find(|m| **m != leader).unwrap()), PATIENCE);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for config in m.get("/configs").unwrap().as_array().unwrap() {
        let field = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        found.entry(field("/Spec/Name")).or_default().push(field("/ID"));
    }
    for (name, id, ..) in &writes {
        match found.get(name).map(Vec::as_slice) {
            Some([one]) if one == id => {}
            other => problems.push(format!("{name} was acknowledged as {id}, and there is {other:?}")),
        }
    }
    for id in found.into_values().flatten() {
        m.call("DELETE", &format!("/configs/{id}"), None).unwrap();
    }
    Outcome { accepted, acknowledged: writes.len(), unknown, problems }
}

/// Creates configs until told to stop; after a failure it asks the next manager.
fn write(stop: &AtomicBool, sockets: &[String], number: usize, prefix: &str) -> (Vec<Write>, usize) {
    let mut managers: Vec<Api> = sockets.iter().map(|s| Api::new(s, PATIENCE)).collect();
    let (mut writes, mut unknown, mut manager) = (Vec::new(), 0, number);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{prefix}-{n}");
        let began = Instant::now();
        let count = managers.len();
        match managers[manager % count].ask("POST", "/configs/create", Some(&json!({"Name": name, "Data": "eA=="}))) {
            Ok(answer) if answer.status == 201 => {
                let id = answer.json().ok().and_then(|b| b["ID"].as_str().map(str::to_owned)).unwrap_or_default();
                writes.push((name, id, began, Instant::now()));
                continue;
            }
            Ok(answer) if answer.status == 503 || answer.message().contains("nothing was changed") => {}
            Ok(_) | Err(NoAnswer::Unknown(_)) => unknown += 1,
            Err(NoAnswer::NotSent(_)) => {}
        }
        manager += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    (writes, unknown)
}

/// Waits until every node is ready and every manager takes part; gives the leader's name.
fn wait_for_three(lab: &Lab) -> String {
    let mut leader = String::new();
    eventually("every manager takes part", || {
        for node in ["m1", "m2", "m3"] {
            let all = lab.docker(node, &["node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}}"])?;
            let managers: Vec<&str> = all.lines().filter(|l| l.starts_with('m')).collect();
            let is_whole = |l: &&str| l.contains(" Ready ") && (l.ends_with("Leader") || l.ends_with("Reachable"));
            ensure!(managers.len() == 3 && managers.iter().all(is_whole), "{all}");
            ensure!(all.lines().all(|l| l.contains(" Ready")), "{all}");
            let line = managers.iter().find(|l| l.ends_with("Leader")).context("no leader")?;
            leader = line.split(' ').next().unwrap_or_default().to_owned();
        }
        Ok(())
    });
    leader
}
