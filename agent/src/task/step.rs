//! What a task needs next. Pure: the same situation always has the same step.
//!
//! | wanted | containers | reported | step |
//! |---|---|---|---|
//! | gone | any | any | remove, then forget |
//! | any | running or created | ended | stop, or nothing to stop; release |
//! | any | absent or ended | ended | release once, then idle |
//! | shutdown | running | live | stop |
//! | shutdown | absent, created, ended | live | report shutdown |
//! | ready, running | ended | live | report complete or failed |
//! | ready, running | running, unhealthy | live | stop |
//! | ready, running | running, more to start | live | prepare, wait |
//! | ready, running | running, health not known yet | below running | wait |
//! | ready, running | running | below running | report running |
//! | ready, running | running | running | wait |
//! | ready, running | absent | starting, running | report failed: they are gone |
//! | ready, running | created | running | report failed: they are not what ran |
//! | ready, running | absent | below starting | accepted, preparing, prepare, create |
//! | ready | created | below starting | ready, then idle |
//! | running | created | below starting | ready, starting, start |

use skep_proto::model::{HealthStatus, TaskState};

use crate::executor::{Containers, Exit};

/// What the managers want of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Be ready to start at once.
    Ready,
    /// Run.
    Running,
    /// Have ended.
    Shutdown,
    /// Leave nothing behind, also no memory of it.
    Gone,
}

impl Goal {
    /// The goal that a desired state stands for.
    pub fn of(desired: TaskState) -> Self {
        match desired {
            TaskState::New
            | TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready => Self::Ready,
            TaskState::Starting | TaskState::Running | TaskState::Complete => Self::Running,
            // What is to be removed is stopped first; it is gone when the managers forget it.
            TaskState::Shutdown | TaskState::Failed | TaskState::Rejected | TaskState::Remove | TaskState::Orphaned => {
                Self::Shutdown
            }
        }
    }
}

/// All that the next step depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// Wanted.
    pub goal: Goal,
    /// The furthest state that was reported, by this or an earlier process.
    pub reached: TaskState,
    /// What the node shows.
    pub containers: Containers,
    /// This process has prepared the task since it last saw containers absent or created.
    pub prepared: bool,
    /// This process has released what only a live task needs.
    pub released: bool,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Move the reported state forward.
    Report(Outcome),
    /// [`crate::executor::Executor::prepare`].
    Prepare,
    /// [`crate::executor::Executor::create`].
    Create,
    /// [`crate::executor::Executor::start`].
    Start,
    /// [`crate::executor::Executor::wait`].
    Wait,
    /// [`crate::executor::Executor::stop`].
    Stop,
    /// [`crate::executor::Executor::release`].
    Release,
    /// [`crate::executor::Executor::remove`], then forget the task.
    Remove,
    /// Nothing until the goal changes.
    Idle,
}

/// A state to report, with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The state.
    pub state: TaskState,
    /// Exit code, when the containers have ended.
    pub exit_code: Option<i32>,
    /// For people: what went wrong; empty when nothing did.
    pub error: String,
}

impl Outcome {
    fn of(state: TaskState) -> Step {
        Step::Report(Self { state, exit_code: None, error: String::new() })
    }
}

/// The next step of a task.
pub fn step(situation: &Situation) -> Step {
    match situation.goal {
        Goal::Gone => Step::Remove,
        _ if situation.reached.is_terminal() => clean_up(situation),
        Goal::Shutdown => shut_down(situation),
        Goal::Ready | Goal::Running => bring_up(situation),
    }
}

fn clean_up(situation: &Situation) -> Step {
    match situation.containers {
        Containers::Running(_) => Step::Stop,
        Containers::Absent | Containers::Created | Containers::Ended(_) if situation.released => Step::Idle,
        Containers::Absent | Containers::Created | Containers::Ended(_) => Step::Release,
    }
}

fn shut_down(situation: &Situation) -> Step {
    match &situation.containers {
        Containers::Running(_) => Step::Stop,
        Containers::Absent | Containers::Created => Outcome::of(TaskState::Shutdown),
        Containers::Ended(exit) => {
            Step::Report(Outcome { state: TaskState::Shutdown, exit_code: Some(exit.code), error: String::new() })
        }
    }
}

fn bring_up(situation: &Situation) -> Step {
    let Situation { goal, reached, ref containers, prepared, .. } = *situation;
    match containers {
        Containers::Ended(exit) => {
            let error = failure(exit);
            let state = if error.is_empty() { TaskState::Complete } else { TaskState::Failed };
            Step::Report(Outcome { state, exit_code: Some(exit.code), error })
        }
        // Its end is then a failure, see `failure`.
        Containers::Running(running) if running.health == Some(HealthStatus::Unhealthy) => Step::Stop,
        // An earlier process prepared it; the containers whose turn comes now need that again.
        Containers::Running(running) if running.unfinished && !prepared => Step::Prepare,
        Containers::Running(running) if reached < TaskState::Running => match running.health {
            Some(HealthStatus::Starting) if reached < TaskState::Starting => Outcome::of(TaskState::Starting),
            Some(HealthStatus::Starting) => Step::Wait,
            Some(HealthStatus::Healthy | HealthStatus::Unhealthy) | None => Outcome::of(TaskState::Running),
        },
        Containers::Running(_) => Step::Wait,
        Containers::Absent | Containers::Created if was_started(containers, reached) => {
            let error = "the task's containers are gone from its node".into();
            Step::Report(Outcome { state: TaskState::Failed, exit_code: None, error })
        }
        _ if reached < TaskState::Accepted => Outcome::of(TaskState::Accepted),
        _ if reached < TaskState::Preparing => Outcome::of(TaskState::Preparing),
        _ if !prepared => Step::Prepare,
        Containers::Absent => Step::Create,
        Containers::Created if reached < TaskState::Ready => Outcome::of(TaskState::Ready),
        Containers::Created if goal == Goal::Ready => Step::Idle,
        Containers::Created if reached < TaskState::Starting => Outcome::of(TaskState::Starting),
        Containers::Created => Step::Start,
    }
}

/// Containers that are gone, or that someone made anew, must not be started (again).
fn was_started(containers: &Containers, reached: TaskState) -> bool {
    match containers {
        Containers::Absent => reached >= TaskState::Starting,
        Containers::Created => reached > TaskState::Starting,
        Containers::Running(_) | Containers::Ended(_) => true,
    }
}

/// In Docker's words; empty for a clean end.
fn failure(exit: &Exit) -> String {
    match (exit.code, exit.error.as_str()) {
        (_, "") if exit.unhealthy => "task: unhealthy container".to_owned(),
        (_, error) if exit.unhealthy => format!("task: unhealthy container: {error}"),
        (0, error) => error.to_owned(),
        (code, "") => format!("task: non-zero exit ({code})"),
        (code, error) => format!("task: non-zero exit ({code}): {error}"),
    }
}

/// The state that a task ends in when an operation failed for good: what never started was rejected.
pub fn refusal(reached: TaskState) -> TaskState {
    if reached < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskState::*;
    use proptest::prelude::*;

    fn running() -> Containers {
        Containers::Running(Default::default())
    }

    fn unfinished() -> Containers {
        let health = Some(HealthStatus::Starting);
        Containers::Running(crate::executor::Running { health, unfinished: true, ..Default::default() })
    }

    fn with_health(health: HealthStatus) -> Containers {
        Containers::Running(crate::executor::Running { health: Some(health), ..Default::default() })
    }

    fn ended(code: i32) -> Containers {
        Containers::Ended(Exit { code, ..Exit::default() })
    }

    fn at(goal: Goal, containers: Containers, reached: TaskState) -> Situation {
        Situation { goal, reached, containers, prepared: true, released: false }
    }

    fn report(state: TaskState) -> Step {
        Outcome::of(state)
    }

    fn report_exit(state: TaskState, code: i32, error: &str) -> Step {
        Step::Report(Outcome { state, exit_code: Some(code), error: error.into() })
    }

    #[test]
    fn the_table() {
        use Containers::{Absent, Created};
        let rows = [
            (at(Goal::Gone, running(), Running), Step::Remove),
            (at(Goal::Gone, Absent, Assigned), Step::Remove),
            (at(Goal::Running, running(), Failed), Step::Stop),
            (at(Goal::Shutdown, ended(0), Shutdown), Step::Release),
            (at(Goal::Shutdown, Created, Shutdown), Step::Release),
            (at(Goal::Shutdown, running(), Running), Step::Stop),
            (at(Goal::Shutdown, running(), Starting), Step::Stop),
            (at(Goal::Shutdown, Absent, Preparing), report(Shutdown)),
            (at(Goal::Shutdown, Created, Ready), report(Shutdown)),
            (at(Goal::Shutdown, ended(137), Running), report_exit(Shutdown, 137, "")),
            (at(Goal::Running, ended(0), Running), report_exit(Complete, 0, "")),
            (at(Goal::Running, ended(3), Running), report_exit(Failed, 3, "task: non-zero exit (3)")),
            (at(Goal::Ready, ended(3), Starting), report_exit(Failed, 3, "task: non-zero exit (3)")),
            (at(Goal::Running, running(), Starting), report(Running)),
            (at(Goal::Running, running(), Accepted), report(Running)),
            (at(Goal::Running, running(), Running), Step::Wait),
            (at(Goal::Running, Absent, Assigned), report(Accepted)),
            (at(Goal::Running, Absent, Accepted), report(Preparing)),
            (Situation { prepared: false, ..at(Goal::Running, Absent, Preparing) }, Step::Prepare),
            (at(Goal::Running, Absent, Preparing), Step::Create),
            (at(Goal::Ready, Created, Preparing), report(Ready)),
            (at(Goal::Ready, Created, Ready), Step::Idle),
            (at(Goal::Running, Created, Ready), report(Starting)),
            (at(Goal::Running, Created, Starting), Step::Start),
            (Situation { prepared: false, ..at(Goal::Running, Created, Starting) }, Step::Prepare),
            (Situation { released: true, ..at(Goal::Shutdown, Absent, Shutdown) }, Step::Idle),
        ];
        for (situation, expected) in rows {
            assert_eq!(step(&situation), expected, "{situation:?}");
        }
    }

    #[test]
    fn a_started_task_whose_containers_are_gone_has_failed_and_is_not_started_again() {
        for reached in [Starting, Running] {
            let Step::Report(outcome) = step(&at(Goal::Running, Containers::Absent, reached)) else { panic!() };
            assert_eq!(outcome.state, Failed);
        }
    }

    #[test]
    fn a_task_runs_once_it_is_healthy_and_one_that_is_not_is_stopped_and_has_failed() {
        use HealthStatus::{Healthy, Starting as Unknown, Unhealthy};
        let next = |health, reached| step(&at(Goal::Running, with_health(health), reached));
        assert_eq!(next(Unknown, Starting), Step::Wait);
        assert_eq!(next(Unknown, Ready), report(Starting));
        assert_eq!(next(Healthy, Starting), report(Running));
        // After a restart of the daemon nothing is known for a while; what runs goes on running.
        assert_eq!((next(Unknown, Running), next(Healthy, Running)), (Step::Wait, Step::Wait));
        for reached in [Starting, Running] {
            assert_eq!(next(Unhealthy, reached), Step::Stop);
            for code in [0, 137] {
                let exit = Exit { code, unhealthy: true, ..Exit::default() };
                let step = step(&at(Goal::Running, Containers::Ended(exit), reached));
                assert_eq!(step, report_exit(Failed, code, "task: unhealthy container"));
            }
        }
        let exit = Exit { unhealthy: true, ..Exit::default() };
        assert_eq!(step(&at(Goal::Shutdown, Containers::Ended(exit), Running)), report_exit(Shutdown, 0, ""));
    }

    #[test]
    fn containers_whose_turn_comes_after_a_restart_of_the_agent_are_prepared_again() {
        let running =
            crate::executor::Running { health: Some(HealthStatus::Starting), unfinished: true, ..Default::default() };
        let at = |prepared| Situation { prepared, ..at(Goal::Running, Containers::Running(running.clone()), Starting) };
        assert_eq!((step(&at(false)), step(&at(true))), (Step::Prepare, Step::Wait));
    }

    #[test]
    fn an_end_with_an_error_is_a_failure_whatever_the_code() {
        let exit = Exit { error: "shim died".into(), ..Exit::default() };
        let Step::Report(outcome) = step(&at(Goal::Running, Containers::Ended(exit), Running)) else { panic!() };
        assert_eq!(outcome.state, Failed);
    }

    fn situations() -> impl Strategy<Value = Situation> {
        let goal = prop::sample::select(vec![Goal::Ready, Goal::Running, Goal::Shutdown, Goal::Gone]);
        let containers = prop::sample::select(vec![
            Containers::Absent,
            Containers::Created,
            running(),
            unfinished(),
            ended(0),
            ended(1),
        ]);
        (goal, prop::sample::select(&TaskState::ALL[..]), containers, any::<bool>(), any::<bool>()).prop_map(
            |(goal, reached, containers, prepared, released)| Situation {
                goal,
                reached,
                containers,
                prepared,
                released,
            },
        )
    }

    proptest! {
        #[test]
        fn a_reported_state_never_goes_backwards(situation in situations()) {
            if let Step::Report(outcome) = step(&situation) {
                prop_assert!(outcome.state > situation.reached);
            }
        }

        #[test]
        fn containers_start_only_when_that_is_wanted_and_was_announced(situation in situations()) {
            if step(&situation) == Step::Start {
                prop_assert_eq!(situation.goal, Goal::Running);
                prop_assert_eq!(situation.reached, Starting);
                prop_assert_eq!(situation.containers, Containers::Created);
            }
        }

        /// Running the steps on an ideal node ends where nothing is left to do, in few steps, and never passes one state twice.
        #[test]
        fn every_situation_settles(situation in situations()) {
            let mut now = situation;
            for _ in 0..12 {
                match step(&now) {
                    Step::Report(outcome) => now.reached = outcome.state,
                    Step::Prepare => now.prepared = true,
                    Step::Create => now.containers = Containers::Created,
                    Step::Start => now.containers = running(),
                    Step::Stop => now.containers = ended(137),
                    Step::Release => now.released = true,
                    Step::Wait | Step::Idle | Step::Remove => return Ok(()),
                }
            }
            prop_assert!(false, "does not settle: {:?}", now);
        }
    }
}
