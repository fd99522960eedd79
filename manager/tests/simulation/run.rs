//! Three managers in one thread, with simulated time, network and disks, and faults drawn from a seed.
//!
//! ```text
//! seed ─► faults: cut, isolate, crash with power loss, restart, clocks of different speed
//!      ─► managers m1 m2 m3, each with clients of its own that write and read ─► Report ─► one invariant a file
//! ```
//! Everything runs on the thread of the test: election timeouts, latencies and faults are functions of the seed. What
//! is not is the order in which `select!` polls inside libraries, so a replay is near enough to debug by, not bit for bit.
#![allow(dead_code, clippy::unwrap_used)] // test code, which uses a part of what it shares with raft_group.rs

#[path = "../support/kv.rs"]
pub mod kv;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv::{Change, Codec, Kv, Trace, View};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use skep_manager::raft::config::{Config, Timing};
use skep_manager::raft::disk::memory::Memory;
use skep_manager::raft::log::{SegmentSizes, Workers};
use skep_manager::raft::proposer::Limits;
use skep_manager::raft::runtime::seed_this_thread;
use skep_manager::raft::seal::{Sealer, SecretKey};
use skep_manager::raft::types::{Peer, RaftId};
use skep_manager::raft::{Group, LogSummary, Proposer, Raft};
use tonic::transport::Server;

use crate::net;

pub const MEMBERS: [RaftId; 3] = [1, 2, 3];
const CLUSTER: [u8; 16] = *b"simulated manage";
const PORT: u16 = 2377;
const CLIENTS: usize = 2;
const KEYS: u64 = 4;
/// Simulated time with faults, and after them.
const STORM: Duration = Duration::from_secs(15);
const CALM: Duration = Duration::from_secs(5);

/// What a client did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set `key` to `value`, a value used once. `index`: of the entry, if it was acknowledged.
    Write { key: String, value: String, index: Option<u64> },
    /// Read `key` after a barrier. `seen`: the value, and the index that the state had reached.
    Read { key: String, seen: Option<(Option<String>, u64)> },
}

/// An operation and when it ran, by a count of all beginnings and endings. Not by time: members that run in the same
/// tick of the simulation see different times, while all that happens has one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub member: RaftId,
    pub began: u64,
    /// `None`: never answered.
    pub ended: Option<u64>,
    pub op: Op,
}

/// A manager seen as leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reign {
    pub term: u64,
    pub member: RaftId,
}

/// What a run of the simulation showed.
#[derive(Debug, Default)]
pub struct Report {
    pub calls: Vec<Call>,
    /// Everyone ever seen leading, by term.
    pub reigns: Vec<Reign>,
    /// Logs of all members at one moment, taken again and again.
    pub logs: Vec<BTreeMap<RaftId, Vec<LogSummary>>>,
    /// Digests by index, of each member and each of its lives.
    pub traces: Vec<(RaftId, BTreeMap<u64, [u8; 32]>)>,
    /// States after the calm.
    pub states: BTreeMap<RaftId, Arc<kv::State>>,
    pub crashes: usize,
    pub cuts: usize,
}

impl Report {
    /// Writes that were acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = (&Call, &str, &str, u64)> {
        self.calls.iter().filter_map(|call| match &call.op {
            Op::Write { key, value, index: Some(index) } => Some((call, &**key, &**value, *index)),
            _ => None,
        })
    }
}

/// Runs the seeds that the environment asks for, and says how to replay one that fails.
///
/// `SKEP_SEED=n` runs one seed, `SKEP_SEEDS=n` the first n. By default each file runs two seeds of its own, ten in all.
pub fn check_seeds(test: &str, check: impl Fn(&Report)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds: Vec<u64> = match number("SKEP_SEED") {
        Some(seed) => vec![seed],
        None => match number("SKEP_SEEDS") {
            Some(count) => (0..count).collect(),
            None => {
                let own = u64::from(crc32fast::hash(test.as_bytes()));
                vec![own, own + 1]
            }
        },
    };
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| {
            let report = run(seed);
            check(&report);
            report
        }));
        match run {
            Ok(report) => println!(
                "seed {seed}: {} calls, {} acknowledged writes, {} crashes, {} cuts, {} reigns",
                report.calls.len(),
                report.acknowledged().count(),
                report.crashes,
                report.cuts,
                report.reigns.len()
            ),
            Err(panic) => {
                println!(
                    "seed {seed} failed; replay: SKEP_SEED={seed} cargo test -p skep-manager --test simulation {test}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// What outlives a crash, and what the outside sees of a member.
struct Member {
    id: RaftId,
    disk: Memory,
    running: RefCell<Option<(Raft, View)>>,
    lives: RefCell<Vec<Trace>>,
    /// How fast this member's clock runs.
    speed: f64,
}

struct World {
    members: Vec<Rc<Member>>,
    history: Rc<History>,
    seed: u64,
}

/// What the clients did so far.
#[derive(Default)]
struct History {
    calls: RefCell<Vec<Call>>,
    events: Cell<u64>,
    values: Cell<u64>,
    /// Clients do not begin anything more.
    over: Cell<bool>,
}

impl History {
    fn event(&self) -> u64 {
        self.events.replace(self.events.get() + 1)
    }
}

fn name(id: RaftId) -> String {
    format!("m{id}")
}

fn peer(id: RaftId) -> Peer {
    Peer { address: format!("{}:{PORT}", name(id)), node_id: name(id) }
}

/// Runs one seed.
pub fn run(seed: u64) -> Report {
    seed_this_thread(seed);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(600))
        .tick_duration(Duration::from_millis(2))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(rng.random_range(2..30)))
        .tcp_capacity(4096)
        .build();
    let members = MEMBERS.map(|id| {
        Rc::new(Member {
            id,
            disk: Memory::default(),
            running: RefCell::default(),
            lives: RefCell::default(),
            speed: rng.random_range(0.85..1.15),
        })
    });
    let world = World { members: members.to_vec(), history: Rc::default(), seed };
    for member in &world.members {
        let (member, history) = (Rc::clone(member), Rc::clone(&world.history));
        sim.host(name(member.id), move || live(Rc::clone(&member), Rc::clone(&history), seed));
    }
    let mut report = Report::default();
    form(&mut sim, &world);
    storm(&mut sim, &world, &mut rng, &mut report);
    calm(&mut sim, &world, &mut report);
    report
}

/// One life of a member: from a start to a crash.
async fn live(member: Rc<Member>, history: Rc<History>, seed: u64) -> turmoil::Result {
    let mut config = Config::new(member.id, CLUSTER);
    let scaled = |d: Duration| d.div_f64(member.speed);
    let timing = Timing::default();
    config.timing = Timing {
        heartbeat: scaled(timing.heartbeat),
        election_min: scaled(timing.election_min),
        election_max: scaled(timing.election_max),
    };
    config.segments = SegmentSizes { first: 16 << 10, largest: 16 << 10 };
    config.snapshot_after_bytes = 16 << 10;
    config.keep_log_bytes = 8 << 10;
    config.workers = Workers::Local { flush: Duration::from_millis(3) };

    let life = member.lives.borrow().len() as u64;
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&life.to_le_bytes());
    nonce[8..].copy_from_slice(&member.id.to_le_bytes());
    let sealer = Arc::new(Sealer::new(&[(1, SecretKey::from_bytes([7; 32]))], nonce));
    let (view, trace) = (View::default(), Trace::default());
    member.lives.borrow_mut().push(Arc::clone(&trace));
    let machine = Box::new(Kv::new(Arc::clone(&view), trace));
    let here = tokio::runtime::Handle::current();
    let raft =
        Raft::start(config, Arc::new(member.disk.clone()), sealer, machine, Arc::new(net::Simulated), here).await?;
    let listener = net::listen(PORT).await?;
    *member.running.borrow_mut() = Some((raft.clone(), Arc::clone(&view)));

    // Wall clocks differ by up to a minute and may go back over a restart.
    let skew = StdRng::seed_from_u64(seed ^ member.id ^ life << 8).random_range(0..60_000);
    let clock = Arc::new(move || skew + turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64);
    let limits = Limits { within: Duration::from_secs(2), ..Limits::default() };
    let proposer = Proposer::start(&raft, Arc::new(Codec), clock, limits);
    for client in 0..CLIENTS {
        let work = Client {
            member: member.id,
            raft: raft.clone(),
            proposer: proposer.clone(),
            view: Arc::clone(&view),
            history: Rc::clone(&history),
            rng: StdRng::seed_from_u64(seed ^ (member.id << 32) ^ (life << 40) ^ client as u64),
        };
        tokio::task::spawn_local(work.run());
    }
    Server::builder().add_service(raft.service()).serve_with_incoming(listener).await?;
    Ok(())
}

struct Client {
    member: RaftId,
    raft: Raft,
    proposer: Proposer,
    view: View,
    history: Rc<History>,
    rng: StdRng,
}

impl Client {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(10..120))).await;
            if self.history.over.get() {
                return;
            }
            let key = format!("k{}", self.rng.random_range(0..KEYS));
            if self.rng.random_bool(0.6) { self.write(key).await } else { self.read(key).await }
        }
    }

    fn begin(&self, op: Op) -> usize {
        let began = self.history.event();
        let mut calls = self.history.calls.borrow_mut();
        calls.push(Call { member: self.member, began, ended: None, op });
        calls.len() - 1
    }

    async fn write(&mut self, key: String) {
        let number = self.history.values.replace(self.history.values.get() + 1);
        // Long enough that segments, snapshots and purges happen often.
        let value = format!("{number}-{}", "x".repeat(self.rng.random_range(0..400)));
        let bytes = Change::set(&key, &value).encode();
        let call = self.begin(Op::Write { key, value, index: None });
        let Ok(applied) = self.proposer.propose(Group { bytes, changes: 1 }).await else { return };
        let ended = self.history.event();
        let mut calls = self.history.calls.borrow_mut();
        calls[call].ended = Some(ended);
        if let Op::Write { index, .. } = &mut calls[call].op {
            *index = Some(applied.index);
        }
    }

    async fn read(&mut self, key: String) {
        let call = self.begin(Op::Read { key: key.clone(), seen: None });
        if self.raft.read_index(Duration::from_secs(2)).await.is_err() {
            return;
        }
        let state = Arc::clone(&self.view.lock().unwrap());
        let ended = self.history.event();
        let mut calls = self.history.calls.borrow_mut();
        calls[call].ended = Some(ended);
        if let Op::Read { seen, .. } = &mut calls[call].op {
            *seen = Some((state.map.get(&key).cloned(), state.applied));
        }
    }
}

fn run_for(sim: &mut turmoil::Sim<'_>, world: &World, report: &mut Report, time: Duration) {
    let until = sim.elapsed() + time;
    while sim.elapsed() < until {
        sim.step().expect("no member ends by itself");
        watch(world, report);
    }
}

/// Notes who leads. A member that thinks so by its own lease counts, even if it is wrong.
fn watch(world: &World, report: &mut Report) {
    for member in &world.members {
        if let Some((raft, _)) = &*member.running.borrow()
            && let Some(term) = raft.term_led()
        {
            let reign = Reign { term, member: member.id };
            if !report.reigns.contains(&reign) {
                if std::env::var_os("SKEP_SIM_TRACE").is_some() {
                    println!("{reign:?}");
                }
                report.reigns.push(reign);
            }
        }
    }
}

fn leads(member: &Member) -> bool {
    member.running.borrow().as_ref().is_some_and(|(raft, _)| raft.is_leader())
}

fn note_logs(world: &World, report: &mut Report) {
    let logs = world.members.iter().filter_map(|m| m.running.borrow().as_ref().map(|(raft, _)| (m.id, raft.log())));
    report.logs.push(logs.collect());
}

/// Waits for a condition in simulated time.
fn run_until(sim: &mut turmoil::Sim<'_>, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = sim.elapsed() + Duration::from_secs(60);
    while !holds() {
        assert!(sim.elapsed() < deadline, "no {what} after 60 simulated seconds");
        sim.step().expect("no member ends by itself");
    }
}

/// Makes a group of all members.
fn form(sim: &mut turmoil::Sim<'_>, world: &World) {
    let done = Rc::new(RefCell::new(false));
    let finished = Rc::clone(&done);
    let first = Rc::clone(&world.members[0]);
    sim.client("operator", async move {
        let within = Duration::from_secs(20);
        while first.running.borrow().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let raft = first.running.borrow().as_ref().map(|(raft, _)| raft.clone()).expect("just seen");
        raft.initialize(peer(1)).await?;
        raft.tenure().wait_for(Option::is_some).await?;
        for id in [2, 3] {
            raft.add_learner(id, peer(id), within).await?;
            raft.promote(id, within).await?;
        }
        *finished.borrow_mut() = true;
        Ok(())
    });
    run_until(sim, "group of three", || *done.borrow());
    trace(sim, "formed");
}

/// Faults until the storm is over.
fn storm(sim: &mut turmoil::Sim<'_>, world: &World, rng: &mut StdRng, report: &mut Report) {
    let end = sim.elapsed() + STORM;
    while sim.elapsed() < end {
        run_for(sim, world, report, Duration::from_millis(rng.random_range(100..2500)));
        note_logs(world, report);
        // Half of the time after a repair, so that a majority can act between faults, and half of the time at the leader.
        if rng.random_bool(0.5) {
            heal(sim);
            start_stopped(sim, world, rng, 1.0);
            run_for(sim, world, report, Duration::from_millis(rng.random_range(100..1500)));
        }
        let leader = world.members.iter().find(|member| leads(member));
        let member = leader.filter(|_| rng.random()).or_else(|| world.members.choose(rng)).expect("three");
        trace(sim, &format!("calls {}", world.history.calls.borrow().len()));
        let fault = rng.random_range(0..10);
        trace(sim, &format!("fault {fault} at {}", member.id));
        match fault {
            0..3 => {
                crash(sim, world, member, rng);
                report.crashes += 1;
            }
            3 => {
                // The power of the whole house.
                for member in &world.members {
                    crash(sim, world, member, rng);
                    report.crashes += 1;
                }
            }
            4..6 => {
                report.cuts += 1;
                for other in MEMBERS.into_iter().filter(|id| *id != member.id) {
                    sim.partition(name(member.id), name(other));
                }
            }
            6 => {
                report.cuts += 1;
                let other = MEMBERS.into_iter().find(|id| *id != member.id).expect("three");
                sim.partition(name(member.id), name(other));
            }
            7 => {
                report.cuts += 1;
                // Heard, and not hearing.
                let other = MEMBERS.into_iter().rfind(|id| *id != member.id).expect("three");
                sim.partition_oneway(name(other), name(member.id));
            }
            _ => heal(sim),
        }
        start_stopped(sim, world, rng, 0.3);
    }
}

/// Prints what happens, with `SKEP_SIM_TRACE` set.
fn trace(sim: &turmoil::Sim<'_>, what: &str) {
    if std::env::var_os("SKEP_SIM_TRACE").is_some() {
        println!("{:?} {what}", sim.elapsed());
    }
}

fn heal(sim: &turmoil::Sim<'_>) {
    for a in MEMBERS {
        for b in MEMBERS.into_iter().filter(|b| *b != a) {
            sim.repair(name(a), name(b));
        }
    }
}

fn crash(sim: &mut turmoil::Sim<'_>, world: &World, member: &Member, rng: &mut StdRng) {
    if member.running.borrow_mut().take().is_some() || sim.is_host_running(name(member.id)) {
        trace(sim, &format!("crash {}", member.id));
        sim.crash(name(member.id));
        member.disk.crash(world.seed ^ rng.random::<u64>());
    }
}

fn start_stopped(sim: &mut turmoil::Sim<'_>, world: &World, rng: &mut StdRng, chance: f64) {
    for member in &world.members {
        if !sim.is_host_running(name(member.id)) && rng.random_bool(chance) {
            trace(sim, &format!("start {}", member.id));
            sim.bounce(name(member.id));
        }
    }
}

/// Everything is repaired; all members must come to the same state and take writes again.
fn calm(sim: &mut turmoil::Sim<'_>, world: &World, report: &mut Report) {
    heal(sim);
    for member in &world.members {
        if !sim.is_host_running(name(member.id)) {
            sim.bounce(name(member.id));
        }
    }
    trace(sim, "calm");
    let healed = report_len(world);
    run_for(sim, world, report, CALM);
    // All that was begun comes to its end, and every member to the end of the log.
    world.history.over.set(true);
    run_for(sim, world, report, Duration::from_secs(3));
    note_logs(world, report);
    let after: Vec<Call> = world.history.calls.borrow()[healed..].to_vec();
    for member in &world.members {
        let served = after.iter().any(|c| c.member == member.id && c.ended.is_some());
        assert!(served, "member {} serves nobody {CALM:?} after the last fault", member.id);
    }
    report.calls = world.history.calls.borrow().clone();
    for member in &world.members {
        let running = member.running.borrow();
        let (_, view) = running.as_ref().expect("every member runs at the end");
        report.states.insert(member.id, Arc::clone(&view.lock().unwrap()));
        for life in &*member.lives.borrow() {
            report.traces.push((member.id, life.lock().unwrap().clone()));
        }
    }
}

fn report_len(world: &World) -> usize {
    world.history.calls.borrow().len()
}
