//! Filled by the next commits.

pub mod images;
pub mod volumes;
