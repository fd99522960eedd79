//! A store and an agent's end of a session, in memory.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use skep_proto::model::cluster::{JoinTokens, RootCa};
use skep_proto::model::network::NetworkSpec;
use skep_proto::model::service::{Endpoint, EndpointMode, EndpointSpec, PortConfig, Protocol, PublishMode, VirtualIp};
use skep_proto::model::session::{
    AgentMessage, AssignedSpec, Assignments, FileContent, FileId, ManagerMessage, SpecKey,
};
use skep_proto::model::task::NetworkAttachment;
use skep_proto::model::*;
use tokio::sync::{mpsc, watch};

use super::ports::*;
use super::transport::{Inbound, Outbound, Transport, TransportError};

#[derive(Clone, Default)]
pub(crate) struct FakeView {
    pub(crate) index: u64,
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node>>,
    pub(crate) services: BTreeMap<ServiceId, Arc<Service>>,
    pub(crate) networks: BTreeMap<NetworkId, Arc<Network>>,
    pub(crate) tasks: BTreeMap<u32, TaskFacts>,
    pub(crate) specs: HashMap<SpecKey, Arc<AssignedSpec>>,
    pub(crate) files: BTreeMap<FileId, FileContent>,
}

impl ClusterView for FakeView {
    fn index(&self) -> u64 {
        self.index
    }
    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.clone()
    }
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).cloned()
    }
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.values().cloned().collect()
    }
    fn service(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.services.get(&id).cloned()
    }
    fn services(&self) -> Vec<Arc<Service>> {
        self.services.values().cloned().collect()
    }
    fn network(&self, id: NetworkId) -> Option<Arc<Network>> {
        self.networks.get(&id).cloned()
    }
    fn ingress(&self) -> Option<NetworkId> {
        self.networks.values().find(|network| network.spec.ingress).map(|network| network.id)
    }
    fn task_at(&self, handle: u32) -> Option<TaskFacts> {
        self.tasks.get(&handle).cloned()
    }
    fn task(&self, id: TaskId) -> Option<TaskFacts> {
        self.tasks.values().find(|task| task.id == id).cloned()
    }
    fn tasks_on_node(&self, node: NodeId) -> Vec<TaskFacts> {
        self.tasks.values().filter(|task| task.node == Some(node)).cloned().collect()
    }
    fn tasks_of_service(&self, service: ServiceId) -> Vec<TaskFacts> {
        self.tasks.values().filter(|task| task.service == Some(service)).cloned().collect()
    }
    fn tasks_without_service(&self) -> Vec<TaskFacts> {
        self.tasks.values().filter(|task| task.service.is_none()).cloned().collect()
    }
    fn spec(&self, key: SpecKey) -> Option<Arc<AssignedSpec>> {
        self.specs.get(&key).cloned()
    }
    fn file(&self, id: FileId) -> Option<FileContent> {
        self.files.get(&id).cloned()
    }
}

type Log = Arc<Mutex<Vec<(u64, Touched)>>>;

struct FakeWatch {
    log: Log,
    published: watch::Receiver<u64>,
    seen: u64,
}

#[async_trait]
impl ClusterWatch for FakeWatch {
    async fn next(&mut self) -> Option<Changes> {
        let seen = self.seen;
        self.published.wait_for(|index| *index > seen).await.ok()?;
        let mut all = Touched::default();
        for (index, touched) in self.log.lock().unwrap().iter().filter(|(index, _)| *index > seen) {
            self.seen = *index;
            all.tasks.extend(&touched.tasks);
            all.services.extend(&touched.services);
            all.networks.extend(&touched.networks);
            all.nodes.extend(&touched.nodes);
            all.cluster |= touched.cluster;
        }
        Some(Changes::Some(all))
    }
}

/// Keeps every version's changes, and what was proposed.
pub(crate) struct FakeStore {
    state: Mutex<FakeView>,
    log: Log,
    index: watch::Sender<u64>,
    pub(crate) batches: Mutex<Vec<Vec<StatusUpdate>>>,
    pub(crate) node_changes: Mutex<Vec<NodeChange>>,
    pub(crate) refuses: AtomicBool,
}

impl FakeStore {
    pub(crate) fn new() -> Arc<Self> {
        let store = Arc::new(Self {
            state: Mutex::default(),
            log: Log::default(),
            index: watch::Sender::new(0),
            batches: Mutex::default(),
            node_changes: Mutex::default(),
            refuses: AtomicBool::new(false),
        });
        store.state.lock().unwrap().cluster = Some(Arc::new(cluster()));
        store
    }

    pub(crate) fn read(&self) -> FakeView {
        self.state.lock().unwrap().clone()
    }

    /// One entry: changes the state, then tells of what was touched.
    pub(crate) fn entry(&self, change: impl FnOnce(&mut FakeView) -> Touched) {
        let index = {
            let mut state = self.state.lock().unwrap();
            let touched = change(&mut state);
            state.index += 1;
            self.log.lock().unwrap().push((state.index, touched));
            state.index
        };
        self.index.send_replace(index);
    }

    pub(crate) fn put_node(&self, node: Node) {
        self.entry(|view| {
            let id = node.id;
            view.nodes.insert(id, Arc::new(node));
            Touched { nodes: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn change_cluster(&self, change: impl FnOnce(&mut Cluster)) {
        self.entry(|view| {
            let mut cluster = view.cluster.as_deref().unwrap().clone();
            change(&mut cluster);
            cluster.meta.version.0 += 1;
            view.cluster = Some(Arc::new(cluster));
            Touched { cluster: true, ..Touched::default() }
        });
    }

    pub(crate) fn remove_node(&self, id: NodeId) {
        self.entry(|view| {
            view.nodes.remove(&id);
            Touched { nodes: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn put_service(&self, service: Service) {
        self.entry(|view| {
            let id = service.id;
            let key = SpecKey { service: id, version: service.spec_version };
            view.specs.insert(key, Arc::new(assigned_spec(&service)));
            view.services.insert(id, Arc::new(service));
            Touched { services: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn remove_service(&self, id: ServiceId) {
        self.entry(|view| {
            view.services.remove(&id);
            Touched { services: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn put_network(&self, network: Network) {
        self.entry(|view| {
            let id = network.id;
            view.networks.insert(id, Arc::new(network));
            Touched { networks: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn remove_network(&self, id: NetworkId) {
        self.entry(|view| {
            view.networks.remove(&id);
            Touched { networks: vec![id], ..Touched::default() }
        });
    }

    pub(crate) fn put_task(&self, task: TaskFacts) {
        self.entry(|view| touch(task.handle, view.tasks.insert(task.handle, task.clone()), Some(task)));
    }

    pub(crate) fn remove_task(&self, handle: u32) {
        self.entry(|view| touch(handle, view.tasks.remove(&handle), None));
    }

    pub(crate) fn change_task(&self, handle: u32, change: impl FnOnce(&mut TaskFacts)) {
        let mut task = self.read().tasks[&handle].clone();
        change(&mut task);
        self.put_task(task);
    }
}

fn touch(handle: u32, old: Option<TaskFacts>, new: Option<TaskFacts>) -> Touched {
    let service = new.as_ref().or(old.as_ref()).and_then(|task| task.service);
    let (old_node, new_node) = (old.and_then(|task| task.node), new.and_then(|task| task.node));
    Touched { tasks: vec![TouchedTask { handle, service, old_node, new_node }], ..Touched::default() }
}

#[async_trait]
impl ClusterStore for FakeStore {
    fn view(&self) -> Arc<dyn ClusterView> {
        Arc::new(self.read())
    }

    fn watch(&self) -> Box<dyn ClusterWatch> {
        let published = self.index.subscribe();
        let seen = *published.borrow();
        Box::new(FakeWatch { log: self.log.clone(), published, seen })
    }

    async fn report(&self, batch: Vec<StatusUpdate>) -> Result<(), ProposeError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ProposeError::Unavailable { reason: "no quorum".into() });
        }
        self.batches.lock().unwrap().push(batch.clone());
        for update in batch {
            let handle = self.read().task(update.task).map(|task| task.handle);
            if let Some(handle) = handle {
                self.change_task(handle, |task| (task.state, task.mesh) = (update.status.state, update.mesh));
            }
        }
        Ok(())
    }

    async fn change_node(&self, change: NodeChange) -> Result<(), ProposeError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(ProposeError::Unavailable { reason: "no quorum".into() });
        }
        self.node_changes.lock().unwrap().push(change.clone());
        let Some(node) = self.read().nodes.get(&change.node).cloned() else { return Ok(()) };
        let mut node = (*node).clone();
        (node.state, node.message) = (change.state, change.message);
        if let Some(description) = change.description {
            node.description = description;
        }
        node.address = change.address.or(node.address);
        self.put_node(node);
        Ok(())
    }
}

/// The agent's end of a session.
pub(crate) struct FakeAgent {
    pub(crate) to_manager: Option<mpsc::Sender<AgentMessage>>,
    pub(crate) from_manager: mpsc::Receiver<ManagerMessage>,
}

impl FakeAgent {
    pub(crate) fn connect() -> (Self, Transport) {
        let (to_manager, inbound) = mpsc::channel(64);
        let (outbound, from_manager) = mpsc::channel(1);
        let transport =
            Transport { inbound: Box::new(MemoryInbound(inbound)), outbound: Box::new(MemoryOutbound(outbound)) };
        (Self { to_manager: Some(to_manager), from_manager }, transport)
    }

    pub(crate) async fn send(&self, message: AgentMessage) {
        self.to_manager.as_ref().unwrap().send(message).await.unwrap();
    }

    /// The next message, or `None` when the session has ended.
    pub(crate) async fn next(&mut self) -> Option<ManagerMessage> {
        tokio::time::timeout(Duration::from_secs(600), self.from_manager.recv())
            .await
            .expect("a message in ten minutes")
    }

    /// The next set, other messages skipped.
    pub(crate) async fn set(&mut self) -> Assignments {
        loop {
            if let ManagerMessage::Assignments(set) = self.next().await.expect("the session goes on") {
                return set;
            }
        }
    }
}

struct MemoryInbound(mpsc::Receiver<AgentMessage>);
struct MemoryOutbound(mpsc::Sender<ManagerMessage>);

#[async_trait]
impl Inbound for MemoryInbound {
    async fn recv(&mut self) -> Result<Option<AgentMessage>, TransportError> {
        Ok(self.0.recv().await)
    }
}

#[async_trait]
impl Outbound for MemoryOutbound {
    async fn send(&mut self, message: ManagerMessage) -> Result<(), TransportError> {
        self.0.send(message).await.map_err(|_| TransportError::Broken { reason: "gone".into() })
    }
}

// ---- objects ----

pub(crate) fn cluster() -> Cluster {
    Cluster {
        id: ClusterId(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca: RootCa { certificates: String::new(), key: String::new() },
        join_tokens: JoinTokens::default(),
        address_pools: vec![],
        subnet_size: 24,
        data_path_port: 4789,
        format: 1,
        unlock: None,
        rotation: None,
        ingress_removed: false,
    }
}

pub(crate) fn node(id: u128) -> Node {
    Node {
        id: NodeId(id),
        meta: Meta::default(),
        spec: NodeSpec {
            annotations: Annotations::default(),
            role: NodeRole::Worker,
            availability: Availability::Active,
        },
        index: u16::try_from(id).unwrap(),
        description: description(id),
        state: NodeState::Ready,
        message: String::new(),
        address: Some(address(id)),
        manager: None,
    }
}

pub(crate) fn address(id: u128) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(id).unwrap()])
}

pub(crate) fn description(id: u128) -> NodeDescription {
    NodeDescription { hostname: format!("n{id}"), data_path: vec![address(id)], ..NodeDescription::default() }
}

pub(crate) fn network(id: u128) -> Network {
    Network {
        id: NetworkId(id),
        meta: Meta::default(),
        spec: NetworkSpec { annotations: named(&format!("net{id}")), ..NetworkSpec::default() },
        vni: Some(4096 + u32::try_from(id).unwrap()),
        subnets: vec![],
        pending_delete: false,
    }
}

fn named(name: &str) -> Annotations {
    Annotations { name: name.into(), ..Annotations::default() }
}

/// A service on `networks`; published in the mesh when `port` says so.
pub(crate) fn service(id: u128, networks: &[u128], port: Option<u16>) -> Service {
    let ports = port.map(|port| PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(port),
        mode: PublishMode::Ingress,
    });
    let ports: Vec<PortConfig> = ports.into_iter().collect();
    let vip = |network: &u128| VirtualIp {
        network: NetworkId(*network),
        address: format!("10.0.{network}.2/24").parse().unwrap(),
    };
    Service {
        id: ServiceId(id),
        meta: Meta::default(),
        spec: ServiceSpec {
            annotations: named(&format!("s{id}")),
            task: TaskSpec::default(),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            endpoint: None,
        },
        spec_version: 1,
        previous: None,
        endpoint: Endpoint {
            spec: Some(EndpointSpec { mode: EndpointMode::Vip, ports: ports.clone(), ..EndpointSpec::default() }),
            ports,
            virtual_ips: networks.iter().map(vip).collect(),
        },
        update_status: None,
        pending_delete: false,
        runs: None,
    }
}

fn assigned_spec(service: &Service) -> AssignedSpec {
    AssignedSpec {
        key: SpecKey { service: service.id, version: service.spec_version },
        service_name: service.spec.annotations.name.clone(),
        service_labels: Labels::default(),
        task: service.spec.task.clone(),
        ports: service.endpoint.ports.clone(),
    }
}

/// A task of a service on a node, assigned; its address ends in its handle on each network.
pub(crate) fn task(handle: u32, service: u128, on: u128, networks: &[u128]) -> TaskFacts {
    let attachment = |network: &u128| NetworkAttachment {
        network: NetworkId(*network),
        addresses: vec![format!("10.0.{network}.{}/24", 10 + handle).parse::<IpNet>().unwrap()],
        aliases: vec![],
    };
    TaskFacts {
        handle,
        id: TaskId(1000 + u128::from(handle)),
        service: Some(ServiceId(service)),
        name: None,
        node: Some(NodeId(on)),
        slot: handle,
        spec_version: 1,
        desired: TaskState::Running,
        state: TaskState::Assigned,
        attachments: networks.iter().map(attachment).collect(),
        mesh: None,
    }
}
