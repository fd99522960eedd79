//! What turns a container's configuration into kernel objects: OCI configuration, cgroups, root file system, users.
//!
//! [`spec`], [`users`] and [`health`] decide without I/O; [`cgroups`] and [`rootfs`] act.

pub mod cgroups;
pub mod health;
pub mod rootfs;
pub mod spec;
pub mod users;
