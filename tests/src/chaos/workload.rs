//! Clients that create, change, remove and read through several managers, and keep what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::Random;
use super::linear::{Operation, Step, Versions};
use crate::api::{Answer, Api, NoAnswer};

/// How long a client waits: longer than a manager lets a change wait for the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most milliseconds between two requests of a client.
const PAUSE: u64 = 40;
/// The label that holds an object's value.
const LABEL: &str = "chaos.value";
/// Bytes of the largest config: enough of them, and the log is purged while managers are away.
const LARGE: usize = 60_000;

/// A kind of object that clients write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A config of so many bytes.
    Config(usize),
    /// A service on the network of the run; its replicas follow from its value.
    Service,
    /// A node that exists throughout.
    Node,
}

/// An object that clients share.
#[derive(Debug, Clone)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Its name; for a node its id.
    pub name: String,
}

impl Key {
    /// What the cluster itself does to its version.
    pub fn versions(&self) -> Versions {
        match self.kind {
            Kind::Config(_) => Versions::Exact,
            Kind::Service | Kind::Node => Versions::MayGrow,
        }
    }

    fn folder(&self) -> &'static str {
        match self.kind {
            Kind::Config(_) => "/configs",
            Kind::Service => "/services",
            Kind::Node => "/nodes",
        }
    }

    /// Its spec with a value.
    fn spec(&self, value: u64, network: &str) -> Value {
        let labels = json!({LABEL: value.to_string()});
        match self.kind {
            Kind::Config(bytes) => {
                json!({"Name": self.name, "Labels": labels, "Data": BASE64_STANDARD.encode(vec![b'x'; bytes])})
            }
            Kind::Service => json!({
                "Name": self.name,
                "Labels": labels,
                "TaskTemplate": {
                    "ContainerSpec": {"Image": "skep/whoami:latest", "StopGracePeriod": 1_000_000_000},
                    "RestartPolicy": {"Condition": "any", "Delay": 200_000_000},
                    "Networks": [{"Target": network}],
                },
                "Mode": {"Replicated": {"Replicas": replicas(value)}},
            }),
            Kind::Node => json!({"Labels": labels, "Role": "worker", "Availability": "active"}),
        }
    }

    /// What an inspection shows of it.
    fn seen(&self, object: &Value) -> anyhow::Result<Step> {
        let id = object["ID"].as_str().context("an id")?.to_owned();
        let version = object["Version"]["Index"].as_u64().context("a version")?;
        let label = object["Spec"]["Labels"][LABEL].as_str().unwrap_or("0");
        let value = label.parse().context("its value")?;
        if self.kind == Kind::Service {
            let shown = object["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64();
            ensure!(shown == Some(replicas(value)), "value {value} with {shown:?} replicas: half of an update");
        }
        Ok(Step::Seen { id, version, value })
    }
}

/// The replicas of a service with that value.
fn replicas(value: u64) -> u64 {
    value % 3
}

/// What clients write to: configs small and large, services, a node.
pub fn keys(node: &str) -> Vec<Key> {
    let key = |kind, name: &str| Key { kind, name: name.to_owned() };
    vec![
        key(Kind::Config(8), "chaos-c0"),
        key(Kind::Config(8), "chaos-c1"),
        key(Kind::Config(LARGE), "chaos-c2"),
        key(Kind::Service, "chaos-s0"),
        key(Kind::Service, "chaos-s1"),
        key(Kind::Node, node),
    ]
}

/// What the clients were told.
#[derive(Debug, Default)]
pub struct Record {
    /// Of each key, in the order of [`keys`].
    pub histories: Vec<Vec<Operation>>,
    /// Answers that no state of the cluster explains.
    pub nonsense: Vec<String>,
    /// Requests that were answered, and those that were not or with a refusal for want of a leader.
    pub answered: usize,
    /// See `answered`.
    pub unanswered: usize,
}

impl Record {
    fn add(&mut self, other: Self) {
        self.histories.resize(self.histories.len().max(other.histories.len()), Vec::new());
        for (mine, theirs) in self.histories.iter_mut().zip(other.histories) {
            mine.extend(theirs);
        }
        self.nonsense.extend(other.nonsense);
        self.answered += other.answered;
        self.unanswered += other.unanswered;
    }
}

/// Clients at work.
pub struct Workload {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Record>>,
}

impl Workload {
    /// Starts clients that ask the managers behind these sockets; what they choose follows from the seed and from answers.
    pub fn start(seed: u64, clients: u64, sockets: &[String], keys: &[Key], network: &str) -> Self {
        let stop = Arc::new(AtomicBool::default());
        let began = Instant::now();
        let client = |number: u64| {
            let mut client = Client {
                number,
                random: Random::new(seed.wrapping_mul(1000).wrapping_add(number)),
                managers: sockets.iter().map(|s| Api::new(s, PATIENCE)).collect(),
                keys: keys.to_vec(),
                known: vec![None; keys.len()],
                network: network.to_owned(),
                began,
                values: 0,
                record: Record { histories: vec![Vec::new(); keys.len()], ..Record::default() },
            };
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    client.once();
                    std::thread::sleep(Duration::from_millis(client.random.below(PAUSE)));
                }
                client.record
            })
        };
        let clients = (1..=clients).map(client).collect();
        Self { stop, clients }
    }

    /// Ends the clients.
    pub fn finish(self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = Record::default();
        for client in self.clients {
            whole.add(client.join().expect("a client does not panic"));
        }
        whole
    }
}

struct Client {
    number: u64,
    random: Random,
    managers: Vec<Api>,
    keys: Vec<Key>,
    /// Id and version that were last seen of each key.
    known: Vec<Option<(String, u64)>>,
    network: String,
    began: Instant,
    values: u64,
    record: Record,
}

/// What became of a request.
enum End {
    Answered(Answer),
    /// It may have been applied.
    Unknown,
    /// It was not.
    Refused,
}

impl Client {
    fn once(&mut self) {
        let manager = usize::try_from(self.random.below(self.managers.len() as u64)).expect("an index fits");
        let index = usize::try_from(self.random.below(self.keys.len() as u64)).expect("an index fits");
        let choice = self.random.below(20);
        let is_node = self.keys[index].kind == Kind::Node;
        match (choice, self.known[index].clone()) {
            (0..8, Some((id, version))) => self.update(manager, index, &id, version),
            (8..10, Some((id, _))) if !is_node => self.delete(manager, index, &id),
            (10, _) => self.list(manager, index),
            (0..14, _) if !is_node => self.create(manager, index),
            _ => self.read(manager, index),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn ask(&mut self, manager: usize, method: &str, path: &str, body: Option<&Value>) -> (u64, u64, End) {
        let start = self.now();
        let asked = self.managers[manager].ask(method, path, body);
        let end = self.now();
        let became = match asked {
            Err(NoAnswer::NotSent(_)) => End::Refused,
            Err(NoAnswer::Unknown(_)) => End::Unknown,
            Ok(answer) if answer.status < 500 => End::Answered(answer),
            Ok(answer) if answer.message().contains("out of sequence") => End::Answered(answer),
            // It says itself that it is in no log; 503 comes before anything is proposed.
            Ok(answer) if answer.status == 503 || answer.message().contains("nothing was changed") => End::Refused,
            Ok(_) => End::Unknown,
        };
        match became {
            End::Answered(_) => self.record.answered += 1,
            _ => self.record.unanswered += 1,
        }
        (start, end, became)
    }

    fn keep(&mut self, index: usize, manager: usize, step: Step, start: u64, end: Option<u64>) {
        let by = format!("client {} by m{}", self.number, manager + 1);
        self.record.histories[index].push(Operation { step, by, start, end });
    }

    /// An answer that is none of those that a request can have.
    fn wonder(&mut self, what: &str, answer: &Answer) {
        let key = format!("client {}: {what}", self.number);
        self.record.nonsense.push(format!("{key}: {} {}", answer.status, answer.message()));
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        self.number * 1_000_000 + self.values
    }

    fn create(&mut self, manager: usize, index: usize) {
        let (key, value) = (self.keys[index].clone(), self.value());
        let spec = key.spec(value, &self.network);
        let (start, end, became) = self.ask(manager, "POST", &format!("{}/create", key.folder()), Some(&spec));
        match became {
            End::Refused => {}
            End::Unknown => self.keep(index, manager, Step::Create { value, id: None }, start, None),
            End::Answered(answer) if answer.status == 409 => {
                self.keep(index, manager, Step::CreateRefused, start, Some(end));
            }
            End::Answered(answer) => {
                let id = answer.json().ok().and_then(|body| body["ID"].as_str().map(str::to_owned));
                match id.filter(|_| answer.status < 300) {
                    Some(id) => self.keep(index, manager, Step::Create { value, id: Some(id) }, start, Some(end)),
                    None => self.wonder(&format!("create {}", key.name), &answer),
                }
            }
        }
    }

    fn update(&mut self, manager: usize, index: usize, id: &str, version: u64) {
        let (key, value) = (self.keys[index].clone(), self.value());
        let path = format!("{}/{id}/update?version={version}", key.folder());
        let spec = key.spec(value, &self.network);
        let (start, end, became) = self.ask(manager, "POST", &path, Some(&spec));
        let id = id.to_owned();
        let update = Step::Update { id: id.clone(), version, value };
        match became {
            End::Refused => {}
            End::Unknown => self.keep(index, manager, update, start, None),
            End::Answered(answer) if answer.status < 300 => self.keep(index, manager, update, start, Some(end)),
            End::Answered(answer) if answer.status == 404 => {
                self.known[index] = None;
                self.keep(index, manager, Step::NoSuchId { id }, start, Some(end));
            }
            End::Answered(answer) if answer.message().contains("out of sequence") => {
                self.keep(index, manager, Step::UpdateStale { id, version }, start, Some(end));
            }
            End::Answered(answer) => self.wonder(&format!("update {}", key.name), &answer),
        }
    }

    fn delete(&mut self, manager: usize, index: usize, id: &str) {
        let key = self.keys[index].clone();
        let (start, end, became) = self.ask(manager, "DELETE", &format!("{}/{id}", key.folder()), None);
        let id = id.to_owned();
        match became {
            End::Refused => {}
            End::Unknown => self.keep(index, manager, Step::Delete { id }, start, None),
            End::Answered(answer) if answer.status < 300 => {
                self.known[index] = None;
                self.keep(index, manager, Step::Delete { id }, start, Some(end));
            }
            End::Answered(answer) if answer.status == 404 => {
                self.known[index] = None;
                self.keep(index, manager, Step::NoSuchId { id }, start, Some(end));
            }
            End::Answered(answer) => self.wonder(&format!("delete {}", key.name), &answer),
        }
    }

    fn read(&mut self, manager: usize, index: usize) {
        let key = self.keys[index].clone();
        let (start, end, became) = self.ask(manager, "GET", &format!("{}/{}", key.folder(), key.name), None);
        match became {
            End::Answered(answer) if answer.status == 404 => self.saw(manager, index, None, start, end),
            End::Answered(answer) if answer.status == 200 => match answer.json() {
                Ok(object) => self.saw(manager, index, Some(&object), start, end),
                Err(_) => self.wonder(&format!("read {}", key.name), &answer),
            },
            End::Answered(answer) => self.wonder(&format!("read {}", key.name), &answer),
            End::Unknown | End::Refused => {}
        }
    }

    /// One listing is a read of all keys of that kind.
    fn list(&mut self, manager: usize, index: usize) {
        let folder = self.keys[index].folder();
        let (start, end, became) = self.ask(manager, "GET", folder, None);
        let End::Answered(answer) = became else { return };
        let Some(objects) = answer.json().ok().as_ref().and_then(Value::as_array).cloned() else {
            return self.wonder(&format!("list {folder}"), &answer);
        };
        for index in 0..self.keys.len() {
            let key = self.keys[index].clone();
            if key.folder() != folder {
                continue;
            }
            let is_it = |o: &&Value| o["Spec"]["Name"] == key.name.as_str() || o["ID"] == key.name.as_str();
            let found: Vec<&Value> = objects.iter().filter(is_it).collect();
            if found.len() > 1 {
                self.record.nonsense.push(format!("{} objects are called {}: {found:?}", found.len(), key.name));
            }
            self.saw(manager, index, found.first().copied(), start, end);
        }
    }

    fn saw(&mut self, manager: usize, index: usize, object: Option<&Value>, start: u64, end: u64) {
        let step = match object.map(|o| self.keys[index].seen(o)) {
            None => Step::SeenAbsent,
            Some(Ok(step)) => step,
            Some(Err(error)) => return self.record.nonsense.push(format!("{}: {error:#}", self.keys[index].name)),
        };
        self.known[index] = match &step {
            Step::Seen { id, version, .. } => Some((id.clone(), *version)),
            _ => None,
        };
        self.keep(index, manager, step, start, Some(end));
    }
}
