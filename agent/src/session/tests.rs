//! The whole agent against managers and a node in memory, on a paused clock.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use rand::SeedableRng;
use redb::Database;
use skep_proto::model::{TaskId, TaskState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::{FakeManagers, peers};
use super::*;
use crate::agent::{Agent, AgentDeps};
use crate::executor::fake::FakeNode;
use crate::executor::files::Files;
use crate::network::{Network, NetworkError};
use crate::session::streams::Http;
use crate::state::{self, Placement};
use crate::test_support::{NODE, Noon, address, database, task};

/// A network that is always as it should be.
struct NoNetwork;

#[async_trait::async_trait]
impl Network for NoNetwork {
    async fn apply(&self, _: Arc<skep_proto::model::view::NetworkView>) -> Result<(), NetworkError> {
        Ok(())
    }
}

async fn echo_path(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(request.uri().path().to_owned()))
}

/// An agent on a node, with its managers; the parts outlive the agent.
pub(crate) struct World {
    pub(crate) managers: Arc<FakeManagers>,
    pub(crate) node: Arc<FakeNode>,
    database: Arc<Database>,
    agent: Option<Agent>,
    cancel: CancellationToken,
    _description: watch::Sender<NodeDescription>,
    described: watch::Receiver<NodeDescription>,
}

impl World {
    pub(crate) fn new(slowness: Duration) -> Self {
        let (description, described) = watch::channel(NodeDescription::default());
        let mut world = Self {
            managers: FakeManagers::new(),
            node: FakeNode::new(slowness),
            database: database(),
            agent: None,
            cancel: CancellationToken::new(),
            _description: description,
            described,
        };
        world.start();
        world
    }

    pub(crate) fn start(&mut self) {
        let state = state::with_database(Arc::clone(&self.database), "memory", Placement::Inline).unwrap();
        let deps = AgentDeps {
            executor: Arc::clone(&self.node) as _,
            network: Arc::new(NoNetwork),
            transport: Arc::new(Arc::clone(&self.managers)),
            streams: Arc::new(Http(tower::service_fn(echo_path))),
            description: self.described.clone(),
            clock: Arc::new(Noon),
            rng: StdRng::seed_from_u64(7),
            files: Files::default(),
        };
        self.cancel = CancellationToken::new();
        self.agent = Some(Agent::start_with(NODE, vec![address(1), address(2)], state, deps, self.cancel.clone()));
    }

    /// As by SIGKILL: nothing is told, nothing is flushed.
    pub(crate) async fn crash(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill().await;
        }
    }

    pub(crate) async fn eventually(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {what}");
    }

    fn status(&self) -> SessionStatus {
        self.agent.as_ref().unwrap().status().borrow().clone()
    }

    fn hellos(&self) -> Vec<(SocketAddr, u64)> {
        self.managers.inner().hellos.clone()
    }
}

fn world() -> World {
    World::new(Duration::from_millis(20))
}

#[tokio::test(start_paused = true)]
async fn an_assigned_task_runs_and_is_reported_once_it_does() {
    let world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    assert!(world.node.is_running(1));
    // It took 60 ms: what was passed on the way is not worth a message.
    assert_eq!(world.managers.inner().reported[&TaskId(1)], [TaskState::Running]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_tasks_are_reported_in_few_messages() {
    let world = world();
    (1..=100).for_each(|id| world.managers.assign(task(id, TaskState::Running)));
    world.eventually("all running", |w| (1..=100).all(|id| w.managers.observed(id) == Some(TaskState::Running))).await;
    assert!(world.managers.inner().status_messages <= 6, "{}", world.managers.inner().status_messages);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_as_often_as_the_manager_asked() {
    let world = world();
    world.eventually("session", |w| w.status().manager.is_some()).await;
    let before = world.managers.inner().heartbeats;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let beats = world.managers.inner().heartbeats - before;
    assert!((9..=11).contains(&beats), "{beats}");
}

#[tokio::test(start_paused = true)]
async fn a_welcome_in_the_middle_of_a_session_changes_the_heartbeat() {
    let world = world();
    world.eventually("session", |w| w.status().manager.is_some()).await;
    let heartbeat = Duration::from_millis(500);
    let welcome = Welcome { session: 1, heartbeat, index: 1, data_path_port: 4789, mesh_removed: false };
    world.managers.change(|inner| inner.broadcast.push(ManagerMessage::Welcome(welcome.clone())));
    world.eventually("told", |w| w.status().welcome == Some(welcome.clone())).await;
    let before = world.managers.inner().heartbeats;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let beats = world.managers.inner().heartbeats - before;
    assert!((39..=41).contains(&beats), "{beats}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_manager_is_replaced_by_the_next_one_and_tasks_go_on() {
    let world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    let first = world.status().manager.unwrap();
    world.managers.change(|inner| inner.down.insert(first));
    world.eventually("another manager", |w| w.status().manager.is_some_and(|now| now != first)).await;
    assert!(world.node.is_running(1));
    assert_eq!(world.node.starts().values().sum::<u32>(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_followed() {
    let world = World::new(Duration::ZERO);
    world.managers.change(|inner| {
        inner.redirects.insert(address(1), Some(address(9)));
        inner.redirects.insert(address(2), Some(address(9)));
    });
    world.eventually("redirected", |w| w.status().manager == Some(address(9))).await;
}

#[tokio::test(start_paused = true)]
async fn managers_learnt_in_a_session_are_asked_after_a_restart() {
    let mut world = world();
    world.managers.change(|inner| inner.broadcast.push(ManagerMessage::Managers(peers(&[address(5)]))));
    world.eventually("session", |w| w.status().manager.is_some()).await;
    world.managers.change(|inner| inner.broadcast.push(ManagerMessage::Managers(peers(&[address(6)]))));
    world.eventually("learnt", |w| w.status().managers == peers(&[address(6)])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.crash().await;
    world.start();
    world.eventually("asked", |w| w.status().manager == Some(address(6))).await;
}

#[tokio::test(start_paused = true)]
async fn assignments_older_than_those_seen_are_refused() {
    let world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    let first = world.status().manager.unwrap();
    let second = if first == address(1) { address(2) } else { address(1) };
    // The other manager is behind: it does not know the task yet.
    world.managers.change(|inner| {
        inner.lagging.insert(second, 3);
        inner.down.insert(first);
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(world.node.is_running(1));
    assert!(world.status().error.contains("the manager is at index 3"), "{}", world.status().error);
    world.managers.change(|inner| inner.lagging.clear());
    world.eventually("accepted once it caught up", |w| w.status().manager == Some(second)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_dying_leader_took_and_forgot_is_reported_again() {
    let world = world();
    world.managers.change(|inner| inner.forgetful = true);
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("reported", |w| w.managers.inner().last.values().any(|s| s.state == TaskState::Running)).await;
    world.managers.change(|inner| inner.forgetful = false);
    world.eventually("known", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_manager_heard_of_is_reported_after_a_restart() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    world.managers.change(|inner| inner.down.extend([address(1), address(2)]));
    world.node.end(TaskId(1), crate::executor::Exit { code: 3, ..Default::default() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.crash().await;
    world.node.lose(TaskId(1));
    world.start();
    world.managers.change(|inner| inner.down.clear());
    world.eventually("failed", |w| w.managers.observed(1) == Some(TaskState::Failed)).await;
    let last = world.managers.inner().last[&TaskId(1)].clone();
    assert_eq!((last.exit_code, last.error.as_str()), (Some(3), "task: non-zero exit (3)"));
}

#[tokio::test(start_paused = true)]
async fn without_managers_a_restarted_agent_takes_its_tasks_over_and_does_nothing_to_them() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    let before = world.node.log(1);
    world.managers.change(|inner| inner.down.extend([address(1), address(2)]));
    world.crash().await;
    world.start();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.node.is_running(1));
    assert_eq!(world.node.log(1), before);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_has_everything_resumes_by_index() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let index = world.managers.inner().index;
    world.crash().await;
    world.start();
    world.eventually("hello", |w| w.hellos().len() == 2).await;
    assert_eq!(world.hellos()[1].1, index);
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_was_never_sent_makes_the_agent_ask_for_everything() {
    let world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    let mut orphan = task(2, TaskState::Running);
    orphan.spec.version = 99;
    let index = world.managers.inner().index;
    let set = Assignments {
        index,
        complete: false,
        changes: vec![skep_proto::model::session::AssignmentChange::PutTask(orphan)],
    };
    world.managers.change(|inner| inner.broadcast.push(ManagerMessage::Assignments(set)));
    world.eventually("second hello", |w| w.hellos().len() >= 2).await;
    assert_eq!(world.hellos().last().unwrap().1, 0);
    assert!(world.node.is_running(1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_a_manager_asks_for_is_dialled_with_its_nonce_and_served() {
    let world = world();
    world.eventually("session", |w| w.status().manager.is_some()).await;
    let open = OpenStream { manager: address(3), nonce: [4; 16] };
    world.managers.change(|inner| inner.broadcast.push(ManagerMessage::OpenStream(open)));
    world.eventually("attached", |w| !w.managers.inner().attached.is_empty()).await;
    let (manager, nonce, mut stream) = world.managers.inner().attached.remove(0);
    assert_eq!((manager, nonce), (address(3), [4; 16]));
    stream.write_all(b"GET /containers/json HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK)), "{answer}");
    assert!(answer.ends_with("/containers/json"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_asked_for_through_the_status() {
    let world = world();
    world.eventually("session", |w| w.status().manager.is_some()).await;
    let message = ManagerMessage::RenewCertificate { role: NodeRole::Manager };
    world.managers.change(|inner| inner.broadcast.push(message));
    world.eventually("asked", |w| w.status().renew == (1, Some(NodeRole::Manager))).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_leaves_its_containers_running() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    world.cancel.cancel();
    world.agent.take().unwrap().stopped().await;
    assert!(world.node.is_running(1));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_says_so_and_removes_its_tasks() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    world.agent.take().unwrap().leave(Duration::from_secs(30)).await;
    assert!(world.node.task(1).is_none());
    assert!(world.managers.inner().left);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_managers_can_leave_too() {
    let mut world = world();
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("running", |w| w.managers.observed(1) == Some(TaskState::Running)).await;
    world.managers.change(|inner| inner.down.extend([address(1), address(2)]));
    world.eventually("no session", |w| w.status().manager.is_none()).await;
    let began = Instant::now();
    world.agent.take().unwrap().leave(Duration::from_secs(30)).await;
    assert!(world.node.task(1).is_none());
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// Fails a few times, then keeps what it was given.
struct SlowNetwork(std::sync::Mutex<(u32, Vec<Arc<skep_proto::model::view::NetworkView>>)>);

#[async_trait::async_trait]
impl Network for SlowNetwork {
    async fn apply(&self, view: Arc<skep_proto::model::view::NetworkView>) -> Result<(), NetworkError> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut inner = self.0.lock().unwrap();
        if inner.0 > 0 {
            inner.0 -= 1;
            return Err(NetworkError("netlink: device or resource busy".into()));
        }
        inner.1.push(view);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_network_follows_the_last_view_through_bursts_failures_and_restarts() {
    use skep_proto::model::session::AssignmentChange;
    use skep_proto::model::view::Peer;

    let world = World::new(Duration::ZERO);
    world.eventually("session", |w| w.status().manager.is_some()).await;
    let network = Arc::new(SlowNetwork(std::sync::Mutex::new((3, Vec::new()))));
    let cancel = CancellationToken::new();
    let desired = Arc::clone(world.agent.as_ref().unwrap().desired());
    let running = tokio::spawn(crate::network::run(Arc::clone(&network) as _, Arc::clone(&desired), cancel.clone()));
    for id in 1..=50 {
        let peer = Peer {
            node: skep_proto::model::NodeId(id),
            index: 1,
            data_path: Vec::new(),
            wireguard: None,
            ipv4_only: false,
        };
        let index = world.managers.inner().index;
        let set = Assignments { index, complete: false, changes: vec![AssignmentChange::PutPeer(peer)] };
        desired.apply(set).await.unwrap();
    }
    world.eventually("applied", |_| network.0.lock().unwrap().1.last() == Some(&desired.view())).await;
    assert_eq!(desired.view().peers.len(), 50);
    assert!(network.0.lock().unwrap().1.len() <= 3, "a burst costs few passes");
    cancel.cancel();
    running.await.unwrap();
}
