use std::collections::BTreeMap;

use proptest::prelude::*;
use skep_proto::model::schedule::{CONCURRENCY_LABEL, DEADLINE_LABEL, LABEL, SUSPENDED_LABEL, ZONE_LABEL};
use skep_proto::model::service::PreviousSpec;
use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{ServiceId, ServiceMode, Task, TaskState};

use super::*;
use crate::store::{Outcome, Refusal};
use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Half past an hour, 2026-11-21T09:30:00Z.
const START: Timestamp = Timestamp(1_795_253_400_000);

fn world() -> World {
    let mut world = World::new().nodes(2);
    world.now = START;
    world
}

fn job(world: &mut World, labels: &[(&str, &str)]) -> ServiceId {
    let mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
    let id = world.add_service("job", mode, |spec| {
        spec.annotations.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        spec.task.restart = Some(RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() });
    });
    world.settle();
    id
}

fn label(world: &mut World, id: ServiceId, key: &str, value: &str) {
    world.update_service(id, |s| drop(s.spec.annotations.labels.insert(key.into(), value.into())));
    world.settle();
}

fn runs(world: &World, id: ServiceId) -> ScheduledRuns {
    world.service(id).unwrap().runs.unwrap()
}

/// Minutes after the start at which the last run was due.
fn last_run(world: &World, id: ServiceId) -> Option<u64> {
    runs(world, id).last_at.map(|at| at.since(START).as_secs() / 60)
}

fn complete(world: &mut World, id: ServiceId) -> usize {
    let running = world.running(id);
    running.iter().for_each(|task| world.end(task, TaskState::Complete, ""));
    world.settle();
    running.len()
}

fn iterations(tasks: &[Task]) -> BTreeMap<u64, usize> {
    let mut all = BTreeMap::new();
    tasks.iter().for_each(|task| *all.entry(task.spec_version).or_default() += 1);
    all
}

#[test]
fn a_job_runs_when_it_is_due_and_not_when_it_is_made() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    assert_eq!((world.tasks(id).len(), last_run(&world, id)), (0, None));
    assert_eq!(world.plans().recheck_at, Some(START.after(30 * MINUTE)));
    world.pass(30 * MINUTE - Duration::from_millis(1));
    assert_eq!(world.tasks(id).len(), 0);
    world.pass(Duration::from_millis(1));
    assert_eq!((world.running(id).len(), last_run(&world, id)), (1, Some(30)));
    assert_eq!(complete(&mut world, id), 1);
    world.pass(59 * MINUTE);
    assert_eq!((world.running(id).len(), world.tasks(id).len()), (0, 1), "what completed stays and is not repeated");
    world.pass(MINUTE);
    assert_eq!((world.running(id).len(), world.tasks(id).len(), last_run(&world, id)), (1, 2, Some(90)));
}

#[test]
fn the_zone_is_that_of_the_label() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "40 10 * * *"), (ZONE_LABEL, "Europe/Berlin")]);
    world.pass(HOUR);
    assert_eq!(last_run(&world, id), Some(10));
}

#[test]
fn a_run_that_is_due_while_the_last_one_goes_on_is_left_out() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.pass(30 * MINUTE);
    let first = world.running(id);
    world.pass(2 * HOUR);
    assert_eq!((world.running(id), last_run(&world, id)), (first, Some(30)));
    assert_eq!(runs(&world, id).decided_at, START.after(150 * MINUTE));
    complete(&mut world, id);
    world.pass(59 * MINUTE);
    assert_eq!(last_run(&world, id), Some(30), "what was left out is not made up for");
    world.pass(MINUTE);
    assert_eq!((world.running(id).len(), last_run(&world, id)), (1, Some(210)));
}

#[test]
fn a_run_that_failed_for_good_holds_nothing_up() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.pass(30 * MINUTE);
    let task = world.running(id).remove(0);
    world.end(&task, TaskState::Failed, "exit");
    world.pass(HOUR);
    assert_eq!((world.running(id).len(), last_run(&world, id)), (1, Some(90)));
}

#[test]
fn a_run_whose_tasks_always_fail_is_given_up_and_the_next_one_comes() {
    // What the policy says of attempts, and how many tasks a run has then.
    for (attempts, expected) in [(None, 7), (Some(2), 3)] {
        let mut world = world();
        let id = job(&mut world, &[(LABEL, "@hourly")]);
        world.update_service(id, |s| {
            s.spec.task.restart = Some(RestartPolicy { max_attempts: attempts, ..RestartPolicy::default() });
        });
        world.settle();
        let fail = |world: &mut World| {
            let mut tried = 0;
            for _ in 0..20 {
                for task in world.running(id) {
                    world.end(&task, TaskState::Failed, "exit");
                    tried += 1;
                }
                world.settle();
                world.pass(RestartPolicy::DEFAULT_DELAY);
            }
            tried
        };
        world.pass(30 * MINUTE);
        assert_eq!(fail(&mut world), expected, "{attempts:?}");
        world.pass(HOUR);
        assert_eq!((last_run(&world, id), fail(&mut world)), (Some(90), expected), "{attempts:?}");
    }
}

#[test]
fn one_that_is_to_be_tried_for_ever_is() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.update_service(id, |s| {
        s.spec.task.restart = Some(RestartPolicy { max_attempts: Some(0), ..RestartPolicy::default() });
    });
    world.pass(30 * MINUTE);
    for _ in 0..20 {
        for task in world.running(id) {
            world.end(&task, TaskState::Failed, "exit");
        }
        world.settle();
        world.pass(RestartPolicy::DEFAULT_DELAY);
    }
    world.pass(HOUR);
    assert_eq!((world.running(id).len(), last_run(&world, id)), (1, Some(30)));
}

#[test]
fn with_replace_the_last_run_stops_before_the_next_one_starts() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly"), (CONCURRENCY_LABEL, "replace")]);
    world.pass(30 * MINUTE);
    let old = world.running(id).remove(0);
    world.agents_obey = false;
    world.pass(HOUR);
    let stopping = world.tasks(id);
    assert_eq!((stopping.len(), stopping[0].desired, last_run(&world, id)), (1, TaskState::Shutdown, Some(90)));
    world.agents_obey = true;
    world.settle();
    let running = world.running(id);
    assert!(running.len() == 1 && running[0].id != old.id && running[0].spec_version > old.spec_version);
}

#[test]
fn of_the_runs_that_were_missed_one_is_made_up_for_within_the_deadline() {
    // Minutes after which managers are back, the deadline, the minute of the run.
    for (back, deadline, expected) in [
        (30 + 180 + 10, None, Some(210)),
        (30 + 180 + 10, Some("600"), Some(210)),
        (30 + 180 + 10, Some("599"), None),
        (30 + 180 + 10, Some("0"), None),
        (30, Some("0"), Some(30)),
        (29, None, None),
    ] {
        let mut world = world();
        let deadline = deadline.map(|seconds| (DEADLINE_LABEL, seconds));
        let labels: Vec<_> = [(LABEL, "@hourly")].into_iter().chain(deadline).collect();
        let id = job(&mut world, &labels);
        world.now = START.after(back * MINUTE);
        world.settle();
        assert_eq!(last_run(&world, id), expected, "{back} {deadline:?}");
        assert_eq!(world.tasks(id).len(), usize::from(expected.is_some()));
        // The next one comes as ever.
        world.pass(HOUR);
        assert!(expected.is_some() || last_run(&world, id).is_some());
    }
}

#[test]
fn while_it_is_suspended_nothing_runs_and_nothing_is_made_up_for() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly"), (SUSPENDED_LABEL, "true")]);
    assert_eq!(world.plans().recheck_at, None);
    world.pass(2 * HOUR);
    assert_eq!(world.tasks(id).len(), 0);
    label(&mut world, id, SUSPENDED_LABEL, "false");
    assert_eq!(last_run(&world, id), None);
    world.pass(30 * MINUTE);
    assert_eq!(last_run(&world, id), Some(150));
}

#[test]
fn a_new_spec_is_that_of_the_next_run_and_the_one_that_goes_on_keeps_its_own() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.update_service(id, |s| s.spec.task.containers[0].image = "second".into());
    world.settle();
    assert_eq!(world.tasks(id).len(), 0, "an update is no run");
    world.pass(30 * MINUTE);
    world.update_service(id, |s| {
        s.spec.task.containers[0].image = "third".into();
        s.spec.mode = ServiceMode::ReplicatedJob { max_concurrent: 2, total_completions: 2 };
    });
    world.settle();
    let image =
        |world: &World| world.running(id).iter().map(|t| t.spec.containers[0].image.clone()).collect::<Vec<_>>();
    assert_eq!(image(&world), ["second"]);
    world.update_service(id, |s| s.spec.task.containers[0].image = "fourth".into());
    world.settle();
    assert_eq!(image(&world), ["second"], "its spec is kept though it is neither in force nor the one before");
    complete(&mut world, id);
    world.pass(HOUR);
    assert_eq!(image(&world), ["fourth", "fourth"]);
}

#[test]
fn a_run_that_has_no_task_yet_keeps_its_spec_too() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.now = START.after(30 * MINUTE);
    let handle = world.view().services().reference(id).unwrap().handle();
    let asked = plan(&world.view(), handle, world.now).groups;
    world.propose(asked);
    for image in ["second", "third", "fourth"] {
        world.update_service(id, |s| {
            s.previous = Some(Box::new(PreviousSpec { spec: s.spec.clone(), spec_version: s.spec_version }));
            s.spec.task.containers[0].image = image.into();
        });
    }
    world.settle();
    let running = world.running(id);
    assert_eq!((running.len(), running[0].spec.containers[0].image.as_str()), (1, "image"));
}

#[test]
fn another_schedule_counts_from_then_on() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.now = START.after(45 * MINUTE);
    // Ten o'clock has come and was not decided; by the new schedule it is no more.
    world.update_service(id, |s| drop(s.spec.annotations.labels.insert(LABEL.into(), "0 10,12 * * *".into())));
    world.settle();
    assert_eq!(last_run(&world, id), None);
    world.pass(2 * HOUR);
    assert_eq!(last_run(&world, id), Some(150));
}

#[test]
fn force_runs_it_at_once_and_a_job_without_schedule_runs_as_ever() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.update_service(id, |s| s.spec.task.force_update += 1);
    world.settle();
    assert_eq!((world.running(id).len(), last_run(&world, id)), (1, None));
    complete(&mut world, id);
    world.update_service(id, |s| drop(s.spec.annotations.labels.remove(LABEL)));
    world.settle();
    assert_eq!((world.service(id).unwrap().runs, world.running(id).len()), (None, 1));
    label(&mut world, id, LABEL, "@hourly");
    assert_eq!(world.running(id).len(), 1, "what goes on is its run");
    world.pass(30 * MINUTE);
    assert_eq!(last_run(&world, id), None, "and holds the next one up");
}

#[test]
fn runs_stay_as_the_history_of_tasks_says() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "*/10 * * * *")]);
    let limit = usize::try_from(world.view().cluster().unwrap().spec.task_history).unwrap();
    for run in 1..limit + 4 {
        world.pass(10 * MINUTE);
        assert_eq!(complete(&mut world, id), 1);
        assert_eq!(iterations(&world.tasks(id)).len(), run.min(limit));
    }
}

#[test]
fn a_global_job_runs_on_each_node() {
    let mut world = world();
    let id = world.add_service("job", ServiceMode::GlobalJob, |s| {
        s.annotations.labels.insert(LABEL.into(), "@hourly".into());
    });
    for due in [30, 90] {
        world.pass(Duration::from_secs(due * 60) - world.now.since(START));
        assert_eq!((complete(&mut world, id), last_run(&world, id)), (2, Some(due)));
    }
}

#[test]
fn two_leaders_cannot_both_begin_a_run() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.now = START.after(30 * MINUTE);
    let handle = world.view().services().reference(id).unwrap().handle();
    let asked = plan(&world.view(), handle, world.now).groups;
    assert!(matches!(world.propose(asked.clone()).as_slice(), [Outcome::Applied { .. }]));
    let iteration = runs(&world, id).iteration;
    assert!(matches!(world.propose(asked).as_slice(), [Outcome::Refused(Refusal::OutOfSequence { .. })]));
    assert_eq!(runs(&world, id).iteration, iteration);
}

#[test]
fn what_is_decided_survives_a_snapshot() {
    let mut world = world();
    let id = job(&mut world, &[(LABEL, "@hourly")]);
    world.pass(30 * MINUTE);
    world.update_service(id, |s| s.spec.task.containers[0].image = "second".into());
    world.settle();
    let (kept, state) = (runs(&world, id), world.reopened());
    assert_eq!(state.services().get(id).unwrap().runs, Some(kept));
    assert_eq!(state.digest(), world.view().digest());
    let reference = state.services().reference(id).unwrap();
    assert!(state.spec(reference, kept.iteration).is_some_and(|s| s.service.spec_version == kept.iteration));
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// Time passes, in seconds, with a leader.
    Pass(u64),
    /// Time passes, in seconds, without one.
    Outage(u64),
    /// Another leader, whose clock is put back or forth by so many seconds.
    Leader(i64),
    /// What runs completes.
    Complete,
    Suspend(bool),
    Image,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_u64..1800).prop_map(Event::Pass),
        1 => (1_u64..20_000).prop_map(Event::Outage),
        2 => (-4000_i64..4000).prop_map(Event::Leader),
        3 => Just(Event::Complete),
        1 => any::<bool>().prop_map(Event::Suspend),
        1 => Just(Event::Image),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens, runs are at scheduled times, each later than the one before, none before it is due.
    #[test]
    fn no_time_runs_twice(events in prop::collection::vec(event(), 1..40), replace in any::<bool>()) {
        let mut world = world();
        let policy = if replace { "replace" } else { "forbid" };
        let id = job(&mut world, &[(LABEL, "*/10 * * * *"), (CONCURRENCY_LABEL, policy)]);
        let (mut last, mut known) = (runs(&world, id), 0);
        for event in events {
            match event {
                Event::Pass(seconds) => {
                    let end = world.now.after(Duration::from_secs(seconds));
                    while world.now < end {
                        world.now = world.now.after(MINUTE).min(end);
                        world.settle();
                        check(&world, id, &mut last, &mut known)?;
                    }
                }
                Event::Outage(seconds) => world.now = world.now.after(Duration::from_secs(seconds)),
                Event::Leader(step) => world.now = Timestamp(world.now.0.saturating_add_signed(step * 1000)),
                Event::Complete => drop(complete(&mut world, id)),
                Event::Suspend(is) => label(&mut world, id, SUSPENDED_LABEL, if is { "true" } else { "false" }),
                Event::Image => world.update_service(id, |s| s.spec.task.containers[0].image.push('x')),
            }
            world.settle();
            check(&world, id, &mut last, &mut known)?;
        }
        prop_assert_eq!(world.reopened().digest(), world.view().digest());
    }

    /// As long as time passes evenly and runs complete, each scheduled time has its run, whoever leads.
    #[test]
    fn each_time_runs_once(seconds in prop::collection::vec(1_u64..700, 1..40)) {
        let mut world = world();
        let id = job(&mut world, &[(LABEL, "*/10 * * * *")]);
        let mut count = 0;
        for seconds in seconds {
            let end = world.now.after(Duration::from_secs(seconds));
            while world.now < end {
                // Planners hold nothing: each round might be another leader's.
                let next = world.plans().recheck_at.unwrap_or(end);
                world.now = next.max(Timestamp(world.now.0 + 1)).min(end);
                world.settle();
                count += complete(&mut world, id);
            }
            let passed = world.now.since(START).as_secs() / 600;
            prop_assert_eq!(u64::try_from(count).unwrap(), passed);
        }
    }
}

fn check(world: &World, id: ServiceId, last: &mut ScheduledRuns, known: &mut u64) -> Result<(), TestCaseError> {
    let now = runs(world, id);
    prop_assert!(now.decided_at >= last.decided_at && now.iteration >= *known);
    if now.last_at != last.last_at {
        let at = now.last_at.unwrap();
        prop_assert!(last.last_at < Some(at) && at > last.decided_at, "{:?} after {:?}", now, last);
        prop_assert!(at.0.is_multiple_of(600_000) && at <= world.now);
        prop_assert!(now.iteration > *known, "a run is an iteration of its own");
    } else {
        prop_assert_eq!(now.iteration, last.iteration, "no run without a time");
    }
    prop_assert!(iterations(&world.running(id)).len() <= 1, "runs do not overlap");
    (*last, *known) = (now, now.iteration);
    Ok(())
}
