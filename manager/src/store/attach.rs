//! Applying the attachment of a plain container to a network.

use std::net::Ipv6Addr;
use std::sync::Arc;

use skep_proto::model::{TaskId, TaskState};

use super::apply::{Context, Extra};
use super::digest::{self, Domain};
use super::entry::{NodeReason, Refusal};
use super::refs::{NodeRef, Reference, TaskRef};
use super::row::{Attached, TaskRow};
use super::state::{State, generation_after};

impl State {
    /// Makes the task; the allocator gives it its address.
    pub(super) fn attach(
        &mut self,
        context: &mut Context<'_>,
        id: TaskId,
        node: NodeRef,
        attached: &Attached,
    ) -> Result<TaskRef, Refusal> {
        let invalid = |reason: &str| Err(Refusal::Invalid { reason: reason.into() });
        if self.nodes.lookup(node).is_none() {
            return Err(Refusal::NodeRefuses { reason: NodeReason::Gone });
        }
        if self.networks.lookup(attached.network).is_none_or(|network| network.pending_delete) {
            return invalid("the network is gone");
        }
        if self.reference(id).is_some() {
            return invalid("a task with this id exists");
        }
        let is_same = |other: &Attached| (other.network, other.container) == (attached.network, attached.container);
        if self.attachments_of_containers().any(|(_, row, other)| !row.is_dead() && is_same(other)) {
            return invalid("the container is attached to the network already");
        }
        let handle = self.rows.next_handle();
        let row = TaskRow {
            id,
            version: context.index,
            created_index: context.index,
            created_ms: context.at.0,
            updated_ms: context.at.0,
            status_ms: context.at.0,
            spec_version: 0,
            service: None,
            node: Some(node),
            attachment: None,
            mesh: None,
            slot: 0,
            generation: generation_after(self.rows.get(handle).map(|freed| freed.generation)),
            exit: TaskRow::NO_EXIT,
            desired: TaskState::Running,
            state: TaskState::New,
        };
        self.digest ^= digest::of(Domain::Attached, handle, attached);
        self.attached.insert(handle, Arc::new(attached.clone()));
        self.write(context, handle, Some(row), Extra::Keep);
        Ok(row.reference(handle))
    }

    /// Notes the IPv6 address that a place asks for.
    pub(super) fn ask_address6(&mut self, handle: u32, address: Ipv6Addr) {
        self.digest ^= digest::of(Domain::Asked6, handle, address);
        self.asked6.insert(handle, address);
    }

    /// The place is gone.
    pub(super) fn forget_address6(&mut self, handle: u32) {
        if let Some(address) = self.asked6.remove(&handle) {
            self.digest ^= digest::of(Domain::Asked6, handle, address);
        }
    }

    /// Gives a place other names.
    pub(super) fn rename_attached(&mut self, context: &mut Context<'_>, task: TaskRef, name: &str, aliases: &[String]) {
        let Some(mut row) = self.row(task).filter(|row| !row.is_dead()).copied() else { return };
        let handle = task.handle();
        let Some(old) = self.attached.get(&handle).cloned() else { return };
        let new = Attached { name: name.to_owned(), aliases: aliases.to_vec(), ..(*old).clone() };
        if *old == new {
            return;
        }
        self.digest ^= digest::of(Domain::Attached, handle, &*old) ^ digest::of(Domain::Attached, handle, &new);
        self.attached.insert(handle, Arc::new(new));
        (row.version, row.updated_ms) = (context.index, context.at.0);
        self.write(context, handle, Some(row), Extra::Keep);
    }
}
