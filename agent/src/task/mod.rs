//! The life of tasks on this node.
//!
//! ```text
//!  managers --> Tasks (one worker each) --> step: what is next? (pure)
//!                      |                       |
//!                      v                       v
//!                  statuses <------------- worker --> Executor
//! ```
//!
//! A task is one attempt: its reported state only moves forward, and its containers are started once, whatever happens to
//! the agent in between. The state `starting` is on disk before the start is asked for; so a task that is known to have
//! reached it and has no containers is lost, not new.

pub mod set;
pub mod step;
pub mod worker;

#[cfg(test)]
mod tests;

pub use set::Tasks;
