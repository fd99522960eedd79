//! What one node was told, and what it must be told next. Pure.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use prost::Message as _;
use skep_proto::model::session::{AssignmentChange, Assignments, SpecKey};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId, TaskState};
use skep_proto::wire::session as wire;

use super::derive;
use super::dirty::Dirty;
use super::files::{self, Files, FilesTold};
use super::ports::{ClusterView, TaskFacts};
use super::readiness::Unready;

/// One session's memory: a digest for each key that was sent, so that only differences go out.
#[derive(Debug)]
pub struct Outlook {
    node: NodeId,
    hasher: RandomState,
    begun: bool,
    index: u64,
    /// Own tasks by position.
    tasks: BTreeMap<u32, (TaskId, u64)>,
    /// Specs that were sent, with the secrets and configs that they refer to.
    specs: HashMap<SpecKey, Files>,
    networks: BTreeMap<NetworkId, u64>,
    services: BTreeMap<ServiceId, u64>,
    /// Services whose tasks are looked at: those sent, and those that go while their tasks still drain.
    followed: BTreeSet<ServiceId>,
    /// Other tasks, and own ones as others see them, by position.
    endpoints: BTreeMap<u32, (TaskId, u64)>,
    peers: BTreeMap<NodeId, u64>,
    /// Networks that each own task uses.
    used: HashMap<u32, Vec<NetworkId>>,
    files: FilesTold,
    /// Own tasks that the node was told to have running, by position.
    live: HashMap<u32, TaskId>,
    /// Tasks of any node that want no new connections.
    unready: Arc<Unready>,
}

/// Services that a session starts or ceases to follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Following {
    /// To follow from now on.
    pub more: Vec<ServiceId>,
    /// Not to follow any more.
    pub fewer: Vec<ServiceId>,
    /// The node's networks changed, or everything is looked at.
    moved: bool,
}

impl Outlook {
    /// A session of `node` that has sent nothing.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            hasher: RandomState::new(),
            begun: false,
            index: 0,
            tasks: BTreeMap::new(),
            specs: HashMap::new(),
            networks: BTreeMap::new(),
            services: BTreeMap::new(),
            followed: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            peers: BTreeMap::new(),
            used: HashMap::new(),
            files: FilesTold::default(),
            live: HashMap::new(),
            unready: Arc::default(),
        }
    }

    /// With what nodes say of the readiness of their tasks.
    pub fn with_readiness(self, unready: Arc<Unready>) -> Self {
        Self { unready, ..self }
    }

    /// First half of a step: what own tasks, services and networks say the node must follow now. The caller subscribes
    /// to it **before** it takes the view of [`Self::step`], so that no change falls in between.
    pub fn follow(&mut self, view: &dyn ClusterView, dirty: &Dirty) -> Following {
        let before = self.own_networks();
        self.refresh_used(view, dirty);
        let networks = self.own_networks();
        let mut following = Following { moved: dirty.all || before != networks, ..Following::default() };
        let mut judge = |id: ServiceId, visible: bool| match (visible, self.followed.contains(&id)) {
            (true, false) => following.more.push(id),
            (false, true) => following.fewer.push(id),
            (true, true) | (false, false) => {}
        };
        if dirty.all || before != networks {
            let all = view.services();
            let visible: BTreeSet<ServiceId> =
                all.iter().filter(|s| derive::is_visible(s, &networks)).map(|s| s.id).collect();
            visible.iter().for_each(|id| judge(*id, true));
            self.followed.iter().filter(|id| !visible.contains(id)).for_each(|id| judge(*id, false));
        } else {
            for id in &dirty.services {
                judge(*id, view.service(*id).is_some_and(|s| derive::is_visible(&s, &networks)));
            }
        }
        self.followed.extend(&following.more);
        following.fewer.iter().for_each(|id| {
            self.followed.remove(id);
        });
        following
    }

    /// Second half: what to send. `None` when the node knows all.
    ///
    /// `drains` says of a task, by id and position, whether some node still leads to it. It is asked for running tasks
    /// that are to stop, and where it says so the node is not told yet; who answers marks the position when that changes.
    pub fn step(
        &mut self,
        view: &dyn ClusterView,
        dirty: &Dirty,
        following: &Following,
        drains: &mut dyn FnMut(TaskId, u32) -> bool,
    ) -> Option<Assignments> {
        let mut out = Vec::new();
        // As `follow` saw them: what changed since comes with its own mark.
        let networks = self.own_networks();

        self.step_peers(view, dirty, &mut out);
        self.step_networks(view, dirty, &networks, &mut out);
        let services = self.step_services(view, dirty, following, &networks, &mut out);
        self.step_endpoints(view, dirty, following, &networks, &services, &mut out);
        self.step_tasks(view, dirty, &networks, drains, &mut out);
        self.files.step(view, &mut out);

        let complete = !self.begun;
        if out.is_empty() && !complete {
            return None;
        }
        self.begun = true;
        self.index = self.index.max(view.index());
        Some(Assignments { index: self.index, complete, changes: out })
    }

    /// Secrets and configs that did not fit into the step before. `None` when the node has all.
    pub fn more_files(&mut self, view: &dyn ClusterView) -> Option<Assignments> {
        let mut out = Vec::new();
        self.files.step(view, &mut out);
        (!out.is_empty()).then_some(Assignments { index: self.index, complete: false, changes: out })
    }

    /// Networks of the node's own tasks.
    fn own_networks(&self) -> BTreeSet<NetworkId> {
        self.used.values().flatten().copied().collect()
    }

    fn refresh_used(&mut self, view: &dyn ClusterView, dirty: &Dirty) {
        let (node, used) = (self.node, &mut self.used);
        let look = |used: &mut HashMap<u32, Vec<NetworkId>>, handle: u32, task: Option<&TaskFacts>| {
            let networks: Vec<NetworkId> = task.into_iter().flat_map(|t| derive::networks_used(t, node)).collect();
            if networks.is_empty() {
                used.remove(&handle);
            } else {
                used.insert(handle, networks);
            }
        };
        if dirty.all {
            let tasks = view.tasks_on_node(node);
            let gone: Vec<u32> = {
                let now: HashSet<u32> = tasks.iter().map(|t| t.handle).collect();
                used.keys().filter(|handle| !now.contains(handle)).copied().collect()
            };
            gone.into_iter().for_each(|handle| look(used, handle, None));
            tasks.iter().for_each(|task| look(used, task.handle, Some(task)));
        } else {
            dirty.own.iter().for_each(|handle| look(used, *handle, view.task_at(*handle).as_ref()));
        }
    }

    fn step_peers(&mut self, view: &dyn ClusterView, dirty: &Dirty, out: &mut Vec<AssignmentChange>) {
        let (keys, nodes) = if dirty.all {
            let nodes: BTreeMap<NodeId, _> = view.nodes().into_iter().map(|node| (node.id, node)).collect();
            (nodes.keys().chain(self.peers.keys()).copied().collect(), nodes)
        } else {
            let nodes = dirty.nodes.iter().filter_map(|id| Some((*id, view.node(*id)?))).collect();
            (dirty.nodes.clone(), nodes)
        };
        for id in keys {
            let put = nodes.get(&id).and_then(|node| derive::peer(node)).map(AssignmentChange::PutPeer);
            send(&self.hasher, &mut self.peers, id, put, || AssignmentChange::RemovePeer(id), out);
        }
    }

    fn step_networks(
        &mut self,
        view: &dyn ClusterView,
        dirty: &Dirty,
        networks: &BTreeSet<NetworkId>,
        out: &mut Vec<AssignmentChange>,
    ) {
        // The routing mesh is on every node.
        let ingress = view.ingress();
        let is_wanted = |id: &NetworkId| networks.contains(id) || ingress == Some(*id);
        let keys: BTreeSet<NetworkId> = networks
            .iter()
            .chain(self.networks.keys())
            .chain(&ingress)
            .filter(|id| {
                let is_known = self.networks.contains_key(id);
                dirty.all || dirty.networks.contains(id) || is_known != is_wanted(id)
            })
            .copied()
            .collect();
        let port = view.cluster().map_or(0, |cluster| cluster.data_path_port);
        for id in keys {
            let network = is_wanted(&id).then(|| view.network(id)).flatten();
            let put = network.and_then(|n| derive::overlay(&n, port)).map(AssignmentChange::PutNetwork);
            send(&self.hasher, &mut self.networks, id, put, || AssignmentChange::RemoveNetwork(id), out);
        }
    }

    /// Returns the services whose tasks must all be looked at.
    fn step_services(
        &mut self,
        view: &dyn ClusterView,
        dirty: &Dirty,
        following: &Following,
        networks: &BTreeSet<NetworkId>,
        out: &mut Vec<AssignmentChange>,
    ) -> BTreeSet<ServiceId> {
        let mut keys: BTreeSet<ServiceId> = following.more.iter().chain(&following.fewer).copied().collect();
        keys.extend(dirty.services.iter().filter(|id| self.followed.contains(id)));
        if following.moved {
            keys.extend(&self.followed);
        }
        for id in &keys {
            // One that became visible after `follow` comes with its own mark: nothing of it was subscribed to yet. The name
            // and the ports of one that goes may belong to another already.
            let service = view.service(*id).filter(|s| self.followed.contains(id) && !s.pending_delete);
            let put = service.map(|s| AssignmentChange::PutService(derive::service_view(&s, networks)));
            send(&self.hasher, &mut self.services, *id, put, || AssignmentChange::RemoveService(*id), out);
        }
        keys
    }

    fn step_endpoints(
        &mut self,
        view: &dyn ClusterView,
        dirty: &Dirty,
        following: &Following,
        networks: &BTreeSet<NetworkId>,
        services: &BTreeSet<ServiceId>,
        out: &mut Vec<AssignmentChange>,
    ) {
        let mut tasks: BTreeMap<u32, Option<TaskFacts>> = BTreeMap::new();
        for service in services {
            tasks.extend(view.tasks_of_service(*service).into_iter().map(|task| (task.handle, Some(task))));
        }
        if following.moved {
            tasks.extend(view.tasks_without_service().into_iter().map(|task| (task.handle, Some(task))));
        }
        // What is followed no more may have gone unheard.
        let all_known = following.moved || !following.fewer.is_empty();
        let again: Vec<u32> = self.endpoints.keys().filter(|_| all_known).copied().collect();
        for handle in again.iter().chain(&dirty.endpoints).chain(&dirty.own) {
            tasks.entry(*handle).or_insert_with(|| view.task_at(*handle));
        }
        for (handle, task) in tasks {
            let view_of = |task: &TaskFacts| {
                let by_mesh = match task.service {
                    Some(id) if !self.followed.contains(&id) => return None,
                    Some(id) => view.service(id).is_some_and(|s| derive::is_in_mesh(&s)),
                    None => false,
                };
                let mut endpoint = derive::endpoint(view, task, networks, by_mesh)?;
                endpoint.serving &= !self.unready.has(task.id);
                Some(endpoint)
            };
            let put = task.as_ref().and_then(view_of).map(|e| (e.task, AssignmentChange::PutEndpoint(e)));
            send_at(&self.hasher, &mut self.endpoints, handle, put, AssignmentChange::RemoveEndpoint, out);
        }
    }

    fn step_tasks(
        &mut self,
        view: &dyn ClusterView,
        dirty: &Dirty,
        networks: &BTreeSet<NetworkId>,
        drains: &mut dyn FnMut(TaskId, u32) -> bool,
        out: &mut Vec<AssignmentChange>,
    ) {
        let mut tasks: BTreeMap<u32, Option<TaskFacts>> = BTreeMap::new();
        if dirty.all {
            tasks.extend(view.tasks_on_node(self.node).into_iter().map(|task| (task.handle, Some(task))));
            self.tasks.keys().for_each(|handle| {
                tasks.entry(*handle).or_insert(None);
            });
        } else {
            tasks.extend(dirty.own.iter().map(|handle| (*handle, view.task_at(*handle))));
        }
        for (handle, task) in tasks {
            let lacks_network =
                |task: &TaskFacts| derive::networks_used(task, self.node).any(|network| !networks.contains(&network));
            if task.as_ref().is_some_and(lacks_network) {
                continue; // It changed after `follow`; the next step brings it with its network.
            }
            let mut put = task.as_ref().and_then(|task| derive::assigned(task, self.node));
            let told_to_run = self.live.remove(&handle);
            if let (Some(assigned), Some(task)) = (&mut put, &task) {
                // One of which this session never said that it runs may have been told to stop by an earlier one.
                if told_to_run == Some(task.id) && derive::may_drain(view, task) && drains(task.id, handle) {
                    assigned.desired = TaskState::Running;
                }
                if assigned.desired <= TaskState::Running {
                    self.live.insert(handle, task.id);
                }
            }
            if let Some(key) = put.as_ref().map(|task| task.spec)
                && !self.specs.contains_key(&key)
            {
                match view.spec(key) {
                    Some(spec) => {
                        self.specs.insert(key, files::referred(&spec));
                        out.push(AssignmentChange::PutSpec(spec));
                    }
                    // Without its spec a task cannot be told; the store keeps a spec as long as its tasks.
                    None => put = None,
                }
            }
            let files = put.as_ref().filter(|task| derive::is_live(task)).and_then(|task| self.specs.get(&task.spec));
            self.files.used_by(handle, files);
            let put = put.map(|task| (task.id, AssignmentChange::PutTask(task)));
            send_at(&self.hasher, &mut self.tasks, handle, put, AssignmentChange::RemoveTask, out);
        }
    }
}

/// Puts or removes one key, if that differs from what was sent.
fn send<K: Ord + Copy>(
    hasher: &RandomState,
    sent: &mut BTreeMap<K, u64>,
    key: K,
    put: Option<AssignmentChange>,
    remove: impl FnOnce() -> AssignmentChange,
    out: &mut Vec<AssignmentChange>,
) {
    match put {
        Some(change) => {
            let digest = digest(hasher, &change);
            if sent.insert(key, digest) != Some(digest) {
                out.push(change);
            }
        }
        None => {
            if sent.remove(&key).is_some() {
                out.push(remove());
            }
        }
    }
}

/// The same for tasks, whose positions are reused: another task at the position removes the former.
fn send_at(
    hasher: &RandomState,
    sent: &mut BTreeMap<u32, (TaskId, u64)>,
    handle: u32,
    put: Option<(TaskId, AssignmentChange)>,
    remove: impl Fn(TaskId) -> AssignmentChange,
    out: &mut Vec<AssignmentChange>,
) {
    let before = sent.get(&handle).copied();
    if let Some((old, _)) = before
        && put.as_ref().is_none_or(|(new, _)| *new != old)
    {
        sent.remove(&handle);
        out.push(remove(old));
    }
    if let Some((id, change)) = put {
        let digest = digest(hasher, &change);
        if before != Some((id, digest)) {
            sent.insert(handle, (id, digest));
            out.push(change);
        }
    }
}

fn digest(hasher: &RandomState, change: &AssignmentChange) -> u64 {
    hasher.hash_one(wire::AssignmentChange::from(change).encode_to_vec())
}
