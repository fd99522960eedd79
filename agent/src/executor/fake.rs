//! A node in memory. It outlives the agents that use it, as a real one does, and it can be slow, fail, and be seen into.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Prepare,
    Create,
    Start,
    Stop,
    Release,
    Remove,
}

pub struct FakeNode {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    /// Time that each operation takes: half before its effect, half after.
    pub slowness: Duration,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<TaskId, FakeTask>,
    started: BTreeMap<TaskId, u32>,
    failures: BTreeMap<(TaskId, Op), VecDeque<ExecutorError>>,
    log: Vec<(TaskId, Op)>,
    busy: BTreeSet<TaskId>,
    overlaps: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FakeTask {
    pub sandbox: bool,
    pub containers: Containers,
}

impl FakeNode {
    pub fn new(slowness: Duration) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: watch::Sender::new(0), slowness })
    }

    /// The next operations of this kind on the task fail with `errors`, one after the other.
    pub fn fail(&self, task: u128, op: Op, errors: impl IntoIterator<Item = ExecutorError>) {
        self.inner().failures.entry((TaskId(task), op)).or_default().extend(errors);
    }

    /// The running containers of the task end by themselves.
    pub fn end(&self, task: TaskId, exit: Exit) {
        if let Some(task) = self.inner().tasks.get_mut(&task)
            && matches!(task.containers, Containers::Running(_))
        {
            task.containers = Containers::Ended(exit);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// The running containers of the task are seen to be so.
    pub fn turn(&self, task: TaskId, health: HealthStatus) {
        if let Some(FakeTask { containers: Containers::Running(running), .. }) = self.inner().tasks.get_mut(&task) {
            running.health = Some(health);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Someone else removes all containers of the task.
    pub fn lose(&self, task: TaskId) {
        self.inner().tasks.remove(&task);
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn task(&self, task: u128) -> Option<FakeTask> {
        self.inner().tasks.get(&TaskId(task)).cloned()
    }

    pub fn is_running(&self, task: u128) -> bool {
        matches!(self.task(task), Some(FakeTask { containers: Containers::Running(_), .. }))
    }

    pub fn log(&self, task: u128) -> Vec<Op> {
        self.inner().log.iter().filter(|(id, _)| *id == TaskId(task)).map(|(_, op)| *op).collect()
    }

    /// How often containers of each task were started.
    pub fn starts(&self) -> BTreeMap<TaskId, u32> {
        self.inner().started.clone()
    }

    /// How often two operations of one task ran at a time.
    pub fn overlaps(&self) -> u32 {
        self.inner().overlaps
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn run<T>(&self, task: TaskId, op: Op, effect: impl FnOnce(&mut Inner) -> T) -> Result<T, ExecutorError> {
        let _busy = Busy::new(self, task);
        self.inner().log.push((task, op));
        tokio::time::sleep(self.slowness / 2).await;
        if let Some(error) = self.inner().failures.get_mut(&(task, op)).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        let result = effect(&mut self.inner());
        self.changed.send_modify(|n| *n += 1);
        tokio::time::sleep(self.slowness / 2).await;
        Ok(result)
    }
}

/// Held while an operation of the task runs.
struct Busy<'a>(&'a FakeNode, TaskId);

impl<'a> Busy<'a> {
    fn new(node: &'a FakeNode, task: TaskId) -> Self {
        let mut inner = node.inner();
        if !inner.busy.insert(task) {
            inner.overlaps += 1;
        }
        Self(node, task)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.inner().busy.remove(&self.1);
    }
}

fn gone() -> ExecutorError {
    ExecutorError::Temporary("no such container".into())
}

fn running(task: TaskId) -> Running {
    Running { pid: u32::try_from(task.0).unwrap(), ..Running::default() }
}

#[async_trait]
impl Executor for FakeNode {
    async fn tasks(&self) -> Result<Vec<TaskId>, ExecutorError> {
        Ok(self.inner().tasks.keys().copied().collect())
    }

    async fn observe(&self, unit: &TaskUnit) -> Result<Containers, ExecutorError> {
        Ok(self.inner().tasks.get(&unit.task.id).map_or(Containers::Absent, |task| task.containers.clone()))
    }

    async fn prepare(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        let id = unit.task.id;
        self.run(id, Op::Prepare, |inner| {
            inner.tasks.entry(id).or_insert(FakeTask { sandbox: true, containers: Containers::Absent }).sandbox = true;
        })
        .await
    }

    async fn create(&self, unit: &TaskUnit) -> Result<(), ExecutorError> {
        let id = unit.task.id;
        self.run(id, Op::Create, |inner| {
            let task = inner.tasks.get_mut(&id).filter(|task| task.sandbox).ok_or_else(gone)?;
            if task.containers == Containers::Absent {
                task.containers = Containers::Created;
            }
            Ok(())
        })
        .await?
    }

    async fn start(&self, unit: &TaskUnit) -> Result<Running, ExecutorError> {
        let id = unit.task.id;
        self.run(id, Op::Start, |inner| {
            let task = inner.tasks.get_mut(&id).filter(|task| task.sandbox).ok_or_else(gone)?;
            match &task.containers {
                Containers::Absent => return Err(gone()),
                Containers::Created => {
                    task.containers = Containers::Running(running(id));
                    *inner.started.entry(id).or_default() += 1;
                }
                Containers::Running(_) => {}
                Containers::Ended(_) => return Err(ExecutorError::Permanent("it has ended".into())),
            }
            Ok(running(id))
        })
        .await?
    }

    async fn wait(&self, unit: &TaskUnit, seen: Seen) -> Result<Containers, ExecutorError> {
        let mut changes = self.changed.subscribe();
        loop {
            match self.inner().tasks.get(&unit.task.id).map(|task| task.containers.clone()) {
                Some(Containers::Running(running)) if running.seen() == seen => {}
                Some(found @ (Containers::Running(_) | Containers::Ended(_))) => return Ok(found),
                _ => return Err(gone()),
            }
            changes.changed().await.unwrap();
        }
    }

    async fn stop(&self, unit: &TaskUnit) -> Result<Exit, ExecutorError> {
        let id = unit.task.id;
        self.run(id, Op::Stop, |inner| match inner.tasks.get_mut(&id) {
            Some(FakeTask { containers: Containers::Ended(exit), .. }) => Ok(exit.clone()),
            Some(task) => {
                let unhealthy =
                    matches!(&task.containers, Containers::Running(r) if r.health == Some(HealthStatus::Unhealthy));
                let exit = Exit { code: 137, unhealthy, ..Exit::default() };
                task.containers = Containers::Ended(exit.clone());
                Ok(exit)
            }
            None => Err(gone()),
        })
        .await?
    }

    async fn release(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.run(task, Op::Release, |inner| {
            if let Some(task) = inner.tasks.get_mut(&task) {
                task.sandbox = false;
            }
        })
        .await
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecutorError> {
        self.run(task, Op::Remove, |inner| {
            inner.tasks.remove(&task);
        })
        .await
    }

    async fn collect(&self, _: &[TaskUnit]) -> Result<(), ExecutorError> {
        Ok(())
    }
}
