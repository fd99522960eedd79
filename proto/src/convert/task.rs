//! Tasks.

use super::field::{choice, record};
use crate::model::task::{
    Limits, NetworkAttachment, NetworkAttachmentSpec, Placement, Platform, Reservations, Resources, RestartCondition,
    RestartPolicy,
};
use crate::model::{TaskSpec, TaskState, TaskStatus};
use crate::wire::objects as wire;

record!(TaskSpec { containers, resources, restart, placement, networks, log_driver, force_update });
record!(Resources { limits, reservations });
record!(Limits { nano_cpus, memory, pids });
record!(Reservations { nano_cpus, memory, generic });
record!(RestartPolicy { condition, delay, max_attempts, window });
choice!(RestartCondition { None, OnFailure, Any });
record!(Placement { constraints, preferences, max_replicas, platforms });
record!(Platform { architecture, os });
record!(NetworkAttachmentSpec { target, aliases, driver_options });
choice!(TaskState {
    New,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Remove,
    Orphaned,
});
record!(TaskStatus { state, at, message, error, exit_code, host_ports });
record!(NetworkAttachment { network, addresses, aliases });
