//! Which container had which address, and when its node saw it end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::now;
use crate::api::Api;
use crate::{Lab, docker_program};

/// Pause between two looks at a node's containers. No task lives shorter.
const LOOK: Duration = Duration::from_millis(100);

/// What is known of one container.
#[derive(Debug, Clone, Copy, Default)]
pub struct Life {
    /// Its address on the network.
    pub address: Option<Ipv4Addr>,
    /// When its node saw it end, since 1970.
    pub ended: Option<Duration>,
}

type Lives = Arc<Mutex<BTreeMap<String, Life>>>;

/// Looks at all nodes until it is dropped.
pub struct Truth {
    lives: Lives,
    stop: Arc<AtomicBool>,
    events: Vec<Child>,
    threads: Vec<JoinHandle<()>>,
}

impl Truth {
    /// Begins to look at the containers of a service.
    ///
    /// # Panics
    /// When a client cannot be started.
    pub fn begin(lab: &Lab, service: &str, network: &str) -> Self {
        let mut truth = Self { lives: Lives::default(), stop: Arc::default(), events: Vec::new(), threads: Vec::new() };
        let label = format!("label=com.docker.swarm.service.name={service}");
        for node in lab.nodes() {
            let socket = lab.socket(&node).to_owned();
            let mut events = Command::new(docker_program())
                .args(["-H", &format!("unix://{socket}"), "events", "--filter", "type=container", "--filter", &label])
                .args(["--filter", "event=die", "--format", "{{.Actor.ID}} {{.TimeNano}}"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("the docker CLI can be started");
            let lines = BufReader::new(events.stdout.take().expect("it is piped")).lines();
            truth.events.push(events);
            let lives = truth.lives.clone();
            truth.threads.push(std::thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    let Some((id, nanos)) = line.split_once(' ') else { continue };
                    let Ok(nanos) = nanos.parse() else { continue };
                    lock(&lives).entry(id.to_owned()).or_default().ended = Some(Duration::from_nanos(nanos));
                }
            }));
            let (lives, stop) = (truth.lives.clone(), truth.stop.clone());
            // {"label":["…"]}, percent-encoded.
            let path = format!("/containers/json?filters=%7B%22label%22:%5B%22{}%22%5D%7D", &label["label=".len()..]);
            let network = network.to_owned();
            truth.threads.push(std::thread::spawn(move || {
                let mut api = Api::new(&socket, Duration::from_secs(30));
                while !stop.load(Ordering::Relaxed) {
                    let found = api.get(&path).expect("a daemon that nobody kills answers");
                    for container in found.as_array().into_iter().flatten() {
                        if let (Some(id), Some(address)) = (container["Id"].as_str(), address(container, &network)) {
                            lock(&lives).entry(id.to_owned()).or_default().address = Some(address);
                        }
                    }
                    std::thread::sleep(LOOK);
                }
            }));
        }
        truth
    }

    /// Containers seen so far.
    pub fn count(&self) -> usize {
        lock(&self.lives).len()
    }

    /// Containers that run, as far as is known.
    pub fn living(&self) -> BTreeSet<String> {
        lock(&self.lives).iter().filter(|(_, life)| life.ended.is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// Ends it, and gives all lives. Events that are under way have a moment to arrive.
    pub fn end(mut self) -> Vec<Life> {
        let asked = now();
        while !self.living().is_empty() && now() < asked + Duration::from_secs(10) {
            std::thread::sleep(LOOK);
        }
        self.halt();
        std::mem::take(&mut *lock(&self.lives)).into_values().collect()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for mut events in self.events.drain(..) {
            let _ = events.kill();
            let _ = events.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        self.halt();
    }
}

fn address(container: &Value, network: &str) -> Option<Ipv4Addr> {
    container["NetworkSettings"]["Networks"][network]["IPAddress"].as_str()?.parse().ok()
}

fn lock(lives: &Mutex<BTreeMap<String, Life>>) -> std::sync::MutexGuard<'_, BTreeMap<String, Life>> {
    lives.lock().unwrap_or_else(PoisonError::into_inner)
}
