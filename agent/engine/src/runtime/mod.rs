//! What turns a container's configuration into kernel objects: OCI configuration, cgroups, root file system, users.
//!
//! [`spec`], [`capabilities`] and [`users`] decide without I/O; [`cgroups`], [`devices`] and [`rootfs`] act.

pub mod capabilities;
pub mod cgroups;
pub mod devices;
pub mod rootfs;
pub mod spec;
pub mod sysctl;
pub mod users;
