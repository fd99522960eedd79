//! The Docker face over ports in memory: recorded exchanges, and the stock CLI.

mod cli;
mod fake;
mod recorded;
