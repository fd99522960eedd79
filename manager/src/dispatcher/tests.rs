use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_identity::Identity;
use skep_proto::model::network::INGRESS_VNI;
use skep_proto::model::session::*;
use skep_proto::model::view::NetworkView;
use skep_proto::model::*;
use tokio::sync::watch;
use tokio::time::{Instant, advance, timeout};
use tokio_util::sync::CancellationToken;

use super::fake::*;
use super::ports::TaskFacts;
use super::*;

mod files;
mod keys;
mod over_grpc;
mod over_store;
mod properties;

const N1: NodeId = NodeId(1);
const LEADER: &str = "10.0.0.9:2377";

/// A leading manager with nodes 1 and 2, which are ready.
struct World {
    store: Arc<FakeStore>,
    dispatcher: Arc<Dispatcher>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let store = FakeStore::new();
        store.put_node(node(1));
        store.put_node(node(2));
        Self::with(store).await
    }

    async fn with(store: Arc<FakeStore>) -> Self {
        let leadership = watch::Sender::new(Leadership::Leading { term: 1 });
        let dispatcher =
            Arc::new(Dispatcher::new(store.clone(), leadership.subscribe(), Timing::default(), Timestamp(7)));
        let stop = CancellationToken::new();
        let (run, until) = (dispatcher.clone(), stop.clone());
        tokio::spawn(async move { run.run(until).await });
        eventually(|| dispatcher.is_leading()).await;
        Self { store, dispatcher, leadership, stop }
    }

    fn connect(&self, node: u128, role: NodeRole) -> FakeAgent {
        let (agent, transport) = FakeAgent::connect();
        let identity = Identity { node: NodeId(node), cluster: ClusterId(1), role };
        let dispatcher = self.dispatcher.clone();
        tokio::spawn(async move { dispatcher.serve(identity, address(node), transport).await });
        agent
    }

    /// A session past its hello.
    async fn agent(&self, node: u128) -> FakeAgent {
        let agent = self.connect(node, NodeRole::Worker);
        agent.send(hello(node)).await;
        agent
    }

    fn statuses(&self) -> Vec<Vec<(TaskId, TaskState)>> {
        let batches = self.store.batches.lock().unwrap();
        batches.iter().map(|batch| batch.iter().map(|u| (u.task, u.status.state)).collect()).collect()
    }

    fn node_states(&self) -> Vec<(NodeId, NodeState)> {
        self.store.node_changes.lock().unwrap().iter().map(|change| (change.node, change.state)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn hello(node: u128) -> AgentMessage {
    AgentMessage::Hello(Hello { description: description(node), last_index: 0 })
}

fn status(task: u32, state: TaskState) -> StatusReport {
    StatusReport {
        task: TaskId(1000 + u128::from(task)),
        status: TaskStatus {
            state,
            at: Timestamp(1),
            message: String::new(),
            error: String::new(),
            exit_code: None,
            host_ports: vec![],
        },
        vitals: TaskVitals { pid: task, ..TaskVitals::default() },
        mesh: None,
        unready: false,
    }
}

/// What an agent holds after the sets it got, as the agent applies them.
#[derive(Debug, Default, PartialEq)]
struct Held {
    tasks: BTreeMap<TaskId, AssignedTask>,
    specs: BTreeMap<SpecKey, Arc<AssignedSpec>>,
    view: NetworkView,
    files: BTreeMap<FileId, Option<FileContent>>,
}

impl Held {
    fn apply(&mut self, set: &Assignments) {
        if set.complete {
            *self = Self { specs: std::mem::take(&mut self.specs), ..Self::default() };
        }
        for change in set.changes.clone() {
            match change {
                AssignmentChange::PutSpec(spec) => drop(self.specs.insert(spec.key, spec)),
                AssignmentChange::PutTask(task) => {
                    assert!(self.specs.contains_key(&task.spec), "a task before its spec");
                    self.tasks.insert(task.id, task);
                }
                AssignmentChange::RemoveTask(id) => assert!(self.tasks.remove(&id).is_some()),
                AssignmentChange::PutPeer(peer) => drop(self.view.peers.insert(peer.node, peer)),
                AssignmentChange::RemovePeer(id) => assert!(self.view.peers.remove(&id).is_some()),
                AssignmentChange::PutNetwork(network) => drop(self.view.networks.insert(network.id, network)),
                AssignmentChange::RemoveNetwork(id) => assert!(self.view.networks.remove(&id).is_some()),
                AssignmentChange::PutService(service) => drop(self.view.services.insert(service.id, service)),
                AssignmentChange::RemoveService(id) => assert!(self.view.services.remove(&id).is_some()),
                AssignmentChange::PutEndpoint(end) => drop(self.view.endpoints.insert(end.task, end)),
                AssignmentChange::RemoveEndpoint(id) => assert!(self.view.endpoints.remove(&id).is_some()),
                AssignmentChange::PutFile(file) => drop(self.files.insert(file.id, file.content)),
                AssignmentChange::RemoveFile(id) => assert!(self.files.remove(&id).is_some()),
            }
        }
    }
}

async fn eventually(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_begins_with_welcome_managers_and_a_complete_set() {
    let w = World::new().await;
    let address = "10.0.0.9:2377".parse().unwrap();
    let manager = Some(node::ManagerMembership { raft_id: 9, address });
    w.store.put_node(Node { manager, ..node(9) });
    w.store.put_network(network(3));
    w.store.put_service(service(5, &[3], None));
    w.store.put_task(task(1, 5, 1, &[3]));
    let mut agent = w.agent(1).await;
    let welcome =
        Welcome { session: 7, heartbeat: Duration::from_secs(2), index: 1, data_path_port: 4789, mesh_removed: false };
    assert_eq!(agent.next().await, Some(ManagerMessage::Welcome(welcome)));
    let peer = ManagerPeer { node: NodeId(9), address };
    assert_eq!(agent.next().await, Some(ManagerMessage::Managers(vec![peer])));
    let Some(ManagerMessage::Assignments(set)) = agent.next().await else { panic!("no set") };
    assert!(set.complete && set.index == w.store.read().index);
    let mut held = Held::default();
    held.apply(&set);
    assert_eq!(held.tasks.keys().copied().collect::<Vec<_>>(), [TaskId(1001)]);
    assert_eq!(held.view.peers.len(), 3);
    assert_eq!(held.view.networks.keys().copied().collect::<Vec<_>>(), [NetworkId(3)]);
    assert_eq!(held.view.services.keys().copied().collect::<Vec<_>>(), [ServiceId(5)]);
    assert_eq!(held.view.endpoints[&TaskId(1001)].name, format!("s5.1.{}", TaskId(1001)));
}

#[tokio::test(start_paused = true)]
async fn a_routing_mesh_that_the_operator_made_is_told_to_nodes_without_tasks() {
    let w = World::new().await;
    w.store.put_network(network(3));
    let mut agent = w.agent(1).await;
    let mut held = Held::default();
    held.apply(&agent.set().await);
    assert_eq!(held.view.ingress(), None);
    let mut mesh = network(4);
    (mesh.spec.ingress, mesh.vni) = (true, Some(INGRESS_VNI));
    mesh.spec.driver.options.insert("encrypted".into(), "false".into());
    w.store.put_network(mesh);
    held.apply(&agent.set().await);
    assert!(held.view.ingress().is_some_and(|mesh| !mesh.encrypted), "{:?}", held.view.networks);
    let mut later = w.agent(2).await;
    assert!(later.set().await.changes.iter().any(|change| matches!(change, AssignmentChange::PutNetwork(_))));
    w.store.remove_network(NetworkId(4));
    held.apply(&agent.set().await);
    assert_eq!(held.view.networks.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_differences_follow_and_a_spec_is_sent_once() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    let mut agent = w.agent(1).await;
    agent.set().await;
    w.store.put_task(task(1, 5, 1, &[]));
    let first = agent.set().await;
    assert!(matches!(&first.changes[..], [AssignmentChange::PutSpec(_), AssignmentChange::PutTask(_)]), "{first:?}");
    w.store.put_task(task(2, 5, 1, &[]));
    let second = agent.set().await;
    assert!(matches!(&second.changes[..], [AssignmentChange::PutTask(task)] if task.id == TaskId(1002)));
    assert!(!second.complete && second.index > first.index);
    // Nothing that this node is told changes: nothing is sent. A task of another node, no network in common.
    w.store.put_task(task(3, 5, 2, &[]));
    w.store.change_task(1, |task| task.desired = TaskState::Shutdown);
    let third = agent.set().await;
    assert!(matches!(&third.changes[..], [AssignmentChange::PutTask(task)] if task.desired == TaskState::Shutdown));
    w.store.remove_task(1);
    assert_eq!(agent.set().await.changes, [AssignmentChange::RemoveTask(TaskId(1001))]);
}

#[tokio::test(start_paused = true)]
async fn a_position_that_is_used_again_removes_the_former_task() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    w.store.put_task(task(1, 5, 1, &[]));
    let mut agent = w.agent(1).await;
    agent.set().await;
    w.store.remove_task(1);
    w.store.put_task(TaskFacts { id: TaskId(77), ..task(1, 5, 1, &[]) });
    let set = agent.set().await;
    assert!(
        matches!(&set.changes[..], [AssignmentChange::RemoveTask(TaskId(1001)), AssignmentChange::PutTask(task)] if task.id == TaskId(77)),
        "{set:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn endpoints_come_with_the_first_task_on_a_network_and_go_with_the_last() {
    let w = World::new().await;
    w.store.put_network(network(3));
    w.store.put_service(service(5, &[3], None));
    w.store.put_service(service(6, &[3], None));
    w.store.put_task(TaskFacts { state: TaskState::Running, ..task(1, 5, 2, &[3]) });
    let mut agent = w.agent(1).await;
    let mut held = Held::default();
    held.apply(&agent.set().await);
    assert_eq!(held.view, NetworkView { peers: held.view.peers.clone(), ..NetworkView::default() });
    w.store.put_task(task(2, 6, 1, &[3]));
    held.apply(&agent.set().await);
    assert_eq!(held.view.endpoints.keys().copied().collect::<Vec<_>>(), [TaskId(1001), TaskId(1002)]);
    assert!(held.view.endpoints[&TaskId(1001)].serving && !held.view.endpoints[&TaskId(1002)].serving);
    // A change of the other node's task is heard of now: it drains, then it ends.
    w.store.change_task(1, |task| task.desired = TaskState::Shutdown);
    held.apply(&agent.set().await);
    assert!(!held.view.endpoints[&TaskId(1001)].serving);
    w.store.change_task(1, |task| task.state = TaskState::Shutdown);
    held.apply(&agent.set().await);
    assert_eq!(held.view.endpoints.keys().copied().collect::<Vec<_>>(), [TaskId(1002)]);
    w.store.change_task(2, |task| task.state = TaskState::Complete);
    held.apply(&agent.set().await);
    assert_eq!((held.view.networks.len(), held.view.services.len(), held.view.endpoints.len()), (0, 0, 0));
    assert_eq!(held.tasks[&TaskId(1002)].observed, TaskState::Complete);
}

#[tokio::test(start_paused = true)]
async fn every_node_knows_published_services_and_where_their_tasks_are() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], Some(8080)));
    let mut agent = w.agent(1).await;
    let mut held = Held::default();
    held.apply(&agent.set().await);
    assert_eq!(held.view.services[&ServiceId(5)].ports[0].published, Some(8080));
    w.store.put_task(task(1, 5, 2, &[]));
    let mesh: std::net::IpAddr = "100.64.2.5".parse().unwrap();
    w.store.change_task(1, |task| (task.state, task.mesh) = (TaskState::Running, Some(mesh)));
    held.apply(&agent.set().await);
    assert_eq!(held.view.endpoints[&TaskId(1001)].mesh, Some(mesh));
    w.store.remove_service(ServiceId(5));
    held.apply(&agent.set().await);
    assert_eq!((held.view.services.len(), held.view.endpoints.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_goes_gives_up_its_name_while_its_tasks_drain() {
    let w = World::new().await;
    w.store.put_network(network(3));
    w.store.put_service(service(5, &[3], None));
    w.store.put_task(TaskFacts { state: TaskState::Running, ..task(1, 5, 2, &[3]) });
    w.store.put_service(service(6, &[3], None));
    w.store.put_task(task(2, 6, 1, &[3]));
    let mut agent = w.agent(1).await;
    let mut held = Held::default();
    held.apply(&agent.set().await);
    assert_eq!(held.view.services.len(), 2);
    w.store.put_service(Service { pending_delete: true, ..service(5, &[3], None) });
    held.apply(&agent.set().await);
    assert_eq!(held.view.services.keys().copied().collect::<Vec<_>>(), [ServiceId(6)]);
    assert!(held.view.endpoints.contains_key(&TaskId(1001)));
    w.store.change_task(1, |task| task.state = TaskState::Shutdown);
    held.apply(&agent.set().await);
    assert!(!held.view.endpoints.contains_key(&TaskId(1001)));
}

#[tokio::test(start_paused = true)]
async fn statuses_are_taken_from_a_node_for_its_own_tasks_only_and_only_forward() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    w.store.put_task(task(1, 5, 1, &[]));
    w.store.put_task(task(2, 5, 2, &[]));
    w.store.put_task(TaskFacts { state: TaskState::Running, ..task(3, 5, 1, &[]) });
    w.store.put_task(task(4, 5, 1, &[]));
    let agent = w.agent(1).await;
    let reports = vec![
        status(1, TaskState::Running),
        status(2, TaskState::Failed),   // another node's
        status(3, TaskState::Ready),    // backwards
        status(4, TaskState::Orphaned), // not an agent's to say
        status(9, TaskState::Running),  // no such task
    ];
    agent.send(AgentMessage::Statuses(reports)).await;
    eventually(|| !w.statuses().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(w.statuses(), [[(TaskId(1001), TaskState::Running)]]);
    // Vitals of what it may speak for, also when the state is known; nothing of others.
    let pids = [1, 2, 3, 4].map(|n| w.dispatcher.vitals(TaskId(1000 + n)).map(|vitals| vitals.pid));
    assert_eq!(pids, [Some(1), None, Some(3), None]);
}

#[tokio::test(start_paused = true)]
async fn a_start_costs_one_status_and_a_slow_one_tells_where_it_stands() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    w.store.put_task(task(1, 5, 1, &[]));
    w.store.put_task(task(2, 5, 1, &[]));
    let agent = w.agent(1).await;
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Starting, TaskState::Running] {
        agent.send(AgentMessage::Statuses(vec![status(1, state)])).await;
    }
    agent.send(AgentMessage::Statuses(vec![status(2, TaskState::Preparing)])).await;
    eventually(|| w.statuses().len() == 2).await;
    assert_eq!(w.statuses(), [[(TaskId(1001), TaskState::Running)], [(TaskId(1002), TaskState::Preparing)]]);
}

#[tokio::test(start_paused = true)]
async fn statuses_of_all_nodes_gather_into_one_proposal() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    for handle in 0..600 {
        w.store.put_task(TaskFacts {
            handle,
            id: TaskId(1000 + u128::from(handle)),
            ..task(1, 5, 1 + u128::from(handle % 2), &[])
        });
    }
    let agents = [w.agent(1).await, w.agent(2).await];
    for (n, agent) in agents.iter().enumerate() {
        let own = (0..600).filter(|handle| handle % 2 == n as u32).map(|handle| status(handle, TaskState::Running));
        agent.send(AgentMessage::Statuses(own.collect())).await;
    }
    eventually(|| w.statuses().iter().map(Vec::len).sum::<usize>() == 600).await;
    assert_eq!(w.statuses().iter().map(Vec::len).collect::<Vec<_>>(), [500, 100]);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_could_not_be_proposed_is_proposed_again() {
    let w = World::new().await;
    w.store.put_service(service(5, &[], None));
    w.store.put_task(task(1, 5, 1, &[]));
    let agent = w.agent(1).await;
    w.store.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    agent.send(AgentMessage::Statuses(vec![status(1, TaskState::Running)])).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(w.statuses().is_empty());
    agent.send(AgentMessage::Statuses(vec![status(1, TaskState::Failed)])).await;
    w.store.refuses.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually(|| !w.statuses().is_empty()).await;
    assert_eq!(w.statuses(), [[(TaskId(1001), TaskState::Failed)]]);
}

#[tokio::test(start_paused = true)]
async fn three_missed_heartbeats_make_a_node_down_and_heartbeats_cost_no_proposal() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        agent.send(AgentMessage::Heartbeat).await;
    }
    // Node 2 never came, and was given the grace period.
    assert_eq!(w.node_states(), [(NodeId(2), NodeState::Down)]);
    let silent = Instant::now();
    while agent.next().await.is_some() {}
    assert_eq!(silent.elapsed().as_secs(), 6);
    eventually(|| w.node_states().contains(&(N1, NodeState::Down))).await;
    assert_eq!(w.store.node_changes.lock().unwrap().last().unwrap().message, "heartbeat failure");
    // It comes back.
    let mut agent = w.agent(1).await;
    agent.set().await;
    eventually(|| w.node_states().last() == Some(&(N1, NodeState::Ready))).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_heartbeat_is_told_and_what_was_told_is_waited_for() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    let period = Duration::from_secs(10);
    w.store.change_cluster(|cluster| cluster.spec.heartbeat_period = period);
    let told = agent.next().await;
    assert!(matches!(&told, Some(ManagerMessage::Welcome(welcome)) if welcome.heartbeat == period), "{told:?}");
    let silent = Instant::now();
    while agent.next().await.is_some() {}
    assert_eq!(silent.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_node_renews_its_certificate_once_for_each_root() {
    use crate::ca::{begin_rotation, root::create_root, trust};
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    let old = create_root(ClusterId(1), Timestamp(0)).unwrap();
    let rotation = begin_rotation(ClusterId(1), &old, Timestamp(0), &mut rand::rng()).unwrap();
    w.store.change_cluster(|cluster| (cluster.root_ca, cluster.rotation) = (old, Some(rotation)));
    let renew = Some(ManagerMessage::RenewCertificate { role: NodeRole::Worker });
    assert_eq!(agent.next().await, renew);
    let cluster = w.store.read().cluster.unwrap();
    let followed = NodeDescription { trust: trust::wanted(&cluster), ..description(1) };
    agent.send(AgentMessage::Describe(followed)).await;
    eventually(|| w.store.read().nodes[&N1].description.trust.is_some()).await;
    // The old root goes: the node is to trust the new one alone.
    w.store.change_cluster(|cluster| cluster.root_ca = cluster.rotation.take().unwrap().root);
    loop {
        match agent.next().await {
            Some(ManagerMessage::Assignments(_)) => {}
            told => break assert_eq!(told, renew),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_alone_does_not_make_a_node_down() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    drop(agent);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut again = w.agent(1).await;
    again.set().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(w.node_states(), []);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_for_nodes_longer_before_it_calls_them_down() {
    let begun = Instant::now();
    let w = World::new().await;
    eventually(|| w.node_states().len() == 2).await;
    // Grace, then three heartbeats.
    assert_eq!(begun.elapsed().as_secs(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_down_at_once() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    agent.send(AgentMessage::Leaving).await;
    let begun = Instant::now();
    eventually(|| w.node_states() == [(N1, NodeState::Down)]).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_a_node_tells_of_itself_is_recorded_when_it_changes() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    assert_eq!(w.node_states(), [], "the record was right already");
    let bigger = NodeDescription { memory: 1 << 30, ..description(1) };
    agent.send(AgentMessage::Describe(bigger.clone())).await;
    eventually(|| w.store.read().nodes[&N1].description == bigger).await;
    // Somebody calls it down though it has a session: it says again that it is ready.
    w.store.put_node(Node { state: NodeState::Down, description: bigger, ..node(1) });
    eventually(|| w.store.read().nodes[&N1].state == NodeState::Ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_session_of_a_node_ends_the_older() {
    let w = World::new().await;
    let mut older = w.agent(1).await;
    older.set().await;
    let mut newer = w.agent(1).await;
    newer.set().await;
    while older.next().await.is_some() {}
    w.store.put_service(service(5, &[], None));
    w.store.put_task(task(1, 5, 1, &[]));
    assert!(!newer.set().await.changes.is_empty());
    assert_eq!(w.dispatcher.connected(), [N1]);
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_does_not_lead_names_the_leader() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    let leader = Some(LEADER.parse().unwrap());
    w.leadership.send_replace(Leadership::Following { leader });
    // The session that is open, and a new one.
    let mut last = None;
    while let Some(message) = agent.next().await {
        last = Some(message);
    }
    assert_eq!(last, Some(ManagerMessage::Redirect { to: leader }));
    let mut agent = w.agent(1).await;
    assert_eq!(agent.next().await, Some(ManagerMessage::Redirect { to: leader }));
    assert_eq!(agent.next().await, None);
    // It leads again, in another term.
    w.leadership.send_replace(Leadership::Leading { term: 3 });
    eventually(|| w.dispatcher.is_leading()).await;
    w.agent(1).await.set().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_seen_more_is_sent_elsewhere() {
    let w = World::new().await;
    let mut agent = w.connect(1, NodeRole::Worker);
    let last_index = w.store.read().index + 1;
    agent.send(AgentMessage::Hello(Hello { description: description(1), last_index })).await;
    assert_eq!(agent.next().await, Some(ManagerMessage::Redirect { to: None }));
    assert_eq!(agent.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_removed_loses_its_session_and_gets_no_other() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    w.store.remove_node(N1);
    while agent.next().await.is_some() {}
    let mut agent = w.agent(1).await;
    assert_eq!(agent.next().await, None);
    assert_eq!(w.dispatcher.connected(), []);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_just_joined_may_be_faster_than_its_record() {
    let w = World::new().await;
    let mut agent = w.agent(5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    w.store.put_node(Node { state: NodeState::Unknown, ..node(5) });
    agent.set().await;
    eventually(|| w.node_states().contains(&(NodeId(5), NodeState::Ready))).await;
}

#[tokio::test(start_paused = true)]
async fn a_promotion_asks_for_a_new_certificate_and_a_demotion_waits_for_raft() {
    let w = World::new().await;
    let mut agent = w.agent(1).await;
    agent.set().await;
    let promoted = |manager| {
        let spec = NodeSpec { role: NodeRole::Manager, ..node(1).spec };
        Node { spec, manager, ..node(1) }
    };
    w.store.put_node(promoted(None));
    assert_eq!(agent.next().await, Some(ManagerMessage::RenewCertificate { role: NodeRole::Manager }));
    let manager = Some(node::ManagerMembership { raft_id: 4, address: "10.0.0.1:2377".parse().unwrap() });
    w.store.put_node(promoted(manager));
    assert!(matches!(agent.next().await, Some(ManagerMessage::Managers(_))));
    w.store.put_node(Node { manager, ..node(1) });
    assert!(timeout(Duration::from_secs(1), agent.next()).await.is_err(), "still in the Raft group");
    w.store.put_node(node(1));
    assert!(matches!(agent.next().await, Some(ManagerMessage::Managers(_))));
    assert_eq!(agent.next().await, Some(ManagerMessage::RenewCertificate { role: NodeRole::Worker }));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_hello_or_takes_nothing_is_dropped() {
    let w = World::new().await;
    let mut silent = w.connect(1, NodeRole::Worker);
    let begun = Instant::now();
    assert_eq!(silent.next().await, None);
    assert_eq!(begun.elapsed().as_secs(), 5);
    // The channel to this one holds a single message; it reads none but goes on beating.
    let stuck = w.agent(2).await;
    w.store.put_service(service(5, &[], None));
    eventually(|| w.dispatcher.connected() == [NodeId(2)]).await;
    for n in 0..10 {
        w.store.put_task(task(n, 5, 2, &[]));
        advance(Duration::from_secs(2)).await;
        if stuck.to_manager.as_ref().unwrap().send(AgentMessage::Heartbeat).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually(|| w.dispatcher.connected().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_is_asked_for_streams_on_its_session() {
    let w = World::new().await;
    let open = OpenStream { manager: LEADER.parse().unwrap(), nonce: [7; 16] };
    assert_eq!(w.dispatcher.ask_stream(N1, open.clone()), Err(NoSession::NotConnected(N1)));
    let mut agent = w.agent(1).await;
    agent.set().await;
    w.dispatcher.ask_stream(N1, open.clone()).unwrap();
    assert_eq!(agent.next().await, Some(ManagerMessage::OpenStream(open)));
}
