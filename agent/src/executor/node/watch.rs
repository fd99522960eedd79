//! Probes running containers of pods: one task for each that has probes or a hook after its start.
//!
//! What they show is volatile: a daemon that starts takes what serves for ready and asks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_engine::containers::Containers;
use skep_proto::model::pod::{Action, PodContainer};
use skep_proto::model::{ContainerId, TaskId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info};

use super::act::{Target, act};
use super::pod::Probed;
use super::probe::{Kind, Probes};

/// How long a hook after the start may take.
const HOOK_PATIENCE: Duration = Duration::from_secs(600);

/// The watched containers of all tasks.
#[derive(Default)]
pub struct Watchers(Mutex<HashMap<ContainerId, Watcher>>);

struct Watcher {
    task: TaskId,
    shown: watch::Receiver<Probed>,
    work: JoinHandle<()>,
}

/// A container to be watched.
pub struct Watched {
    /// Its task.
    pub task: TaskId,
    /// Its name in the task.
    pub name: String,
    /// What is asked of it.
    pub pod: PodContainer,
    /// Where.
    pub target: Target,
    /// How long it has run.
    pub ran: Duration,
    /// It served before this process began.
    pub serving: bool,
    /// It was started just now: the hook after the start is to be done.
    pub fresh: bool,
}

impl Watchers {
    /// Watches a container that runs, unless that is done already.
    pub fn watch(&self, containers: &Containers, watched: Watched) {
        let Watched { task, ref pod, ref target, ran, serving, .. } = watched;
        let id = target.container;
        let hook = pod.post_start.clone().filter(|_| watched.fresh);
        if hook.is_none() && Kind::ALL.iter().all(|kind| kind.of(pod).is_none()) {
            return;
        }
        let mut all = self.all();
        if all.contains_key(&id) {
            return;
        }
        let probes = Probes::new(pod, ran, serving);
        let mut first = probes.probed().clone();
        if hook.is_some() {
            (first.started, first.ready) = (false, false);
        }
        let (shown, receiver) = watch::channel(first);
        let work = tokio::spawn(follow(containers.clone(), watched, probes, hook, shown));
        all.insert(id, Watcher { task, shown: receiver, work });
    }

    /// What the probes of a container that runs have shown. One that is to be watched and is not yet has shown nothing.
    pub fn probed(&self, id: ContainerId, pod: Option<&PodContainer>) -> Probed {
        if let Some(watcher) = self.all().get(&id) {
            return watcher.shown.borrow().clone();
        }
        let is_watched = pod.is_some_and(|pod| Kind::ALL.iter().any(|kind| kind.of(pod).is_some()));
        if is_watched { Probed { started: false, ready: false, failed: None } } else { Probed::FINE }
    }

    /// For those who wait for what they show next.
    pub fn changes(&self, id: ContainerId) -> Option<watch::Receiver<Probed>> {
        self.all().get(&id).map(|watcher| watcher.shown.clone())
    }

    /// The container is to end, or has: nothing is asked of it any more. What it showed is kept until its task goes.
    pub fn stop(&self, id: ContainerId) {
        if let Some(watcher) = self.all().get(&id) {
            watcher.work.abort();
        }
    }

    /// The container is started again: what it showed counts no more.
    pub fn forget_one(&self, id: ContainerId) {
        if let Some(watcher) = self.all().remove(&id) {
            watcher.work.abort();
        }
    }

    /// Forgets the containers of a task.
    pub fn forget(&self, task: TaskId) {
        self.all().retain(|_, watcher| {
            let stays = watcher.task != task;
            if !stays {
                watcher.work.abort();
            }
            stays
        });
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ContainerId, Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn follow(
    containers: Containers,
    watched: Watched,
    mut probes: Probes,
    hook: Option<Action>,
    shown: watch::Sender<Probed>,
) {
    let Watched { task, ref name, ref target, ran, .. } = watched;
    let started = Instant::now();
    let ran = || ran + started.elapsed();
    if let Some(hook) = hook {
        if let Err(error) = act(&containers, target, &hook, HOOK_PATIENCE).await {
            probes.fail(format!("its hook after the start failed: {error}"));
        }
        shown.send_replace(probes.probed().clone());
    }
    while let Some((kind, due)) = probes.next() {
        tokio::time::sleep(due.saturating_sub(ran())).await;
        let Some(probe) = kind.of(&watched.pod) else { return };
        let answer = act(&containers, target, &probe.action, probe.timeout).await;
        if let Err(error) = &answer {
            debug!(task.id = %task, container = name, probe = kind.as_str(), error, "a probe failed");
        }
        probes.answer(kind, ran(), answer);
        let other = shown.send_if_modified(|before| {
            let now = probes.probed();
            let differs = before != now;
            before.clone_from(now);
            differs
        });
        if other {
            let Probed { started, ready, failed } = probes.probed();
            info!(task.id = %task, container = name, started, ready, failed, "what probes show of a container has changed");
        }
    }
    // Whoever waits for a change must not be told that there will be none by the end of the channel.
    std::future::pending::<()>().await;
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.all().values().for_each(|watcher| watcher.work.abort());
    }
}

/// Shared by the executor and its starts.
pub type Shared = Arc<Watchers>;
