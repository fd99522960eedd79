//! When a job with a schedule runs again.
//!
//! The labels of a service hold its schedule ([`skep_proto::model::schedule`]), its record holds up to which time everything is
//! decided ([`ScheduledRuns`]). [`plan`] looks at the times since then: a run is asked for in the same change that moves the
//! record on, and that change names the version it read. So no time is decided twice, whatever leaders and clocks do: two
//! leaders ask from the same version, and a clock that was put back finds the time behind the record. The store makes a run an
//! iteration of its own; how its tasks come and go is the orchestrator's ([`job`]).
//!
//! | time is due and | then |
//! |---|---|
//! | nothing goes on, or the policy is `replace` or `allow` | it runs |
//! | the last run goes on, `forbid` | it is left out |
//! | others came due before it, and none was decided (no manager was there) | only the newest counts |
//! | it is later than the deadline, and than [`ON_TIME`] | it is left out |
//! | the schedule was suspended | it is forgotten: any change of the schedule begins anew |

mod calendar;
#[cfg(test)]
mod tests;

use std::time::Duration;

use skep_proto::model::schedule::{Concurrency, Schedule};
use skep_proto::model::service::ScheduledRuns;
use skep_proto::model::{Labels, Service, Timestamp};

pub use calendar::Calendar;

use crate::orchestrator::job;
use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, Kind, Reference, State, Touched};

/// A run that is decided so soon after its time was not missed: a change of leader takes seconds, and a clock that was put
/// forward is noticed by the sweep.
pub const ON_TIME: Duration = Duration::from_secs(30);

/// The planner; its key is a service.
#[derive(Debug, Default)]
pub struct Schedules;

impl Planner for Schedules {
    type Key = u32;
    const NAME: &'static str = "schedules";

    fn keys(&self, state: &State) -> Vec<u32> {
        let scheduled = state.services().iter().filter(|(_, service)| service.runs.is_some());
        scheduled.map(|(reference, _)| reference.handle()).collect()
    }

    // What happens to tasks matters only at the moment when a run is due.
    fn touched(&self, touched: &Touched, state: &State) -> Vec<u32> {
        let services = touched.objects.iter().filter(|o| o.kind == Kind::Service).map(|o| o.handle);
        services.filter(|handle| state.services().at(*handle).is_some_and(|s| s.runs.is_some())).collect()
    }

    fn plan(&mut self, state: &State, key: u32, env: &mut Env<'_>) -> Plan {
        plan(state, key, env.now)
    }
}

/// The schedule of a service, with its calendar; `None` for a service without one.
///
/// # Errors
/// What of the labels cannot be understood.
pub fn read(labels: &Labels) -> Result<Option<(Schedule, Calendar)>, String> {
    let Some(schedule) = Schedule::read(labels)? else { return Ok(None) };
    let calendar = Calendar::of(&schedule)?;
    Ok(Some((schedule, calendar)))
}

/// When the job is due next, as far as is known; `None` for a service that is not run by a schedule, or while that is
/// suspended.
pub fn next(service: &Service, now: Timestamp) -> Option<Timestamp> {
    let runs = service.runs?;
    let (schedule, calendar) = read(&service.spec.annotations.labels).ok()??;
    if schedule.is_suspended { None } else { calendar.first_after(runs.decided_at.max(now)) }
}

/// Decides the newest time that has come since the last decision, or when to look again.
pub fn plan(state: &State, handle: u32, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = state.services().at(handle).filter(|service| !service.pending_delete) else { return plan };
    // Labels that make no sense were refused when the service was made.
    let Some((runs, Ok(Some((schedule, calendar))))) =
        service.runs.map(|runs| (runs, read(&service.spec.annotations.labels)))
    else {
        return plan;
    };
    if schedule.is_suspended {
        return plan;
    }
    let Some(due) = calendar.last_between(runs.decided_at, now) else {
        if let Some(at) = calendar.first_after(runs.decided_at.max(now)) {
            plan.recheck(at);
        }
        return plan;
    };
    let is_in_time = schedule.deadline.is_none_or(|deadline| now.since(due) <= deadline.max(ON_TIME));
    let is_free = schedule.concurrency != Concurrency::Forbid || !job::goes_on(state, service, now);
    let last_at = if is_in_time && is_free { Some(due) } else { runs.last_at };
    let mut decided = (**service).clone();
    decided.runs = Some(ScheduledRuns { decided_at: due, last_at, ..runs });
    plan.groups.push(Group::of(Change::update(&decided)));
    plan
}
