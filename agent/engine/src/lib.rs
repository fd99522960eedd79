//! Container engine of one node: containers, exec, logs, images, volumes.
//!
//! Entry points: [`containers::Containers`] for what runs, [`logs`] for what it wrote.

pub mod containers;
pub mod logs;
pub mod runtime;
