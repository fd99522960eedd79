//! Raft's links to other managers, over the cluster's TLS.

use skep_identity::{Connector, Expect};
use skep_proto::model::NodeId;
use tonic::transport::Channel;

use crate::raft::network::{self, ConnectError};
use crate::raft::types::{Peer, RaftId};

/// Dials managers as Raft needs it: only the very node that a member names is spoken to.
#[derive(Debug, Clone)]
pub struct RaftLinks(pub Connector);

impl network::Connector for RaftLinks {
    fn connect(&self, id: RaftId, peer: &Peer) -> Result<Channel, ConnectError> {
        let error = |reason: String| ConnectError { id, address: peer.address.clone(), reason };
        let address = peer.address.parse().map_err(|_| error("not an address with a port".into()))?;
        let node: NodeId = peer.node_id.parse().map_err(|_| error("its record names no node".into()))?;
        let endpoint = network::endpoint(format!("http://{address}")).map_err(|e| error(e.to_string()))?;
        Ok(self.0.channel_with(endpoint, address, Expect::Node(node)))
    }
}
