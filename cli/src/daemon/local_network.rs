//! Sandboxes and bridges of plain containers, as the engine asks for them.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use skep_agent::engine_port::sandboxes::{
    Bridge, BridgeRequest, Encryption, Examined, Link, LinkTo, Sandbox, SandboxError, SandboxRequest, Sandboxes,
};
use skep_network::{
    Addressing, BridgeAttachment, BridgeSpec, BridgeSpec6, HostPort, LinkKind, NetworkError, OverlayAttachment,
    Resolver, SandboxId, SandboxLink, SandboxSpec,
};
use skep_proto::model::doctor::Question;
use skep_proto::model::engine::PortBinding;
use skep_proto::model::network::Subnet;
use skep_proto::model::view::NetworkView;
use skep_proto::model::{NetworkId, NodeId};

use super::network::ClusterNetwork;

/// The border of the engine to the network layer.
pub struct LocalNetwork(pub Arc<ClusterNetwork>);

#[async_trait]
impl Sandboxes for LocalNetwork {
    async fn ensure(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError> {
        let spec = specification(&request)?;
        let made = self.0.layer().create_sandbox(spec).await.map_err(error)?;
        Ok(sandbox(&made, &self.0.view()))
    }

    async fn reshape(&self, request: SandboxRequest) -> Result<Sandbox, SandboxError> {
        let made = self.0.layer().reshape_sandbox(specification(&request)?).await.map_err(error)?;
        Ok(sandbox(&made, &self.0.view()))
    }

    async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let Some(id) = SandboxId::new(id) else { return Ok(()) };
        self.0.layer().delete_sandbox(&id).await.map_err(error)
    }

    async fn list(&self) -> Result<Vec<Sandbox>, SandboxError> {
        let view = self.0.view();
        Ok(self.0.layer().sandboxes().await.iter().map(|made| sandbox(made, &view)).collect())
    }

    fn overlays(&self) -> Vec<NetworkId> {
        self.0.view().networks.keys().copied().collect()
    }

    fn mesh_subnets(&self) -> Vec<IpNet> {
        self.0.mesh_subnets()
    }

    async fn ensure_bridge(&self, request: BridgeRequest) -> Result<Bridge, SandboxError> {
        let layer = self.0.layer();
        if let Some(known) = layer.bridges().into_iter().find(|b| b.name == request.name) {
            return Ok(bridge(&known));
        }
        layer.create_bridge(bridge_spec(&request)?).await.map(|made| bridge(&made)).map_err(error)
    }

    async fn remove_bridge(&self, name: &str) -> Result<(), SandboxError> {
        self.0.layer().remove_bridge(name).await.map_err(error)
    }

    async fn bridges(&self) -> Result<Vec<Bridge>, SandboxError> {
        Ok(self.0.layer().bridges().iter().map(bridge).collect())
    }

    async fn encryption(&self) -> Encryption {
        super::encryption::shown(self.0.layer()).await
    }

    async fn examine(&self, question: &Question) -> Examined {
        let layer = self.0.layer();
        let known = layer.known();
        let node = layer.node().map(|node| node.to_string());
        let name = |id: NodeId| {
            let id = id.to_string();
            let member = question.members.iter().find(|member| member.id == id);
            member.map_or_else(|| id.clone(), |member| member.name.clone())
        };
        let own = question.members.iter().find(|member| Some(&member.id) == node.as_ref());
        let managing = own.and_then(|own| own.manager).map(|address| address.port());
        let mut checks = layer.examine_kernel().await;
        if known.is_some() {
            checks.extend(layer.examine_families(name));
            checks.extend(layer.examine_pairs(&name).await);
        }
        checks.extend(layer.examine_truth().await);
        checks.extend(layer.examine_ports(managing).await);
        Examined { node, checks, known }
    }
}

fn specification(request: &SandboxRequest) -> Result<SandboxSpec, SandboxError> {
    let id = SandboxId::new(request.id.clone());
    let id = id.ok_or_else(|| SandboxError::Invalid(format!("{:?} cannot name a sandbox", request.id)))?;
    let mut spec = SandboxSpec::new(id);
    for join in &request.overlays {
        let attachment = OverlayAttachment::new(join.network, &join.addresses, join.names.clone());
        spec.overlays
            .push(attachment.ok_or_else(|| SandboxError::Invalid("an overlay network gave no IPv4 address".into()))?);
    }
    spec.mesh = !spec.overlays.is_empty();
    for join in &request.bridges {
        let address = join.addresses.iter().find_map(|a| match a {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let address6 = join.addresses.iter().find_map(|a| match a {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        let (bridge, names) = (join.bridge.clone(), join.names.clone());
        spec.bridges.push(BridgeAttachment { bridge, address, names, address6 });
    }
    spec.host_ports = request
        .ports
        .iter()
        .map(|p| HostPort { bind: p.host_ip, published: p.host_port, target: p.container_port, protocol: p.protocol })
        .collect();
    let last = |(at, port): (usize, &PortBinding)| Some((at, port.host_port_last?));
    spec.ranges = request.ports.iter().enumerate().filter_map(last).collect();
    spec.dns = Resolver::from(&request.dns);
    Ok(spec)
}

fn sandbox(made: &skep_network::Sandbox, view: &NetworkView) -> Sandbox {
    let port = |p: &HostPort| PortBinding {
        protocol: p.protocol,
        container_port: p.target,
        host_ip: p.bind,
        host_port: p.published,
        host_port_last: None,
    };
    // Where published ports lead over IPv6 on a network without: a way to the node, and none of the network's.
    let twins = made.links.iter().filter(|link| link.kind != LinkKind::Task && link.has_twin());
    let twins = twins.filter_map(|link| {
        let addresses = vec![IpNet::V6(link.address6?)];
        Some(Link { to: LinkTo::Node, addresses, gateways: Vec::new(), mac: link.mac.0 })
    });
    Sandbox {
        id: made.id.as_str().to_owned(),
        netns: made.netns.clone(),
        links: made.links.iter().map(|l| link(l, view)).chain(twins).collect(),
        ports: made.host_ports.iter().map(port).collect(),
        resolv_conf: made.resolv_conf.clone(),
    }
}

fn link(made: &SandboxLink, view: &NetworkView) -> Link {
    let to = match &made.kind {
        LinkKind::Overlay(id) => {
            let name = view.networks.get(id).map_or_else(|| id.to_string(), |n| n.name.clone());
            LinkTo::Cluster { id: *id, name }
        }
        LinkKind::Bridge(name) => LinkTo::Bridge(name.clone()),
        LinkKind::Task => LinkTo::Node,
    };
    let is_shown = to == LinkTo::Node || !made.has_twin();
    let (address6, gateway6) = (made.address6.filter(|_| is_shown), made.gateway6.filter(|_| is_shown));
    Link {
        to,
        addresses: [IpNet::V4(made.address)].into_iter().chain(address6.map(IpNet::V6)).collect(),
        gateways: made.gateway.map(IpAddr::V4).into_iter().chain(gateway6.map(IpAddr::V6)).collect(),
        mac: made.mac.0,
    }
}

/// A bridge as the network layer makes it: one subnet of each family at most.
fn bridge_spec(request: &BridgeRequest) -> Result<BridgeSpec, SandboxError> {
    let mut spec = BridgeSpec { name: request.name.clone(), internal: request.internal, ..BridgeSpec::default() };
    spec.ipv6 = request.ipv6.then(BridgeSpec6::default);
    for asked in &request.subnets {
        let mixed = || SandboxError::Invalid(format!("the addresses of {} are not of one family", asked.subnet));
        let second = || SandboxError::Invalid(format!("{} is a second subnet of its family", asked.subnet));
        match (asked.subnet, asked.gateway) {
            (IpNet::V4(subnet), IpAddr::V4(gateway)) => {
                if spec.subnet.replace(subnet).is_some() {
                    return Err(second());
                }
                let range = asked.range.map(|range| if let IpNet::V4(r) = range { Ok(r) } else { Err(mixed()) });
                spec.addressing = Addressing { gateway: Some(gateway), range: range.transpose()? };
            }
            (IpNet::V6(subnet), IpAddr::V6(gateway)) => {
                let no = || SandboxError::Invalid(format!("the subnet {subnet} needs IPv6 on the network"));
                let ipv6 = spec.ipv6.as_mut().ok_or_else(no)?;
                let range = asked.range.map(|range| if let IpNet::V6(r) = range { Ok(r) } else { Err(mixed()) });
                let whole = BridgeSpec6 { subnet: Some(subnet), gateway: Some(gateway), range: range.transpose()? };
                if std::mem::replace(ipv6, whole).subnet.is_some() {
                    return Err(second());
                }
            }
            (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => return Err(mixed()),
        }
    }
    Ok(spec)
}

fn bridge(made: &skep_network::Bridge) -> Bridge {
    let v4 = Subnet {
        subnet: IpNet::V4(made.subnet),
        range: made.addressing.range.map(IpNet::V4),
        gateway: IpAddr::V4(made.gateway()),
    };
    let v6 = made.ipv6.map(|v6| Subnet {
        subnet: IpNet::V6(v6.subnet),
        range: v6.range.map(IpNet::V6),
        gateway: IpAddr::V6(v6.gateway),
    });
    Bridge { name: made.name.clone(), subnets: [v4].into_iter().chain(v6).collect() }
}

fn error(error: NetworkError) -> SandboxError {
    match error {
        NetworkError::PortTaken { .. }
        | NetworkError::PortUnusable { .. }
        | NetworkError::NoPortLeft { .. }
        | NetworkError::Full { .. }
        | NetworkError::Address { .. } => SandboxError::Taken(error.to_string()),
        NetworkError::UnknownBridge { name } => SandboxError::NoSuchBridge(name),
        NetworkError::Bridge { .. } => SandboxError::InUse(error.to_string()),
        NetworkError::Config { .. }
        | NetworkError::NoWayOut { .. }
        | NetworkError::NoEncryption { .. }
        | NetworkError::Unsupported { .. } => SandboxError::Invalid(error.to_string()),
        NetworkError::Kernel { .. }
        | NetworkError::UnknownNetwork { .. }
        | NetworkError::NoIndex
        | NetworkError::RangeTooSmall { .. }
        | NetworkError::PoolExhausted { .. }
        | NetworkError::Differs { .. }
        | NetworkError::UnknownSandbox { .. }
        | NetworkError::Record { .. }
        | NetworkError::Names { .. }
        | NetworkError::Stopped => SandboxError::Failed { context: "making a sandbox".into(), source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ipv6: bool, subnets: &[(&str, &str)]) -> BridgeRequest {
        let one = |(subnet, gateway): &(&str, &str)| Subnet {
            subnet: subnet.parse().unwrap(),
            range: None,
            gateway: gateway.parse().unwrap(),
        };
        BridgeRequest { name: "b".into(), subnets: subnets.iter().map(one).collect(), internal: false, ipv6 }
    }

    #[test]
    fn a_bridge_has_a_subnet_of_each_family_or_has_it_chosen() {
        let spec = bridge_spec(&request(true, &[("fd01::/64", "fd01::1"), ("10.1.0.0/24", "10.1.0.9")])).unwrap();
        assert_eq!(spec.subnet.map(|s| s.to_string()).as_deref(), Some("10.1.0.0/24"));
        assert_eq!(spec.addressing.gateway.map(|g| g.to_string()).as_deref(), Some("10.1.0.9"));
        assert_eq!(spec.ipv6.and_then(|v6| v6.gateway).map(|g| g.to_string()).as_deref(), Some("fd01::1"));
        let chosen = bridge_spec(&request(true, &[])).unwrap();
        assert_eq!((chosen.subnet, chosen.ipv6), (None, Some(BridgeSpec6::default())));
        assert_eq!(bridge_spec(&request(false, &[])).unwrap().ipv6, None);
        let wrong = [
            request(false, &[("fd01::/64", "fd01::1")]),
            request(true, &[("fd01::/64", "fd01::1"), ("fd02::/64", "fd02::1")]),
            request(true, &[("10.1.0.0/24", "10.1.0.1"), ("10.2.0.0/24", "10.2.0.1")]),
            request(true, &[("fd01::/64", "10.1.0.1")]),
        ];
        wrong.iter().for_each(|request| assert!(bridge_spec(request).is_err(), "{request:?}"));
    }
}
