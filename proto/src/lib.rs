//! Domain model and wire contracts of skep.
//!
//! [`model`] holds what the cluster talks about: ids, specs, states. It is written by hand and knows no transport.
//! [`wire`] (generated from `wire/*.proto` into `OUT_DIR`) holds what crosses a socket or a disk, and [`convert`] turns one
//! into the other at the edge. [`template`] expands
//! the placeholders of services, secrets and configs. Nothing here does I/O, reads a clock or draws a random number on its own.

pub mod convert;
pub mod model;
pub mod template;
pub mod wire;
