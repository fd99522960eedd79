//! Handlers, one file per resource. Each extracts, reads, calls one port and shows the answer; no rule lives here.

pub(crate) mod container_create;
pub(crate) mod container_list;
pub(crate) mod containers;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod logs;
pub(crate) mod networks;
pub(crate) mod nodes;
pub(crate) mod services;
pub(crate) mod swarm;
pub(crate) mod system;
pub(crate) mod tasks;
pub(crate) mod unsupported;
pub(crate) mod volumes;
