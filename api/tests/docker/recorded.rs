//! Exchanges recorded between the docker CLI and dockerd 20.10 (API 1.41), sent again to the face.
//!
//! Status, content type and JSON are compared. Ids are translated as they become known; times, versions and addresses
//! need only be there. What the face means to answer otherwise stands in [`MEANT`], each with its reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use serde_json::Value;
use skep_api::ports::ControlPlane;
use skep_proto::model::container::Driver;
use skep_proto::model::secret::SecretData;
use skep_proto::model::*;
use tower::ServiceExt;

use crate::fake::World;

/// Differences that are meant: end of the path of a value in an answer, and why.
const MEANT: [(&str, &str); 0] = [];

/// Leaves whose value need only be of the same type.
const VOLATILE: [&str; 12] = [
    "ID",
    "Id",
    "Index",
    "CreatedAt",
    "UpdatedAt",
    "Created",
    "NetworkID",
    "Subnet",
    "Gateway",
    "Timestamp",
    "com.docker.network.driver.overlay.vxlanid_list",
    "Addr",
];

/// One difference.
type Difference = String;

struct Replay {
    router: Router,
    /// Recorded id to ours.
    ids: BTreeMap<String, String>,
    compared: usize,
    differences: Vec<Difference>,
}

impl Replay {
    fn of(world: &Arc<World>) -> Self {
        Self {
            router: skep_api::docker::router(world.ports()),
            ids: BTreeMap::new(),
            compared: 0,
            differences: Vec::new(),
        }
    }

    fn translate(&self, text: &str) -> String {
        self.ids.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String, Vec<u8>) {
        let mut request = http::Request::builder().method(method).uri(path);
        let body = match body {
            Some(json) => {
                request = request.header("content-type", "application/json");
                Body::from(self.translate(&json.to_string()))
            }
            None => Body::empty(),
        };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap().to_vec();
        (status, kind, bytes)
    }

    /// An update names the version that our object has now.
    async fn at_current_version(&self, path: &str) -> String {
        let Some((object, query)) = path.split_once("/update?") else { return path.to_owned() };
        let (_, _, body) = self.send("GET", object, None).await;
        let current: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let version = current["Version"]["Index"].as_u64().unwrap_or(0);
        let query: Vec<_> = query
            .split('&')
            .map(|p| if p.starts_with("version=") { format!("version={version}") } else { p.to_owned() })
            .collect();
        format!("{object}/update?{}", query.join("&"))
    }

    async fn exchange(&mut self, command: &str, recorded: &Value) {
        let (method, path) = (recorded["method"].as_str().unwrap(), recorded["path"].as_str().unwrap());
        let path = self.at_current_version(&self.translate(path)).await;
        let body = recorded["req_body"].get("json");
        let (status, kind, bytes) = self.send(method, &path, body).await;
        let at = format!("{command:.40} | {method} {path:.90}");
        self.compared += 1;
        if recorded["status"].as_u64() != Some(status.into()) {
            let text = String::from_utf8_lossy(&bytes);
            self.differences.push(format!("{at}: {} was recorded, not {status} {text:.200}", recorded["status"]));
            return;
        }
        if let Some(theirs) = recorded["resp_headers"]["Content-Type"].as_str()
            && theirs != kind
        {
            self.differences.push(format!("{at}: content type {theirs} was recorded, not {kind}"));
        }
        let Some(theirs) = recorded["resp_body"].get("json") else { return };
        let ours: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        self.learn(theirs, &ours);
        let mut found = Vec::new();
        let tasks = path.contains("/tasks");
        compare("", &self.translated(theirs), &ours, tasks, &mut found);
        self.differences.extend(found.into_iter().map(|d| format!("{at}: {d}")));
    }

    fn translated(&self, value: &Value) -> Value {
        serde_json::from_str(&self.translate(&value.to_string())).unwrap()
    }

    /// Notes which id of ours stands for which recorded one: the two answers are about the same objects.
    fn learn(&mut self, theirs: &Value, ours: &Value) {
        match (theirs, ours) {
            (Value::Object(a), Value::Object(b)) => {
                for (key, theirs) in a {
                    let Some(ours) = b.get(key) else { continue };
                    if let (true, Some(x), Some(y)) =
                        (["ID", "Id"].contains(&key.as_str()), theirs.as_str(), ours.as_str())
                        && x.len() >= 25
                    {
                        self.ids.insert(x.to_owned(), y.to_owned());
                    }
                    self.learn(theirs, ours);
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                for theirs in a {
                    if let Some(ours) = b.iter().find(|o| name(o).is_some() && name(o) == name(theirs)) {
                        self.learn(theirs, ours);
                    }
                }
            }
            // The answer to `swarm init`.
            (Value::String(x), Value::String(y)) if x.len() == 25 && y.len() == 25 && !self.ids.contains_key(x) => {
                self.ids.insert(x.clone(), y.clone());
            }
            _ => {}
        }
    }
}

/// What an object of a list is called.
fn name(object: &Value) -> Option<&str> {
    object["Spec"]["Name"]
        .as_str()
        .or_else(|| object["Name"].as_str())
        .or_else(|| object["Description"]["Hostname"].as_str())
}

fn compare(path: &str, theirs: &Value, ours: &Value, tasks: bool, found: &mut Vec<Difference>) {
    let leaf = path.rsplit('.').next().unwrap_or("");
    if MEANT.iter().any(|(end, _)| path.ends_with(end)) {
        return;
    }
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, theirs) in a {
                // Tasks here run at once; those recorded were on their way.
                if tasks && ["Status", "NodeID", "NetworksAttachments", "DesiredState"].contains(&key.as_str()) {
                    continue;
                }
                match b.get(key) {
                    Some(ours) => compare(&format!("{path}.{key}"), theirs, ours, tasks, found),
                    None if MEANT.iter().any(|(end, _)| format!("{path}.{key}").ends_with(end)) => {}
                    None => found.push(format!("{path}.{key} is missing, it was recorded as {theirs:.80}")),
                }
            }
            for key in b.keys().filter(|key| !a.contains_key(*key)) {
                let at = format!("{path}.{key}");
                let running = tasks && ["NodeID"].contains(&key.as_str());
                if !running && !MEANT.iter().any(|(end, _)| at.ends_with(end)) {
                    found.push(format!("{at} was not recorded: {:.80}", b[key]));
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let cut = a.iter().any(|v| v.as_str().is_some_and(|s| s.starts_with("... ")));
            if !cut && a.len() != b.len() && !tasks {
                found.push(format!("{path} has {} elements, {} were recorded", b.len(), a.len()));
            }
            for (i, theirs) in a.iter().enumerate() {
                let ours = match name(theirs) {
                    Some(_) => b.iter().find(|o| name(o) == name(theirs)),
                    None => b.get(i),
                };
                if theirs.as_str().is_some_and(|s| s.starts_with("... ")) {
                    continue;
                }
                match ours {
                    Some(ours) => compare(&format!("{path}[]"), theirs, ours, tasks, found),
                    None if tasks => {}
                    None => found.push(format!("{path}[{i}] is missing")),
                }
            }
        }
        (Value::String(a), Value::String(b)) if a.contains("<redacted") => {
            if b.is_empty() {
                found.push(format!("{path} is empty"));
            }
        }
        (a, b) if VOLATILE.contains(&leaf) => {
            if std::mem::discriminant(a) != std::mem::discriminant(b) {
                found.push(format!("{path} is {b:.60}, {a:.60} was recorded"));
            }
        }
        (a, b) if a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()) => {}
        (a, b) => found.push(format!("{path} is {b:.120}, {a:.120} was recorded")),
    }
}

/// Sends a family's exchanges; `skip` says why an exchange is left out.
async fn replay(world: &Arc<World>, text: &str, skip: impl Fn(&str, &Value) -> bool) {
    let family: Value = serde_json::from_str(text).unwrap();
    let mut replay = Replay::of(world);
    for command in family["commands"].as_array().unwrap() {
        let line = command["cmd"].as_str().unwrap();
        for exchange in command["exchanges"].as_array().unwrap() {
            if !skip(line, exchange) {
                replay.exchange(line, exchange).await;
            }
        }
    }
    let Replay { compared, differences, .. } = replay;
    assert!(compared > 3, "{compared} exchanges were compared");
    assert!(differences.is_empty(), "{compared} compared:\n{}", differences.join("\n"));
}

async fn world_with_networks_and_files() -> Arc<World> {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    for name in ["ov1", "ov2"] {
        let annotations = Annotations { name: name.into(), ..Annotations::default() };
        let driver = Driver { name: "overlay".into(), ..Driver::default() };
        let attachable = name == "ov1";
        world.create_network(NetworkSpec { annotations, driver, attachable, ..NetworkSpec::default() }).await.unwrap();
    }
    let labels = Labels::from([("a".into(), "b".into())]);
    let annotations = |name: &str| Annotations { name: name.into(), labels: labels.clone() };
    let data = SecretData(b"hidden".as_slice().into());
    world.create_secret(SecretSpec { annotations: annotations("s1"), data, ..SecretSpec::default() }).await.unwrap();
    let data = b"conf".as_slice().into();
    world.create_config(ConfigSpec { annotations: annotations("c1"), data, ..ConfigSpec::default() }).await.unwrap();
    world
}

#[tokio::test]
async fn services_answer_as_recorded() {
    let world = world_with_networks_and_files().await;
    replay(&world, include_str!("recorded/service.json"), |_, _| false).await;
}

#[tokio::test]
async fn stacks_answer_as_recorded() {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    replay(&world, include_str!("recorded/stack.json"), |_, _| false).await;
}

#[tokio::test]
async fn networks_answer_as_recorded() {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    replay(&world, include_str!("recorded/network.json"), |_, _| false).await;
}

#[tokio::test]
async fn secrets_answer_as_recorded() {
    let world = World::ready(&["nodeA"]).await;
    replay(&world, include_str!("recorded/secret.json"), |_, _| false).await;
}

#[tokio::test]
async fn configs_answer_as_recorded() {
    let world = World::ready(&["nodeA"]).await;
    replay(&world, include_str!("recorded/config.json"), |_, _| false).await;
}

#[tokio::test]
async fn nodes_answer_as_recorded() {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    replay(&world, include_str!("recorded/node.json"), |_, _| false).await;
}

#[tokio::test]
async fn swarm_answers_as_recorded() {
    let world = World::new(&["nodeA"]);
    replay(&world, include_str!("recorded/swarm.json"), |_, _| false).await;
}

#[tokio::test]
async fn system_answers_as_recorded() {
    let world = World::new(&["nodeA"]);
    replay(&world, include_str!("recorded/system.json"), |_, _| false).await;
}
