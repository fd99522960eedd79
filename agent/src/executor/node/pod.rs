//! The containers of a task taken together: where the task stands, and whose turn it is. Pure.
//!
//! | role | its turn comes | its end |
//! |---|---|---|
//! | init | when those before it among init containers and sidecars are through | with 0: the next one's turn; else the task has failed |
//! | sidecar | likewise; it is through when its startup probe has succeeded | it is started again, see [`again`] |
//! | main | when all of the above are through | the task's, see [`decisive`]; or it is started again |

use std::time::Duration;

use skep_proto::model::engine::{Container, ContainerState, ContainerStatus};
use skep_proto::model::pod::Role;
use skep_proto::model::task::RestartCondition;
use skep_proto::model::{ContainerSpec, HealthStatus, Timestamp};

use crate::executor::{Containers, Exit, Running};

/// What the probes of a container have shown. A container without probes is as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Its startup probe has succeeded.
    pub started: bool,
    /// Its readiness probe does not fail.
    pub ready: bool,
    /// Why it must be ended.
    pub failed: Option<String>,
}

impl Probed {
    /// Of a container without probes.
    pub const FINE: Self = Self { started: true, ready: true, failed: None };
}

/// A container of a task, as the node shows it.
#[derive(Debug, Clone)]
pub struct Member {
    /// When it runs.
    pub role: Role,
    /// Its name in the task.
    pub name: String,
    /// The container; `None` when it does not exist.
    pub container: Option<Container>,
    /// What its probes have shown.
    pub probed: Probed,
}

/// A main container that ran for so long is started again in place: one that ends sooner is the task's failure, which updates
/// and restart policies are to see.
const RAN_WELL: Duration = Duration::from_secs(10);
/// After a run of that length the pause begins anew (kubelet).
const FORGIVEN: Duration = Duration::from_secs(600);
/// The longest pause before a container is started again (kubelet, `MaxContainerBackOff`).
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When a container runs.
pub fn role(spec: &ContainerSpec) -> Role {
    spec.pod.as_ref().map_or(Role::Main, |pod| pod.role)
}

impl Member {
    fn end(&self) -> Option<Exit> {
        self.container.as_ref().and_then(end_of)
    }

    fn is_live(&self) -> bool {
        self.container.as_ref().is_some_and(|container| is_live(container.state.status))
    }

    fn is_untouched(&self) -> bool {
        self.container.is_some() && !self.is_live() && self.end().is_none()
    }

    fn has_failed(&self) -> bool {
        self.end().is_some_and(|exit| exit.code != 0 || !exit.error.is_empty() || exit.unhealthy)
    }

    /// Those after it may have their turn.
    fn is_through(&self) -> bool {
        match self.role {
            Role::Init => self.end().is_some() && !self.has_failed(),
            Role::Sidecar | Role::Main => self.is_live() && self.probed.started,
        }
    }

    /// How long it ran; `None` when it never did.
    fn ran(&self) -> Option<Duration> {
        let state = &self.container.as_ref()?.state;
        Some(state.finished_at.unwrap_or(Timestamp(0)).since(state.started_at?))
    }

    fn ended_at(&self) -> Timestamp {
        self.container.as_ref().and_then(|c| c.state.finished_at).unwrap_or(Timestamp(0))
    }
}

/// The containers in the order of their turns: init containers and sidecars as they are declared, then the main ones.
fn in_turn(members: &[Member]) -> impl Iterator<Item = (usize, &Member)> {
    let first = members.iter().enumerate().filter(|(_, member)| member.role != Role::Main);
    first.chain(members.iter().enumerate().filter(|(_, member)| member.role == Role::Main))
}

/// Whether a container that ends is started again in its task, which goes on: where another one that stays runs, a sidecar always,
/// a main one that has run well where tasks are to run for ever. When none is left the task has ended.
fn is_again(index: usize, members: &[Member], restart: RestartCondition) -> bool {
    let stays = |(other, member): (usize, &Member)| other != index && member.role != Role::Init && member.is_live();
    let goes_on = || members.iter().enumerate().any(stays) && !are_done(members);
    let Some(ran) = members[index].ran() else { return false };
    match members[index].role {
        Role::Init => false,
        Role::Sidecar => goes_on(),
        Role::Main => restart == RestartCondition::Any && (members[index].is_live() || ran >= RAN_WELL) && goes_on(),
    }
}

/// The containers that have ended and are to be started again, each after its pause.
pub fn again(members: &[Member], restart: RestartCondition) -> Vec<usize> {
    let ended = (0..members.len()).filter(|index| members[*index].end().is_some());
    ended.filter(|index| is_again(*index, members, restart)).collect()
}

/// The containers that their probes want ended and that are started again then.
pub fn ailing(members: &[Member], restart: RestartCondition) -> Vec<usize> {
    let ails = |index: &usize| members[*index].is_live() && members[*index].probed.failed.is_some();
    (0..members.len()).filter(ails).filter(|index| is_again(*index, members, restart)).collect()
}

/// Ends in a row, this one included, `before` it.
pub fn ends_in_a_row(member: &Member, before: u32) -> u32 {
    if member.ran().is_some_and(|ran| ran >= FORGIVEN) { 1 } else { before.saturating_add(1) }
}

/// The pause before a container is started again after so many ends in a row: a second, then ten, doubled each time.
pub fn pause(ends: u32) -> Duration {
    match ends {
        0 | 1 => Duration::from_secs(1),
        more => {
            Duration::from_secs(10).saturating_mul(1u32.checked_shl(more - 2).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
        }
    }
}

/// The containers to be started now, in this order.
pub fn next(members: &[Member]) -> Vec<usize> {
    let mut turn = Vec::new();
    for (index, member) in in_turn(members) {
        if member.is_untouched() {
            turn.push(index);
        }
        // Main containers wait for no other main one.
        if member.role != Role::Main && !member.is_through() {
            break;
        }
    }
    turn
}

/// Where the task stands. `restart` is the condition of its restart policy, `running` what is known of its sandbox.
pub fn together(members: &[Member], restart: RestartCondition, running: Running) -> Containers {
    if let Some(exit) = decisive(members, restart) {
        return Containers::Ended(exit);
    }
    let was_touched = |member: &&Member| member.is_live() || member.end().is_some();
    let missing = members.iter().any(|member| member.container.is_none());
    if members.iter().filter(was_touched).count() == 0 {
        // Some were not made, or removed by hand: creation makes what is missing.
        return if missing { Containers::Absent } else { Containers::Created };
    }
    if missing {
        let error = "a container of the task is gone from its node".to_owned();
        return Containers::Ended(Exit { error, ..Exit::default() });
    }
    let main = members.iter().filter(|member| member.role == Role::Main).filter_map(|m| m.container.as_ref());
    let waits = !again(members, restart).is_empty();
    Containers::Running(Running {
        pid: main.map(|container| container.state.pid).next().unwrap_or_default(),
        health: health(members, restart),
        unready: waits || members.iter().any(|member| member.is_live() && !member.probed.ready),
        unfinished: members.iter().any(Member::is_untouched),
        ..running
    })
}

/// The end that is the task's, if there is one.
///
/// A container that fails takes the task with it, the first one if several do, unless it is started again. A main container that
/// ends well does so too where tasks are to run for ever; where they are to run to completion, the last one's end is the task's.
fn decisive(members: &[Member], restart: RestartCondition) -> Option<Exit> {
    let mains = || members.iter().filter(|member| member.role == Role::Main);
    if are_done(members)
        && let Some(last) = mains().max_by_key(|member| member.ended_at())
    {
        return last.end();
    }
    let decides = |member: &&Member| match member.role {
        Role::Main => member.has_failed() || (restart == RestartCondition::Any && member.end().is_some()),
        Role::Init => member.has_failed(),
        Role::Sidecar => member.end().is_some(),
    };
    let again = again(members, restart);
    let others = members.iter().enumerate().filter(|(index, _)| !again.contains(index)).map(|(_, member)| member);
    let first = others.filter(decides).min_by_key(|member| member.ended_at())?;
    let mut exit = first.end()?;
    if let Some(why) = &first.probed.failed {
        exit = Exit { error: format!("{}: {why}", first.name), unhealthy: true, ..exit };
    }
    if !first.name.is_empty() && members.len() > 1 && exit.error.is_empty() {
        let kind = match first.role {
            Role::Main if exit.code == 0 => return Some(exit),
            Role::Main => "container",
            Role::Init => "init container",
            Role::Sidecar => "sidecar",
        };
        exit.error = format!("{kind} {} ended", first.name);
    }
    Some(exit)
}

/// All main containers have ended well.
fn are_done(members: &[Member]) -> bool {
    members
        .iter()
        .filter(|member| member.role == Role::Main)
        .all(|member| member.end().is_some() && !member.has_failed())
}

/// One that is unhealthy makes the task so, unless it is started again; one that still starts lets it wait.
fn health(members: &[Member], restart: RestartCondition) -> Option<HealthStatus> {
    let mut worst = None;
    let mut consider = |status: HealthStatus| {
        let rank = |status: HealthStatus| match status {
            HealthStatus::Unhealthy => 2,
            HealthStatus::Starting => 1,
            HealthStatus::Healthy => 0,
        };
        if worst.is_none_or(|known| rank(status) > rank(known)) {
            worst = Some(status);
        }
    };
    let (again, ailing) = (again(members, restart), ailing(members, restart));
    for (index, member) in members.iter().enumerate() {
        if again.contains(&index) || ailing.contains(&index) {
            consider(HealthStatus::Starting);
            continue;
        }
        if let Some(health) = member.container.as_ref().and_then(|container| container.health.as_ref()) {
            consider(health.status);
        }
        if member.probed.failed.is_some() {
            consider(HealthStatus::Unhealthy);
        }
        let starts = member.is_live() && (member.role == Role::Init || !member.probed.started || !member.probed.ready);
        if starts || member.is_untouched() {
            consider(HealthStatus::Starting);
        }
    }
    worst
}

/// In which order containers are stopped: all of one group at a time. Sidecars go last, the newest first.
pub fn stop_order(members: &[Member]) -> Vec<Vec<usize>> {
    let (mut first, mut groups) = (Vec::new(), Vec::new());
    for (index, member) in members.iter().enumerate() {
        match member.role {
            Role::Main | Role::Init => first.push(index),
            Role::Sidecar => groups.push(vec![index]),
        }
    }
    groups.push(first);
    groups.reverse();
    groups
}

/// It runs, or would if it were not frozen.
pub fn is_live(status: ContainerStatus) -> bool {
    match status {
        ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => true,
        ContainerStatus::Created | ContainerStatus::Removing | ContainerStatus::Exited | ContainerStatus::Dead => false,
    }
}

/// How a container ended; `None` when it has not, or never ran.
fn end_of(container: &Container) -> Option<Exit> {
    let state = &container.state;
    let ended = match state.status {
        ContainerStatus::Exited | ContainerStatus::Dead | ContainerStatus::Removing => true,
        // It could not be started.
        ContainerStatus::Created => !state.error.is_empty(),
        ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => false,
    };
    let unhealthy = container.health.as_ref().is_some_and(|health| health.status == HealthStatus::Unhealthy);
    ended.then(|| Exit { code: state.exit_code, error: end_error(state), unhealthy })
}

fn end_error(state: &ContainerState) -> String {
    if state.oom_killed { "OOMKilled".to_owned() } else { state.error.clone() }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
