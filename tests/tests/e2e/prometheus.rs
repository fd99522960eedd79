//! A stock Prometheus discovers the cluster by `dockerswarm_sd_configs`.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;
use skep_tests::{Lab, eventually};

/// The program: `$PROMETHEUS`, else the distribution's package, unpacked beside the test and never installed.
fn prometheus() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("PROMETHEUS") {
        return Some(program.into());
    }
    let own = std::env::current_exe().unwrap();
    let place = own.ancestors().nth(3).unwrap().join("prometheus");
    let program = place.join("usr/bin/prometheus");
    if !program.exists() {
        std::fs::create_dir_all(&place).unwrap();
        let unpack = "apt-get download prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb";
        let done = Command::new("sh").args(["-c", unpack]).current_dir(&place).output().unwrap();
        if !done.status.success() {
            eprintln!("SKIPPED: there is no Prometheus: {}", String::from_utf8_lossy(&done.stderr));
            return None;
        }
    }
    Some(program)
}

/// Ends it with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn labels(port: u16, job: &str) -> anyhow::Result<Vec<Value>> {
    let text = skep_tests::http(&format!("127.0.0.1:{port}"), "/api/v1/targets?state=active")?;
    let json: Value = serde_json::from_str(
        text.get(text.find('{').context("no JSON")?..=text.rfind('}').context("no JSON")?).unwrap(),
    )?;
    let targets = json["data"]["activeTargets"].as_array().context("no targets")?;
    Ok(targets.iter().filter(|t| t["labels"]["job"] == job).map(|t| t["discoveredLabels"].clone()).collect())
}

#[test]
#[ignore = "needs root"]
fn prometheus_finds_nodes_services_and_tasks() {
    let Some(program) = prometheus() else { return };
    let lab = Lab::up(1, 1, &[]);
    lab.docker("m1", &["network", "create", "-d", "overlay", "net"]).unwrap();
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "2", "--network", "net", "-p", "8080:80"];
    lab.docker("m1", &[&create[..], &["--label", "team=a", "--container-label", "part=b", "skep/whoami"]].concat())
        .unwrap();
    lab.wait_for_running("m1", "web", 2);
    let dir = tempfile::tempdir().unwrap();
    let socket = lab.socket("m1");
    let job = |role: &str| {
        format!(
            "- job_name: {role}\n  dockerswarm_sd_configs: [{{host: 'unix://{socket}', role: {role}, refresh_interval: 1s}}]\n"
        )
    };
    let config = format!("scrape_configs:\n{}{}{}", job("nodes"), job("services"), job("tasks"));
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new(program)
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let _running = Running(child);
    let set = |found: &[Value], label: &str| -> BTreeSet<String> {
        found.iter().filter_map(|t| t[label].as_str().map(str::to_owned)).collect()
    };
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    eventually("the nodes are targets", || {
        let found = labels(port, "nodes")?;
        ensure!(set(&found, "__meta_dockerswarm_node_hostname") == names(&["m1", "w1"]), "{found:?}");
        ensure!(set(&found, "__meta_dockerswarm_node_role") == names(&["manager", "worker"]), "{found:?}");
        ensure!(set(&found, "__meta_dockerswarm_node_status") == names(&["ready"]), "{found:?}");
        Ok(())
    });
    eventually("the service is one", || {
        let found = labels(port, "services")?;
        ensure!(set(&found, "__meta_dockerswarm_service_name") == names(&["web"]), "{found:?}");
        ensure!(set(&found, "__meta_dockerswarm_service_label_team") == names(&["a"]), "{found:?}");
        ensure!(set(&found, "__meta_dockerswarm_service_mode") == names(&["replicated"]), "{found:?}");
        Ok(())
    });
    eventually("its tasks are, by their addresses on the network", || {
        let found = labels(port, "tasks")?;
        let on_net: Vec<Value> = found.into_iter().filter(|t| t["__meta_dockerswarm_network_name"] == "net").collect();
        ensure!(set(&on_net, "__address__").len() == 2, "{on_net:?}");
        ensure!(set(&on_net, "__meta_dockerswarm_task_state") == names(&["running"]), "{on_net:?}");
        ensure!(set(&on_net, "__meta_dockerswarm_task_slot") == names(&["1", "2"]), "{on_net:?}");
        ensure!(set(&on_net, "__meta_dockerswarm_node_hostname") == names(&["m1", "w1"]), "{on_net:?}");
        ensure!(set(&on_net, "__meta_dockerswarm_container_label_part") == names(&["b"]), "{on_net:?}");
        Ok(())
    });
}
