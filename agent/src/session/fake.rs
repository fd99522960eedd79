//! Managers in memory: one truth, several addresses. They behave as the protocol says, and check that agents do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use skep_proto::model::TaskId;
use skep_proto::model::session::{AssignedTask, AssignmentChange, SpecKey};
use skep_proto::model::{NodeId, TaskState, TaskStatus};
use tokio_stream::wrappers::ReceiverStream;

use super::transport::*;
use super::*;
use crate::test_support::spec;

pub struct FakeManagers {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    pub heartbeat: Duration,
}

#[derive(Default)]
pub struct Inner {
    pub index: u64,
    pub tasks: BTreeMap<TaskId, AssignedTask>,
    /// Every state that was reported of each task, in order.
    pub reported: BTreeMap<TaskId, Vec<TaskState>>,
    pub last: BTreeMap<TaskId, TaskStatus>,
    /// Managers that do not answer.
    pub down: BTreeSet<SocketAddr>,
    /// Managers that send nodes elsewhere.
    pub redirects: BTreeMap<SocketAddr, Option<SocketAddr>>,
    /// Managers that lag: they send nothing newer than this index.
    pub lagging: BTreeMap<SocketAddr, u64>,
    /// Every hello: whom it was said to, and the index in it.
    pub hellos: Vec<(SocketAddr, u64)>,
    pub heartbeats: u32,
    /// A node said that it leaves.
    pub left: bool,
    pub status_messages: u32,
    /// Sent to every session as they are.
    pub broadcast: Vec<ManagerMessage>,
    /// The manager's end of each stream that was attached.
    pub attached: Vec<(SocketAddr, [u8; 16], tokio::io::DuplexStream)>,
    /// Statuses are taken but not remembered, as by a leader that dies.
    pub forgetful: bool,
}

impl FakeManagers {
    pub fn new() -> Arc<Self> {
        let inner = Inner { index: 10, ..Inner::default() };
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::Sender::new(0), heartbeat: Duration::from_secs(2) })
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = {
            let mut inner = self.inner();
            inner.index += 1;
            change(&mut inner)
        };
        self.changed.send_modify(|n| *n += 1);
        result
    }

    pub fn assign(&self, task: AssignedTask) {
        self.change(|inner| inner.tasks.insert(task.id, task));
    }

    pub fn desire(&self, task: u128, desired: TaskState) {
        self.change(|inner| {
            if let Some(task) = inner.tasks.get_mut(&TaskId(task)) {
                task.desired = task.desired.max(desired);
            }
        });
    }

    pub fn forget(&self, task: u128) {
        self.change(|inner| inner.tasks.remove(&TaskId(task)));
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn observed(&self, task: u128) -> Option<TaskState> {
        self.inner().tasks.get(&TaskId(task)).map(|task| task.observed)
    }

    fn take(&self, report: StatusReport) {
        let mut inner = self.inner();
        inner.reported.entry(report.task).or_default().push(report.status.state);
        inner.last.insert(report.task, report.status.clone());
        if !inner.forgetful
            && let Some(task) = inner.tasks.get_mut(&report.task)
            && report.status.state > task.observed
        {
            task.observed = report.status.state;
            inner.index += 1;
            drop(inner);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// One session, from the manager's side.
    async fn serve(
        self: Arc<Self>,
        manager: SocketAddr,
        mut agent: mpsc::Receiver<AgentMessage>,
        to_agent: mpsc::Sender<Result<ManagerMessage, TransportError>>,
    ) {
        let mut changes = self.changed.subscribe();
        let mut sent: Option<BTreeMap<TaskId, AssignedTask>> = None;
        let mut specs: BTreeSet<SpecKey> = BTreeSet::new();
        let mut broadcast = self.inner().broadcast.len();
        loop {
            changes.mark_unchanged();
            let mut messages = Vec::new();
            {
                let inner = self.inner();
                if inner.down.contains(&manager) {
                    return;
                }
                messages.extend(inner.broadcast[broadcast..].iter().cloned());
                broadcast = inner.broadcast.len();
                if sent.as_ref() != Some(&inner.tasks) {
                    let before = sent.clone().unwrap_or_default();
                    let mut set = Vec::new();
                    for task in inner.tasks.values().filter(|task| before.get(&task.id) != Some(task)) {
                        if specs.insert(task.spec) {
                            set.push(AssignmentChange::PutSpec(spec()));
                        }
                        set.push(AssignmentChange::PutTask(task.clone()));
                    }
                    let removed = before.keys().filter(|id| !inner.tasks.contains_key(id));
                    set.extend(removed.map(|id| AssignmentChange::RemoveTask(*id)));
                    let index = inner.lagging.get(&manager).copied().unwrap_or(inner.index);
                    messages.push(ManagerMessage::Assignments(Assignments {
                        index,
                        complete: sent.is_none(),
                        changes: set,
                    }));
                    sent = Some(inner.tasks.clone());
                }
            }
            for message in messages {
                if to_agent.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                message = agent.recv() => match message {
                    Some(AgentMessage::Statuses(reports)) => {
                        self.inner().status_messages += 1;
                        reports.into_iter().for_each(|report| self.take(report));
                    }
                    Some(AgentMessage::Leaving) => self.inner().left = true,
                    Some(AgentMessage::Heartbeat) => self.inner().heartbeats += 1,
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }
}

#[async_trait::async_trait]
impl Transport for Arc<FakeManagers> {
    async fn session(&self, manager: SocketAddr, hello: Hello) -> Result<Link, TransportError> {
        let welcome = {
            let mut inner = self.inner();
            inner.hellos.push((manager, hello.last_index));
            if inner.down.contains(&manager) {
                return Err(TransportError::Connect { manager, source: "it is down".into() });
            }
            match inner.redirects.get(&manager) {
                Some(to) => ManagerMessage::Redirect { to: *to },
                None => ManagerMessage::Welcome(Welcome {
                    session: u64::try_from(inner.hellos.len()).unwrap(),
                    heartbeat: self.heartbeat,
                    index: 1,
                    data_path_port: 4789,
                    mesh_removed: false,
                }),
            }
        };
        let (to_manager, from_agent) = mpsc::channel(16);
        let (to_agent, from_manager) = mpsc::channel(16);
        tokio::spawn(Arc::clone(self).serve(manager, from_agent, to_agent));
        let first = stream::once(async move { Ok(welcome) });
        Ok(Link { to_manager, from_manager: first.chain(ReceiverStream::new(from_manager)).boxed() })
    }

    async fn attach(&self, manager: SocketAddr, nonce: [u8; 16]) -> Result<skep_api::ports::BoxDuplex, TransportError> {
        let (ours, theirs) = tokio::io::duplex(4096);
        self.change(|inner| inner.attached.push((manager, nonce, ours)));
        Ok(Box::new(theirs))
    }
}

/// Managers on these addresses, as they tell agents of themselves.
pub fn peers(addresses: &[SocketAddr]) -> Vec<ManagerPeer> {
    (1..).zip(addresses).map(|(id, address)| ManagerPeer { node: NodeId(id), address: *address }).collect()
}
