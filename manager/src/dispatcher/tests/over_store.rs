//! The dispatcher over the real store, whose log is a function call.

use std::sync::Mutex;

use skep_identity::Revoked;
use skep_proto::model::cluster::{JoinTokens, RootCa};

use super::super::over_store::Replicated;
use super::*;
use crate::ca::{StoreRoles, refuse_removed};
use crate::control::{Propose, ProposeError};
use crate::raft::machine::Machine;
use crate::rpc::Roles;
use crate::store::{Change, Entry, Group, Outcome, Reference, Replica, Store};

/// Commits at once.
struct Log {
    replica: Mutex<(Replica, u64)>,
    store: Arc<Store>,
}

impl Log {
    fn new() -> Arc<Self> {
        let (replica, store) = Replica::new();
        let log = Arc::new(Self { replica: Mutex::new((replica, 0)), store });
        log.commit(Change::create(&Cluster {
            root_ca: RootCa { certificates: "-".into(), key: "-".into() },
            join_tokens: JoinTokens::default(),
            ..cluster()
        }));
        log
    }

    fn entry(&self, group: Group) -> Outcome {
        let (replica, index) = &mut *self.replica.lock().unwrap();
        *index += 1;
        let entry = Entry { at_ms: 1000 + *index, proposer: NodeId(9), groups: vec![group] };
        let reply = replica.apply(*index, &entry.encode()).unwrap();
        replica.publish();
        let outcomes: Vec<Outcome> = postcard::from_bytes(&reply).unwrap();
        outcomes.into_iter().next().unwrap()
    }

    fn commit(&self, change: Change) -> Outcome {
        let outcome = self.entry(Group::of(change.clone()));
        assert!(matches!(outcome, Outcome::Applied { .. }), "{change:?}: {outcome:?}");
        outcome
    }

    /// A task of service 5 on node `on`, as planners make it.
    fn assigned(&self, slot: u32, on: u128) -> TaskId {
        let state = self.store.view();
        let service = state.services().reference(ServiceId(5)).unwrap();
        let spec_version = state.services().get(ServiceId(5)).unwrap().spec_version;
        let id = TaskId(1000 + u128::from(slot));
        let create = Change::CreateTask {
            id,
            service,
            spec_version,
            slot,
            node: None,
            desired: TaskState::Running,
            start_ms: 0,
            restarts: vec![],
            after: None,
        };
        self.commit(create);
        let task = self.store.view().reference(id).unwrap();
        let version = || self.store.view().row(task).unwrap().version;
        self.commit(Change::Allocate { task, if_version: version(), addresses: vec![] });
        let node = self.store.view().nodes().reference(NodeId(on)).unwrap();
        self.commit(Change::Assign { task, if_version: version(), node });
        id
    }
}

#[async_trait::async_trait]
impl Propose for Log {
    async fn propose(&self, group: Group) -> Result<Outcome, ProposeError> {
        Ok(self.entry(group))
    }
}

/// A leading dispatcher over `log`, with nodes 1 and 2 and service 5, which is published on port 8080.
async fn world(log: &Arc<Log>) -> (Arc<Dispatcher>, watch::Sender<Leadership>) {
    log.commit(Change::create(&node(1)));
    log.commit(Change::create(&node(2)));
    log.commit(Change::create(&service(5, &[], Some(8080))));
    let store = Arc::new(Replicated::new(log.store.clone(), log.clone()));
    let leadership = watch::Sender::new(Leadership::Leading { term: 1 });
    let dispatcher = Arc::new(Dispatcher::new(store, leadership.subscribe(), Timing::default(), Timestamp(1)));
    let run = dispatcher.clone();
    tokio::spawn(async move { run.run(CancellationToken::new()).await });
    eventually(|| dispatcher.is_leading()).await;
    (dispatcher, leadership)
}

fn connect(dispatcher: &Arc<Dispatcher>, node: u128) -> FakeAgent {
    let (agent, transport) = FakeAgent::connect();
    let identity = Identity { node: NodeId(node), cluster: ClusterId(1), role: NodeRole::Worker };
    let dispatcher = dispatcher.clone();
    tokio::spawn(async move { dispatcher.serve(identity, address(node), transport).await });
    agent
}

async fn until(agent: &mut FakeAgent, held: &mut Held, done: impl Fn(&Held) -> bool) {
    while !done(held) {
        held.apply(&agent.set().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_out_and_its_status_and_mesh_address_come_back_for_all() {
    let log = Log::new();
    let (dispatcher, _leadership) = world(&log).await;
    let (mut one, mut two) = (connect(&dispatcher, 1), connect(&dispatcher, 2));
    one.send(hello(1)).await;
    two.send(hello(2)).await;
    let (mut held_one, mut held_two) = (Held::default(), Held::default());
    let task = log.assigned(1, 1);
    until(&mut one, &mut held_one, |held| held.tasks.contains_key(&task)).await;
    let mesh: std::net::IpAddr = "100.64.1.9".parse().unwrap();
    let report = StatusReport { task, mesh: Some(mesh), ..status(1, TaskState::Running) };
    one.send(AgentMessage::Statuses(vec![report])).await;
    // The node hears that its report was recorded, the other one where the task is.
    until(&mut one, &mut held_one, |held| held.tasks[&task].observed == TaskState::Running).await;
    until(&mut two, &mut held_two, |held| {
        held.view.endpoints.get(&task).is_some_and(|end| end.serving && end.mesh == Some(mesh))
    })
    .await;
    assert!(held_two.tasks.is_empty());
    // It ends; its record goes.
    one.send(AgentMessage::Statuses(vec![status(1, TaskState::Complete)])).await;
    until(&mut two, &mut held_two, |held| held.view.endpoints.is_empty()).await;
    until(&mut one, &mut held_one, |held| held.tasks[&task].observed == TaskState::Complete).await;
    let row = log.store.view().reference(task).unwrap();
    let if_version = log.store.view().row_at(row.handle()).unwrap().version;
    log.commit(Change::DeleteTask { task: row, if_version });
    until(&mut one, &mut held_one, |held| held.tasks.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_statuses_is_a_few_entries() {
    let log = Log::new();
    let (dispatcher, _leadership) = world(&log).await;
    let mut one = connect(&dispatcher, 1);
    one.send(hello(1)).await;
    let tasks: Vec<TaskId> = (1..=600).map(|slot| log.assigned(slot, 1)).collect();
    one.set().await;
    let before = log.store.view().index();
    let reports = (1..=600).map(|slot| status(slot, TaskState::Running)).collect();
    one.send(AgentMessage::Statuses(reports)).await;
    let drain = tokio::spawn(async move { while one.next().await.is_some() {} });
    let running = |id: &TaskId| log.store.view().task(*id).unwrap().status.state == TaskState::Running;
    eventually(|| tasks.iter().all(running)).await;
    let entries = log.store.view().index() - before;
    assert!(entries <= 4, "{entries} entries for 600 statuses");
    drain.abort();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_silent_is_down_in_the_store_and_keeps_its_description() {
    let log = Log::new();
    let (dispatcher, _leadership) = world(&log).await;
    let mut one = connect(&dispatcher, 1);
    let bigger = NodeDescription { memory: 1 << 30, ..description(1) };
    one.send(AgentMessage::Hello(Hello { description: bigger.clone(), last_index: 0 })).await;
    let record = || log.store.view().nodes().get(N1).cloned().unwrap();
    eventually(|| record().description == bigger).await;
    while one.next().await.is_some() {}
    eventually(|| record().state == NodeState::Down).await;
    assert_eq!((record().message.as_str(), &record().description), ("heartbeat failure", &bigger));
}

#[tokio::test]
async fn a_node_whose_record_goes_is_refused_and_is_nobody() {
    let log = Log::new();
    log.commit(Change::create(&node(1)));
    let (revoked, stop) = (Revoked::default(), CancellationToken::new());
    let watching = tokio::spawn(refuse_removed(log.store.clone(), revoked.clone(), stop.clone()));
    log.commit(Change::create(&Node { spec: NodeSpec { role: NodeRole::Manager, ..node(2).spec }, ..node(2) }));
    let roles = StoreRoles { store: log.store.clone(), leader: tokio::sync::watch::channel(None).1 };
    let role = |node| roles.role(&Identity { node, cluster: ClusterId(1), role: NodeRole::Manager });
    assert_eq!((role(N1), role(NodeId(2)), role(NodeId(3))), (Some(NodeRole::Worker), Some(NodeRole::Manager), None));
    tokio::task::yield_now().await;
    log.commit(Change::delete(&**log.store.view().nodes().get(N1).unwrap()));
    revoked.wait_for(N1).await;
    assert_eq!((role(N1), revoked.contains(NodeId(2))), (None, false));
    stop.cancel();
    watching.await.unwrap();
}
