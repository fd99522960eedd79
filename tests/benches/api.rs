//! Rates and times of the Engine API: services and configs created, services and tasks listed.
//!
//! `SKEP=… SKEP_SHIM=… cargo bench -p skep-tests --bench api` starts labs of one and of three managers, as root. With `-- SOCKET…`
//! it asks the managers behind these sockets instead, which may be another engine's; it removes what it made.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up fails")]

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use skep_tests::api::Api;
use skep_tests::{Lab, eventually};

const PATIENCE: Duration = Duration::from_secs(60);
const SERVICES: usize = 1000;
const TASKS: usize = 5000;
/// Time for which configs are created with one number of clients.
const WRITING: Duration = Duration::from_secs(4);
const CONFIG: usize = 256;

fn main() {
    let sockets: Vec<String> = std::env::args().skip(1).filter(|a| a.starts_with('/')).collect();
    if !sockets.is_empty() {
        return all(&sockets);
    }
    for managers in [1, 3] {
        let lab = Lab::up(managers, 0, &[]);
        println!("managers: {managers}");
        all(&lab.nodes().iter().map(|n| lab.socket(n).to_owned()).collect::<Vec<_>>());
    }
}

fn all(sockets: &[String]) {
    configs(sockets, 1);
    configs(sockets, 64);
    services(sockets);
    lists(&sockets[0]);
    for id in ids(&sockets[0], "/services") {
        Api::new(&sockets[0], PATIENCE).call("DELETE", &format!("/services/{id}"), None).unwrap();
    }
}

fn ids(socket: &str, path: &str) -> Vec<String> {
    let list = Api::new(socket, PATIENCE).get(path).unwrap();
    list.as_array().unwrap().iter().map(|o| o["ID"].as_str().unwrap().to_owned()).collect()
}

/// Runs clients in parallel, in turn on the sockets; the times of all requests, in order, and of the whole.
fn parallel(sockets: &[String], clients: usize, client: impl Fn(usize, &mut Api) -> Vec<Duration> + Sync) -> Times {
    let began = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let run = |number: usize| {
            let (socket, client) = (&sockets[number % sockets.len()], &client);
            scope.spawn(move || client(number, &mut Api::new(socket, PATIENCE)))
        };
        let running: Vec<_> = (0..clients).map(run).collect();
        running.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    times.sort();
    Times { times, whole: began.elapsed() }
}

struct Times {
    times: Vec<Duration>,
    whole: Duration,
}

impl Times {
    fn print(&self, what: &str) {
        let at =
            |part: usize| self.times[(self.times.len() * part / 100).min(self.times.len() - 1)].as_secs_f64() * 1e3;
        let rate = self.times.len() as f64 / self.whole.as_secs_f64();
        println!("{what:<44} {rate:>9.0}/s   p50 {:>7.2} ms   p99 {:>7.2} ms", at(50), at(99));
    }
}

fn timed(call: impl FnOnce()) -> Duration {
    let began = Instant::now();
    call();
    began.elapsed()
}

fn configs(sockets: &[String], clients: usize) {
    let data = BASE64_STANDARD.encode(vec![b'x'; CONFIG]);
    // One client asks the first manager, as one client of etcd asks one member.
    let end = Instant::now() + WRITING;
    let times = parallel(sockets, clients, |number, api| {
        let mut times = Vec::new();
        while Instant::now() < end {
            let name = format!("bench-{clients}-{number}-{}", times.len());
            let spec = json!({"Name": name, "Data": data});
            times.push(timed(|| drop(api.call("POST", "/configs/create", Some(&spec)).unwrap())));
        }
        times
    });
    times.print(&format!("POST /configs/create, {CONFIG} B, {clients} clients"));
    let all = ids(&sockets[0], "/configs");
    parallel(sockets, 16, |number, api| {
        for id in all.iter().skip(number).step_by(16) {
            api.call("DELETE", &format!("/configs/{id}"), None).unwrap();
        }
        Vec::new()
    });
}

fn spec(name: &str, replicas: usize, constraints: &[&str]) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {"Image": "skep/whoami:latest", "Args": ["sleep", "1000000"]},
            "Placement": {"Constraints": constraints},
        },
        "Mode": {"Replicated": {"Replicas": replicas}},
    })
}

fn services(sockets: &[String]) {
    let create = |api: &mut Api, number: usize| {
        let spec = spec(&format!("bench-{number}"), 0, &[]);
        timed(|| drop(api.call("POST", "/services/create", Some(&spec)).unwrap()))
    };
    let half = SERVICES / 2;
    parallel(sockets, 1, |_, api| (0..half).map(|n| create(api, n)).collect()).print("POST /services/create, 1 client");
    parallel(sockets, 16, |number, api| (half + number..SERVICES).step_by(16).map(|n| create(api, n)).collect())
        .print("POST /services/create, 16 clients");
}

fn lists(socket: &str) {
    let get = |path: &'static str, count: usize| {
        let sockets = [socket.to_owned()];
        parallel(&sockets, 1, |_, api| {
            (0..count).map(|_| timed(|| assert!(api.ask("GET", path, None).unwrap().status == 200))).collect()
        })
    };
    get("/services", 200).print(&format!("GET /services, {SERVICES} services"));
    let mut api = Api::new(socket, PATIENCE);
    api.call("POST", "/services/create", Some(&spec("bench-pending", TASKS, &["node.labels.nowhere==1"]))).unwrap();
    eventually("every task waits for a node", || {
        let tasks = api.get("/tasks")?;
        let waiting = tasks.as_array().into_iter().flatten().filter(|t| t["Status"]["State"] == "pending").count();
        anyhow::ensure!(waiting == TASKS, "{waiting}");
        Ok(())
    });
    get("/tasks", 40).print(&format!("GET /tasks, {TASKS} tasks"));
    get("/nodes", 200).print("GET /nodes");
}
