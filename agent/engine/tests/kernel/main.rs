//! What the engine makes of a kernel. One program: it is linked once.

#[path = "../support/mod.rs"]
mod support;

mod containers;
mod images;
mod isolation;
mod policies;
mod restart;
mod volumes;
