//! The cluster's state as one value: cheap to clone, never changing once published, read without locks.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use skep_proto::model::id::prefix_range;
use skep_proto::model::network::INGRESS_VNI;
use skep_proto::model::service::{PortConfig, Protocol, PublishMode};
use skep_proto::model::task::NetworkAttachment;
use skep_proto::model::{
    Cluster, Config, Meta, Network, Node, NodeId, Secret, Service, ServiceId, Task, TaskId, TaskState, TaskStatus,
    Timestamp, Version,
};

use super::addresses::Cursors;
use super::derived::{Derived, NodeLoad, ServiceCount, top_bits};
use super::entry::Outcome;
use super::refs::{NodeRef, Reference, ServiceRef, TaskRef};
use super::row::{Attached, TaskExtra, TaskRow, usual_message};
use super::rows::Rows;
use super::spec::SharedSpec;
use super::table::Table;

/// One version of the cluster's state.
///
/// Reads come in two kinds: model values ([`State::task`], [`State::services`], …) for faces and sessions, rows and
/// handles ([`State::row`], [`State::rows_of_service`], …) for planners that look at many.
#[derive(Clone, Default)]
pub struct State {
    pub(super) index: u64,
    pub(super) now: Timestamp,
    pub(super) rows: Rows<TaskRow>,
    pub(super) extras: OrdMap<u32, Arc<TaskExtra>>,
    /// IPv6 addresses of tasks on the network of their row's address.
    pub(super) addresses6: OrdMap<u32, Ipv6Addr>,
    /// Of tasks without a service, what they stand for.
    pub(super) attached: OrdMap<u32, Arc<Attached>>,
    /// IPv6 addresses that plain containers asked for: few ask, so they are kept apart.
    pub(super) asked6: OrdMap<u32, Ipv6Addr>,
    pub(super) specs: OrdMap<(u32, u64), SharedSpec>,
    pub(super) clusters: Table<Cluster>,
    pub(super) nodes: Table<Node>,
    pub(super) services: Table<Service>,
    pub(super) networks: Table<Network>,
    pub(super) secrets: Table<Secret>,
    pub(super) configs: Table<Config>,
    /// Why tasks of a spec wait.
    pub(super) blocked: OrdMap<(u32, u64), Arc<str>>,
    /// Where the search for free addresses goes on.
    pub(super) cursors: Cursors,
    /// Where the search for a free node index goes on.
    pub(super) node_index: u16,
    /// Index of the last change of a node's record.
    pub(super) nodes_index: u64,
    /// Removed nodes, and until when they are remembered, in milliseconds.
    pub(super) removed: OrdMap<u128, u64>,
    /// The same by time.
    pub(super) removed_until: OrdSet<(u64, u128)>,
    /// When the last certificate ends that was made before the cluster's setting for their life changed.
    pub(super) certificates_until: Timestamp,
    pub(super) requests: OrdMap<u128, Arc<AnsweredRequest>>,
    pub(super) request_times: OrdSet<(u64, u128)>,
    pub(super) derived: Derived,
    pub(super) digest: u64,
}

/// A request of a client and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct AnsweredRequest {
    pub at_ms: u64,
    pub outcome: Outcome,
}

impl State {
    /// Raft index of the last entry in it.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The cluster's time: that of the newest entry, never going back.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The rolling digest: equal on all replicas that applied the same entries.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The cluster's own record, once the cluster exists.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.clusters.values().next()
    }

    /// Nodes.
    pub fn nodes(&self) -> &Table<Node> {
        &self.nodes
    }

    /// Raft index of the last change of any node's record: what was computed from them holds while it is the same.
    pub fn nodes_index(&self) -> u64 {
        self.nodes_index
    }

    /// Services, also those whose removal was asked for (`pending_delete`): faces do not show them.
    pub fn services(&self) -> &Table<Service> {
        &self.services
    }

    /// Networks, also those whose removal was asked for (`pending_delete`): faces do not show them.
    pub fn networks(&self) -> &Table<Network> {
        &self.networks
    }

    /// Secrets.
    pub fn secrets(&self) -> &Table<Secret> {
        &self.secrets
    }

    /// Configs.
    pub fn configs(&self) -> &Table<Config> {
        &self.configs
    }

    /// A task by its id.
    pub fn task(&self, id: TaskId) -> Option<Task> {
        self.task_at(self.reference(id)?.handle())
    }

    /// The task at a handle.
    pub fn task_at(&self, handle: u32) -> Option<Task> {
        self.rows.is_used(handle).then(|| self.rows.get(handle))?.map(|row| self.to_task(handle, row))
    }

    /// All tasks, by handle.
    pub fn tasks(&self) -> impl Iterator<Item = Task> + '_ {
        self.rows.iter().map(|(handle, row)| self.to_task(handle, row))
    }

    /// Tasks of a service, dead ones too, by slot (by node for a global one) and then by handle.
    pub fn tasks_of_service(&self, id: ServiceId) -> Vec<Task> {
        let service = self.services.reference(id);
        service.into_iter().flat_map(|s| self.rows_of_service(s)).map(|(h, row)| self.to_task(h, row)).collect()
    }

    /// Tasks on a node, dead ones too, by handle.
    pub fn tasks_on_node(&self, id: NodeId) -> Vec<Task> {
        let node = self.nodes.reference(id);
        node.into_iter().flat_map(|n| self.rows_on_node(n)).map(|(h, row)| self.to_task(h, row)).collect()
    }

    /// Ids of tasks that start with `prefix`, in the order of their first 32 bits.
    pub fn task_ids_by_prefix(&self, prefix: &str) -> impl Iterator<Item = TaskId> + '_ {
        let range = prefix_range(prefix);
        range.into_iter().flat_map(move |(low, high)| {
            let candidates = self.derived.ids.range((top_bits(low), 0)..=(top_bits(high), u32::MAX));
            let ids = candidates.filter_map(|(_, handle)| self.rows.get(*handle)).map(|row| row.id);
            ids.filter(move |id| (low..=high).contains(&id.0))
        })
    }

    /// How many tasks there are.
    pub fn task_count(&self) -> usize {
        self.rows.in_use()
    }

    /// One above the highest task handle ever given.
    pub fn task_handles(&self) -> usize {
        self.rows.capacity()
    }

    /// The reference of a task.
    pub fn reference(&self, id: TaskId) -> Option<TaskRef> {
        let top = top_bits(id.0);
        let same_top = self.derived.ids.range((top, 0)..=(top, u32::MAX));
        same_top
            .filter_map(|(_, h)| Some((h, self.rows.get(*h)?)))
            .find_map(|(h, r)| (r.id == id).then(|| r.reference(*h)))
    }

    /// The row that a reference names, unless it is gone.
    pub fn row(&self, task: TaskRef) -> Option<&TaskRow> {
        self.row_at(task.handle()).filter(|row| row.generation == task.generation())
    }

    /// The row at a handle.
    pub fn row_at(&self, handle: u32) -> Option<&TaskRow> {
        self.rows.is_used(handle).then(|| self.rows.get(handle))?
    }

    /// The rare part of a task, when it has one.
    pub fn extra(&self, handle: u32) -> Option<&Arc<TaskExtra>> {
        self.extras.get(&handle)
    }

    /// What a task without a service stands for.
    pub fn attached(&self, handle: u32) -> Option<&Arc<Attached>> {
        self.attached.get(&handle)
    }

    /// The IPv6 address that a task without a service asks for.
    pub fn asked_address6(&self, handle: u32) -> Option<Ipv6Addr> {
        self.asked6.get(&handle).copied()
    }

    /// All tasks without a service, dead ones too, by handle.
    pub fn attachments_of_containers(&self) -> impl Iterator<Item = (u32, &TaskRow, &Arc<Attached>)> + '_ {
        self.attached.iter().filter_map(|(handle, attached)| Some((*handle, self.row_at(*handle)?, attached)))
    }

    /// All rows with their handles, ascending.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        self.rows.iter()
    }

    /// Rows of a service, dead ones too, by place and then by handle.
    pub fn rows_of_service(&self, service: ServiceRef) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        let s = service.handle();
        let found = self.derived.by_service.range((s, 0, 0)..=(s, u32::MAX, u32::MAX));
        found.filter_map(|(_, _, handle)| Some((*handle, self.rows.get(*handle)?)))
    }

    /// Rows of one slot of a service (of one node, by its handle, for a global one), by handle.
    pub fn rows_in_place(&self, service: ServiceRef, place: u32) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        let s = service.handle();
        let found = self.derived.by_service.range((s, place, 0)..=(s, place, u32::MAX));
        found.filter_map(|(_, _, handle)| Some((*handle, self.rows.get(*handle)?)))
    }

    /// Rows on a node, dead ones too, by handle.
    pub fn rows_on_node(&self, node: NodeRef) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        let n = node.handle();
        let found = self.derived.by_node.range((n, 0)..=(n, u32::MAX));
        found.filter_map(|(_, handle)| Some((*handle, self.rows.get(*handle)?)))
    }

    /// The newest task made in a place: what a create there must name as `after`.
    pub fn newest_in_place(&self, service: ServiceRef, place: u32) -> Option<TaskRef> {
        let newest = self.rows_in_place(service, place).max_by_key(|(_, row)| row.created_index);
        newest.map(|(handle, row)| row.reference(handle))
    }

    /// Tasks that wait for the allocator.
    pub fn unallocated(&self) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        self.derived.unallocated.iter().filter_map(|h| Some((*h, self.rows.get(*h)?)))
    }

    /// Tasks that wait for the scheduler, by service and spec version.
    pub fn unplaced(&self) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        self.derived.unplaced.iter().filter_map(|(_, _, h)| Some((*h, self.rows.get(*h)?)))
    }

    /// The services and spec versions that have tasks waiting for the scheduler.
    pub fn unplaced_specs(&self) -> impl Iterator<Item = (ServiceRef, u64)> + '_ {
        let mut next = (0, 0, 0);
        std::iter::from_fn(move || {
            loop {
                let (service, version, _) = *self.derived.unplaced.range(next..).next()?;
                // Skips the others of the spec, however many wait.
                next = (service, version.saturating_add(1), 0);
                let object = self.services.at(service);
                if let Some(reference) = object.and_then(|s| self.services.reference(s.id)) {
                    return Some((reference, version));
                }
            }
        })
    }

    /// Tasks of one spec that wait for the scheduler, by handle.
    pub fn unplaced_of(&self, service: ServiceRef, version: u64) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        let s = service.handle();
        let found = self.derived.unplaced.range((s, version, 0)..=(s, version, u32::MAX));
        found.filter_map(|(_, _, h)| Some((*h, self.rows.get(*h)?)))
    }

    /// Dead tasks that are to be forgotten.
    pub fn removable(&self) -> impl Iterator<Item = (u32, &TaskRow)> + '_ {
        self.derived.removable.iter().filter_map(|h| Some((*h, self.rows.get(*h)?)))
    }

    /// Tasks whose start is delayed, earliest first, with the time of their start.
    pub fn due(&self) -> impl Iterator<Item = (Timestamp, u32, &TaskRow)> + '_ {
        self.derived.due.iter().filter_map(|(ms, h)| Some((Timestamp(*ms), *h, self.rows.get(*h)?)))
    }

    /// What tasks reserve on a node.
    pub fn load(&self, node: NodeRef) -> NodeLoad {
        self.derived.loads.get(&node.handle()).copied().unwrap_or_default()
    }

    /// What tasks reserve, by handle of the node, ascending; nodes without tasks are left out.
    pub fn loads(&self) -> impl Iterator<Item = (u32, NodeLoad)> + '_ {
        self.derived.loads.iter().map(|(handle, load)| (*handle, *load))
    }

    /// How much of a generic resource tasks reserve on a node.
    pub fn generic_load(&self, node: NodeRef, kind: &str) -> u64 {
        self.derived.generic.get(&(node.handle(), kind.to_owned())).copied().unwrap_or_default()
    }

    /// The task that took a port of a node in host mode.
    pub fn host_port_holder(&self, node: NodeRef, protocol: Protocol, port: u16) -> Option<u32> {
        self.derived.host_ports.get(&(node.handle(), protocol, port)).copied()
    }

    /// Tasks of a service, counted.
    pub fn count(&self, service: ServiceRef) -> ServiceCount {
        self.derived.counts.get(&service.handle()).copied().unwrap_or_default()
    }

    /// The service that has a port of the routing mesh.
    pub fn ingress_port_holder(&self, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        self.services.at(*self.derived.ingress_ports.get(&(protocol, port))?)
    }

    /// The routing mesh, where the operator made one.
    pub fn ingress(&self) -> Option<&Arc<Network>> {
        self.network_by_vni(INGRESS_VNI)
    }

    /// The network with a VXLAN identifier.
    pub fn network_by_vni(&self, vni: u32) -> Option<&Arc<Network>> {
        self.networks.get(*self.derived.vnis.get(&vni)?)
    }

    /// The spec of a service that tasks of a version were made from.
    pub fn spec(&self, service: ServiceRef, version: u64) -> Option<&SharedSpec> {
        self.specs.get(&(service.handle(), version))
    }

    /// The spec that a row was made from.
    pub fn spec_of(&self, row: &TaskRow) -> Option<&SharedSpec> {
        self.specs.get(&(row.service?.handle(), row.spec_version))
    }

    /// Why tasks of a spec wait, as the scheduler or the allocator said last.
    pub fn explanation(&self, service: ServiceRef, version: u64) -> Option<&Arc<str>> {
        self.blocked.get(&(service.handle(), version))
    }

    /// All explanations, by service handle and spec version.
    pub fn explanations(&self) -> impl Iterator<Item = (u32, u64, &Arc<str>)> + '_ {
        self.blocked.iter().map(|((service, version), text)| (*service, *version, text))
    }

    fn to_task(&self, handle: u32, row: &TaskRow) -> Task {
        let spec = self.spec_of(row);
        let service = row.service.and_then(|s| self.services.at(s.handle()));
        let extra = self.extras.get(&handle);
        Task {
            id: row.id,
            meta: Meta {
                version: Version(row.version),
                created_at: Timestamp(row.created_ms),
                updated_at: Timestamp(row.updated_ms),
            },
            service: service.map(|s| s.id),
            service_name: spec.map(|s| s.service.spec.annotations.name.clone()).unwrap_or_default(),
            service_labels: spec.map(|s| s.service.spec.annotations.labels.clone()).unwrap_or_default(),
            slot: row.slot,
            node: row.node.and_then(|n| self.nodes.at(n.handle())).map(|n| n.id),
            spec: spec.map(|s| s.task.clone()).unwrap_or_default(),
            spec_version: row.spec_version,
            desired: row.desired,
            status: self.status(row, extra.map(|e| &**e)),
            attachments: self.attachments(handle, row),
            ports: service.map(|s| s.endpoint.ports.clone()).unwrap_or_default(),
        }
    }

    fn status(&self, row: &TaskRow, extra: Option<&TaskExtra>) -> TaskStatus {
        let message = extra.map(|e| e.message.clone()).filter(|m| !m.is_empty());
        let error = extra.map(|e| e.error.clone()).filter(|e| !e.is_empty()).or_else(|| {
            let waits = row.state < TaskState::Assigned && row.is_live();
            let blocked = row.service.filter(|_| waits).and_then(|s| self.explanation(s, row.spec_version));
            blocked.map(|text| text.to_string())
        });
        let ports = extra.map(|e| e.host_ports.as_slice()).unwrap_or_default().iter();
        TaskStatus {
            state: row.state,
            at: Timestamp(row.status_ms),
            message: message.unwrap_or_else(|| usual_message(row.state).to_owned()),
            error: error.unwrap_or_default(),
            exit_code: row.exit_code(),
            host_ports: ports
                .map(|p| PortConfig {
                    name: p.name.clone(),
                    protocol: p.protocol,
                    target: p.target,
                    published: Some(p.published),
                    mode: PublishMode::Host,
                })
                .collect(),
        }
    }

    /// A task's addresses by network.
    pub fn attachments(&self, handle: u32, row: &TaskRow) -> Vec<NetworkAttachment> {
        let extra = self.extras.get(&handle);
        let mut out: Vec<NetworkAttachment> = Vec::new();
        let first = row.attachment.and_then(|a| {
            let network = self.networks.lookup(a.network)?;
            let second = self.addresses6.get(&handle).map(|address| IpAddr::V6(*address));
            let with_prefix = |address: IpAddr| {
                let subnet = network.subnets.iter().find(|s| s.subnet.contains(&address))?;
                IpNet::new(address, subnet.subnet.prefix_len()).ok()
            };
            let both = [IpAddr::V4(a.address)].into_iter().chain(second).filter_map(with_prefix);
            Some((network, both.collect::<Vec<_>>()))
        });
        let further = extra.into_iter().flat_map(|e| &e.attachments);
        let further = further.filter_map(|a| Some((self.networks.lookup(a.network)?, &a.addresses)));
        for (network, addresses) in first.into_iter().chain(further.map(|(n, a)| (n, a.clone()))) {
            if let Some(known) = out.iter_mut().find(|a| a.network == network.id) {
                known.addresses.extend(addresses);
            } else {
                let target = network.id.to_string();
                let spec = self.spec_of(row);
                let wish = spec.and_then(|s| s.task.networks.iter().find(|n| n.target == target));
                let of_container = self.attached(handle).map(|a| a.aliases.clone());
                let aliases = wish.map(|n| n.aliases.clone()).or(of_container).unwrap_or_default();
                out.push(NetworkAttachment { network: network.id, addresses, aliases });
            }
        }
        out
    }
}

pub(super) fn generation_after(old: Option<NonZeroU32>) -> NonZeroU32 {
    old.map_or(NonZeroU32::MIN, |g| g.saturating_add(1))
}
