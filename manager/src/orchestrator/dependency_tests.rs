use std::time::Duration;

use skep_proto::model::dependency::LABEL;
use skep_proto::model::service::{UpdateConfig, UpdateOrder};
use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{ServiceId, ServiceMode, TaskState};

use crate::world::World;

fn waiting_for(world: &mut World, name: &str, on: &str) -> ServiceId {
    world.add_service(name, ServiceMode::Replicated { replicas: 1 }, |s| {
        s.annotations.labels.insert(LABEL.into(), on.into());
        s.task.restart = Some(RestartPolicy { delay: Some(Duration::ZERO), ..RestartPolicy::default() });
    })
}

fn plain(world: &mut World, name: &str, mode: ServiceMode) -> ServiceId {
    world.add_service(name, mode, |s| {
        let condition = if mode.is_job() { RestartCondition::OnFailure } else { RestartCondition::Any };
        s.task.restart = Some(RestartPolicy { condition, delay: Some(Duration::ZERO), ..RestartPolicy::default() });
    })
}

const ONE: ServiceMode = ServiceMode::Replicated { replicas: 1 };

#[test]
fn a_task_is_prepared_and_starts_once_what_it_waits_for_runs() {
    let mut world = World::new().nodes(1);
    let web = waiting_for(&mut world, "web", "db:service_healthy");
    world.settle();
    let waiting = world.tasks(web);
    assert_eq!((waiting.len(), waiting[0].desired), (1, TaskState::Ready), "it is there, and waits");
    let db = plain(&mut world, "db", ONE);
    world.settle();
    assert_eq!((world.running(db).len(), world.running(web).len()), (1, 1));
    assert_eq!(world.tasks(web).len(), 1, "it is the same task");
}

#[test]
fn a_service_that_need_not_exist_is_waited_for_only_where_it_does() {
    let mut world = World::new().nodes(1);
    let web = waiting_for(&mut world, "web", "mail:service_started?");
    world.settle();
    assert_eq!(world.running(web).len(), 1);
}

#[test]
fn a_job_is_waited_for_until_all_of_it_has_completed() {
    let mut world = World::new().nodes(1);
    let mode = ServiceMode::ReplicatedJob { max_concurrent: 1, total_completions: 2 };
    let job = plain(&mut world, "migrate", mode);
    let web = waiting_for(&mut world, "web", "migrate:service_completed_successfully");
    world.settle();
    for _ in 0..2 {
        assert_eq!(world.running(web).len(), 0);
        let task = world.running(job).remove(0);
        world.end(&task, TaskState::Complete, "");
        world.settle();
    }
    assert_eq!(world.running(web).len(), 1);
}

#[test]
fn a_failed_run_is_not_a_completed_one() {
    let mut world = World::new().nodes(1);
    let job = world.add_service("migrate", ONE, |s| {
        let condition = RestartCondition::OnFailure;
        s.task.restart = Some(RestartPolicy { condition, delay: Some(Duration::ZERO), ..RestartPolicy::default() });
    });
    let web = waiting_for(&mut world, "web", "migrate:service_completed_successfully");
    world.settle();
    let task = world.running(job).remove(0);
    world.end(&task, TaskState::Failed, "exit");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.running(web).len(), 0);
    let task = world.running(job).remove(0);
    world.end(&task, TaskState::Complete, "");
    world.pass(Duration::from_secs(1));
    assert_eq!((world.running(web).len(), world.running(job).len()), (1, 0));
}

#[test]
fn conditions_hold_for_later_starts_too_and_stop_nothing_that_runs() {
    let mut world = World::new().nodes(1);
    let db = plain(&mut world, "db", ONE);
    let web = waiting_for(&mut world, "web", "db:service_started");
    world.settle();
    world.update_service(db, |s| s.spec.mode = ServiceMode::Replicated { replicas: 0 });
    world.settle();
    let task = world.running(web).pop().expect("what runs goes on");
    world.end(&task, TaskState::Failed, "lost its database");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.running(web).len(), 0, "the next one waits");
    world.update_service(db, |s| s.spec.mode = ONE);
    world.settle();
    assert_eq!(world.running(web).len(), 1);
}

#[test]
fn an_update_that_starts_first_waits_and_then_goes_on() {
    let mut world = World::new().nodes(1);
    let db = plain(&mut world, "db", ONE);
    let web = waiting_for(&mut world, "web", "db:service_started");
    world.settle();
    world.update_service(db, |s| s.spec.mode = ServiceMode::Replicated { replicas: 0 });
    world.settle();
    world.update_service(web, |s| {
        s.spec.task.force_update += 1;
        s.spec.update = Some(UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    });
    world.settle();
    let old: Vec<u64> = world.running(web).iter().map(|t| t.spec_version).collect();
    assert_eq!(old.len(), 1, "the old one runs until the new one may start");
    world.update_service(db, |s| s.spec.mode = ONE);
    world.pass(Duration::from_secs(10));
    let new: Vec<u64> = world.running(web).iter().map(|t| t.spec_version).collect();
    assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
}
