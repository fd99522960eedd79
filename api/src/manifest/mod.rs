//! Manifests: files that people write, turned into specs.
//!
//! Text becomes a tree that knows the place of each value ([`yaml`]), the tree becomes specs ([`compose`]). All problems
//! of a file are collected, each with its place, before any is reported.

pub mod compose;
pub mod problem;
pub mod yaml;

pub use problem::{Problem, Problems};
