//! What turns a container's configuration into kernel objects: OCI configuration, cgroups, root file system, users.
//!
//! [`spec`], [`capabilities`], [`users`] and [`health`] decide without I/O; [`cgroups`], [`devices`] and [`rootfs`] act.

pub mod capabilities;
pub mod cgroups;
pub mod devices;
pub mod health;
pub mod rootfs;
pub mod spec;
pub mod sysctl;
pub mod users;
