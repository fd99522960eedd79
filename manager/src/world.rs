//! A cluster in memory for tests of planners: the real store, the real planners, and agents that do as they are told.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use skep_proto::model::cluster::{JoinTokens, RootCa};
use skep_proto::model::container::Driver;
use skep_proto::model::service::{Endpoint, EndpointSpec};
use skep_proto::model::{
    Annotations, Availability, Cluster, ClusterId, ClusterSpec, ContainerSpec, Meta, Network, NetworkId, NetworkSpec,
    Node, NodeDescription, NodeId, NodeRole, NodeSpec, NodeState, Service, ServiceId, ServiceMode, ServiceSpec, Task,
    TaskSpec, TaskState, Timestamp,
};

use crate::raft::machine::Machine;
use crate::reconcile::{Env, Plan};
use crate::store::{Change, Entry, Group, Object, Outcome, Reference, Replica, State, Store};
use crate::{allocator, orchestrator, reaper, schedule, scheduler};

/// Rounds after which a world that still changes counts as one that never settles.
const MOST_ROUNDS: usize = 200;

pub(crate) struct World {
    replica: Replica,
    pub store: Arc<Store>,
    pub now: Timestamp,
    index: u64,
    rng: StdRng,
    ids: u128,
    /// What the scheduler remembers between plans.
    schedule: scheduler::Cache,
    /// Every entry so far.
    pub log: Vec<(u64, bytes::Bytes)>,
    /// Whether tasks that were told to run or stop do so at once.
    pub agents_obey: bool,
}

impl World {
    pub fn new() -> Self {
        let (replica, store) = Replica::new();
        let rng = StdRng::seed_from_u64(7);
        let mut world = Self {
            replica,
            store,
            now: Timestamp(1_000_000),
            index: 0,
            rng,
            ids: 1,
            schedule: scheduler::Cache::default(),
            log: Vec::new(),
            agents_obey: true,
        };
        let cluster = Cluster {
            id: ClusterId(1),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa { certificates: String::new(), key: String::new() },
            join_tokens: JoinTokens::default(),
            address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_size: 24,
            data_path_port: 4789,
            format: 1,
            unlock: None,
            rotation: None,
            ingress_removed: false,
        };
        world.apply(Change::create(&cluster));
        world
    }

    /// `count` ready nodes, named n1, n2, …
    pub fn nodes(mut self, count: usize) -> Self {
        for n in 1..=count {
            self.add_node(&format!("n{n}"), |_| {});
        }
        self
    }

    pub fn add_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) -> NodeId {
        let mut node = Node {
            id: NodeId(self.next_id()),
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations::default(),
                role: NodeRole::Worker,
                availability: Availability::Active,
            },
            index: 0,
            description: NodeDescription {
                hostname: name.into(),
                nano_cpus: 4_000_000_000,
                memory: 8 << 30,
                ..NodeDescription::default()
            },
            state: NodeState::Ready,
            message: String::new(),
            address: None,
            manager: None,
        };
        change(&mut node);
        self.apply(Change::create(&node));
        node.id
    }

    pub fn add_network(&mut self, name: &str) -> NetworkId {
        self.make_network(name, |_| {})
    }

    pub fn make_network(&mut self, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkId {
        let mut spec = NetworkSpec {
            annotations: Annotations { name: name.into(), ..Annotations::default() },
            driver: Driver { name: "overlay".into(), ..Driver::default() },
            ..NetworkSpec::default()
        };
        change(&mut spec);
        let id = NetworkId(self.next_id());
        let network =
            Network { id, meta: Meta::default(), spec, vni: None, subnets: Vec::new(), pending_delete: false };
        self.apply(Change::create(&network));
        id
    }

    pub fn add_service(&mut self, name: &str, mode: ServiceMode, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
        let container = ContainerSpec { image: "image".into(), ..ContainerSpec::default() };
        let mut spec = ServiceSpec {
            annotations: Annotations { name: name.into(), ..Annotations::default() },
            task: TaskSpec { containers: vec![container], ..TaskSpec::default() },
            mode,
            update: None,
            rollback: None,
            endpoint: Some(EndpointSpec::default()),
        };
        change(&mut spec);
        let service = Service {
            id: ServiceId(self.next_id()),
            meta: Meta::default(),
            spec,
            spec_version: 0,
            previous: None,
            endpoint: Endpoint::default(),
            update_status: None,
            pending_delete: false,
            runs: None,
        };
        self.apply(Change::create(&service));
        service.id
    }

    pub fn update_service(&mut self, id: ServiceId, change: impl FnOnce(&mut Service)) {
        let mut service = (**self.view().services().get(id).unwrap()).clone();
        change(&mut service);
        self.apply(Change::update(&service));
    }

    pub fn update_cluster(&mut self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = (**self.view().cluster().unwrap()).clone();
        change(&mut cluster);
        self.apply(Change::update(&cluster));
    }

    pub fn update_node(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let mut node = (**self.view().nodes().get(id).unwrap()).clone();
        change(&mut node);
        self.apply(Change::update(&node));
    }

    pub fn view(&self) -> Arc<State> {
        self.store.view()
    }

    pub fn tasks(&self, id: ServiceId) -> Vec<Task> {
        self.view().tasks_of_service(id)
    }

    /// Tasks that run and are meant to.
    pub fn running(&self, id: ServiceId) -> Vec<Task> {
        let is_running = |t: &Task| t.status.state == TaskState::Running && t.desired == TaskState::Running;
        self.tasks(id).into_iter().filter(is_running).collect()
    }

    /// Running tasks on each node, by host name.
    pub fn spread(&self, id: ServiceId) -> std::collections::BTreeMap<String, usize> {
        let mut spread = std::collections::BTreeMap::new();
        for task in self.running(id) {
            let node = task.node.and_then(|n| self.view().nodes().get(n).cloned()).unwrap();
            *spread.entry(node.description.hostname.clone()).or_default() += 1;
        }
        spread
    }

    fn next_id(&mut self) -> u128 {
        self.ids += 1;
        self.ids << 64
    }

    /// One change, which must not be refused.
    pub fn apply(&mut self, change: Change) {
        match self.propose(vec![Group::of(change)]).as_slice() {
            [Outcome::Applied { .. }] => {}
            other => panic!("{other:?}"),
        }
    }

    pub fn propose(&mut self, groups: Vec<Group>) -> Vec<Outcome> {
        self.index += 1;
        let entry = Entry { at_ms: self.now.0, proposer: NodeId(0), groups };
        let bytes = entry.encode();
        let reply = self.replica.apply(self.index, &bytes).unwrap();
        self.replica.publish();
        self.log.push((self.index, bytes));
        postcard::from_bytes(&reply).unwrap()
    }

    /// What all planners want now.
    pub fn plans(&mut self) -> Plan {
        let state = self.view();
        let mut env = Env { now: self.now, rng: &mut self.rng };
        let mut all = Plan::default();
        let services: Vec<u32> = state.services().iter().map(|(r, _)| r.handle()).collect();
        let mut parts = vec![allocator::plan(&state), scheduler::plan(&state, &mut self.schedule, env.now)];
        parts.push(reaper::plan(&state, reaper::Key::Cluster, &env));
        for handle in services {
            parts.push(schedule::plan(&state, handle, env.now));
            parts.push(orchestrator::plan(&state, handle, &mut env));
            parts.push(reaper::plan(&state, reaper::Key::Service(handle), &env));
        }
        for plan in parts {
            all.groups.extend(plan.groups);
            if let Some(at) = plan.recheck_at {
                all.recheck(at);
            }
        }
        all
    }

    /// Lets planners and agents work until nothing is left to do. Returns the rounds that it took.
    pub fn settle(&mut self) -> usize {
        for round in 0..MOST_ROUNDS {
            let plan = self.plans();
            let mut groups = plan.groups;
            if self.agents_obey {
                groups.extend(self.obey());
            }
            if groups.is_empty() {
                return round;
            }
            self.propose(groups);
        }
        panic!("the world does not settle: {:?}", self.plans());
    }

    /// Lets time pass in steps, settling after each.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.settle();
            let next = self.plans().recheck_at.unwrap_or(end);
            self.now = next.max(Timestamp(self.now.0 + 1)).min(end);
        }
        self.settle();
    }

    /// What agents do that were told to run or stop tasks.
    pub fn obey(&self) -> Vec<Group> {
        let state = self.view();
        let mut groups = Vec::new();
        for (handle, row) in state.rows() {
            let node = row.node.and_then(|n| state.nodes().lookup(n));
            if node.is_none_or(|n| n.state != NodeState::Ready)
                || row.state < TaskState::Assigned
                || row.state.is_terminal()
            {
                continue;
            }
            let to = match row.desired {
                TaskState::Ready if row.state < TaskState::Ready => TaskState::Ready,
                TaskState::Running if row.state < TaskState::Running => TaskState::Running,
                TaskState::Shutdown | TaskState::Remove => TaskState::Shutdown,
                _ => continue,
            };
            groups.push(Group::of(Change::Status {
                task: row.reference(handle),
                state: to,
                at_ms: self.now.0,
                exit: None,
            }));
        }
        groups
    }

    /// A task ends by itself.
    pub fn end(&mut self, task: &Task, state: TaskState, error: &str) {
        let reference = self.view().reference(task.id).unwrap();
        let report = Change::Report {
            task: reference,
            state,
            at_ms: self.now.0,
            exit: Some(1),
            message: String::new(),
            error: error.into(),
            host_ports: Vec::new(),
        };
        self.apply(report);
    }

    /// Tells an object of the store by its id, for assertions.
    pub fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.view().services().get(id).cloned()
    }

    /// The state as a snapshot.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.replica.snapshot().write_to(&mut bytes).unwrap();
        bytes
    }

    /// The snapshot of the state, read back.
    pub fn reopened(&self) -> Arc<State> {
        let bytes = self.snapshot();
        let (mut replica, store) = Replica::new();
        replica.restore(&mut bytes.as_slice()).unwrap();
        store.view()
    }
}

/// Ids of objects, for comparing tables.
pub(crate) fn ids<T: Object>(table: &crate::store::Table<T>) -> Vec<u128> {
    table.values().map(|o| o.id().into().0).collect()
}
