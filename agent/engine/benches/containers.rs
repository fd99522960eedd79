//! Wall and CPU time of create, start, exit and delete of `/bin/true`, one after another and eight at a time; beside runc
//! where it is installed; and the memory of shims. Needs root and busybox-static.
//!
//! `SKEP_SHIM=path/to/static/skep-shim cargo bench -p skep-engine --bench containers`
#![allow(clippy::unwrap_used)] // A benchmark may panic.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::Node;

const RUNS: usize = 50;
const SHIMS: usize = 20;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Arc::new(Node::new().await);
        one(&node).await; // Warm.
        let (cpu, since) = (cpu_time(), Instant::now());
        let mut phases = Vec::new();
        for _ in 0..RUNS {
            phases.push(one(&node).await);
        }
        let mut times: Vec<Duration> = phases.iter().map(|p| p.iter().sum()).collect();
        tell("skep, one after another", &mut times, since.elapsed(), cpu_time() - cpu);
        for (at, name) in ["create", "start", "exit", "delete"].into_iter().enumerate() {
            let mut times: Vec<Duration> = phases.iter().map(|p| p[at]).collect();
            times.sort();
            println!("  of which {name:19} p50 {:6.1} ms", times[RUNS / 2].as_secs_f64() * 1000.0);
        }

        let (cpu, since) = (cpu_time(), Instant::now());
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let node = node.clone();
            lanes.spawn(async move {
                let mut times: Vec<Duration> = Vec::new();
                for _ in 0..RUNS / 8 {
                    times.push(one(&node).await.iter().sum());
                }
                times
            });
        }
        let mut times = lanes.join_all().await.concat();
        tell("skep, eight at a time", &mut times, since.elapsed(), cpu_time() - cpu);
        runc(&node);
        memory(&node).await;
    });
}

/// One container; gives when each of create, start, exit and delete was done.
async fn one(node: &Node) -> [Duration; 4] {
    let since = Instant::now();
    let id = node.create(node.config(&["/bin/true"])).await;
    let created = since.elapsed();
    node.start(id).await;
    let started = since.elapsed();
    assert_eq!(node.wait(id).await, 0);
    let ended = since.elapsed();
    node.containers.remove(id, false).await.unwrap();
    [created, started - created, ended - started, since.elapsed() - ended]
}

fn tell(what: &str, times: &mut [Duration], wall: Duration, cpu: Duration) {
    times.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let n = times.len() as f64;
    println!(
        "{what:28} p50 {:6.1} ms  p99 {:6.1} ms  {:6.1}/s  CPU of this machine {:5.1} ms each",
        ms(p50),
        ms(p99),
        n / wall.as_secs_f64(),
        ms(cpu) / n
    );
}

/// Busy time of all CPUs: shims leave this process, so its own accounting misses them. Other work on the machine counts too.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> =
        stat.lines().next().unwrap().split_whitespace().skip(1).map(|f| f.parse().unwrap()).collect();
    Duration::from_millis((fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) * 10)
}

/// The same with runc, on a root file system that is mounted already.
fn runc(node: &Node) {
    if Command::new("runc").arg("--version").output().is_err() {
        return println!("runc is not installed");
    }
    let bundle = node.dir.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    support::busybox(&bundle.join("rootfs"));
    assert!(Command::new("runc").arg("spec").current_dir(&bundle).status().unwrap().success());
    let config = bundle.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&text).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["linux"]["cgroupsPath"] = format!("{}/runc", node.config.cgroup_parent).into();
    std::fs::write(config, spec.to_string()).unwrap();
    let run = |bundle: &Path| {
        let output = Command::new("runc").args(["run", "shi-bench"]).current_dir(bundle).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&bundle);
    let (cpu, since) = (cpu_time(), Instant::now());
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let since = Instant::now();
        run(&bundle);
        times.push(since.elapsed());
    }
    tell("runc, one after another", &mut times, since.elapsed(), cpu_time() - cpu);
    // runc uses hierarchies that containers here do not.
    for hierarchy in ["unified", "systemd"] {
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{hierarchy}{}", node.config.cgroup_parent));
    }
}

async fn memory(node: &Node) {
    let mut ids = Vec::new();
    for _ in 0..SHIMS {
        let id = node.create(node.config(&["sleep", "1000"])).await;
        node.start(id).await;
        ids.push(id);
    }
    let kib = |pid: i32, field: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        text.lines().find_map(|l| l.strip_prefix(field)).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    let sum = |field| ids.iter().map(|id| kib(node.shim_of(*id), field)).sum::<u64>() / SHIMS as u64;
    println!(
        "{SHIMS} shims: each RSS {} KiB, PSS {} KiB, private dirty {} KiB",
        sum("Rss:"),
        sum("Pss:"),
        sum("Private_Dirty:")
    );
    for id in ids {
        node.containers.remove(id, true).await.unwrap();
    }
}
