//! The gates of the replicated state, on one thread: memory of a task, changes applied, placements, and what a snapshot
//! costs those who write meanwhile.
//!
//! `cargo bench -p skep-manager --bench store [-- TASKS [NODES]]` prints the figures and returns 1 when a gate is missed.

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use skep_manager::raft::machine::Machine;
use skep_manager::scheduler;
use skep_manager::store::{Change, Entry, Group, MAX_ENTRY_CHANGES, Outcome, Replica, ServiceRef, Store, TaskRow};
use skep_proto::model::service::Endpoint;
use skep_proto::model::task::Reservations;
use skep_proto::model::{
    Annotations, Availability, ContainerSpec, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState,
    Service, ServiceId, ServiceMode, ServiceSpec, TaskId, TaskSpec, TaskState, Timestamp,
};

/// The allocator that the daemon uses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Argument with which this program weighs a state.
const MEMORY: &str = "--memory";
const TASKS_OF_A_SERVICE: usize = 1000;
const MOST_BYTES_A_TASK: f64 = 200.0;
const LEAST_CHANGES: f64 = 100_000.0;
const LEAST_PLACEMENTS: f64 = 100_000.0;
const MOST_STALL: Duration = Duration::from_millis(20);

struct Bench {
    replica: Replica,
    store: std::sync::Arc<Store>,
    index: u64,
    rng: StdRng,
    missed: bool,
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == MEMORY) {
        return weigh();
    }
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let tasks = numbers.next().unwrap_or(100_000).next_multiple_of(TASKS_OF_A_SERVICE);
    let nodes = numbers.next().unwrap_or(1000);
    let (replica, store) = Replica::new();
    let mut bench = Bench { replica, store, index: 0, rng: StdRng::seed_from_u64(1), missed: false };
    println!(
        "{tasks} tasks, {} services, {nodes} nodes, entries of {MAX_ENTRY_CHANGES} changes",
        tasks / TASKS_OF_A_SERVICE
    );
    bench.nodes(nodes);
    let services = bench.services(tasks / TASKS_OF_A_SERVICE);
    bench.tasks(&services);
    bench.statuses(tasks);
    bench.lose_a_node();
    bench.snapshot(tasks);
    if bench.missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Bench {
    fn gate(&mut self, holds: bool) -> &'static str {
        self.missed |= !holds;
        if holds { "" } else { "  MISSED" }
    }

    /// Applies and publishes as Raft does, an entry at a time. Returns how long it took, decoding included.
    fn apply(&mut self, groups: Vec<Group>) -> Duration {
        self.index += 1;
        let count = groups.len();
        let bytes = Entry { at_ms: self.index, proposer: NodeId(0), groups }.encode();
        let start = Instant::now();
        let reply = self.replica.apply(self.index, &bytes).expect("entries of this build are read");
        self.replica.publish();
        let took = start.elapsed();
        let outcomes: Vec<Outcome> = postcard::from_bytes(&reply).expect("a reply is outcomes");
        assert_eq!(outcomes.iter().filter(|o| matches!(o, Outcome::Applied { .. })).count(), count);
        took
    }

    fn rate(&mut self, what: &str, mut next: impl FnMut(&mut Self) -> Vec<Change>) {
        let (mut all, mut count) = (Vec::new(), 0);
        loop {
            // Made an entry at a time, so that the list of them is no part of the memory measured.
            let changes = next(self);
            if changes.is_empty() {
                break;
            }
            count += changes.len();
            all.push(self.apply(changes.into_iter().map(Group::of).collect()));
        }
        let took: Duration = all.iter().sum();
        all.sort_unstable();
        let rate = count as f64 / took.as_secs_f64();
        let gate = self.gate(rate >= LEAST_CHANGES);
        println!(
            "{what:<28} {rate:>8.0} changes/s   entry p50 {:>5.2} ms  p99 {:>5.2} ms{gate}",
            millis(all[all.len() / 2]),
            millis(all[all.len() * 99 / 100]),
        );
    }

    fn nodes(&mut self, count: usize) {
        for n in 1..=count {
            let labels = [("zone".to_owned(), format!("z{}", n % 6))].into();
            let node = Node {
                id: NodeId(self.rng.random()),
                meta: Meta::default(),
                spec: NodeSpec {
                    annotations: Annotations { name: String::new(), labels },
                    role: NodeRole::Worker,
                    availability: Availability::Active,
                },
                index: 0,
                description: NodeDescription {
                    hostname: format!("n{n}"),
                    nano_cpus: 64_000_000_000,
                    memory: 1 << 40,
                    ..NodeDescription::default()
                },
                state: NodeState::Ready,
                message: String::new(),
                address: None,
                manager: None,
            };
            self.apply(vec![Group::of(Change::create(&node))]);
        }
    }

    fn services(&mut self, count: usize) -> Vec<ServiceRef> {
        for n in 0..count {
            let container = ContainerSpec { image: "skep/whoami:latest".into(), ..ContainerSpec::default() };
            let mut task = TaskSpec { containers: vec![container], ..TaskSpec::default() };
            task.resources.reservations =
                Some(Reservations { nano_cpus: 1_000_000, memory: 1 << 20, ..Reservations::default() });
            if n % 2 == 0 {
                task.placement.preferences = vec!["node.labels.zone".into()];
            } else {
                task.placement.constraints = vec![format!("node.labels.zone!=z{}", n % 6)];
            }
            let service = Service {
                id: ServiceId(self.rng.random()),
                meta: Meta::default(),
                spec: ServiceSpec {
                    annotations: Annotations { name: format!("s{n}"), ..Annotations::default() },
                    task,
                    mode: ServiceMode::Replicated { replicas: TASKS_OF_A_SERVICE as u64 },
                    update: None,
                    rollback: None,
                    endpoint: None,
                },
                spec_version: 0,
                previous: None,
                endpoint: Endpoint::default(),
                update_status: None,
                pending_delete: false,
                runs: None,
            };
            self.apply(vec![Group::of(Change::create(&service))]);
        }
        self.store.view().services().iter().map(|(reference, _)| reference).collect()
    }

    fn tasks(&mut self, services: &[ServiceRef]) {
        let view = self.store.view();
        let versions: Vec<(ServiceRef, u64)> = services
            .iter()
            .map(|service| (*service, view.services().lookup(*service).expect("it was made").spec_version))
            .collect();
        drop(view);
        let count = services.len() * TASKS_OF_A_SERVICE;
        let mut made = 0;
        self.rate("create", |bench| {
            let entry = made..(made + MAX_ENTRY_CHANGES).min(count);
            made = entry.end;
            let change = |n: usize| {
                let (service, spec_version) = versions[n / TASKS_OF_A_SERVICE];
                Change::CreateTask {
                    id: TaskId(bench.rng.random()),
                    service,
                    spec_version,
                    slot: 1 + (n % TASKS_OF_A_SERVICE) as u32,
                    node: None,
                    desired: TaskState::Running,
                    start_ms: 0,
                    restarts: Vec::new(),
                    after: None,
                }
            };
            entry.map(change).collect()
        });
        self.rate("allocate", |bench| {
            let view = bench.store.view();
            let change = |(handle, row): (u32, &TaskRow)| {
                let (task, if_version) = (row.reference(handle), row.version);
                Change::Allocate { task, if_version, addresses: Vec::new() }
            };
            view.unallocated().take(MAX_ENTRY_CHANGES).map(change).collect()
        });
        self.place(count);
    }

    fn place(&mut self, tasks: usize) {
        let mut cache = scheduler::Cache::default();
        let (mut planning, mut applying, mut assigned) = (Duration::ZERO, Duration::ZERO, 0);
        while assigned < tasks {
            let view = self.store.view();
            let start = Instant::now();
            let plan = scheduler::plan(&view, &mut cache, Timestamp(0));
            planning += start.elapsed();
            drop(view);
            assert!(!plan.groups.is_empty(), "every task finds a node");
            for groups in plan.groups.chunks(MAX_ENTRY_CHANGES) {
                applying += self.apply(groups.to_vec());
                assigned += groups.len();
            }
        }
        let rate = tasks as f64 / planning.as_secs_f64();
        let gate = self.gate(rate >= LEAST_PLACEMENTS);
        println!("{:<28} {rate:>8.0} placements/s{gate}", "schedule, plan only");
        let rate = tasks as f64 / applying.as_secs_f64();
        let gate = self.gate(rate >= LEAST_CHANGES);
        println!("{:<28} {rate:>8.0} changes/s{gate}", "assign");
    }

    fn statuses(&mut self, tasks: usize) {
        for state in [TaskState::Accepted, TaskState::Running] {
            let mut changes = self.status_of_all(state);
            assert_eq!(changes.len(), tasks);
            self.rate(&format!("status {}, chance order", state.as_str()), |_| {
                changes.split_off(changes.len().saturating_sub(MAX_ENTRY_CHANGES))
            });
        }
    }

    fn status_of_all(&mut self, state: TaskState) -> Vec<Change> {
        let view = self.store.view();
        let row = |(handle, row): (u32, &TaskRow)| Change::Status {
            task: row.reference(handle),
            state,
            at_ms: 1,
            exit: None,
        };
        let mut changes: Vec<Change> = view.rows().map(row).collect();
        changes.shuffle(&mut self.rng);
        changes
    }

    /// The tasks of one node wait again, one or a few of each service.
    fn lose_a_node(&mut self) {
        let view = self.store.view();
        let (node, record) = view.nodes().iter().next().expect("there are nodes");
        let mut cache = scheduler::Cache::default();
        // The cache is warm, as a leader's is.
        scheduler::plan(&view, &mut cache, Timestamp(0));
        let lost: Vec<_> = view.rows_on_node(node).map(|(handle, row)| (handle, *row)).collect();
        let mut down = (**record).clone();
        down.state = NodeState::Down;
        let mut groups = vec![Group::of(Change::update(&down))];
        let next = TASKS_OF_A_SERVICE as u32;
        for (n, (_, row)) in (1..).zip(&lost) {
            let service = row.service.expect("tasks of services");
            groups.push(Group::of(Change::CreateTask {
                id: TaskId(self.rng.random()),
                service,
                spec_version: row.spec_version,
                slot: next + n,
                node: None,
                desired: TaskState::Running,
                start_ms: 0,
                restarts: Vec::new(),
                after: None,
            }));
        }
        drop(view);
        self.apply(groups);
        let view = self.store.view();
        let allocate = view.unallocated().map(|(handle, row)| {
            let (task, if_version) = (row.reference(handle), row.version);
            Group::of(Change::Allocate { task, if_version, addresses: Vec::new() })
        });
        let allocate: Vec<Group> = allocate.collect();
        self.apply(allocate);
        let view = self.store.view();
        let start = Instant::now();
        let plan = scheduler::plan(&view, &mut cache, Timestamp(0));
        let took = start.elapsed();
        assert_eq!(plan.groups.len(), lost.len());
        println!("{:<28} {:>8.2} ms for {} tasks", "a lost node, plan only", millis(took), lost.len());
    }

    /// Statuses go on while a held version is written.
    fn snapshot(&mut self, tasks: usize) {
        let changes = self.status_of_all(TaskState::Shutdown);
        let mut groups = changes.into_iter().map(Group::of);
        let source = self.replica.snapshot();
        let start = Instant::now();
        let writer = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            source.write_to(&mut bytes).map(|()| bytes)
        });
        let mut entries = Vec::new();
        while !writer.is_finished() {
            let entry: Vec<Group> = groups.by_ref().take(MAX_ENTRY_CHANGES).collect();
            if entry.is_empty() {
                break;
            }
            entries.push(self.apply(entry));
        }
        let bytes = writer.join().expect("it does not panic").expect("memory takes it");
        let took = start.elapsed();
        entries.sort_unstable();
        let p99 = entries.get(entries.len() * 99 / 100).copied().unwrap_or_default();
        let gate = self.gate(p99 < MOST_STALL);
        println!(
            "{:<28} {:>8.0} ms, {:.1} MB; entries beside it: {}, p50 {:.2} ms, p99 {:.2} ms{gate}",
            "snapshot",
            millis(took),
            bytes.len() as f64 / 1e6,
            entries.len(),
            millis(entries.get(entries.len() / 2).copied().unwrap_or_default()),
            millis(p99),
        );
        let start = Instant::now();
        let (mut restored, store) = Replica::new();
        restored.restore(&mut bytes.as_slice()).expect("what was written is read");
        println!("{:<28} {:>8.0} ms for {} tasks", "restore", millis(start.elapsed()), store.view().task_count());
        assert!(store.view().task_count() >= tasks);
        self.memory(&bytes);
    }

    /// Memory of the state alone, in a process of its own that reads the snapshot.
    fn memory(&mut self, snapshot: &[u8]) {
        let program = std::env::current_exe().expect("this program has a path");
        let child = Command::new(program).arg(MEMORY).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("this program can be started again");
        child.stdin.take().expect("it is piped").write_all(snapshot).expect("the child reads it");
        let output = child.wait_with_output().expect("it ends");
        let bytes: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("it prints a number");
        let gate = self.gate(bytes <= MOST_BYTES_A_TASK);
        println!("{:<28} {bytes:>8.0} bytes a task, indexes included{gate}", "memory");
    }
}

/// Reads a snapshot from standard input and prints how much memory a task of it takes.
fn weigh() -> ExitCode {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).expect("the snapshot is piped");
    let (mut replica, store) = Replica::new();
    let before = resident();
    replica.restore(&mut bytes.as_slice()).expect("what was written is read");
    println!("{}", (resident() - before) as f64 / store.view().task_count() as f64);
    ExitCode::SUCCESS
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Resident memory of this process in bytes (proc(5), statm, pages of 4 KiB).
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096
}
