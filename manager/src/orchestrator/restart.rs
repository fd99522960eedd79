//! Whether and when a task that has ended is replaced.

use std::time::Duration;

use skep_proto::model::task::{RestartCondition, RestartPolicy};
use skep_proto::model::{TaskState, Timestamp};

/// What becomes of a place whose task has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It gets a replacement.
    Replace {
        /// When the replacement may start.
        at: Timestamp,
        /// Times of the restarts that count, this one included; empty where nothing is counted.
        restarts: Vec<u64>,
    },
    /// It stays as it is: the policy wants no further attempt.
    Leave,
}

/// Decides by the policy alone. `ended` is the state that the task ended in, at `ended_at`; `earlier` are the restarts
/// of its place that still count.
pub fn decide(
    policy: &RestartPolicy,
    ended: TaskState,
    ended_at: Timestamp,
    earlier: &[u64],
    now: Timestamp,
) -> Decision {
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => ended != TaskState::Complete,
        RestartCondition::Any => true,
    };
    if !wanted {
        return Decision::Leave;
    }
    let mut restarts = Vec::new();
    // Zero, like absence, means no limit.
    if let Some(limit) = policy.max_attempts.filter(|n| *n > 0) {
        let window = policy.window.filter(|w| *w > Duration::ZERO);
        let counts = |at: &u64| window.is_none_or(|w| now.since(Timestamp(*at)) <= w);
        restarts = earlier.iter().copied().filter(counts).collect();
        if restarts.len() as u64 >= limit {
            return Decision::Leave;
        }
        restarts.push(now.0);
    }
    // The clock of another leader may be ahead: nobody waits longer than the delay.
    let at = ended_at.min(now).after(policy.delay.unwrap_or(RestartPolicy::DEFAULT_DELAY));
    Decision::Replace { at, restarts }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(100_000);

    fn policy(condition: RestartCondition) -> RestartPolicy {
        RestartPolicy { condition, delay: Some(Duration::from_secs(2)), ..RestartPolicy::default() }
    }

    #[test]
    fn the_condition_decides_which_ends_count() {
        let is_replaced = |condition, state| decide(&policy(condition), state, NOW, &[], NOW) != Decision::Leave;
        assert!(is_replaced(RestartCondition::Any, TaskState::Complete));
        assert!(is_replaced(RestartCondition::OnFailure, TaskState::Rejected));
        assert!(!is_replaced(RestartCondition::OnFailure, TaskState::Complete));
        assert!(!is_replaced(RestartCondition::None, TaskState::Failed));
    }

    #[test]
    fn the_delay_runs_from_the_end_and_never_from_the_future() {
        let at = |ended| match decide(&policy(RestartCondition::Any), TaskState::Failed, Timestamp(ended), &[], NOW) {
            Decision::Replace { at, .. } => at.0,
            Decision::Leave => 0,
        };
        assert_eq!((at(99_000), at(500_000)), (101_000, 102_000));
    }

    #[test]
    fn attempts_are_counted_within_the_window() {
        let limited = RestartPolicy {
            max_attempts: Some(2),
            window: Some(Duration::from_secs(10)),
            ..policy(RestartCondition::Any)
        };
        let decide = |earlier: &[u64]| decide(&limited, TaskState::Failed, NOW, earlier, NOW);
        assert_eq!(decide(&[95_000, 96_000]), Decision::Leave);
        let Decision::Replace { restarts, .. } = decide(&[10_000, 95_000]) else { panic!("one is outside the window") };
        assert_eq!(restarts, [95_000, 100_000]);
    }
}
