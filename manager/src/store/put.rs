//! Applying changes of whole objects: uniqueness, references, and what `apply` itself sets.

use std::num::NonZeroU32;

use bytes::Bytes;
use skep_proto::model::container::ContainerSpec;
use skep_proto::model::service::{PortConfig, Protocol, PublishMode, ScheduledRuns};
use skep_proto::model::{
    Cluster, Config, Meta, Network, NetworkId, Node, NodeId, NodeRole, Secret, Service, Version, schedule,
};

use super::apply::Context;
use super::digest::{self, Domain};
use super::entry::{INGRESS, Kind, Refusal};
use super::refs::{NetworkRef, Reference};
use super::spec::{SharedSpec, host_ports, same_tasks};
use super::state::State;
use super::table::{Object, RawId, Table};
use super::touched::TouchedObject;

impl Context<'_> {
    pub(super) fn touch(&mut self, kind: Kind, id: u128, handle: u32) {
        self.touched.objects.push(TouchedObject { kind, id, handle });
    }

    fn meta(&self, old: Option<&Meta>) -> Meta {
        Meta { version: Version(self.index), created_at: old.map_or(self.at, |m| m.created_at), updated_at: self.at }
    }
}

pub(super) fn object_hash(kind: Kind) -> impl Fn(u32, NonZeroU32, &Bytes) -> u64 {
    move |handle, generation, bytes| digest::of(Domain::Object, (kind, handle, generation), bytes)
}

/// Reads the object and checks what every kind asks for: identity, version, name.
fn incoming<T: Object>(table: &Table<T>, id: u128, if_version: u64, bytes: &Bytes) -> Result<T, Refusal> {
    let object = T::decode(bytes).map_err(|e| Refusal::Invalid { reason: e.reason })?;
    if object.id().into() != RawId(id) {
        return Err(Refusal::Invalid { reason: "the change and its object name different ids".into() });
    }
    let kind = T::KIND;
    match (table.by_raw_id(id), if_version) {
        (Some(_), 0) => return Err(Refusal::Exists { kind, id }),
        (None, 1..) => return Err(Refusal::NotFound { kind, id }),
        (Some(old), given) if old.meta().version.0 != given => {
            return Err(Refusal::OutOfSequence { kind, id, current: old.meta().version.0, given });
        }
        (Some(_), _) | (None, 0) => {}
    }
    if let Some(name) = object.unique_name()
        && let Some(holder) = table.named(name)
    {
        let RawId(holder) = holder.id().into();
        if holder != id {
            return Err(Refusal::NameConflict { kind, name: name.into(), id: holder });
        }
    }
    Ok(object)
}

fn outgoing<T: Object>(table: &Table<T>, id: u128, if_version: u64) -> Result<(), Refusal> {
    let kind = T::KIND;
    let old = table.by_raw_id(id).ok_or(Refusal::NotFound { kind, id })?;
    let current = old.meta().version.0;
    if if_version != 0 && current != if_version {
        return Err(Refusal::OutOfSequence { kind, id, current, given: if_version });
    }
    Ok(())
}

/// Ports of the routing mesh that a service has or asks for by number.
pub(super) fn mesh_ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> + '_ {
    let asked = service.spec.endpoint.iter().flat_map(|e| &e.ports);
    let all = service.endpoint.ports.iter().chain(asked).filter(|_| !service.pending_delete);
    all.filter(|p| p.mode == PublishMode::Ingress).filter_map(|p| Some((p.protocol, p.published?)))
}

/// Whether a service has ports of the routing mesh, with numbers already or not.
fn uses_mesh(service: &Service) -> bool {
    let asked = service.spec.endpoint.iter().flat_map(|e| &e.ports);
    !service.pending_delete && service.endpoint.ports.iter().chain(asked).any(|port| port.mode == PublishMode::Ingress)
}

/// Keeps account of a job's runs. A planner asks for one by another `last_at`, a client by a higher `ForceUpdate`: it
/// becomes an iteration of its own, which is what spec versions tell apart. Any other change leaves the run alone that
/// goes on.
fn follow_schedule(context: &Context<'_>, old: Option<&Service>, service: &mut Service) {
    let of = |service: &Service| {
        let labels = &service.spec.annotations.labels;
        let all = schedule::LABELS.map(|label| labels.get(label).cloned());
        (service.spec.mode.is_job() && labels.contains_key(schedule::LABEL)).then_some(all)
    };
    let Some(labels) = of(service) else {
        service.runs = None;
        return;
    };
    let from_now = ScheduledRuns { decided_at: context.at, last_at: None, iteration: 0 };
    let Some(old) = old else {
        service.runs = Some(from_now);
        return;
    };
    let asked = service.runs;
    // What a job did before it had a schedule is its last run.
    let before = old.runs.unwrap_or(ScheduledRuns { iteration: old.spec_version, ..from_now });
    let mut runs = before;
    if of(old) != Some(labels) {
        runs.decided_at = runs.decided_at.max(context.at);
    } else if let Some(asked) = asked.filter(|asked| asked.decided_at > runs.decided_at) {
        runs.decided_at = asked.decided_at;
        runs.last_at = asked.last_at;
    }
    if runs.last_at != before.last_at || service.spec.task.force_update > old.spec.task.force_update {
        service.spec_version = context.index;
        runs.iteration = context.index;
    }
    service.runs = Some(runs);
}

fn uses_network(service: &Service, id: NetworkId) -> bool {
    let id = id.to_string();
    !service.pending_delete && service.spec.task.networks.iter().any(|n| n.target == id)
}

impl State {
    pub(super) fn put(
        &mut self,
        context: &mut Context<'_>,
        kind: Kind,
        id: u128,
        if_version: u64,
        bytes: &Bytes,
    ) -> Result<(), Refusal> {
        match kind {
            Kind::Service => {
                let service = incoming::<Service>(&self.services, id, if_version, bytes)?;
                self.put_service(context, service)
            }
            Kind::Network => {
                let network = incoming::<Network>(&self.networks, id, if_version, bytes)?;
                self.put_network(context, network)
            }
            Kind::Node => {
                let node = incoming::<Node>(&self.nodes, id, if_version, bytes)?;
                self.put_node(context, node)
            }
            Kind::Cluster => {
                let object = incoming::<Cluster>(&self.clusters, id, if_version, bytes)?;
                if self.clusters.by_raw_id(id).is_none() && !self.clusters.is_empty() {
                    return Err(Refusal::Invalid { reason: "the cluster exists already".into() });
                }
                if let Some(old) = self.clusters.by_raw_id(id).cloned() {
                    self.note_certificate_life(&old, context.at);
                    if object.ingress_removed && !old.ingress_removed {
                        self.unused(Kind::Network, INGRESS, self.services_with(uses_mesh))?;
                    }
                }
                self.digest ^= put_plain(&mut self.clusters, context, object);
                Ok(())
            }
            Kind::Secret => {
                let object = incoming::<Secret>(&self.secrets, id, if_version, bytes)?;
                self.digest ^= put_plain(&mut self.secrets, context, object);
                Ok(())
            }
            Kind::Config => {
                let object = incoming::<Config>(&self.configs, id, if_version, bytes)?;
                self.digest ^= put_plain(&mut self.configs, context, object);
                Ok(())
            }
        }
    }

    fn put_service(&mut self, context: &mut Context<'_>, mut service: Service) -> Result<(), Refusal> {
        let old = self.services.get(service.id).cloned();
        self.check_mesh_ports(&service)?;
        self.check_files(old.as_deref(), &service)?;
        self.check_networks(old.as_deref(), &service)?;
        let mut virtual_ips = Vec::new();
        for vip in &service.endpoint.virtual_ips {
            let network = self.networks.reference(vip.network);
            let network = network.ok_or(Refusal::NotFound { kind: Kind::Network, id: vip.network.0 })?;
            if !old.as_ref().is_some_and(|old| old.endpoint.virtual_ips.contains(vip)) {
                self.check_address(network, vip.address.addr())?;
            }
            virtual_ips.push((network, vip.address.addr()));
        }
        service.meta = context.meta(old.as_ref().map(|o| &o.meta));
        let previous = old.as_ref().and_then(|old| old.previous.as_deref());
        service.spec_version = match (&old, previous) {
            (Some(old), _) if same_tasks(&old.spec, &service.spec) => old.spec_version,
            // Back to what it was: tasks that were not replaced yet need not be. A job runs again.
            (_, Some(previous)) if !service.spec.mode.is_job() && same_tasks(&previous.spec, &service.spec) => {
                previous.spec_version
            }
            _ => context.index,
        };
        follow_schedule(context, old.as_deref(), &mut service);
        if let Some(old) = &old {
            self.release_service(old);
        }
        for (network, address) in virtual_ips {
            self.derived.addresses.insert(network, address);
            if !old.as_ref().is_some_and(|old| old.endpoint.virtual_ips.iter().any(|v| v.address.addr() == address)) {
                self.move_cursor(network, address);
            }
        }
        let (id, version) = (service.id, service.spec_version);
        let ports: Vec<_> = mesh_ports(&service).collect();
        let (reference, xor) = self.services.put(service, object_hash(Kind::Service));
        self.digest ^= xor;
        for port in ports {
            self.derived.ingress_ports.insert(port, reference.handle());
        }
        let object = self.services.lookup(reference).expect("just put").clone();
        self.specs.entry((reference.handle(), version)).or_insert_with(|| SharedSpec::of(&object));
        self.forget_specs(reference.handle());
        context.touch(Kind::Service, id.0, reference.handle());
        Ok(())
    }

    /// A secret or config may have been removed since the service was checked. One that goes needs nothing,
    /// and one that goes back to what it was may find it gone: its tasks then say so.
    fn check_files(&self, old: Option<&Service>, service: &Service) -> Result<(), Refusal> {
        let specs = old.into_iter().flat_map(|old| [Some(&old.spec), old.previous.as_ref().map(|p| &p.spec)]);
        let known: Vec<&ContainerSpec> = specs.flatten().flat_map(|spec| &spec.task.containers).collect();
        for container in service.spec.task.containers.iter().filter(|_| !service.pending_delete) {
            let new = container.secrets.iter().map(|reference| reference.id);
            for id in new.filter(|id| !known.iter().any(|c| c.secrets.iter().any(|known| known.id == *id))) {
                self.secrets.get(id).ok_or(Refusal::NotFound { kind: Kind::Secret, id: id.0 })?;
            }
            let new = container.configs.iter().map(|reference| reference.id);
            for id in new.filter(|id| !known.iter().any(|c| c.configs.iter().any(|known| known.id == *id))) {
                self.configs.get(id).ok_or(Refusal::NotFound { kind: Kind::Config, id: id.0 })?;
            }
        }
        Ok(())
    }

    /// As with files: a network may have been removed since the service was checked.
    fn check_networks(&self, old: Option<&Service>, service: &Service) -> Result<(), Refusal> {
        let of = |service: &Service| service.spec.task.networks.iter().map(|n| n.target.clone()).collect::<Vec<_>>();
        let previous = old.and_then(|old| old.previous.as_deref());
        let known: Vec<String> = old.map(of).into_iter().flatten().collect();
        let is_known = |target: &String| {
            known.contains(target) || previous.is_some_and(|p| p.spec.task.networks.iter().any(|n| n.target == *target))
        };
        let new = of(service).into_iter().filter(|target| !service.pending_delete && !is_known(target));
        // Others are the node's own.
        for id in new.filter_map(|target| target.parse::<NetworkId>().ok()) {
            let found = self.networks.get(id).filter(|network| !network.pending_delete);
            found.ok_or(Refusal::NotFound { kind: Kind::Network, id: id.0 })?;
        }
        Ok(())
    }

    /// Ports of the routing mesh are the cluster's: one service each, and no other service may take them in host mode
    /// (swarmkit checks both ways when a service is made or updated).
    fn check_mesh_ports(&self, service: &Service) -> Result<(), Refusal> {
        if uses_mesh(service) && self.cluster().is_some_and(|cluster| cluster.ingress_removed) {
            return Err(Refusal::NoIngress);
        }
        let in_use = |port, by: &Service, ingress| Refusal::PortInUse {
            port,
            service: by.spec.annotations.name.clone(),
            id: by.id.0,
            ingress,
        };
        for (protocol, port) in mesh_ports(service) {
            if let Some(by) = self.ingress_port_holder(protocol, port).filter(|by| by.id != service.id) {
                return Err(in_use(port, by, true));
            }
            let takes = |p: &PortConfig| (p.protocol, p.published) == (protocol, Some(port));
            let others = self.services.values().filter(|by| by.id != service.id && !by.pending_delete);
            for by in others {
                if host_ports(&by.spec).any(takes) {
                    return Err(in_use(port, by, false));
                }
            }
        }
        for port in host_ports(&service.spec).filter(|_| !service.pending_delete) {
            let holder = port.published.and_then(|number| self.ingress_port_holder(port.protocol, number));
            if let Some(by) = holder.filter(|by| by.id != service.id) {
                return Err(in_use(port.published.unwrap_or_default(), by, true));
            }
        }
        Ok(())
    }

    /// Takes a service's ports and addresses out of the indexes.
    fn release_service(&mut self, old: &Service) {
        for port in mesh_ports(old) {
            self.derived.ingress_ports.remove(&port);
        }
        for vip in &old.endpoint.virtual_ips {
            if let Some(network) = self.networks.reference(vip.network) {
                self.derived.addresses.remove(network, vip.address.addr());
            }
        }
    }

    /// Drops specs of a service that no task was made from and that are neither current nor previous.
    pub(super) fn forget_specs(&mut self, service: u32) {
        let object = self.services.at(service);
        let kept = |version: u64| {
            object.is_some_and(|s| {
                s.spec_version == version
                    || s.iteration() == version
                    || s.previous.as_ref().is_some_and(|p| p.spec_version == version)
            })
        };
        let range = (service, 0)..=(service, u64::MAX);
        let unused = self.specs.range(range).filter(|((_, version), spec)| spec.tasks == 0 && !kept(*version));
        let unused: Vec<_> = unused.map(|(key, _)| *key).collect();
        for key in unused {
            self.specs.remove(&key);
            self.set_blocked(key, None);
        }
    }

    fn put_network(&mut self, context: &mut Context<'_>, mut network: Network) -> Result<(), Refusal> {
        let old = self.networks.get(network.id).cloned();
        for other in self.networks.values().filter(|other| other.id != network.id) {
            let name = || other.spec.annotations.name.clone();
            if network.vni.is_some() && network.vni == other.vni {
                return Err(Refusal::VniInUse { vni: network.vni.unwrap_or_default(), network: name() });
            }
            for (mine, theirs) in network.subnets.iter().flat_map(|a| other.subnets.iter().map(move |b| (a, b))) {
                let (subnet, with) = (mine.subnet, theirs.subnet);
                if subnet.contains(&with.network()) || with.contains(&subnet.network()) {
                    return Err(Refusal::SubnetOverlap { subnet, with, network: name() });
                }
            }
        }
        if network.pending_delete && !old.as_ref().is_some_and(|old| old.pending_delete) {
            self.check_network_unused(&network)?;
        }
        network.meta = context.meta(old.as_ref().map(|o| &o.meta));
        if let Some(vni) = old.and_then(|old| old.vni) {
            self.derived.vnis.remove(&vni);
        }
        if let Some(vni) = network.vni {
            self.derived.vnis.insert(vni, network.id);
        }
        let id = network.id.0;
        let (reference, xor) = self.networks.put(network, object_hash(Kind::Network));
        self.digest ^= xor;
        context.touch(Kind::Network, id, reference.handle());
        Ok(())
    }

    fn check_network_unused(&self, network: &Network) -> Result<(), Refusal> {
        if network.spec.ingress {
            return self.unused(Kind::Network, &network.spec.annotations.name, self.services_with(uses_mesh));
        }
        let users = self.services.values().filter(|s| uses_network(s, network.id));
        let mut by: Vec<_> = users.map(|s| s.spec.annotations.name.clone()).collect();
        if by.is_empty()
            && let Some(reference) = self.networks.reference(network.id)
        {
            let on_it = self.attachments_of_containers().filter(|(_, row, a)| !row.is_dead() && a.network == reference);
            by.extend(on_it.take(10).map(|(_, row, _)| row.id.to_string()));
        }
        self.unused(Kind::Network, &network.spec.annotations.name, by)
    }

    fn unused(&self, kind: Kind, name: &str, by: Vec<String>) -> Result<(), Refusal> {
        if by.is_empty() { Ok(()) } else { Err(Refusal::InUse { kind, name: name.into(), by }) }
    }

    fn put_node(&mut self, context: &mut Context<'_>, mut node: Node) -> Result<(), Refusal> {
        let old = self.nodes.get(node.id).cloned();
        if old.is_none() && self.removed.contains_key(&node.id.0) {
            // A join that was under way while the node was removed.
            return Err(Refusal::NotFound { kind: Kind::Node, id: node.id.0 });
        }
        self.check_demotion(old.as_deref(), &node)?;
        node.index = match &old {
            Some(old) => old.index,
            None => {
                let given = self.free_node_index()?;
                self.node_index = given;
                given
            }
        };
        node.meta = context.meta(old.as_ref().map(|o| &o.meta));
        let id = node.id.0;
        self.nodes_index = context.index;
        let (reference, xor) = self.nodes.put(node, object_hash(Kind::Node));
        self.digest ^= xor;
        context.touch(Kind::Node, id, reference.handle());
        Ok(())
    }

    /// One manager is left always. Checked here, so that two demotions at a time cannot each count on the other's node.
    fn check_demotion(&self, old: Option<&Node>, new: &Node) -> Result<(), Refusal> {
        let is_demoted = new.spec.role == NodeRole::Worker && old.is_some_and(|old| old.spec.role == NodeRole::Manager);
        let has_another = || self.nodes.values().any(|n| n.id != new.id && n.spec.role == NodeRole::Manager);
        if is_demoted && !has_another() { Err(Refusal::LastManager) } else { Ok(()) }
    }

    /// The next index behind the one given last, so that an index rests before it is given again. From 1 on.
    fn free_node_index(&self) -> Result<u16, Refusal> {
        let used: std::collections::BTreeSet<u16> = self.nodes.values().map(|n| n.index).collect();
        let from_cursor = (self.node_index.saturating_add(1)..=u16::MAX).chain(1..=self.node_index);
        let mut free = from_cursor.filter(|index| !used.contains(index));
        free.next().ok_or_else(|| Refusal::Invalid { reason: "a cluster has at most 65,535 nodes".into() })
    }

    pub(super) fn delete(
        &mut self,
        context: &mut Context<'_>,
        kind: Kind,
        id: u128,
        if_version: u64,
    ) -> Result<(), Refusal> {
        let handle = match kind {
            Kind::Service => self.delete_service(id, if_version)?,
            Kind::Network => self.delete_network(id, if_version)?,
            Kind::Node => {
                outgoing(&self.nodes, id, if_version)?;
                let reference = self.nodes.raw_reference(id).expect("just found");
                self.orphan_tasks_of(context, reference);
                self.nodes_index = context.index;
                self.remember_removed(NodeId(id), context.at);
                remove_plain(&mut self.nodes, id, &mut self.digest)
            }
            Kind::Cluster => return Err(Refusal::Invalid { reason: "a cluster ends with its last manager".into() }),
            Kind::Secret => {
                outgoing(&self.secrets, id, if_version)?;
                let name = self.secrets.by_raw_id(id).map(|s| s.spec.annotations.name.clone()).unwrap_or_default();
                let by = self
                    .services_with(|s| s.spec.task.containers.iter().any(|c| c.secrets.iter().any(|r| r.id.0 == id)));
                self.unused(kind, &name, by)?;
                remove_plain(&mut self.secrets, id, &mut self.digest)
            }
            Kind::Config => {
                outgoing(&self.configs, id, if_version)?;
                let name = self.configs.by_raw_id(id).map(|s| s.spec.annotations.name.clone()).unwrap_or_default();
                let by = self
                    .services_with(|s| s.spec.task.containers.iter().any(|c| c.configs.iter().any(|r| r.id.0 == id)));
                self.unused(kind, &name, by)?;
                remove_plain(&mut self.configs, id, &mut self.digest)
            }
        };
        context.touch(kind, id, handle);
        Ok(())
    }

    fn services_with(&self, uses: impl Fn(&Service) -> bool) -> Vec<String> {
        let users = self.services.values().filter(|s| !s.pending_delete && uses(s));
        users.map(|s| s.spec.annotations.name.clone()).collect()
    }

    fn delete_service(&mut self, id: u128, if_version: u64) -> Result<u32, Refusal> {
        outgoing(&self.services, id, if_version)?;
        let reference = self.services.raw_reference(id).expect("just found");
        let service = self.services.lookup(reference).expect("just found").clone();
        let by: Vec<_> = self.rows_of_service(reference).take(10).map(|(_, row)| row.id.to_string()).collect();
        self.unused(Kind::Service, &service.spec.annotations.name, by)?;
        self.release_service(&service);
        let handle = remove_plain(&mut self.services, id, &mut self.digest);
        self.forget_specs(handle);
        Ok(handle)
    }

    fn delete_network(&mut self, id: u128, if_version: u64) -> Result<u32, Refusal> {
        outgoing(&self.networks, id, if_version)?;
        let reference: NetworkRef = self.networks.raw_reference(id).expect("just found");
        let network = self.networks.lookup(reference).expect("just found").clone();
        self.check_network_unused(&network)?;
        let name = &network.spec.annotations.name;
        if self.addresses_used(reference) > 0 {
            let by = self.address_holders(reference, &network);
            self.unused(Kind::Network, name, by)?;
        }
        if let Some(vni) = network.vni {
            self.derived.vnis.remove(&vni);
        }
        self.forget_cursors(reference);
        Ok(remove_plain(&mut self.networks, id, &mut self.digest))
    }

    /// Who keeps a network from going, at most ten of them.
    fn address_holders(&self, reference: NetworkRef, network: &Network) -> Vec<String> {
        let services =
            self.services.values().filter(|s| s.endpoint.virtual_ips.iter().any(|v| v.network == network.id));
        let services = services.map(|s| s.spec.annotations.name.clone());
        let on_it =
            |handle: &u32| self.extra(*handle).is_some_and(|e| e.attachments.iter().any(|a| a.network == reference));
        let tasks = self
            .rows()
            .filter(|(h, row)| !row.is_dead() && (row.attachment.is_some_and(|a| a.network == reference) || on_it(h)));
        services.chain(tasks.map(|(_, row)| row.id.to_string())).take(10).collect()
    }
}

fn put_plain<T: Object>(table: &mut Table<T>, context: &mut Context<'_>, mut object: T) -> u64 {
    let old = table.get(object.id()).map(|o| *o.meta());
    *object.meta_mut() = context.meta(old.as_ref());
    let RawId(id) = object.id().into();
    let (reference, xor) = table.put(object, object_hash(T::KIND));
    context.touch(T::KIND, id, reference.handle());
    xor
}

fn remove_plain<T: Object>(table: &mut Table<T>, id: u128, digest: &mut u64) -> u32 {
    let (reference, _, hash) = table.remove(id).expect("just found");
    *digest ^= hash;
    reference.handle()
}
