//! Sandboxes and bridges of plain containers, as the engine asks for them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use skep_agent::engine_port::sandboxes::{
    Bridge, BridgeRequest, Encryption, Examined, Link, LinkTo, Sandbox, SandboxError, SandboxRequest, Sandboxes,
};
use skep_network::{
    Addressing, BridgeAttachment, BridgeSpec, HostPort, LinkKind, NetworkError, OverlayAttachment, Resolver, SandboxId,
    SandboxLink, SandboxSpec,
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

    async fn ensure_bridge(&self, request: BridgeRequest) -> Result<Bridge, SandboxError> {
        let layer = self.0.layer();
        if let Some(known) = layer.bridges().into_iter().find(|b| b.name == request.name) {
            return Ok(bridge(&known));
        }
        if let Some(second) = request.subnets.get(1) {
            let text = format!("a second subnet of a bridge ({}) is not supported yet", second.subnet);
            return Err(SandboxError::Invalid(text));
        }
        let asked = request.subnets.first();
        let v6 = |net: IpNet| SandboxError::Invalid(format!("{net} is IPv6, which is not supported yet"));
        let v4 = |net: IpNet| if let IpNet::V4(net) = net { Ok(net) } else { Err(v6(net)) };
        let subnet = asked.map(|asked| v4(asked.subnet)).transpose()?;
        let addressing = Addressing {
            gateway: asked.map(|asked| v4(asked.gateway.into()).map(|net| net.addr())).transpose()?,
            range: asked.and_then(|asked| asked.range).map(v4).transpose()?,
        };
        let spec =
            BridgeSpec { name: request.name.clone(), subnet, addressing, internal: request.internal, ipv6: None };
        layer.create_bridge(spec).await.map(|made| bridge(&made)).map_err(error)
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
            checks.extend(layer.examine_pairs(name).await);
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
    spec.dns = Resolver::from(&request.dns);
    Ok(spec)
}

fn sandbox(made: &skep_network::Sandbox, view: &NetworkView) -> Sandbox {
    let port = |p: &HostPort| PortBinding {
        protocol: p.protocol,
        container_port: p.target,
        host_ip: p.bind,
        host_port: p.published,
    };
    Sandbox {
        id: made.id.as_str().to_owned(),
        netns: made.netns.clone(),
        links: made.links.iter().map(|l| link(l, view)).collect(),
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
    Link {
        to,
        addresses: [IpNet::V4(made.address)].into_iter().chain(made.address6.map(IpNet::V6)).collect(),
        gateways: made.gateway.map(IpAddr::V4).into_iter().chain(made.gateway6.map(IpAddr::V6)).collect(),
        mac: made.mac.0,
    }
}

fn bridge(made: &skep_network::Bridge) -> Bridge {
    let subnet: Ipv4Net = made.subnet;
    let gateway: Ipv4Addr = made.gateway();
    Bridge {
        name: made.name.clone(),
        subnets: vec![Subnet {
            subnet: IpNet::V4(subnet),
            range: made.addressing.range.map(IpNet::V4),
            gateway: IpAddr::V4(gateway),
        }],
    }
}

fn error(error: NetworkError) -> SandboxError {
    match error {
        NetworkError::PortTaken { .. } | NetworkError::Address { .. } => SandboxError::Taken(error.to_string()),
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
