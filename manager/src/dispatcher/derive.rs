//! What a node is told of each object. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::model::service::{EndpointSpec, PublishMode};
use skep_proto::model::session::{AssignedTask, ManagerPeer, SpecKey};
use skep_proto::model::task::NetworkAttachment;
use skep_proto::model::view::{EndpointAddress, EndpointView, OverlayNetwork, Peer, ServiceView};
use skep_proto::model::{Network, NetworkId, Node, NodeId, NodeRole, Service, TaskState};
use skep_proto::template::task::{TaskContext, expand_text, is_template};

use super::ports::{ClusterView, TaskFacts};

/// Option that turns encryption off, as in Swarm.
const OPTION_ENCRYPTED: &str = "encrypted";
const OPTION_MTU: &str = "com.docker.network.driver.mtu";

/// What `node` is given of a task, if it is one of its own. Tasks stay assigned after their end, so that their
/// containers are kept until the task is forgotten.
pub fn assigned(task: &TaskFacts, node: NodeId) -> Option<AssignedTask> {
    let service = task.service?;
    if task.node != Some(node) || task.state < TaskState::Assigned {
        return None;
    }
    Some(AssignedTask {
        id: task.id,
        spec: SpecKey { service, version: task.spec_version },
        slot: task.slot,
        desired: task.desired,
        observed: task.state,
        // The further names are the service's: on the task's node, too, they lead where its own does.
        attachments: task
            .attachments
            .iter()
            .map(|own| NetworkAttachment { aliases: Vec::new(), ..own.clone() })
            .collect(),
    })
}

/// Whether the task has not ended and is not meant to: only then its node needs what is secret of it.
pub fn is_live(task: &AssignedTask) -> bool {
    task.desired <= TaskState::Running && !task.observed.is_terminal()
}

/// Whether a task that is to stop should first lose its new connections. Where its service goes nobody takes its place.
pub fn may_drain(view: &dyn ClusterView, task: &TaskFacts) -> bool {
    let service_stays = || task.service.and_then(|id| view.service(id)).is_some_and(|service| !service.pending_delete);
    task.state == TaskState::Running && task.desired > TaskState::Running && service_stays()
}

/// Networks that a task needs on its node.
pub fn networks_used(task: &TaskFacts, node: NodeId) -> impl Iterator<Item = NetworkId> + '_ {
    let uses = task.node == Some(node) && task.state >= TaskState::Assigned && !task.state.is_terminal();
    task.attachments.iter().filter(move |_| uses).map(|attachment| attachment.network)
}

/// What other nodes are told of a task: from the moment it has a node, so that it can be answered while it starts, until
/// it has ended, so that its connections can drain. It gets new connections only while it runs and is meant to.
///
/// `networks` are those of the node that is told. A task on none of them is told only when `by_mesh`.
pub fn endpoint(
    view: &dyn ClusterView,
    task: &TaskFacts,
    networks: &BTreeSet<NetworkId>,
    by_mesh: bool,
) -> Option<EndpointView> {
    let node = task.node?;
    if task.state < TaskState::Assigned || task.state.is_terminal() {
        return None;
    }
    let addresses: Vec<EndpointAddress> = task
        .attachments
        .iter()
        .filter(|attachment| networks.contains(&attachment.network))
        .flat_map(|attachment| {
            attachment.addresses.iter().map(|address| EndpointAddress {
                network: attachment.network,
                address: *address,
                // A service's further names lead where its own does.
                aliases: if task.service.is_some() { Vec::new() } else { attachment.aliases.clone() },
                names: own_names(view, task, attachment.network),
            })
        })
        .collect();
    let mesh = task.mesh.filter(|_| by_mesh);
    if addresses.is_empty() && mesh.is_none() {
        return None;
    }
    Some(EndpointView {
        task: task.id,
        service: task.service,
        node,
        name: container_name(view, task)?,
        addresses,
        mesh,
        serving: task.state == TaskState::Running && task.desired <= TaskState::Running,
    })
}

/// Names that a task has for itself on a network: its service's aliases that name the slot.
fn own_names(view: &dyn ClusterView, task: &TaskFacts, network: NetworkId) -> Vec<String> {
    let Some(service) = task.service.and_then(|id| view.service(id)) else { return Vec::new() };
    let wishes = service.spec.task.networks.iter().filter(|wish| wish.target.parse() == Ok(network));
    let templates: Vec<&String> = wishes.flat_map(|wish| &wish.aliases).filter(|alias| is_template(alias)).collect();
    let context = TaskContext::of_slot(&service.spec.annotations.name, task.slot);
    // One that cannot be expanded names nobody.
    templates.into_iter().filter_map(|alias| expand_text(alias, &context).ok()).collect()
}

/// Docker's name of a task's container: `web.1.TASK`, and `web.NODE.TASK` for a global service.
fn container_name(view: &dyn ClusterView, task: &TaskFacts) -> Option<String> {
    let Some(service) = task.service else { return task.name.clone() };
    let service = view.service(service)?;
    let name = &service.spec.annotations.name;
    Some(match (task.slot, task.node) {
        (0, Some(node)) => format!("{name}.{node}.{}", task.id),
        (slot, _) => format!("{name}.{slot}.{}", task.id),
    })
}

/// Whether every node publishes ports of this service. One that goes has given them up.
pub fn is_in_mesh(service: &Service) -> bool {
    !service.pending_delete
        && service.endpoint.ports.iter().any(|port| port.mode == PublishMode::Ingress && port.published.is_some())
}

/// Whether a node with these networks resolves or publishes this service.
pub fn is_visible(service: &Service, networks: &BTreeSet<NetworkId>) -> bool {
    is_in_mesh(service) || networks_of(service).any(|network| networks.contains(&network))
}

/// Networks that the service is on: those of its virtual addresses, and those its tasks ask for.
pub fn networks_of(service: &Service) -> impl Iterator<Item = NetworkId> + '_ {
    let virtual_ips = service.endpoint.virtual_ips.iter().map(|vip| vip.network);
    let wished = service.spec.task.networks.iter().filter_map(|wish| wish.target.parse().ok());
    virtual_ips.chain(wished)
}

/// What a node with `networks` is told of a service.
pub fn service_view(service: &Service, networks: &BTreeSet<NetworkId>) -> ServiceView {
    let aliases: BTreeMap<NetworkId, Vec<String>> = service
        .spec
        .task
        .networks
        .iter()
        .filter(|wish| !wish.aliases.is_empty())
        .filter_map(|wish| {
            let own = wish.aliases.iter().filter(|alias| !is_template(alias)).cloned().collect();
            Some((wish.target.parse().ok()?, own))
        })
        .filter(|(network, _)| networks.contains(network))
        .collect();
    let vips = service.endpoint.virtual_ips.iter().filter(|vip| networks.contains(&vip.network));
    let spec: Option<&EndpointSpec> = service.endpoint.spec.as_ref().or(service.spec.endpoint.as_ref());
    ServiceView {
        id: service.id,
        name: service.spec.annotations.name.clone(),
        mode: spec.map(|spec| spec.mode).unwrap_or_default(),
        virtual_ips: vips.copied().collect(),
        aliases,
        ports: service.endpoint.ports.clone(),
        // Not the allocator's copy: these need no number.
        redirects: service.spec.endpoint.as_ref().map(|spec| spec.redirects.clone()).unwrap_or_default(),
    }
}

/// What a node is told of a network; `None` until the allocator has seen to it. `data_path_port` is the cluster's.
pub fn overlay(network: &Network, data_path_port: u16) -> Option<OverlayNetwork> {
    let options = &network.spec.driver.options;
    Some(OverlayNetwork {
        id: network.id,
        name: network.spec.annotations.name.clone(),
        vni: network.vni?,
        subnets: network.subnets.clone(),
        internal: network.spec.internal,
        encrypted: options.get(OPTION_ENCRYPTED).is_none_or(|value| value != "false"),
        mtu: options.get(OPTION_MTU).and_then(|value| value.parse().ok()),
        port: data_path_port,
    })
}

/// What a node is told of another, or of itself; `None` until it has told its addresses. A node that is down stays a
/// peer: its tasks may well go on.
pub fn peer(node: &Node) -> Option<Peer> {
    let data_path = node.description.data_path.clone();
    let (wireguard, ipv4_only) = (node.description.wireguard.clone(), node.description.ipv4_only);
    (!data_path.is_empty()).then_some(Peer { node: node.id, index: node.index, data_path, wireguard, ipv4_only })
}

/// The managers of the cluster, by node.
pub fn managers(nodes: &[Arc<Node>]) -> Vec<ManagerPeer> {
    let mut managers: Vec<ManagerPeer> =
        nodes.iter().filter_map(|node| Some(ManagerPeer { node: node.id, address: node.manager?.address })).collect();
    managers.sort_by_key(|manager| manager.node);
    managers
}

/// The role that a node's certificate should have. A node that is being demoted keeps its own until it has left the Raft
/// group: without it, it could not take part in its own removal.
pub fn certificate_role(node: &Node) -> NodeRole {
    if node.manager.is_some() { NodeRole::Manager } else { node.spec.role }
}
