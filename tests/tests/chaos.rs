//! Random failures under random writes: what was acknowledged holds, what is wanted comes true, and nothing stays behind.
//!
//! All follows from a seed. `SKEP_CHAOS_SEED` chooses it, `SKEP_CHAOS_SECONDS` how long things fail, and with
//! `SKEP_CHAOS_MINUTES` (`deploy/chaos` sets it) seed after seed is tried, each in a lab of its own.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use skep_tests::chaos::converge::{self, api};
use skep_tests::chaos::linear::{self, Verdict};
use skep_tests::chaos::residue::{self, Residue};
use skep_tests::chaos::schedule::{self, Fault};
use skep_tests::chaos::workload::{self, Key, Kind, Record, Workload};
use skep_tests::{Lab, eventually, host};

/// Seconds of failures in the short form.
const SHORT: u64 = 20;
const CLIENTS: u64 = 6;
const NETWORK: &str = "chaos";
/// Its subnet: so small that a lost address is missed.
const SUBNET: &str = "10.77.0.0/27";
/// Addresses of the subnet for services and tasks: all but its own, its broadcast and the gateway.
const ADDRESSES: u64 = 29;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
#[ignore = "needs root"]
fn acknowledged_writes_hold_and_the_cluster_converges_under_random_failures() {
    let first = setting("SKEP_CHAOS_SEED").unwrap_or(1);
    let seconds = setting("SKEP_CHAOS_SECONDS").unwrap_or(SHORT);
    let end = Instant::now() + Duration::from_secs(60 * setting("SKEP_CHAOS_MINUTES").unwrap_or(0));
    let mut failed = Vec::new();
    for seed in first.. {
        // Without a lab there is nothing to try the next seed in.
        let run = Run::new(seed, seconds);
        if std::panic::catch_unwind(AssertUnwindSafe(|| run.all())).is_err() {
            failed.push(seed);
        }
        if Instant::now() >= end {
            break;
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?} failed: each says above how it is run again");
}

/// One seed in one lab. When it fails it says how to see it again.
struct Run {
    seed: u64,
    seconds: u64,
    lab: Lab,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("seed {} failed; again: SKEP_CHAOS_SECONDS={} deploy/chaos 0 {}", self.seed, self.seconds, self.seed);
        // The lab takes its logs with it.
        let Some(folder) = std::env::var_os("SKEP_CHAOS_LOGS").map(PathBuf::from) else { return };
        for node in self.lab.nodes() {
            let to = folder.join(format!("seed-{}-{node}.log", self.seed));
            if let Err(error) = std::fs::copy(self.lab.root(&node).join("daemon.log"), &to) {
                eprintln!("{}: {error}", to.display());
            }
        }
    }
}

impl Run {
    fn new(seed: u64, seconds: u64) -> Self {
        Self { seed, seconds, lab: Lab::up(3, 2, &[]) }
    }

    fn all(mut self) {
        let began = Instant::now();
        let before = residue::settled(&mut self.lab);
        let keys = self.prepare();
        let record = self.fail_and_write(&keys);
        let failed = began.elapsed();
        self.judge(&keys, &record);
        let lab = &self.lab;
        eventually("the cluster is as it is wanted", || converge::check(lab));
        for node in lab.nodes() {
            eventually(&format!("{node} answers on the published port"), || lab.http(&node, 8080, "/health").map(drop));
        }
        let converged = began.elapsed();
        self.remove_all();
        for (node, before) in before {
            let lab = &mut self.lab;
            eventually(&format!("{node} keeps nothing"), || Residue::of(lab, &node)?.ensure_same(&before));
        }
        println!(
            "seed {}: {} requests answered and {} not, converged {:.1} s after the last failure, {:.1} s in all",
            self.seed,
            record.answered,
            record.unanswered,
            (converged - failed).as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }

    fn prepare(&self) -> Vec<Key> {
        let mut m1 = api(&self.lab, "m1");
        let call = |api: &mut skep_tests::api::Api, path: &str, body: Value| {
            api.call("POST", path, Some(&body)).expect("an untroubled cluster takes it")
        };
        self.lab.docker("m1", &["swarm", "update", "--snapshot-interval", "100"]).expect("a setting");
        let network = json!({"Name": NETWORK, "Driver": "overlay", "IPAM": {"Config": [{"Subnet": SUBNET}]}, "Attachable": false});
        call(&mut m1, "/networks/create", network);
        call(&mut m1, "/services/create", service("web", 4, true));
        self.lab.wait_for_running("m1", "web", 4);
        let nodes = m1.get("/nodes").expect("the nodes");
        let w1 = nodes.as_array().into_iter().flatten().find(|n| n["Description"]["Hostname"] == "w1");
        workload::keys(w1.and_then(|n| n["ID"].as_str()).expect("w1 is a node"))
    }

    fn fail_and_write(&mut self, keys: &[Key]) -> Record {
        let nodes = self.lab.nodes();
        let sockets: Vec<String> =
            nodes.iter().filter(|n| n.starts_with('m')).map(|n| self.lab.socket(n).to_owned()).collect();
        let plan = schedule::plan(self.seed, &nodes, Duration::from_secs(self.seconds));
        println!("seed {}: {} failures", self.seed, plan.len());
        let workload = Workload::start(self.seed, CLIENTS, &sockets, keys, NETWORK);
        let began = Instant::now();
        for (at, fault) in plan {
            std::thread::sleep(at.saturating_sub(began.elapsed()));
            println!("{:6.2} s: {fault}", began.elapsed().as_secs_f64());
            self.apply(&fault).unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        }
        // Clients also see the cluster come back.
        std::thread::sleep(Duration::from_secs(self.seconds).saturating_sub(began.elapsed()));
        workload.finish()
    }

    fn apply(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let lab = &mut self.lab;
        let words: Vec<&str> = match fault {
            Fault::Kill(node) => vec!["kill", node],
            Fault::PowerOff(node) => vec!["power-off", node],
            Fault::Start(node) => vec!["start", node],
            Fault::Cut(node) => vec!["cut", node],
            Fault::Heal(node) => vec!["heal", node],
            Fault::Part(a, b) => vec!["cut", a, b],
            Fault::Join(a, b) => vec!["heal", a, b],
            Fault::KillNames(node) => {
                host::name_servers(&lab.daemon_root(node)).into_iter().for_each(host::kill);
                return Ok(());
            }
        };
        lab.lab(&words).map(drop)
    }

    /// Every object's history has an order that explains it.
    fn judge(&self, keys: &[Key], record: &Record) {
        assert!(record.nonsense.is_empty(), "answers without sense: {:#?}", record.nonsense);
        for (key, history) in keys.iter().zip(&record.histories) {
            let initial = (key.kind == Kind::Node).then(|| (key.name.clone(), 0, 0));
            match linear::check(history, initial, key.versions()) {
                Verdict::Linearizable => {}
                Verdict::TooLong(places) => {
                    println!("{}: undecided after {places} places of {} operations", key.name, history.len());
                }
                Verdict::Broken(left) => {
                    let near = left.iter().take(40).collect::<Vec<_>>();
                    panic!("{}: no order explains these of {} operations: {near:#?}", key.name, history.len());
                }
            }
        }
    }

    /// Removes all that was made, and fills the network in between: an address that nobody has and nobody gets is lost.
    fn remove_all(&self) {
        let lab = &self.lab;
        eventually("services are removed", || remove(lab, "/services"));
        eventually("tasks and containers are gone", || idle(lab));
        api(lab, "m2")
            .call("POST", "/services/create", Some(&service("fill", ADDRESSES - 1, false)))
            .expect("an untroubled cluster takes it");
        lab.wait_for_running("m2", "fill", usize::try_from(ADDRESSES - 1).expect("it fits"));
        for folder in ["/services", "/configs"] {
            eventually(&format!("{folder} are removed"), || remove(lab, folder));
        }
        eventually("tasks and containers are gone", || idle(lab));
        eventually("the network is removed", || {
            api(lab, "m3").call("DELETE", &format!("/networks/{NETWORK}"), None).map(drop)
        });
    }
}

fn service(name: &str, replicas: u64, is_published: bool) -> Value {
    let ports = if is_published { json!([{"PublishedPort": 8080, "TargetPort": 80}]) } else { json!([]) };
    json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {"Image": "skep/whoami:latest", "StopGracePeriod": 1_000_000_000},
            "RestartPolicy": {"Condition": "any", "Delay": 200_000_000},
            "Networks": [{"Target": NETWORK}],
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
        "EndpointSpec": {"Ports": ports},
    })
}

/// Removes all objects of a kind.
fn remove(lab: &Lab, folder: &str) -> anyhow::Result<()> {
    let mut m1 = api(lab, "m1");
    let objects = m1.get(folder)?;
    for object in objects.as_array().context("a list")? {
        m1.call("DELETE", &format!("{folder}/{}", object["ID"].as_str().unwrap_or_default()), None)?;
    }
    Ok(())
}

/// No task is left, and no container on any node.
fn idle(lab: &Lab) -> anyhow::Result<()> {
    let tasks = api(lab, "m1").get("/tasks")?;
    ensure!(tasks == json!([]), "{tasks}");
    for node in lab.nodes() {
        let containers = api(lab, &node).get("/containers/json?all=true")?;
        ensure!(containers == json!([]), "{node} has {containers}");
    }
    Ok(())
}
