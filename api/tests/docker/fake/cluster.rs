//! A cluster in memory: what managers decide, without Raft and without waiting.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::{BoxStream, StreamExt};
use skep_api::docker;
use skep_api::ports::control::*;
use skep_api::ports::usage::{EndpointUsage, NetworkUsage, ServiceUsage};
use skep_api::ports::{BoxDuplex, ControlError, ControlPlane, Engine, Swarm};
use skep_proto::model::cluster::{JoinTokens, RootCa};
use skep_proto::model::engine::{ContainerConfig, ContainerRestart, NetworkMode, TaskOwner};
use skep_proto::model::network::Subnet;
use skep_proto::model::node::ManagerMembership;
use skep_proto::model::service::{Endpoint, PreviousSpec, ServiceMode, UpdateState, UpdateStatus, VirtualIp};
use skep_proto::model::session::TaskVitals;
use skep_proto::model::task::Platform;
use skep_proto::model::*;
use tokio::sync::broadcast;

use super::engine::{FakeEngine, run_task_container};
use super::now;

#[derive(Default)]
struct State {
    index: u64,
    drawn: u128,
    cluster: Option<Cluster>,
    nodes: BTreeMap<NodeId, Node>,
    services: BTreeMap<ServiceId, Service>,
    tasks: BTreeMap<TaskId, Task>,
    networks: BTreeMap<NetworkId, Arc<Network>>,
    secrets: BTreeMap<SecretId, Arc<Secret>>,
    configs: BTreeMap<ConfigId, Arc<Config>>,
}

impl State {
    fn id(&mut self) -> u128 {
        self.drawn += 1;
        // Spread over the whole range, so that no prefix fits all.
        self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    fn meta(&mut self) -> Meta {
        self.index += 1;
        Meta { version: Version(self.index), created_at: now(), updated_at: now() }
    }

    fn touch(&mut self, meta: &mut Meta, at: Version) -> Result<(), ControlError> {
        if meta.version != at {
            return Err(ControlError::OutOfSequence);
        }
        self.index += 1;
        meta.version = Version(self.index);
        meta.updated_at = now();
        Ok(())
    }
}

/// A cluster of nodes with their engines; the first is the manager whose face is tested.
pub struct World {
    state: Mutex<State>,
    engines: BTreeMap<NodeId, Arc<FakeEngine>>,
    me: NodeId,
    started: broadcast::Sender<TaskView>,
}

fn not_found<T>(kind: &'static str, reference: &str) -> Result<T, ControlError> {
    Err(ControlError::NotFound { kind, reference: reference.to_owned() })
}

/// One of `items`, by id, name or prefix.
fn find<'a, T>(
    kind: &'static str,
    reference: &str,
    items: impl Iterator<Item = (String, String, &'a T)>,
) -> Result<&'a T, ControlError> {
    let items: Vec<_> = items.collect();
    if let Some((_, _, item)) = items.iter().find(|(id, name, _)| id == reference || name == reference) {
        return Ok(item);
    }
    let prefixed: Vec<_> = items.iter().filter(|(id, ..)| id.starts_with(reference)).collect();
    match prefixed[..] {
        [(_, _, item)] => Ok(item),
        [] => not_found(kind, reference),
        _ => Err(ControlError::Ambiguous { kind, reference: reference.to_owned(), matches: prefixed.len() }),
    }
}

fn selected(filter: &ObjectFilter, id: &str, annotations: &Annotations) -> bool {
    let prefix = |set: &std::collections::BTreeSet<String>, text: &str| {
        set.is_empty() || set.iter().any(|p| text.starts_with(p.as_str()))
    };
    prefix(&filter.ids, id)
        && prefix(&filter.names, &annotations.name)
        && filter.labels.iter().all(|want| match want.split_once('=') {
            Some((k, v)) => annotations.labels.get(k).is_some_and(|x| x == v),
            None => annotations.labels.contains_key(want),
        })
}

/// What the allocator would give: the ports that were asked for, and addresses.
fn allocated(spec: &ServiceSpec, networks: &BTreeMap<NetworkId, Arc<Network>>) -> Endpoint {
    let ports = spec.endpoint.iter().flat_map(|e| e.ports.clone()).collect::<Vec<_>>();
    let ingress = networks.values().filter(|n| n.spec.ingress && !ports.is_empty()).map(|n| n.id);
    let joined = spec.task.networks.iter().filter_map(|n| n.target.parse().ok());
    let address = "10.0.0.4/24".parse().unwrap();
    let virtual_ips: Vec<_> = ingress.chain(joined).map(|network| VirtualIp { network, address }).collect();
    let resolved = if virtual_ips.is_empty() { None } else { spec.endpoint.clone() };
    Endpoint { spec: resolved, ports, virtual_ips }
}

/// `web.1.ID`; with the node instead of the slot for a global service.
fn container_name(task: &Task) -> String {
    let place = if task.slot == 0 { task.node.unwrap().to_string() } else { task.slot.to_string() };
    format!("{}.{place}.{}", task.service_name, task.id)
}

impl World {
    /// Hosts with these names, not yet in a cluster.
    pub fn new(names: &[&str]) -> Arc<Self> {
        let mut state = State::default();
        let mut engines = BTreeMap::new();
        let mut me = None;
        for (i, name) in names.iter().enumerate() {
            let id = NodeId(state.id());
            me.get_or_insert(id);
            engines.insert(id, FakeEngine::new(name));
            let address = [10, 99, 0, u8::try_from(i).unwrap() + 1];
            let meta = state.meta();
            let manager = i == 0;
            state.nodes.insert(
                id,
                Node {
                    id,
                    meta,
                    spec: NodeSpec {
                        annotations: Annotations::default(),
                        role: if manager { NodeRole::Manager } else { NodeRole::Worker },
                        availability: Availability::Active,
                    },
                    index: u16::try_from(i).unwrap(),
                    description: NodeDescription {
                        hostname: (*name).to_owned(),
                        platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
                        nano_cpus: 4_000_000_000,
                        memory: 25_276_067_840,
                        engine_version: "20.10.24+dfsg1".into(),
                        plugins: ["awslogs", "fluentd", "gcplogs"].map(|n| ("Log".to_owned(), n.to_owned())).into(),
                        ..NodeDescription::default()
                    },
                    state: NodeState::Ready,
                    message: String::new(),
                    address: Some(address.into()),
                    manager: manager
                        .then(|| ManagerMembership { raft_id: 1, address: SocketAddr::from((address, 2377)) }),
                },
            );
        }
        Arc::new(Self { state: Mutex::new(state), engines, me: me.unwrap(), started: broadcast::Sender::new(64) })
    }

    /// The same, with the cluster made and its ingress network there.
    pub async fn ready(names: &[&str]) -> Arc<Self> {
        let world = Self::new(names);
        world.make(ClusterSpec::default()).await;
        world
    }

    async fn make(&self, spec: ClusterSpec) {
        {
            let mut state = self.state.lock().unwrap();
            let (id, meta) = (ClusterId(state.id()), state.meta());
            state.cluster = Some(Cluster {
                id,
                meta,
                spec,
                root_ca: RootCa { certificates: include_str!("root.pem").into(), key: String::new() },
                join_tokens: JoinTokens { worker: "SWMTKN-1-w".into(), manager: "SWMTKN-1-m".into() },
                address_pools: vec!["10.0.0.0/8".parse().unwrap()],
                subnet_size: 24,
                data_path_port: 4789,
                format: 1,
                unlock: None,
                rotation: None,
                ingress_removed: false,
            });
        }
        let annotations = Annotations { name: "ingress".into(), ..Annotations::default() };
        self.create_network(NetworkSpec { annotations, ingress: true, ..NetworkSpec::default() }).await.unwrap();
    }

    pub fn engine(&self, name: &str) -> Arc<FakeEngine> {
        let state = self.state.lock().unwrap();
        let node = state.nodes.values().find(|n| n.description.hostname == name).unwrap();
        self.engines[&node.id].clone()
    }

    pub fn ports(self: &Arc<Self>) -> docker::Ports {
        let drawn = std::sync::atomic::AtomicU8::new(0);
        let host = docker::Host {
            version: "0.1.0".into(),
            git_commit: "abcdef".into(),
            build_time: "2026-11-21T00:00:00Z".into(),
            clock: Arc::new(now),
            draw_id: Arc::new(move || {
                let n = drawn.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                ContainerId([n.wrapping_mul(37).wrapping_add(1); 32])
            }),
        };
        let shared = Arc::new(Handle(self.clone()));
        docker::Ports { swarm: shared, engine: self.engines[&self.me].clone(), host }
    }

    /// Makes and ends tasks until each service has what it wants, and starts their containers.
    async fn settle(&self) {
        let mut starts = Vec::new();
        {
            let mut state = self.state.lock().unwrap();
            let nodes: Vec<NodeId> =
                state.nodes.values().filter(|n| n.spec.availability == Availability::Active).map(|n| n.id).collect();
            for service in state.services.values().cloned().collect::<Vec<_>>() {
                let slots = match service.spec.mode {
                    ServiceMode::Replicated { replicas } => replicas,
                    ServiceMode::Global | ServiceMode::GlobalJob => nodes.len() as u64,
                    ServiceMode::ReplicatedJob { total_completions, .. } => total_completions,
                };
                let global = matches!(service.spec.mode, ServiceMode::Global | ServiceMode::GlobalJob);
                for task in state.tasks.values_mut().filter(|t| t.service == Some(service.id)) {
                    let stale = task.spec_version != service.spec_version || u64::from(task.slot) > slots;
                    if stale && task.desired <= TaskState::Running {
                        task.desired = TaskState::Shutdown;
                        task.status.state = TaskState::Shutdown;
                        let id = ContainerId::of_task(task.id, 0).to_string();
                        starts.push((task.id, task.node.unwrap(), Err(id)));
                    }
                }
                for slot in 1..=slots {
                    if nodes.is_empty() {
                        continue;
                    }
                    let node = nodes[usize::try_from(slot).unwrap() % nodes.len()];
                    let taken = state.tasks.values().any(|t| {
                        let place = if global { t.node == Some(node) } else { u64::from(t.slot) == slot };
                        t.service == Some(service.id) && place && t.desired <= TaskState::Running
                    });
                    if taken {
                        continue;
                    }
                    let (id, meta) = (TaskId(state.id()), state.meta());
                    let name = service.spec.annotations.name.clone();
                    let task = Task {
                        id,
                        meta,
                        service: Some(service.id),
                        service_name: name,
                        service_labels: service.spec.annotations.labels.clone(),
                        slot: if global { 0 } else { u32::try_from(slot).unwrap() },
                        node: Some(node),
                        spec: Arc::new(service.spec.task.clone()),
                        spec_version: service.spec_version,
                        desired: TaskState::Running,
                        status: TaskStatus {
                            state: TaskState::Running,
                            at: now(),
                            message: "started".into(),
                            error: String::new(),
                            exit_code: None,
                            host_ports: Vec::new(),
                        },
                        attachments: Vec::new(),
                        ports: Vec::new(),
                    };
                    let config = ContainerConfig {
                        id: ContainerId::of_task(id, 0),
                        name: container_name(&task),
                        spec: service.spec.task.containers[0].clone(),
                        resources: Default::default(),
                        network: NetworkMode::Bridge,
                        ports: Vec::new(),
                        auto_remove: false,
                        restart: ContainerRestart::No,
                        privileged: false,
                        isolation: Default::default(),
                        stdin_once: false,
                        attach: (false, true, true),
                        log: None,
                        task: Some(TaskOwner { task: id, service: service.id, node }),
                    };
                    state.tasks.insert(id, task);
                    starts.push((id, node, Ok(Box::new(config))));
                }
            }
        }
        for (task, node, what) in starts {
            match what {
                Ok(config) => {
                    let (_, failed) = run_task_container(&self.engines[&node], *config).await;
                    let mut state = self.state.lock().unwrap();
                    // It fails only when nobody listens.
                    let _ = self.started.send(self.view(&state, &state.tasks[&task]));
                    if let Some(error) = failed {
                        let task = state.tasks.get_mut(&task).unwrap();
                        task.status.state = TaskState::Rejected;
                        task.status.error = error.to_string();
                    }
                }
                Err(container) => {
                    let _ = self.engines[&node].stop(&container, None, None).await;
                }
            }
        }
    }

    fn view(&self, state: &State, task: &Task) -> TaskView {
        let container = task.node.map(|_| ContainerId::of_task(task.id, 0));
        let networks = task.attachments.iter().filter_map(|a| state.networks.get(&a.network).cloned()).collect();
        TaskView {
            task: Arc::new(task.clone()),
            container,
            vitals: TaskVitals { pid: 7, ..Default::default() },
            networks,
            job_iteration: None,
        }
    }

    fn status_of(&self, state: &State, service: &Service) -> ServiceStatus {
        let of = |wanted: TaskState| {
            let fits = |t: &&Task| t.service == Some(service.id) && t.status.state == wanted;
            state.tasks.values().filter(fits).count() as u64
        };
        let desired = match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            _ => state.nodes.len() as u64,
        };
        ServiceStatus {
            service: Arc::new(service.clone()),
            running: of(TaskState::Running),
            desired,
            completed: of(TaskState::Complete),
            executed_at: service.spec.mode.is_job().then_some(service.meta.created_at),
        }
    }
}

/// The world as a daemon holds it.
struct Handle(Arc<World>);

#[async_trait]
impl Swarm for Handle {
    fn status(&self) -> SwarmStatus {
        let state = self.0.state.lock().unwrap();
        let Some(cluster) = &state.cluster else {
            return SwarmStatus {
                state: LocalState::Inactive,
                node: None,
                address: None,
                is_manager: false,
                error: String::new(),
                managers: Vec::new(),
                counts: None,
            };
        };
        SwarmStatus {
            state: LocalState::Active,
            node: Some(self.0.me),
            address: Some([10, 99, 0, 1].into()),
            is_manager: true,
            error: String::new(),
            managers: vec![(self.0.me, SocketAddr::from(([10, 99, 0, 1], 2377)))],
            counts: Some(ClusterCounts {
                cluster: Arc::new(cluster.clone()),
                nodes: state.nodes.len() as u64,
                managers: state.nodes.values().filter(|n| n.manager.is_some()).count() as u64,
            }),
        }
    }

    fn control(&self) -> Result<Arc<dyn ControlPlane>, ControlError> {
        if self.0.state.lock().unwrap().cluster.is_none() {
            return Err(ControlError::NotInSwarm);
        }
        Ok(self.0.clone())
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        if self.0.state.lock().unwrap().cluster.is_some() {
            return Err(ControlError::AlreadyInSwarm);
        }
        self.0.make(request.spec).await;
        Ok(self.0.me)
    }

    async fn join(&self, request: JoinRequest) -> Result<(), ControlError> {
        if self.0.state.lock().unwrap().cluster.is_some() {
            return Err(ControlError::AlreadyInSwarm);
        }
        Err(ControlError::JoinRefused(format!("no manager answers at {}", request.remotes.join(", "))))
    }

    async fn leave(&self, force: bool) -> Result<(), ControlError> {
        let mut state = self.0.state.lock().unwrap();
        if state.cluster.is_none() {
            return Err(ControlError::NotInSwarm);
        }
        if !force {
            return Err(ControlError::FailedPrecondition(
                "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last \
                 manager erases all current state of the swarm. Use `--force` to ignore this message. "
                    .into(),
            ));
        }
        state.cluster = None;
        state.services.clear();
        state.tasks.clear();
        state.networks.clear();
        Ok(())
    }
}

#[async_trait]
impl ControlPlane for World {
    fn events(&self) -> skep_api::ports::events::EventFeed {
        skep_api::ports::events::EventFeed::none()
    }
    async fn cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        Ok(Arc::new(self.state.lock().unwrap().cluster.clone().unwrap()))
    }

    async fn update_cluster(&self, at: Version, spec: ClusterSpec, rotate: Rotations) -> Result<(), ControlError> {
        let mut state = self.state.lock().unwrap();
        let mut cluster = state.cluster.clone().unwrap();
        state.touch(&mut cluster.meta, at)?;
        cluster.spec = spec;
        if rotate.worker_token {
            cluster.join_tokens.worker.push('x');
        }
        if rotate.manager_token {
            cluster.join_tokens.manager.push('x');
        }
        state.cluster = Some(cluster);
        Ok(())
    }

    async fn unlock_key(&self) -> Result<String, ControlError> {
        Ok("SWMKEY-1-key".into())
    }

    async fn nodes(&self) -> Result<Vec<NodeStatus>, ControlError> {
        let state = self.state.lock().unwrap();
        let mut nodes: Vec<_> = state.nodes.values().cloned().collect();
        nodes.sort_by_key(|n| n.index);
        Ok(nodes
            .into_iter()
            .map(|node| NodeStatus {
                tls: state.cluster.as_ref().map(root_of).unwrap_or_default(),
                manager: node.manager.map(|m| ManagerStatus {
                    leader: node.index == 0,
                    reachable: true,
                    address: m.address,
                }),
                node: Arc::new(node),
            })
            .collect())
    }

    async fn node(&self, reference: &str) -> Result<NodeStatus, ControlError> {
        let nodes = self.nodes().await?;
        let named = nodes.iter().map(|n| (n.node.id.to_string(), n.node.description.hostname.clone(), n));
        find("node", reference, named).cloned()
    }

    async fn update_node(&self, id: NodeId, at: Version, spec: NodeSpec) -> Result<(), ControlError> {
        {
            let mut state = self.state.lock().unwrap();
            let mut node = state.nodes[&id].clone();
            state.touch(&mut node.meta, at)?;
            node.manager = (spec.role == NodeRole::Manager).then(|| ManagerMembership {
                raft_id: u64::from(node.index) + 1,
                address: SocketAddr::new(node.address.unwrap(), 2377),
            });
            node.spec = spec;
            state.nodes.insert(id, node);
        }
        self.settle().await;
        Ok(())
    }

    async fn remove_node(&self, reference: &str, force: bool) -> Result<(), ControlError> {
        let id = self.node(reference).await?.node.id;
        if !force {
            return Err(ControlError::FailedPrecondition(format!("node {id} is not down and can't be removed")));
        }
        self.state.lock().unwrap().nodes.remove(&id);
        Ok(())
    }

    async fn services(&self, filter: &ObjectFilter) -> Result<Vec<ServiceStatus>, ControlError> {
        let state = self.state.lock().unwrap();
        let mode = |service: &Service| match service.spec.mode {
            ServiceMode::Replicated { .. } => "replicated",
            ServiceMode::Global => "global",
            ServiceMode::ReplicatedJob { .. } => "replicated-job",
            ServiceMode::GlobalJob => "global-job",
        };
        Ok(state
            .services
            .values()
            .filter(|s| selected(filter, &s.id.to_string(), &s.spec.annotations))
            .filter(|s| filter.modes.is_empty() || filter.modes.contains(mode(s)))
            .map(|s| self.status_of(&state, s))
            .collect())
    }

    async fn service(&self, reference: &str) -> Result<ServiceStatus, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.services.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("service", reference, named).map(|s| self.status_of(&state, s))
    }

    async fn create_service(&self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        let id = {
            let mut state = self.state.lock().unwrap();
            let name = spec.annotations.name.clone();
            if state.services.values().any(|s| s.spec.annotations.name == name) {
                return Err(ControlError::NameConflict(format!(
                    "name conflicts with an existing object: service {name} already exists"
                )));
            }
            let ports = spec.endpoint.iter().flat_map(|e| e.ports.iter());
            for number in ports.filter_map(|p| p.published) {
                let clash = state
                    .services
                    .values()
                    .find(|s| s.spec.endpoint.iter().flat_map(|e| e.ports.iter()).any(|p| p.published == Some(number)));
                if let Some(other) = clash {
                    return Err(ControlError::InvalidArgument(format!(
                        "port '{number}' is already in use by service '{}' ({}) as an ingress port",
                        other.spec.annotations.name, other.id
                    )));
                }
            }
            let (id, meta) = (ServiceId(state.id()), state.meta());
            let version = meta.version.0;
            let endpoint = allocated(&spec, &state.networks);
            state.services.insert(
                id,
                Service {
                    id,
                    meta,
                    spec,
                    spec_version: version,
                    previous: None,
                    endpoint,
                    update_status: None,
                    pending_delete: false,
                    runs: None,
                },
            );
            id
        };
        self.settle().await;
        Ok(id)
    }

    async fn update_service(&self, reference: &str, update: ServiceUpdate) -> Result<(), ControlError> {
        let mut service = (*self.service(reference).await?.service).clone();
        {
            let mut state = self.state.lock().unwrap();
            state.touch(&mut service.meta, update.at)?;
            let old = PreviousSpec { spec: service.spec.clone(), spec_version: service.spec_version };
            let spec = match (&service.previous, update.rollback) {
                (Some(previous), true) => previous.spec.clone(),
                (None, true) => {
                    return Err(ControlError::FailedPrecondition(format!(
                        "service {} does not have a previous spec",
                        service.id
                    )));
                }
                (_, false) => update.spec,
            };
            if spec.task != service.spec.task {
                service.spec_version = service.meta.version.0;
                service.update_status = Some(UpdateStatus {
                    state: if update.rollback { UpdateState::RollbackCompleted } else { UpdateState::Completed },
                    started_at: now(),
                    completed_at: Some(now()),
                    message: "update completed".into(),
                });
            }
            let had = service.endpoint.spec.is_some();
            service.endpoint = allocated(&spec, &state.networks);
            if had && service.endpoint.spec.is_none() {
                service.endpoint.spec = spec.endpoint.clone();
            }
            service.spec = spec;
            service.previous = Some(Box::new(old));
            state.services.insert(service.id, service);
        }
        self.settle().await;
        Ok(())
    }

    async fn remove_service(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.service(reference).await?.service.id;
        let gone: Vec<_> = {
            let mut state = self.state.lock().unwrap();
            state.services.remove(&id);
            let gone = state.tasks.values().filter(|t| t.service == Some(id)).map(|t| (t.id, t.node)).collect();
            state.tasks.retain(|_, t| t.service != Some(id));
            gone
        };
        for (task, node) in gone {
            let _ = self.engines[&node.unwrap()].remove(&ContainerId::of_task(task, 0).to_string(), true, true).await;
        }
        Ok(())
    }

    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskView>, ControlError> {
        let state = self.state.lock().unwrap();
        let prefix = |set: &std::collections::BTreeSet<String>, texts: &[&str]| {
            set.is_empty() || set.iter().any(|p| texts.iter().any(|t| t.starts_with(p.as_str())))
        };
        Ok(state
            .tasks
            .values()
            .filter(|t| {
                let id = t.id.to_string();
                let service = t.service.map(|s| s.to_string()).unwrap_or_default();
                let node = t.node.map(|n| (n.to_string(), state.nodes.get(&n)));
                let (node_id, host) = node
                    .map(|(id, n)| (id, n.map(|n| n.description.hostname.clone()).unwrap_or_default()))
                    .unwrap_or_default();
                let current = t.service.and_then(|s| state.services.get(&s));
                prefix(&filter.ids, &[&id])
                    && prefix(&filter.services, &[&service, &t.service_name])
                    && prefix(&filter.nodes, &[&node_id, &host])
                    && prefix(&filter.names, &[&format!("{}.{}.{id}", t.service_name, t.slot)])
                    && (filter.desired.is_empty() || filter.desired.contains(&t.desired))
                    && (!filter.up_to_date || current.is_some_and(|s| s.spec_version == t.spec_version))
            })
            .map(|t| self.view(&state, t))
            .collect())
    }

    fn started_tasks(&self, service: ServiceId) -> BoxStream<'static, TaskView> {
        let state = self.state.lock().unwrap();
        let later = self.started.subscribe();
        let of_service = state.tasks.values().filter(|t| t.service == Some(service)).map(|t| self.view(&state, t));
        let now: Vec<TaskView> = of_service.filter(|view| view.container.is_some()).collect();
        let next = |mut later: broadcast::Receiver<TaskView>| async move { Some((later.recv().await.ok()?, later)) };
        let later = futures_util::stream::unfold(later, next)
            .filter(move |view| std::future::ready(view.task.service == Some(service)));
        futures_util::stream::iter(now).chain(later).boxed()
    }

    async fn task(&self, reference: &str) -> Result<TaskView, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.tasks.values().map(|t| (t.id.to_string(), String::new(), t));
        find("task", reference, named).map(|t| self.view(&state, t))
    }

    async fn networks(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Network>>, ControlError> {
        let state = self.state.lock().unwrap();
        let mut list: Vec<_> = state
            .networks
            .values()
            .filter(|n| selected(filter, &n.id.to_string(), &n.spec.annotations))
            .cloned()
            .collect();
        list.sort_by_key(|n| (n.spec.ingress, n.meta.version));
        Ok(list)
    }

    async fn network(&self, reference: &str) -> Result<Arc<Network>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.networks.values().map(|n| (n.id.to_string(), n.spec.annotations.name.clone(), n));
        find("network", reference, named).cloned()
    }

    async fn network_usage(&self, reference: &str) -> Result<NetworkUsage, ControlError> {
        let network = self.network(reference).await?.id;
        let state = self.state.lock().unwrap();
        let of = |service: &&Service| service.endpoint.virtual_ips.iter().any(|vip| vip.network == network);
        let services: Vec<ServiceUsage> = state
            .services
            .values()
            .filter(of)
            .map(|service| {
                let tasks = state.tasks.values().filter(|task| task.service == Some(service.id));
                let usage = |task: &Task| EndpointUsage {
                    name: format!("{}.{}.{}", service.spec.annotations.name, task.slot, task.id),
                    container: ContainerId::of_task(task.id, 0),
                    addresses: vec!["10.0.0.9/24".parse().unwrap(), "fd01::9/64".parse().unwrap()],
                    host: Some([10, 1, 0, 1].into()),
                };
                ServiceUsage {
                    service: Arc::new(service.clone()),
                    virtual_ips: service.endpoint.virtual_ips.iter().map(|vip| vip.address).collect(),
                    tasks: tasks.map(usage).collect(),
                }
            })
            .collect();
        let nodes =
            if services.is_empty() { Vec::new() } else { state.nodes.values().cloned().map(Arc::new).collect() };
        Ok(NetworkUsage { nodes, services, containers: Vec::new() })
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        let mut state = self.state.lock().unwrap();
        let (id, meta) = (NetworkId(state.id()), state.meta());
        let n = state.networks.len();
        let subnet =
            spec.ipam.first().and_then(|c| c.subnet).unwrap_or_else(|| format!("10.0.{n}.0/24").parse().unwrap());
        let gateway = subnet.hosts().next().unwrap();
        let network = Network {
            id,
            meta,
            spec,
            vni: Some(4096 + u32::try_from(n).unwrap()),
            subnets: vec![Subnet { subnet, range: None, gateway }],
            pending_delete: false,
        };
        state.networks.insert(id, Arc::new(network));
        Ok(id)
    }

    async fn remove_network(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.network(reference).await?.id;
        self.state.lock().unwrap().networks.remove(&id);
        Ok(())
    }

    async fn secrets(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Secret>>, ControlError> {
        let state = self.state.lock().unwrap();
        let fits = |s: &&Arc<Secret>| selected(filter, &s.id.to_string(), &s.spec.annotations);
        Ok(state.secrets.values().filter(fits).cloned().collect())
    }

    async fn secret(&self, reference: &str) -> Result<Arc<Secret>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.secrets.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("secret", reference, named).cloned()
    }

    async fn create_secret(&self, spec: SecretSpec) -> Result<SecretId, ControlError> {
        let mut state = self.state.lock().unwrap();
        if state.secrets.values().any(|s| s.spec.annotations.name == spec.annotations.name) {
            return Err(ControlError::NameConflict(format!("secret {} already exists", spec.annotations.name)));
        }
        let (id, meta) = (SecretId(state.id()), state.meta());
        state.secrets.insert(id, Arc::new(Secret { id, meta, spec }));
        Ok(id)
    }

    async fn update_secret(&self, reference: &str, at: Version, spec: SecretSpec) -> Result<(), ControlError> {
        let mut secret = (*self.secret(reference).await?).clone();
        let mut state = self.state.lock().unwrap();
        state.touch(&mut secret.meta, at)?;
        secret.spec = spec;
        state.secrets.insert(secret.id, Arc::new(secret));
        Ok(())
    }

    async fn remove_secret(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.secret(reference).await?.id;
        self.state.lock().unwrap().secrets.remove(&id);
        Ok(())
    }

    async fn configs(&self, filter: &ObjectFilter) -> Result<Vec<Arc<Config>>, ControlError> {
        let state = self.state.lock().unwrap();
        let fits = |s: &&Arc<Config>| selected(filter, &s.id.to_string(), &s.spec.annotations);
        Ok(state.configs.values().filter(fits).cloned().collect())
    }

    async fn config(&self, reference: &str) -> Result<Arc<Config>, ControlError> {
        let state = self.state.lock().unwrap();
        let named = state.configs.values().map(|s| (s.id.to_string(), s.spec.annotations.name.clone(), s));
        find("config", reference, named).cloned()
    }

    async fn create_config(&self, spec: ConfigSpec) -> Result<ConfigId, ControlError> {
        let mut state = self.state.lock().unwrap();
        if state.configs.values().any(|s| s.spec.annotations.name == spec.annotations.name) {
            return Err(ControlError::NameConflict(format!("config {} already exists", spec.annotations.name)));
        }
        let (id, meta) = (ConfigId(state.id()), state.meta());
        state.configs.insert(id, Arc::new(Config { id, meta, spec }));
        Ok(id)
    }

    async fn update_config(&self, reference: &str, at: Version, spec: ConfigSpec) -> Result<(), ControlError> {
        let mut config = (*self.config(reference).await?).clone();
        let mut state = self.state.lock().unwrap();
        state.touch(&mut config.meta, at)?;
        config.spec = spec;
        state.configs.insert(config.id, Arc::new(config));
        Ok(())
    }

    async fn remove_config(&self, reference: &str) -> Result<(), ControlError> {
        let id = self.config(reference).await?.id;
        self.state.lock().unwrap().configs.remove(&id);
        Ok(())
    }

    async fn locate_container(&self, reference: &str) -> Result<Option<ContainerLocation>, ControlError> {
        let state = self.state.lock().unwrap();
        let found = state.tasks.values().find(|t| {
            container_name(t) == reference || ContainerId::of_task(t.id, 0).to_string().starts_with(reference)
        });
        Ok(found.and_then(|t| Some(ContainerLocation { container: ContainerId::of_task(t.id, 0), node: t.node? })))
    }

    async fn open_engine(&self, node: NodeId) -> Result<BoxDuplex, ControlError> {
        let router = docker::local_router(self.engines[&node].clone(), "0.1.0", Arc::new(now));
        let (ours, theirs) = tokio::io::duplex(1 << 14);
        tokio::spawn(docker::serve_connection(theirs, router));
        Ok(Box::new(ours))
    }
}

/// Every node trusts the cluster's root and has a certificate of it.
fn root_of(cluster: &Cluster) -> NodeTls {
    let root = &cluster.root_ca.certificates;
    NodeTls { trust_root: root.clone(), issuer: root.clone() }
}
