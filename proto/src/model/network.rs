//! Networks of the cluster.

use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::container::Driver;
use super::{Annotations, Meta, NetworkId};

/// VXLAN network identifier of the routing mesh. The allocator gives identifiers from 4096 on.
pub const INGRESS_VNI: u32 = 16;

/// What the operator wants of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// Driver and its options; only `overlay` exists at cluster scope.
    pub driver: Driver,
    /// Also give IPv6 addresses.
    pub ipv6: bool,
    /// No way out.
    pub internal: bool,
    /// The routing mesh itself, made by the operator in the place of the one that every cluster has from the beginning.
    pub ingress: bool,
    /// Plain containers may join.
    pub attachable: bool,
    /// Subnets asked for; empty to get one from the pool.
    pub ipam: Vec<IpamConfig>,
    /// Options of the IPAM driver, kept for inspection.
    pub ipam_options: BTreeMap<String, String>,
}

/// A subnet asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpamConfig {
    /// The subnet; `None` to get one from the pool.
    pub subnet: Option<IpNet>,
    /// The part of it that addresses are given from.
    pub range: Option<IpNet>,
    /// The address kept for the gateway.
    pub gateway: Option<IpAddr>,
    /// Addresses kept for others, by name.
    pub reserved: BTreeMap<String, IpAddr>,
}

/// A network as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Identity.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// Wanted.
    pub spec: NetworkSpec,
    /// VXLAN network identifier (RFC 7348, 24 bits); `None` until the allocator has given one.
    pub vni: Option<u32>,
    /// Subnets in use, one per family; empty until the allocator has given them.
    pub subnets: Vec<Subnet>,
    /// Removal was asked for.
    pub pending_delete: bool,
}

/// A subnet in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet.
    pub subnet: IpNet,
    /// The part of it that addresses are given from, when not all.
    pub range: Option<IpNet>,
    /// Kept for the gateway.
    pub gateway: IpAddr,
}
