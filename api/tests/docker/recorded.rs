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
const MEANT: [(&str, &str); 8] = [
    (".Dispatcher.HeartbeatPeriod", "ours is 2 s, so that a lost node is seen within 6"),
    (".CAConfig.ForceRotate", "rotation of the root is refused, not counted"),
    (".RootRotationInProgress", "as above"),
    (".Privileges", "all unset: it is not kept"),
    (".RollbackConfig.Monitor", "the default of 5 s is shown when none was given"),
    (".UpdateConfig.Monitor", "as above"),
    (".UpdateStatus", "how far an update was when it was looked at"),
    (".JobStatus.JobIteration.Index", "jobs are not repeated yet"),
];

/// Leaves whose value need only be of the same type.
const VOLATILE: [&str; 17] = [
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
    "vxlanid_list",
    "Addr",
    "RunningTasks",
    "StartedAt",
    "CompletedAt",
    "LastExecution",
    "DesiredTasks",
];

/// Answers about the daemon itself: the keys must be there, the values are its own.
const OWN_VALUES: [&str; 2] = ["/info", "/version"];
/// Keys that name parts of dockerd.
const PARTS_OF_DOCKERD: [&str; 4] =
    ["io.containerd.runc.v2", "io.containerd.runtime.v1.linux", "127.0.0.1:5055", "GoVersion"];

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
        if OWN_VALUES.iter().any(|own| path.ends_with(own)) {
            compare_keys("", theirs, &ours, &mut found);
        } else if let (true, Some(theirs)) = (path.contains("/tasks"), self.translated(theirs).as_array()) {
            compare_tasks(theirs, &ours, &mut found);
        } else {
            compare("", &self.translated(theirs), &ours, tasks, &mut found);
        }
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

/// Compares the shape of each service's tasks: those here run at once, those recorded were on their way.
fn compare_tasks(theirs: &[Value], ours: &Value, found: &mut Vec<Difference>) {
    let on_the_way = ["Spec", "NodeID", "NetworksAttachments", "Status"];
    let shape = |task: &Value| -> Value {
        let mut shape = task.clone();
        if let Some(map) = shape.as_object_mut() {
            map.retain(|key, _| !on_the_way.contains(&key.as_str()));
        }
        shape
    };
    for task in theirs {
        let same = |other: &&Value| other["ServiceID"] == task["ServiceID"] && other["Slot"] == task["Slot"];
        if let Some(other) = ours.as_array().and_then(|list| list.iter().find(same)) {
            compare_keys("[]", &shape(task), &shape(other), found);
            for key in ["Timestamp", "State", "Message", "PortStatus"] {
                if other["Status"][key].is_null() {
                    found.push(format!("[].Status.{key} is missing"));
                }
            }
        }
    }
}

/// Compares which keys there are, not what they hold.
fn compare_keys(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<Difference>) {
    let (Value::Object(a), Value::Object(b)) = (theirs, ours) else { return };
    for (key, theirs) in a {
        let at = format!("{path}.{key}");
        match b.get(key) {
            Some(ours) => compare_keys(&at, theirs, ours, found),
            None if PARTS_OF_DOCKERD.contains(&key.as_str()) || MEANT.iter().any(|(end, _)| at.ends_with(end)) => {}
            None => found.push(format!("{at} is missing, it was recorded as {theirs:.80}")),
        }
    }
    for key in b.keys().filter(|key| !a.contains_key(*key)) {
        found.push(format!("{path}.{key} was not recorded: {:.80}", b[key]));
    }
}

fn compare(path: &str, theirs: &Value, ours: &Value, tasks: bool, found: &mut Vec<Difference>) {
    let leaf = path.rsplit('.').next().unwrap_or("");
    if MEANT.iter().any(|(end, _)| path.ends_with(end)) {
        return;
    }
    // dockerd had gone back to an older spec by itself: another story than that of the world here.
    if theirs["UpdateStatus"]["State"].as_str().is_some_and(|s| s.starts_with("rollback")) {
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
    for (host, recorded) in [("nodeA", "v5fqohmhmohm03hkc1fyngjqr"), ("nodeB", "vgq197rtt3nb0808fqbf6wufd")] {
        if let Ok(status) = world.node(host).await {
            replay.ids.insert(recorded.into(), status.node.id.to_string());
        }
    }
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

/// Two nodes, the second in a zone.
async fn world_with_a_zone() -> Arc<World> {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    let status = world.node("nodeB").await.unwrap();
    let mut spec = status.node.spec.clone();
    spec.annotations.labels.insert("zone".into(), "a".into());
    world.update_node(status.node.id, status.node.meta.version, spec).await.unwrap();
    world
}

async fn world_with_networks_and_files() -> Arc<World> {
    let world = world_with_a_zone().await;
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
    replay(&world, include_str!("recorded/service.json"), |_, exchange| {
        // The text names sockets of the machine that it was recorded on.
        exchange["path"].as_str().unwrap().contains("nosuchimage")
    })
    .await;
}

#[tokio::test]
async fn stacks_answer_as_recorded() {
    let world = world_with_a_zone().await;
    replay(&world, include_str!("recorded/stack.json"), |_, _| false).await;
}

#[tokio::test]
async fn networks_answer_as_recorded() {
    let world = World::ready(&["nodeA", "nodeB"]).await;
    replay(&world, include_str!("recorded/network.json"), |command, exchange| {
        let path = exchange["path"].as_str().unwrap();
        // Connecting is not built; a wait ends only with its container.
        let connects = path.contains("connect") || path.contains("/wait");
        // dockerd finds nothing when a name is combined with a scope; the lists without a name show the networks.
        connects || command == "docker network inspect br1" || path.contains("scope%22%3A")
    })
    .await;
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
    replay(&world, include_str!("recorded/node.json"), |command, exchange| {
        // The node was stopped for these; here no node goes down.
        command.contains("node rm") || exchange["resp_body"].to_string().contains("heartbeat failure")
    })
    .await;
}

#[tokio::test]
async fn swarm_answers_as_recorded() {
    let world = World::new(&["nodeA"]);
    replay(&world, include_str!("recorded/swarm.json"), |command, exchange| {
        // From the join on they are the second node's, but for the manager that tries to leave.
        let path = exchange["path"].as_str().unwrap();
        let answer = exchange["resp_body"].to_string();
        let second = command.contains("swarm join --token")
            || answer.contains("Worker nodes can't be used")
            || (path.ends_with("/leave") && exchange["status"] == 200);
        second
            || command.contains("ca --rotate")
            || answer.contains("not part of a swarm")
            || answer.contains("to connect this")
    })
    .await;
}

#[tokio::test]
async fn system_answers_as_recorded() {
    let world = World::new(&["nodeA"]);
    replay(&world, include_str!("recorded/system.json"), |command, exchange| {
        // These depend on what was on the machine, or are not built (events).
        ["system df", "events", "info --format"].iter().any(|left_out| command.contains(left_out))
            || ["/containers/prune", "/networks/prune", "/images/prune", "/volumes/prune"]
                .iter()
                .any(|prune| exchange["path"].as_str().unwrap().contains(prune))
    })
    .await;
}

#[tokio::test]
async fn a_node_in_no_cluster_says_so_in_dockers_words() {
    let replay = Replay::of(&World::new(&["nodeA"]));
    let join = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to \
                swarm and try again.";
    let cases = [
        ("GET", "/v1.41/nodes", 503, join),
        ("GET", "/v1.41/services?status=true", 503, join),
        ("POST", "/v1.41/swarm/leave", 503, "This node is not part of a swarm"),
        ("GET", "/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.50"),
        (
            "GET",
            "/v1.12/info",
            400,
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer \
             version",
        ),
        ("GET", "/v1.41/nowhere", 404, "page not found"),
        ("DELETE", "/v1.41/info", 404, "page not found"),
        (
            "GET",
            "/v1.41/distribution/skep/whoami:latest/json",
            404,
            "skep/whoami:latest is built in: it is in no registry and has no digest",
        ),
        ("POST", "/v1.41/commit", 501, "committing a container to an image is not supported by skep yet"),
        ("GET", "/v1.41/containers/x/stats", 501, "the statistics of a container is not supported by skep yet"),
        ("GET", "/v1.41/services?filters={", 400, "invalid filter"),
    ];
    for (method, path, status, message) in cases {
        let (got, kind, body) = replay.send(method, &path.replace('{', "%7B"), None).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((got, kind.as_str()), (status, "application/json"), "{path}");
        let text = body["message"].as_str().unwrap();
        assert!(text.ends_with(message), "{path}: {text}");
    }
}

#[tokio::test]
async fn what_a_spec_asks_for_and_skep_cannot_do_is_refused_by_name() {
    let world = World::ready(&["nodeA"]).await;
    let replay = Replay::of(&world);
    let spec = |extra: Value| {
        let mut container = serde_json::json!({"Image": "bb:1"});
        container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::json!({"Name": "web", "TaskTemplate": {"ContainerSpec": container}})
    };
    let cases = [
        (
            serde_json::json!({"Privileges": {"CredentialSpec": {"File": "x"}}}),
            501,
            "Privileges.CredentialSpec is not supported by skep yet",
        ),
        (serde_json::json!({"Image": ""}), 400, "ContainerSpec: image reference must be provided"),
        (
            serde_json::json!({"Mounts": [{"Type": "bind", "Source": "a", "Target": "/b"}]}),
            400,
            "invalid bind mount source",
        ),
        (serde_json::json!({"Mounts": 7}), 400, "invalid JSON: invalid type"),
    ];
    for (extra, status, message) in cases {
        let (got, _, body) = replay.send("POST", "/services/create", Some(&spec(extra))).await;
        let text = String::from_utf8(body).unwrap();
        assert!(got == status && text.contains(message), "{got} {text}");
    }
}
