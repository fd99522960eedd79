//! Reconcilers: pure planners, and the one driver that runs them.
//!
//! A planner looks at one version of the state and says which changes bring it closer to what is wanted; the driver
//! proposes them and looks again. An event only names a key to look at, so that start-up, failover and normal running
//! are one code path.

mod driver;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::RngCore;
use skep_proto::model::{TaskId, Timestamp};

use crate::store::{Group, State, Touched};

pub use driver::{Clock, run};

/// How often every key is looked at, whatever happened.
pub const SWEEP: Duration = Duration::from_secs(10);

/// The only door of a planner to the outside.
pub struct Env<'a> {
    /// The time.
    pub now: Timestamp,
    /// Where new ids come from.
    pub rng: &'a mut dyn RngCore,
}

impl Env<'_> {
    /// A new task's id.
    pub fn task_id(&mut self) -> TaskId {
        let mut bytes = [0; 16];
        self.rng.fill_bytes(&mut bytes);
        TaskId(u128::from_le_bytes(bytes))
    }
}

/// What a planner decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Changes to propose, each group on its own.
    pub groups: Vec<Group>,
    /// When to look again though nothing was touched.
    pub recheck_at: Option<Timestamp>,
}

impl Plan {
    /// Looks again at `at`, unless it would sooner.
    pub fn recheck(&mut self, at: Timestamp) {
        self.recheck_at = Some(self.recheck_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides, without I/O, clock or chance of its own. Holds nothing that cannot be built again.
pub trait Planner: Send + 'static {
    /// Names what is decided apart from the rest: a service, or `()` where all decisions compete.
    type Key: Ord + Copy + Send + 'static;
    /// For the log.
    const NAME: &'static str;
    /// Every key.
    fn keys(&self, state: &State) -> Vec<Self::Key>;
    /// The keys that a change may concern.
    fn touched(&self, touched: &Touched, state: &State) -> Vec<Self::Key>;
    /// What to do for one key.
    fn plan(&mut self, state: &State, key: Self::Key, env: &mut Env<'_>) -> Plan;
}
