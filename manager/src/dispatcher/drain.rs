//! Tasks of one session's node that are to stop and are not told so yet, because nodes still lead to them. Pure.

use std::collections::{HashMap, HashSet};

use skep_proto::model::TaskId;
use tokio::time::Instant;

/// The tasks that wait.
#[derive(Debug, Default)]
pub struct Draining {
    /// Position, and until when it is waited for.
    until: HashMap<TaskId, (u32, Instant)>,
    /// Those that were waited for long enough: a node that does not answer must not keep others from stopping.
    given_up: HashSet<TaskId>,
}

impl Draining {
    /// Whether the task waits. `is_routed` asks whether some node leads to it, `limit` is until when that matters.
    pub fn waits(&mut self, task: TaskId, handle: u32, limit: Instant, is_routed: impl FnOnce() -> bool) -> bool {
        if self.given_up.remove(&task) || !is_routed() {
            self.until.remove(&task);
            return false;
        }
        self.until.entry(task).or_insert((handle, limit));
        true
    }

    /// When the next one has waited long enough.
    pub fn next(&self) -> Option<Instant> {
        self.until.values().map(|(_, until)| *until).min()
    }

    /// Gives up on those that have waited long enough; gives their positions.
    pub fn give_up(&mut self, now: Instant) -> Vec<u32> {
        let Self { until, given_up } = self;
        let due = until.extract_if(|_, (_, at)| *at <= now);
        due.map(|(task, (handle, _))| {
            given_up.insert(task);
            handle
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_waits_while_it_is_led_to_and_no_longer_than_the_limit() {
        let (mut draining, now, second) = (Draining::default(), Instant::now(), Duration::from_secs(1));
        assert!(!draining.waits(TaskId(1), 1, now + second, || false));
        assert!(draining.waits(TaskId(1), 1, now + second, || true));
        // Asked again: the first limit holds.
        assert!(draining.waits(TaskId(1), 1, now + second * 9, || true));
        assert_eq!(draining.next(), Some(now + second));
        assert!(draining.give_up(now).is_empty());
        assert_eq!(draining.give_up(now + second), [1]);
        assert_eq!(draining.next(), None);
        assert!(!draining.waits(TaskId(1), 1, now + second * 9, || true));
    }
}
