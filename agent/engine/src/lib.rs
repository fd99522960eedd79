//! Container engine of one node: containers, exec, logs, images, volumes.
//!
//! Entry points: [`containers::Containers`] for what runs, [`logs`] for what it wrote, [`images::Images`] for what it runs
//! from, [`volumes::Volumes`] for what it keeps.

pub mod containers;
pub mod images;
pub mod logs;
pub mod runtime;
pub mod volumes;
