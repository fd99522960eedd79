//! The Docker face over ports in memory: recorded exchanges, streams byte by byte, and the stock CLI.

// Here everything is a test; clippy's own exception ends at functions marked as one.
#![allow(clippy::unwrap_used)]

mod cli;
mod fake;
mod recorded;
mod streams;
