//! Who uses a network of the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use skep_proto::model::{ContainerId, Node, Service};

/// Who uses a network now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NetworkUsage {
    /// Nodes with a task or a container on it, by name.
    pub nodes: Vec<Arc<Node>>,
    /// Services on it, by name.
    pub services: Vec<ServiceUsage>,
    /// Plain containers on it, by name.
    pub containers: Vec<EndpointUsage>,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceUsage {
    /// The service.
    pub service: Arc<Service>,
    /// Its virtual addresses there, IPv4 first; none for one that is resolved to its tasks.
    pub virtual_ips: Vec<IpNet>,
    /// Its tasks that have a node and have not ended.
    pub tasks: Vec<EndpointUsage>,
}

/// A task or a plain container on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointUsage {
    /// The container's name.
    pub name: String,
    /// The container.
    pub container: ContainerId,
    /// Its addresses there, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// Where its node is reached, as far as that is known.
    pub host: Option<IpAddr>,
}
