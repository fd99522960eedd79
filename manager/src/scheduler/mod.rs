//! Which node each task gets.

pub mod constraint;
