//! Workers against a node in memory, on a paused clock.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skep_proto::model::{HealthStatus, TaskId, TaskState};
use tokio::sync::watch;

use super::step::Goal;
use super::worker::{Deps, Worker};
use crate::executor::fake::{FakeNode, Op};
use crate::executor::{Containers, Executor, ExecutorError, Exit};
use crate::reports::Reports;
use crate::session::tests::World;
use crate::state::Placement;
use crate::test_support::{NODE, Noon, address, database, task, unit};

const SLOW: Duration = Duration::from_secs(30);

fn temporary(times: usize) -> Vec<ExecutorError> {
    (0..times).map(|_| ExecutorError::Temporary("registry.example: connection refused".into())).collect()
}

fn permanent() -> [ExecutorError; 1] {
    [ExecutorError::Permanent("No such image: nosuch:latest".into())]
}

async fn reaches(world: &World, state: TaskState) {
    world.eventually(state.as_str(), |w| w.managers.observed(1) == Some(state)).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_shall_be_ready_waits_before_its_start_and_starts_when_it_shall_run() {
    let world = World::new(Duration::from_millis(10));
    world.managers.assign(task(1, TaskState::Ready));
    reaches(&world, TaskState::Ready).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.node.log(1), [Op::Prepare, Op::Create]);
    world.managers.desire(1, TaskState::Running);
    reaches(&world, TaskState::Running).await;
    assert_eq!(world.node.log(1), [Op::Prepare, Op::Create, Op::Start]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_stops_reports_and_releases_but_keeps_the_dead_containers() {
    let world = World::new(Duration::from_millis(10));
    world.managers.assign(task(1, TaskState::Running));
    reaches(&world, TaskState::Running).await;
    world.managers.desire(1, TaskState::Shutdown);
    reaches(&world, TaskState::Shutdown).await;
    world.eventually("released", |w| w.node.task(1).is_some_and(|task| !task.sandbox)).await;
    assert!(matches!(world.node.task(1).unwrap().containers, Containers::Ended(_)));
    world.managers.forget(1);
    world.eventually("removed", |w| w.node.task(1).is_none()).await;
    assert_eq!(world.node.log(1), [Op::Prepare, Op::Create, Op::Start, Op::Stop, Op::Release, Op::Remove]);
}

#[tokio::test(start_paused = true)]
async fn an_end_by_itself_is_complete_or_failed_by_its_code() {
    let world = World::new(Duration::from_millis(10));
    for (id, code, state) in [(1, 0, TaskState::Complete), (2, 9, TaskState::Failed)] {
        world.managers.assign(task(id, TaskState::Running));
        world.eventually("running", |w| w.managers.observed(id) == Some(TaskState::Running)).await;
        world.node.end(TaskId(id), Exit { code, ..Exit::default() });
        world.eventually("ended", |w| w.managers.observed(id) == Some(state)).await;
        assert_eq!(world.managers.inner().last[&TaskId(id)].exit_code, Some(code));
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_turns_unhealthy_is_stopped_and_has_failed() {
    let world = World::new(Duration::from_millis(10));
    world.managers.assign(task(1, TaskState::Running));
    reaches(&world, TaskState::Running).await;
    world.node.turn(TaskId(1), HealthStatus::Healthy);
    world.node.turn(TaskId(1), HealthStatus::Unhealthy);
    reaches(&world, TaskState::Failed).await;
    assert_eq!(world.managers.inner().last[&TaskId(1)].error, "task: unhealthy container");
    assert!(world.node.log(1).contains(&Op::Stop));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_prepared_is_rejected_and_what_cannot_start_has_failed() {
    let world = World::new(Duration::from_millis(10));
    for (id, op, state) in
        [(1, Op::Prepare, TaskState::Rejected), (2, Op::Create, TaskState::Rejected), (3, Op::Start, TaskState::Failed)]
    {
        world.node.fail(id, op, permanent());
        world.managers.assign(task(id, TaskState::Running));
        world.eventually("ended", |w| w.managers.observed(id) == Some(state)).await;
        assert_eq!(world.managers.inner().last[&TaskId(id)].error, "No such image: nosuch:latest");
        world.eventually("released", |w| w.node.log(id).ends_with(&[op, Op::Release])).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_tried_again_and_told_meanwhile() {
    let world = World::new(Duration::from_millis(10));
    world.node.fail(1, Op::Prepare, temporary(6));
    world.managers.assign(task(1, TaskState::Running));
    world
        .eventually("told", |w| w.managers.inner().last.values().any(|s| s.error.contains("connection refused")))
        .await;
    reaches(&world, TaskState::Running).await;
    assert_eq!(world.node.log(1).iter().filter(|op| **op == Op::Prepare).count(), 7);
    assert_eq!(world.managers.inner().last[&TaskId(1)].error, "");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_does_not_pass_ends_the_task() {
    let world = World::new(Duration::from_millis(10));
    world.node.fail(1, Op::Prepare, temporary(1000));
    world.managers.assign(task(1, TaskState::Running));
    reaches(&world, TaskState::Rejected).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_pull_is_given_up_when_the_task_is_not_wanted_any_more() {
    let world = World::new(SLOW);
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("preparing", |w| w.node.log(1) == [Op::Prepare]).await;
    world.managers.desire(1, TaskState::Shutdown);
    let began = tokio::time::Instant::now();
    reaches(&world, TaskState::Shutdown).await;
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(world.node.starts().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_under_way_is_finished_and_then_stopped() {
    let world = World::new(SLOW);
    world.managers.assign(task(1, TaskState::Running));
    world.eventually("starting", |w| w.node.log(1).last() == Some(&Op::Start)).await;
    world.managers.desire(1, TaskState::Shutdown);
    reaches(&world, TaskState::Shutdown).await;
    assert_eq!(world.node.log(1)[2..4], [Op::Start, Op::Stop]);
    assert!(!world.node.is_running(1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_fails_is_tried_until_it_succeeds() {
    let world = World::new(Duration::from_millis(10));
    world.managers.assign(task(1, TaskState::Running));
    reaches(&world, TaskState::Running).await;
    world.node.fail(1, Op::Stop, permanent());
    world.node.fail(1, Op::Stop, temporary(5));
    world.managers.desire(1, TaskState::Shutdown);
    reaches(&world, TaskState::Shutdown).await;
    assert!(!world.node.is_running(1));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_the_managers_gave_up_is_stopped() {
    let world = World::new(Duration::from_millis(10));
    world.managers.assign(task(1, TaskState::Running));
    reaches(&world, TaskState::Running).await;
    world.managers.change(|inner| inner.tasks.get_mut(&TaskId(1)).unwrap().observed = TaskState::Orphaned);
    world.eventually("stopped", |w| !w.node.is_running(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_unknown_tasks_is_removed_once_the_managers_have_spoken() {
    let mut world = World::new(Duration::from_millis(10));
    world.managers.change(|inner| inner.down.extend([address(1), address(2)]));
    world.crash().await;
    world.node.prepare(&unit(8)).await.unwrap();
    world.start();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(world.node.task(8).is_some());
    world.managers.change(|inner| inner.down.clear());
    world.eventually("removed", |w| w.node.task(8).is_none()).await;
}

/// What may happen to a node.
#[derive(Debug, Clone)]
enum Event {
    Assign(u128),
    Desire(u128, TaskState),
    Forget(u128),
    End(u128, i32),
    Lose(u128),
    Crash,
    ManagersDown,
    ManagersUp,
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let id = 1..4u128;
    let desired =
        prop::sample::select(vec![TaskState::Ready, TaskState::Running, TaskState::Shutdown, TaskState::Remove]);
    let event = prop_oneof![
        3 => id.clone().prop_map(Event::Assign),
        3 => (id.clone(), desired).prop_map(|(id, state)| Event::Desire(id, state)),
        1 => id.clone().prop_map(Event::Forget),
        1 => id.clone().prop_map(Event::Lose),
        1 => (id, 0..3i32).prop_map(|(id, code)| Event::End(id, code)),
        3 => Just(Event::Crash),
        1 => Just(Event::ManagersDown),
        2 => Just(Event::ManagersUp),
        6 => (0..150u64).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 1..30)
}

async fn happen(world: &mut World, event: Event, used: &mut std::collections::BTreeSet<u128>) {
    match event {
        // An id is never used again.
        Event::Assign(id) if used.insert(id) => world.managers.assign(task(id, TaskState::Ready)),
        Event::Assign(_) => {}
        Event::Desire(id, state) => world.managers.desire(id, state),
        Event::Forget(id) => world.managers.forget(id),
        Event::End(id, code) => world.node.end(TaskId(id), Exit { code, ..Exit::default() }),
        Event::Lose(id) => world.node.lose(TaskId(id)),
        Event::Crash => {
            world.crash().await;
            world.start();
        }
        Event::ManagersDown => world.managers.change(|inner| inner.down.extend([address(1), address(2)])),
        Event::ManagersUp => world.managers.change(|inner| inner.down.clear()),
        Event::Pass(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
    }
}

fn check(world: &World, used: &std::collections::BTreeSet<u128>) -> Result<(), TestCaseError> {
    prop_assert_eq!(world.node.overlaps(), 0, "two operations of one task at a time");
    for (task, starts) in world.node.starts() {
        prop_assert!(starts <= 1, "{} was started {} times", task, starts);
    }
    for (task, states) in &world.managers.inner().reported {
        prop_assert!(states.is_sorted(), "{} went backwards: {:?}", task, states);
    }
    for &id in used {
        let task = world.managers.inner().tasks.get(&TaskId(id)).cloned();
        let Some(task) = task else {
            prop_assert!(world.node.task(id).is_none(), "{} was forgotten and is still there", id);
            continue;
        };
        let running = world.node.is_running(id);
        match task.desired {
            _ if task.observed.is_terminal() => prop_assert!(!running, "{} has ended and runs", id),
            TaskState::Ready => prop_assert_eq!((task.observed, running), (TaskState::Ready, false)),
            TaskState::Running => prop_assert_eq!((task.observed, running), (TaskState::Running, true)),
            _ => prop_assert!(false, "{} shall be {:?} and is {:?}", id, task.desired, task.observed),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_happens_a_node_converges_without_going_backwards_or_starting_twice(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(Duration::from_millis(40));
            let mut used = std::collections::BTreeSet::new();
            for event in events {
                happen(&mut world, event, &mut used).await;
            }
            world.managers.change(|inner| inner.down.clear());
            tokio::time::sleep(Duration::from_secs(400)).await;
            check(&world, &used)
        })?;
    }
}

/// A disk that takes nothing: the writer of the local state never runs.
#[tokio::test(start_paused = true)]
async fn containers_are_not_started_before_the_disk_says_so() {
    let (state, _, _writer) = crate::state::with_database(database(), "memory", Placement::Inline).unwrap();
    let node = FakeNode::new(Duration::from_millis(10));
    let deps = Deps {
        node: NODE,
        executor: Arc::clone(&node) as _,
        clock: Arc::new(Noon),
        reports: Arc::new(Reports::new(state, [])),
    };
    let (_goal, goal) = watch::channel(Goal::Running);
    let worker = Worker::new(Arc::new(deps), unit(1), goal, None);
    assert!(tokio::time::timeout(Duration::from_secs(60), worker.run()).await.is_err());
    assert_eq!(node.log(1), [Op::Prepare, Op::Create]);
}
