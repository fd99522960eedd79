//! A task as the store holds it: a small `Copy` row, and a rare part beside it.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skep_proto::model::service::Protocol;
use skep_proto::model::{ContainerId, TaskId, TaskState};

use super::refs::{NetworkRef, NodeRef, Reference, ServiceRef, TaskRef};

/// The hot part: everything that planners filter on. No `String`, no `Vec`, no `Arc`: a page of rows is copied by memcpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskRow {
    /// Public identity.
    pub id: TaskId,
    /// Raft index of the last change.
    pub version: u64,
    /// Raft index of the creation: orders the tasks of a slot.
    pub created_index: u64,
    /// Time of the creating entry, milliseconds since the epoch.
    pub created_ms: u64,
    /// Time of the last changing entry.
    pub updated_ms: u64,
    /// When the observed state was reached, by its writer's clock.
    pub status_ms: u64,
    /// The service's `spec_version` that the task was made from.
    pub spec_version: u64,
    /// The task's service; `None` for the attachment of a plain container.
    pub service: Option<ServiceRef>,
    /// Its node.
    pub node: Option<NodeRef>,
    /// First network and the IPv4 address there; an IPv6 one there is in a table of its own.
    pub attachment: Option<Attachment>,
    /// Address on its node's task bridge, for the routing mesh: told by the node's agent.
    pub mesh: Option<Ipv4Addr>,
    /// Slot of a replicated service, from 1; 0 for a global one.
    pub slot: u32,
    /// How often this position was used.
    pub generation: NonZeroU32,
    /// Exit code, or [`TaskRow::NO_EXIT`].
    pub exit: i32,
    /// Wanted.
    pub desired: TaskState,
    /// Observed.
    pub state: TaskState,
}

const _: () = assert!(size_of::<TaskRow>() <= 128, "a task row is copied with its page: keep it small");

/// A task's address on its first network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network: NetworkRef,
    /// The address; its prefix length is the subnet's.
    pub address: Ipv4Addr,
}

impl TaskRow {
    /// Stands for "has not ended".
    pub const NO_EXIT: i32 = i32::MIN;

    /// The reference that names this row at `handle`.
    pub fn reference(&self, handle: u32) -> TaskRef {
        TaskRef::new(handle, self.generation)
    }

    /// The exit code of the first container, when it has one.
    pub fn exit_code(&self) -> Option<i32> {
        (self.exit != Self::NO_EXIT).then_some(self.exit)
    }

    /// It will never run (again): it has ended, or it was withdrawn before it had a node.
    pub fn is_dead(&self) -> bool {
        self.state.is_terminal() || (self.state < TaskState::Assigned && self.desired > TaskState::Running)
    }

    /// It is wanted and may still come to run: what orchestrators count.
    pub fn is_live(&self) -> bool {
        self.desired <= TaskState::Running && !self.state.is_terminal()
    }

    /// It takes room on its node.
    pub fn occupies_node(&self) -> bool {
        self.node.is_some() && self.state >= TaskState::Assigned && !self.state.is_terminal()
    }

    /// It runs and is meant to.
    pub fn is_running(&self) -> bool {
        self.state == TaskState::Running && self.desired == TaskState::Running
    }

    /// It ended by itself with success, and nobody had asked it to stop: what completes a job.
    pub fn has_completed(&self) -> bool {
        self.state == TaskState::Complete && self.desired <= TaskState::Running
    }

    /// What tells the tasks of a service apart: the slot, or the node of a global service's task.
    pub fn place(&self) -> u32 {
        match (self.slot, self.node) {
            (0, Some(node)) => node.handle(),
            (0, None) => u32::MAX,
            (slot, _) => slot,
        }
    }
}

/// The rare part, absent for most tasks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TaskExtra {
    /// While desired is ready: when it becomes running, milliseconds since the epoch; 0 for "not by time".
    pub start_ms: u64,
    /// When a task that failed had begun to run, by its node's clock, milliseconds since the epoch; 0 when it never ran.
    pub started_ms: u64,
    /// Times of the restarts in this slot that count against the policy's limit, oldest first.
    pub restarts: Vec<u64>,
    /// What is going on, when it is not the usual text of the state.
    pub message: String,
    /// What went wrong.
    pub error: String,
    /// Addresses on further networks, of both families.
    pub attachments: Vec<ExtraAttachment>,
    /// Ports published in host mode, as taken.
    pub host_ports: Vec<HostPort>,
}

impl TaskExtra {
    /// Nothing in it differs from the usual: it need not be kept.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Addresses on a network that the row has no room for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExtraAttachment {
    /// The network.
    pub network: NetworkRef,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
}

/// What a task without a service stands for: one plain container on one network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attached {
    /// The network.
    pub network: NetworkRef,
    /// The container.
    pub container: ContainerId,
    /// Its name, resolvable on the network.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// The address asked for; `None` for any.
    pub address: Option<Ipv4Addr>,
}

/// A port of the node that a task took.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Free text from the spec.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the container.
    pub target: u16,
    /// Port of the node.
    pub published: u16,
}

/// The usual text of a state (Docker's words): stored by nobody, shown to everybody.
pub fn usual_message(state: TaskState) -> &'static str {
    match state {
        TaskState::New => "created",
        TaskState::Pending => "pending task scheduling",
        TaskState::Assigned => "scheduler assigned task to node",
        TaskState::Accepted => "accepted",
        TaskState::Preparing => "preparing",
        TaskState::Ready => "prepared",
        TaskState::Starting => "starting",
        TaskState::Running | TaskState::Failed => "started",
        TaskState::Complete => "finished",
        TaskState::Shutdown => "shutdown",
        TaskState::Rejected => "preparing",
        TaskState::Remove => "remove",
        TaskState::Orphaned => "the node was lost",
    }
}
