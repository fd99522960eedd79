//! Applying entries: deterministic, without clock, chance or failure. A change that cannot be made is refused with a
//! reason; only an entry that this build cannot read stops the node.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use skep_proto::model::{Availability, NodeState, TaskId, TaskState, Timestamp};

use super::derived::Parts;
use super::digest::{self, Domain};
use super::entry::{Change, Entry, Group, Kind, NodeReason, Outcome, Refusal};
use super::refs::{NetworkRef, NodeRef, Reference, ServiceRef, TaskRef};
use super::row::{Attachment, ExtraAttachment, HostPort, TaskExtra, TaskRow};
use super::state::{AnsweredRequest, State, generation_after};
use super::touched::{Touched, TouchedTask};

/// How long a request of a client is remembered.
const REQUEST_MEMORY_MS: u64 = 10 * 60 * 1000;

/// What every change of an entry needs.
pub(super) struct Context<'a> {
    pub index: u64,
    pub at: Timestamp,
    pub touched: &'a mut Touched,
}

/// A task to be made.
struct NewTask<'a> {
    id: TaskId,
    service: ServiceRef,
    spec_version: u64,
    slot: u32,
    node: Option<NodeRef>,
    desired: TaskState,
    start_ms: u64,
    restarts: &'a [u64],
    after: Option<TaskRef>,
}

/// An observation of a task.
#[derive(Default)]
struct Observed<'a> {
    message: &'a str,
    error: &'a str,
    host_ports: &'a [HostPort],
}

/// What becomes of the rare part when a row is written.
pub(super) enum Extra {
    Keep,
    Set(TaskExtra),
}

impl State {
    /// Applies an entry. The outcomes are those of its groups, in order.
    pub(super) fn apply(&mut self, index: u64, entry: &Entry, touched: &mut Touched) -> Vec<Outcome> {
        self.index = index;
        self.now = self.now.max(Timestamp(entry.at_ms));
        let mut context = Context { index, at: self.now, touched };
        self.forget_requests();
        self.forget_removed();
        entry.groups.iter().map(|group| self.group(&mut context, group)).collect()
    }

    fn group(&mut self, context: &mut Context<'_>, group: &Group) -> Outcome {
        if let Some(known) = group.request.and_then(|id| self.requests.get(&id)) {
            return known.outcome.clone();
        }
        let mut created = Vec::new();
        let result = match group.changes.as_slice() {
            // Each change checks all before it writes anything, so one alone needs no way back.
            [one] => self.change(context, one, &mut created),
            many => {
                let (before, mark) = (self.clone(), context.touched.mark());
                let result = many.iter().try_for_each(|change| self.change(context, change, &mut created));
                if result.is_err() {
                    *self = before;
                    context.touched.rewind(mark);
                }
                result
            }
        };
        let outcome = match result {
            Ok(()) => Outcome::Applied { version: context.index, created },
            Err(refusal) => Outcome::Refused(refusal),
        };
        if let Some(id) = group.request {
            self.remember_request(id, AnsweredRequest { at_ms: context.at.0, outcome: outcome.clone() });
        }
        outcome
    }

    fn change(
        &mut self,
        context: &mut Context<'_>,
        change: &Change,
        created: &mut Vec<TaskRef>,
    ) -> Result<(), Refusal> {
        match change {
            Change::CreateTask { id, service, spec_version, slot, node, desired, start_ms, restarts, after } => {
                let task = NewTask {
                    id: *id,
                    service: *service,
                    spec_version: *spec_version,
                    slot: *slot,
                    node: *node,
                    desired: *desired,
                    start_ms: *start_ms,
                    restarts,
                    after: *after,
                };
                created.push(self.create_task(context, &task)?);
                Ok(())
            }
            Change::Allocate { task, if_version, addresses } => self.allocate(context, *task, *if_version, addresses),
            Change::Assign { task, if_version, node } => self.assign(context, *task, *if_version, *node),
            Change::Status { task, state, at_ms, exit } => {
                self.observe(context, *task, (*state, *at_ms, *exit), &Observed::default());
                Ok(())
            }
            Change::Report { task, state, at_ms, exit, message, error, host_ports } => {
                self.observe(context, *task, (*state, *at_ms, *exit), &Observed { message, error, host_ports });
                Ok(())
            }
            Change::Desire { task, if_version, to } => self.desire(context, *task, *if_version, *to),
            Change::DeleteTask { task, if_version } => {
                let row = self.row_as_read(*task, *if_version)?;
                if !row.is_dead() {
                    return Err(Refusal::TaskChanged { current: row.version });
                }
                self.write(context, task.handle(), None, Extra::Keep);
                Ok(())
            }
            Change::Explain { service, spec_version, text } => self.explain(context, *service, *spec_version, text),
            Change::ExplainTask { task, if_version, text } => {
                let mut row = self.row_as_read(*task, *if_version)?;
                if row.state >= TaskState::Assigned {
                    return Err(Refusal::TaskChanged { current: row.version });
                }
                let extra = TaskExtra { error: text.clone(), ..self.extra_of(task.handle()) };
                (row.version, row.updated_ms) = (context.index, context.at.0);
                self.write(context, task.handle(), Some(row), Extra::Set(extra));
                Ok(())
            }
            Change::Put { kind, id, if_version, bytes } => self.put(context, *kind, *id, *if_version, bytes),
            Change::Delete { kind, id, if_version } => self.delete(context, *kind, *id, *if_version),
            Change::Mesh { task, address } => {
                self.place_in_mesh(context, *task, *address);
                Ok(())
            }
            Change::Attach { id, node, attached } => {
                created.push(self.attach(context, *id, *node, attached)?);
                Ok(())
            }
            Change::RenameAttached { task, name, aliases } => {
                self.rename_attached(context, *task, name, aliases);
                Ok(())
            }
            Change::AttachAt { id, node, attached, address6 } => {
                let task = self.attach(context, *id, *node, attached)?;
                self.ask_address6(task.handle(), *address6);
                created.push(task);
                Ok(())
            }
        }
    }

    /// The mesh speaks IPv4 so far.
    fn place_in_mesh(&mut self, context: &mut Context<'_>, task: TaskRef, address: Option<IpAddr>) {
        let Some(mut row) = self.row(task).copied() else { return };
        let address = match address {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(_)) | None => None,
        };
        if row.mesh == address || row.state < TaskState::Assigned || row.state.is_terminal() {
            return;
        }
        row.mesh = address;
        (row.version, row.updated_ms) = (context.index, context.at.0);
        self.write(context, task.handle(), Some(row), Extra::Keep);
    }

    fn create_task(&mut self, context: &mut Context<'_>, new: &NewTask<'_>) -> Result<TaskRef, Refusal> {
        let invalid = |reason: &str| Err(Refusal::Invalid { reason: reason.into() });
        if !matches!(new.desired, TaskState::Ready | TaskState::Running) {
            return invalid("a task is made to be ready or running");
        }
        if (new.slot == 0) != new.node.is_some() {
            return invalid("a task has a slot, or the node of a global service");
        }
        let service = self.services.lookup(new.service).filter(|s| !s.pending_delete);
        if service.is_none() || !self.specs.contains_key(&(new.service.handle(), new.spec_version)) {
            return Err(Refusal::SpecGone);
        }
        if new.node.is_some_and(|node| self.nodes.lookup(node).is_none()) {
            return Err(Refusal::NodeRefuses { reason: NodeReason::Gone });
        }
        if self.reference(new.id).is_some() {
            return invalid("a task with this id exists");
        }
        let handle = self.rows.next_handle();
        let row = TaskRow {
            id: new.id,
            version: context.index,
            created_index: context.index,
            created_ms: context.at.0,
            updated_ms: context.at.0,
            status_ms: context.at.0,
            spec_version: new.spec_version,
            service: Some(new.service),
            node: new.node,
            attachment: None,
            mesh: None,
            slot: new.slot,
            generation: generation_after(self.rows.get(handle).map(|freed| freed.generation)),
            exit: TaskRow::NO_EXIT,
            desired: new.desired,
            state: TaskState::New,
        };
        if self.newest_in_place(new.service, row.place()) != new.after {
            return Err(Refusal::SlotTaken { slot: new.slot });
        }
        let extra = TaskExtra { start_ms: new.start_ms, restarts: new.restarts.to_vec(), ..TaskExtra::default() };
        self.write(context, handle, Some(row), Extra::Set(extra));
        Ok(row.reference(handle))
    }

    fn allocate(
        &mut self,
        context: &mut Context<'_>,
        task: TaskRef,
        if_version: u64,
        addresses: &[(NetworkRef, Vec<IpNet>)],
    ) -> Result<(), Refusal> {
        let mut row = self.row_as_read(task, if_version)?;
        if row.state != TaskState::New || !row.is_live() {
            return Err(Refusal::TaskChanged { current: row.version });
        }
        for (network, nets) in addresses {
            for net in nets {
                self.check_address(*network, net.addr())?;
            }
        }
        let mut extra = self.extra_of(task.handle());
        extra.error = String::new();
        let mut address6 = None;
        for (network, nets) in addresses {
            let mut further = Vec::new();
            for net in nets {
                match net.addr() {
                    IpAddr::V4(address) if row.attachment.is_none() => {
                        row.attachment = Some(Attachment { network: *network, address });
                    }
                    IpAddr::V6(address)
                        if address6.is_none() && row.attachment.is_some_and(|first| first.network == *network) =>
                    {
                        address6 = Some(address);
                    }
                    IpAddr::V4(_) | IpAddr::V6(_) => further.push(*net),
                }
                self.move_cursor(*network, net.addr());
            }
            if !further.is_empty() {
                extra.attachments.push(ExtraAttachment { network: *network, addresses: further });
            }
        }
        // A container's place on a network needs no node to be found and nothing to be started.
        row.state = if self.attached(task.handle()).is_some() { TaskState::Running } else { TaskState::Pending };
        (row.version, row.updated_ms, row.status_ms) = (context.index, context.at.0, context.at.0);
        // Before the row, which did not name the network until now.
        if let Some(address) = address6 {
            self.put_address6(task.handle(), address);
        }
        self.write(context, task.handle(), Some(row), Extra::Set(extra));
        Ok(())
    }

    fn assign(
        &mut self,
        context: &mut Context<'_>,
        task: TaskRef,
        if_version: u64,
        to: NodeRef,
    ) -> Result<(), Refusal> {
        let mut row = self.row_as_read(task, if_version)?;
        if row.state != TaskState::Pending || !row.is_live() || row.node.is_some_and(|node| node != to) {
            return Err(Refusal::TaskChanged { current: row.version });
        }
        self.check_room(&row, to)?;
        row.node = Some(to);
        row.state = TaskState::Assigned;
        (row.version, row.updated_ms, row.status_ms) = (context.index, context.at.0, context.at.0);
        let extra = self.without_text(task.handle());
        self.write(context, task.handle(), Some(row), extra);
        Ok(())
    }

    /// Whether a node can take a task now: the scheduler decided on an older version.
    fn check_room(&self, row: &TaskRow, to: NodeRef) -> Result<(), Refusal> {
        let refuse = |reason| Err(Refusal::NodeRefuses { reason });
        let Some(node) = self.nodes.lookup(to) else { return refuse(NodeReason::Gone) };
        if node.state != NodeState::Ready || node.spec.availability != Availability::Active {
            return refuse(NodeReason::Unavailable);
        }
        let spec = self.spec_of(row).ok_or(Refusal::SpecGone)?;
        let load = self.load(to);
        let over = |reserved: i64, used: i64, total: i64| reserved > 0 && used.saturating_add(reserved) > total;
        let generic = || {
            spec.generic().any(|(kind, amount)| {
                let total = node.description.generic.get(kind).copied().unwrap_or_default();
                self.generic_load(to, kind).saturating_add(*amount) > total
            })
        };
        if over(spec.nano_cpus, load.nano_cpus, node.description.nano_cpus)
            || over(spec.memory, load.memory, node.description.memory)
            || generic()
        {
            return refuse(NodeReason::Resources);
        }
        if spec.host_ports.iter().any(|(protocol, port)| self.host_port_holder(to, *protocol, *port).is_some()) {
            return refuse(NodeReason::HostPort);
        }
        Ok(())
    }

    fn observe(
        &mut self,
        context: &mut Context<'_>,
        task: TaskRef,
        (state, at_ms, exit): (TaskState, u64, Option<i32>),
        observed: &Observed<'_>,
    ) {
        let Some(mut row) = self.row(task).copied() else { return };
        let from_nowhere = row.state < TaskState::Assigned && state != TaskState::Orphaned;
        if state <= row.state || from_nowhere {
            return;
        }
        // An update asks of a failed task how long it had run; its status then tells only when it failed.
        let started_ms = match (row.state, state) {
            (TaskState::Running, TaskState::Failed) => row.status_ms,
            _ => 0,
        };
        row.state = state;
        row.exit = exit.unwrap_or(row.exit);
        (row.version, row.updated_ms, row.status_ms) = (context.index, context.at.0, at_ms);
        let Observed { message, error, host_ports } = *observed;
        let extra = if message.is_empty() && error.is_empty() && host_ports.is_empty() && started_ms == 0 {
            self.without_text(task.handle())
        } else {
            let mut extra = self.extra_of(task.handle());
            (extra.message, extra.error) = (message.to_owned(), error.to_owned());
            extra.started_ms = started_ms;
            if !host_ports.is_empty() {
                extra.host_ports = host_ports.to_vec();
            }
            Extra::Set(extra)
        };
        self.write(context, task.handle(), Some(row), extra);
    }

    fn desire(
        &mut self,
        context: &mut Context<'_>,
        task: TaskRef,
        if_version: u64,
        to: TaskState,
    ) -> Result<(), Refusal> {
        let mut row = self.row_as_read(task, if_version)?;
        if !matches!(to, TaskState::Running | TaskState::Shutdown | TaskState::Remove) {
            return Err(Refusal::Invalid { reason: "a task is wanted running, shut down or removed".into() });
        }
        if to <= row.desired {
            return Ok(());
        }
        row.desired = to;
        (row.version, row.updated_ms) = (context.index, context.at.0);
        let extra = match self.extras.get(&task.handle()) {
            Some(extra) if extra.start_ms > 0 => Extra::Set(TaskExtra { start_ms: 0, ..(**extra).clone() }),
            _ => Extra::Keep,
        };
        self.write(context, task.handle(), Some(row), extra);
        Ok(())
    }

    fn explain(
        &mut self,
        context: &mut Context<'_>,
        service: ServiceRef,
        spec_version: u64,
        text: &str,
    ) -> Result<(), Refusal> {
        let key = (service.handle(), spec_version);
        let object = self.services.lookup(service).ok_or(Refusal::SpecGone)?;
        if !self.specs.contains_key(&key) {
            return Err(Refusal::SpecGone);
        }
        let id = object.id.0;
        self.set_blocked(key, (!text.is_empty()).then(|| text.into()));
        context.touch(Kind::Service, id, service.handle());
        Ok(())
    }

    pub(super) fn set_blocked(&mut self, key: (u32, u64), text: Option<Arc<str>>) {
        if let Some(old) = self.blocked.remove(&key) {
            self.digest ^= digest::of(Domain::Blocked, key, &*old);
        }
        if let Some(text) = text {
            self.digest ^= digest::of(Domain::Blocked, key, &*text);
            self.blocked.insert(key, text);
        }
    }

    fn row_as_read(&self, task: TaskRef, if_version: u64) -> Result<TaskRow, Refusal> {
        let row = self.row(task).ok_or(Refusal::TaskGone)?;
        if row.version == if_version { Ok(*row) } else { Err(Refusal::TaskChanged { current: row.version }) }
    }

    fn extra_of(&self, handle: u32) -> TaskExtra {
        self.extras.get(&handle).map(|extra| (**extra).clone()).unwrap_or_default()
    }

    fn without_text(&self, handle: u32) -> Extra {
        match self.extras.get(&handle) {
            Some(extra) if !extra.message.is_empty() || !extra.error.is_empty() => {
                Extra::Set(TaskExtra { message: String::new(), error: String::new(), ..(**extra).clone() })
            }
            _ => Extra::Keep,
        }
    }

    /// The one place where tasks are written: rows, rare parts, digest, indexes, sums and spec counts follow from it.
    pub(super) fn write(&mut self, context: &mut Context<'_>, handle: u32, new: Option<TaskRow>, extra: Extra) {
        let old = self.row_at(handle).copied();
        let old_extra = old.and_then(|_| self.extras.get(&handle).cloned());
        let new_extra = match extra {
            _ if new.is_none() => None,
            Extra::Keep => old_extra.clone(),
            Extra::Set(extra) => (!extra.is_empty()).then(|| Arc::new(extra)),
        };
        let Some(any) = new.as_ref().or(old.as_ref()) else { return };
        let key = any.service.map(|s| (s.handle(), any.spec_version));
        let spec = key.and_then(|key| self.specs.get(&key));
        let address6 = self.addresses6.get(&handle).copied();
        self.derived.task(
            handle,
            old.as_ref().map(|row| Parts { row, address6, extra: old_extra.as_deref() }),
            new.as_ref().map(|row| Parts { row, address6, extra: new_extra.as_deref() }),
            spec,
        );
        context.touched.tasks.push(TouchedTask {
            handle,
            service: any.service.map(Reference::handle),
            old_node: old.and_then(|row| row.node).map(Reference::handle),
            new_node: new.and_then(|row| row.node).map(Reference::handle),
        });
        for row in [&old, &new].into_iter().flatten() {
            self.digest ^= digest::of(Domain::Row, handle, row);
        }
        if old_extra != new_extra {
            for extra in [&old_extra, &new_extra].into_iter().flatten() {
                self.digest ^= digest::of(Domain::Extra, handle, &**extra);
            }
            match new_extra {
                Some(extra) => drop(self.extras.insert(handle, extra)),
                None => drop(self.extras.remove(&handle)),
            }
        }
        if new.is_none()
            && let Some(gone) = self.attached.remove(&handle)
        {
            self.digest ^= digest::of(Domain::Attached, handle, &*gone);
            self.forget_address6(handle);
        }
        match (old.is_some(), new) {
            (true, Some(row)) => *self.rows.get_mut(handle).expect("the row was just read") = row,
            (false, Some(row)) => {
                let given = self.rows.insert(row);
                debug_assert_eq!(given, handle, "a new row takes the next handle");
                self.count_spec(key, 1);
            }
            (_, None) => {
                self.remove_address6(handle);
                self.rows.remove(handle);
                self.count_spec(key, -1);
            }
        }
    }

    fn count_spec(&mut self, key: Option<(u32, u64)>, by: i32) {
        let Some(key) = key else { return };
        if let Some(spec) = self.specs.get_mut(&key) {
            spec.tasks = spec.tasks.saturating_add_signed(by);
            if spec.tasks == 0 {
                self.forget_specs(key.0);
            }
        }
    }

    /// A node goes: its tasks lose it, and those that were not yet at an end are orphaned.
    pub(super) fn orphan_tasks_of(&mut self, context: &mut Context<'_>, node: NodeRef) {
        let handles: Vec<u32> = self.rows_on_node(node).map(|(handle, _)| handle).collect();
        for handle in handles {
            let Some(mut row) = self.row_at(handle).copied() else { continue };
            if !row.is_dead() {
                (row.state, row.status_ms) = (TaskState::Orphaned, context.at.0);
            }
            row.node = None;
            (row.version, row.updated_ms) = (context.index, context.at.0);
            self.write(context, handle, Some(row), Extra::Keep);
        }
    }

    fn remember_request(&mut self, id: u128, request: AnsweredRequest) {
        self.digest ^= digest::of(Domain::Request, id, request.at_ms);
        self.request_times.insert((request.at_ms, id));
        self.requests.insert(id, Arc::new(request));
    }

    fn forget_requests(&mut self) {
        let limit = self.now.0.saturating_sub(REQUEST_MEMORY_MS);
        while let Some((at_ms, id)) = self.request_times.get_min().copied().filter(|(at_ms, _)| *at_ms < limit) {
            self.request_times.remove(&(at_ms, id));
            self.requests.remove(&id);
            self.digest ^= digest::of(Domain::Request, id, at_ms);
        }
    }
}
