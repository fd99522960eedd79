//! Who uses a network.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use skep_api::ports::control::ControlError;
use skep_api::ports::usage::{EndpointUsage, NetworkUsage, ServiceUsage};
use skep_proto::model::{ContainerId, NetworkId, Node, Service};

use super::tasks::task_name;
use super::{Control, networks};
use crate::store::{NodeRef, ServiceRef, State, TaskRow};

impl Control {
    pub(super) async fn usage_of_network(&self, reference: &str) -> Result<NetworkUsage, ControlError> {
        let state = self.read().await?;
        let network = networks::find(&state, reference)?.id;
        Ok(usage(&state, network))
    }
}

/// Reads only the tasks of services on the network. Pure.
fn usage(state: &State, network: NetworkId) -> NetworkUsage {
    let target = network.to_string();
    let mut nodes = BTreeMap::new();
    let mut found = NetworkUsage::default();
    let is_on_it = |service: &Service| service.spec.task.networks.iter().any(|wish| wish.target == target);
    for (reference, service) in state.services().iter().filter(|(_, s)| !s.pending_delete && is_on_it(s)) {
        let tasks = tasks_of(state, reference, network, &mut nodes);
        let vips = service.endpoint.virtual_ips.iter().filter(|vip| vip.network == network);
        let virtual_ips = vips.map(|vip| vip.address).collect();
        found.services.push(ServiceUsage { service: service.clone(), virtual_ips, tasks });
    }
    found.services.sort_by(|a, b| a.service.spec.annotations.name.cmp(&b.service.spec.annotations.name));
    let own = state.networks().reference(network);
    for (handle, row, attached) in state.attachments_of_containers().filter(|(.., a)| Some(a.network) == own) {
        let Some((addresses, host)) = place(state, handle, row, network, &mut nodes) else { continue };
        let (name, container) = (attached.name.clone(), attached.container);
        found.containers.push(EndpointUsage { name, container, addresses, host });
    }
    found.containers.sort_by(|a, b| a.name.cmp(&b.name));
    found.nodes = nodes.into_values().collect();
    found.nodes.sort_by(|a, b| a.description.hostname.cmp(&b.description.hostname));
    found
}

type Nodes = BTreeMap<NodeRef, Arc<Node>>;

fn tasks_of(state: &State, service: ServiceRef, network: NetworkId, nodes: &mut Nodes) -> Vec<EndpointUsage> {
    let mut tasks = Vec::new();
    for (handle, row) in state.rows_of_service(service) {
        let Some((addresses, host)) = place(state, handle, row, network, nodes) else { continue };
        let Some(task) = state.task_at(handle) else { continue };
        let (name, container) = (task_name(&task), ContainerId::of_task(task.id, 0));
        tasks.push(EndpointUsage { name, container, addresses, host });
    }
    tasks
}

/// Addresses of a task on the network and of its node, while it is on one and has not ended.
fn place(
    state: &State,
    handle: u32,
    row: &TaskRow,
    network: NetworkId,
    nodes: &mut Nodes,
) -> Option<(Vec<IpNet>, Option<IpAddr>)> {
    let reference = row.node.filter(|_| !row.is_dead())?;
    let mut own = state.attachments(handle, row).into_iter().find(|attachment| attachment.network == network)?;
    let node = state.nodes().lookup(reference)?;
    own.addresses.retain(|address| node.description.has(address));
    nodes.entry(reference).or_insert_with(|| node.clone());
    Some((own.addresses, reached_at(node)))
}

/// Where other nodes reach a node.
fn reached_at(node: &Node) -> Option<IpAddr> {
    node.description.data_path.first().copied().or(node.address)
}

#[cfg(test)]
mod tests {
    use skep_proto::model::service::{EndpointMode, EndpointSpec};
    use skep_proto::model::task::NetworkAttachmentSpec;
    use skep_proto::model::{ServiceMode, TaskId};

    use super::*;
    use crate::store::{Attached, Change};
    use crate::world::World;

    #[test]
    fn tasks_containers_and_their_nodes_are_told_of_this_network_alone() {
        let mut world = World::new();
        for n in 1..=3u8 {
            world.add_node(&format!("n{n}"), |node| {
                node.description.data_path = vec![[10, 1, 0, n].into()];
                node.description.ipv4_only = n == 3;
            });
        }
        let network = world.make_network("net", |spec| spec.ipv6 = true);
        let other = world.add_network("other");
        world.settle();
        let on =
            |id: NetworkId| vec![NetworkAttachmentSpec { target: id.to_string(), ..NetworkAttachmentSpec::default() }];
        let replicas = ServiceMode::Replicated { replicas: 2 };
        let web = world.add_service("web", ServiceMode::Replicated { replicas: 3 }, |s| s.task.networks = on(network));
        world.add_service("elsewhere", replicas, |s| s.task.networks = on(other));
        world.add_service("rr", ServiceMode::Replicated { replicas: 0 }, |s| {
            s.task.networks = on(network);
            s.endpoint = Some(EndpointSpec { mode: EndpointMode::DnsRoundRobin, ..EndpointSpec::default() });
        });
        world.settle();
        let state = world.view();
        let attached = Attached {
            network: state.networks().reference(network).unwrap(),
            container: ContainerId([7; 32]),
            name: "shell".into(),
            aliases: Vec::new(),
            address: None,
        };
        let node = state.nodes().iter().next().unwrap().0;
        world.apply(Change::Attach { id: TaskId(9), node, attached });
        world.settle();

        let found = usage(&world.view(), network);
        let names: Vec<_> = found.services.iter().map(|s| s.service.spec.annotations.name.as_str()).collect();
        assert_eq!(names, ["rr", "web"]);
        assert_eq!((found.services[0].virtual_ips.len(), found.services[1].virtual_ips.len()), (0, 2));
        let running = world.running(web);
        for task in &found.services[1].tasks {
            let known = running.iter().find(|t| task_name(t) == task.name).unwrap();
            let node = world.view().nodes().get(known.node.unwrap()).unwrap().clone();
            // What was given to a task on a node without IPv6, and what it has.
            let has: Vec<IpNet> =
                known.attachments[0].addresses.iter().filter(|a| node.description.has(a)).copied().collect();
            assert_eq!(task.addresses, has);
            assert_eq!(task.container, ContainerId::of_task(known.id, 0));
            assert_eq!(task.host, node.description.data_path.first().copied());
        }
        let mut families: Vec<usize> = found.services[1].tasks.iter().map(|task| task.addresses.len()).collect();
        families.sort_unstable();
        assert_eq!((families, found.containers.len()), (vec![1, 2, 2], 1));
        assert_eq!((found.containers[0].name.as_str(), found.containers[0].addresses.len()), ("shell", 2));
        let mut hosts: Vec<_> =
            found.services[1].tasks.iter().chain(&found.containers).filter_map(|e| e.host).collect();
        hosts.sort();
        hosts.dedup();
        let shown: Vec<_> = found.nodes.iter().filter_map(|n| n.description.data_path.first().copied()).collect();
        assert_eq!(shown, hosts, "by name, each once, and none that has nothing there");
    }
}
