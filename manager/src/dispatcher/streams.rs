//! Streams that nodes open because a manager asked them to: the only way to a worker, which has no open port.
//!
//! A request is bound to a node and a nonce, good once, for ten seconds. The node presents the nonce on
//! `Streams.Attach` with its certificate; on the stream it then serves its own engine, and the manager is the client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::TryRngCore;
use rand::rngs::OsRng;
use skep_api::ports::BoxDuplex;
use skep_proto::model::NodeId;
use skep_proto::model::session::OpenStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::reign::lock;

/// How long a node may take to open a stream.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Random bytes that name one request.
pub type Nonce = [u8; 16];

/// Passes a request on to the node.
#[async_trait]
pub trait AskNode: Send + Sync + 'static {
    /// Asks `node` to open a stream.
    ///
    /// # Errors
    /// When it cannot be asked.
    async fn ask(&self, node: NodeId, open: OpenStream) -> Result<(), StreamError>;
}

/// No stream to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The node has no session.
    #[error("node {node} is not connected: it is down, or reconnecting")]
    NotConnected {
        /// Which.
        node: NodeId,
    },
    /// The node takes no more requests.
    #[error("node {node} is too busy to open another stream")]
    Busy {
        /// Which.
        node: NodeId,
    },
    /// No leader to ask.
    #[error("no manager leads the cluster now, so no node can be asked for a stream")]
    NoLeader,
    /// The leader did not pass the request on.
    #[error("the leader cannot reach node {node}: {message}")]
    Leader {
        /// Which.
        node: NodeId,
        /// What the leader says.
        message: String,
    },
    /// The node was asked and did not come.
    #[error("node {node} did not open a stream within {OPEN_TIMEOUT:?}")]
    Timeout {
        /// Which.
        node: NodeId,
    },
    /// No randomness.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// Streams of one manager. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    own: watch::Receiver<SocketAddr>,
    ask: Arc<dyn AskNode>,
    pending: Arc<Mutex<HashMap<Nonce, Pending>>>,
}

struct Pending {
    node: NodeId,
    give: oneshot::Sender<BoxDuplex>,
}

impl Streams {
    /// Nodes are asked through `ask`, and told to come to `own`, this manager's advertised address.
    pub fn new(own: watch::Receiver<SocketAddr>, ask: Arc<dyn AskNode>) -> Self {
        Self { own, ask, pending: Arc::default() }
    }

    /// A stream to the engine of `node`, from this manager.
    ///
    /// # Errors
    /// When the node cannot be asked, or does not come within [`OPEN_TIMEOUT`].
    ///
    /// # Cancel safety
    /// Safe: an abandoned request is void.
    pub async fn open(&self, node: NodeId) -> Result<BoxDuplex, StreamError> {
        let mut nonce = Nonce::default();
        OsRng.try_fill_bytes(&mut nonce).map_err(|_| StreamError::NoRandomness)?;
        let (give, take) = oneshot::channel();
        lock(&self.pending).insert(nonce, Pending { node, give });
        let _void = Void { streams: self, nonce };
        let manager = *self.own.borrow();
        let opened = async {
            self.ask.ask(node, OpenStream { manager, nonce }).await?;
            take.await.map_err(|_| StreamError::Timeout { node })
        };
        timeout(OPEN_TIMEOUT, opened).await.unwrap_or(Err(StreamError::Timeout { node }))
    }

    /// Whoever waits for the stream that `node` brings with `nonce`; `None` when nobody does. A nonce works once. One
    /// that another node presents stays good for its owner.
    pub(super) fn claim(&self, node: NodeId, nonce: Nonce) -> Option<oneshot::Sender<BoxDuplex>> {
        let mut pending = lock(&self.pending);
        if pending.get(&nonce)?.node != node {
            return None;
        }
        pending.remove(&nonce).map(|pending| pending.give)
    }
}

/// Makes a nonce void when nobody waits for it any more.
struct Void<'a> {
    streams: &'a Streams,
    nonce: Nonce,
}

impl Drop for Void<'_> {
    fn drop(&mut self) {
        lock(&self.streams.pending).remove(&self.nonce);
    }
}
