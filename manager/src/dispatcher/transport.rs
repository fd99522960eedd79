//! The two directions of a session, independent of what carries them.

use async_trait::async_trait;
use skep_proto::convert::DecodeError;
use skep_proto::model::session::{AgentMessage, ManagerMessage};

/// What comes from an agent.
#[async_trait]
pub trait Inbound: Send {
    /// The next message; `None` when the agent has closed the session.
    ///
    /// # Errors
    /// When the connection broke, or the message is not valid. The session ends then.
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn recv(&mut self) -> Result<Option<AgentMessage>, TransportError>;
}

/// What goes to an agent.
#[async_trait]
pub trait Outbound: Send {
    /// Sends a message; waits while the agent is slow.
    ///
    /// # Errors
    /// When the connection broke.
    async fn send(&mut self, message: ManagerMessage) -> Result<(), TransportError>;
}

/// Both directions.
pub struct Transport {
    /// From the agent.
    pub inbound: Box<dyn Inbound>,
    /// To the agent.
    pub outbound: Box<dyn Outbound>,
}

/// A session's connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It broke.
    #[error("the connection to the agent broke: {reason}")]
    Broken {
        /// What the transport says.
        reason: String,
    },
    /// The agent sent something that is not valid.
    #[error("the agent sent an invalid message")]
    Invalid(#[from] DecodeError),
}
