//! Manifests: files that people write, turned into specs.
//!
//! Text becomes a tree that knows the place of each value ([`yaml`]); each document goes to the reader of its format
//! ([`compose`], [`kube`]), and what they read is one [`Stack`] ([`reader`]). All problems of all files are collected, each
//! with its place, before any is reported. Nothing here touches a disk or a cluster: [`reader::Disk`] is the way to files.

pub mod compose;
pub mod decode;
pub mod export;
#[cfg(test)]
pub mod fake;
pub mod kube;
pub mod plan;
pub mod problem;
pub mod reader;
pub mod stack;
pub mod yaml;
mod yaml_text;

pub use problem::{Problem, Problems};
pub use reader::{Disk, Input, Options, read};
pub use stack::Stack;
