//! How managers are reached. The messages do not depend on it: gRPC here, channels in simulations.

use std::net::SocketAddr;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use skep_api::ports::BoxDuplex;
use skep_proto::convert::DecodeError;
use skep_proto::model::session::{AgentMessage, Hello, ManagerMessage};
use tokio::sync::mpsc;

/// A way to managers.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Opens a session and says hello.
    ///
    /// # Errors
    /// When the manager cannot be reached or does not speak the protocol.
    async fn session(&self, manager: SocketAddr, hello: Hello) -> Result<Link, TransportError>;

    /// Opens a stream of bytes that the manager asked for with `nonce`.
    ///
    /// # Errors
    /// As [`Self::session`].
    async fn attach(&self, manager: SocketAddr, nonce: [u8; 16]) -> Result<BoxDuplex, TransportError>;
}

/// An open session. Dropping it ends it.
pub struct Link {
    /// To the manager.
    pub to_manager: mpsc::Sender<AgentMessage>,
    /// From the manager; nothing follows an error.
    pub from_manager: BoxStream<'static, Result<ManagerMessage, TransportError>>,
}

/// Why a manager cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("cannot connect to the manager at {manager}")]
    Connect {
        /// The manager.
        manager: SocketAddr,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The call was refused, or broke.
    #[error("the manager at {manager} answers {code:?}: {message}")]
    Call {
        /// The manager.
        manager: SocketAddr,
        /// gRPC's word for it.
        code: tonic::Code,
        /// The manager's text.
        message: String,
    },
    /// The manager sent something that is not valid.
    #[error("the manager sent an invalid message")]
    Invalid(#[from] DecodeError),
}
