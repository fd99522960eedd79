//! Rules of pods, as tables.

use std::path::PathBuf;

use proptest::prelude::*;
use skep_proto::model::engine::{EtcFiles, NetworkMode, ResolvedProcess};
use skep_proto::model::{Health, HealthStatus};

use super::*;
use crate::executor::node::plan::container_config;
use crate::test_support::{NODE, unit};

fn container(status: ContainerStatus, exit_code: i32, error: &str, at: u64) -> Container {
    Container {
        config: container_config(&unit(1), unit(1).spec.task.containers[0].clone(), NODE, 0, NetworkMode::Host, "n1"),
        created_at: Timestamp(0),
        image_id: String::new(),
        process: ResolvedProcess::default(),
        state: ContainerState {
            status,
            pid: if is_live(status) { 9 } else { 0 },
            exit_code,
            error: error.into(),
            oom_killed: false,
            started_at: None,
            finished_at: Some(Timestamp(at)).filter(|_| status == ContainerStatus::Exited),
        },
        health: None,
        restart_count: 0,
        mounts: Vec::new(),
        networks: Vec::new(),
        ports: Vec::new(),
        exposed: Vec::new(),
        log_path: PathBuf::new(),
        etc: EtcFiles::default(),
    }
}

fn member(role: Role, container: Option<Container>) -> Member {
    Member { role, name: format!("{role:?}").to_lowercase(), container, probed: Probed::FINE }
}

fn created() -> Option<Container> {
    Some(container(ContainerStatus::Created, 0, "", 0))
}

fn runs() -> Option<Container> {
    Some(container(ContainerStatus::Running, 0, "", 0))
}

fn ended(code: i32, at: u64) -> Option<Container> {
    Some(container(ContainerStatus::Exited, code, "", at))
}

use Role::{Init, Main, Sidecar};

/// Containers as they are, by their roles.
type All<'a> = &'a [(Role, Option<Container>)];

/// Members in the order of a spec: the main ones first.
fn members(all: &[(Role, Option<Container>)]) -> Vec<Member> {
    all.iter().map(|(role, container)| member(*role, container.clone())).collect()
}

fn stands(all: &[(Role, Option<Container>)], restart: RestartCondition) -> Containers {
    together(&members(all), restart, Running::default())
}

fn exit(code: i32, error: &str) -> Containers {
    Containers::Ended(Exit { code, error: error.into(), unhealthy: false })
}

#[test]
fn init_containers_run_one_after_the_other_and_the_main_ones_together() {
    let rows: [(All<'_>, &[usize]); 8] = [
        (&[(Main, created()), (Main, created())], &[0, 1]),
        (&[(Main, created()), (Init, created()), (Init, created())], &[1]),
        (&[(Main, created()), (Init, runs()), (Init, created())], &[]),
        (&[(Main, created()), (Init, ended(0, 1)), (Init, created())], &[2]),
        (&[(Main, created()), (Main, created()), (Init, ended(0, 1)), (Init, ended(0, 2))], &[0, 1]),
        (&[(Main, created()), (Init, ended(3, 1)), (Init, created())], &[]),
        (&[(Main, created()), (Sidecar, created()), (Init, created())], &[1]),
        (&[(Main, created()), (Sidecar, runs()), (Init, created())], &[2]),
    ];
    for (all, expected) in rows {
        assert_eq!(next(&members(all)), expected, "{:?}", all.iter().map(|(role, _)| role).collect::<Vec<_>>());
    }
}

#[test]
fn those_after_a_sidecar_wait_for_its_startup_probe() {
    let mut all = members(&[(Main, created()), (Sidecar, runs())]);
    all[1].probed.started = false;
    assert_eq!(next(&all), [0_usize; 0]);
    all[1].probed.started = true;
    assert_eq!(next(&all), [0]);
}

#[test]
fn a_task_runs_from_its_first_container_on_and_starts_until_all_are_ready() {
    let at = |all: &[(Role, Option<Container>)]| match stands(all, RestartCondition::Any) {
        Containers::Running(running) => (running.health, running.unfinished, running.pid),
        other => panic!("{other:?}"),
    };
    let starting = Some(HealthStatus::Starting);
    assert_eq!(at(&[(Main, created()), (Init, runs())]), (starting, true, 0));
    assert_eq!(at(&[(Main, created()), (Init, ended(0, 1))]), (starting, true, 0));
    assert_eq!(at(&[(Main, runs()), (Init, ended(0, 1))]), (None, false, 9));
    assert_eq!(at(&[(Main, runs()), (Sidecar, runs())]), (None, false, 9));
    assert_eq!(stands(&[(Main, created()), (Init, created())], RestartCondition::Any), Containers::Created);
    assert_eq!(stands(&[(Main, created()), (Init, None)], RestartCondition::Any), Containers::Absent);
    let gone = "a container of the task is gone from its node";
    assert_eq!(stands(&[(Main, runs()), (Sidecar, None)], RestartCondition::Any), exit(0, gone));

    let mut all = members(&[(Main, runs()), (Sidecar, runs())]);
    all[0].probed.ready = false;
    let Containers::Running(running) = together(&all, RestartCondition::Any, Running::default()) else { panic!() };
    assert_eq!((running.health, running.unready), (starting, true));
    all[0].probed.failed = Some("its liveness probe failed".into());
    let Containers::Running(running) = together(&all, RestartCondition::Any, Running::default()) else { panic!() };
    assert_eq!(running.health, Some(HealthStatus::Unhealthy));
}

#[test]
fn one_containers_failure_is_the_tasks_and_the_first_one_counts() {
    use RestartCondition::{Any, OnFailure};
    let rows: [(All<'_>, RestartCondition, Containers); 10] = [
        (&[(Main, ended(0, 1))], Any, exit(0, "")),
        (&[(Main, ended(3, 1))], Any, exit(3, "")),
        (&[(Main, runs()), (Main, ended(3, 5))], Any, exit(3, "container main ended")),
        // It was stopped because of the other one.
        (&[(Main, ended(143, 9)), (Main, ended(3, 5))], Any, exit(3, "container main ended")),
        (&[(Main, created()), (Init, ended(4, 5))], Any, exit(4, "init container init ended")),
        (&[(Main, runs()), (Sidecar, ended(0, 5))], Any, exit(0, "sidecar sidecar ended")),
        (&[(Main, runs()), (Main, ended(0, 5))], Any, exit(0, "")),
        (&[(Main, ended(0, 6)), (Main, ended(0, 5))], OnFailure, exit(0, "")),
        // The sidecars are stopped when the work is done.
        (&[(Main, ended(0, 6)), (Sidecar, ended(143, 7))], OnFailure, exit(0, "")),
        (&[(Main, ended(1, 6)), (Main, runs())], OnFailure, exit(1, "container main ended")),
    ];
    for (all, restart, expected) in rows {
        assert_eq!(stands(all, restart), expected, "{:?}", all.iter().map(|(role, _)| role).collect::<Vec<_>>());
    }
    let unfinished = stands(&[(Main, runs()), (Main, ended(0, 5))], OnFailure);
    assert!(matches!(unfinished, Containers::Running(_)), "{unfinished:?}");
}

/// One that ran for so many seconds until then.
fn ran(code: i32, seconds: u64, at: u64) -> Option<Container> {
    let mut container = container(ContainerStatus::Exited, code, "", at * 1000);
    container.state.started_at = Some(Timestamp((at - seconds) * 1000));
    Some(container)
}

#[test]
fn a_sidecar_and_a_main_container_that_ran_well_are_started_again_while_another_one_runs() {
    use RestartCondition::{Any, OnFailure};
    let rows: [(All<'_>, RestartCondition, &[usize]); 10] = [
        (&[(Main, runs()), (Sidecar, ran(0, 1, 9))], Any, &[1]),
        (&[(Main, runs()), (Sidecar, ran(1, 1, 9)), (Sidecar, ran(1, 1, 9))], OnFailure, &[1, 2]),
        (&[(Main, runs()), (Main, ran(0, 10, 99))], Any, &[1]),
        (&[(Main, ran(2, 60, 99)), (Sidecar, runs())], Any, &[0]),
        // That is for the restart policy, and for the update under way.
        (&[(Main, runs()), (Main, ran(1, 9, 99))], Any, &[]),
        (&[(Main, runs()), (Main, ran(1, 60, 99))], OnFailure, &[]),
        (&[(Main, runs()), (Init, ran(0, 1, 9))], Any, &[]),
        // None is left, as after a failure of the node.
        (&[(Main, ran(255, 60, 99)), (Sidecar, ran(255, 60, 99))], Any, &[]),
        (&[(Main, ran(0, 60, 99)), (Sidecar, ran(0, 60, 99)), (Init, runs())], Any, &[]),
        // The work is done.
        (&[(Main, ran(0, 60, 99)), (Sidecar, ran(1, 60, 99)), (Sidecar, runs())], OnFailure, &[]),
    ];
    for (all, restart, expected) in rows {
        let members = members(all);
        assert_eq!(again(&members, restart), expected, "{:?}", all.iter().map(|(role, _)| role).collect::<Vec<_>>());
        if !expected.is_empty() {
            let Containers::Running(running) = together(&members, restart, Running::default()) else { panic!() };
            assert_eq!((running.unready, running.health), (true, Some(HealthStatus::Starting)));
        }
    }
    assert_eq!(stands(&[(Main, runs()), (Main, ran(1, 9, 99))], Any), exit(1, "container main ended"));
}

#[test]
fn a_sidecar_whose_probe_wants_it_ended_takes_nobody_with_it() {
    let mut all = members(&[(Main, runs()), (Sidecar, runs())]);
    all.iter_mut().for_each(|member| member.container.as_mut().unwrap().state.started_at = Some(Timestamp(0)));
    all[1].probed.failed = Some("its liveness probe failed".into());
    assert_eq!(ailing(&all, RestartCondition::OnFailure), [1]);
    let Containers::Running(running) = together(&all, RestartCondition::OnFailure, Running::default()) else {
        panic!()
    };
    assert_eq!(running.health, Some(HealthStatus::Starting));
    all[0].probed.failed = Some("its liveness probe failed".into());
    assert_eq!(ailing(&all, RestartCondition::OnFailure), [1], "a job's main container fails its task");
    assert_eq!(ailing(&all, RestartCondition::Any), [0, 1]);
}

#[test]
fn pauses_grow_and_are_forgiven_after_a_long_run() {
    let pauses: Vec<u64> = (1..=9).map(|ends| pause(ends).as_secs()).collect();
    assert_eq!(pauses, [1, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    let after = |seconds| ends_in_a_row(&members(&[(Sidecar, ran(1, seconds, 10_000))])[0], 4);
    assert_eq!((after(599), after(600)), (5, 1));
}

#[test]
fn a_container_that_could_not_be_started_has_failed_and_one_that_was_unhealthy_is_remembered_so() {
    let failed = Some(container(ContainerStatus::Created, 127, "no such file", 0));
    assert_eq!(stands(&[(Main, failed)], RestartCondition::Any), exit(127, "no such file"));
    let with = |status, mut one: Container| {
        one.health = Some(Health { status, failing_streak: 0, log: Vec::new() });
        Some(one)
    };
    let unhealthy = with(HealthStatus::Unhealthy, ended(0, 1).unwrap());
    let Containers::Ended(exit) = stands(&[(Main, unhealthy)], RestartCondition::Any) else { panic!() };
    assert!(exit.unhealthy);
    let health = |all: &[HealthStatus]| {
        let all: Vec<_> = all.iter().map(|status| (Main, with(*status, runs().unwrap()))).collect();
        let Containers::Running(running) = stands(&all, RestartCondition::Any) else { panic!() };
        running.health
    };
    use HealthStatus::{Healthy, Starting, Unhealthy};
    assert_eq!(health(&[Healthy, Starting]), Some(Starting));
    assert_eq!(health(&[Starting, Unhealthy]), Some(Unhealthy));
    assert_eq!(health(&[Healthy, Healthy]), Some(Healthy));
}

#[test]
fn sidecars_stop_after_the_main_containers_the_last_one_first() {
    let all = members(&[(Main, runs()), (Sidecar, runs()), (Init, ended(0, 1)), (Sidecar, runs()), (Main, runs())]);
    assert_eq!(stop_order(&all), [vec![0, 2, 4], vec![3], vec![1]]);
}

fn any_container() -> impl Strategy<Value = Option<Container>> {
    prop_oneof![Just(created()), Just(runs()), (0..3i32, 0..9u64).prop_map(|(code, at)| ended(code, at)), Just(None),]
}

proptest! {
    /// Started in turn on an ideal node, where init containers end well, every pod comes to run as a whole, and nothing
    /// is started twice or before its turn.
    #[test]
    fn every_pod_comes_to_run(roles in prop::collection::vec(prop::sample::select(vec![Main, Init, Sidecar]), 0..8)) {
        let roles: Vec<Role> = [Main].into_iter().chain(roles).collect();
        let mut all: Vec<_> = roles.iter().map(|role| (*role, created())).collect();
        for _ in 0..20 {
            let turn = next(&members(&all));
            for index in turn {
                prop_assert!(all[index].1.as_ref().unwrap().state.status == ContainerStatus::Created);
                let before = |other: &usize| all[index].0 == Main || *other < index;
                let inits = (0..all.len()).filter(|other| all[*other].0 == Init);
                prop_assert!(inits.filter(before).all(|other| all[other].1.as_ref().unwrap().state.finished_at.is_some()));
                all[index].1 = if all[index].0 == Init { ended(0, 1) } else { runs() };
            }
        }
        let Containers::Running(running) = stands(&all, RestartCondition::Any) else { panic!() };
        prop_assert!(!running.unfinished && running.health.is_none());
    }

    /// Whatever a node shows: a task that has ended starts nothing that decides otherwise, and nothing panics.
    #[test]
    fn what_ended_badly_stays_so(all in prop::collection::vec((prop::sample::select(vec![Main, Init, Sidecar]), any_container()), 1..6)) {
        let members = members(&all);
        let _ = stop_order(&members);
        let failed = members.iter().any(|m| m.role == Main && m.has_failed());
        let stands = together(&members, RestartCondition::OnFailure, Running::default());
        prop_assert!(!failed || matches!(stands, Containers::Ended(_)));
        for index in next(&members) {
            prop_assert!(members[index].is_untouched());
        }
    }
}
