//! Whether what is observed is what is desired: at the managers, and on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::Lab;
use crate::api::Api;

const PATIENCE: Duration = Duration::from_secs(10);
/// Label of a task's container.
const TASK_LABEL: &str = "com.docker.swarm.task.id";
/// States that no task leaves.
const ENDED: [&str; 6] = ["complete", "shutdown", "failed", "rejected", "remove", "orphaned"];

/// A client of a node's socket.
pub fn api(lab: &Lab, node: &str) -> Api {
    Api::new(lab.socket(node), PATIENCE)
}

fn list(api: &mut Api, path: &str) -> anyhow::Result<Vec<Value>> {
    api.get(path)?.as_array().cloned().context("a list")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Checks once.
///
/// # Errors
/// The first thing that is not as it is wanted.
pub fn check(lab: &Lab) -> anyhow::Result<()> {
    let managers: Vec<String> = lab.nodes().into_iter().filter(|n| n.starts_with('m')).collect();
    let mut first = api(lab, &managers[0]);
    let names = nodes(&mut first, lab.nodes().len(), managers.len())?;
    let tasks = list(&mut first, "/tasks")?;
    let services = list(&mut first, "/services")?;
    slots(&services, &tasks)?;
    for (id, name) in &names {
        on_node(lab, id, name, &tasks)?;
    }
    for manager in &managers[1..] {
        let mut other = api(lab, manager);
        for path in ["/services", "/configs", "/networks"] {
            let (here, there) = (objects(&mut first, path)?, objects(&mut other, path)?);
            ensure!(here == there, "{manager} shows other {path} than {}: {there:?}, {here:?}", managers[0]);
        }
    }
    Ok(())
}

/// Ids and versions of a list's cluster objects.
fn objects(api: &mut Api, path: &str) -> anyhow::Result<BTreeSet<(String, u64)>> {
    let of = |o: &Value| {
        let is_local = path == "/networks" && o["Scope"] != "swarm";
        let id = o["ID"].as_str().or(o["Id"].as_str()).unwrap_or_default().to_owned();
        (!is_local).then(|| (id, o["Version"]["Index"].as_u64().unwrap_or_default()))
    };
    Ok(list(api, path)?.iter().filter_map(of).collect())
}

/// Every node is ready, every manager reachable, one leads. Gives names by id.
fn nodes(api: &mut Api, count: usize, managers: usize) -> anyhow::Result<BTreeMap<String, String>> {
    let nodes = list(api, "/nodes")?;
    ensure!(nodes.len() == count, "{} nodes instead of {count}", nodes.len());
    let name = |n: &Value| text(n, "/Description/Hostname").to_owned();
    for node in &nodes {
        ensure!(text(node, "/Status/State") == "ready", "{} is {}", name(node), node["Status"]);
    }
    let reachable = nodes.iter().filter(|n| text(n, "/ManagerStatus/Reachability") == "reachable").count();
    ensure!(reachable == managers, "{reachable} managers are reachable");
    let leaders = nodes.iter().filter(|n| n["ManagerStatus"]["Leader"] == true).count();
    ensure!(leaders == 1, "{leaders} managers lead");
    Ok(nodes.iter().map(|n| (text(n, "/ID").to_owned(), name(n))).collect())
}

fn show(task: &Value) -> String {
    let state = text(task, "/Status/State");
    let error = task["Status"]["Err"].as_str().or(task["Status"]["Message"].as_str()).unwrap_or_default();
    format!("task {} wanted {} is {state} ({error})", text(task, "/ID"), text(task, "/DesiredState"))
}

/// Each service has its replicas in different slots, and nothing else of it lives.
fn slots(services: &[Value], tasks: &[Value]) -> anyhow::Result<()> {
    for service in services {
        let (id, name) = (text(service, "/ID"), text(service, "/Spec/Name"));
        let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().context("a replicated service")?;
        let live: Vec<&Value> =
            tasks.iter().filter(|t| t["ServiceID"] == id && t["DesiredState"] == "running").collect();
        if let Some(waiting) = live.iter().find(|t| text(t, "/Status/State") != "running") {
            anyhow::bail!("{name}: {}", show(waiting));
        }
        let slots: BTreeSet<u64> = live.iter().filter_map(|t| t["Slot"].as_u64()).collect();
        ensure!(
            live.len() as u64 == wanted && slots.len() == live.len(),
            "{name} has {} tasks in slots {slots:?} instead of {wanted}",
            live.len()
        );
    }
    let known: BTreeSet<&str> = services.iter().map(|s| text(s, "/ID")).collect();
    for task in tasks {
        ensure!(known.contains(text(task, "/ServiceID")), "of a service that is gone: {}", show(task));
        let is_over = ENDED.contains(&text(task, "/Status/State"));
        ensure!(task["DesiredState"] == "running" || is_over, "{}", show(task));
    }
    Ok(())
}

/// A node runs the containers of its tasks, and keeps no other's.
fn on_node(lab: &Lab, id: &str, name: &str, tasks: &[Value]) -> anyhow::Result<()> {
    let here = |t: &&Value| t["NodeID"] == id;
    let all: BTreeSet<&str> = tasks.iter().filter(here).map(|t| text(t, "/ID")).collect();
    let wanted: BTreeSet<&str> =
        tasks.iter().filter(here).filter(|t| text(t, "/Status/State") == "running").map(|t| text(t, "/ID")).collect();
    let containers = list(&mut api(lab, name), "/containers/json?all=true")?;
    let mut running = BTreeSet::new();
    for container in &containers {
        let task = container["Labels"][TASK_LABEL].as_str().unwrap_or_default();
        ensure!(all.contains(task), "{name} keeps a container of the task {task}, which is not its: {container}");
        if container["State"] == "running" {
            ensure!(running.insert(task), "{name} runs two containers of task {task}");
        }
    }
    ensure!(running == wanted, "{name} runs tasks {running:?} instead of {wanted:?}");
    Ok(())
}
