//! Decisions, without I/O: from what the managers want and what is attached here to tables, entries and names.
//!
//! Each function gives the whole wanted value; the shells in [`crate::engine`] compare it with what the kernel holds and
//! send the difference. Nothing here reads a clock, draws a random number or opens a file.

pub mod balance;
pub mod change;
pub mod encryption;
pub mod ingress;
pub mod leaving;
pub mod names;
pub mod node;
pub mod overlay;
pub mod senders;
pub mod sight;
pub mod vip;

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod tests;
