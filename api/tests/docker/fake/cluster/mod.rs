//! A cluster in memory: what managers decide, without Raft and without waiting.

mod control;
mod swarm;

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

use self::swarm::Handle;
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
                root_ca: RootCa { certificates: include_str!("../root.pem").into(), key: String::new() },
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
