//! The agent of a node: it holds a session with the managers, runs the tasks they assign, and goes on without them.
//!
//! Assignments are what is wanted, what the kernel and the disk show is what is observed; pure functions
//! ([`task::step`], [`state::held`]) decide, thin shells act. Everything that the agent must not forget is in
//! [`state`]; after a restart it takes its containers over and reports only what it sees.
//!
//! Invariants: a task's reported state only moves forward; its containers are started at most once; assignments older
//! than those seen are refused; no container ends because the agent did.

pub mod agent;
pub mod collect;
pub mod engine_port;
pub mod executor;
pub mod network;
pub mod reports;
pub mod session;
pub mod state;
pub mod task;

#[cfg(test)]
mod test_support;

use std::fmt;

pub use agent::{Agent, AgentConfig, AgentDeps};

/// Shows an error with its causes: `outer: cause: cause`.
pub(crate) fn chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl fmt::Display + 'a {
    struct Chain<'a>(&'a (dyn std::error::Error + 'static));
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            let mut source = self.0.source();
            while let Some(cause) = source {
                write!(f, ": {cause}")?;
                source = cause.source();
            }
            Ok(())
        }
    }
    Chain(error)
}
