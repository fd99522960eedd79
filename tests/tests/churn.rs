//! Tasks come and go by the dozen, by scaling, by updates and by being killed, while containers on every node ask for their names and connect to
//! their service: nobody is told of a task that was seen dead a while ago, no connection fails while nothing is killed, and nothing is
//! left behind.
//!
//! `SKEP_CHURN_TASKS` is how many tasks there are to be (150), `SKEP_CHURN_LATE` after how many seconds nobody may name one that ended (10: machines
//! that run tests are shared). `deploy/churn` runs the long form, with one second.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use skep_tests::chaos::Random;
use skep_tests::chaos::residue::{self, Residue};
use skep_tests::churn::client::{Clients, Seen};
use skep_tests::churn::truth::{Life, Truth};
use skep_tests::{Lab, eventually, host, images};

const SERVICE: &str = "mill";
const NETWORK: &str = "stream";
/// Tasks of the service when nothing is added.
const FEW: usize = 10;
/// Tasks of the service at most.
const MANY: usize = 24;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
#[ignore = "needs root"]
fn nobody_is_told_of_a_task_that_is_gone_while_tasks_come_and_go() {
    let wanted = usize::try_from(setting("SKEP_CHURN_TASKS", 150)).unwrap();
    let late = Duration::from_secs(setting("SKEP_CHURN_LATE", 10));
    let mut lab = Lab::up(1, 2, &[]);
    images::load_busybox(&lab);
    // No address is given twice in the time of a run: an address tells the task.
    let network = ["network", "create", "-d", "overlay", "--attachable", "--subnet", "10.88.0.0/16", NETWORK];
    lab.docker("m1", &network).unwrap();
    let before = residue::settled(&mut lab);

    let few = FEW.to_string();
    let create = ["service", "create", "-d", "--name", SERVICE, "--network", NETWORK, "--replicas", &few];
    let policy = ["--restart-delay", "0s", "--update-parallelism", "5", "--update-order", "start-first"];
    // A task gets connections once it listens.
    let healthy = ["--health-cmd", "whoami probe", "--health-start-period", "30s", "--health-start-interval", "100ms"];
    lab.docker("m1", &[&create[..], &policy, &["--update-monitor", "0s"], &healthy, &["skep/whoami:latest"]].concat())
        .unwrap();
    let truth = Truth::begin(&lab, SERVICE, NETWORK);
    lab.wait_for_running("m1", SERVICE, FEW);

    let kills = Arc::new(AtomicU64::new(0));
    let clients: Vec<Clients> = lab.nodes().iter().map(|node| client(&lab, node, &kills)).collect();
    let began = Instant::now();
    churn(&lab, &truth, &kills, wanted);
    let took = began.elapsed();
    let mut seen = Seen::default();
    clients.into_iter().for_each(|clients| seen.add(clients.finish()));

    lab.docker("m1", &["service", "rm", SERVICE]).unwrap();
    for node in lab.nodes() {
        lab.docker(&node, &["rm", "-f", "client"]).unwrap();
    }
    let lives = truth.end();
    judge(&lives, &seen, took, late);
    for (node, before) in before {
        eventually(&format!("{node} keeps nothing"), || Residue::of(&mut lab, &node)?.ensure_same(&before));
    }
    lab.docker("m1", &["network", "rm", NETWORK]).unwrap();
}

/// A plain container on a node, and clients in its namespace.
fn client(lab: &Lab, node: &str, kills: &Arc<AtomicU64>) -> Clients {
    lab.docker(node, &["run", "-d", "--name", "client", "--network", NETWORK, "busybox:test", "sleep", "100000"])
        .unwrap();
    // Not found by its program: what was just started may have yet to become that.
    let pid = lab.docker(node, &["inspect", "--format", "{{.State.Pid}}", "client"]).unwrap();
    let namespace = format!("/proc/{}/ns/net", pid.trim());
    let vip = "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}}";
    let vip = lab.docker("m1", &["service", "inspect", "--format", vip, SERVICE]).unwrap();
    let vip: Ipv4Addr = vip.split('/').next().unwrap().parse().unwrap();
    let names = [format!("tasks.{SERVICE}"), SERVICE.to_owned()];
    eventually("the service is there for the container", || {
        lab.docker(node, &["exec", "client", "wget", "-qO-", &format!("http://{SERVICE}/")]).map(drop)
    });
    Clients::start(Path::new(&namespace), &names, (vip, 80).into(), kills)
}

/// Until there were so many tasks.
fn churn(lab: &Lab, truth: &Truth, kills: &AtomicU64, wanted: usize) {
    let mut random = Random::new(1);
    let scale = |to: usize| {
        lab.docker("m1", &["service", "scale", "-d", &format!("{SERVICE}={to}")]).unwrap();
        lab.wait_for_running("m1", SERVICE, to);
        eventually("the others are gone", || {
            let living = truth.living().len();
            ensure!(living == to, "{living} live");
            Ok(())
        });
    };
    for round in 0.. {
        if truth.count() >= wanted {
            break;
        }
        match round % 3 {
            0 => {
                scale(MANY);
                scale(FEW);
            }
            1 => {
                let old = truth.living();
                lab.docker("m1", &["service", "update", "-d", "--force", SERVICE]).unwrap();
                eventually("all tasks are new", || {
                    let living = truth.living();
                    ensure!(living.len() == FEW && living.is_disjoint(&old), "{} live", living.len());
                    Ok(())
                });
            }
            _ => kill(lab, truth, kills, &mut random),
        }
    }
}

/// Kills some tasks at once, and waits until others run in their place.
fn kill(lab: &Lab, truth: &Truth, kills: &AtomicU64, random: &mut Random) {
    kills.fetch_add(1, Ordering::Relaxed);
    let old = truth.living();
    let tasks = |node: &String| host::pids_named(&lab.cgroup(), node, "whoami");
    let nodes: Vec<String> = lab.nodes().into_iter().filter(|node| !tasks(node).is_empty()).collect();
    let node = random.pick(&nodes).clone();
    let label = format!("label=com.docker.swarm.service.name={SERVICE}");
    let ids = lab.docker(&node, &["ps", "-q", "--no-trunc", "--filter", &label]).unwrap();
    let pids = tasks(&node);
    pids.iter().for_each(|pid| host::kill(*pid));
    let killed: BTreeSet<&str> = ids.lines().collect();
    eventually("others run in the place of those that were killed", || {
        let living = truth.living();
        ensure!(
            living.len() == FEW && killed.iter().all(|id| !living.contains(*id)),
            "{} of {} live",
            living.len(),
            old.len()
        );
        Ok(())
    });
    lab.wait_for_running("m1", SERVICE, FEW);
    kills.fetch_add(1, Ordering::Relaxed);
}

fn judge(lives: &[Life], seen: &Seen, took: Duration, allowed: Duration) {
    let ends: BTreeMap<Ipv4Addr, Duration> =
        lives.iter().filter_map(|life| Some((life.address?, life.ended?))).collect();
    let late =
        seen.named.iter().filter_map(|(address, named)| Some((address, named.checked_sub(*ends.get(address)?)?)));
    let mut late: Vec<(Duration, &Ipv4Addr)> = late.map(|(address, by)| (by, address)).collect();
    late.sort_unstable();
    let wrong: Vec<_> = late.iter().filter(|(by, _)| *by > allowed).collect();
    let latest = late.last().map_or(Duration::ZERO, |(by, _)| *by);
    println!(
        "{} tasks in {:.0} s; {} answers, {} of {} dead tasks named after their end, {latest:.2?} at most; {} connections, {} lost while tasks were killed",
        lives.len(),
        took.as_secs_f64(),
        seen.answers,
        late.len(),
        ends.len(),
        seen.connections,
        seen.lost
    );
    assert!(wrong.is_empty(), "named more than {allowed:?} after their end: {wrong:#?}");
    assert!(seen.failures.is_empty(), "{} failures: {:#?}", seen.failures.len(), seen.failures);
    assert!(
        ends.len() + FEW >= lives.len() && seen.named.len() + FEW >= lives.len() / 2,
        "the truth is not known: {lives:?}"
    );
}
