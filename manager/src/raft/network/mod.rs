//! gRPC between managers: the client side that openraft drives, and the service to be added to the node's server.
//!
//! The transport comes in through [`Connector`] and the node's server, so that TLS and simulated networks both fit.

mod client;
mod server;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_proto::wire::raft::raft_client::RaftClient;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::types::{Peer, RaftId};

pub(crate) use client::Network;
pub use server::Service;

/// Largest gRPC message either side takes, in bytes. Messages are built to stay below: 1 MiB of entries and one entry
/// more, a snapshot chunk of 1 MiB.
pub const MESSAGE_LIMIT: usize = 4 << 20;

const TO: &str = "skep-raft-to";
const FROM: &str = "skep-raft-from";
const CLUSTER: &str = "skep-cluster";

/// A manager cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("cannot dial manager {id} at {address}: {reason}")]
pub struct ConnectError {
    /// Raft id of the manager.
    pub id: RaftId,
    /// Its address.
    pub address: String,
    /// Why, in words.
    pub reason: String,
}

/// Makes channels to other managers.
///
/// A channel must check that it reached the node it was asked for (its certificate), should dial lazily, and redials by
/// itself. Build it from [`endpoint`], which carries the timeouts that these links need.
pub trait Connector: Send + Sync + 'static {
    /// A channel to the manager `id`, which is `peer`.
    fn connect(&self, id: RaftId, peer: &Peer) -> Result<Channel, ConnectError>;
}

/// An endpoint for `uri` (`http://host:port`; TLS is the connector's own) with keepalive and timeouts for Raft links.
///
/// Without HTTP/2 keepalive a connection that lost its packets for a while stays open and dead for ever.
pub fn endpoint(uri: String) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(Duration::from_millis(500))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_millis(500))
        .keep_alive_timeout(Duration::from_millis(1500))
        .keep_alive_while_idle(true)
        // A follower far behind may be sent several messages at once.
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}

/// Channels to the other managers, one per peer and address. Clones share them.
#[derive(Clone)]
pub(crate) struct Links {
    from: RaftId,
    cluster: Arc<str>,
    connector: Arc<dyn Connector>,
    open: Arc<Mutex<HashMap<RaftId, (Peer, Channel)>>>,
    /// Where members are now. openraft keeps using what it knew when it began to replicate to a member.
    moved: Arc<Mutex<HashMap<RaftId, Peer>>>,
}

impl Links {
    pub(crate) fn new(from: RaftId, cluster: [u8; 16], connector: Arc<dyn Connector>) -> Self {
        Self { from, cluster: hex::encode(cluster).into(), connector, open: Arc::default(), moved: Arc::default() }
    }

    /// Takes over where the members are from the newest membership.
    pub(crate) fn learn<'a>(&self, members: impl Iterator<Item = (&'a RaftId, &'a Peer)>) {
        let members: HashMap<RaftId, Peer> = members.map(|(id, peer)| (*id, peer.clone())).collect();
        self.open.lock().expect("no one panics while holding the links").retain(|id, _| members.contains_key(id));
        *self.moved.lock().expect("no one panics while holding the addresses") = members;
    }

    /// A client for the manager `id`, on the channel to it if one is open. `peer` is where it was last seen, if the
    /// membership does not say better.
    pub(crate) fn client(&self, id: RaftId, peer: &Peer) -> Result<RaftClient<Channel>, ConnectError> {
        let now = self.moved.lock().expect("no one panics while holding the addresses").get(&id).cloned();
        let peer = now.as_ref().unwrap_or(peer);
        let mut open = self.open.lock().expect("no one panics while holding the links");
        let channel = match open.get(&id) {
            Some((known, channel)) if known == peer => channel.clone(),
            _ => {
                let channel = self.connector.connect(id, peer)?;
                open.insert(id, (peer.clone(), channel.clone()));
                channel
            }
        };
        drop(open);
        Ok(RaftClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT))
    }

    /// `message` as a request to the manager `to`.
    pub(crate) fn request<T>(&self, to: RaftId, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(TO, to.into());
        metadata.insert(FROM, self.from.into());
        let cluster = MetadataValue::try_from(&*self.cluster).expect("hexadecimal digits are valid metadata");
        metadata.insert(CLUSTER, cluster);
        request
    }
}

/// Refuses a call that was meant for another member or another cluster. Returns who called.
fn check_addressee(metadata: &MetadataMap, me: RaftId, cluster: &str) -> Result<RaftId, Status> {
    let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
    let number = |key: &str| text(key).and_then(|value| value.parse::<RaftId>().ok());
    if text(CLUSTER) != Some(cluster) {
        return Err(Status::failed_precondition("this manager belongs to another cluster"));
    }
    match number(TO) {
        Some(to) if to == me => {}
        Some(to) => {
            return Err(Status::failed_precondition(format!("this is raft member {me}, the call is for member {to}")));
        }
        None => return Err(Status::invalid_argument("the call names no addressee")),
    }
    number(FROM).ok_or_else(|| Status::invalid_argument("the call names no sender"))
}

/// A stream with its type forgotten, as tonic's generated traits want it.
type Replies<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;
