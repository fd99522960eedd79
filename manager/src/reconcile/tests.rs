use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use skep_proto::model::{ServiceMode, TaskState, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Clock, Planner, run};
use crate::allocator::Allocator;
use crate::control::{Propose, ProposeError};
use crate::orchestrator::Orchestrator;
use crate::reaper::Reaper;
use crate::scheduler::Scheduler;
use crate::store::{Group, Outcome, Store};
use crate::world::World;

/// Applies at once; answers nothing while it has lost the leader.
struct Direct {
    world: Mutex<World>,
    is_lost: AtomicBool,
    tried: AtomicUsize,
}

#[async_trait]
impl Propose for Direct {
    async fn propose(&self, group: Group) -> Result<Outcome, ProposeError> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        if self.is_lost.load(Ordering::Relaxed) {
            return Err(ProposeError::NoLeader);
        }
        Ok(self.world.lock().unwrap().propose(vec![group]).remove(0))
    }
}

/// A cluster under the real planners, with agents that obey whenever somebody looks.
struct Run {
    direct: Arc<Direct>,
    stop: CancellationToken,
    planners: tokio::task::JoinSet<()>,
}

impl Run {
    fn start(world: World) -> Self {
        let store = Arc::clone(&world.store);
        let direct =
            Arc::new(Direct { world: Mutex::new(world), is_lost: AtomicBool::new(false), tried: AtomicUsize::new(0) });
        let (begin, start) = (direct.world.lock().unwrap().now, tokio::time::Instant::now());
        let clock: Clock = Arc::new(move || Timestamp(begin.0).after(start.elapsed()));
        let stop = CancellationToken::new();
        let mut run = Self { direct, stop, planners: tokio::task::JoinSet::new() };
        run.spawn(Orchestrator::default(), &store, &clock);
        run.spawn(Allocator, &store, &clock);
        run.spawn(Scheduler::default(), &store, &clock);
        run.spawn(Reaper, &store, &clock);
        run
    }

    fn spawn<P: Planner>(&mut self, planner: P, store: &Arc<Store>, clock: &Clock) {
        let proposer: Arc<dyn Propose> = Arc::clone(&self.direct) as _;
        self.planners.spawn(run(planner, Arc::clone(store), proposer, Arc::clone(clock), self.stop.clone()));
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.direct.world.lock().unwrap()
    }

    async fn eventually(&self, within: Duration, condition: impl Fn(&World) -> bool) {
        let end = tokio::time::Instant::now() + within;
        loop {
            {
                let mut world = self.world();
                let obeyed = world.obey();
                if !obeyed.is_empty() {
                    world.propose(obeyed);
                }
                if condition(&world) {
                    return;
                }
            }
            assert!(tokio::time::Instant::now() < end, "it did not come to be within {within:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(1), self.planners.join_all()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_planners_bring_a_service_up_and_replace_what_fails() {
    let mut world = World::new().nodes(3);
    let network = world.add_network("net");
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 6 }, |s| {
        let target = network.to_string();
        s.task.networks = vec![skep_proto::model::task::NetworkAttachmentSpec { target, ..Default::default() }];
    });
    let run = Run::start(world);
    run.eventually(Duration::from_secs(1), |w| w.running(id).len() == 6).await;
    {
        let mut world = run.world();
        let task = world.running(id)[0].clone();
        world.now = world.now.after(Duration::from_millis(500));
        world.end(&task, TaskState::Failed, "x");
    }
    run.eventually(Duration::from_secs(8), |w| w.running(id).len() == 6).await;
    run.world().update_service(id, |s| s.pending_delete = true);
    run.eventually(Duration::from_secs(2), |w| w.service(id).is_none() && w.view().task_count() == 0).await;
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_nobody_leads_nothing_is_lost_and_nobody_is_hurried() {
    let mut world = World::new().nodes(1);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 2 }, |_| {});
    let run = Run::start(world);
    run.direct.is_lost.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(run.direct.tried.load(Ordering::Relaxed) <= 2 * 2 * 45, "a pause lies between two attempts");
    run.direct.is_lost.store(false, Ordering::Relaxed);
    run.eventually(Duration::from_secs(1), |w| w.running(id).len() == 2).await;
    run.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_where_nothing_happens_is_left_alone() {
    let mut world = World::new().nodes(2);
    let id = world.add_service("web", ServiceMode::Replicated { replicas: 4 }, |_| {});
    let run = Run::start(world);
    run.eventually(Duration::from_secs(1), |w| w.running(id).len() == 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = run.direct.tried.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(run.direct.tried.load(Ordering::Relaxed), before);
    run.end().await;
}
