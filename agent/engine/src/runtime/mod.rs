//! What turns a container's configuration into kernel objects: OCI configuration, cgroups, root file system, users.
//!
//! [`spec`] and [`users`] decide without I/O; [`cgroups`] and [`rootfs`] act.

pub mod cgroups;
pub mod rootfs;
pub mod spec;
pub mod users;
