//! One place of a service (a slot, or a node of a global service), judged by its tasks.

use skep_proto::model::{TaskState, Timestamp};

use super::restart::{self, Decision};
use super::{Homeless, homeless};
use crate::store::{State, TaskRow};

/// How often a failed task of a run is tried again where its policy does not say: Kubernetes' number (batch/v1, `JobSpec`,
/// `backoffLimit`).
const SCHEDULED_ATTEMPTS: u64 = 6;

/// What a place needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody lives there: free to be filled.
    Empty,
    /// A task lives there and may stay.
    Lived(Lived),
    /// Its task must be replaced.
    Replace {
        /// When the replacement may start; `None` for at once.
        at: Option<Timestamp>,
        /// Restarts that count.
        restarts: Vec<u64>,
    },
    /// Its task has ended and the policy wants no other.
    Finished,
}

/// A place with a live task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lived {
    /// Handle of the newest live task.
    pub newest: u32,
    /// Its spec's version.
    pub spec_version: u64,
    /// It runs.
    pub is_running: bool,
    /// Live tasks besides the newest: those that a start-first update will stop.
    pub older: Vec<u32>,
}

/// Judges a place by its tasks, in any order.
pub fn judge(state: &State, rows: &[(u32, &TaskRow)], now: Timestamp) -> Verdict {
    let mut live: Vec<(u32, &TaskRow)> = rows.iter().copied().filter(|(_, row)| row.is_live()).collect();
    live.sort_by_key(|(handle, row)| (row.created_index, *handle));
    if let Some((newest, row)) = live.last().copied() {
        return match homeless(state, row) {
            // Where it goes it starts at once: nothing is gained by waiting for a node that is gone.
            Some(Homeless::Lost | Homeless::Unwanted) => {
                let restarts = state.extra(newest).map(|e| e.restarts.clone()).unwrap_or_default();
                Verdict::Replace { at: None, restarts }
            }
            None => Verdict::Lived(Lived {
                newest,
                spec_version: row.spec_version,
                is_running: row.state == TaskState::Running,
                older: live[..live.len() - 1].iter().map(|(handle, _)| *handle).collect(),
            }),
        };
    }
    // A task that was told to go leaves its place empty; one that ended by itself asks for a decision.
    let newest = rows.iter().max_by_key(|(handle, row)| (row.created_index, *handle));
    let Some((handle, row)) = newest.copied().filter(|(_, row)| row.desired <= TaskState::Running) else {
        return Verdict::Empty;
    };
    match decide(state, handle, row, now) {
        Decision::Replace { at, restarts } => Verdict::Replace { at: Some(at), restarts },
        Decision::Leave => Verdict::Finished,
    }
}

/// What the restart policy says of a task that ended. It ended when the cluster learned of it: nodes' clocks differ, and a
/// late one would take the pause away.
pub(super) fn decide(state: &State, handle: u32, row: &TaskRow, now: Timestamp) -> Decision {
    let mut policy = state.spec_of(row).and_then(|spec| spec.task.restart.clone()).unwrap_or_default();
    let is_scheduled =
        row.service.and_then(|service| state.services().lookup(service)).is_some_and(|s| s.runs.is_some());
    if is_scheduled {
        // Else a run that always fails would hold back those after it for ever. Zero still asks for that.
        policy.max_attempts.get_or_insert(SCHEDULED_ATTEMPTS);
    }
    let earlier = state.extra(handle).map(|e| e.restarts.clone()).unwrap_or_default();
    restart::decide(&policy, row.state, Timestamp(row.updated_ms), &earlier, now)
}

/// Tasks that wait as ready and may run now: their time has come, or the others of their place have stopped.
pub fn to_start(state: &State, rows: &[(u32, &TaskRow)], now: Timestamp) -> (Vec<u32>, Option<Timestamp>) {
    let (mut ready, mut next) = (Vec::new(), None);
    for (handle, _) in rows.iter().filter(|(_, row)| row.desired == TaskState::Ready && row.is_live()) {
        let start_ms = state.extra(*handle).map_or(0, |e| e.start_ms);
        // A task on a lost node cannot be seen to stop; nobody waits for it.
        let others_stopped =
            rows.iter().all(|(other, r)| other == handle || r.is_dead() || homeless(state, r) == Some(Homeless::Lost));
        if start_ms > now.0 {
            let at = Timestamp(start_ms);
            next = Some(next.map_or(at, |n: Timestamp| n.min(at)));
        } else if start_ms > 0 || others_stopped {
            ready.push(*handle);
        }
    }
    (ready, next)
}
