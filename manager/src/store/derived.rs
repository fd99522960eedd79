//! Indexes and sums: all that can be told from the rows, kept up to date by one function that compares old with new.
//!
//! Only partial indexes are worth their memory: "waits for an address", "waits for a node", "due at a time". "Every
//! running task" is the table itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::{OrdMap, OrdSet};
use skep_proto::model::service::Protocol;
use skep_proto::model::{NetworkId, TaskState};

use super::addresses::Addresses;
use super::refs::{NetworkRef, Reference};
use super::row::{TaskExtra, TaskRow};
use super::spec::SharedSpec;

/// What tasks reserve on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeLoad {
    /// Tasks that take room there.
    pub tasks: u32,
    /// CPU in nano-CPUs.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory: i64,
}

/// Tasks of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServiceCount {
    /// All that the store holds.
    pub tasks: u32,
    /// Wanted, and not ended.
    pub live: u32,
    /// Running, and meant to.
    pub running: u32,
    /// Ended with success.
    pub completed: u32,
}

/// Indexes by handle, and sums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Derived {
    /// (top bits of the id, task): a prefix is a range, and the row tells which of its tasks have it.
    pub ids: OrdSet<(u32, u32)>,
    /// (service, place, task).
    pub by_service: OrdSet<(u32, u32, u32)>,
    /// (node, task).
    pub by_node: OrdSet<(u32, u32)>,
    /// New and wanted: for the allocator.
    pub unallocated: OrdSet<u32>,
    /// Pending and wanted, by (service, spec version, task): for the scheduler.
    pub unplaced: OrdSet<(u32, u64, u32)>,
    /// Dead, to be forgotten: for the reaper.
    pub removable: OrdSet<u32>,
    /// (time, task): desired ready until then.
    pub due: OrdSet<(u64, u32)>,
    /// By node.
    pub loads: OrdMap<u32, NodeLoad>,
    /// Generic resources reserved, by (node, kind).
    pub generic: OrdMap<(u32, String), u64>,
    /// Host-mode ports taken, by (node, protocol, port); the value is the task.
    pub host_ports: OrdMap<(u32, Protocol, u16), u32>,
    /// By service.
    pub counts: OrdMap<u32, ServiceCount>,
    /// Addresses in use, of tasks and services.
    pub addresses: Addresses,
    /// Ports of the routing mesh; the value is the service.
    pub ingress_ports: OrdMap<(Protocol, u16), u32>,
    /// Networks by VXLAN identifier.
    pub vnis: OrdMap<u32, NetworkId>,
}

/// The part of an id that the index of ids holds: enough that few ids share it, little enough for a million entries.
pub(super) fn top_bits(id: u128) -> u32 {
    u32::try_from(id >> 96).expect("32 of 128 bits are left")
}

/// A task's two parts.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub row: &'a TaskRow,
    /// Its IPv6 address on the network of the row's address.
    pub address6: Option<Ipv6Addr>,
    pub extra: Option<&'a TaskExtra>,
}

/// The addresses of a live task on its first network.
fn first_addresses(parts: Parts<'_>) -> Option<(NetworkRef, Ipv4Addr, Option<Ipv6Addr>)> {
    let held = parts.row.attachment.filter(|_| !parts.row.is_dead());
    held.map(|first| (first.network, first.address, parts.address6))
}

/// Addresses that a live task holds beyond its row's.
fn further_addresses(row: &TaskRow, extra: Option<&TaskExtra>) -> Vec<(NetworkRef, IpAddr)> {
    let held = extra.into_iter().filter(|_| !row.is_dead()).flat_map(|extra| &extra.attachments);
    held.flat_map(|a| a.addresses.iter().map(|net| (a.network, net.addr()))).collect()
}

fn move_key<K: Ord + Clone>(set: &mut OrdSet<K>, old: Option<K>, new: Option<K>) {
    if old != new {
        if let Some(key) = old {
            set.remove(&key);
        }
        if let Some(key) = new {
            set.insert(key);
        }
    }
}

impl Derived {
    /// A task came (`old` is none), changed, or goes (`new` is none). `spec` is the one it was made from, which never
    /// changes in its life.
    pub(super) fn task(
        &mut self,
        handle: u32,
        old: Option<Parts<'_>>,
        new: Option<Parts<'_>>,
        spec: Option<&SharedSpec>,
    ) {
        let rare = |parts: Option<Parts<'_>>| parts.is_some_and(|p| p.extra.is_some());
        if rare(old) || rare(new) {
            let due = |p: Parts<'_>| {
                let waits = p.row.desired == TaskState::Ready && !p.row.is_dead();
                p.extra.filter(|e| waits && e.start_ms > 0).map(|e| (e.start_ms, handle))
            };
            move_key(&mut self.due, old.and_then(due), new.and_then(due));
            let held = |p: Parts<'_>| further_addresses(p.row, p.extra);
            let (before, after) = (old.map(held).unwrap_or_default(), new.map(held).unwrap_or_default());
            if before != after {
                before.into_iter().for_each(|(network, address)| self.addresses.remove(network, address));
                after.into_iter().for_each(|(network, address)| self.addresses.insert(network, address));
            }
        }
        let (before, after) = (old.and_then(first_addresses), new.and_then(first_addresses));
        if before != after {
            let both = |(network, v4, v6): (NetworkRef, Ipv4Addr, Option<Ipv6Addr>)| {
                [IpAddr::V4(v4)].into_iter().chain(v6.map(IpAddr::V6)).map(move |address| (network, address))
            };
            before.into_iter().flat_map(both).for_each(|(network, address)| self.addresses.remove(network, address));
            after.into_iter().flat_map(both).for_each(|(network, address)| self.addresses.insert(network, address));
        }
        self.row(handle, old.map(|p| p.row), new.map(|p| p.row), spec);
    }

    fn row(&mut self, handle: u32, old: Option<&TaskRow>, new: Option<&TaskRow>, spec: Option<&SharedSpec>) {
        let id = |row: &TaskRow| (top_bits(row.id.0), handle);
        move_key(&mut self.ids, old.map(id), new.map(id));
        let service = |row: &TaskRow| row.service.map(|s| (s.handle(), row.place(), handle));
        move_key(&mut self.by_service, old.and_then(service), new.and_then(service));
        let node = |row: &TaskRow| row.node.map(|n| (n.handle(), handle));
        move_key(&mut self.by_node, old.and_then(node), new.and_then(node));
        let unallocated = |row: &TaskRow| (row.state == TaskState::New && row.is_live()).then_some(handle);
        move_key(&mut self.unallocated, old.and_then(unallocated), new.and_then(unallocated));
        let unplaced = |row: &TaskRow| {
            let waits = row.state == TaskState::Pending && row.is_live();
            row.service.filter(|_| waits).map(|s| (s.handle(), row.spec_version, handle))
        };
        move_key(&mut self.unplaced, old.and_then(unplaced), new.and_then(unplaced));
        // A container's place on a network has no history.
        let is_removable = |row: &TaskRow| (row.desired == TaskState::Remove || row.service.is_none()) && row.is_dead();
        let removable = |row: &TaskRow| is_removable(row).then_some(handle);
        move_key(&mut self.removable, old.and_then(removable), new.and_then(removable));

        let place = |row: &TaskRow| row.node.filter(|_| row.occupies_node()).map(Reference::handle);
        let (old_place, new_place) = (old.and_then(place), new.and_then(place));
        if old_place != new_place {
            old_place.into_iter().for_each(|node| self.leave(node, handle, spec));
            new_place.into_iter().for_each(|node| self.take(node, handle, spec));
        }
        let count = |row: &TaskRow| {
            row.service.map(|s| {
                let one = |is: bool| u32::from(is);
                let completed = one(row.state == TaskState::Complete);
                (s.handle(), [1, one(row.is_live()), one(row.is_running()), completed])
            })
        };
        let (old_count, new_count) = (old.and_then(count), new.and_then(count));
        if old_count != new_count {
            if let Some((service, minus)) = old_count {
                self.count(service, |total, at| *total -= minus[at]);
            }
            if let Some((service, plus)) = new_count {
                self.count(service, |total, at| *total += plus[at]);
            }
        }
    }

    fn count(&mut self, service: u32, change: impl Fn(&mut u32, usize)) {
        let mut count = self.counts.get(&service).copied().unwrap_or_default();
        let fields = [&mut count.tasks, &mut count.live, &mut count.running, &mut count.completed];
        fields.into_iter().enumerate().for_each(|(at, total)| change(total, at));
        if count == ServiceCount::default() {
            self.counts.remove(&service);
        } else {
            self.counts.insert(service, count);
        }
    }

    fn take(&mut self, node: u32, handle: u32, spec: Option<&SharedSpec>) {
        let load = self.loads.entry(node).or_default();
        load.tasks += 1;
        let Some(spec) = spec else { return };
        load.nano_cpus = load.nano_cpus.saturating_add(spec.nano_cpus);
        load.memory = load.memory.saturating_add(spec.memory);
        for (kind, amount) in spec.generic() {
            let used = self.generic.entry((node, kind.clone())).or_default();
            *used = used.saturating_add(*amount);
        }
        for (protocol, port) in &spec.host_ports {
            self.host_ports.insert((node, *protocol, *port), handle);
        }
    }

    fn leave(&mut self, node: u32, handle: u32, spec: Option<&SharedSpec>) {
        let Some(load) = self.loads.get_mut(&node) else { return };
        load.tasks -= 1;
        if let Some(spec) = spec {
            load.nano_cpus = load.nano_cpus.saturating_sub(spec.nano_cpus);
            load.memory = load.memory.saturating_sub(spec.memory);
        }
        if load.tasks == 0 {
            self.loads.remove(&node);
        }
        let Some(spec) = spec else { return };
        for (kind, amount) in spec.generic() {
            let key = (node, kind.clone());
            let left = self.generic.get(&key).copied().unwrap_or_default().saturating_sub(*amount);
            if left == 0 {
                self.generic.remove(&key);
            } else {
                self.generic.insert(key, left);
            }
        }
        for (protocol, port) in &spec.host_ports {
            let key = (node, *protocol, *port);
            if self.host_ports.get(&key) == Some(&handle) {
                self.host_ports.remove(&key);
            }
        }
    }
}
