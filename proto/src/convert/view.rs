//! The cluster's network, as a node sees it.

use std::collections::BTreeMap;

use super::DecodeError;
use super::error::{At, FieldError};
use super::field::{Field, MAX_ITEMS, at_most, record};
use crate::model::NetworkId;
use crate::model::view::{EndpointAddress, EndpointView, OverlayNetwork, Peer, ServiceView};
use crate::wire::session as wire;

record!(Peer { node, index, data_path, wireguard, ipv4_only });
record!(OverlayNetwork { id, name, vni, subnets, internal, encrypted, mtu, port });
record!(ServiceView { id, name, mode, virtual_ips, aliases, ports, redirects });
record!(EndpointView { task, service, node, name, addresses, mesh, serving });
record!(EndpointAddress { network, address, aliases, names });

/// Further names of a service, by network.
impl Field<Vec<wire::NetworkAliases>> for BTreeMap<NetworkId, Vec<String>> {
    fn to_wire(&self) -> Vec<wire::NetworkAliases> {
        self.iter()
            .map(|(network, aliases)| wire::NetworkAliases { network: network.to_wire(), aliases: aliases.to_wire() })
            .collect()
    }
    fn from_wire(wire: Vec<wire::NetworkAliases>) -> Result<Self, DecodeError> {
        at_most(wire.len(), MAX_ITEMS, "elements")?;
        let mut map = Self::new();
        for (index, entry) in wire.into_iter().enumerate() {
            let network = NetworkId::from_wire(entry.network).at("network").at_index(index)?;
            let aliases = Vec::from_wire(entry.aliases).at("aliases").at_index(index)?;
            if map.insert(network, aliases).is_some() {
                return Err(FieldError::Duplicate.into()).at("network").at_index(index);
            }
        }
        Ok(map)
    }
}
